//! What the system tells of block devices, in `/sys`.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Longest name taken from the system.
const NAME_CHARS_MAX: usize = 256;

/// Number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// From a number as `stat` tells it.
    #[must_use]
    pub fn of(device: u64) -> Self {
        Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    }

    /// From `MAJOR:MINOR`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Of the device whose directory this is.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Option<Self> {
        Self::parse(&read(&dir.join("dev"))?)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// The directory of a device, without links in its path.
#[must_use]
pub fn dir_of(number: DeviceNumber) -> Option<PathBuf> {
    std::fs::canonicalize(format!("/sys/dev/block/{number}")).ok()
}

/// What a file of one line says; none if it is absent or empty.
#[must_use]
pub fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let plain: String =
        text.trim().chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
    (!plain.is_empty()).then_some(plain)
}

/// The number that a file of one line says.
#[must_use]
pub fn read_number(path: &Path) -> Option<u64> {
    read(path)?.parse().ok()
}

/// Whether the device with this directory is a part of another.
#[must_use]
pub fn is_partition(dir: &Path) -> bool {
    dir.join("partition").exists()
}

/// The device's name in `/dev`.
#[must_use]
pub fn device_name(dir: &Path) -> String {
    let kernel = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match read(&dir.join("dm/name")) {
        Some(name) => format!("/dev/mapper/{name}"),
        None => format!("/dev/{}", kernel.replace('!', "/")),
    }
}

/// Directories of the partitions of a whole device.
#[must_use]
pub fn partitions(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|entry| is_partition(entry)).collect()
}

/// Directories of the devices that stand on this one.
#[must_use]
pub fn holders(dir: &Path) -> Vec<PathBuf> {
    links(&dir.join("holders"))
}

/// Directories of the devices that this one stands on.
#[must_use]
pub fn slaves(dir: &Path) -> Vec<PathBuf> {
    links(&dir.join("slaves"))
}

fn links(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter_map(|entry| entry.canonicalize().ok()).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The name that a partition table gives a partition.
#[must_use]
pub fn part_uuid(dir: &Path, number: DeviceNumber) -> Option<String> {
    let told = std::fs::read_to_string(dir.join("uevent")).ok()?;
    if let Some(uuid) = told.lines().find_map(|line| line.strip_prefix("PARTUUID=")) {
        return Some(uuid.to_ascii_lowercase());
    }
    let found = entries(Path::new("/dev/disk/by-partuuid")).into_iter().find(|link| {
        use std::os::unix::fs::MetadataExt;
        link.metadata().is_ok_and(|found| DeviceNumber::of(found.rdev()) == number)
    });
    Some(found?.file_name()?.to_string_lossy().to_ascii_lowercase())
}

/// What a loop device stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Device of the file system that the file lies on.
    pub device: u64,
    /// The file's inode there.
    pub inode: u64,
    /// The device itself, if it is one.
    pub block: Option<DeviceNumber>,
    /// Bytes of it that come before the loop device's first.
    pub offset: u64,
    /// Whether nothing can be written through it.
    pub is_read_only: bool,
    /// Path of the file, where it was attached.
    pub path: Option<PathBuf>,
}

/// What the loop device with this directory stands on; none if it is none, or none is attached.
#[must_use]
pub fn loop_backing(dir: &Path) -> Option<Backing> {
    let told = dir.join("loop");
    if !told.exists() {
        return None;
    }
    let path = std::fs::read_to_string(told.join("backing_file"))
        .ok()
        .map(|path| PathBuf::from(path.trim_end_matches('\n')));
    let is_read_only = read(&dir.join("ro")).is_some_and(|ro| ro == "1");
    if let Some(found) = loop_status(dir) {
        let block = DeviceNumber::of(found.lo_rdevice);
        return Some(Backing {
            device: found.lo_device,
            inode: found.lo_inode,
            block: (found.lo_rdevice != 0).then_some(block),
            offset: found.lo_offset,
            is_read_only,
            path,
        });
    }
    // Without the right to ask the device there is still the path.
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let found = path.as_ref()?.metadata().ok()?;
    let is_device = found.file_type().is_block_device();
    Some(Backing {
        device: found.dev(),
        inode: found.ino(),
        block: is_device.then(|| DeviceNumber::of(found.rdev())),
        offset: read_number(&told.join("offset")).unwrap_or_default(),
        is_read_only,
        path,
    })
}

/// Bytes of a file or device that another device stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The device that they are of, if it is one.
    block: Option<DeviceNumber>,
    /// Else the file: device of its file system, and inode.
    file: (u64, u64),
    /// Where they lie in it.
    bytes: Range<u64>,
}

impl Span {
    /// Whether both have a byte in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_one = match (self.block, other.block) {
            (Some(one), Some(other)) => one == other,
            (None, None) => self.file == other.file,
            _ => false,
        };
        is_one && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}

impl Backing {
    /// Where these bytes of the loop device lie below it.
    fn span(&self, bytes: Range<u64>) -> Span {
        let below = |at: u64| self.offset.saturating_add(at);
        let bytes = below(bytes.start)..below(bytes.end);
        Span { block: self.block, file: (self.device, self.inode), bytes }
    }

    /// All that the loop device with this directory has below it.
    #[must_use]
    pub fn whole(&self, dir: &Path) -> Span {
        let sectors = read_number(&dir.join("size")).unwrap_or_default();
        self.span(0..sectors.saturating_mul(512))
    }
}

/// What bytes the loop device with this directory, or the partition of one, stands on; none if it is none.
#[must_use]
pub fn loop_span(dir: &Path) -> Option<Span> {
    let sectors = |name: &str| read_number(&dir.join(name)).unwrap_or_default().saturating_mul(512);
    let (whole, start) = match is_partition(dir) {
        true => (dir.parent()?, sectors("start")),
        false => (dir, 0),
    };
    let bytes = start..start.saturating_add(sectors("size"));
    Some(loop_backing(whole)?.span(bytes))
}

/// Every loop device that something is attached to, with its directory.
#[must_use]
pub fn loops() -> Vec<(PathBuf, Backing)> {
    let all = entries(Path::new("/sys/block")).into_iter();
    let loops = all.filter(|dir| {
        dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("loop"))
    });
    loops.filter_map(|dir| Some((dir.canonicalize().ok()?, loop_backing(&dir)?))).collect()
}

/// `struct loop_info64` of the kernel.
#[repr(C)]
struct LoopInfo {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    rest: [u8; 200],
}

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;

fn loop_status(dir: &Path) -> Option<LoopInfo> {
    let device = File::open(Path::new("/dev").join(dir.file_name()?)).ok()?;
    let is_it = device.metadata().ok().map(|found| {
        use std::os::unix::fs::MetadataExt;
        DeviceNumber::of(found.rdev())
    });
    if is_it != DeviceNumber::in_dir(dir) {
        return None;
    }
    let mut info =
        LoopInfo { lo_device: 0, lo_inode: 0, lo_rdevice: 0, lo_offset: 0, rest: [0; 200] };
    // SAFETY: the device is open, and the kernel fills 232 bytes, the size of `LoopInfo`.
    let told = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    (told == 0).then_some(info)
}

const _: () = assert!(size_of::<LoopInfo>() == 232, "as the kernel has it");
