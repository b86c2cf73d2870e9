//! The folder of one run of the demo, removed when it ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::repo;

/// Lines printed of each log when something failed.
const TAIL_LINES: usize = 25;
/// Name of a run's folder, before the number of its process.
const PREFIX: &str = "run-";

/// A folder with disk, vault and logs.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    is_kept: bool,
}

impl RunFolder {
    /// Creates `wanted`, or a folder below target/demo: not /tmp, which may lack `O_DIRECT` or room.
    /// Removes what an interrupted run left behind.
    ///
    /// # Errors
    /// If it exists or cannot be created.
    pub(crate) fn create(wanted: Option<&Path>, is_kept: bool) -> Result<Self> {
        let demo = repo::target().join("demo");
        sweep(&demo);
        let path = wanted.map_or_else(
            || demo.join(format!("{PREFIX}{}", std::process::id())),
            Path::to_path_buf,
        );
        ensure!(!path.exists(), "{} exists already; name another folder", path.display());
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let path = path.canonicalize().context("resolve the folder")?;
        Ok(Self { path, is_kept })
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Prints the end of every log, for whoever must find out what went wrong.
    pub(crate) fn print_logs(&self) {
        for log in logs(&self.path) {
            let bytes = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} ({} lines)", log.display(), lines.len());
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.is_kept {
            println!("kept {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes folders of runs whose process is gone.
fn sweep(demo: &Path) {
    for entry in fs::read_dir(demo).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_gone = number.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if is_gone && let Err(error) = fs::remove_dir_all(entry.path()) {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

fn logs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(logs(&path));
        } else if path.extension().is_some_and(|ending| ending == "log") {
            found.push(path);
        }
    }
    found.sort();
    found
}
