//! The control plane over real TLS.

use std::sync::Arc;
use std::time::Duration;

use crate::site::{EXPORT, Site, identity, trusting};
use farshore_api::identity::{EnrolmentToken, Token};
use farshore_api::status::Status;
use farshore_api::{ErrorBody, ErrorCode, paths};
use rcgen::{CertificateParams, KeyPair};
use reqwest::Client;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn code(client: &Client, url: String) -> (u16, ErrorCode) {
    let reply = client.get(url).send().await.unwrap();
    let status = reply.status().as_u16();
    (status, reply.json::<ErrorBody>().await.unwrap().error.code)
}

#[tokio::test]
async fn credentials_decide_what_is_open() {
    let mut site = Site::start(EXPORT).await;
    let status: Status = site.get(paths::STATUS).await;
    assert_eq!(status.vault, "file:///vault");
    let nobody = trusting(site.dir.path()).build().unwrap();
    let live = nobody.get(site.url(paths::LIVEZ)).send().await.unwrap();
    assert_eq!(live.text().await.unwrap(), "ok\n");
    let refused = code(&nobody, site.url(paths::STATUS)).await;
    assert_eq!(refused, (401, ErrorCode::Unauthenticated));
    let (_, agent) = site.enrol("agent").await;
    assert_eq!(code(&agent, site.url(paths::STATUS)).await, (403, ErrorCode::Forbidden));
    let refused = code(&agent, site.url(paths::NODE_ASSIGNMENTS)).await;
    assert_eq!(refused, (403, ErrorCode::Forbidden));
    let assigned = agent.get(site.url(paths::AGENT_ASSIGNMENTS)).send().await.unwrap();
    assert_eq!(assigned.status(), 200);
    site.control.take().unwrap().stop().await;
}

#[tokio::test]
async fn the_server_shows_the_ca_that_the_token_pins() {
    let site = Site::start(EXPORT).await;
    let token: Token = site.post(paths::TOKENS, json!({ "role": "node" })).await;
    let token: EnrolmentToken = token.token.parse().unwrap();
    let pem = std::fs::read(site.data().join("ca.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let address = site.control.as_ref().unwrap().address();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("control.farshore").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let connection = stream.get_ref().1;
    let chain = connection.peer_certificates().unwrap();
    assert!(chain.iter().any(|certificate| token.pins(certificate)));
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn strangers_do_not_get_past_the_handshake() {
    let site = Site::start(EXPORT).await;
    let other = Site::start(EXPORT).await;
    let url = site.url(paths::LIVEZ);
    let distrusting = trusting(other.dir.path()).build().unwrap();
    assert!(distrusting.get(&url).send().await.is_err(), "another CA is not trusted");

    let key = KeyPair::generate().unwrap();
    let foreign = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    let client = trusting(site.dir.path()).identity(identity(&foreign.pem(), &key));
    assert!(client.build().unwrap().get(&url).send().await.is_err(), "a certificate not of ours");

    let old = trusting(site.dir.path()).tls_version_max(reqwest::tls::Version::TLS_1_2);
    assert!(old.build().unwrap().get(&url).send().await.is_err(), "TLS 1.2");

    let mut plain = TcpStream::connect(site.control.as_ref().unwrap().address()).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP"), "plain text gets no HTTP");

    let status: Status = site.get(paths::STATUS).await;
    assert_eq!(status.counts.agents, 0, "and the others are untouched");
}

#[tokio::test]
async fn a_stop_ends_long_polls_at_once() {
    let mut site = Site::start(EXPORT).await;
    site.protect().await;
    let (_, agent) = site.enrol("agent").await;
    let first = agent.get(site.url(paths::AGENT_ASSIGNMENTS)).send().await.unwrap();
    let version = first.json::<serde_json::Value>().await.unwrap()["version"].clone();
    let path = format!("{}?after={version}&wait_ms=60000", paths::AGENT_ASSIGNMENTS);
    let poll = tokio::spawn(agent.get(site.url(&path)).send());
    // The poll is on its way or waiting; either way the stop must not wait a minute for it.
    let began = std::time::Instant::now();
    site.control.take().unwrap().stop().await;
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    drop(poll.await);
}

/// An agent of a host that is known from now on: its next call connects anew.
async fn known(site: &Site) -> Client {
    let (_, agent) = site.enrol("agent").await;
    let poll = site.url(paths::AGENT_ASSIGNMENTS);
    let first = agent.get(&poll).header("connection", "close").send().await.unwrap();
    assert_eq!(first.status(), 200);
    agent
}

/// N10: handshakes that lead nowhere hold up their own kind alone.
#[tokio::test]
async fn a_crowd_of_half_handshakes_holds_no_peer_up() {
    let site = Site::start(EXPORT).await;
    let agent = known(&site).await;
    let address = site.control.as_ref().unwrap().address();
    let mut crowd = Vec::new();
    for last in 2..8 {
        for _ in 0..40 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, last], 0).into()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            // The first byte of a handshake, and no second.
            stream.write_all(&[0x16]).await.unwrap();
            crowd.push(stream);
        }
    }
    let second = agent.get(site.url(paths::AGENT_ASSIGNMENTS)).send().await.unwrap();
    assert_eq!(second.status(), 200);
    drop(crowd);
}

/// N19: as many strange hosts as there are places for strangers, with one connection each, and more.
#[tokio::test]
async fn a_crowd_of_hosts_keeps_no_peer_out() {
    let site = Site::start(EXPORT).await;
    let agent = known(&site).await;
    let address = site.control.as_ref().unwrap().address();
    let connect = async |net, host| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 1, net, host], 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut crowd = Vec::new();
    for number in 0..1_030_u16 {
        let [net, host] = number.to_be_bytes();
        crowd.push(connect(net, host).await);
    }
    let mut late = connect(9, 9).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), late.read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "there is no place for it: {ended:?}");
    let second = agent.get(site.url(paths::AGENT_ASSIGNMENTS)).send().await.unwrap();
    assert_eq!(second.status(), 200);
    drop(crowd);
}
