//! A control plane that answers what a test tells it, over TLS with a CA of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A reply: status and body.
pub(crate) type Reply = (u16, Value);

/// What was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// Method and path, such as `GET /api/v1/status`.
    pub(crate) line: String,
    pub(crate) authorization: String,
    pub(crate) body: Value,
}

/// The control plane. It answers until the test's process ends.
pub(crate) struct Fake {
    pub(crate) data: TempDir,
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// Answers each request (`METHOD /path`) with its replies in turn; the last one stays.
    pub(crate) fn start(replies: &[(&str, &[Reply])]) -> Self {
        Self::start_in_years(replies, 2000, 2100)
    }

    /// As [`Fake::start`]; its certificate is valid from the beginning of one year to that of another.
    pub(crate) fn start_in_years(replies: &[(&str, &[Reply])], from: i32, to: i32) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = identity(data.path(), from, to);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut replies: HashMap<String, Vec<Reply>> = replies
            .iter()
            .map(|(line, replies)| ((*line).to_owned(), replies.iter().rev().cloned().collect()))
            .collect();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off is its own affair.
                let _ = answer(stream, &config, &mut replies, &log);
            }
        });
        let fake = Self { data, address, asked };
        fake.write_endpoints();
        fake
    }

    fn write_endpoints(&self) {
        let data = self.data.path();
        let endpoints = json!({
            "control": format!("https://{}", self.address),
            "node": "127.0.0.1:1",
            "vault": format!("file://{}", data.join("vault").display()),
            "key_file": data.join("recovery.key"),
            "ca_file": data.join("ca.pem"),
            "token_file": data.join("operator.token"),
            "pids": { "up": 1, "control": 2, "node": 3, "agent": 4 },
        });
        std::fs::write(data.join("endpoints.json"), endpoints.to_string()).unwrap();
        std::fs::write(data.join("operator.token"), "secret\n").unwrap();
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Makes a CA, writes it to `ca.pem`, and a certificate for the loopback address, valid between two years.
fn identity(data: &Path, from: i32, to: i32) -> Arc<ServerConfig> {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    std::fs::write(data.join("ca.pem"), ca_certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    leaf.not_before = date_time_ymd(from, 1, 1);
    leaf.not_after = date_time_ymd(to, 1, 1);
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

fn answer(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    replies: &mut HashMap<String, Vec<Reply>>,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let line = head.first().map_or("", |line| line.trim_end_matches(" HTTP/1.1")).to_owned();
    let path = line.split('?').next().unwrap().to_owned();
    log.lock().unwrap().push(Asked {
        line,
        authorization: header("authorization").unwrap_or_default(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    });
    let (status, body) = match replies.get_mut(&path) {
        Some(replies) if replies.len() > 1 => replies.pop().unwrap(),
        Some(replies) => replies[0].clone(),
        None => refusal(404, "not_found", "there is no such route"),
    };
    let body = body.to_string();
    let mut stream = stream.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// A refusal as the control plane words it.
pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Reply {
    (status, json!({ "error": { "code": code, "message": message, "kind": "invalid" } }))
}
