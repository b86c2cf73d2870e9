//! What a disk is, whatever it is called: names come and go, and a letter may lead to another disk.
//!
//! A file is its inode together with the time it was made: the number of its file system's device may
//! change between two boots, those two do not. A block device is what the system knows of it: the
//! name that its maker gave it, its serial number, its mapping, the file behind a loop device; for a
//! partition also its place on its disk. Where there is nothing of that kind, the place where it is
//! plugged in has to do.

use farshore_disks::sysfs::{self, DeviceNumber};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Which file a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device of the file system; it may have another number after a boot.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// When it was made, in nanoseconds, where the file system keeps that.
    #[serde(default)]
    pub born_ns: Option<u64>,
}

/// Which block device a disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// What names it, the strongest first.
    pub names: Vec<Name>,
    /// For a partition: its first sector and how many it has.
    #[serde(default)]
    pub part: Option<Part>,
}

/// One thing that names a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Of which kind.
    pub kind: NameKind,
    /// The name.
    pub value: String,
}

/// Kinds of names, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// The device mapper's: a logical volume, a multipath, an opened crypt.
    Mapping,
    /// The array that it is.
    Array,
    /// The file behind a loop device, and where in it.
    Loop,
    /// World-wide, from its maker.
    Wwid,
    /// From its maker.
    Serial,
    /// Where it is plugged in.
    Slot,
}

/// Where a partition lies on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// First sector of 512 bytes.
    pub start: u64,
    /// Its number of sectors when it was looked at; a partition may grow.
    #[serde(default)]
    pub uuid: Option<String>,
}

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// A file.
    File(FileIdentity),
    /// A block device.
    Device(DeviceIdentity),
}

/// How far two identities are of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// One disk.
    Same,
    /// Perhaps: nothing tells them apart, and nothing says that they are one.
    Unsure,
    /// Two disks.
    Other,
}

impl Identity {
    /// A file of which only these numbers are known.
    #[must_use]
    pub fn file(device: u64, inode: u64) -> Self {
        Self::File(FileIdentity { device, inode, born_ns: None })
    }

    /// What an open file or device is; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(file: &File) -> std::io::Result<Self> {
        Ok(Self::of_metadata(&file.metadata()?))
    }

    /// What a file or device with this metadata is; blocks.
    #[must_use]
    pub fn of_metadata(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            return Self::Device(device(DeviceNumber::of(metadata.rdev())));
        }
        Self::File(file_identity(metadata))
    }

    /// How far `other` is the same disk.
    #[must_use]
    pub fn likeness(&self, other: &Self) -> Likeness {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one.likeness(other),
            (Self::Device(one), Self::Device(other)) => one.likeness(other),
            _ => Likeness::Other,
        }
    }

    /// A name for the disk that is the same wherever one asks, and whether it holds on every server;
    /// others hold on this one, for as long as it is up.
    #[must_use]
    pub fn key(&self) -> (String, bool) {
        match self {
            Self::File(file) => (format!("file {}:{}", file.device, file.inode), false),
            Self::Device(device) => {
                let Some(name) = device.names.first() else { return (String::new(), false) };
                let wwid = device.names.iter().find(|name| name.is_world_wide());
                let key = wwid.unwrap_or(name).to_string();
                let is_world_wide = wwid.is_some();
                match &device.part {
                    Some(part) => (format!("{key}#{}", part.start), is_world_wide),
                    None => (key, is_world_wide),
                }
            }
        }
    }
}

impl FileIdentity {
    fn likeness(&self, other: &Self) -> Likeness {
        match (self.inode == other.inode, self.born_ns, other.born_ns) {
            (false, _, _) => Likeness::Other,
            (true, Some(one), Some(two)) if one == two => Likeness::Same,
            (true, Some(_), Some(_)) => Likeness::Other,
            _ if self.device == other.device => Likeness::Same,
            // After a boot the file system may have another number.
            _ => Likeness::Unsure,
        }
    }
}

impl DeviceIdentity {
    fn likeness(&self, other: &Self) -> Likeness {
        let part = |device: &Self| device.part.as_ref().map(|part| part.start);
        let uuid = |device: &Self| device.part.as_ref().and_then(|part| part.uuid.clone());
        let is_renamed = matches!((uuid(self), uuid(other)), (Some(one), Some(two)) if one != two);
        if part(self) != part(other) || is_renamed {
            return Likeness::Other;
        }
        let pairs = self.names.iter().filter_map(|name| {
            let same_kind = |found: &&Name| found.kind == name.kind;
            other.names.iter().find(same_kind).map(|found| (name, found))
        });
        let mut likeness = Likeness::Unsure;
        for (one, two) in pairs {
            // Where it is plugged in tells only if nothing else does.
            if one.kind == NameKind::Slot && likeness == Likeness::Same {
                break;
            }
            if one.value != two.value {
                return Likeness::Other;
            }
            likeness = Likeness::Same;
        }
        likeness
    }
}

impl Name {
    /// Whether no two disks in the world should have it; emulated disks share what looks like one.
    fn is_world_wide(&self) -> bool {
        let registered = ["naa.", "eui.", "uuid."];
        self.kind == NameKind::Wwid && registered.iter().any(|begin| self.value.starts_with(begin))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NameKind::Mapping => "mapping",
            NameKind::Array => "array",
            NameKind::Loop => "loop device over",
            NameKind::Wwid => "wwid",
            NameKind::Serial => "serial number",
            NameKind::Slot => "device at",
        };
        write!(formatter, "{kind} {}", self.value)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(formatter, "the file with inode {}", file.inode)?,
            Self::Device(device) => {
                match device.names.first() {
                    Some(name) => write!(formatter, "{name}")?,
                    None => write!(formatter, "a device without a name")?,
                }
                if let Some(part) = &device.part {
                    write!(formatter, ", partition at sector {}", part.start)?;
                }
            }
        }
        Ok(())
    }
}

fn file_identity(metadata: &Metadata) -> FileIdentity {
    let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
    FileIdentity { device: metadata.dev(), inode: metadata.ino(), born_ns }
}

fn device(number: DeviceNumber) -> DeviceIdentity {
    let Some(dir) = sysfs::dir_of(number) else { return DeviceIdentity::default() };
    let Some(start) = sysfs::read_number(&dir.join("start")).filter(|_| sysfs::is_partition(&dir))
    else {
        return DeviceIdentity { names: names(&dir), part: None };
    };
    let names = dir.parent().map(names).unwrap_or_default();
    let uuid = sysfs::part_uuid(&dir, number);
    DeviceIdentity { names, part: Some(Part { start, uuid }) }
}

/// What names a whole device, the strongest first.
fn names(dir: &Path) -> Vec<Name> {
    let read = |kind, files: &[&str]| {
        let found = files.iter().find_map(|file| sysfs::read(&dir.join(file)))?;
        Some(Name { kind, value: found })
    };
    let mut names: Vec<Name> = [
        // One that was made by hand has no uuid.
        read(NameKind::Mapping, &["dm/uuid", "dm/name"]),
        read(NameKind::Array, &["md/uuid"]).or_else(|| by_id(dir, NameKind::Array, "md-uuid-")),
        loop_name(dir),
        read(NameKind::Wwid, &["wwid", "device/wwid"])
            .or_else(|| by_id(dir, NameKind::Wwid, "wwn-")),
        read(NameKind::Serial, &["serial", "device/serial"]),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Loop devices, mappings and arrays are plugged in nowhere: their letter says nothing.
    let is_virtual = dir.starts_with("/sys/devices/virtual");
    if let Ok(slot) = dir.strip_prefix("/sys/devices")
        && !is_virtual
    {
        names.push(Name { kind: NameKind::Slot, value: slot.display().to_string() });
    }
    names
}

fn loop_name(dir: &Path) -> Option<Name> {
    let backing = sysfs::loop_backing(dir)?;
    let value = match backing.path.as_ref().and_then(|path| path.metadata().ok()) {
        Some(found) if found.dev() == backing.device && found.ino() == backing.inode => {
            let file = file_identity(&found);
            let born =
                file.born_ns.map_or_else(|| file.device.to_string(), |born| born.to_string());
            format!("inode {} of {born}", file.inode)
        }
        _ => format!("inode {} of {}", backing.inode, backing.device),
    };
    let value = if backing.offset == 0 { value } else { format!("{value} at {}", backing.offset) };
    Some(Name { kind: NameKind::Loop, value })
}

fn by_id(dir: &Path, kind: NameKind, begin: &str) -> Option<Name> {
    let number = DeviceNumber::in_dir(dir)?;
    let mut found: Vec<String> = std::fs::read_dir("/dev/disk/by-id")
        .ok()?
        .flatten()
        .filter(|entry| {
            let leads_here = std::fs::metadata(entry.path());
            leads_here.is_ok_and(|found| DeviceNumber::of(found.rdev()) == number)
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(begin))
        .collect();
    found.sort();
    let value = found.into_iter().next()?.trim_start_matches(begin).to_owned();
    Some(Name { kind, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(names: &[(NameKind, &str)], start: Option<u64>) -> Identity {
        let names =
            names.iter().map(|(kind, value)| Name { kind: *kind, value: (*value).to_owned() });
        let part = start.map(|start| Part { start, uuid: None });
        Identity::Device(DeviceIdentity { names: names.collect(), part })
    }

    #[test]
    fn the_strongest_thing_that_both_have_decides() {
        use NameKind::{Serial, Slot, Wwid};
        let disk = device(&[(Wwid, "naa.5000"), (Serial, "A"), (Slot, "pci0/1")], None);
        let moved = device(&[(Wwid, "naa.5000"), (Serial, "A"), (Slot, "pci0/2")], None);
        assert_eq!(disk.likeness(&moved), Likeness::Same, "in another slot");
        let other = device(&[(Wwid, "naa.5001"), (Serial, "A"), (Slot, "pci0/1")], None);
        assert_eq!(disk.likeness(&other), Likeness::Other, "another disk in its slot");
        let nameless = device(&[(Slot, "pci0/1")], None);
        assert_eq!(nameless.likeness(&device(&[(Slot, "pci0/1")], None)), Likeness::Same);
        assert_eq!(nameless.likeness(&device(&[(Slot, "pci0/2")], None)), Likeness::Other);
        assert_eq!(device(&[], None).likeness(&device(&[], None)), Likeness::Unsure);
        let part = device(&[(Wwid, "naa.5000")], Some(2048));
        assert_eq!(part.likeness(&disk), Likeness::Other, "a partition is not its disk");
        assert_eq!(part.likeness(&device(&[(Wwid, "naa.5000")], Some(4096))), Likeness::Other);
        assert_eq!(disk.likeness(&Identity::file(1, 2)), Likeness::Other);
    }

    #[test]
    fn a_file_is_its_inode_and_birth_whatever_its_file_system_is_called() {
        let file = |device, inode, born_ns| Identity::File(FileIdentity { device, inode, born_ns });
        assert_eq!(file(1, 2, Some(3)).likeness(&file(9, 2, Some(3))), Likeness::Same);
        assert_eq!(file(1, 2, Some(3)).likeness(&file(1, 2, Some(4))), Likeness::Other);
        assert_eq!(file(1, 2, Some(3)).likeness(&file(1, 5, Some(3))), Likeness::Other);
        assert_eq!(file(1, 2, None).likeness(&file(1, 2, Some(3))), Likeness::Same);
        assert_eq!(file(1, 2, None).likeness(&file(9, 2, None)), Likeness::Unsure);
    }

    #[test]
    fn only_registered_names_hold_on_every_server() {
        use NameKind::{Serial, Wwid};
        let real = device(&[(Wwid, "naa.5000"), (Serial, "A")], Some(2048));
        assert_eq!(real.key(), ("wwid naa.5000#2048".to_owned(), true));
        let emulated = device(&[(Wwid, "t10.ATA QEMU HARDDISK QM00001")], None);
        assert!(!emulated.key().1, "every emulated machine has one of this name");
    }
}
