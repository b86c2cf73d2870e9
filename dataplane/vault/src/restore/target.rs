//! What a restore writes to: a new file, or a block device.

use super::{RestoreError, RestoreOptions};
use crate::overlay::{sync_directory_of, write_zeros};
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::retry_on_intr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An open target.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    file: File,
    /// Where the volume ends: nothing is written behind it.
    size_bytes: u64,
    /// Name of the file until it is whole; none for a device.
    partial: Option<PathBuf>,
}

impl Target {
    /// Opens `path` for a volume of `size_bytes`, of which `data_bytes` will be written.
    pub(super) fn open(
        path: &Path,
        size_bytes: u64,
        data_bytes: u64,
        options: RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let error = |verb| io_error(path, verb);
        match fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                Self::open_device(path, size_bytes)
            }
            Ok(metadata) if !metadata.is_file() => {
                Err(RestoreError::NotATarget { path: path.to_owned() })
            }
            Ok(metadata) if metadata.len() > 0 && !options.may_replace => {
                Err(RestoreError::NotEmpty { path: path.to_owned() })
            }
            Ok(_) => Self::open_file(path, size_bytes, data_bytes),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Self::open_file(path, size_bytes, data_bytes)
            }
            Err(source) => Err(error("look at it")(source)),
        }
    }

    fn open_device(path: &Path, size_bytes: u64) -> Result<Self, RestoreError> {
        // Exclusive: a device that is mounted, or part of something, is refused by the kernel.
        let flags = OFlags::EXCL.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let mut file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => RestoreError::InUse { path: path.to_owned() },
            _ => io_error(path, "open it")(source),
        })?;
        let found = file.seek(SeekFrom::End(0)).map_err(io_error(path, "find its size"))?;
        if found < size_bytes {
            return Err(RestoreError::TooSmall {
                path: path.to_owned(),
                found,
                needed: size_bytes,
            });
        }
        Ok(Self { path: path.to_owned(), file, size_bytes, partial: None })
    }

    fn open_file(path: &Path, size_bytes: u64, data_bytes: u64) -> Result<Self, RestoreError> {
        let error = |verb| io_error(path, verb);
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = OpenOptions::new();
        // Readable by the owner only: a disk holds secrets. Cut only once it is known to be ours.
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&partial).map_err(error("create it"))?;
        let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        match retry_on_intr(lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RestoreError::InUse { path: path.to_owned() });
            }
            Err(errno) => return Err(error("lock it")(errno.into())),
        }
        file.set_len(0).map_err(error("empty it"))?;
        let target = Self { path: path.to_owned(), file, size_bytes, partial: Some(partial) };
        let prepared = target.prepare(size_bytes, data_bytes);
        if prepared.is_err() {
            target.abandon();
        }
        prepared.map(|()| target)
    }

    fn prepare(&self, size_bytes: u64, data_bytes: u64) -> Result<(), RestoreError> {
        let stat = retry_on_intr(|| rustix::fs::fstatvfs(&self.file))
            .map_err(|errno| io_error(&self.path, "look for room")(errno.into()))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available < data_bytes {
            let path = self.path.clone();
            return Err(RestoreError::NoRoom { path, available, needed: data_bytes });
        }
        self.file.set_len(size_bytes).map_err(io_error(&self.path, "set its size"))
    }

    pub(super) fn is_device(&self) -> bool {
        self.partial.is_none()
    }

    pub(super) fn write(&self, block: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let offset = block * BLOCK_BYTES as u64;
        // The last block may lie across the end.
        let length = self.size_bytes.saturating_sub(offset).min(bytes.len() as u64);
        let inside = &bytes[..usize::try_from(length).expect("at most the length of a slice")];
        self.file.write_all_at(inside, offset).map_err(io_error(&self.path, "write"))
    }

    pub(super) fn zero(&self, range: BlockRange) -> Result<(), RestoreError> {
        let (offset, end) = (range.offset(), (range.offset() + range.bytes()).min(self.size_bytes));
        let bytes = end.saturating_sub(offset);
        if bytes == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for mode in [punch, FallocateFlags::ZERO_RANGE] {
            let free = || rustix::fs::fallocate(&self.file, mode, offset, bytes);
            if retry_on_intr(free).is_ok() {
                return Ok(());
            }
        }
        // Whatever the reason, writing zeros either works or says what is wrong.
        write_zeros(&self.file, offset, bytes).map_err(io_error(&self.path, "write zeros"))
    }

    /// Makes everything durable and gives a file its name.
    pub(super) fn finish(&self) -> Result<(), RestoreError> {
        let finish = || {
            self.file.sync_all()?;
            if let Some(partial) = &self.partial {
                fs::rename(partial, &self.path)?;
                sync_directory_of(&self.path)?;
            }
            Ok(())
        };
        finish().map_err(|source| {
            self.abandon();
            io_error(&self.path, "finish it")(source)
        })
    }

    /// Removes what was written of a file.
    pub(super) fn abandon(&self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

fn io_error(path: &Path, verb: &'static str) -> impl Fn(io::Error) -> RestoreError + use<> {
    let path = path.to_owned();
    move |source| RestoreError::Io { path: path.clone(), verb, source }
}
