//! Directories that only their owner may look into.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Makes a data directory and its parents, for the owner only.
///
/// One that is there and lets others in is closed to them, with a line that says so, if it is empty or
/// holds the file `lock`, which marks it as a program's of ours. Anything else may be there for others
/// and is refused.
///
/// # Errors
/// `PermissionDenied` if others may look into it and it is not ours to close; what the system said.
pub fn private_dir(path: &Path, lock: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    if !is_ours(path, lock)? {
        let why = format!(
            "others may look into it (mode {mode:04o}) and it holds other files; give it mode 0700, \
             or name another directory"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    let shown = path.display();
    crate::tell!("{shown}: others could look into it (mode {mode:04o}); it is closed to them now");
    Ok(())
}

fn is_ours(path: &Path, lock: &str) -> io::Result<bool> {
    let mut is_empty = true;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name == lock {
            return Ok(true);
        }
        // What a new file system comes with.
        is_empty &= name == "lost+found";
    }
    Ok(is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn open(path: &Path) {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn what_is_ours_is_closed_and_what_is_not_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        private_dir(&new, "lock").unwrap();
        assert_eq!(mode(&new), 0o700);
        open(&new);
        private_dir(&new, "lock").unwrap();
        assert_eq!(mode(&new), 0o700, "it was empty");
        fs::create_dir(new.join("lost+found")).unwrap();
        fs::write(new.join("lock"), "").unwrap();
        fs::write(new.join("state.json"), "").unwrap();
        open(&new);
        private_dir(&new, "lock").unwrap();
        assert_eq!(mode(&new), 0o700, "it was ours");
        let others = dir.path().join("others");
        fs::create_dir(&others).unwrap();
        fs::write(others.join("letter"), "").unwrap();
        open(&others);
        let refused = private_dir(&others, "lock").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(refused.to_string().contains("mode 0755"), "{refused}");
        assert_eq!(mode(&others), 0o755, "nothing was done to it");
    }
}
