//! A control plane on a loopback port that answers by a function.

use farshore_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde::Serialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One request, as the control plane sees it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) body: String,
    pub(crate) peer: Option<CertificateDer<'static>>,
}

pub(crate) type Answer = (u16, String);

pub(crate) fn ok(body: &impl Serialize) -> Answer {
    (200, serde_json::to_string(body).unwrap())
}

pub(crate) fn error(code: ErrorCode) -> Answer {
    let body = ErrorBody::from(ErrorDetail::new(code, "as the test wants"));
    (code.status(), serde_json::to_string(&body).unwrap())
}

pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        tls: ServerConfig,
        mut answer: impl FnMut(&Request) -> Answer + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, is_over) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let (told, ends, tls) = (Arc::clone(&requests), Arc::clone(&is_over), Arc::new(tls));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                // A client that refuses the certificate ends its connection in the middle.
                let _refused = serve(&tls, stream.unwrap(), &told, &mut answer);
            }
        });
        Self { address, requests, is_over, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server's thread panicked");
        }
    }
}

fn serve(
    tls: &Arc<ServerConfig>,
    stream: TcpStream,
    told: &Mutex<Vec<Request>>,
    answer: &mut impl FnMut(&Request) -> Answer,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let tls = ServerConnection::new(Arc::clone(tls)).unwrap();
    let mut stream = BufReader::new(StreamOwned::new(tls, stream));
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let peer = stream.get_ref().conn.peer_certificates().and_then(|chain| chain.first());
    let peer = peer.map(|leaf| leaf.clone().into_owned());
    let request = Request { path, body: String::from_utf8(body).unwrap(), peer };
    told.lock().unwrap().push(request.clone());
    let (status, body) = answer(&request);
    let stream = stream.get_mut();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}
