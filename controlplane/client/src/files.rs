//! Small private files, read within a limit and replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Largest file that is read; an identity has a few KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Makes a directory and its parents, private to the owner. Blocks.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Takes a secret file away from all but its owner, and says so if it was not. Blocks.
pub(crate) fn close_to_others(path: &Path) -> io::Result<()> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.mode() & 0o777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        tracing::warn!(
            path = %path.display(),
            "others could read this key (mode {mode:04o}), now they cannot; if they may have, make a \
             token for this id and enrol again with a new key"
        );
    }
    Ok(())
}

/// Reads a text; none if there is no such file. Blocks.
///
/// # Errors
/// `InvalidData` if it is too long or not UTF-8, otherwise what the system said.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    if file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    Ok(Some(text))
}

/// Replaces the file at `path`, readable by its owner only: after a crash it holds the old text or
/// the new one. Blocks.
///
/// # Errors
/// What the system said; the old file is untouched unless the last step, syncing its directory,
/// failed.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut aside = name.to_owned();
    aside.push(".new");
    let aside = dir.join(aside);
    // What a crash left behind may have any owner and mode: it is not written into.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&aside, path)) {
        // Leave no half file behind: the disk may be full.
        let _gone = fs::remove_file(&aside);
        return Err(error);
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private_whatever_lies_around() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("a.key"), dir.path().join("a.key.new"));
        fs::write(&path, "old").unwrap();
        fs::write(&aside, "half").unwrap();
        for path in [&path, &aside] {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        replace(&path, "new").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("new"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!aside.exists());
    }

    #[test]
    fn a_key_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        close_to_others(&path).unwrap();
        fs::write(&path, "secret").unwrap();
        for (before, after) in [(0o644, 0o600), (0o660, 0o600), (0o400, 0o400)] {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            close_to_others(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, after);
        }
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        replace(&path, "old").unwrap();
        fs::create_dir(dir.path().join("a.key.new")).unwrap();
        replace(&path, "new").unwrap_err();
        assert_eq!(read(&path).unwrap().as_deref(), Some("old"));
    }

    #[test]
    fn only_small_texts_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(read(&path).unwrap(), None);
        let longest = usize::try_from(FILE_BYTES_MAX).unwrap();
        fs::write(&path, vec![b'a'; longest]).unwrap();
        assert_eq!(read(&path).unwrap().map(|text| text.len()), Some(longest));
        for bytes in [vec![b'a'; longest + 1], vec![0xff]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
