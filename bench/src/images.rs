//! Two disk images of similar servers, made of this machine's own files.
//!
//! `a.img` is an ext4 file system with programs, libraries and documents. `b.img` has most of the same
//! files, in other places of the disk, and some of its own: as two machines of one distribution.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where files are taken from, until the image is full enough.
const FROM: [&str; 5] =
    ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib/python3", "/usr/sbin"];
/// Full enough: so many hundredths of the image's size.
const FULL: u64 = 85;
/// Every so many files are in one of the images only.
const OWN_EVERY: usize = 40;
/// Larger files would make the image one of few files.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Makes both in `to`.
///
/// # Errors
/// If files cannot be read or written, or mke2fs fails.
pub(crate) fn make(to: &Path, mib: u64) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let files = pick((mib << 20) / 100 * FULL)?;
    println!("{} files", files.len());
    for (name, is_first) in [("a", true), ("b", false)] {
        let staging = tempfile::tempdir_in(to)?;
        for (number, file) in files.iter().enumerate() {
            let is_own = number % OWN_EVERY < 2;
            if is_own && (number % OWN_EVERY == 0) != is_first {
                continue;
            }
            let path = file.strip_prefix("/").context("an absolute path")?;
            let target = if is_first { path.to_owned() } else { shuffled(path) };
            let target = staging.path().join(target);
            fs::create_dir_all(target.parent().context("a folder")?)?;
            fs::copy(file, &target).with_context(|| format!("copy {}", file.display()))?;
        }
        let image = to.join(format!("{name}.img"));
        let status = Command::new("mke2fs")
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH")?))
            .args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
            .arg(staging.path())
            .arg(&image)
            .arg(format!("{mib}M"))
            .status()
            .context("run mke2fs")?;
        ensure!(status.success(), "mke2fs ended with {status}");
        println!("{}", image.display());
    }
    Ok(())
}

/// Another name of the first folder moves files to other places of the disk.
fn shuffled(path: &Path) -> PathBuf {
    let mut parts = path.iter();
    let first = parts.next().unwrap_or_default();
    let second = parts.next().unwrap_or_default();
    let letter = second.to_string_lossy().chars().rev().collect::<String>();
    Path::new(first).join(letter).join(parts.as_path())
}

fn pick(bytes: u64) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut taken = 0;
    for folder in FROM {
        // Each gives its share, so that it is not all programs.
        let share = bytes / FROM.len() as u64;
        let end = taken + share;
        walk(Path::new(folder), end, &mut taken, &mut found)?;
    }
    for folder in FROM {
        if taken < bytes {
            walk(Path::new(folder), bytes, &mut taken, &mut found)?;
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(folder: &Path, end: u64, taken: &mut u64, found: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if *taken >= end {
            return Ok(());
        }
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            walk(&path, end, taken, found)?;
        } else if kind.is_file()
            && entry.metadata()?.len() <= FILE_BYTES_MAX
            && !found.contains(&path)
        {
            *taken += entry.metadata()?.len();
            found.push(path);
        }
    }
    Ok(())
}
