//! From the first byte to the hello.

use super::{Act, Case, Expect, View};
use crate::frame::Frame;
use crate::peer::{Who, client_hello, request};

const SESSION: &str =
    "A session carries one volume and starts as an HTTP/1.1 request inside mutual TLS 1.3";
const AGENT: &str = "The certificate names an agent; the request names a volume";
const UPGRADE: &str = "GET /v1/volumes/<volume>/stream HTTP/1.1";
const TOKEN: &str = "a node that does not know the token asked for answers with an HTTP error";
const EARLY: &str = "nothing may follow the request before it";

const fn stranger(sentence: &'static str, name: &'static str, act: Act) -> Case {
    Case { name, sentence, field: "", act, expect: Expect::HungUp, counted: "tls" }
}

const fn asking(sentence: &'static str, name: &'static str, bytes: super::Bytes) -> Case {
    let act = Act::Request(bytes);
    Case { name, sentence, field: "", act, expect: Expect::Status(400), counted: "http" }
}

/// A good request with one part replaced.
fn with(view: &View<'_>, from: &str, to: &str) -> Vec<u8> {
    let volume = uuid::Uuid::from_bytes(view.stream.volume).to_string();
    let good = request(&volume);
    assert!(good.contains(from), "{good:?} has no {from:?}");
    good.replace(from, to).into_bytes()
}

fn volume(view: &View<'_>) -> String {
    uuid::Uuid::from_bytes(view.stream.volume).to_string()
}

pub(super) const CASES: &[Case] = &[
    stranger(SESSION, "HTTP without TLS", Act::Plain(|view| request(&volume(view)).into_bytes())),
    stranger(SESSION, "frames without TLS", Act::Plain(|view| view.stream.hello().frame().bytes())),
    stranger(SESSION, "zeros", Act::Plain(|_| vec![0; 4096])),
    stranger(SESSION, "all bits set", Act::Plain(|_| vec![0xff; 100_000])),
    stranger(SESSION, "a TLS record over its limit", Act::Plain(|_| vec![22, 3, 1, 0xff, 0xff, 1])),
    stranger(
        SESSION,
        "a handshake message of 16 MiB",
        Act::Plain(|_| vec![22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]),
    ),
    stranger(
        SESSION,
        "half a client hello, then the end",
        Act::PlainCut(|_| client_hello().map(|hello| hello[..60].to_vec()).unwrap_or_default()),
    ),
    stranger(SESSION, "nothing, then the end", Act::PlainCut(|_| Vec::new())),
    stranger(SESSION, "TLS 1.2", Act::Shake(Who::OldTls)),
    stranger(SESSION, "no certificate", Act::Shake(Who::Nobody)),
    stranger(SESSION, "a certificate that nobody issued", Act::Shake(Who::SelfSigned)),
    Case { counted: "identity", ..stranger(AGENT, "a node's certificate", Act::Shake(Who::Node)) },
    Case {
        expect: Expect::Status(400),
        counted: "connection",
        ..stranger(SESSION, "a handshake and goodbye", Act::NoRequest)
    },
    asking(SESSION, "no HTTP", |_| vec![0x16; 1000]),
    asking(SESSION, "HTTP/1.0", |view| with(view, "HTTP/1.1", "HTTP/1.0")),
    asking(UPGRADE, "another method", |view| with(view, "GET", "POST")),
    asking(UPGRADE, "another path", |view| with(view, "/stream", "/../../etc/passwd")),
    asking(UPGRADE, "no volume", |view| with(view, &volume(view), "")),
    asking(UPGRADE, "a volume that is no id", |view| with(view, &volume(view), "%2e%2e")),
    asking(UPGRADE, "no upgrade", |view| with(view, "Upgrade: farshore/2\r\n", "")),
    asking(UPGRADE, "an upgrade that is not the connection's", |view| {
        with(view, "Connection: Upgrade", "Connection: close")
    }),
    asking(UPGRADE, "a request without an end", |view| {
        with(view, "\r\n\r\n", &format!("\r\nX: {}", "x".repeat(5000)))
    }),
    asking(UPGRADE, "a hundred headers", |view| {
        with(view, "\r\n\r\n", &format!("\r\n{}\r\n", "X: y\r\n".repeat(100)))
    }),
    asking(TOKEN, "another version's token", |view| with(view, "farshore/2", "farshore/1")),
    asking(TOKEN, "another protocol's token", |view| with(view, "farshore/2", "websocket")),
    asking(EARLY, "a hello behind the request", |view| {
        let mut bytes = request(&volume(view)).into_bytes();
        bytes.extend(view.stream.hello().frame().bytes());
        bytes
    }),
    asking(EARLY, "a second request behind the first", |view| {
        request(&volume(view)).repeat(2).into_bytes()
    }),
    asking(EARLY, "a frame in place of the request", |_| Frame::zero(1, 0, 1).bytes()),
];
