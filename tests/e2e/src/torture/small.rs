//! A small file system of its own for one process's folder, which can be filled and freed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

const BALLAST: &str = "ballast";
/// Pieces in which the last free bytes are taken.
const CRUMB_BYTES: u64 = 64 << 10;

/// Name of the file that says which process a run's folder belongs to.
const OWNER: &str = "owner.pid";

/// Notes that a folder is this process's, and takes down what runs that were killed left mounted
/// beside it.
pub(super) fn claim(folder: &Path, prefix: &str) -> Result<()> {
    fs::write(folder.join(OWNER), std::process::id().to_string()).context("note the owner")?;
    let mounts = fs::read_to_string("/proc/mounts").context("read the mounts")?;
    let parent = folder.parent().context("a folder in a folder")?.join(prefix);
    let parent = parent.display().to_string();
    let left = mounts.lines().filter_map(|line| line.split_whitespace().nth(1));
    for at in left.filter(|at| at.starts_with(&parent)) {
        let run = at[parent.len()..].split('/').next().unwrap_or_default();
        let owner = fs::read_to_string(Path::new(&format!("{parent}{run}")).join(OWNER));
        let is_alive = owner.is_ok_and(|pid| Path::new("/proc").join(pid.trim()).exists());
        if !is_alive {
            println!("torture: unmounting what a run that was killed left at {at}");
            SmallDisk { at: PathBuf::from(at), is_mounted: true }.unmount();
        }
    }
    Ok(())
}

/// An ext4 file system in a file, mounted through a loop device.
#[derive(Debug)]
pub(super) struct SmallDisk {
    at: PathBuf,
    is_mounted: bool,
}

impl SmallDisk {
    /// Makes the file `image` of `bytes`, which takes no more space than is used in it, and mounts
    /// what is in it.
    pub(super) fn mount(image: &Path, at: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
        let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(bytes)?;
        // No blocks kept for root: what runs here may be root.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))
            .context("this needs root and a loop device")?;
        let disk = Self { at: at.to_path_buf(), is_mounted: true };
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).context("make it private")?;
        Ok(disk)
    }

    /// Takes all space that is left.
    pub(super) fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.at.join(BALLAST)).context("create the ballast")?;
        let mut end = 0;
        let mut piece = u64::MAX;
        // What is asked for beyond what there is gives nothing at all: smaller and smaller pieces.
        while piece >= CRUMB_BYTES {
            let free = free_bytes(&self.at)?;
            piece = piece.min(free);
            if piece < CRUMB_BYTES {
                break;
            }
            match fallocate(&ballast, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(_) => piece /= 2,
            }
        }
        let crumb = vec![1; usize::try_from(CRUMB_BYTES)?];
        std::io::Seek::seek(&mut ballast, std::io::SeekFrom::Start(end))?;
        while ballast.write(&crumb).is_ok_and(|written| written > 0) {}
        Ok(())
    }

    /// Gives the space back.
    pub(super) fn free(&self) -> Result<()> {
        fs::remove_file(self.at.join(BALLAST)).context("remove the ballast")
    }

    /// Unmounts; whoever still has a file open keeps it.
    pub(super) fn unmount(&mut self) {
        if !std::mem::take(&mut self.is_mounted) {
            return;
        }
        let ended = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.at.display());
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn free_bytes(at: &Path) -> Result<u64> {
    let room = statvfs(at).with_context(|| format!("measure {}", at.display()))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// Runs a command of the system to its end, which must be a good one.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let program = command.get_program().to_owned();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", program.display(), output.status, said.trim());
    Ok(())
}
