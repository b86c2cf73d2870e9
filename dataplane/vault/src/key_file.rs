//! The file that holds a wrapping key of a vault, the recovery key or that of a node: one line, mode 0600.

use crate::durable::{rename_anew, sync_directory_of};
use crate::limits::KEY_FILE_BYTES_MAX;
use farshore_codec::{KekError, WrappingKey};
use farshore_proto::ErrorKind;
use farshore_proto::keys::WrapperKind;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the environment variable that names the key file.
pub const KEY_FILE_ENV: &str = "FARSHORE_KEY_FILE";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no such file.
    #[error("key file {}: it does not exist: name the file with a key of the vault (FARSHORE_KEY_FILE)", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There is a file already, and it is never overwritten.
    #[error("key file {}: it exists already and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("key file {}: it cannot be {verb}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Other users may read the file.
    #[error("key file {}: other users may read it (mode {mode:03o}): run `chmod 600` on it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is in the file is no key, or not of the kind that is needed.
    #[error("key file {}: {cause}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: KekError,
    },
}

impl KeyFileError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::Conflict,
            Self::Io { .. } => ErrorKind::Unavailable,
            Self::Open { .. } => ErrorKind::Invalid,
            Self::Content { cause, .. } => cause.kind(),
        }
    }
}

/// Writes a wrapping key to a new file of mode 0600, durably.
///
/// # Errors
/// `Conflict` if the file exists, `Unavailable` if it cannot be written.
pub fn create(path: &Path, key: &WrappingKey) -> Result<(), KeyFileError> {
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => KeyFileError::Io { path: path.to_owned(), verb: "written", source },
    };
    // A name of its own: whatever lies beside the key is somebody's.
    let name = format!(".farshore-key-{}", uuid::Uuid::new_v4().simple());
    let temporary = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(error)?;
    let mut write = || {
        file.write_all(key.to_text().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        // Never replaces a key that somebody else put there.
        rename_anew(&temporary, path)?;
        sync_directory_of(path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(error)
}

/// Reads the wrapping key, of either kind, of a file that only its owner may read.
///
/// # Errors
/// `NotFound`; `Invalid` if others may read the file, or it holds no key or a mistyped one;
/// `Unavailable` if it cannot be read.
pub fn read(path: &Path) -> Result<WrappingKey, KeyFileError> {
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing { path: path.to_owned() },
        _ => KeyFileError::Io { path: path.to_owned(), verb: "read", source },
    };
    let file = File::open(path).map_err(error)?;
    let found = file.metadata().map_err(error)?;
    // Its mode is not what is wrong with it.
    if found.is_dir() {
        return Err(error(io::ErrorKind::IsADirectory.into()));
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    // Room for the whole file at once: growing would leave copies of the key behind.
    let mut text = zeroize::Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX));
    let content = |cause| KeyFileError::Content { path: path.to_owned(), cause };
    match file.take(KEY_FILE_BYTES_MAX as u64).read_to_string(&mut text) {
        Ok(_) => WrappingKey::parse(&text).map_err(content),
        Err(source) if source.kind() == io::ErrorKind::InvalidData => {
            Err(content(KekError::NotAKey))
        }
        Err(source) => Err(error(source)),
    }
}

/// Reads the wrapping key of a file, which must be of this kind.
///
/// # Errors
/// As [`read`]; `Invalid` if it is of the other kind.
pub fn read_kind(path: &Path, kind: WrapperKind) -> Result<WrappingKey, KeyFileError> {
    let key = read(path)?.of_kind(kind);
    key.map_err(|cause| KeyFileError::Content { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn drawn() -> WrappingKey {
        WrappingKey::draw(WrapperKind::Recovery).unwrap()
    }

    #[test]
    fn a_key_is_written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recovery.key");
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, folder.path().join("recovery.key.partial")).unwrap();
        let key = drawn();
        create(&path, &key).unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"precious", "a link beside it is not followed");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().to_text(), key.to_text());
        let error = create(&path, &drawn()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(read(&path).unwrap().to_text(), key.to_text());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_is_wrong_with_a_key_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recovery.key");
        assert!(matches!(read(&path), Err(KeyFileError::Missing { .. })));
        let key = drawn();
        create(&path, &key).unwrap();
        let mut text = key.to_text().to_string();
        let digit = if text.ends_with('0') { "1" } else { "0" };
        text.replace_range(text.len() - 1.., digit);
        for (content, part) in [
            (text.as_bytes(), "mistyped"),
            (&b"hello"[..], "neither"),
            (&b"\xff\xfe"[..], "neither"),
        ] {
            fs::write(&path, content).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("mode 644"), "{error}");
        let error = read(folder.path()).unwrap_err();
        assert!(matches!(error, KeyFileError::Io { .. }), "a directory is no open key: {error}");
    }

    /// H1: a damaged recovery key is told from a wrong one, and is never taken for another.
    #[test]
    fn every_flipped_bit_and_every_length_of_a_recovery_key_is_told() {
        let digits = "42".repeat(32);
        // The check is part of the text.
        let recovery = WrappingKey::parse(&format!("FSRK2-{digits}-fad428ec")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recovery.key");
        create(&path, &recovery).unwrap();
        let whole = fs::read(&path).unwrap();
        let key = recovery.wrapper();
        let look = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            read(&path)
        };
        let (mut told, mut same) = (0, 0);
        let mut check = |bytes: &[u8], what: &str| match look(bytes) {
            Ok(found) => {
                assert_eq!(found.wrapper(), key, "{what}");
                same += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(path.to_str().unwrap()), "{what}: {error}");
                told += 1;
            }
        };
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            check(&bytes, &format!("bit {bit}"));
        }
        for length in 0..whole.len() {
            check(&whole[..length], &format!("cut to {length}"));
        }
        check(&[&whole[..], b"x"].concat(), "growth");
        println!("recovery key: {told} damages told, {same} that change nothing");
        assert!(told > 7 * whole.len());
    }

    #[test]
    fn a_key_of_the_other_kind_is_said_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, &WrappingKey::draw(WrapperKind::Node).unwrap()).unwrap();
        read_kind(&path, WrapperKind::Node).unwrap();
        let error = read_kind(&path, WrapperKind::Recovery).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("this is a node key; a recovery key is needed here"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
