//! Who may not talk to the node, and what may not be said to it: refused with a logged reason, and
//! everybody else goes on untouched.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::stranger::TrustsAnybody;
use farshore_e2e::{Machine, Part, System, run};
use rustix::process::Pid;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const ANSWER_LIMIT: Duration = Duration::from_secs(20);

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate that nobody issued.
fn self_signed() -> Result<Identity> {
    let signed = rcgen::generate_simple_self_signed(["agent".to_owned()])?;
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der());
    Ok((vec![signed.cert.der().clone()], key.map_err(anyhow::Error::msg)?))
}

/// The agent's own certificate, as somebody with access to its machine could take it.
fn identity_in(folder: &Path) -> Result<Identity> {
    let path = folder.join("identity.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let issued: serde_json::Value = serde_json::from_slice(&text)?;
    let pem = issued["certificate_pem"].as_str().context("no certificate")?;
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join("identity.key"))?))
}

fn config(identity: Option<Identity>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody));
    Ok(Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
    }))
}

/// Shakes hands and asks for the stream of a volume; returns the connection and what came back.
fn ask(
    port: u16,
    identity: Option<Identity>,
    volume: &str,
) -> Result<(StreamOwned<ClientConnection, TcpStream>, Vec<u8>)> {
    let tls = ClientConnection::new(config(identity)?, ServerName::try_from("node")?)?;
    let mut stream = StreamOwned::new(tls, connect(port)?);
    let request = format!(
        "GET /v1/volumes/{volume}/stream HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
         Upgrade: farshore/2\r\n\r\n"
    );
    let mut answer = Vec::new();
    let mut byte = [0];
    if stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).is_ok() {
        // To the end of the HTTP head, or of the connection.
        while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0)
        {
            answer.push(byte[0]);
        }
    }
    Ok((stream, answer))
}

fn is_session(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/1.1 101")
}

/// Opens a session with a good certificate and says `bytes`; the node must hang up.
fn misbehave(port: u16, identity: &Identity, volume: &str, bytes: &[u8]) -> Result<()> {
    let identity = (identity.0.clone(), identity.1.clone_key());
    let (mut stream, answer) = ask(port, Some(identity), volume)?;
    ensure!(is_session(&answer), "no session: {}", String::from_utf8_lossy(&answer));
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    let has_timed_out = end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    ensure!(!has_timed_out, "the node kept on listening after {:?}", &bytes[..8]);
    Ok(())
}

/// A frame's header as docs/formats/frame.md lays it out, with a checksum that is right.
fn header(kind: u8, body_bytes: u32) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..4].copy_from_slice(b"FSF2");
    bytes[4] = kind;
    bytes[32..36].copy_from_slice(&body_bytes.to_le_bytes());
    let sum = crc32c(&bytes[..44]);
    bytes[44..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn crc32c(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
        })
    });
    !sum
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).context("connect to the node")?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// Sends bytes without TLS; the node must hang up and say nothing of substance.
fn shout(port: u16, bytes: &[u8]) -> Result<()> {
    let mut stream = connect(port)?;
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let has_timed_out = end.is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
    ensure!(!has_timed_out, "the node kept a stranger waiting after {} bytes", bytes.len());
    ensure!(answer.len() < 512, "the node answered {} bytes", answer.len());
    Ok(())
}

/// Lines of the node's log that tell of a refusal.
fn refusals(system: &System) -> Result<usize> {
    let path = system.data().join("logs/node.log");
    let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(log.lines().filter(|line| line.contains("refused") && line.contains("reason")).count())
}

/// Fails unless a mark set now is committed and equal to the disk, by the same node as before.
fn nobody_noticed(system: &System, machine: &Machine, node: Pid) -> Result<()> {
    let point = machine.mark()?;
    machine.export(&point, &system.path("point.raw"))?;
    image::compare(&machine.disk, &system.path("point.raw"))?;
    fs::remove_file(system.path("point.raw"))?;
    ensure!(system.pid(Part::Node)? == node, "the node was restarted");
    Ok(())
}

#[test]
fn strangers_are_refused_and_nobody_else_notices() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(50)))?;
        machine.wait_until_protected()?;
        let (node, port) = (system.pid(Part::Node)?, system.node_port);
        let volume = machine.volume()?;
        let before = refusals(system)?;

        shout(port, b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")?;
        shout(port, &[0; 4096])?;
        shout(port, &[0xff; 100_000])?;
        let (_, answer) = ask(port, None, &volume)?;
        ensure!(!is_session(&answer), "a session without a certificate");
        let (_, answer) = ask(port, Some(self_signed()?), &volume)?;
        ensure!(!is_session(&answer), "a session with a stranger's certificate");
        // Connections that say nothing must not use the node up.
        let silent: Vec<TcpStream> = (0..200).map(|_| connect(port)).collect::<Result<_>>()?;
        nobody_noticed(system, &machine, node)?;
        drop(silent);
        let told = refusals(system)? - before;
        ensure!(told >= 5, "five strangers, {told} refusals in the node's log");
        Ok(())
    });
}

#[test]
fn garbage_inside_a_session_ends_that_session_alone() {
    run(|system| {
        let bystander = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(51)))?;
        bystander.wait_until_protected()?;
        let machine = Machine::protect(system, "web2", "scan", (8 * MIB, Content::Mixed(52)))?;
        machine.wait_until_protected()?;
        let (node, port) = (system.pid(Part::Node)?, system.node_port);
        let identity = identity_in(&system.data().join("agent"))?;
        let volume = machine.volume()?;

        let mut flipped = header(1, 56);
        flipped[10] ^= 1;
        let garbage: [&[u8]; 5] =
            [&[0x5a; 4096], &flipped, &header(1, 2 << 20), &header(3, u32::MAX), &header(200, 0)];
        for bytes in garbage {
            misbehave(port, &identity, &volume, bytes)?;
        }
        let other = "019dffff-0000-7000-8000-000000000000";
        let (_, answer) = ask(port, Some(identity), other).context("another volume")?;
        // Whether the request or the hello is refused, nothing of a volume may come back.
        ensure!(answer.len() < 512, "the node answered {} bytes", answer.len());
        nobody_noticed(system, &bystander, node)?;
        machine.wait_until_protected()?;
        nobody_noticed(system, &machine, node)
    });
}
