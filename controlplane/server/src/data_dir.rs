//! The data directory: made private, held by one process, its secret files kept secret.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use farshore_program::private_dir;

use crate::fatal::Fatal;

/// Held for as long as the directory is used.
const LOCK_FILE: &str = "control.lock";

/// Longest secret file that is read.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The data directory, held until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none (mode 0700) and takes it for this process.
    ///
    /// # Errors
    /// `Create` if it cannot be made or written, `InUse` if another process holds it.
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let create = |source| Fatal::Create { path: path.into(), source };
        private_dir(path, LOCK_FILE).map_err(create)?;
        let path = path.canonicalize().map_err(create)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| Fatal::Create { path: lock_path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Fatal::InUse { path }),
            Err(TryLockError::Error(source)) => Err(Fatal::file("lock", &lock_path, source)),
        }
    }

    /// Absolute path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// `Create` with what the system said.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), Fatal> {
    write(path, content, 0o600)
}

/// Writes a file that everybody may read, whole or not at all.
///
/// # Errors
/// `Create` with what the system said.
pub fn write_public(path: &Path, content: &[u8]) -> Result<(), Fatal> {
    write(path, content, 0o644)
}

/// Write, sync, rename, sync the directory: after a crash there is the whole file or none.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Fatal> {
    let temporary = path.with_extension("new");
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    attempt().map_err(|source| Fatal::Create { path: path.into(), source })
}

/// Reads a file that must not be readable by others. `None` if there is none.
///
/// # Errors
/// `Exposed` if others may read it, `Damaged` if it is too long or not text.
pub fn read_secret(path: &Path) -> Result<Option<String>, Fatal> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Fatal::file("read", path, error)),
    };
    if metadata.mode() & 0o077 != 0 {
        return Err(Fatal::Exposed { path: path.into() });
    }
    if metadata.len() > SECRET_BYTES_MAX {
        return Err(Fatal::Damaged { path: path.into(), why: "it is too long".into() });
    }
    fs::read_to_string(path).map(Some).map_err(|error| Fatal::file("read", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(&dir.path().join("data")).unwrap();
        assert!(matches!(DataDir::open(held.path()), Err(Fatal::InUse { .. })));
        let path = held.path().to_owned();
        drop(held);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn secrets_are_private_and_exposed_ones_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(read_secret(&path).unwrap().is_none());
        write_secret(&path, b"s").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("s"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_secret(&path), Err(Fatal::Exposed { .. })));
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("data")).unwrap_err();
        assert_eq!(error.exit().code(), 73, "{error}");
    }
}
