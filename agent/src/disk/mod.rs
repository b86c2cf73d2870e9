//! The disk of a volume: a file or a block device, known by what it is and held against others.
//!
//! A disk is opened anew by its name at each start, and is then the disk that is open, wherever the
//! name leads later. What was recorded of it ([`Identity`]) tells another disk under the same name; that
//! one is refused, never read. A disk that is served is had alone: [`hold`] says how, [`farshore_disks::holders`] names
//! who has it otherwise, [`watch`] notices who writes it all the same.

mod allowed;
mod hold;
mod identity;
#[cfg(test)]
mod seeded;
mod watch;

pub use allowed::{AllowError, Allowed};
pub use identity::{DeviceIdentity, FileIdentity, Identity, Likeness, Name, NameKind, Part};
pub use watch::Disturbance;

use crate::rt::{PortableFile, Size};
use farshore_proto::ErrorKind;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::VOLUME_BYTES_MAX;
use hold::Claim;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use watch::Watch;

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
    /// The server's own list does not have it.
    #[error(
        "disk {} is not among those that this agent may capture ({allowed}): if it is to be, start the \
         agent with --allow {}, or add that line to the file `allow` in its directory",
        path.display(), path.display()
    )]
    Refused {
        /// Its path.
        path: PathBuf,
        /// What may be captured.
        allowed: String,
    },
    /// The name leads to another disk.
    #[error(
        "disk {} is another one: expected {expected}, found {found}; let the name lead to the disk \
         that was protected, or, if this one is to be protected from now on, unprotect the machine \
         and protect it again", path.display()
    )]
    Other {
        /// Its path.
        path: PathBuf,
        /// What was protected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The name leads to another disk by now, and the right one is still open.
    #[error(
        "disk {} leads to another disk by now ({found}); what was protected ({expected}) is still \
         captured, but a start of the agent would refuse: let the name lead to it again",
        path.display()
    )]
    Renamed {
        /// Its path.
        path: PathBuf,
        /// What is open.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The disk was unplugged and is there again: what is open does not lead to it any more.
    #[error("disk {} was attached again: it is opened anew", path.display())]
    Reattached {
        /// Its path.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error(
        "disk {} is in use: {by}; end that, or protect the disk with --capture scan, which reads it \
         beside its users", path.display()
    )]
    Held {
        /// Its path.
        path: PathBuf,
        /// Who, and how.
        by: String,
    },
    /// It is captured already, under this or another name.
    #[error(
        "disk {} is captured already, {by}: one disk is protected once; unprotect one of the machines",
        path.display()
    )]
    Captured {
        /// Its path.
        path: PathBuf,
        /// By whom.
        by: String,
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
        "disk {} has {size_bytes} bytes: a disk that is protected is not empty and has at most \
         64 TiB", path.display()
    )]
    Size {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// It is larger than before; what is captured is what it was.
    #[error(
        "disk {} has grown to {size_bytes} bytes: what is behind its first {recorded_bytes} bytes is \
         replicated once the control plane has given its volume a new epoch", path.display()
    )]
    Grown {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// Its size as it is captured.
        recorded_bytes: u64,
    },
    /// It is smaller than before.
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
            Self::Io { .. }
            | Self::Renamed { .. }
            | Self::Reattached { .. }
            | Self::Held { .. }
            | Self::Captured { .. }
            | Self::Grown { .. } => ErrorKind::Unavailable,
            Self::Refused { .. }
            | Self::Kind { .. }
            | Self::Size { .. }
            | Self::Resized { .. }
            | Self::Other { .. } => ErrorKind::Invalid,
        }
    }
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read, by scans.
    Read,
    /// Read and written, by the splitter.
    Write,
}

/// What is recorded of a disk that was captured before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Its size.
    pub size_bytes: Option<u64>,
    /// What it is.
    pub identity: Option<Identity>,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// Reads a device that others may write meanwhile: what they write may pass by the cache of `file`.
    past_cache: Option<PortableFile>,
    path: PathBuf,
    size: Size,
    identity: Identity,
    is_device: bool,
    /// The device and inode, or device number, that is open.
    place: (u64, u64),
    /// What notices other writers; a disk that is only read has none.
    watch: Option<Watch>,
    /// What else has to stay open for the disk to stay ours.
    _hold: Hold,
}

/// Keeps a disk to ourselves while it lives.
#[derive(Debug)]
struct Hold {
    _claim: Claim,
    /// The descriptor that has the device exclusively, or the locks.
    _file: Option<File>,
}

impl Disk {
    /// Opens a disk of which `recorded` is known; to write it, alone. Blocks.
    ///
    /// # Errors
    /// [`DiskError`], whose text tells the operator what to do.
    pub fn open(path: &Path, access: Access, recorded: &Recorded) -> Result<Self, DiskError> {
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
        // Everything below is about what this descriptor has open: the name may be changed meanwhile.
        let probe = File::open(path).map_err(failed("opened"))?;
        let metadata = probe.metadata().map_err(failed("opened"))?;
        if metadata.file_type().is_block_device() != is_device {
            return Err(DiskError::Missing { path: path.to_owned() });
        }
        let identity = Identity::of_metadata(&metadata);
        if let Some(expected) = &recorded.identity
            && expected.likeness(&identity) == Likeness::Other
            && !is_on(Bug::NameIsIdentity)
        {
            let (path, expected) = (path.to_owned(), expected.to_string());
            return Err(DiskError::Other { path, expected, found: identity.to_string() });
        }
        let mut size_bytes = size_of(&probe, is_device).map_err(failed("measured"))?;
        if let Some(recorded_bytes) = recorded.size_bytes {
            if recorded_bytes > size_bytes {
                let path = path.to_owned();
                return Err(DiskError::Resized { path, size_bytes, recorded_bytes });
            }
            // What it has grown by is captured once its volume has grown, see [`Disk::check`].
            size_bytes = recorded_bytes;
        }
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
            return Err(DiskError::Size { path: path.to_owned(), size_bytes });
        }
        let claim = Claim::take(&metadata, path).map_err(|other| DiskError::Captured {
            path: path.to_owned(),
            by: format!("by this agent as {}", other.display()),
        })?;
        let elsewhere = || {
            let by = hold::who(&metadata, true, "another farshore-agent has it");
            DiskError::Captured { path: path.to_owned(), by: format!("elsewhere: {by}") }
        };
        if hold::is_captured(&probe) {
            return Err(elsewhere());
        }
        let (file, watch, held) = match access {
            Access::Read => (probe, None, None),
            Access::Write => {
                let held = hold_alone(path, &probe, &metadata, is_device)?;
                let watched = held.try_clone().map_err(failed("opened"))?;
                let (watch, file) = Watch::begin(watched).map_err(failed("watched"))?;
                (file, Some(watch), Some(held))
            }
        };
        if !hold::mark_captured(held.as_ref().unwrap_or(&file)) {
            return Err(elsewhere());
        }
        Ok(Self {
            past_cache: past_cache_of(&file, is_device, access).map_err(failed("opened"))?,
            file,
            path: path.to_owned(),
            size: Arc::new(AtomicU64::new(size_bytes)),
            identity,
            is_device,
            place: place_of(&metadata),
            watch,
            _hold: Hold { _claim: claim, _file: held },
        })
    }

    /// Whether the disk is still there, under its path and with its size. Blocks.
    ///
    /// # Errors
    /// `Missing` if the path leads nowhere, `Renamed` if elsewhere, `Reattached` if what is open is gone
    /// for good, `Grown` or `Resized` if the size changed.
    pub fn check(&self) -> Result<(), DiskError> {
        let missing = || DiskError::Missing { path: self.path.clone() };
        let there = std::fs::metadata(&self.path).map_err(|_| missing())?;
        if place_of(&there) != self.place {
            let found = Identity::of_metadata(&there);
            let path = self.path.clone();
            if self.is_device && found.likeness(&self.identity) == Likeness::Same {
                return Err(DiskError::Reattached { path });
            }
            let (expected, found) = (self.identity.to_string(), found.to_string());
            return Err(DiskError::Renamed { path, expected, found });
        }
        let size = size_of(&self.file, self.is_device);
        let size_bytes = size.map_err(|source| DiskError::Io {
            action: "measured",
            path: self.path.clone(),
            source,
        })?;
        if let Some(watch) = &self.watch {
            watch.look_around(&there);
        }
        let (path, recorded_bytes) = (self.path.clone(), self.size_bytes());
        match size_bytes.cmp(&recorded_bytes) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => {
                Err(DiskError::Resized { path, size_bytes, recorded_bytes })
            }
            std::cmp::Ordering::Greater => {
                Err(DiskError::Grown { path, size_bytes, recorded_bytes })
            }
        }
    }

    /// Whether somebody else wrote the disk since that was dealt with last, or may write it unseen now:
    /// then what is read of it does not fit what was logged.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.look(&self.file))
    }

    /// What is to be dealt with; see [`Disk::is_disturbed`].
    #[must_use]
    pub fn disturbance(&self) -> Option<Disturbance> {
        if self.is_disturbed() { self.watch.as_ref()?.disturbance() } else { None }
    }

    /// All of the disk is read again, because of what the disturbance of that number told.
    pub fn settle(&self, number: u64) {
        if let Some(watch) = &self.watch {
            watch.settle(number);
        }
    }

    /// Runs a change of ours, so that it is not taken for somebody else's.
    fn change<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.watch {
            Some(watch) => watch.change(work),
            None => work(),
        }
    }

    fn flush(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.flush(work),
            None => work(),
        }
    }

    /// Its size as it is captured, any number of bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// The same, as it will be.
    #[must_use]
    pub fn size(&self) -> Size {
        Arc::clone(&self.size)
    }

    /// From here on so much of it is captured: it has grown to that at least.
    pub fn grow(&self, size_bytes: u64) {
        self.size.fetch_max(size_bytes, Ordering::SeqCst);
    }

    /// What it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
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

    /// Fills `buffer` from `offset` on, with zeros behind the end of the disk; blocks. Of a disk that others
    /// write beside us it is what they wrote.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let (inside, behind) = crate::rt::split_at_end(buffer, offset, self.size_bytes());
        behind.fill(0);
        match &self.past_cache {
            Some(past_cache) => past_cache.read(inside, offset),
            None => self.file.read_exact_at(inside, offset),
        }
    }

    /// Where the next byte is that may not be zero, from `offset` on; the size if none is. A disk that
    /// does not tell may have one everywhere. Blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn next_data(&self, offset: u64) -> io::Result<u64> {
        if self.is_device {
            return Ok(offset);
        }
        let seek = || rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset));
        match retry_on_intr(seek) {
            Ok(found) => Ok(found.min(self.size_bytes())),
            // A file that ends early has no zeros there: it shrank.
            Err(rustix::io::Errno::NXIO) if self.file.metadata()?.len() < self.size_bytes() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(rustix::io::Errno::NXIO) => Ok(self.size_bytes()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads without waiting for a device: whether everything was in memory.
    #[must_use]
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> bool {
        let length = buffer.len();
        let mut slices = [io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let read = || rustix::io::preadv2(&self.file, &mut slices, offset, flags);
        retry_on_intr(read).is_ok_and(|got| got == length)
    }

    /// Writes `data` at `offset`; blocks.
    ///
    /// # Errors
    /// What the system said; part of it may be written.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(|| self.file.write_all_at(data, offset))
    }

    /// Writes `data` at `offset` unless that may wait for a device: whether all of it was written.
    ///
    /// # Errors
    /// What the system said; part of it may be written.
    pub fn write_at_once(&self, data: &[u8], offset: u64) -> io::Result<bool> {
        let slices = [io::IoSlice::new(data)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let write = || rustix::io::pwritev2(&self.file, &slices, offset, flags);
        match self.change(|| retry_on_intr(write)) {
            Ok(written) => Ok(written == data.len()),
            // It would wait, or its file system cannot tell.
            Err(
                rustix::io::Errno::AGAIN
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NOSYS,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a range read as zeros; with `may_trim` its space may be given up. Blocks.
    ///
    /// # Errors
    /// What the system said; part of it may be zeroed.
    pub fn zero(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        self.change(|| self.zero_range(offset, length, may_trim))
    }

    fn zero_range(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways: &[FallocateFlags] = if may_trim { &[punch, zero] } else { &[zero] };
        for flags in ways {
            match retry_on_intr(|| fallocate(&self.file, *flags, offset, length)) {
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
        self.flush(|| self.file.sync_data())
    }

    /// Drops what the system keeps of the disk in memory, so that the next read asks the disk; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn forget_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    /// As [`Disk::forget_cached`], of a range; what is not on the disk yet stays.
    ///
    /// # Errors
    /// What the system said.
    pub fn forget_cached_range(&self, offset: u64, length: u64) -> io::Result<()> {
        crate::rt::forget_cached(&self.file, offset, length)
    }

    /// As [`Disk::sync`], and the file's times as well.
    ///
    /// # Errors
    /// As [`Disk::sync`].
    pub fn sync_all(&self) -> io::Result<()> {
        self.flush(|| self.file.sync_all())
    }
}

fn size_of(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        let mut file = file;
        return file.seek(SeekFrom::End(0));
    }
    Ok(file.metadata()?.len())
}

/// None where `file` cannot be older than the disk: files have one cache for all, and a device that is
/// written has us alone.
fn past_cache_of(file: &File, is_device: bool, access: Access) -> io::Result<Option<PortableFile>> {
    let is_shared = is_device && access == Access::Read;
    is_shared.then(|| PortableFile::open(file)).transpose()
}

/// What a name leads to: device and inode of a file, the number of a device.
fn place_of(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_block_device() {
        return (metadata.rdev(), 0);
    }
    (metadata.dev(), metadata.ino())
}

/// Opens for writing what `probe` has open for reading, and holds it against others.
fn hold_alone(
    path: &Path,
    probe: &File,
    metadata: &Metadata,
    is_device: bool,
) -> Result<File, DiskError> {
    let held = |by| DiskError::Held { path: path.to_owned(), by };
    let failed = |source| DiskError::Io { action: "opened", path: path.to_owned(), source };
    let opened = format!("/proc/self/fd/{}", probe.as_raw_fd());
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let is_asked = !is_on(if is_device { Bug::MountedIsServed } else { Bug::WrittenIsServed });
    if !is_asked {
        return options.open(opened).map_err(failed);
    }
    if is_device {
        options.custom_flags(libc::O_EXCL);
        let nobody = "the system has it, and does not say for what";
        let file = options.open(opened).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => held(hold::who(metadata, true, nobody)),
            _ => failed(source),
        })?;
        // The kernel keeps out only who asks for the device alone.
        return hold::writers(metadata).map_or(Ok(file), |by| Err(held(by)));
    }
    if let Some(by) = hold::writers(metadata) {
        return Err(held(by));
    }
    if hold::has_writer(probe) == Some(true) {
        return Err(held(
            "a process that this agent cannot see has it open for writing".to_owned(),
        ));
    }
    let file = options.open(opened).map_err(|source| match source.raw_os_error() {
        // A file that is swapped to, or run as a program.
        Some(libc::ETXTBSY) => held("the system runs it or swaps to it".to_owned()),
        _ => failed(source),
    })?;
    hold::lock_file(&file).map_err(|what| held(hold::who(metadata, true, what)))?;
    Ok(file)
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
        let (dir, path) = disk(0);
        let open = |path: &Path, size_bytes| {
            let recorded = Recorded { size_bytes, identity: None };
            Disk::open(path, Access::Write, &recorded).unwrap_err()
        };
        let text = open(&path, None).to_string();
        assert!(text.contains("has 0 bytes") && text.contains("is not empty"), "{text}");
        let text = open(&dir.path().join("none"), None).to_string();
        assert!(text.contains("is missing: attach it again"), "{text}");
        assert!(matches!(open(dir.path(), None), DiskError::Kind { .. }));
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let text = open(&path, Some(12_288)).to_string();
        assert!(text.contains("8192 bytes, but 12288 bytes are recorded"), "{text}");
    }

    #[test]
    fn ends_within_a_block() {
        for size in [1, 512, 4097, (1 << 20) - 1] {
            let (_dir, path) = disk(size);
            let recorded = Recorded { size_bytes: Some(size), identity: None };
            let disk = Disk::open(&path, Access::Write, &recorded).unwrap();
            let last = (size - 1) / 4096 * 4096;
            let length = usize::try_from(size - last).unwrap();
            disk.write(&vec![7; length], last).unwrap();
            let mut block = [9; 4096];
            disk.read(&mut block, last).unwrap();
            assert!(block[..length].iter().all(|byte| *byte == 7), "{size}");
            assert!(block[length..].iter().all(|byte| *byte == 0), "{size}");
            disk.zero(last, length as u64, true).unwrap();
            disk.check().unwrap();
            disk.file.set_len(size - 1).unwrap();
            assert!(disk.read(&mut block, last).is_err(), "a file that was cut short");
        }
    }

    #[test]
    fn notices_that_it_shrank_grew_or_is_gone() {
        let (_dir, path) = disk(1 << 20);
        let disk = Disk::open(&path, Access::Write, &Recorded::default()).unwrap();
        disk.check().unwrap();
        disk.file.set_len(8192).unwrap();
        assert!(matches!(disk.check(), Err(DiskError::Resized { size_bytes: 8192, .. })));
        disk.file.set_len(2 << 20).unwrap();
        assert!(matches!(disk.check(), Err(DiskError::Grown { recorded_bytes: 0x10_0000, .. })));
        disk.grow(2 << 20);
        disk.check().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(disk.check(), Err(DiskError::Missing { .. })));
    }

    #[test]
    fn zeroes_any_range() {
        let (_dir, path) = disk(1 << 20);
        let disk = Disk::open(&path, Access::Write, &Recorded::default()).unwrap();
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
