//! The receiving half of a connection, buffered, and the signal that ends it from outside.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use crate::limits::RECEIVE_BUFFER_BYTES;

/// Something that happens once, and that any number of tasks can wait for.
///
/// A semaphore that never has permits: closing it is what wakes the waiters.
#[derive(Debug)]
pub(crate) struct Signal(Semaphore);

impl Signal {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(0))
    }

    pub(crate) fn raise(&self) {
        self.0.close();
    }

    /// Returns once the signal is raised.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn raised(&self) {
        let closed = self.0.acquire().await;
        debug_assert!(closed.is_err());
    }
}

/// What a client sends, in the units it sends it in.
#[derive(Debug)]
pub(crate) struct Incoming<R> {
    source: R,
    buffer: BytesMut,
    /// Raised when the connection is beyond use: nothing more is read.
    cut: Arc<Signal>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(crate) fn new(source: R, cut: Arc<Signal>) -> Self {
        Self { source, buffer: BytesMut::new(), cut }
    }

    /// Takes the next `N` bytes; none if the client closed the connection before the first of them.
    ///
    /// # Cancel safety
    /// Safe: what was received stays for the next call. `N` is less than the receive buffer.
    pub(crate) async fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        while self.buffer.len() < N {
            if self.receive().await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut bytes = [0; N];
        self.buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }

    /// Takes the next `length` bytes. The caller has bounded it.
    pub(crate) async fn bytes(&mut self, length: usize) -> io::Result<Bytes> {
        // A buffer of its own, of just this size: whoever keeps the bytes keeps nothing else, and what does not
        // fit in the receive buffer is not copied.
        let mut bytes = BytesMut::with_capacity(length);
        let here = self.buffer.len().min(length);
        bytes.put_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        while bytes.len() < length {
            let wanted = length - bytes.len();
            let received = tokio::select! {
                biased;
                received = async { self.source.read_buf(&mut (&mut bytes).limit(wanted)).await } => received?,
                () = self.cut.raised() => return Err(io::ErrorKind::ConnectionAborted.into()),
            };
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(bytes.freeze())
    }

    /// Drops the next `length` bytes.
    pub(crate) async fn skip(&mut self, mut length: usize) -> io::Result<()> {
        loop {
            let here = self.buffer.len().min(length);
            self.buffer.advance(here);
            length -= here;
            if length == 0 {
                return Ok(());
            }
            if self.receive().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        // What was taken leaves room at the front; this moves the rest there instead of growing.
        self.buffer.reserve(RECEIVE_BUFFER_BYTES - self.buffer.len());
        tokio::select! {
            biased;
            received = self.source.read_buf(&mut self.buffer) => received,
            () = self.cut.raised() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn takes_units_whatever_the_pieces_they_arrive_in() {
        let (mut client, server) = tokio::io::duplex(7);
        let mut incoming = Incoming::new(server, Arc::new(Signal::new()));
        let sent: Vec<u8> = (0..=255).collect();
        let sending = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
        });
        assert_eq!(incoming.array::<4>().await.unwrap(), Some([0, 1, 2, 3]));
        assert_eq!(&incoming.bytes(100).await.unwrap()[..3], &[4, 5, 6]);
        incoming.skip(96).await.unwrap();
        assert_eq!(incoming.array::<2>().await.unwrap(), Some([200, 201]));
        incoming.skip(0).await.unwrap();
        assert_eq!(incoming.bytes(53).await.unwrap().last(), Some(&254));
        let cut = incoming.array::<2>().await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn cancelling_loses_nothing() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut incoming = Incoming::new(server, Arc::new(Signal::new()));
        client.write_all(&[1, 2]).await.unwrap();
        tokio::select! {
            biased;
            _ = incoming.array::<4>() => panic!("two bytes are missing"),
            () = tokio::task::yield_now() => {}
        }
        client.write_all(&[3, 4]).await.unwrap();
        assert_eq!(incoming.array::<4>().await.unwrap(), Some([1, 2, 3, 4]));
        drop(client);
        assert_eq!(incoming.array::<4>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_cut_ends_the_wait() {
        let (_client, server) = tokio::io::duplex(64);
        let cut = Arc::new(Signal::new());
        let mut incoming = Incoming::new(server, Arc::clone(&cut));
        let reading = tokio::spawn(async move { incoming.bytes(1 << 20).await });
        cut.raise();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
