//! TLS over a shard's socket: rustls, driven by hand so that a connection can change its shard.
//!
//! One reading and one writing task share the connection on one thread; neither holds it across an
//! await.

use crate::descriptors::Descriptors;
use crate::rt::{Rt, Signal, Socket, Turnstile};
use rustls::ServerConnection;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;

/// What a connection is for, and so what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// To find out who it is and what it wants; it can be detached again.
    Greeting,
    /// To carry frames.
    Session,
}

impl Use {
    /// Ciphertext read from the socket at once.
    fn cipher_bytes(self) -> usize {
        match self {
            Self::Greeting => 4 << 10,
            Self::Session => 64 << 10,
        }
    }
}

/// A connection that is not tied to a shard: what moves when another shard owns the volume.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) socket: TcpStream,
    tls: ServerConnection,
    cipher: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    tls: RefCell<ServerConnection>,
    wants_write: Signal,
}

/// The reading half.
#[derive(Debug)]
pub(crate) struct TlsReader<R: Rt> {
    shared: Rc<Shared>,
    socket: R::Socket,
    /// What is detached; a session has none.
    original: Option<TcpStream>,
    cipher: Vec<u8>,
    start: usize,
    end: usize,
}

/// The writing half.
#[derive(Debug)]
pub(crate) struct TlsWriter<R: Rt> {
    shared: Rc<Shared>,
    socket: R::Socket,
    scratch: Vec<u8>,
}

/// A connection fresh from accept.
pub(crate) fn fresh(socket: TcpStream, tls: ServerConnection) -> Parked {
    Parked { socket, tls, cipher: Vec::new() }
}

/// Attaches a connection to this shard.
///
/// # Errors
/// If the socket cannot be duplicated or adopted, or peers have all descriptors that they may.
pub(crate) fn attach<R: Rt>(
    parked: Parked,
    purpose: Use,
    descriptors: Descriptors,
) -> io::Result<(TlsReader<R>, TlsWriter<R>)> {
    let Parked { socket, mut tls, mut cipher } = parked;
    tls.set_buffer_limit(None);
    let shared = Rc::new(Shared { tls: RefCell::new(tls), wants_write: Signal::default() });
    let end = cipher.len();
    cipher.resize(purpose.cipher_bytes().max(end), 0);
    let duplicate = || -> io::Result<TcpStream> {
        let duplicate = socket.try_clone()?;
        descriptors.check(&duplicate)?;
        Ok(duplicate)
    };
    let original = (purpose == Use::Greeting).then(duplicate).transpose()?;
    let reader = TlsReader {
        shared: Rc::clone(&shared),
        socket: R::adopt(duplicate()?)?,
        original,
        cipher,
        start: 0,
        end,
    };
    let writer = TlsWriter { shared, socket: R::adopt(socket)?, scratch: Vec::new() };
    Ok((reader, writer))
}

/// Detaches a connection whose halves have nothing half done: between handshake and first answer.
///
/// # Errors
/// If something else still holds the connection.
pub(crate) fn detach<R: Rt>(reader: TlsReader<R>, writer: TlsWriter<R>) -> io::Result<Parked> {
    drop(writer);
    let TlsReader { shared, socket, original, cipher, start, end } = reader;
    drop(socket);
    let shared =
        Rc::into_inner(shared).ok_or_else(|| io::Error::other("the connection is still in use"))?;
    let socket = original.ok_or_else(|| io::Error::other("the connection is a session's"))?;
    Ok(Parked { socket, tls: shared.tls.into_inner(), cipher: cipher[start..end].to_vec() })
}

/// Runs the handshake; afterwards the peer's certificate is known. What it computes, it computes when
/// it is its turn: a crowd of handshakes must not hold up the sessions of the shard.
///
/// # Errors
/// If the peer breaks TLS, shows no certificate of ours, or goes away.
pub(crate) async fn handshake<R: Rt>(
    reader: &mut TlsReader<R>,
    writer: &mut TlsWriter<R>,
    turnstile: &Turnstile,
) -> io::Result<()> {
    loop {
        writer.flush().await?;
        if !reader.shared.tls.borrow().is_handshaking() {
            return Ok(());
        }
        reader.receive().await?;
        if let Err(error) = turnstile.pass::<R, _>(|| reader.process()).await {
            // The alert tells the peer why; that it arrives is not certain.
            let _alert_sent = writer.flush().await;
            return Err(error);
        }
    }
}

impl<R: Rt> TlsReader<R> {
    /// DER of the peer's certificate.
    pub(crate) fn peer_certificate(&self) -> Option<Vec<u8>> {
        let tls = self.shared.tls.borrow();
        tls.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec())
    }

    /// Takes more ciphertext and processes it.
    async fn fill(&mut self) -> io::Result<()> {
        self.receive().await?;
        self.process()
    }

    /// Takes more ciphertext when there is none.
    async fn receive(&mut self) -> io::Result<()> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.socket.read(&mut self.cipher).await?;
            if self.end == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn process(&mut self) -> io::Result<()> {
        let mut tls = self.shared.tls.borrow_mut();
        let mut rest = &self.cipher[self.start..self.end];
        self.start += tls.read_tls(&mut rest)?;
        let processed = tls.process_new_packets();
        if tls.wants_write() {
            self.shared.wants_write.notify();
        }
        processed.map(|_| ()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Reads plaintext: at least a byte, 0 after the peer closed properly.
    ///
    /// # Errors
    /// `UnexpectedEof` if the peer vanished, `InvalidData` if it broke TLS.
    ///
    /// # Cancel safety
    /// A read that is dropped has taken nothing.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.shared.tls.borrow_mut().reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.fill().await?;
        }
    }

    /// Fills `buffer` from `*filled` on; progress is kept in `filled`, so that a dropped read goes
    /// on where it was.
    ///
    /// # Errors
    /// As [`Self::read`]; `UnexpectedEof` also when the peer closes in the middle.
    pub(crate) async fn fill_buffer(
        &mut self,
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> io::Result<()> {
        while *filled < buffer.len() {
            match self.read(&mut buffer[*filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => *filled += count,
            }
        }
        Ok(())
    }

    /// Takes what comes and drops it unopened: at most `bytes_max`, or to the end.
    pub(crate) async fn drop_incoming(&mut self, bytes_max: usize) {
        let mut dropped = 0;
        while dropped < bytes_max {
            match self.socket.read(&mut self.cipher).await {
                Ok(0) | Err(_) => return,
                Ok(count) => dropped += count,
            }
        }
    }
}

impl<R: Rt> TlsWriter<R> {
    /// Seals and sends `bytes`.
    ///
    /// # Errors
    /// If the peer is gone.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.shared.tls.borrow_mut().writer().write_all(bytes)?;
        self.flush().await
    }

    /// Sends what TLS itself has to say.
    ///
    /// # Errors
    /// If the peer is gone.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        loop {
            self.scratch.clear();
            {
                let mut tls = self.shared.tls.borrow_mut();
                while tls.wants_write() {
                    tls.write_tls(&mut self.scratch)?;
                }
            }
            if self.scratch.is_empty() {
                return Ok(());
            }
            self.socket.write_all(&self.scratch).await?;
        }
    }

    /// Waits until TLS itself has something to say. Cancel-safe.
    pub(crate) async fn wants_write(&self) {
        self.shared.wants_write.wait().await;
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// If the peer is gone already.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.shared.tls.borrow_mut().send_close_notify();
        self.flush().await
    }
}
