//! Small files that are replaced as a whole: written aside, synced, renamed, directory synced.

use crate::files::Files;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes the entries of a directory durable.
///
/// # Errors
/// What the system said.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces the file at `path` by `bytes`, readable by its owner only: after a crash it holds the
/// old bytes or the new ones. Blocks.
///
/// # Errors
/// What the system said; the old file is untouched unless the last step, syncing its directory,
/// failed.
pub(crate) fn replace(files: &dyn Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(dir) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let aside = dir.join(name);
    let written = files.create(&aside).and_then(|file| {
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // Leave no half file behind: the disk may be full.
        let _ = files.remove(&aside);
        return Err(error);
    }
    files.rename(&aside, path)?;
    files.sync_dir(dir)
}

/// Makes a directory and its parents, private to the owner.
///
/// # Errors
/// What the system said.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
