//! A small NBD client, so that a test knows which of its writes were acknowledged.
//!
//! Source: the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>:
//! fixed newstyle negotiation, `NBD_OPT_GO`, simple replies, one request at a time.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const FLAG_FUA: u16 = 1;
/// An answer that takes longer is a fault: even backpressure must let a write through in time.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// No option's answer of ours is longer.
const OPTION_BYTES_MAX: usize = 4096;

#[derive(Clone, Copy)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection to one export.
pub struct Client {
    stream: Box<dyn Stream>,
    /// Bytes of the export.
    pub size: u64,
    cookie: u64,
    refusal: Option<u32>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `nbd+unix:///EXPORT?socket=PATH`
    Unix {
        /// Name of the export.
        export: String,
        /// Path of the socket.
        socket: String,
    },
    /// `nbd://HOST:PORT/EXPORT`
    Tcp {
        /// Name of the export.
        export: String,
        /// Host and port.
        authority: String,
    },
}

impl Address {
    /// Reads a URI.
    ///
    /// # Errors
    /// If it is neither of the two forms.
    pub fn parse(uri: &str) -> Result<Self> {
        if let Some(rest) = uri.strip_prefix("nbd+unix://") {
            let (export, query) = rest.split_once('?').context("an NBD URI without a socket")?;
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))
                .context("an NBD URI without a socket")?;
            let export = unescape(export.trim_start_matches('/'));
            return Ok(Self::Unix { export, socket: unescape(socket) });
        }
        let Some(rest) = uri.strip_prefix("nbd://") else { bail!("{uri} is no NBD URI") };
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self::Tcp { export: unescape(export), authority: authority.to_owned() })
    }
}

/// Undoes percent encoding.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).filter(|_| *first == b'%');
        let code = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Client {
    /// Connects to the export at a URI.
    ///
    /// # Errors
    /// If nobody listens or the export is refused.
    pub fn connect(uri: &str) -> Result<Self> {
        let address = Address::parse(uri)?;
        let context = || format!("connect to {uri}");
        let (stream, export): (Box<dyn Stream>, String) = match address {
            Address::Unix { export, socket } => {
                let stream = UnixStream::connect(socket).with_context(context)?;
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                (Box::new(stream), export)
            }
            Address::Tcp { export, authority } => {
                let stream = TcpStream::connect(authority).with_context(context)?;
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                stream.set_nodelay(true)?;
                (Box::new(stream), export)
            }
        };
        let mut client = Self { stream, size: 0, cookie: 0, refusal: None };
        client.negotiate(&export).with_context(|| format!("negotiate with {uri}"))?;
        Ok(client)
    }

    fn negotiate(&mut self, export: &str) -> Result<()> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "this is no NBD server");
        self.stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
        let name_bytes = u32::try_from(export.len())?;
        let mut option = Vec::new();
        option.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        option.extend_from_slice(&OPTION_GO.to_be_bytes());
        option.extend_from_slice(&(name_bytes + 6).to_be_bytes());
        option.extend_from_slice(&name_bytes.to_be_bytes());
        option.extend_from_slice(export.as_bytes());
        option.extend_from_slice(&0_u16.to_be_bytes());
        self.stream.write_all(&option)?;
        loop {
            let (kind, body) = self.option_reply()?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if body.len() == 12 && body[..2] == [0, 0] => {
                    self.size = u64::from_be_bytes(body[2..10].try_into()?);
                }
                REPLY_INFO => {}
                other => bail!("refused ({other:#x}): {}", String::from_utf8_lossy(&body)),
            }
        }
    }

    fn option_reply(&mut self) -> Result<(u32, Vec<u8>)> {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header)?;
        let magic = u64::from_be_bytes(header[..8].try_into()?);
        ensure!(magic == OPTION_REPLY_MAGIC, "an option's reply with magic {magic:#x}");
        let kind = u32::from_be_bytes(header[12..16].try_into()?);
        let bytes = usize::try_from(u32::from_be_bytes(header[16..].try_into()?))?;
        ensure!(bytes <= OPTION_BYTES_MAX, "an option's reply of {bytes} bytes");
        let mut body = vec![0; bytes];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }

    /// Reads `bytes.len()` bytes at `offset`.
    ///
    /// # Errors
    /// If the connection ends or the server answers with an error number.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.request(Command::Read, 0, offset, length(bytes.len()), &[])?;
        self.reply()?;
        self.stream.read_exact(bytes)
    }

    /// Writes at `offset`; with `is_durable`, the acknowledgement waits for the disk (FUA).
    ///
    /// # Errors
    /// As [`Self::read`]. The write may or may not have happened.
    pub fn write(&mut self, offset: u64, bytes: &[u8], is_durable: bool) -> io::Result<()> {
        let flags = if is_durable { FLAG_FUA } else { 0 };
        self.request(Command::Write, flags, offset, length(bytes.len()), bytes)?;
        self.reply()
    }

    /// Makes zeros of `bytes` at `offset`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes(&mut self, offset: u64, bytes: u32) -> io::Result<()> {
        self.request(Command::WriteZeroes, 0, offset, bytes, &[])?;
        self.reply()
    }

    /// Says that `bytes` at `offset` are of no use any more.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn trim(&mut self, offset: u64, bytes: u32) -> io::Result<()> {
        self.request(Command::Trim, 0, offset, bytes, &[])?;
        self.reply()
    }

    /// Waits until all that was acknowledged is on the disk.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0, 0, &[])?;
        self.reply()
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// If the connection has ended before.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.request(Command::Disconnect, 0, 0, 0, &[])
    }

    /// The error number that the server answered last, if it did: an error without one is that of
    /// the connection.
    #[must_use]
    pub fn refusal(&self) -> Option<u32> {
        self.refusal
    }

    fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        bytes: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + payload.len());
        message.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message.extend_from_slice(&flags.to_be_bytes());
        message.extend_from_slice(&(command as u16).to_be_bytes());
        message.extend_from_slice(&self.cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&bytes.to_be_bytes());
        message.extend_from_slice(payload);
        self.stream.write_all(&message)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let word = |at: usize| {
            u32::from_be_bytes(reply[at..at + 4].try_into().expect("four bytes were taken"))
        };
        let error = word(4);
        let is_ours = word(0) == REPLY_MAGIC && reply[8..] == self.cookie.to_be_bytes();
        match (is_ours, error) {
            (false, _) => Err(io::Error::new(io::ErrorKind::InvalidData, "not the reply awaited")),
            (true, 0) => Ok(()),
            (true, _) => {
                self.refusal = Some(error);
                Err(io::Error::from_raw_os_error(error.cast_signed()))
            }
        }
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a test's requests are far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_uri() {
        let unix = Address::parse("nbd+unix:///vol%2D1?socket=/run/a%20b.sock").unwrap();
        let expected = Address::Unix { export: "vol-1".into(), socket: "/run/a b.sock".into() };
        assert_eq!(unix, expected);
        let tcp = Address::parse("nbd://127.0.0.1:10809/disk").unwrap();
        let expected = Address::Tcp { export: "disk".into(), authority: "127.0.0.1:10809".into() };
        assert_eq!(tcp, expected);
        assert!(Address::parse("http://x").is_err());
    }
}
