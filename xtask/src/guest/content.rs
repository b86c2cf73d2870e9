//! Files for the guest's root: this machine's own, so that what is copied, deduplicated and
//! compressed is what servers really hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MIB: u64 = 1 << 20;
/// Where from, and how much at most.
const FOLDERS: [(&str, u64); 3] =
    [("/usr/bin", 50 * MIB), ("/usr/lib/x86_64-linux-gnu", 60 * MIB), ("/usr/share", 50 * MIB)];
/// What lies on the disk twice, as two releases of an application do.
const RELEASE: (&str, u64) = ("/usr/share", 30 * MIB);
/// A single huge file would push everything else out.
const FILE_BYTES_MAX: u64 = 12 * MIB;

/// Copies files below `tree` and returns how many bytes they hold.
///
/// # Errors
/// If `tree` cannot be written. What cannot be read here is left out.
pub(crate) fn fill(tree: &Path) -> Result<u64> {
    let mut bytes = 0;
    for (from, limit) in FOLDERS {
        bytes += copy(Path::new(from), &tree.join(from.trim_start_matches('/')), limit)?;
    }
    for release in ["srv/app/releases/1", "srv/app/releases/2"] {
        bytes += copy(Path::new(RELEASE.0), &tree.join(release), RELEASE.1)?;
    }
    Ok(bytes)
}

/// Copies regular files in path order until `limit` bytes are reached.
fn copy(from: &Path, to: &Path, limit: u64) -> Result<u64> {
    let mut bytes = 0;
    for path in sorted(from) {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let target = to.join(path.file_name().unwrap_or_default());
        let rest = limit.saturating_sub(bytes);
        if metadata.is_dir() && rest > 0 {
            bytes += copy(&path, &target, rest)?;
        } else if metadata.is_file() && metadata.len() <= rest.min(FILE_BYTES_MAX) {
            let Ok(content) = fs::read(&path) else { continue };
            fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
            fs::write(&target, content).with_context(|| format!("write {}", target.display()))?;
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
