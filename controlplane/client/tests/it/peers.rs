//! Whom a certificate names, and who is let in.

use crate::authority::{Authority, HOUR};
use farshore_api::identity::Role;
use farshore_client::{Identity, Peer, client_config, peer_of, server_config};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::fs;
use std::sync::Arc;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);

/// A certificate with these URIs among other names.
fn certificate(uris: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["a.node.farshore".to_owned()]).unwrap();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn one_uri_names_a_peer() {
    for role in [Role::Agent, Role::Node] {
        assert_eq!(peer_of(&certificate(&[&role.uri(ID)])), Some((role, ID)));
    }
}

#[test]
fn no_uri_and_two_uris_name_nobody() {
    let (agent, node) = (Role::Agent.uri(ID), Role::Node.uri(ID));
    assert_eq!(peer_of(&certificate(&[])), None);
    assert_eq!(peer_of(&certificate(&[&agent, &node])), None);
    assert_eq!(peer_of(&certificate(&[&agent, &agent])), None);
    assert_eq!(peer_of(&certificate(&[&agent, "https://example.org"])), None);
    assert_eq!(peer_of(&certificate(&["https://example.org", &agent])), None);
    let key = KeyPair::generate().unwrap();
    let bare = CertificateParams::default().self_signed(&key).unwrap();
    assert_eq!(peer_of(bare.der()), None, "no names at all");
}

#[test]
fn uris_of_other_forms_name_nobody() {
    for uri in [
        format!("https://farshore/agent/{ID}"),
        format!("SPIFFE://farshore/agent/{ID}"),
        format!("spiffe://elsewhere/agent/{ID}"),
        format!("spiffe://farshore/operator/{ID}"),
        format!("spiffe://farshore/agent/{ID}/more"),
        format!("spiffe://farshore/agent/{}", ID.to_string().to_uppercase()),
        format!("spiffe://farshore/agent/{}", ID.simple()),
        "spiffe://farshore/agent/".to_owned(),
        "spiffe://farshore".to_owned(),
        String::new(),
    ] {
        assert_eq!(peer_of(&certificate(&[&uri])), None, "{uri}");
    }
}

#[test]
fn bytes_that_are_no_certificate_name_nobody() {
    let whole = certificate(&[&Role::Agent.uri(ID)]);
    for end in 0..whole.len() {
        assert_eq!(peer_of(&whole[..end]), None, "the first {end} bytes");
    }
}

fn identity(authority: &Authority, role: Role) -> Arc<Identity> {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = authority.certify((role, ID), &key, (HOUR, HOUR));
    let json = serde_json::to_string(&certificate).unwrap();
    fs::write(dir.path().join("identity.json"), json).unwrap();
    fs::write(dir.path().join("identity.key"), key.serialize_pem()).unwrap();
    Arc::new(Identity::load(dir.path()).unwrap().unwrap())
}

/// Shows no certificate.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Whom the server sees after a handshake.
fn shake_hands(
    client: ClientConfig,
    server: &ServerConfig,
    name: &'static str,
) -> Result<Option<(Role, Uuid)>, rustls::Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server.clone()))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    let leaf = server.peer_certificates().and_then(|chain| chain.first());
    Ok(leaf.and_then(|leaf| peer_of(leaf)))
}

#[test]
fn a_node_takes_agents_of_its_ca_and_nobody_else() {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = server_config(&identity(&ours, Role::Node)).unwrap();
    let agent = identity(&ours, Role::Agent);
    let with = |identity| client_config(identity, Peer::Node).unwrap();
    assert_eq!(shake_hands(with(&agent), &server, "peer"), Ok(Some((Role::Agent, ID))));

    // The agent asks for the node's name, whatever else its CA has signed.
    let error = shake_hands(with(&agent), &server, "another.node.farshore").unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    let foreign = identity(&other, Role::Agent);
    let error = shake_hands(with(&foreign), &server, "peer").unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");

    let mut nobody = with(&agent);
    nobody.client_auth_cert_resolver = Arc::new(Nothing);
    let error = shake_hands(nobody, &server, "peer").unwrap_err();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}
