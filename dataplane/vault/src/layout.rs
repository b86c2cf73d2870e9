//! Names of the objects of a vault.
//!
//! ```text
//! vault                                        identity
//! keys/<number>                                wrapped data keys
//! volumes/<volume>/epochs/<ordinal, 10 digits> who writes
//! logs/<log>/<slot, 16 hex digits>             segment or seal
//! maps/<volume>/<seq, 20 digits>               derived
//! index/<run>                                  derived
//! ```
//!
//! A name is always made from ids: nothing from outside is ever used as a path.

use farshore_proto::{KeyNumber, LogId, Seq, Slot, VolumeId};
use object_store::path::Path;
use std::fmt;
use uuid::Uuid;

/// Name of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Path);

impl ObjectName {
    /// The vault object.
    #[must_use]
    pub fn vault() -> Self {
        Self(Path::from("vault"))
    }

    /// A wrapped data key.
    #[must_use]
    pub fn key(number: KeyNumber) -> Self {
        Self(Path::from(format!("keys/{number}")))
    }

    /// An epoch of a volume; the first ordinal is 1.
    #[must_use]
    pub fn epoch(volume: VolumeId, ordinal: u64) -> Self {
        Self(Path::from(format!("volumes/{volume}/epochs/{ordinal:010}")))
    }

    /// A slot of a log.
    #[must_use]
    pub fn slot(log: LogId, slot: Slot) -> Self {
        Self(Path::from(format!("logs/{log}/{:016x}", slot.0)))
    }

    /// The map of a volume at a seq.
    #[must_use]
    pub fn map(volume: VolumeId, seq: Seq) -> Self {
        Self(Path::from(format!("maps/{volume}/{:020}", seq.0)))
    }

    /// A run of the dedup index.
    #[must_use]
    pub fn index_run(run: Uuid) -> Self {
        Self(Path::from(format!("index/{}", run.hyphenated())))
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

/// Part of the vault that can be listed, for verification and statistics only.
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
    /// One child per log.
    Logs,
    /// The slots of a log.
    Log(LogId),
}

impl Folder {
    pub(crate) fn path(self) -> Option<Path> {
        Some(match self {
            Self::Whole => return None,
            Self::Keys => Path::from("keys"),
            Self::Volumes => Path::from("volumes"),
            Self::Epochs(volume) => Path::from(format!("volumes/{volume}/epochs")),
            Self::Logs => Path::from("logs"),
            Self::Log(log) => Path::from(format!("logs/{log}")),
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
pub(crate) fn slot_of(name: &str) -> Option<Slot> {
    let digits = name.rsplit('/').next().filter(|digits| digits.len() == 16)?;
    let is_plain = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_plain {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(Slot)
}

/// Number of the epoch that an object name ends with, if it is one.
pub(crate) fn ordinal_of(name: &str) -> Option<u64> {
    let digits = name.rsplit('/').next().filter(|digits| digits.len() == 10)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
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
        assert_eq!(text(ObjectName::key(KeyNumber(3))), "keys/3");
        assert_eq!(
            text(ObjectName::epoch(volume, 7)),
            "volumes/11111111-1111-1111-1111-111111111111/epochs/0000000007"
        );
        assert_eq!(
            text(ObjectName::slot(log, Slot(0x1f))),
            "logs/abababab-abab-abab-abab-abababababab/000000000000001f"
        );
        assert_eq!(
            text(ObjectName::map(volume, Seq(42))),
            "maps/11111111-1111-1111-1111-111111111111/00000000000000000042"
        );
    }

    #[test]
    fn numbers_are_read_back_from_names() {
        let log = LogId([1; 16]);
        assert_eq!(slot_of(&ObjectName::slot(log, Slot(77)).to_string()), Some(Slot(77)));
        assert_eq!(slot_of("logs/x/00000000000000FF"), None);
        assert_eq!(slot_of("logs/x/ff"), None);
        assert_eq!(ordinal_of("volumes/x/epochs/0000000012"), Some(12));
        assert_eq!(ordinal_of("volumes/x/epochs/+000000012"), None);
    }
}
