//! The disk of a volume: a file or a block device.

use farshore_proto::ErrorKind;
use farshore_proto::limits::{BLOCK_BYTES, VOLUME_BYTES_MAX};
use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of zeros written at once where holes cannot be punched.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why a disk cannot be replicated. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Nothing is there.
    #[error(
        "disk {} is missing: attach it again, or unprotect the machine", path.display()
    )]
    Missing {
        /// Its path.
        path: PathBuf,
    },
    /// Another file has taken its place.
    #[error("disk {} was replaced by another file: it is read anew", path.display())]
    Replaced {
        /// Its path.
        path: PathBuf,
    },
    /// It cannot be opened or read.
    #[error("disk {} cannot be {action}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a socket or the like.
    #[error("{} is neither a file nor a block device: protect a disk", path.display())]
    Kind {
        /// Its path.
        path: PathBuf,
    },
    /// Its size cannot be replicated.
    #[error(
        "disk {} has {size_bytes} bytes: the disk size must be a multiple of 4096, not 0 and at \
         most 64 TiB", path.display()
    )]
    Size {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// It is smaller or larger than before.
    #[error(
        "disk {} has {size_bytes} bytes, but {recorded_bytes} bytes are recorded for it: give it \
         its size back, or unprotect the machine and protect it again", path.display()
    )]
    Resized {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// Its size when it was protected.
        recorded_bytes: u64,
    },
}

impl DiskError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Io { .. } | Self::Replaced { .. } => ErrorKind::Unavailable,
            Self::Kind { .. } | Self::Size { .. } | Self::Resized { .. } => ErrorKind::Invalid,
        }
    }
}

/// Which file a disk is, so that another one under its path is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device of the file system; 0 for a block device, whose numbers change between boots.
    pub device: u64,
    /// Inode; 0 for a block device.
    pub inode: u64,
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read, by scans.
    Read,
    /// Read and written, by the splitter.
    Write,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    identity: Identity,
    is_device: bool,
}

impl Disk {
    /// Opens a disk; `recorded_bytes` is the size that it had before, if it is known. Blocks.
    ///
    /// # Errors
    /// [`DiskError`], whose text tells the operator what to do.
    pub fn open(
        path: &Path,
        access: Access,
        recorded_bytes: Option<u64>,
    ) -> Result<Self, DiskError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => DiskError::Missing { path },
                _ => DiskError::Io { action, path, source },
            }
        };
        // What is there comes first: opening a named pipe would wait for ever.
        let metadata = std::fs::metadata(path).map_err(failed("opened"))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        let file = options.open(path).map_err(failed("opened"))?;
        let size_bytes = size_of(&file, is_device).map_err(failed("measured"))?;
        if let Some(recorded_bytes) = recorded_bytes
            && recorded_bytes != size_bytes
        {
            return Err(DiskError::Resized { path: path.to_owned(), size_bytes, recorded_bytes });
        }
        let on_grid = size_bytes.is_multiple_of(BLOCK_BYTES as u64);
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX || !on_grid {
            return Err(DiskError::Size { path: path.to_owned(), size_bytes });
        }
        let identity = identity_of(&file.metadata().map_err(failed("opened"))?, is_device);
        Ok(Self { file, path: path.to_owned(), size_bytes, identity, is_device })
    }

    /// Whether the disk is still there, under its path and with its size. Blocks.
    ///
    /// # Errors
    /// `Missing` if the path leads nowhere, `Replaced` if elsewhere, `Resized` if the size changed.
    pub fn check(&self) -> Result<(), DiskError> {
        let missing = || DiskError::Missing { path: self.path.clone() };
        let there = std::fs::metadata(&self.path).map_err(|_| missing())?;
        if identity_of(&there, self.is_device) != self.identity {
            return Err(DiskError::Replaced { path: self.path.clone() });
        }
        let size = size_of(&self.file, self.is_device);
        let size_bytes = size.map_err(|source| DiskError::Io {
            action: "measured",
            path: self.path.clone(),
            source,
        })?;
        if size_bytes != self.size_bytes {
            let (path, recorded_bytes) = (self.path.clone(), self.size_bytes);
            return Err(DiskError::Resized { path, size_bytes, recorded_bytes });
        }
        Ok(())
    }

    /// Its size, a multiple of 4096.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// When the file was changed last, in nanoseconds; 0 for a block device, which does not tell.
    ///
    /// # Errors
    /// What the system said.
    pub fn changed_ns(&self) -> io::Result<i64> {
        if self.is_device {
            return Ok(0);
        }
        let metadata = self.file.metadata()?;
        Ok(metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec()))
    }

    /// Fills `buffer` from `offset` on; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Reads without waiting for a device: whether everything was in memory.
    #[must_use]
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> bool {
        let length = buffer.len();
        let mut slices = [io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(&self.file, &mut slices, offset, flags).is_ok_and(|got| got == length)
    }

    /// Writes `data` at `offset`; blocks.
    ///
    /// # Errors
    /// What the system said; part of it may be written.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Makes a range read as zeros; with `may_trim` its space may be given up. Blocks.
    ///
    /// # Errors
    /// What the system said; part of it may be zeroed.
    pub fn zero(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways: &[FallocateFlags] = if may_trim { &[punch, zero] } else { &[zero] };
        for flags in ways {
            match fallocate(&self.file, *flags, offset, length) {
                Ok(()) => return Ok(()),
                Err(error) => match io::Error::from(error).kind() {
                    // Not here, or not on this grid: the next way.
                    io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput => {}
                    _ => return Err(error.into()),
                },
            }
        }
        let mut at = offset;
        while at < offset + length {
            let left = usize::try_from(offset + length - at).unwrap_or(usize::MAX);
            let piece = &ZEROES[..left.min(ZEROES.len())];
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes everything written durable; blocks.
    ///
    /// # Errors
    /// What the system said; what was written before may be lost even if a later sync succeeds.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// As [`Disk::sync`], and the file's times as well.
    ///
    /// # Errors
    /// As [`Disk::sync`].
    pub fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn size_of(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        let mut file = file;
        return file.seek(SeekFrom::End(0));
    }
    Ok(file.metadata()?.len())
}

fn identity_of(metadata: &Metadata, is_device: bool) -> Identity {
    if is_device {
        return Identity { device: 0, inode: 0 };
    }
    Identity { device: metadata.dev(), inode: metadata.ino() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn refuses_what_is_no_disk_and_says_what_to_do() {
        let (dir, path) = disk(4096 * 3 + 512);
        let open = |path: &Path, recorded| Disk::open(path, Access::Write, recorded).unwrap_err();
        let text = open(&path, None).to_string();
        assert!(text.contains("disk size must be a multiple of 4096"), "{text}");
        let text = open(&dir.path().join("none"), None).to_string();
        assert!(text.contains("is missing: attach it again"), "{text}");
        assert!(matches!(open(dir.path(), None), DiskError::Kind { .. }));
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let text = open(&path, Some(12_288)).to_string();
        assert!(text.contains("8192 bytes, but 12288 bytes are recorded"), "{text}");
    }

    #[test]
    fn notices_that_it_shrank_or_is_gone() {
        let (_dir, path) = disk(1 << 20);
        let disk = Disk::open(&path, Access::Write, None).unwrap();
        disk.check().unwrap();
        disk.file.set_len(8192).unwrap();
        assert!(matches!(disk.check(), Err(DiskError::Resized { size_bytes: 8192, .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(disk.check(), Err(DiskError::Missing { .. })));
    }

    #[test]
    fn zeroes_any_range() {
        let (_dir, path) = disk(1 << 20);
        let disk = Disk::open(&path, Access::Write, None).unwrap();
        for may_trim in [true, false] {
            disk.write(&[7; 300_000], 1000).unwrap();
            disk.zero(5000, 200_000, may_trim).unwrap();
            let mut bytes = vec![0; 300_000];
            disk.read(&mut bytes, 1000).unwrap();
            assert!(bytes[..4000].iter().all(|byte| *byte == 7));
            assert!(bytes[4000..204_000].iter().all(|byte| *byte == 0));
            assert!(bytes[204_000..].iter().all(|byte| *byte == 7));
        }
    }
}
