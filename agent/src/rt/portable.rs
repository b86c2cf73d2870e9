//! Reads with `pread`, on the runtime's blocking threads or the caller's.
//!
//! A file is the same through its page cache and past it. A block device is not: a file system that is
//! mounted on it writes past the cache of the device, which holds the old bytes until memory is short. So
//! a device is read with `O_DIRECT`, and where it takes none (its blocks are larger than ours) its cache is
//! dropped before each read. What the file system itself has in that cache cannot be dropped, and need not
//! be: it is what will be written. Only bytes that share a group of pages with it may be old then.

use super::Buffer;
use super::buffer::{ALIGN, Pool};
use super::{READ_BYTES_MAX, open_direct, reopen};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

/// Pages are kept in groups of at most so many bytes, aligned to their size; a group of which a part is to
/// be dropped stays.
const GROUP_BYTES: u64 = 2 << 20;

/// A disk that is read with `pread`.
#[derive(Debug)]
pub struct PortableFile {
    file: File,
    /// Whether its page cache may be older than what it holds.
    is_cache_stale: bool,
}

impl PortableFile {
    /// Opens for reading what `file` has open; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(file: &File) -> io::Result<Self> {
        match open_direct(file) {
            Some(direct) => Ok(Self::direct(direct)),
            None => Self::buffered(file),
        }
    }

    /// Over a file that was opened with `O_DIRECT`.
    pub(super) fn direct(file: File) -> Self {
        Self { file, is_cache_stale: false }
    }

    /// Opens for reads through the page cache.
    pub(super) fn buffered(file: &File) -> io::Result<Self> {
        let file = reopen(file, 0)?;
        let is_cache_stale = file.metadata()?.file_type().is_block_device();
        if is_cache_stale {
            // What one read brings in ahead would be old when the next one comes.
            fadvise(&file, 0, None, Advice::Random)?;
        }
        Ok(Self { file, is_cache_stale })
    }

    /// Fills `data` from `offset` on, wherever that lies; blocks.
    ///
    /// # Errors
    /// `UnexpectedEof` if the disk ends before, otherwise what the system said.
    pub fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let start = at - at % ALIGN as u64;
            let skipped = usize::try_from(at - start).map_err(io::Error::other)?;
            let length = (data.len() - done).min(READ_BYTES_MAX - skipped);
            let end = skipped + length;
            let mut buffer = Pool::default().take(end.next_multiple_of(ALIGN));
            self.read_inside(&mut buffer, start, end)?;
            data[done..done + length].copy_from_slice(&buffer[skipped..end]);
            done += length;
        }
        Ok(())
    }

    /// As the ring does: reads until `inside` bytes of the buffer are there.
    fn read_inside(&self, buffer: &mut Buffer, offset: u64, inside: usize) -> io::Result<()> {
        if self.is_cache_stale {
            forget_cached(&self.file, offset, buffer.len() as u64)?;
        }
        let mut got = 0;
        while got < inside {
            // A read that was cut short ends anywhere, the next one begins on the grid all the same.
            let from = got - got % ALIGN;
            match self.file.read_at(&mut buffer[from..], offset + from as u64) {
                Ok(count) if from + count <= got => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) => got = from + count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Drops what the system keeps of a range in memory, and of what is kept together with it, so that the next
/// read asks the disk; what is not on the disk yet stays. Blocks.
///
/// # Errors
/// What the system said.
pub fn forget_cached(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let from = offset - offset % GROUP_BYTES;
    let to = offset.saturating_add(length).next_multiple_of(GROUP_BYTES);
    Ok(fadvise(file, from, NonZero::new(to - from), Advice::DontNeed)?)
}

pub(super) async fn read(
    file: Arc<PortableFile>,
    offset: u64,
    mut buffer: Buffer,
    inside: usize,
) -> io::Result<Buffer> {
    let task = tokio::task::spawn_blocking(move || {
        file.read_inside(&mut buffer, offset, inside)?;
        Ok(buffer)
    });
    task.await.map_err(io::Error::other)?
}
