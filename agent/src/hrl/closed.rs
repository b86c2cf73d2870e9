//! A log that cannot be opened: it holds nothing and takes nothing until it is restarted, and leaves what
//! is there alone.

use super::recovery::Recovered;
use super::still::Still;
use super::writer::{Home, Log, Part};
use crate::files::FileIo;
use farshore_proto::hrl::HrlHeader;
use farshore_proto::limits::HRL_HEADER_BYTES;
use farshore_proto::{Imprint, Seq, VolumeId};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Stands for the file that a log always has.
#[derive(Debug)]
struct NoFile([u8; HRL_HEADER_BYTES]);

fn refused() -> io::Error {
    io::Error::other("the log is not open")
}

impl FileIo for NoFile {
    fn len(&self) -> io::Result<u64> {
        Ok(HRL_HEADER_BYTES as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = from.checked_add(buffer.len()).and_then(|to| self.0.get(from..to));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(refused())
    }

    fn write_vectored_at(&self, _slices: &mut [IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Err(refused())
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        Err(refused())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// A log that cannot be opened, for the reason `why`. It is empty, as far as anybody is told.
    #[must_use]
    pub fn closed(home: Home, volume: VolumeId, why: String) -> (Self, Recovered) {
        let first = Seq(1);
        let file = Arc::new(NoFile(HrlHeader { volume, first_seq: first }.encode()));
        let path = home.dir.join("closed");
        let part = Part { first, file, end: HRL_HEADER_BYTES as u64, path };
        let recovered = Recovered {
            first,
            last: Seq(0),
            imprint: Imprint::default(),
            marks: Vec::new(),
            torn_bytes: 0,
            was_absent: true,
            damage: Some(why.clone()),
        };
        let end = (Seq(0), Imprint::default(), Still::default());
        let log = Self::over(home, volume, [part].into(), end);
        {
            let mut writer = log.lock();
            writer.is_closed = true;
            writer.held = Some(why);
            writer.unsynced.clear();
        }
        (log, recovered)
    }

    /// Whether it could not be opened and was not restarted since.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Takes nothing until [`Log::release`].
    pub fn hold(&self, why: String) {
        self.lock().held = Some(why);
    }

    /// Takes appends again, unless it is closed.
    pub fn release(&self) {
        let mut writer = self.lock();
        if !writer.is_closed {
            writer.held = None;
        }
    }

    /// Why it takes nothing; none if it does.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        self.lock().held.clone()
    }
}
