//! Names of the objects of a vault.
//!
//! ```text
//! vault                                        identity
//! keys/<number>/<fingerprint, 16 hex digits>   wrapped keys
//! volumes/<volume>/epochs/<ordinal, 10 digits> who writes
//! volumes/<volume>/bases/<number, 10 digits>   the stream up to here is a map
//! machines/<machine>/<revision, 10 digits>     what a machine is made of
//! groups/<group>/<revision, 10 digits>         which volumes are marked together
//! gc/<number, 10 digits>                       the register
//! logs/<log>/<slot, 16 hex digits>             segment, fill or seal
//! logs/<log>/checkpoints/<slot, 16 hex digits> derived
//! logs/<log>/horizon/<number, 10 digits>       what may be gone
//! maps/<volume>/<place>/<attempt>               derived; a place is <ordinal, 10 digits>-<seq, 20 digits>
//! pages/<volume>/<place>/<attempt>/<part, 5>    derived
//! index/<run>                                  derived
//! validate/<run>/<number>                      left by a validation of the store, belongs to nothing
//! ```
//!
//! A name is always made from ids: nothing from outside is ever used as a path.

use farshore_proto::keys::Fingerprint;
use farshore_proto::{
    GroupId, KeyNumber, LogId, MachineId, MapAttempt, Place, RunId, Seq, Slot, VolumeId,
};
use object_store::path::Path;
use std::fmt;

/// The folder of a log's checkpoints.
const CHECKPOINTS: &str = "checkpoints";
/// The folder of a log's horizons.
const HORIZON: &str = "horizon";
/// The folder of the register.
const REGISTER: &str = "gc";
/// The folder of the vault's revisions.
const REVISIONS: &str = "revisions";
/// The folder of the index runs.
const INDEX: &str = "index";

/// Name of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Path);

impl ObjectName {
    /// The vault object.
    #[must_use]
    pub fn vault() -> Self {
        Self(Path::from("vault"))
    }

    /// A key of the vault, wrapped by the key with a fingerprint.
    #[must_use]
    pub fn key(number: KeyNumber, wrapper: Fingerprint) -> Self {
        Self(Path::from(format!("keys/{number}/{wrapper}")))
    }

    /// An epoch of a volume; the first ordinal is 1.
    #[must_use]
    pub fn epoch(volume: VolumeId, ordinal: u64) -> Self {
        Self(Path::from(format!("volumes/{volume}/epochs/{ordinal:010}")))
    }

    /// A base of a volume; the first is 1.
    #[must_use]
    pub fn base(volume: VolumeId, number: u64) -> Self {
        Self(Path::from(format!("volumes/{volume}/bases/{number:010}")))
    }

    /// A revision of a machine; the first is 1.
    #[must_use]
    pub fn machine(machine: MachineId, revision: u64) -> Self {
        Self(Path::from(format!("machines/{machine}/{revision:010}")))
    }

    /// A revision of a group; the first is 1.
    #[must_use]
    pub fn group(group: GroupId, revision: u64) -> Self {
        Self(Path::from(format!("groups/{group}/{revision:010}")))
    }

    /// A revision of the vault; the first is 1.
    #[must_use]
    pub fn revision(number: u64) -> Self {
        Self(Path::from(format!("{REVISIONS}/{number:010}")))
    }

    /// An entry of the register; the first is 1.
    #[must_use]
    pub fn register(number: u64) -> Self {
        Self(Path::from(format!("{REGISTER}/{number:010}")))
    }

    /// A slot of a log.
    #[must_use]
    pub fn slot(log: LogId, slot: Slot) -> Self {
        Self(Path::from(format!("logs/{log}/{:016x}", slot.0)))
    }

    /// The checkpoint of a log at a slot.
    #[must_use]
    pub fn checkpoint(log: LogId, slot: Slot) -> Self {
        Self(Path::from(format!("logs/{log}/checkpoints/{:016x}", slot.0)))
    }

    /// A horizon of a log; the first is 1.
    #[must_use]
    pub fn horizon(log: LogId, number: u64) -> Self {
        Self(Path::from(format!("logs/{log}/{HORIZON}/{number:010}")))
    }

    /// What is kept of a volume; no object has this name alone.
    #[must_use]
    pub fn volume(volume: VolumeId) -> Self {
        Self(Path::from(format!("volumes/{volume}")))
    }

    /// The manifest of a map of a volume at a place.
    #[must_use]
    pub fn map(volume: VolumeId, at: Place, attempt: MapAttempt) -> Self {
        let Place { ordinal, seq } = at;
        Self(Path::from(format!("maps/{volume}/{ordinal:010}-{:020}/{attempt}", seq.0)))
    }

    /// A part of the layer that was written for a map of a volume at a place.
    #[must_use]
    pub fn pages(volume: VolumeId, at: Place, attempt: MapAttempt, part: u32) -> Self {
        let Place { ordinal, seq } = at;
        let place = format!("{ordinal:010}-{:020}", seq.0);
        Self(Path::from(format!("pages/{volume}/{place}/{attempt}/{part:05}")))
    }

    /// A run of the dedup index.
    #[must_use]
    pub fn index_run(run: RunId) -> Self {
        Self(Path::from(format!("{INDEX}/{run}")))
    }

    /// An object of a validation of the store.
    #[must_use]
    pub fn probe(run: RunId, number: u32) -> Self {
        Self(Path::from(format!("validate/{run}/{number:08}")))
    }

    /// The name that a listing or an error of the store gave.
    pub(crate) fn given(name: &str) -> Self {
        Self(Path::from(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref())
    }
}

/// Part of the vault that can be listed: for verification, statistics, and to find what is derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// Everything.
    Whole,
    /// The wrapped keys.
    Keys,
    /// One child per volume.
    Volumes,
    /// The epochs of a volume.
    Epochs(VolumeId),
    /// The bases of a volume.
    Bases(VolumeId),
    /// One child per machine.
    Machines,
    /// The revisions of a machine.
    Machine(MachineId),
    /// One child per group.
    Groups,
    /// The revisions of a group.
    Group(GroupId),
    /// The entries of the register.
    Register,
    /// One child per log.
    Logs,
    /// The slots of a log, and what else there is of it.
    Log(LogId),
    /// The checkpoints of a log.
    Checkpoints(LogId),
    /// The maps of a volume.
    Maps(VolumeId),
    /// The index runs.
    Index,
    /// The objects of a validation.
    Probes(RunId),
}

impl Folder {
    pub(crate) fn path(self) -> Option<Path> {
        Some(match self {
            Self::Whole => return None,
            Self::Keys => Path::from("keys"),
            Self::Volumes => Path::from("volumes"),
            Self::Epochs(volume) => Path::from(format!("volumes/{volume}/epochs")),
            Self::Bases(volume) => Path::from(format!("volumes/{volume}/bases")),
            Self::Machines => Path::from("machines"),
            Self::Machine(machine) => Path::from(format!("machines/{machine}")),
            Self::Groups => Path::from("groups"),
            Self::Group(group) => Path::from(format!("groups/{group}")),
            Self::Register => Path::from(REGISTER),
            Self::Logs => Path::from("logs"),
            Self::Log(log) => Path::from(format!("logs/{log}")),
            Self::Checkpoints(log) => Path::from(format!("logs/{log}/checkpoints")),
            Self::Maps(volume) => Path::from(format!("maps/{volume}")),
            Self::Index => Path::from(INDEX),
            Self::Probes(run) => Path::from(format!("validate/{run}")),
        })
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            None => f.write_str("/"),
            Some(path) => write!(f, "{path}/"),
        }
    }
}

/// Number of the slot that an object name of a log ends with, if it is one.
#[must_use]
pub fn slot_of(name: &str) -> Option<Slot> {
    let mut names = name.rsplit('/');
    let digits = names.next()?;
    // Directly in the folder of the log: what later programs have in folders of their own is no slot.
    let log = names.next().and_then(|folder| uuid::Uuid::try_parse(folder).ok());
    log.filter(|_| names.next() == Some("logs")).and_then(|_| slot_number(digits))
}

/// Slot of the checkpoint that an object name ends with, if it is one.
#[must_use]
pub fn checkpoint_of(name: &str) -> Option<Slot> {
    let mut names = name.rsplit('/');
    let digits = names.next()?;
    names.next().filter(|folder| *folder == CHECKPOINTS)?;
    slot_number(digits)
}

fn slot_number(digits: &str) -> Option<Slot> {
    let digits = Some(digits).filter(|digits| digits.len() == 16)?;
    let is_plain = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_plain {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(Slot)
}

/// Number of the epoch or base, of the revision of a machine or group, or of the entry of the register that an object name
/// ends with, if it is one.
#[must_use]
pub fn ordinal_of(name: &str) -> Option<u64> {
    let digits = name.rsplit('/').next().filter(|digits| digits.len() == 10)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Number and wrapper of the wrapped key that an object name ends with, if it is one.
#[must_use]
pub fn key_of(name: &str) -> Option<(KeyNumber, Fingerprint)> {
    let mut names = name.rsplit('/');
    let wrapper = names.next()?;
    let number = names.next()?;
    let fingerprint: Fingerprint = wrapper.parse().ok()?;
    let key = KeyNumber(number.parse().ok()?);
    let is_ours = fingerprint.to_string() == wrapper && key.to_string() == number && key.0 > 0;
    is_ours.then_some((key, fingerprint))
}

/// Place and attempt of the manifest that a name ends with, if it is one.
#[must_use]
pub fn map_of(name: &str) -> Option<(Place, MapAttempt)> {
    let mut names = name.rsplit('/');
    let text = names.next()?;
    let attempt = text.parse().ok().filter(|attempt: &MapAttempt| attempt.to_string() == text)?;
    let (ordinal, seq) = names.next()?.split_once('-')?;
    let is_ours = ordinal.len() == 10 && seq.len() == 20 && is_decimal(ordinal) && is_decimal(seq);
    let place = Place { ordinal: ordinal.parse().ok()?, seq: Seq(seq.parse().ok()?) };
    (is_ours && place.ordinal > 0).then_some((place, attempt))
}

/// The index run that an object name ends with, if it is one.
#[must_use]
pub fn run_of(name: &str) -> Option<RunId> {
    let mut names = name.rsplit('/');
    let text = names.next()?;
    names.next().filter(|folder| *folder == INDEX)?;
    text.parse().ok().filter(|run: &RunId| run.to_string() == text)
}

fn is_decimal(digits: &str) -> bool {
    digits.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let volume = VolumeId([0x11; 16]);
        let log = LogId([0xab; 16]);
        let text = |name: ObjectName| name.to_string();
        assert_eq!(text(ObjectName::vault()), "vault");
        let wrapper = Fingerprint([0xa0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(text(ObjectName::key(KeyNumber(3), wrapper)), "keys/3/a000000000000007");
        assert_eq!(
            text(ObjectName::epoch(volume, 7)),
            "volumes/11111111-1111-1111-1111-111111111111/epochs/0000000007"
        );
        assert_eq!(
            text(ObjectName::base(volume, 7)),
            "volumes/11111111-1111-1111-1111-111111111111/bases/0000000007"
        );
        assert_eq!(
            text(ObjectName::machine(MachineId([0x33; 16]), 12)),
            "machines/33333333-3333-3333-3333-333333333333/0000000012"
        );
        assert_eq!(
            text(ObjectName::group(GroupId([0x44; 16]), 1)),
            "groups/44444444-4444-4444-4444-444444444444/0000000001"
        );
        assert_eq!(text(ObjectName::register(42)), "gc/0000000042");
        assert_eq!(text(ObjectName::revision(42)), "revisions/0000000042");
        assert_eq!(
            text(ObjectName::slot(log, Slot(0x1f))),
            "logs/abababab-abab-abab-abab-abababababab/000000000000001f"
        );
        assert_eq!(
            text(ObjectName::checkpoint(log, Slot(0x20))),
            "logs/abababab-abab-abab-abab-abababababab/checkpoints/0000000000000020"
        );
        let (at, attempt) = (Place { ordinal: 7, seq: Seq(42) }, MapAttempt([0x33; 16]));
        assert_eq!(
            text(ObjectName::map(volume, at, attempt)),
            "maps/11111111-1111-1111-1111-111111111111/0000000007-00000000000000000042/\
             33333333-3333-3333-3333-333333333333"
        );
        assert_eq!(
            text(ObjectName::pages(volume, at, attempt, 3)),
            "pages/11111111-1111-1111-1111-111111111111/0000000007-00000000000000000042/\
             33333333-3333-3333-3333-333333333333/00003"
        );
        assert_eq!(
            text(ObjectName::index_run(RunId([0x22; 16]))),
            "index/22222222-2222-2222-2222-222222222222"
        );
    }

    #[test]
    fn numbers_are_read_back_from_names() {
        let log = LogId([1; 16]);
        assert_eq!(slot_of(&ObjectName::slot(log, Slot(77)).to_string()), Some(Slot(77)));
        assert_eq!(slot_of("logs/x/00000000000000FF"), None);
        assert_eq!(slot_of("logs/x/ff"), None);
        let slot = ObjectName::slot(log, Slot(77)).to_string();
        for (folder, later) in
            [("logs/", "logs/later/"), ("/000", "/later/000"), ("logs/", "packs/")]
        {
            assert_eq!(
                slot_of(&slot.replacen(folder, later, 1)),
                None,
                "{later}: of a later program"
            );
        }
        let checkpoint = ObjectName::checkpoint(log, Slot(77)).to_string();
        assert_eq!((slot_of(&checkpoint), checkpoint_of(&checkpoint)), (None, Some(Slot(77))));
        assert_eq!(checkpoint_of(&ObjectName::slot(log, Slot(77)).to_string()), None);
        assert_eq!(ordinal_of("volumes/x/epochs/0000000012"), Some(12));
        assert_eq!(ordinal_of("volumes/x/epochs/+000000012"), None);
        let revision = ObjectName::machine(MachineId([5; 16]), 9_999_999_999).to_string();
        assert_eq!(ordinal_of(&revision), Some(9_999_999_999));
        let (key, wrapper) = (KeyNumber(12), Fingerprint([0xab; 8]));
        assert_eq!(key_of(&ObjectName::key(key, wrapper).to_string()), Some((key, wrapper)));
        for name in
            ["012/abababababababab", "12/ABABABABABABABAB", "0/abababababababab", "12/ab", "12"]
        {
            assert_eq!(key_of(&format!("keys/{name}")), None, "{name}");
        }
        let (at, attempt) = (Place { ordinal: 3, seq: Seq(77) }, MapAttempt([3; 16]));
        let map = ObjectName::map(VolumeId([1; 16]), at, attempt).to_string();
        assert_eq!(map_of(&map), Some((at, attempt)));
        for wrong in ["77/03030303-0303-0303-0303-030303030303", "0000000003-00000000000000000077"]
        {
            assert_eq!(map_of(&format!("maps/x/{wrong}")), None, "{wrong}");
        }
        assert_eq!(map_of(&map.replace("3-0", "3-x")), None);
        assert_eq!(map_of(&map.replace("3-0", "0-0")), None, "places have ordinals from 1");
        let run = RunId([3; 16]);
        assert_eq!(run_of(&ObjectName::index_run(run).to_string()), Some(run));
        assert_eq!(run_of("index/03030303030303030303030303030303"), None);
        assert_eq!(run_of(&map), None, "the attempt at a map is an id too");
    }
}
