//! An export as what an NBD server serves.

use crate::served::{Export, ExportError, Holds};
use bytes::Bytes;
use farshore_nbd::{Backend, BackendError, Extent, Piece};
use farshore_proto::ErrorKind;
use std::fmt;
use std::sync::Arc;

/// Hears how the requests of an export ended. What it does must not take long.
pub trait Watch: fmt::Debug + Send + Sync + 'static {
    /// A read ended so.
    fn read<T>(&self, result: &Result<T, ExportError>) {
        let _ = result;
    }

    /// A write, or what is like one, ended so.
    fn wrote(&self, result: &Result<(), ExportError>) {
        let _ = result;
    }
}

/// Nobody listens.
impl Watch for () {}

/// An export as an NBD backend.
#[derive(Debug)]
pub struct Disk<W> {
    export: Arc<Export>,
    watch: Arc<W>,
}

impl<W: Watch> Disk<W> {
    /// Serves `export`, and tells `watch`.
    #[must_use]
    pub fn new(export: Arc<Export>, watch: Arc<W>) -> Self {
        Self { export, watch }
    }

    async fn settle(&self, fua: bool) -> Result<(), BackendError> {
        if fua { self.export.flush().await.map_err(refuse) } else { Ok(()) }
    }

    /// Answers a write, and notes how it went.
    async fn wrote(&self, result: Result<(), ExportError>, fua: bool) -> Result<(), BackendError> {
        self.watch.wrote(&result);
        result.map_err(refuse)?;
        self.settle(fua).await
    }
}

fn refuse(error: ExportError) -> BackendError {
    if error.is_no_space() {
        return BackendError::NoSpace;
    }
    match error.kind() {
        ErrorKind::Invalid => BackendError::Unsupported,
        _ => BackendError::Io { source: Box::new(error) },
    }
}

impl<W: Watch> Backend for Disk<W> {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, BackendError> {
        let read = self.export.read(offset, length.into()).await;
        self.watch.read(&read);
        Ok(read.map_err(refuse)?.into_iter().map(piece_of).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BackendError> {
        self.wrote(self.export.write(offset, data).await, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        _may_trim: bool,
        fua: bool,
    ) -> Result<(), BackendError> {
        self.wrote(self.export.write_zeroes(offset, length.into()).await, fua).await
    }

    async fn trim(&self, offset: u64, length: u32, fua: bool) -> Result<(), BackendError> {
        self.wrote(self.export.trim(offset, length.into()).await, fua).await
    }

    async fn flush(&self) -> Result<(), BackendError> {
        self.export.flush().await.map_err(refuse)
    }

    async fn extents(
        &self,
        offset: u64,
        length: u32,
        count_max: usize,
    ) -> Result<Vec<Extent>, BackendError> {
        let extents =
            self.export.extents(offset, length.into(), count_max).await.map_err(refuse)?;
        Ok(extents
            .into_iter()
            .map(|(length, holds)| {
                let holds = match holds {
                    Holds::Data => farshore_nbd::Holds::Data,
                    Holds::Hole => farshore_nbd::Holds::Hole,
                };
                Extent { length, holds }
            })
            .collect())
    }
}

fn piece_of(piece: farshore_vault::Piece) -> Piece {
    match piece {
        farshore_vault::Piece::Data(data) => Piece::Data(data),
        farshore_vault::Piece::Zeroes(bytes) => {
            Piece::Zeroes(u32::try_from(bytes).expect("part of a request of 32 bits"))
        }
    }
}
