//! What a restore writes to: a new file, or a block device.

use super::journal::{self, Journal};
use super::survey::{Survey, TargetKind, survey};
use super::{RestoreError, RestoreOptions, io_error};
use crate::limits::RESTORE_PARTIALS_MAX;
use crate::overlay::write_zeros;
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_vault::durable::{rename_anew, sync_directory_of};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::retry_on_intr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is restored, as a journal says it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Volume, point, and whatever else tells two restores apart.
    pub(super) what: String,
    pub(super) size_bytes: u64,
    pub(super) data_bytes: u64,
}

/// An open target.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    file: File,
    /// Where the volume ends: nothing is written behind it.
    size_bytes: u64,
    journal: Journal,
    /// The file until it is whole; none for a device.
    partial: Option<PathBuf>,
    /// Whether there was no file of that name, so that one that is there at the end is somebody's.
    is_new: bool,
    /// Where the journal is, if there is one.
    journal_path: Option<PathBuf>,
}

/// What became of an attempt to take a name for the partial file and its journal.
enum Taken {
    /// It is ours.
    Ours(Box<Target>),
    /// It belongs to somebody else, or nobody can tell.
    Foreign,
    /// It was ours and is being removed: look again.
    Gone,
}

impl Target {
    /// Opens `path`, a file or device for what is wanted.
    pub(super) fn open(
        path: &Path,
        wanted: &Wanted,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let found = survey(path)?;
        found.check(wanted.size_bytes, options)?;
        match found.kind {
            TargetKind::Device => Self::open_device(&found, wanted, options),
            TargetKind::NewFile => Self::open_file(&found.path, true, wanted),
            TargetKind::File => Self::open_file(&found.path, false, wanted),
        }
    }

    fn open_device(
        found: &Survey,
        wanted: &Wanted,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let path = found.path.clone();
        // Exclusive: a device that is mounted, or part of something, is refused by the kernel.
        let flags = OFlags::EXCL.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let mut file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => RestoreError::InUse {
                path: path.clone(),
                holder: "the kernel says that something uses it".to_owned(),
            },
            _ => io_error(&path, "open it")(source),
        })?;
        let size = file.seek(SeekFrom::End(0)).map_err(io_error(&path, "find its size"))?;
        let device = file.metadata().map_err(io_error(&path, "look at it"))?.rdev();
        let header = journal::header(&format!("{} device {device} {size}", wanted.what));
        let kept = options.journal_directory.as_deref().map(|directory| {
            let name = format!("restore-{device}-{:08x}", crc32c::crc32c(wanted.what.as_bytes()));
            let path = directory.join(name);
            (device_journal(directory, &path, &header), path)
        });
        let (journal, journal_path) = match kept {
            Some((Ok(journal), path)) => (journal, Some(path)),
            Some((Err(error), path)) => {
                tracing::warn!(%error, path = %path.display(), "an interruption of this restore would begin it anew");
                (Journal::none(), None)
            }
            None => (Journal::none(), None),
        };
        let size_bytes = wanted.size_bytes;
        Ok(Self { path, file, size_bytes, journal, partial: None, is_new: false, journal_path })
    }

    fn open_file(path: &Path, is_new: bool, wanted: &Wanted) -> Result<Self, RestoreError> {
        let mut number = 0;
        while number < RESTORE_PARTIALS_MAX {
            match Self::take(path, wanted, number)? {
                Taken::Ours(mut target) => {
                    target.is_new = is_new;
                    target.size_bytes = wanted.size_bytes;
                    let prepared = target.prepare(wanted);
                    if prepared.is_err() {
                        target.abandon();
                    }
                    return prepared.map(|()| *target);
                }
                Taken::Foreign => number += 1,
                Taken::Gone => {}
            }
        }
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(io_error(path, "find a free name beside it")(source))
    }

    /// Takes the `number`th pair of names beside `path`, if they are free or those of an earlier
    /// restore of ours. Whatever else has such a name is left as it is.
    fn take(path: &Path, wanted: &Wanted, number: u32) -> Result<Taken, RestoreError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().as_bytes();
        let stem = format!(".farshore-{:08x}-{number}", crc32c::crc32c(name));
        let journal_path = directory.join(format!("{stem}.restore"));
        let partial = directory.join(format!("{stem}.partial"));
        let of = format!("{} file {}", wanted.what, hex(name));
        let error = |verb| io_error(path, verb);
        let (file, is_new) = match new_file(&journal_path) {
            Ok(file) => (file, true),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                match existing(&journal_path) {
                    Some(file) => (file, false),
                    None => return Ok(Taken::Foreign),
                }
            }
            Err(source) => return Err(error("make a file beside it")(source)),
        };
        let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        let is_locked = match retry_on_intr(lock) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = "another restore writes it".to_owned();
                return Err(RestoreError::InUse { path: path.to_owned(), holder });
            }
            // No locks there: only what we made ourselves, exclusively, is surely nobody else's.
            Err(_) => false,
        };
        if is_new {
            return match Self::begin(path, file, &of, journal_path.clone(), partial) {
                Ok(Some(mut target)) => {
                    if !is_locked {
                        // Whoever came later could not tell that we are gone: nothing is kept for him.
                        target.journal = Journal::none();
                    }
                    Ok(Taken::Ours(Box::new(target)))
                }
                other => {
                    let _ = fs::remove_file(&journal_path);
                    other.map(|_| Taken::Foreign)
                }
            };
        }
        if !is_locked {
            return Ok(Taken::Foreign);
        }
        Self::take_up(path, file, &of, journal_path, partial)
    }

    /// Goes on with an earlier restore of ours, whose journal is open and locked.
    fn take_up(
        path: &Path,
        mut file: File,
        of: &str,
        journal_path: PathBuf,
        partial: PathBuf,
    ) -> Result<Taken, RestoreError> {
        let error = |verb| io_error(path, verb);
        let name = path.file_name().unwrap_or_default().as_bytes();
        let header = journal::header_of(&mut file).map_err(error("read its journal"))?;
        let Some(header) =
            header.filter(|header| header.contains(&format!(" file {} ", hex(name))))
        else {
            return Ok(Taken::Foreign);
        };
        if !is_at(&file, &journal_path) {
            return Ok(Taken::Gone);
        }
        let Some(data) = existing(&partial) else {
            return Ok(if partial.symlink_metadata().is_ok() {
                Taken::Foreign
            } else {
                // Killed between the two: nothing was written.
                fs::remove_file(&journal_path).map_err(error("remove its journal"))?;
                Taken::Gone
            });
        };
        if header == journal::header(&full(of, &data).map_err(error("look at it"))?) {
            let journal = Journal::resume(file).map_err(error("read its journal"))?;
            let target = Self {
                path: path.to_owned(),
                file: data,
                journal,
                size_bytes: 0,
                partial: Some(partial),
                is_new: false,
                journal_path: Some(journal_path),
            };
            return Ok(Taken::Ours(Box::new(target)));
        }
        // Ours, of another point: begun anew. The inode says that the data file is the one we made.
        let inode = inode(&data).map_err(error("look at it"))?;
        if !header.ends_with(&inode) {
            return Ok(Taken::Foreign);
        }
        fs::remove_file(&partial).map_err(error("remove an earlier partial file"))?;
        fs::remove_file(&journal_path).map_err(error("remove its journal"))?;
        Ok(Taken::Gone)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the data file for a journal that was just made; none if its name is taken.
    fn begin(
        path: &Path,
        journal: File,
        of: &str,
        journal_path: PathBuf,
        partial: PathBuf,
    ) -> Result<Option<Self>, RestoreError> {
        let file = match new_file(&partial) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(source) => return Err(io_error(path, "make a file beside it")(source)),
        };
        let begun = full(of, &file).and_then(|of| Journal::begin(journal, &journal::header(&of)));
        match begun {
            Ok(journal) => Ok(Some(Self {
                path: path.to_owned(),
                file,
                journal,
                size_bytes: 0,
                partial: Some(partial),
                is_new: false,
                journal_path: Some(journal_path),
            })),
            Err(source) => {
                let _ = fs::remove_file(&partial);
                Err(io_error(path, "begin its journal")(source))
            }
        }
    }

    fn prepare(&self, wanted: &Wanted) -> Result<(), RestoreError> {
        let error = |verb| io_error(&self.path, verb);
        let stat = retry_on_intr(|| rustix::fs::fstatvfs(&self.file));
        let stat = stat.map_err(|errno| error("look for room")(errno.into()))?;
        let held = self.file.metadata().map_err(error("look at it"))?.blocks().saturating_mul(512);
        let available = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(held);
        if available < wanted.data_bytes {
            let (path, needed) = (self.path.clone(), wanted.data_bytes);
            return Err(RestoreError::NoRoom { path, available, needed });
        }
        self.file.set_len(wanted.size_bytes).map_err(error("set its size"))
    }

    pub(super) fn is_device(&self) -> bool {
        self.partial.is_none()
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// How many of `length` bytes from the begin of a block are inside: the last block may lie across
    /// the end.
    pub(super) fn inside(&self, block: u64, length: usize) -> usize {
        let left = self.size_bytes.saturating_sub(block * BLOCK_BYTES as u64);
        usize::try_from(left).unwrap_or(usize::MAX).min(length)
    }

    pub(super) fn write(&self, block: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let offset = block * BLOCK_BYTES as u64;
        let inside = &bytes[..self.inside(block, bytes.len())];
        self.file.write_all_at(inside, offset).map_err(io_error(&self.path, "write"))
    }

    /// What an earlier run left at these blocks.
    pub(super) fn read(&self, block: u64, into: &mut [u8]) -> Result<(), RestoreError> {
        let offset = block * BLOCK_BYTES as u64;
        self.file.read_exact_at(into, offset).map_err(io_error(&self.path, "read"))
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
    ///
    /// If the disk does not take it, what was written is given up: the system tells of that once, and
    /// whoever read it again would find it right in memory.
    pub(super) fn finish(&self) -> Result<(), RestoreError> {
        self.file.sync_all().map_err(|error| {
            self.abandon();
            io_error(&self.path, "make it durable")(error)
        })?;
        let finish = || {
            if let Some(partial) = &self.partial {
                if self.is_new {
                    rename_anew(partial, &self.path)?;
                } else {
                    fs::rename(partial, &self.path)?;
                }
                sync_directory_of(&self.path)?;
            }
            Ok(())
        };
        finish().map_err(|error| {
            // With its name already, or not to be gone on with: what is beside it is of no use.
            let is_named = self.partial.as_ref().is_some_and(|partial| {
                // One that cannot be looked for may be there.
                partial.try_exists().is_ok_and(|is_there| !is_there)
            });
            if is_named || !self.journal.is_worth_keeping() {
                self.abandon();
            }
            io_error(&self.path, "finish it")(error)
        })?;
        self.forget();
        Ok(())
    }

    /// Removes what was written of a file.
    pub(super) fn abandon(&self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
        self.forget();
    }

    fn forget(&self) {
        if let Some(journal) = &self.journal_path {
            let _ = fs::remove_file(journal);
        }
    }
}

/// Makes a file that nobody had, for its owner only: a disk holds secrets.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a regular file that is there under this very name; none if it is something else or not ours
/// to open.
fn existing(path: &Path) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.nlink() == 1).then_some(file)
}

/// Whether the open file is still the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// What a journal is of, with the data file that goes with it.
fn full(of: &str, data: &File) -> io::Result<String> {
    Ok(format!("{of} {}", inode(data)?))
}

fn inode(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    Ok(format!("inode {}:{}", metadata.dev(), metadata.ino()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a directory that nobody else looks into, if it is not there.
pub(super) fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The journal of a restore to a device: that of an earlier run, or a new one.
fn device_journal(directory: &Path, path: &Path, header: &str) -> io::Result<Journal> {
    make_private(directory)?;
    match new_file(path) {
        Ok(file) => Journal::begin(file, header),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut file = existing(path).ok_or(error)?;
            match journal::header_of(&mut file)? {
                Some(found) if found == header => Journal::resume(file),
                // Of our own making, or torn at its first line.
                Some(_) => Journal::begin(file, header),
                None if file.metadata()?.len() == 0 => Journal::begin(file, header),
                None => Err(io::ErrorKind::AlreadyExists.into()),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H21: the system tells once that it could not keep what was written; read again it would look right.
    #[test]
    fn a_file_that_the_disk_does_not_take_is_given_up() {
        for before in [None, Some("precious")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.img");
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
            }
            let size_bytes = BLOCK_BYTES as u64;
            let wanted = Wanted { what: "it".to_owned(), size_bytes, data_bytes: size_bytes };
            let options = RestoreOptions { may_replace: true, ..RestoreOptions::default() };
            let mut target = Target::open(&path, &wanted, &options).unwrap();
            target.write(0, &[7; BLOCK_BYTES]).unwrap();
            assert!(target.partial.as_ref().is_some_and(|partial| partial.exists()));
            // A device that cannot be synced, in place of a disk that fails.
            target.file = File::open("/dev/null").unwrap();
            let error = target.finish().unwrap_err();
            assert!(error.to_string().contains("make it durable"), "{error}");
            drop(target);
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
            assert_eq!(left.len(), usize::from(before.is_some()), "{left:?}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
        }
    }
}
