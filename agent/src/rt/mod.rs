//! Large reads of disks, past the page cache where that works.
//!
//! The only place that names tokio-uring. One thread owns a ring and reads with `O_DIRECT` for all
//! volumes; where the kernel gives no ring, the thread has ended or a disk takes no `O_DIRECT`, a second
//! backend reads with `pread` on the runtime's blocking threads. Neither brings of a block device what only
//! its page cache holds.

mod buffer;
#[cfg(test)]
mod mounted;
mod portable;
mod uring;

pub use buffer::Buffer;
use buffer::Pool;
pub use portable::{PortableFile, forget_cached};

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes of one read.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Reads in progress, of all volumes together.
pub const READS_MAX: usize = 32;
/// Bytes of disks that are in memory to be looked at or to be logged, of all scanned volumes together.
pub const BUDGET_BYTES: usize = 128 << 20;
/// What the budget is counted in.
const BUDGET_UNIT: usize = 64 << 10;

/// Size of a disk in bytes, shared with whoever may see it grow.
pub type Size = Arc<AtomicU64>;

/// How disks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A ring, with `O_DIRECT`.
    Uring,
    /// `pread` on blocking threads, with `O_DIRECT` where that works.
    Portable,
}

/// Reads disks for every volume of the agent.
#[derive(Debug, Clone)]
pub struct Reads {
    uring: Option<uring::Handle>,
    pool: Pool,
    budget: Arc<Semaphore>,
}

/// A disk opened for large reads.
#[derive(Debug)]
pub struct ReadFile {
    ring: Option<uring::RingFile>,
    /// Reads where the ring does not.
    portable: Arc<PortableFile>,
    size: Size,
    pool: Pool,
    budget: Arc<Semaphore>,
}

/// A share of the budget, until it is dropped.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl Share {
    /// Keeps so many bytes of it and gives back the rest.
    pub fn shrink(&mut self, bytes: usize) {
        let kept = bytes.div_ceil(BUDGET_UNIT);
        drop(self.0.split(self.0.num_permits().saturating_sub(kept)));
    }
}

impl Reads {
    /// Starts the best backend there is.
    #[must_use]
    pub fn start() -> Self {
        match uring::Handle::start() {
            Ok(handle) => Self::new(Some(handle)),
            Err(error) => {
                tracing::info!(%error, "no io_uring here: disks are read with pread");
                Self::portable()
            }
        }
    }

    /// The portable backend.
    #[must_use]
    pub fn portable() -> Self {
        Self::new(None)
    }

    fn new(uring: Option<uring::Handle>) -> Self {
        let budget = Arc::new(Semaphore::new(BUDGET_BYTES / BUDGET_UNIT));
        Self { uring, pool: Pool::default(), budget }
    }

    /// Opens for reading what `file` has open, whatever its path leads to by now, a disk of that size;
    /// blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(&self, file: &File, size: Size) -> io::Result<ReadFile> {
        let Some(direct) = open_direct(file) else {
            return Ok(self.file(None, PortableFile::buffered(file)?, size));
        };
        let ring = self.uring.as_ref().map(|uring| uring.open(direct.try_clone()?)).transpose();
        let ring = ring.unwrap_or_else(|error| {
            tracing::warn!(%error, "a disk is read without io_uring");
            None
        });
        Ok(self.file(ring, PortableFile::direct(direct), size))
    }

    fn file(&self, ring: Option<uring::RingFile>, portable: PortableFile, size: Size) -> ReadFile {
        let (pool, budget) = (self.pool.clone(), Arc::clone(&self.budget));
        ReadFile { ring, portable: Arc::new(portable), size, pool, budget }
    }
}

impl ReadFile {
    /// How this disk is read.
    #[must_use]
    pub fn backend(&self) -> Backend {
        if self.ring.is_some() { Backend::Uring } else { Backend::Portable }
    }

    /// A share of the agent's budget for so many bytes, at most a quarter of it; waits in order of
    /// arrival.
    ///
    /// # Errors
    /// Never while the agent runs.
    pub async fn share(&self, bytes: usize) -> io::Result<Share> {
        let units = bytes.div_ceil(BUDGET_UNIT).min(BUDGET_BYTES / BUDGET_UNIT / 4);
        let units = u32::try_from(units).map_err(io::Error::other)?;
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await;
        permit.map(Share).map_err(io::Error::other)
    }

    /// Reads exactly `length` bytes at `offset`; both are multiples of 4096, `length` at most
    /// [`READ_BYTES_MAX`]. What the last block has behind the end of the disk is zero.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before the disk did, or for a block behind the last, otherwise
    /// what the system said.
    ///
    /// # Panics
    /// If offset or length are off the grid or over the limit.
    pub async fn read(&self, offset: u64, length: usize) -> io::Result<Buffer> {
        assert!(
            offset.is_multiple_of(buffer::ALIGN as u64) && length.is_multiple_of(buffer::ALIGN)
        );
        assert!(length > 0 && length <= READ_BYTES_MAX);
        let size_bytes = self.size.load(Ordering::SeqCst);
        if offset.saturating_add(length as u64) > size_bytes.next_multiple_of(buffer::ALIGN as u64)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let inside = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX).min(length);
        let by_ring = match &self.ring {
            Some(ring) => ring.read(offset, self.pool.take(length), inside).await,
            None => None,
        };
        let mut buffer = match by_ring {
            Some(read) => read?,
            None => {
                let buffer = self.pool.take(length);
                portable::read(Arc::clone(&self.portable), offset, buffer, inside).await?
            }
        };
        buffer[inside..].fill(0);
        Ok(buffer)
    }
}

/// Cuts a buffer that is read from `offset` on at the end of a disk.
pub fn split_at_end(buffer: &mut [u8], offset: u64, size_bytes: u64) -> (&mut [u8], &mut [u8]) {
    let inside = usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
    let inside = inside.min(buffer.len());
    buffer.split_at_mut(inside)
}

/// Opens for reading what `file` has open, whatever its path leads to by now.
fn reopen(file: &File, flags: i32) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// As [`reopen`], for reads past the page cache; none where that does not work.
fn open_direct(file: &File) -> Option<File> {
    let direct = reopen(file, libc::O_DIRECT).ok()?;
    takes_direct_reads(&direct).then_some(direct)
}

/// Some file systems take the flag and then refuse the reads, and a disk may have larger blocks than ours.
/// Any other error is one of the disk: a bad first block says nothing about the flag.
fn takes_direct_reads(file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut probe = Pool::default().take(buffer::ALIGN);
    let read = file.read_at(&mut probe, 0);
    !read.is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    async fn reads_back(reads: Reads) -> Backend {
        let mut file = tempfile::NamedTempFile::new_in(".").unwrap();
        let bytes: Vec<u8> =
            (0..3 * READ_BYTES_MAX).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect();
        file.write_all(&bytes).unwrap();
        let size = 3 * READ_BYTES_MAX as u64;
        let disk = reads.open(file.as_file(), Arc::new(size.into())).unwrap();
        // The path may lead elsewhere: the open file counts.
        std::fs::remove_file(file.path()).unwrap();
        let disk = &disk;
        let all = (0..48_u64).map(|run| async move {
            let offset = run * 65_536;
            (offset, disk.read(offset, 65_536).await.unwrap())
        });
        for (offset, buffer) in futures::future::join_all(all).await {
            let offset = usize::try_from(offset).unwrap();
            assert_eq!(buffer[..], bytes[offset..offset + 65_536]);
        }
        let past = disk.read(3 * READ_BYTES_MAX as u64 - 4096, 8192).await.unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        disk.backend()
    }

    async fn ends_anywhere(reads: Reads) {
        for size in [1, 511, 512, 4095, 4097, 8192 + 1536, READ_BYTES_MAX as u64 + 513] {
            let mut file = tempfile::NamedTempFile::new_in(".").unwrap();
            let bytes = vec![7; usize::try_from(size).unwrap()];
            file.write_all(&bytes).unwrap();
            let disk = reads.open(file.as_file(), Arc::new(AtomicU64::new(size))).unwrap();
            let whole = size.next_multiple_of(4096);
            let mut at = 0;
            while at < whole {
                let length = (whole - at).min(READ_BYTES_MAX as u64);
                let buffer = disk.read(at, usize::try_from(length).unwrap()).await.unwrap();
                let inside = usize::try_from((size - at).min(length)).unwrap();
                assert!(buffer[..inside].iter().all(|byte| *byte == 7), "{size}");
                assert!(buffer[inside..].iter().all(|byte| *byte == 0), "{size}");
                at += length;
            }
            let past = disk.read(whole, 4096).await.unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
            // A file that was cut short is no disk that ends here.
            file.as_file().set_len(size - 1).unwrap();
            let cut = disk.read(whole - 4096, 4096).await.unwrap_err();
            assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof, "{size}");
        }
    }

    #[tokio::test]
    async fn a_disk_ends_within_a_block() {
        ends_anywhere(Reads::portable()).await;
        ends_anywhere(Reads::start()).await;
    }

    #[test]
    fn a_bad_first_block_says_nothing_about_direct_reads() {
        // Nothing can be read there, and the system says that it failed.
        let bad = File::open("/proc/self/mem").unwrap();
        let mut byte = [0];
        let error = std::os::unix::fs::FileExt::read_at(&bad, &mut byte, 0).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(takes_direct_reads(&bad));
    }

    #[tokio::test]
    async fn both_backends_read_the_same() {
        assert_eq!(reads_back(Reads::portable()).await, Backend::Portable);
        // Where io_uring or O_DIRECT is missing this is the portable one again.
        let _ = reads_back(Reads::start()).await;
    }
}
