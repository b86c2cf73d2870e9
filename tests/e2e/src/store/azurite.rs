//! What Azurite needs before a vault can be in it: a container.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The account that every emulator has, and its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// The connection string for an emulator that is reached through a port.
pub(super) fn connection_string(port: u16) -> String {
    format!(
        "DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};\
         BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    )
}

/// Makes a container, as an administrator would beforehand.
pub(super) fn make_container(port: u16, container: &str) -> Result<()> {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06\n");
    let resource = format!("/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container");
    let blank_fields = "\n".repeat(11);
    let text = format!("PUT\n{blank_fields}{headers}{resource}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(KEY)?);
    let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
    let request = format!(
        "PUT /{ACCOUNT}/{container}?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\nContent-Length: 0\r\n\
         Authorization: SharedKey {ACCOUNT}:{signature}\r\nConnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to Azurite")?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 201 "), "Azurite made no container: {answer}");
    Ok(())
}
