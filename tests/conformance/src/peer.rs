//! A connection to the node's port and everything that a peer can do with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use farshore_client::{Identity, Peer as Whose, client_config};
use farshore_e2e::stranger::TrustsAnybody;
use rustix::net::{AddressFamily, SocketType};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::frame::{self, HEADER_BYTES, Said};

/// No answer of the node takes longer, deadlines apart.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// As whom to shake hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The agent itself.
    Agent,
    /// Somebody without a certificate.
    Nobody,
    /// Somebody with a certificate of their own making.
    SelfSigned,
    /// A node: a certificate of the right CA in the wrong role.
    Node,
    /// The agent, in TLS 1.2.
    OldTls,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By a refusal, behind which nothing came.
    Refused(u16, String),
    /// By an HTTP status.
    Status(u16),
    /// Without a word.
    HungUp,
    /// It was still open after that long.
    Open,
}

/// A connection inside TLS.
#[derive(Debug)]
pub struct Peer {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// Connects from an address of this machine: every 127.x.y.z is one.
///
/// # Errors
/// If nobody listens or no descriptor is left.
pub fn connect(from: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::V4(SocketAddrV4::new(from, 0)))?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    rustix::net::connect(&socket, &to).context("connect to the node")?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// Settings to shake hands as `who`.
///
/// # Errors
/// If a certificate cannot be made.
pub fn settings(who: Who, agent: &Arc<Identity>, node: &Arc<Identity>) -> Result<ClientConfig> {
    Ok(match who {
        Who::Agent => client_config(agent, Whose::Node)?,
        Who::Node => client_config(node, Whose::Node)?,
        Who::OldTls => {
            let identity = agent.certified();
            let versions = builder(&[&TLS12])?;
            versions.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                Arc::unwrap_or_clone(identity),
            )))
        }
        Who::Nobody => builder(&[&TLS13])?.with_no_client_auth(),
        Who::SelfSigned => {
            let signed = rcgen::generate_simple_self_signed(["agent".to_owned()])?;
            let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der());
            let key = key.map_err(anyhow::Error::msg)?;
            builder(&[&TLS13])?.with_client_auth_cert(vec![signed.cert.der().clone()], key)?
        }
    })
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(versions: &[&'static rustls::SupportedProtocolVersion]) -> Result<Builder> {
    Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody)))
}

/// The first bytes that a TLS client sends.
///
/// # Errors
/// If TLS cannot be set up.
pub fn client_hello() -> Result<Vec<u8>> {
    let config = builder(&[&TLS13])?.with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("node")?)?;
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// The request for a volume's stream.
#[must_use]
pub fn request(volume: &str) -> String {
    format!(
        "GET /v1/volumes/{volume}/stream HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
         Upgrade: farshore/2\r\n\r\n"
    )
}

impl Peer {
    /// Shakes hands. In TLS 1.3 a client learns only later that its certificate is refused.
    ///
    /// # Errors
    /// If the node ends it.
    pub fn shake(tcp: TcpStream, config: ClientConfig, name: &str) -> Result<Self> {
        let name = ServerName::try_from(name.to_owned())?;
        let tls = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = StreamOwned::new(tls, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("shake hands")?;
        }
        Ok(Self { stream })
    }

    /// Sends bytes inside TLS. That the node is gone is found out by listening.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// As [`Self::send`], and says whether the bytes went.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_ok()
    }

    /// Reads the head of an HTTP answer.
    ///
    /// # Errors
    /// If none comes.
    pub fn status(&mut self) -> Result<u16> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            let count = self.stream.read(&mut byte).context("read the answer's head")?;
            if count == 0 || head.len() > 4096 {
                bail!("no answer but {:?}", String::from_utf8_lossy(&head));
            }
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head);
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.with_context(|| format!("no status in {text:?}"))
    }

    /// Reads the next frame; nothing at the end of the connection.
    ///
    /// # Errors
    /// If the node breaks the format, or says nothing for too long.
    pub fn said(&mut self) -> Result<Option<Said>> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let mut body = vec![0; frame::body_bytes(&header)?];
        if !self.fill(&mut body)? {
            bail!("the node ended the connection inside a frame");
        }
        frame::said(&header, &body).map(Some)
    }

    /// Fills a buffer; false when the connection ended before its first byte.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Err(error) if filled == 0 && is_end(&error) => return Ok(false),
                Ok(0) => bail!("the connection ended inside a frame"),
                Ok(count) => filled += count,
                Err(error) => return Err(error).context("read from the node"),
            }
        }
        Ok(true)
    }

    /// Listens until the node ends the connection.
    ///
    /// # Errors
    /// If the node breaks the format, or says something after a refusal.
    pub fn end(&mut self) -> Result<End> {
        let mut end = End::HungUp;
        loop {
            match self.said() {
                Ok(None) => return Ok(end),
                Ok(Some(said)) if end != End::HungUp => bail!("{said:?} came after {end:?}"),
                Ok(Some(Said::Refusal { reason, text })) => end = End::Refused(reason, text),
                Ok(Some(_)) => {}
                Err(error) if is_timeout(&error) => return Ok(End::Open),
                Err(error) => return Err(error),
            }
        }
    }

    /// Says goodbye as TLS wants it, and goes on listening.
    pub fn close_writing(&mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }

    /// Reads until the end, which must come and be near.
    ///
    /// # Errors
    /// If it does not come, or too much before it.
    pub fn rest(&mut self) -> Result<()> {
        let (mut buffer, mut bytes) = ([0; 512], 0);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => bytes += count,
                Err(error) if is_end(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if bytes > 4096 {
                bail!("the node goes on after {bytes} bytes");
            }
        }
    }

    /// The socket under TLS.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream.sock
    }

    /// How long [`Self::end`] and the others wait for each byte.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn patience(&mut self, limit: Duration) -> Result<()> {
        Ok(self.stream.sock.set_read_timeout(Some(limit))?)
    }
}

fn is_end(error: &std::io::Error) -> bool {
    let ends = [
        ErrorKind::UnexpectedEof,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::BrokenPipe,
        // An alert: the node said why in TLS.
        ErrorKind::InvalidData,
    ];
    ends.contains(&error.kind())
}

/// Whether nothing came for as long as this side listens.
#[must_use]
pub fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// Listens on a bare socket until the node hangs up.
///
/// # Errors
/// If it says more than an alert.
pub fn hang_up(tcp: &mut TcpStream) -> Result<End> {
    let (begin, mut answer, mut buffer) = (Instant::now(), 0, [0; 4096]);
    loop {
        match tcp.read(&mut buffer) {
            Ok(0) => return Ok(End::HungUp),
            Ok(count) => answer += count,
            Err(error) if is_end(&error) => return Ok(End::HungUp),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(End::Open);
            }
            Err(error) => return Err(error.into()),
        }
        // The node's half of a handshake is some kilobytes.
        if answer > 16 << 10 || begin.elapsed() > 4 * ANSWER_LIMIT {
            bail!("the node said {answer} bytes to a stranger");
        }
    }
}
