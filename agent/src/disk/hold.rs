//! Holding a disk: against another capture of it, in this agent or another, and against other writers.
//!
//! What the system offers differs. A block device is opened exclusively, which the kernel enforces
//! against everybody who asks for it alone: mounts, swap, arrays, other agents. A file has only locks
//! that others heed if they look: `flock`, and the locks that QEMU takes on an image. Who does not look
//! is noticed by [`super::watch`].

use farshore_disks::holders::{self, Holder};
use farshore_disks::sysfs::{self, DeviceNumber, Span};
use farshore_proto::bugs::{Bug, is_on};
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that bytes lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ground {
    Device(DeviceNumber),
    File { device: u64, inode: u64 },
}

/// A disk that this agent captures.
#[derive(Debug, Clone)]
struct Captured {
    ground: Ground,
    /// Everything that it stands on.
    below: BTreeSet<Ground>,
    /// The bytes below it, if it is a loop device or a part of one: there may be several over one file.
    span: Option<Span>,
    path: PathBuf,
}

/// The disks of this process.
static CAPTURED: Mutex<Table> = Mutex::new(Table { next: 0, disks: BTreeMap::new() });

struct Table {
    next: u64,
    disks: BTreeMap<u64, Captured>,
}

fn lock() -> MutexGuard<'static, Table> {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The word that a disk is captured by this agent; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    number: u64,
}

impl Claim {
    /// Claims a disk for one capture, or tells the path of the capture that has it.
    pub(super) fn take(disk: &Metadata, path: &Path) -> Result<Self, PathBuf> {
        let ground = Ground::of(disk);
        let mut below = BTreeSet::new();
        ground.collect_below(&mut below);
        let span = ground.span();
        let mut table = lock();
        let other = table.disks.values().find(|other| {
            if is_on(Bug::SecondNameIsServed) {
                return other.path == path;
            }
            let is_twin = span.as_ref().zip(other.span.as_ref());
            other.ground == ground
                || other.below.contains(&ground)
                || below.contains(&other.ground)
                || is_twin.is_some_and(|(one, other)| one.overlaps(other))
        });
        if let Some(other) = other {
            return Err(other.path.clone());
        }
        let number = table.next;
        table.next += 1;
        table.disks.insert(number, Captured { ground, below, span, path: path.to_owned() });
        Ok(Self { number })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock().disks.remove(&self.number);
    }
}

impl Ground {
    fn of(disk: &Metadata) -> Self {
        if disk.file_type().is_block_device() {
            return Self::Device(DeviceNumber::of(disk.rdev()));
        }
        Self::File { device: disk.dev(), inode: disk.ino() }
    }

    fn span(self) -> Option<Span> {
        let Self::Device(number) = self else { return None };
        sysfs::loop_span(&sysfs::dir_of(number)?)
    }

    /// The disk of a partition, what a mapping or an array stands on, the file behind a loop device,
    /// and what those stand on.
    fn collect_below(self, below: &mut BTreeSet<Self>) {
        let Self::Device(number) = self else { return };
        let Some(dir) = sysfs::dir_of(number) else { return };
        for ground in Self::right_below(&dir) {
            if below.insert(ground) {
                ground.collect_below(below);
            }
        }
    }

    /// What the device with this directory stands on itself.
    fn right_below(dir: &Path) -> Vec<Self> {
        let devices = sysfs::slaves(dir).into_iter();
        let whole = sysfs::is_partition(dir).then(|| dir.parent().map(Path::to_path_buf)).flatten();
        let numbers = devices.chain(whole).filter_map(|dir| DeviceNumber::in_dir(&dir));
        let mut below: Vec<Self> = numbers.map(Self::Device).collect();
        if let Some(backing) = sysfs::loop_backing(dir) {
            below.push(match backing.block {
                Some(number) => Self::Device(number),
                None => Self::File { device: backing.device, inode: backing.inode },
            });
        }
        below
    }
}

/// The command that chooses the signal of a lease; the same on every architecture that we build for.
const F_SETSIG: libc::c_int = 10;

/// Whether anybody has a file open so that it may write to it, asked of the kernel at one moment. None
/// where it does not say. `probe` is open for reading only.
pub(super) fn has_writer(probe: &File) -> Option<bool> {
    // A lease for reading is granted only if nobody has the file open for writing, mappings and loop
    // devices included. It is given back at once; the signal of one that is broken must not end us.
    let fd = probe.as_raw_fd();
    // SAFETY: the descriptor is open, and these commands take a number.
    let lease = |command, argument: libc::c_int| unsafe { libc::fcntl(fd, command, argument) };
    if lease(F_SETSIG, libc::SIGURG) != 0 {
        return None;
    }
    if lease(libc::F_SETLEASE, libc::F_RDLCK) == 0 {
        lease(libc::F_SETLEASE, libc::F_UNLCK);
        return Some(false);
    }
    let is_held = io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    is_held.then_some(true)
}

/// Where QEMU keeps its locks on an image: a byte for each thing that it does, a byte for each thing
/// that it lets nobody else do.
const DOES: i64 = 100;
const REFUSES: i64 = 200;
/// In both: reads, writes, writes what is there already, resizes.
const READS: i64 = 0;
const WRITES: i64 = 1;
const RESIZES: i64 = 3;
/// A byte that only agents lock: this disk is captured, if only by scans.
const AGENTS: i64 = i64::MAX - 1;

fn byte(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

/// Whether another open file has a lock on a byte.
fn is_locked(file: &File, at: i64) -> bool {
    let mut asked = byte(libc::F_WRLCK, at);
    let told = fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked));
    told.is_ok() && i32::from(asked.l_type) != libc::F_UNLCK
}

fn share_lock(file: &File, at: i64) -> bool {
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte(libc::F_RDLCK, at))).is_ok()
}

/// Whether another agent has marked the disk as captured.
pub(super) fn is_captured(file: &File) -> bool {
    is_locked(file, AGENTS)
}

/// Marks a disk as captured by an agent; false if another one has marked it.
pub(super) fn mark_captured(file: &File) -> bool {
    // Locks that exclude each other need the right to write. As two may lock at the same moment, each
    // looks after it has locked; at worst both step back, and try again later.
    share_lock(file, AGENTS);
    if !is_captured(file) {
        return true;
    }
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&byte(libc::F_UNLCK, AGENTS)));
    false
}

/// Locks a file against writers that heed locks; what has it if that fails.
pub(super) fn lock_file(file: &File) -> Result<(), &'static str> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err("another program has locked it (flock)"),
        Err(TryLockError::Error(error)) => {
            tracing::warn!(%error, "its file system has no locks: other programs are not kept out");
            return Ok(());
        }
    }
    let is_taken = (READS..=RESIZES).any(|what| {
        let is_ours = [READS, WRITES, RESIZES].contains(&what);
        (is_ours && is_locked(file, REFUSES + what))
            || (what != READS && is_locked(file, DOES + what))
    });
    if is_taken {
        return Err("a virtual machine or an image tool has locked it (as QEMU does)");
    }
    for what in [READS, WRITES, RESIZES] {
        share_lock(file, DOES + what);
    }
    for what in WRITES..=RESIZES {
        share_lock(file, REFUSES + what);
    }
    Ok(())
}

/// Who has a disk that could not be had alone, in a sentence.
pub(super) fn who(disk: &Metadata, readers: bool, otherwise: &str) -> String {
    holders::sentence(&holders::of(disk, readers)).unwrap_or_else(|| otherwise.to_owned())
}

/// Whether one of the holders may write.
pub(super) fn writers(disk: &Metadata) -> Option<String> {
    let mut found: BTreeSet<Holder> = holders::of(disk, false);
    found.extend(holders::loops_over(disk));
    holders::sentence(&found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D14: a lock belongs to an open file, so two of them stand for two agents.
    #[test]
    fn two_agents_do_not_capture_one_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (one, other) = (open(), open());
        assert!(mark_captured(&one));
        assert!(!mark_captured(&other));
        drop(one);
        assert!(mark_captured(&other));
    }

    /// D14: as the system shows a logical volume on a partition of a disk.
    #[test]
    fn a_partition_stands_on_its_disk_and_a_mapping_on_its_devices() {
        let sys = tempfile::tempdir().unwrap();
        for (name, number) in [("sda", "8:0"), ("sda/sda2", "8:2"), ("dm-0", "253:0")] {
            std::fs::create_dir_all(sys.path().join(name)).unwrap();
            std::fs::write(sys.path().join(name).join("dev"), format!("{number}\n")).unwrap();
        }
        std::fs::write(sys.path().join("sda/sda2/partition"), "2\n").unwrap();
        std::fs::create_dir(sys.path().join("dm-0/slaves")).unwrap();
        let part = sys.path().join("sda/sda2");
        std::os::unix::fs::symlink(&part, sys.path().join("dm-0/slaves/sda2")).unwrap();
        let below = |name: &str| Ground::right_below(&sys.path().join(name));
        let device = |minor| Ground::Device(DeviceNumber { major: 8, minor });
        assert_eq!(below("dm-0"), [device(2)]);
        assert_eq!(below("sda/sda2"), [device(0)]);
        assert_eq!(below("sda"), []);
    }

    /// D12: QEMU looks for these locks, and we for its.
    #[test]
    fn a_file_is_locked_for_one_writer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (one, other) = (open(), open());
        lock_file(&one).unwrap();
        assert!(lock_file(&other).unwrap_err().contains("flock"));
        for what in [WRITES, RESIZES] {
            assert!(is_locked(&other, DOES + what) && is_locked(&other, REFUSES + what));
        }
        assert!(!is_locked(&other, REFUSES + READS), "it may be read");
        drop(one);
        // As QEMU does for an image that it writes.
        share_lock(&other, DOES + WRITES);
        assert!(lock_file(&open()).unwrap_err().contains("QEMU"));
    }
}
