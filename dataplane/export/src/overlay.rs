//! The copy-on-write file of an export: what was written since, over a recovery point.
//!
//! Two files: `FILE` holds the written blocks at their place (sparse), `FILE.map` says which they
//! are. Layout of the map, little-endian:
//!
//! ```text
//! 0    4  magic "FSOV"          40  16  boot id of the machine when last opened
//! 4    2  version 3             56   4  zero
//! 6    2  1: in doubt, else 0   60   4  CRC32C of bytes 0..60
//! 8   16  volume              4096      flushed: sectors of bits, padded to 4 KiB
//! 24   8  seq of the point     ...      live: the same again
//! 32   8  size in bytes
//! ```
//!
//! A sector has 504 bytes of bits, one per 4 KiB block, its number, and a CRC32C of both and of which bitmap
//! it is in. All are written when the map is made, so one of zeros is damaged.
//!
//! - A bit of `live` is written right after its block, without a sync: what the process had
//!   answered when it was killed is in the page cache, and the machine's boot id says so.
//! - A bit of `flushed` is written only after the block was synced: after a power cut (another
//!   boot id) no bit points at a block that never arrived. Blocks written after the last flush are
//!   then those of the recovery point again, as on a disk with a volatile cache.
//! - A sync that failed makes the overlay refuse everything from then on, and is noted: who opens it again
//!   while the machine runs on is refused until somebody accepts that what was written since the flush
//!   before is lost. Then, as after a power cut, only flushed bits count.

mod bits;
mod map;

use crate::limits::ZERO_WRITE_BYTES;
use bits::Bits;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, ErrorKind, Seq, VolumeId};
use map::MapFile;
use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// A file cannot be read or written.
    #[error("overlay {}: cannot {verb}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Another process uses it.
    #[error("overlay {}: another process is using it: stop that export, or name another file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// There is a file that is not an overlay.
    #[error("overlay {}: the file exists and is not an overlay: name another file", path.display())]
    NotOverlay {
        /// The file.
        path: PathBuf,
    },
    /// The map without its data file, or damaged.
    #[error("overlay {}: {what}: what was written over the point is lost; delete it and its .map to begin anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The map was made by another version of Farshore.
    #[error("overlay {}: another version of Farshore made it: serve it with that version, or name another file", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// An overlay of something else.
    #[error(
        "overlay {}: it belongs to volume {volume} at seq {seq} with {size_bytes} bytes: name another file, or that point",
        path.display()
    )]
    OtherPoint {
        /// The file.
        path: PathBuf,
        /// The volume it belongs to.
        volume: VolumeId,
        /// The seq of the point it belongs to.
        seq: Seq,
        /// The size of that volume.
        size_bytes: u64,
    },
    /// A sync failed before.
    #[error("overlay {}: an earlier sync failed, its content is in doubt: check the disk it is on", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
    },
    /// A sync failed when it was open last.
    #[error(
        "overlay {}: a sync failed when it was served last, so what was written since the flush before may be lost: check the disk it is on, end what runs on it, and to go on with what was flushed make the file {}",
        path.display(), consent.display()
    )]
    InDoubt {
        /// The file.
        path: PathBuf,
        /// Makes it open.
        consent: PathBuf,
    },
}

impl OverlayError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Failed { .. } => ErrorKind::Unavailable,
            Self::InUse { .. } | Self::InDoubt { .. } => ErrorKind::Conflict,
            Self::NotOverlay { .. } | Self::OtherPoint { .. } | Self::Version { .. } => {
                ErrorKind::Invalid
            }
            Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }

    /// Whether the file system is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// What an overlay lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayBase {
    /// The volume.
    pub volume: VolumeId,
    /// Seq of the recovery point.
    pub seq: Seq,
    /// Size of the volume, whole blocks.
    pub size_bytes: u64,
}

impl OverlayBase {
    /// Size of the file, which holds whole blocks.
    fn file_bytes(&self) -> u64 {
        self.size_bytes.next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// An open overlay. Its calls block; they may run at the same time on different blocks.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    data: File,
    map: MapFile,
    bits: Bits,
    /// Held while bits are copied to the file, so that an older copy never lands on a newer one.
    live: Mutex<()>,
    /// One flush at a time: the next begins with what the one before left.
    flushing: Mutex<()>,
    has_failed: AtomicBool,
}

impl Overlay {
    /// Opens the overlay at `path`, or makes one.
    ///
    /// # Errors
    /// `Conflict` if another process has it open, `Invalid` if the file is something else or
    /// belongs to another point, `Corrupt` if a part of it is missing, `Unavailable` for I/O.
    pub fn open(path: &Path, base: OverlayBase) -> Result<Self, OverlayError> {
        let error = |verb| move |source| OverlayError::Io { path: path.to_owned(), verb, source };
        let map_path = map::path_of(path);
        let has_map = map_path.try_exists().map_err(error("look for its map"))?;
        let has_data = path.try_exists().map_err(error("look for it"))?;
        if has_map && !has_data {
            return Err(OverlayError::Damaged {
                path: path.to_owned(),
                what: "its data file is gone",
            });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(!has_map).truncate(false).mode(0o600);
        let data = options.open(path).map_err(error("open"))?;
        let metadata = data.metadata().map_err(error("open"))?;
        if !metadata.is_file() || (!has_map && metadata.blocks() > 0) {
            return Err(OverlayError::NotOverlay { path: path.to_owned() });
        }
        lock(&data, path)?;
        let (map, bits) = if has_map {
            if metadata.len() != base.file_bytes() {
                // The map says whose it is; only a file that was cut short gets past that.
                MapFile::check(&map_path, path, base)?;
                return Err(OverlayError::Damaged {
                    path: path.to_owned(),
                    what: "its length is wrong",
                });
            }
            MapFile::open(&map_path, path, base)?
        } else {
            data.set_len(base.file_bytes()).map_err(error("set its size"))?;
            data.sync_all().map_err(error("sync"))?;
            MapFile::create(&map_path, path, base)?
        };
        if map.was_in_doubt() {
            // What is in memory may not be what the disk has, and the disk is what counts.
            let whole = rustix::fs::fadvise(&data, 0, None, rustix::fs::Advice::DontNeed);
            whole.map_err(|errno| error("forget what is in memory of")(errno.into()))?;
        }
        Ok(Self {
            path: path.to_owned(),
            data,
            map,
            bits,
            live: Mutex::new(()),
            flushing: Mutex::new(()),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Blocks that are in the overlay.
    #[must_use]
    pub fn held_blocks(&self) -> u64 {
        self.bits.count()
    }

    /// Whether a block is in the overlay. Once it is, it stays there.
    #[must_use]
    pub fn holds(&self, block: u64) -> bool {
        self.bits.is_set(block)
    }

    /// Cuts a range into runs that are wholly in the overlay (true) or wholly not.
    pub fn runs(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, bool)> + '_ {
        let mut block = range.block;
        std::iter::from_fn(move || {
            if block >= range.end() {
                return None;
            }
            let held = self.bits.is_set(block);
            let mut end = block + 1;
            while end < range.end() && self.bits.is_set(end) == held {
                end += 1;
            }
            let run = BlockRange { block, count: end - block };
            block = end;
            Some((run, held))
        })
    }

    /// Reads blocks that are in the overlay.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be read.
    pub fn read(&self, block: u64, into: &mut [u8]) -> Result<(), OverlayError> {
        self.check()?;
        self.data.read_exact_at(into, block * BLOCK_BYTES as u64).map_err(self.error("read"))
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// `Unavailable` if the files cannot be written; when the disk is full (`is_no_space`), the
    /// blocks hold what they did and the overlay goes on.
    ///
    /// # Panics
    /// If `bytes` are not whole blocks: a bug in the caller.
    pub fn write(&self, block: u64, bytes: &[u8]) -> Result<(), OverlayError> {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES), "an overlay takes whole blocks");
        self.check()?;
        let range = BlockRange { block, count: (bytes.len() / BLOCK_BYTES) as u64 };
        self.data.write_all_at(bytes, range.offset()).map_err(self.error("write"))?;
        self.mark(range)
    }

    /// Makes blocks zero, without taking space where the file system can.
    ///
    /// # Errors
    /// As `write`.
    pub fn zero(&self, range: BlockRange) -> Result<(), OverlayError> {
        self.check()?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Signals come whenever they like; that is no answer to the guest.
        let punched = retry_on_intr(|| {
            rustix::fs::fallocate(&self.data, punch, range.offset(), range.bytes())
        });
        match punched {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                write_zeros(&self.data, range.offset(), range.bytes())
                    .map_err(self.error("write zeros"))?;
            }
            Err(errno) => return Err(self.error("make a hole")(errno.into())),
        }
        self.mark(range)
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// `Unavailable`; after a failed sync the overlay refuses everything.
    pub fn flush(&self) -> Result<(), OverlayError> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        // The bits are copied before the data is synced: each of them has its block written.
        let sectors = self.bits.take_changed();
        let flushed =
            self.data.sync_data().map_err(self.error("sync")).and_then(|()| {
                self.map.write_flushed(&sectors).map_err(self.error("write its map"))
            });
        if let Err(error) = &flushed {
            self.fail(error);
        }
        flushed
    }

    /// Nobody knows any more what of the data is on the disk: from here on nothing is served, nor by whoever
    /// opens it next without being told.
    fn fail(&self, error: &OverlayError) {
        self.has_failed.store(true, Ordering::Release);
        let path = self.path.display();
        tracing::error!(overlay = %path, %error, "an overlay cannot be flushed: it is in doubt");
        if let Err(error) = self.map.note_doubt() {
            // Then it is in the page cache at least, for as long as the machine runs.
            tracing::error!(overlay = %path, %error, "that an overlay is in doubt is not durable");
        }
    }

    /// Notes that blocks were written: first in the file, then in memory, so that a bit that is
    /// seen here survives a kill.
    fn mark(&self, range: BlockRange) -> Result<(), OverlayError> {
        if self.bits.holds_all(range) {
            return Ok(());
        }
        let _one = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.map.write_live(&self.bits.sectors_with(range));
        written.map_err(self.error("write its map"))?;
        self.bits.set(range);
        Ok(())
    }

    fn check(&self) -> Result<(), OverlayError> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(OverlayError::Failed { path: self.path.clone() });
        }
        Ok(())
    }

    fn error(&self, verb: &'static str) -> impl Fn(io::Error) -> OverlayError + '_ {
        move |source| OverlayError::Io { path: self.path.clone(), verb, source }
    }
}

fn lock(file: &File, path: &Path) -> Result<(), OverlayError> {
    let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match retry_on_intr(|| rustix::fs::flock(file, how)) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OverlayError::InUse { path: path.to_owned() }),
        Err(errno) => {
            Err(OverlayError::Io { path: path.to_owned(), verb: "lock", source: errno.into() })
        }
    }
}

/// Writes zeros where no hole can be made.
pub(crate) fn write_zeros(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX).min(ZERO_WRITE_BYTES)];
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(zeros.len() as u64);
        let part = usize::try_from(step).expect("at most the length of a slice");
        file.write_all_at(&zeros[..part], offset + at)?;
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
