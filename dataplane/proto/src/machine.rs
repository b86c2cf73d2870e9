//! Machine objects: the disks of a machine, and what it takes to start it.
//!
//! Layout and rules: `docs/formats/machine.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, MachineId, Seq, VaultId, VolumeId};
use crate::limits::{
    DISK_TEXT_BYTES_MAX, MACHINE_DISKS_MAX, MACHINE_TEXTS_BYTES_MAX, NAME_BYTES_MAX,
    VOLUME_BYTES_MAX,
};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};
use std::collections::BTreeSet;

const HEAD: SectionKind = SectionKind { number: 1, stride: 32, max: 1, what: "machine head" };
const NAME: SectionKind =
    SectionKind { number: 2, stride: 1, max: NAME_BYTES_MAX, what: "machine name" };
const SYSTEM: SectionKind =
    SectionKind { number: 3, stride: 1, max: NAME_BYTES_MAX, what: "machine operating system" };
const DISKS: SectionKind =
    SectionKind { number: 4, stride: 64, max: MACHINE_DISKS_MAX, what: "machine disks" };
const TEXTS: SectionKind =
    SectionKind { number: 5, stride: 1, max: MACHINE_TEXTS_BYTES_MAX, what: "disk texts" };

/// Secure boot is on.
const SECURE_BOOT: u8 = 1;
/// Logarithms of the bytes of a sector that there are.
const SECTOR_LOG2: std::ops::RangeInclusive<u8> = 9..=16;
const NO_VOLUME: [u8; 16] = [0; 16];

/// The place of a revision of a machine.
#[must_use]
pub fn place(vault: VaultId, machine: MachineId, revision: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Machine, vault, subject: machine.0, number: revision, part: 0 }
}

/// A byte that is one of few values; others are those of later programs. With `open`, codes from 128 on are taken by who
/// does not know them for *not known*, and kept.
macro_rules! codes {
    ($(#[$doc:meta])* open $name:ident, $what:literal, $feature:literal, $($code:literal $variant:ident $word:literal $about:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $about] $variant,)+
            /// One of a later program: not known, and harmless.
            Other(OtherCode),
        }

        impl $name {
            /// Every value that is known.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its byte.
            #[must_use]
            pub fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)+ Self::Other(code) => code.0 }
            }

            /// Its word for people and programs.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ Self::Other(_) => "other" }
            }

            pub(crate) fn of_code(code: u8) -> Result<Self, DecodeError> {
                match Self::ALL.iter().find(|value| value.code() == code) {
                    Some(value) => Ok(*value),
                    None if code >= OtherCode::FIRST => Ok(Self::Other(OtherCode(code))),
                    None => Err(DecodeError::Newer { what: $what, feature: $feature, bit: code.into() }),
                }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $what:literal, $feature:literal, $($code:literal $variant:ident $word:literal $about:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $about] $variant),+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its byte.
            #[must_use]
            pub fn code(self) -> u8 {
                match self { $(Self::$variant => $code),+ }
            }

            /// Its word for people and programs.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            pub(crate) fn of_code(code: u8) -> Result<Self, DecodeError> {
                match Self::ALL.iter().find(|value| value.code() == code) {
                    Some(value) => Ok(*value),
                    None if code == 0 => Err(DecodeError::Range { what: $what, value: 0 }),
                    None => Err(DecodeError::Newer { what: $what, feature: $feature, bit: code.into() }),
                }
            }
        }
    };
}
pub(crate) use codes;

/// A code that is not known, at least [`FIRST`](Self::FIRST): a later program gives those only to what may be taken for
/// *not known*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherCode(u8);

impl OtherCode {
    /// The first of them.
    pub const FIRST: u8 = 128;
}

codes! {
    /// What starts the machine.
    open Firmware, "machine", "firmware",
    0 Unknown "unknown" "Not known.",
    1 Bios "bios" "The old way: code in the first sector of a disk.",
    2 Uefi "uefi" "A program in a partition of a disk.",
}

codes! {
    /// What a disk is for.
    open DiskRole, "machine disk", "role",
    0 Unknown "unknown" "Not known.",
    1 Boot "boot" "The firmware starts from it.",
    2 System "system" "It has the operating system.",
    3 Data "data" "It has data.",
    4 Scratch "scratch" "What it holds need not outlast a start.",
}

codes! {
    /// Whether the vault is to have a disk.
    DiskState, "machine disk", "state",
    1 Protected "protected" "Its points are those of the machine.",
    2 Excluded "excluded" "Somebody wished it not to be protected.",
    3 Removed "removed" "It was protected, and is so no longer.",
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Which disk of the machine it is, from 0.
    pub index: u16,
    /// The volume that holds it; only a disk that is excluded may have none.
    pub volume: Option<VolumeId>,
    /// Its size in bytes; 0 if that is not known, which only a disk that is excluded may say.
    pub size_bytes: u64,
    /// The place of its volume from which the machine's set of protected disks is this one; nothing but zeros: from
    /// the beginning.
    pub since: (Epoch, Seq),
    /// When the firmware tries it, from 1; 0: never.
    pub boot_rank: u16,
    /// Logarithm of the bytes of a sector; 0 if that is not known.
    pub sector_log2: u8,
    /// What it is for.
    pub role: DiskRole,
    /// Whether the vault is to have it.
    pub state: DiskState,
    /// What the machine calls it, as `/dev/vda`.
    pub name: String,
    /// What people call it.
    pub label: String,
    /// What its hardware says.
    pub serial: String,
}

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineBody {
    /// The writer's wall clock; shown to people, never used for order.
    pub time_unix_ms: u64,
    /// Its memory in bytes; 0 if that is not known.
    pub memory_bytes: u64,
    /// Its processors; 0 if that is not known.
    pub processors: u32,
    /// What starts it.
    pub firmware: Firmware,
    /// Whether secure boot is on: a thing of UEFI.
    pub is_secure_boot: bool,
    /// Its name; not empty.
    pub name: String,
    /// Its operating system, for people; empty if that is not known.
    pub system: String,
    /// Its disks, in the order of their indexes; at least one.
    pub disks: Vec<Disk>,
}

impl MachineBody {
    /// The disks that have a volume, whatever their state.
    pub fn volumes(&self) -> impl Iterator<Item = (&Disk, VolumeId)> {
        self.disks.iter().filter_map(|disk| Some((disk, disk.volume?)))
    }

    /// Lays the body out.
    ///
    /// # Panics
    /// If it does not [check](Self::check): a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "a machine is checked before it is laid out");
        let mut out = SectionWriter::with_capacity(1024);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.time_unix_ms);
            out.put_u64(self.memory_bytes);
            out.put_u32(self.processors);
            out.put_u8(self.firmware.code());
            out.put_u8(if self.is_secure_boot { SECURE_BOOT } else { 0 });
            out.put_zeros(10);
        });
        out.put(&NAME, self.name.len(), |out| out.put_bytes(self.name.as_bytes()));
        out.put(&SYSTEM, self.system.len(), |out| out.put_bytes(self.system.as_bytes()));
        out.put(&DISKS, self.disks.len(), |out| {
            self.disks.iter().for_each(|disk| put_disk(out, disk));
        });
        let texts: String = self.disks.iter().flat_map(Disk::texts).collect();
        out.put(&TEXTS, texts.len(), |out| out.put_bytes(texts.as_bytes()));
        out.finish()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read("machine body", bytes, &[HEAD, NAME, SYSTEM, DISKS, TEXTS])?;
        let mut head = sections.record(&HEAD)?;
        let (time_unix_ms, memory_bytes, processors) = (head.u64()?, head.u64()?, head.u32()?);
        let firmware = Firmware::of_code(head.u8()?)?;
        let is_secure_boot = head.flags("machine", SECURE_BOOT)? & SECURE_BOOT != 0;
        head.reserved(10)?;
        let texts = sections.bytes(&TEXTS);
        let mut texts = Reader::new(TEXTS.what, &texts);
        let disks = sections.records(&DISKS).map(|record| take_disk(record, &mut texts));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        texts.finish()?;
        let body = Self {
            time_unix_ms,
            memory_bytes,
            processors,
            firmware,
            is_secure_boot,
            name: text(NAME.what, sections.bytes(&NAME))?,
            system: text(SYSTEM.what, sections.bytes(&SYSTEM))?,
            disks,
        };
        body.check()?;
        Ok(body)
    }

    /// Whether it can be laid out: what a reader refuses, nobody writes.
    ///
    /// # Errors
    /// `Limit` or `Range`, by the field that is wrong.
    pub fn check(&self) -> Result<(), DecodeError> {
        check_name(NAME.what, &self.name)?;
        limit(SYSTEM.what, self.system.len(), NAME_BYTES_MAX)?;
        limit(DISKS.what, self.disks.len(), MACHINE_DISKS_MAX)?;
        let texts: usize = self.disks.iter().flat_map(Disk::texts).map(str::len).sum();
        limit(TEXTS.what, texts, MACHINE_TEXTS_BYTES_MAX)?;
        if self.is_secure_boot && !matches!(self.firmware, Firmware::Uefi | Firmware::Other(_)) {
            let value = self.firmware.code().into();
            return Err(DecodeError::Range { what: "firmware of secure boot", value });
        }
        if self.disks.is_empty() {
            return Err(DecodeError::Range { what: DISKS.what, value: 0 });
        }
        self.disks.iter().try_for_each(Disk::check)?;
        self.check_order()
    }

    /// That indexes ascend, no volume is there twice, and the boot ranks are 1, 2, 3 …
    fn check_order(&self) -> Result<(), DecodeError> {
        if let Some(pair) = self.disks.windows(2).find(|pair| pair[0].index >= pair[1].index) {
            return Err(DecodeError::Range { what: "disk order", value: pair[1].index.into() });
        }
        let mut volumes = BTreeSet::new();
        if let Some((disk, _)) = self.volumes().find(|(_, volume)| !volumes.insert(*volume)) {
            return Err(DecodeError::Range {
                what: "volume of two disks",
                value: disk.index.into(),
            });
        }
        let mut ranks: Vec<u16> =
            self.disks.iter().map(|disk| disk.boot_rank).filter(|rank| *rank > 0).collect();
        ranks.sort_unstable();
        match ranks.iter().zip(1..).find(|(rank, expected)| *rank != expected) {
            Some((rank, _)) => Err(DecodeError::Range { what: "boot rank", value: (*rank).into() }),
            None => Ok(()),
        }
    }
}

impl Disk {
    fn texts(&self) -> [&str; 3] {
        [&self.name, &self.label, &self.serial]
    }

    fn check(&self) -> Result<(), DecodeError> {
        for text in self.texts() {
            limit("disk text", text.len(), DISK_TEXT_BYTES_MAX)?;
        }
        let is_excluded = self.state == DiskState::Excluded;
        if self.volume.is_none() && !is_excluded || self.volume == Some(VolumeId(NO_VOLUME)) {
            return Err(DecodeError::Range { what: "volume of a disk", value: self.index.into() });
        }
        let is_size_legal = self.size_bytes > 0 || is_excluded;
        if !is_size_legal || self.size_bytes > VOLUME_BYTES_MAX {
            return Err(DecodeError::Range { what: "disk size", value: self.size_bytes });
        }
        let is_sector_legal = self.sector_log2 == 0 || SECTOR_LOG2.contains(&self.sector_log2);
        if !is_sector_legal {
            let value = self.sector_log2.into();
            return Err(DecodeError::Range { what: "sector of a disk", value });
        }
        check_since("disk", self.since)
    }
}

fn put_disk(out: &mut Vec<u8>, disk: &Disk) {
    let end = out.len() + DISKS.stride;
    let length = |text: &str| u16::try_from(text.len()).expect("a text has a limit");
    out.put_bytes(&disk.volume.map_or(NO_VOLUME, |volume| volume.0));
    out.put_u64(disk.size_bytes);
    out.put_u64(disk.since.0.0);
    out.put_u64(disk.since.1.0);
    out.put_u16(disk.index);
    out.put_u16(disk.boot_rank);
    out.put_u8(disk.sector_log2);
    out.put_u8(disk.role.code());
    out.put_u8(disk.state.code());
    out.put_u8(0);
    disk.texts().into_iter().for_each(|text| out.put_u16(length(text)));
    out.put_zeros(end - out.len());
}

/// Reads a disk, whose texts are the next of all.
fn take_disk(mut reader: Reader<'_>, texts: &mut Reader<'_>) -> Result<Disk, DecodeError> {
    let volume = reader.array()?;
    let size_bytes = reader.u64()?;
    let since = (Epoch(reader.u64()?), reader.seq("since seq")?);
    let (index, boot_rank, sector_log2) = (reader.u16()?, reader.u16()?, reader.u8()?);
    let role = DiskRole::of_code(reader.u8()?)?;
    let state = DiskState::of_code(reader.u8()?)?;
    reader.flags("machine disk", 0)?;
    let lengths = [reader.u16()?, reader.u16()?, reader.u16()?];
    reader.reserved(10)?;
    let mut next = |at: usize| {
        let length = usize::from(lengths[at]);
        limit("disk text", length, DISK_TEXT_BYTES_MAX)?;
        text(TEXTS.what, texts.take(length)?.to_vec())
    };
    Ok(Disk {
        index,
        volume: (volume != NO_VOLUME).then_some(VolumeId(volume)),
        size_bytes,
        since,
        boot_rank,
        sector_log2,
        role,
        state,
        name: next(0)?,
        label: next(1)?,
        serial: next(2)?,
    })
}

pub(crate) fn text(what: &'static str, bytes: Vec<u8>) -> Result<String, DecodeError> {
    String::from_utf8(bytes).map_err(|_| DecodeError::Text { what })
}

pub(crate) fn limit(what: &'static str, value: usize, max: usize) -> Result<(), DecodeError> {
    if value > max {
        return Err(DecodeError::Limit { what, value: value as u64, max: max as u64 });
    }
    Ok(())
}

/// A name that there must be.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), DecodeError> {
    if name.is_empty() {
        return Err(DecodeError::Range { what, value: 0 });
    }
    limit(what, name.len(), NAME_BYTES_MAX)
}

/// An epoch has a seq in it, and a seq an epoch.
pub(crate) fn check_since(what: &'static str, since: (Epoch, Seq)) -> Result<(), DecodeError> {
    let (epoch, seq) = since;
    if (epoch == Epoch(0)) != (seq == Seq(0)) || seq == Seq(u64::MAX) {
        return Err(DecodeError::Range { what, value: seq.0 });
    }
    Ok(())
}
