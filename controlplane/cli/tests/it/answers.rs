//! Stores that do not answer as a store: each time the right cause, what to do, and the exit code.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use tempfile::TempDir;

use crate::fake::Fake;
use crate::run::{Ran, command, farshore};

/// Answers every request with the same head and body; none to HEAD, as HTTP demands.
fn server(head: &'static str, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that breaks off is its own affair.
            let _ = answer(stream, head, body);
        }
    });
    address
}

fn answer(stream: TcpStream, head: &str, body: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut method, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let line = line.to_ascii_lowercase();
        if method.is_empty() {
            method.clone_from(&line);
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    std::io::copy(&mut (&mut stream).take(length), &mut std::io::sink())?;
    let mut stream = stream.into_inner();
    let sent = if method.starts_with("head") { "" } else { body };
    let length = body.len();
    write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{sent}")
}

/// A recovery key; the vaults here are never reached.
fn key() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let (vault, key) = (dir.path().join("vault"), dir.path().join("key"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let args = ["vault", "init", "--vault", &text(&vault), "--key-file", &text(&key)];
    assert_eq!(farshore(&args).code, 0);
    let key = text(&key);
    (dir, key)
}

fn stats(endpoint: &str, key: &str) -> Ran {
    let mut command = command();
    command
        .args(["vault", "stats", "--vault", "s3://bucket/folder", "--key-file", key])
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("HOME", "/nowhere");
    command.output().unwrap().into()
}

const PAGE: &str = "<!DOCTYPE html><html><body>Sign in to the network</body></html>";

#[test]
fn what_is_no_stores_answer_has_its_own_cause() {
    let (_dir, key) = key();
    let error = |code: &str, message: &str| -> &'static str {
        format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>").leak()
    };
    let xml = "content-type: application/xml";
    let with = |status: &str| -> &'static str { format!("{status}\r\n{xml}").leak() };
    let cases: [(&str, &str, i32, &str); 14] = [
        ("200 OK\r\ncontent-type: text/html; charset=utf-8", PAGE, 69, "a web page came in place"),
        ("404 Not Found\r\ncontent-type: text/html", PAGE, 69, "a web page came in place"),
        ("403 Forbidden\r\ncontent-type: text/html", PAGE, 69, "a web page came in place"),
        // Something in front of the store has no such path, which says nothing about the object.
        (
            "404 Not Found\r\ncontent-type: text/plain",
            "default backend - 404",
            69,
            "not with the store's own NoSuchKey",
        ),
        ("404 Not Found", "", 69, "check the endpoint, and the proxies"),
        (with("404 Not Found"), error("NotFound", "x"), 69, "the store says NotFound"),
        (with("404 Not Found"), error("NoSuchBucket", "x"), 66, "there is no such bucket"),
        (with("301 Moved"), error("PermanentRedirect", "elsewhere"), 64, "set AWS_REGION"),
        (
            with("400 Bad Request"),
            error("AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'"),
            64,
            "set AWS_REGION",
        ),
        (with("403 Forbidden"), error("InvalidObjectState", "x"), 69, "is in an archive class"),
        (
            with("403 Forbidden"),
            error("AccessDenied", "x"),
            77,
            "allow s3:GetObject and s3:ListBucket",
        ),
        (with("403 Forbidden"), error("RequestTimeTooSkewed", "x"), 69, "set its clock right"),
        (with("400 Bad Request"), error("ExpiredToken", "x"), 77, "does not accept the credential"),
        (with("404 Not Found"), error("NoSuchKey", "x"), 66, "s3://bucket/folder"),
    ];
    for (head, body, code, words) in cases {
        let ran = stats(&format!("http://{}", server(head, body)), &key);
        assert_eq!(ran.code, code, "{head}: {body}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "`{words}` is not in {}", ran.stderr);
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let (_dir, key) = key();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = stats(&format!("http://{closed}"), &key);
    assert_eq!(ran.code, 69, "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing listens there"), "{}", ran.stderr);
    let plain = server("200 OK", "");
    let ran = stats(&format!("https://{plain}"), &key);
    assert_eq!(ran.code, 69, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not speak TLS"), "{}", ran.stderr);
    let stranger = Fake::start(&[]);
    let ran = stats(&format!("https://{}", stranger.address), &key);
    assert_eq!(ran.code, 69, "{}", ran.stderr);
    assert!(ran.stderr.contains("SSL_CERT_FILE"), "{}", ran.stderr);
}
