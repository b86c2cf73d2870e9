//! The seam between what the agent keeps durably and the file system.
//!
//! The hrl log, the intents and the state of a volume reach their files through [`Files`] only, so
//! that a simulator can hold them, lose what was not synced and stop the agent between any two
//! operations. Production has [`OsFiles`].

use crate::durable::{private_dir, sync_dir};
use rustix::io::{Errno, retry_on_intr};
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// A file system. Every operation blocks.
pub trait Files: Debug + Send + Sync {
    /// Makes a directory and its parents, private to the owner; one that is there is left alone.
    ///
    /// # Errors
    /// What the system said.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes an empty file for reading and writing, readable by its owner only; what an existing one
    /// held is lost.
    ///
    /// # Errors
    /// What the system said.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// What the system said; `NotFound` if there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn FileIo>>;

    /// Opens a file for reading and writing, making an empty one if there is none.
    ///
    /// # Errors
    /// What the system said.
    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>>;

    /// Whether something is there.
    fn exists(&self, path: &Path) -> bool;

    /// All bytes of a file.
    ///
    /// # Errors
    /// What the system said; `NotFound` if there is none.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Names of what is in a directory, in any order.
    ///
    /// # Errors
    /// What the system said.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Removes a file. Durable once its directory is synced.
    ///
    /// # Errors
    /// What the system said.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, replacing what is there. Durable once the directory is synced.
    ///
    /// # Errors
    /// What the system said.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// What the system said.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// A directory in memory, which need not exist yet: what is there outlasts this process, but not this run
    /// of the server. None if there is no such place.
    fn run_dir(&self) -> Option<PathBuf> {
        None
    }
}

/// An open file. Every operation blocks.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait FileIo: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// What the system said.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; otherwise what the system said.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the system said; part of them may be written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all slices one after the other from `offset` on; they are used up.
    ///
    /// # Errors
    /// What the system said; part of them may be written.
    fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Writes slices from `offset` on as far as that needs no waiting: so many bytes. Where nobody can tell,
    /// none.
    ///
    /// # Errors
    /// What the system said; part of them may be written.
    fn write_at_once(&self, _slices: &[IoSlice<'_>], _offset: u64) -> io::Result<usize> {
        Ok(0)
    }

    /// Cuts the file, or makes it longer with zeros.
    ///
    /// # Errors
    /// What the system said.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the system said; what was written before may be lost even if a later sync succeeds.
    fn sync_data(&self) -> io::Result<()>;

    /// Gives it the present time as that of its last change, in memory only; what has no times does
    /// nothing.
    ///
    /// # Errors
    /// What the system said.
    fn touch(&self) -> io::Result<()> {
        Ok(())
    }

    /// As [`FileIo::sync_data`], and everything else that is known of the file.
    ///
    /// # Errors
    /// As [`FileIo::sync_data`].
    fn sync_all(&self) -> io::Result<()>;
}

/// The system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

fn open(path: &Path, how: impl FnOnce(&mut OpenOptions)) -> io::Result<Arc<dyn FileIo>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    how(&mut options);
    Ok(Arc::new(options.open(path)?))
}

impl Files for OsFiles {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        private_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        open(path, |options| {
            options.create(true).truncate(true);
        })
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        open(path, |_| ())
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        open(path, |options| {
            options.create(true).truncate(false);
        })
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn run_dir(&self) -> Option<PathBuf> {
        // Of a user of its own, or the system's: whoever runs the agent has one of both.
        let own =
            std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
        Some(own.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("farshore-agent"))
    }
}

impl FileIo for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut slices = slices;
        let mut offset = offset;
        while !slices.is_empty() {
            match retry_on_intr(|| rustix::io::pwritev(self, slices, offset)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    IoSlice::advance_slices(&mut slices, count);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_at_once(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match retry_on_intr(|| rustix::io::pwritev2(self, slices, offset, flags)) {
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
            written => Ok(written?),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn touch(&self) -> io::Result<()> {
        self.set_modified(SystemTime::now())
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}
