//! Trouble on the way to a store: an HTTP proxy that fails, dawdles, or loses answers on purpose.
//!
//! Each request goes over a connection of its own to the store, so that the proxy always knows where
//! an answer ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long a request or an answer may pause before the proxy gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks whether a request that gets no answer may end.
const PAUSE: Duration = Duration::from_millis(50);
/// A slow body comes in pieces of this size with a pause between them.
const PIECE: usize = 16 << 10;

/// What happens to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They pass.
    None,
    /// 503, without asking the store.
    Unavailable,
    /// 404 in words of its own, without asking the store: a gateway that has lost its way there.
    NoRoute,
    /// 403 with the store's own words for it, for everything that writes.
    ReadOnly,
    /// The store does what it was asked; the connection breaks before it can say so.
    ResetAfterWrite,
    /// Writes get no answer at all, and do not reach the store.
    Silence,
    /// Bodies trickle, in both directions: so many bytes a second.
    Slow(u32),
}

/// What a proxy has done.
#[derive(Debug, Default)]
struct Shared {
    trouble: Mutex<Option<Trouble>>,
    is_over: AtomicBool,
    troubled: AtomicU64,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to a port of this machine; everything passes.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        let own = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let store = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let thread = thread::Builder::new().name("store-proxy".to_owned()).spawn(move || {
            for client in listener.incoming() {
                if mine.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let shared = Arc::clone(&mine);
                thread::spawn(move || {
                    // A client or store that goes away ends the connection: that is what it is for.
                    let _ = serve(&shared, client, store);
                });
            }
        })?;
        Ok(Self { port: own, shared, thread: Some(thread) })
    }

    /// Sets what happens to requests from now on.
    ///
    /// # Panics
    /// If a thread of the proxy panicked.
    pub fn set(&self, trouble: Trouble) {
        *self.shared.trouble.lock().expect("no thread panics with it") = Some(trouble);
    }

    /// How many requests did not simply pass.
    #[must_use]
    pub fn troubled(&self) -> u64 {
        self.shared.troubled.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Trouble::None);
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread up.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn trouble(&self) -> Trouble {
        self.trouble.lock().ok().and_then(|trouble| *trouble).unwrap_or(Trouble::None)
    }

    fn count(&self) {
        self.troubled.fetch_add(1, Ordering::Relaxed);
    }
}

/// The head of a request, and what came of its body along with it.
struct Request {
    head: Vec<u8>,
    method: String,
    body_bytes: usize,
    begun: Vec<u8>,
}

fn serve(shared: &Shared, mut client: TcpStream, store: SocketAddr) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_nodelay(true)?;
    let Some(request) = read_head(&mut client)? else { return Ok(()) };
    let trouble = shared.trouble();
    let is_write = !["GET", "HEAD"].contains(&request.method.as_str());
    match trouble {
        Trouble::Unavailable => {
            shared.count();
            refuse(&mut client, &request, "503 Service Unavailable", "ServiceUnavailable")
        }
        Trouble::NoRoute => {
            shared.count();
            refuse(&mut client, &request, "404 Not Found", "NoSuchRoute")
        }
        Trouble::ReadOnly if is_write => {
            shared.count();
            refuse(&mut client, &request, "403 Forbidden", "AccessDenied")
        }
        Trouble::Silence if is_write => {
            shared.count();
            while shared.trouble() == Trouble::Silence {
                thread::sleep(PAUSE);
            }
            Ok(())
        }
        Trouble::ResetAfterWrite if is_write => {
            shared.count();
            // The store ends the connection behind its answer.
            let mut upstream = forward(&mut client, &request, store, None)?;
            std::io::copy(&mut upstream, &mut std::io::sink())?;
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
            Ok(())
        }
        Trouble::Slow(rate) => {
            shared.count();
            let mut upstream = forward(&mut client, &request, store, Some(rate))?;
            copy(&mut upstream, &mut client, usize::MAX, Some(rate))?;
            Ok(client.shutdown(Shutdown::Both)?)
        }
        _ => {
            let mut upstream = forward(&mut client, &request, store, None)?;
            std::io::copy(&mut upstream, &mut client)?;
            Ok(client.shutdown(Shutdown::Both)?)
        }
    }
}

fn read_head(client: &mut TcpStream) -> Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = match client.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        bytes.extend_from_slice(&piece[..count]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(end) = request.parse(&bytes)? {
            let method = request.method.context("a method")?.to_owned();
            let length = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let body_bytes = match length {
                Some(header) => std::str::from_utf8(header.value)?.trim().parse()?,
                None => 0,
            };
            let begun = bytes.split_off(end);
            return Ok(Some(Request { head: bytes, method, body_bytes, begun }));
        }
        if bytes.len() > HEAD_BYTES_MAX {
            bail!("a head of more than {HEAD_BYTES_MAX} bytes");
        }
    }
}

/// Sends a request on to the store and asks it to end the connection behind the answer.
fn forward(
    client: &mut TcpStream,
    request: &Request,
    store: SocketAddr,
    rate: Option<u32>,
) -> Result<TcpStream> {
    let mut upstream = TcpStream::connect(store)?;
    upstream.set_read_timeout(Some(PATIENCE))?;
    upstream.set_nodelay(true)?;
    let without_end = request.head.len() - 2;
    upstream.write_all(&request.head[..without_end])?;
    upstream.write_all(b"Connection: close\r\n\r\n")?;
    upstream.write_all(&request.begun)?;
    copy(client, &mut upstream, request.body_bytes - request.begun.len(), rate)?;
    Ok(upstream)
}

/// Copies up to `bytes`, at `rate` bytes a second if there is one.
fn copy(from: &mut TcpStream, to: &mut TcpStream, bytes: usize, rate: Option<u32>) -> Result<()> {
    let mut left = bytes;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let wanted = left.min(PIECE);
        let count = from.read(&mut piece[..wanted])?;
        if count == 0 {
            break;
        }
        to.write_all(&piece[..count])?;
        left -= count;
        if let Some(rate) = rate {
            thread::sleep(Duration::from_secs_f64(count as f64 / f64::from(rate)));
        }
    }
    Ok(())
}

/// Takes the request and answers as a store does that does not want it.
fn refuse(client: &mut TcpStream, request: &Request, status: &str, code: &str) -> Result<()> {
    let mut left = request.body_bytes - request.begun.len();
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let wanted = left.min(PIECE);
        let count = client.read(&mut piece[..wanted])?;
        if count == 0 {
            return Ok(());
        }
        left -= count;
    }
    let body = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(answer.as_bytes())?;
    Ok(client.shutdown(Shutdown::Both)?)
}
