//! A good source: it sends at a fixed rate whatever comes back (open loop), and measures from when a
//! write was due until its ack.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use farshore_client::{Peer as Whose, client_config};
use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frame::{self, HEADER_BYTES, Said};
use crate::peer::{self, ANSWER_LIMIT};
use crate::site::{Agent, Volume};
use crate::stream::Stream;

/// Latencies in microseconds.
pub type Latencies = Histogram<u64>;

/// A session that is open and streams.
#[derive(Debug)]
pub struct Source {
    runtime: Runtime,
    link: Link,
    /// What it sent.
    pub stream: Stream,
}

#[derive(Debug)]
struct Link {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
    buffer: Vec<u8>,
}

fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

impl Source {
    /// Opens a session that begins where `stream` is.
    ///
    /// # Errors
    /// If the node does not welcome it.
    pub fn connect(agent: &Agent, volume: &Volume, stream: Stream) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = client_config(&agent.identity, Whose::Node)?;
        let link = runtime.block_on(async {
            let connecting = Link::open(config, volume, &stream);
            timeout(ANSWER_LIMIT, connecting).await.context("connect")?
        })?;
        Ok(Self { runtime, link, stream })
    }

    /// Sends `per_second` writes of one block for `duration` and waits for their acks.
    ///
    /// # Errors
    /// If the node ends the session or an ack does not come.
    pub fn run(&mut self, per_second: u32, duration: Duration) -> Result<Latencies> {
        self.run_while(per_second, duration, || false)
    }

    /// As [`Self::run`], and for up to as long again while `goes_on` says so.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_while(
        &mut self,
        per_second: u32,
        duration: Duration,
        goes_on: impl Fn() -> bool,
    ) -> Result<Latencies> {
        let every = Duration::from_secs(1) / per_second;
        let end = Instant::now() + 2 * duration + ANSWER_LIMIT;
        let (link, stream) = (&mut self.link, &mut self.stream);
        self.runtime.block_on(async {
            let mut found = latencies();
            let mut waiting = VecDeque::new();
            let (begin, mut due) = (Instant::now(), Instant::now());
            let is_over = |due: Instant| {
                due >= begin + 2 * duration || (due >= begin + duration && !goes_on())
            };
            while !is_over(due) || !waiting.is_empty() {
                ensure!(Instant::now() < end, "{} writes without an ack", waiting.len());
                tokio::select! {
                    said = link.said() => match said? {
                        Said::Ack { journaled, .. } => {
                            while let Some((_, at)) = waiting.pop_front_if(|(seq, _)| *seq <= journaled) {
                                let latency = Instant::now().duration_since(at).as_micros();
                                found.saturating_record(u64::try_from(latency)?.max(1));
                            }
                        }
                        other => bail!("the node said {other:?} to a good source"),
                    },
                    () = sleep_until(due), if !is_over(due) => {
                        waiting.push_back((stream.next, due));
                        link.writer.write_all(&stream.some_write()).await.context("send a write")?;
                        link.writer.flush().await.context("send a write")?;
                        due += every;
                    }
                    () = sleep_until(end) => {}
                }
            }
            Ok(found)
        })
    }
}

impl Source {
    /// Sends frames as fast as they go, whatever the window says; ends when the last one is acked or
    /// the node refuses, and returns why.
    ///
    /// # Errors
    /// If the node breaks the format or says nothing for too long.
    pub fn push(
        mut self,
        frames: impl Iterator<Item = Vec<u8>>,
        last: u64,
    ) -> Result<Option<(u16, String)>> {
        self.runtime.block_on(async {
            let Link { reader, writer, buffer } = &mut self.link;
            let writing = async {
                for frame in frames {
                    if writer.write_all(&frame).await.is_err() {
                        break;
                    }
                }
                // That the connection is gone is what the reading side finds out, and why.
                let _ = writer.flush().await;
                std::future::pending::<()>().await;
            };
            let reading = async {
                loop {
                    match timeout(ANSWER_LIMIT, said(reader, buffer))
                        .await
                        .context("an answer")??
                    {
                        Said::Refusal { reason, text } => return Ok(Some((reason, text))),
                        Said::Ack { journaled, .. } if journaled >= last => return Ok(None),
                        _ => {}
                    }
                }
            };
            tokio::select! {
                () = writing => unreachable!("it never ends"),
                end = reading => end,
            }
        })
    }
}

/// The next frame. Cancel-safe: what was read stays in the buffer.
async fn said(reader: &mut ReadHalf<TlsStream<TcpStream>>, buffer: &mut Vec<u8>) -> Result<Said> {
    loop {
        if let Some(header) = buffer.first_chunk::<HEADER_BYTES>().copied() {
            let end = HEADER_BYTES + frame::body_bytes(&header)?;
            if buffer.len() >= end {
                let frame: Vec<u8> = buffer.drain(..end).collect();
                return frame::said(&header, &frame[HEADER_BYTES..]);
            }
        }
        let count = reader.read_buf(buffer).await.context("read from the node")?;
        ensure!(count > 0, "the node hung up");
    }
}

impl Link {
    async fn open(config: rustls::ClientConfig, volume: &Volume, stream: &Stream) -> Result<Self> {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, volume.port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(volume.server_name.clone())?;
        let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        tls.write_all(peer::request(&volume.id.to_string()).as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.context("read the answer's head")?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        tls.write_all(&stream.hello().frame().bytes()).await?;
        tls.flush().await?;
        let (reader, writer) = split(tls);
        let mut link = Self { reader, writer, buffer: Vec::new() };
        match link.said().await? {
            Said::Welcome { received, .. } if received + 1 == stream.next => Ok(link),
            other => bail!("no good welcome but {other:?}"),
        }
    }

    async fn said(&mut self) -> Result<Said> {
        said(&mut self.reader, &mut self.buffer).await
    }
}
