//! Whether the file system of a directory does what a vault in it rests on.
//!
//! An object gets its name by a hard link, which replaces nothing; its name is durable when its directory is
//! synced. Some file systems (FAT, exFAT, some network ones) have no hard links. That is said when the
//! directory is opened, not by each put.

use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a file system says to what it does not have.
const LACKING: [Errno; 5] =
    [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::MLINK];

/// What is missing, and how the system said so.
pub(super) type Lack = (&'static str, io::Error);

/// Tries it out. Trouble of another kind (a full disk, a disk that fails) is met by the first put, which has the
/// words for it.
pub(super) fn try_out(
    path: &Path,
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<(), Lack> {
    let [first, second] = names(path);
    let tried = steps(path, &first, &second, link);
    for file in [first, second] {
        // What was not made is not there; what cannot be removed is passed over by every listing.
        let _gone = fs::remove_file(file);
    }
    match tried {
        Err((what, error)) if is_lacking(&error) => Err((what, error)),
        _ => Ok(()),
    }
}

fn steps(
    path: &Path,
    first: &Path,
    second: &Path,
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<(), Lack> {
    let file = OpenOptions::new().write(true).create_new(true).open(first);
    file.and_then(|file| file.sync_all()).map_err(|error| ("a sync of files", error))?;
    link(first, second).map_err(|error| ("hard links", error))?;
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| ("a sync of directories", error))
}

/// Names that no listing of a store shows, and nobody else has.
fn names(path: &Path) -> [PathBuf; 2] {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (process, now) = (std::process::id(), now.as_nanos());
    [1, 2].map(|number| path.join(format!("trial#{process}{now}{number}")))
}

fn is_lacking(error: &io::Error) -> bool {
    LACKING.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The kind of the file system that a path is on, for people.
pub(super) fn file_system(path: &Path) -> String {
    let Ok(found) = rustix::fs::statfs(path) else { return "unknown".to_owned() };
    let kind = found.f_type;
    #[expect(clippy::unreadable_literal, reason = "as in statfs(2)")]
    let name = match kind {
        0x4d44 => "FAT",
        0x2011bab0 => "exFAT",
        0x01021997 => "9p",
        0x65735546 => "FUSE",
        0x6969 => "NFS",
        0xff534d42 | 0xfe534d42 => "SMB",
        0x01021994 => "tmpfs",
        0x794c7630 => "overlay",
        _ => return format!("kind {kind:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_system_that_has_all_of_it_is_taken_and_nothing_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        try_out(folder.path(), |from, to| fs::hard_link(from, to)).unwrap();
        assert_eq!(left(folder.path()), 0);
    }

    /// D46: as FAT says it, and others.
    #[test]
    fn one_without_hard_links_is_told_by_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        for errno in LACKING {
            let (what, error) = try_out(folder.path(), |_, _| Err(errno.into())).unwrap_err();
            assert_eq!((what, error.raw_os_error()), ("hard links", Some(errno.raw_os_error())));
        }
        assert_eq!(left(folder.path()), 0);
    }

    #[test]
    fn a_full_or_failing_disk_lacks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for errno in [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS, Errno::ACCESS] {
            try_out(folder.path(), |_, _| Err(errno.into())).unwrap();
        }
        try_out(&folder.path().join("gone"), |_, _| Ok(())).unwrap();
    }
}
