//! Large reads of disks, past the page cache where that works.
//!
//! The only place that names tokio-uring. One thread owns a ring and reads with `O_DIRECT` for all
//! volumes; where the kernel gives no ring, or a disk takes no `O_DIRECT`, a second backend reads
//! with `pread` on the runtime's blocking threads.

mod buffer;
mod portable;
mod uring;

pub use buffer::Buffer;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

/// Most bytes of one read.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Reads in progress, of all volumes together.
pub const READS_MAX: usize = 32;

/// How disks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A ring, with `O_DIRECT`.
    Uring,
    /// Plain reads on blocking threads.
    Portable,
}

/// Reads disks for every volume of the agent.
#[derive(Debug, Clone)]
pub struct Reads {
    uring: Option<uring::Handle>,
}

/// A disk opened for large reads.
#[derive(Debug)]
pub struct ReadFile {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Uring(uring::RingFile),
    Portable(Arc<File>),
}

impl Reads {
    /// Starts the best backend there is.
    #[must_use]
    pub fn start() -> Self {
        match uring::Handle::start() {
            Ok(handle) => Self { uring: Some(handle) },
            Err(error) => {
                tracing::info!(%error, "no io_uring here: disks are read with pread");
                Self::portable()
            }
        }
    }

    /// The portable backend.
    #[must_use]
    pub fn portable() -> Self {
        Self { uring: None }
    }

    /// Opens for reading what `file` has open, whatever its path leads to by now; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(&self, file: &File) -> io::Result<ReadFile> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Some(uring) = &self.uring {
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
            if let Ok(direct) = direct
                && takes_direct_reads(&direct)
            {
                return Ok(ReadFile { kind: Kind::Uring(uring.open(direct)?) });
            }
        }
        let plain = OpenOptions::new().read(true).open(&path)?;
        Ok(ReadFile { kind: Kind::Portable(Arc::new(plain)) })
    }
}

impl ReadFile {
    /// How this disk is read.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.kind {
            Kind::Uring(_) => Backend::Uring,
            Kind::Portable(_) => Backend::Portable,
        }
    }

    /// Reads exactly `length` bytes at `offset`; both are multiples of 4096, `length` at most
    /// [`READ_BYTES_MAX`].
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, otherwise what the system said.
    ///
    /// # Panics
    /// If offset or length are off the grid or over the limit.
    pub async fn read(&self, offset: u64, length: usize) -> io::Result<Buffer> {
        assert!(
            offset.is_multiple_of(buffer::ALIGN as u64) && length.is_multiple_of(buffer::ALIGN)
        );
        assert!(length > 0 && length <= READ_BYTES_MAX);
        match &self.kind {
            Kind::Uring(file) => file.read(offset, length).await,
            Kind::Portable(file) => portable::read(Arc::clone(file), offset, length).await,
        }
    }
}

/// Some file systems take the flag and then refuse the reads.
fn takes_direct_reads(file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut probe = Buffer::zeroed(buffer::ALIGN);
    file.read_at(&mut probe, 0).is_ok()
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
        let disk = reads.open(file.as_file()).unwrap();
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

    #[tokio::test]
    async fn both_backends_read_the_same() {
        assert_eq!(reads_back(Reads::portable()).await, Backend::Portable);
        // Where io_uring or O_DIRECT is missing this is the portable one again.
        let _ = reads_back(Reads::start()).await;
    }
}
