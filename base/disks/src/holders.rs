//! Who has a disk besides us, by name: mounts, swap, devices that stand on it, loop devices over it,
//! other processes.
//!
//! The kernel says only *busy*; an operator needs to know what to stop. What is found here is what
//! this process may see: without root, other users' processes stay hidden.

use crate::sysfs::{self, DeviceNumber};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most descriptors that are looked at: the look must end on a server with very many.
const DESCRIPTORS_MAX: usize = 1 << 18;
/// Most holders that a sentence names.
const NAMED_MAX: usize = 4;

/// Somebody who has a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Mounted.
    Mount {
        /// What is mounted: the disk or a part of it.
        device: String,
        /// Where.
        at: String,
        /// A process that sees it there, if this one does not.
        seen_by: Option<String>,
    },
    /// Swapped to.
    Swap {
        /// What is swapped to.
        device: String,
    },
    /// A device that stands on it.
    Device {
        /// Its name.
        name: String,
    },
    /// A loop device over it.
    Loop {
        /// Its name.
        name: String,
    },
    /// A loop device over the same bytes of the same file.
    Twin {
        /// Its name.
        name: String,
    },
    /// A process that has the file behind the loop device open, and may write it.
    Writer {
        /// Its name and number.
        name: String,
        /// The file.
        file: String,
    },
    /// A process that has it open.
    Process {
        /// Its name and number.
        name: String,
        /// Whether it may write.
        may_write: bool,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { device, at, seen_by: None } => {
                write!(formatter, "{device} is mounted at {at}")
            }
            Self::Mount { device, at, seen_by: Some(process) } => {
                write!(formatter, "{device} is mounted at {at}, as {process} sees it")
            }
            Self::Swap { device } => write!(formatter, "{device} is used as swap"),
            Self::Device { name } => write!(formatter, "{name} stands on it"),
            Self::Loop { name } => write!(formatter, "the loop device {name} stands on it"),
            Self::Twin { name } => {
                write!(formatter, "the loop device {name} is another name for the same bytes")
            }
            Self::Writer { name, file } => {
                write!(formatter, "{name} has {file}, which is behind it, open for writing")
            }
            Self::Process { name, may_write: true } => {
                write!(formatter, "{name} has it open for writing")
            }
            Self::Process { name, may_write: false } => write!(formatter, "{name} has it open"),
        }
    }
}

/// The holders in a sentence; none if there are none.
#[must_use]
pub fn sentence(holders: &BTreeSet<Holder>) -> Option<String> {
    if holders.is_empty() {
        return None;
    }
    let mut named: Vec<String> = holders.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if holders.len() > NAMED_MAX {
        named.push(format!("{} more", holders.len() - NAMED_MAX));
    }
    Some(named.join(", "))
}

/// Who has a disk; with `readers` also those who may only read it. Blocks.
#[must_use]
pub fn of(disk: &Metadata, readers: bool) -> BTreeSet<Holder> {
    if !disk.file_type().is_block_device() {
        return of_file(disk, readers);
    }
    let number = DeviceNumber::of(disk.rdev());
    let mut found = BTreeSet::new();
    let all = relatives(number);
    for (number, dir) in &all {
        found.extend(standing_on(*number, dir));
    }
    if let Some(dir) = sysfs::dir_of(number) {
        found.extend(beside(&dir));
    }
    let numbers: BTreeSet<DeviceNumber> = all.into_iter().map(|(number, _)| number).collect();
    let is_it = |open: &Open| {
        // Only device files are looked at: asking a dead network file system would never end.
        let is_device = open.link.starts_with("/dev/");
        is_device
            && std::fs::metadata(&open.fd).is_ok_and(|found| {
                found.file_type().is_block_device()
                    && numbers.contains(&DeviceNumber::of(found.rdev()))
            })
    };
    found.extend(processes(readers, is_it));
    found
}

/// Loop devices through which a file can be written, and what stands on them; blocks.
#[must_use]
pub fn loops_over(disk: &Metadata) -> BTreeSet<Holder> {
    let is_device = disk.file_type().is_block_device();
    let mut found = BTreeSet::new();
    for (dir, backing) in sysfs::loops() {
        let is_it = match backing.block {
            Some(number) => is_device && number == DeviceNumber::of(disk.rdev()),
            None => !is_device && (backing.device, backing.inode) == (disk.dev(), disk.ino()),
        };
        if !is_it || backing.is_read_only {
            continue;
        }
        found.insert(Holder::Loop { name: sysfs::device_name(&dir) });
        if let Some(number) = DeviceNumber::in_dir(&dir) {
            found.extend(standing_on(number, &dir));
        }
    }
    found
}

/// Who writes the bytes that a loop device, or a partition of one, stands on past it: other loop devices over
/// them, what stands on those, and processes that have the file open.
fn beside(dir: &Path) -> BTreeSet<Holder> {
    let mut found = BTreeSet::new();
    let Some(span) = sysfs::loop_span(dir) else { return found };
    let whole = if sysfs::is_partition(dir) { dir.parent().unwrap_or(dir) } else { dir };
    let mut below = None;
    for (other, backing) in sysfs::loops() {
        if other == whole {
            below = Some(backing);
            continue;
        }
        let is_twin = backing.whole(&other).overlaps(&span);
        let Some(number) = DeviceNumber::in_dir(&other).filter(|_| is_twin) else { continue };
        let standing = relatives(number);
        found.extend(standing.iter().flat_map(|(number, dir)| standing_on(*number, dir)));
        if !backing.is_read_only {
            found.insert(Holder::Twin { name: sysfs::device_name(&other) });
        }
    }
    let Some(backing) = below.filter(|backing| backing.block.is_none()) else { return found };
    let is_file = |found: &Metadata| (found.dev(), found.ino()) == (backing.device, backing.inode);
    let writers = processes(false, |open| {
        open.inode.is_none_or(|inode| inode == backing.inode)
            && std::fs::metadata(&open.fd).is_ok_and(|found| is_file(&found))
    });
    let file =
        backing.path.map_or_else(|| "the file".to_owned(), |path| path.display().to_string());
    found.extend(writers.into_iter().map(|writer| match writer {
        Holder::Process { name, .. } => Holder::Writer { name, file: file.clone() },
        other => other,
    }));
    found
}

fn of_file(disk: &Metadata, readers: bool) -> BTreeSet<Holder> {
    let mut found = loops_over(disk);
    found.extend(swaps().into_iter().filter_map(|path| {
        let is_it = is_same(&std::fs::metadata(&path).ok()?, disk);
        is_it.then(|| Holder::Swap { device: path.display().to_string() })
    }));
    found.extend(processes(readers, |open| {
        let may_be =
            open.inode.is_none_or(|inode| inode == disk.ino()) && open.link.starts_with('/');
        may_be && std::fs::metadata(&open.fd).is_ok_and(|found| is_same(&found, disk))
    }));
    found
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The device itself, a whole disk's partitions, a partition's whole disk; not its siblings.
fn relatives(number: DeviceNumber) -> Vec<(DeviceNumber, PathBuf)> {
    let Some(dir) = sysfs::dir_of(number) else { return Vec::new() };
    let mut all = vec![dir.clone()];
    if sysfs::is_partition(&dir) {
        all.extend(dir.parent().map(Path::to_path_buf));
    } else {
        all.extend(sysfs::partitions(&dir));
    }
    all.into_iter().filter_map(|dir| Some((DeviceNumber::in_dir(&dir)?, dir))).collect()
}

/// Mounts, swap and devices on one device.
fn standing_on(number: DeviceNumber, dir: &Path) -> BTreeSet<Holder> {
    let device = sysfs::device_name(dir);
    let mut found = mounts(number, &device);
    let is_swap = swaps().iter().any(|path| {
        std::fs::metadata(path).is_ok_and(|found| DeviceNumber::of(found.rdev()) == number)
    });
    if is_swap {
        found.insert(Holder::Swap { device: device.clone() });
    }
    let mut above: BTreeSet<String> =
        sysfs::holders(dir).iter().map(|dir| sysfs::device_name(dir)).collect();
    if let Ok(cache) = dir.join("bcache").canonicalize() {
        above.insert(format!("a cache ({})", cache.display()));
    }
    for (dir, backing) in sysfs::loops() {
        if backing.block == Some(number) && !backing.is_read_only {
            above.insert(sysfs::device_name(&dir));
        }
    }
    found.extend(above.into_iter().map(|name| Holder::Device { name }));
    found
}

/// Where a device is mounted, in every mount namespace that can be seen.
fn mounts(number: DeviceNumber, device: &str) -> BTreeSet<Holder> {
    let mut found = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    let own = std::fs::read_link("/proc/self/ns/mnt").ok();
    let mut look = |process: &str, seen_by: Option<String>| {
        let Ok(told) = std::fs::read_to_string(format!("/proc/{process}/mountinfo")) else {
            return;
        };
        for at in told.lines().filter_map(|line| mounted(line, number)) {
            let seen_by = seen_by.clone();
            found.insert(Holder::Mount { device: device.to_owned(), at, seen_by });
        }
    };
    look("self", None);
    namespaces.extend(own);
    for pid in pids() {
        let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if namespaces.insert(namespace) {
            look(&pid.to_string(), Some(process_name(pid)));
        }
    }
    // A mount that we see ourselves is there for others too.
    let own: BTreeSet<String> = found
        .iter()
        .filter_map(|holder| match holder {
            Holder::Mount { at, seen_by: None, .. } => Some(at.clone()),
            _ => None,
        })
        .collect();
    found.retain(
        |holder| !matches!(holder, Holder::Mount { at, seen_by: Some(_), .. } if own.contains(at)),
    );
    found
}

/// Where a line of `mountinfo` says that a device is mounted.
fn mounted(line: &str, number: DeviceNumber) -> Option<String> {
    let (mount, system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let is_number = DeviceNumber::parse(fields.nth(2)?) == Some(number);
    let at = fields.nth(1)?;
    // Some file systems have a number of their own; then the source tells.
    let source = system.split(' ').nth(1)?;
    let is_source = source.starts_with("/dev/")
        && std::fs::metadata(unescaped(source))
            .is_ok_and(|found| found.rdev() != 0 && DeviceNumber::of(found.rdev()) == number);
    (is_number || is_source).then(|| unescaped(at))
}

/// `mountinfo` and `swaps` write some characters as three octal digits.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4);
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// What is swapped to.
fn swaps() -> Vec<PathBuf> {
    let told = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let names = told.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names.map(|name| PathBuf::from(unescaped(name))).collect()
}

/// A descriptor of a process.
struct Open {
    fd: PathBuf,
    link: String,
    /// Its inode, where the kernel says.
    inode: Option<u64>,
}

/// The other processes with a descriptor or a shared writable mapping that `is_it`.
fn processes(readers: bool, is_it: impl Fn(&Open) -> bool) -> BTreeSet<Holder> {
    let mut found: BTreeSet<Holder> = BTreeSet::new();
    let mut looked_at = 0;
    let own = std::process::id();
    for pid in pids() {
        if pid == own {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            looked_at += 1;
            if looked_at > DESCRIPTORS_MAX {
                return found;
            }
            let Some((open, may_write)) = opened(pid, &descriptor.path()) else { continue };
            if (may_write || readers) && is_it(&open) {
                let name = process_name(pid);
                let writing = Holder::Process { name: name.clone(), may_write: true };
                if may_write {
                    found.remove(&Holder::Process { name, may_write: false });
                    found.insert(writing);
                } else if !found.contains(&writing) {
                    found.insert(Holder::Process { name, may_write });
                }
            }
        }
        let is_mapped = mappings(pid).any(|open| is_it(&open));
        if is_mapped {
            found.insert(Holder::Process { name: process_name(pid), may_write: true });
        }
    }
    found
}

fn opened(pid: u32, fd: &Path) -> Option<(Open, bool)> {
    let link = std::fs::read_link(fd).ok()?.to_string_lossy().into_owned();
    if !link.starts_with('/') {
        return None;
    }
    let number = fd.file_name()?.to_string_lossy().into_owned();
    let told = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let field = |name: &str| {
        told.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let flags = u32::from_str_radix(&field("flags:")?, 8).ok()?;
    let mode = flags & libc::O_ACCMODE.cast_unsigned();
    // Paths that only name a file hold nothing.
    if flags & libc::O_PATH.cast_unsigned() != 0 {
        return None;
    }
    let inode = field("ino:").and_then(|inode| inode.parse().ok());
    let may_write = mode != libc::O_RDONLY.cast_unsigned();
    Some((Open { fd: fd.to_owned(), link, inode }, may_write))
}

/// What a process has mapped so that it may write to the file.
fn mappings(pid: u32) -> impl Iterator<Item = Open> {
    let told = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let shared: Vec<Open> = told
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let range = fields.next()?;
            let rights = fields.next()?;
            if !(rights.contains('w') && rights.ends_with('s')) {
                return None;
            }
            let inode = fields.nth(2)?.parse().ok()?;
            let link = fields.next().filter(|path| path.starts_with('/'))?.to_owned();
            let fd = PathBuf::from(format!("/proc/{pid}/map_files/{range}"));
            Some(Open { fd, link, inode: Some(inode) })
        })
        .collect();
    shared.into_iter()
}

fn pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Name and number of a process.
#[must_use]
pub fn process_name(pid: u32) -> String {
    let name = sysfs::read(Path::new(&format!("/proc/{pid}/comm")));
    match name.as_deref() {
        Some("farshore-agent") => format!("another farshore-agent (process {pid})"),
        Some(name) => format!("{name} (process {pid})"),
        None => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_a_device_is_mounted() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let number = DeviceNumber { major: 98, minor: 0 };
        assert_eq!(mounted(line, number).as_deref(), Some("/mnt 2"));
        assert_eq!(mounted(line, DeviceNumber { major: 98, minor: 1 }), None);
        assert_eq!(mounted("nonsense", number), None);
        assert_eq!(unescaped("a\\134b\\"), "a\\b\\");
    }

    /// As the system shows a logical volume on a partition, an array on a disk, and a cache.
    #[test]
    fn names_what_stands_on_a_device() {
        let sys = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let dir = sys.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        std::fs::write(dir("dm-0/dm").join("name"), "vg-root\n").unwrap();
        dir("md127");
        for (below, above) in [("sda2", "dm-0"), ("sdb", "md127"), ("sdb", "dm-0")] {
            let link = dir(&format!("{below}/holders")).join(above);
            std::os::unix::fs::symlink(sys.path().join(above), link).unwrap();
        }
        // A number that no device has: nothing else is found.
        let number = DeviceNumber { major: 4095, minor: 77 };
        let named = |name: &str| sentence(&standing_on(number, &sys.path().join(name)));
        assert_eq!(named("sda2").as_deref(), Some("/dev/mapper/vg-root stands on it"));
        let both = "/dev/mapper/vg-root stands on it, /dev/md127 stands on it";
        assert_eq!(named("sdb").as_deref(), Some(both));
        assert_eq!(named("dm-0"), None);
        std::os::unix::fs::symlink(dir("bcache0"), sys.path().join("dm-0/bcache")).unwrap();
        assert!(named("dm-0").unwrap().contains("a cache ("));
    }

    #[test]
    fn names_a_process_that_has_a_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let found = || sentence(&of(&path.metadata().unwrap(), false));
        assert_eq!(found(), None);
        let text = path.to_str().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "exec 3<>\"$0\"; echo; read x", text])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let told = found().unwrap();
        assert!(told.contains("has it open for writing"), "{told}");
        assert!(told.contains(&format!("(process {})", child.id())), "{told}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(found(), None);
    }
}
