//! The agent's directory, which one process has alone.

use farshore_program::private_dir;
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Held for as long as the directory is used.
const LOCK_FILE: &str = "lock";

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is absent, and locks it. Blocks.
    ///
    /// # Errors
    /// `WouldBlock` if another agent has it, otherwise what the system said.
    pub fn lock(path: &Path) -> io::Result<Self> {
        private_dir(path, LOCK_FILE)?;
        let path = std::path::absolute(path)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = match options.open(path.join(LOCK_FILE)) {
            // Disks are served from a directory that takes nothing, too; a lock needs no writing.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                File::open(path.join(LOCK_FILE))?
            }
            opened => opened?,
        };
        let locked = retry_on_intr(|| flock(&lock, FlockOperation::NonBlockingLockExclusive));
        locked.map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                io::Error::new(io::ErrorKind::WouldBlock, "another agent runs on it")
            }
            other => other.into(),
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
