//! Why a vault could not be read or written.

use crate::layout::ObjectName;
use crate::store::StoreError;
use crate::view::PointSelector;
use farshore_codec::{CodecError, KekError};
use farshore_engine::register::Refused;
use farshore_proto::epoch::EpochBase;
use farshore_proto::keys::{Fingerprint, Wrapper};
use farshore_proto::{ErrorKind, KeyNumber, LogId, PointId, Seq, Slot, VaultId, VolumeId};

/// Why a vault could not be read or written.
///
/// Every message names the store and the object; nothing that did not authenticate is ever returned
/// as data instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds no vault.
    #[error("{url}: there is no vault here: check the URL, or make one with `farshore vault init`")]
    NotAVault {
        /// The store.
        url: String,
    },
    /// The store holds something else: a vault is made only where it is alone.
    #[error(
        "{url}: there are other objects here, such as {object}: name an empty bucket, or a folder of its own below this one"
    )]
    NotEmpty {
        /// The store.
        url: String,
        /// One of them.
        object: String,
    },
    /// The store overwrites what must be written only once.
    #[error(
        "{url}: the store overwrites objects that are there (it ignores If-None-Match): no vault is safe in it; `farshore vault validate-store` says more"
    )]
    NotWriteOnce {
        /// The store.
        url: String,
    },
    /// Others begin to write a log whenever we do.
    #[error(
        "{url}: another process writes log {log}: there is a copy of this node's directory; stop one of both"
    )]
    TwoWriters {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
    },
    /// The store holds a vault already.
    #[error("{url}: there is a vault here already")]
    AlreadyAVault {
        /// The store.
        url: String,
    },
    /// The vault object is gone, but a wrapped key is there.
    #[error(
        "{url}: object vault is missing although {key} is there: it was deleted, or making the vault was cut short; `farshore vault init` with the recovery key puts it back"
    )]
    NoIdentity {
        /// The store.
        url: String,
        /// A wrapped key that is there.
        key: ObjectName,
    },
    /// A key that wraps nothing in this vault: that of another one, or one that was removed.
    #[error(
        "{url}: the {given} is no key of this vault{}: name the file with one of its keys (FARSHORE_KEY_FILE)",
        there_text(there)
    )]
    WrongKey {
        /// The store.
        url: String,
        /// The key given.
        given: Wrapper,
        /// Fingerprints of those that there are, as far as they can be listed.
        there: Vec<Fingerprint>,
    },
    /// A node key for what only the operator may do.
    #[error("{url}: the key given is the {given}; the recovery key is needed for this")]
    NotRecovery {
        /// The store.
        url: String,
        /// The key given.
        given: Wrapper,
    },
    /// No key of this fingerprint wraps anything here.
    #[error(
        "{url}: there is no key with fingerprint {fingerprint} in this vault{}",
        there_text(there)
    )]
    NoWrapper {
        /// The store.
        url: String,
        /// The fingerprint asked for.
        fingerprint: Fingerprint,
        /// Those that there are.
        there: Vec<Fingerprint>,
    },
    /// Without this recovery key nothing would ever open again.
    #[error(
        "{url}: {fingerprint} is the last recovery key of this vault: without it nothing in there can be read, ever; it is not removed"
    )]
    LastRecoveryKey {
        /// The store.
        url: String,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// A wrapped key that opens, and is another one than it should be.
    #[error("{url}: object {object} opens, but it does not hold the key that it should")]
    NotThatKey {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
    },
    /// The vault object and the wrapped keys are not of one vault.
    #[error(
        "{url}: object vault says that this is vault {vault}, but object {key} is of vault {found}: one of them was put here from elsewhere; put back the right one"
    )]
    Mixed {
        /// The store.
        url: String,
        /// The id in the vault object.
        vault: VaultId,
        /// The wrapped key.
        key: ObjectName,
        /// The id in the wrapped key.
        found: VaultId,
    },
    /// A wrapped key that does not open although its wrapping key is right.
    #[error("{url}: object {object} is damaged: {cause}")]
    Key {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// What is wrong.
        cause: Box<KekError>,
    },
    /// An object that does not open, or is not the one that belongs there.
    #[error("{url}: object {object} is damaged at byte {offset}: {cause}")]
    Damaged {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// Where in the object the damaged part begins.
        offset: u64,
        /// What is wrong.
        cause: Box<CodecError>,
    },
    /// An object was written by another version of Farshore.
    #[error("{url}: object {object} was written by another version of Farshore: {cause}")]
    Version {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// What is wrong.
        cause: Box<CodecError>,
    },
    /// An object that others refer to does not exist.
    #[error("{url}: object {object} is missing; {user} refers to it")]
    Lost {
        /// The store.
        url: String,
        /// The missing object.
        object: ObjectName,
        /// The object that refers to it.
        user: ObjectName,
    },
    /// What an object was sealed under was erased on purpose.
    #[error(
        "{url}: object {object} is sealed under key {key}, which was erased: what it held is gone"
    )]
    Erased {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// The key.
        key: KeyNumber,
    },
    /// An object is sealed under a key that the vault did not have when it was opened.
    #[error(
        "{url}: object {object} is sealed under key {key}, which the vault did not have when it was opened: open it again; \
         if that does not help, its newest revision is lost"
    )]
    UnknownKey {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// The key.
        key: KeyNumber,
    },
    /// What an object was sealed under is not for the key that opened the vault.
    #[error(
        "{url}: object {object} is sealed under key {key}, which the {given} does not open: use the recovery key"
    )]
    Withheld {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// The key.
        key: KeyNumber,
        /// What opened the vault.
        given: Wrapper,
    },
    /// A revision that takes back what those before said, or leaves the vault without what opens it.
    #[error(
        "{url}: revision {number} of the vault would take back keys, domains or what was erased, or leave a domain without \
         a key: it is not put"
    )]
    BadRevision {
        /// The store.
        url: String,
        /// Its number.
        number: u64,
    },
    /// The vault was revised while it was open.
    #[error("{url}: revision {number} of the vault was made while it was open: open it again")]
    Revised {
        /// The store.
        url: String,
        /// The newest revision.
        number: u64,
    },
    /// An object that others refer to was there once; another attempt has its name.
    #[error("{url}: object {object} is not the one that {user} refers to: that one is lost")]
    Replaced {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
        /// The object that refers to another of the name.
        user: ObjectName,
    },
    /// A reference to a chunk that is not what it should be.
    #[error("{url}: object {object} refers to chunk {chunk} of {target}, which is not that chunk")]
    Reference {
        /// The store.
        url: String,
        /// The object with the reference.
        object: ObjectName,
        /// The number of the chunk referred to.
        chunk: u32,
        /// The object referred to.
        target: ObjectName,
    },
    /// A part of a map that does not belong to the others, or a map that the epochs rule out.
    #[error("{url}: object {object} contradicts the rest of its map or the epochs of its volume")]
    Map {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
    },
    /// A volume's stream does not join.
    #[error(
        "{url}: object {} holds seqs {first_seq} to {last_seq} of volume {volume}, but {expected} comes next",
        ObjectName::slot(*log, *slot)
    )]
    Gap {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The log.
        log: LogId,
        /// The slot.
        slot: Slot,
        /// First seq of the span that does not join.
        first_seq: Seq,
        /// Its last seq.
        last_seq: Seq,
        /// The seq that belongs there.
        expected: Seq,
    },
    /// An epoch begins where the one before does not end.
    #[error(
        "{url}: object {object} begins at seq {first_seq}, but the vault holds the volume up to {last_seq}{}",
        end_text(end.as_ref())
    )]
    EpochGap {
        /// The store.
        url: String,
        /// The epoch object.
        object: ObjectName,
        /// First seq of the epoch.
        first_seq: Seq,
        /// Last seq that the logs of the epochs before hold.
        last_seq: Seq,
        /// The missing slot that the log of the epoch before ends at, if it does.
        end: Option<ObjectName>,
    },
    /// An epoch, a base or an entry of the register is missing although a later one exists.
    #[error("{url}: object {object} is missing although {later} exists")]
    LostNumber {
        /// The store.
        url: String,
        /// The missing object.
        object: ObjectName,
        /// A later one that exists.
        later: ObjectName,
    },
    /// A base of a volume that the epochs rule out.
    #[error("{url}: object {object} contradicts the epochs of its volume")]
    Base {
        /// The store.
        url: String,
        /// The base.
        object: ObjectName,
    },
    /// A map that a base names cannot be read: nothing else says what it says.
    #[error(
        "{url}: object {map} cannot be read, or is another map than {object} names: nothing else holds what it holds"
    )]
    BaseMap {
        /// The store.
        url: String,
        /// The base.
        object: ObjectName,
        /// The map.
        map: ObjectName,
        /// Why it cannot be read.
        #[source]
        cause: Option<Box<VaultError>>,
    },
    /// A base is not made.
    #[error("{url}: object {object} is not made: {why}")]
    BaseRefused {
        /// The store.
        url: String,
        /// The base.
        object: ObjectName,
        /// Why not.
        why: &'static str,
    },
    /// Entries of the register that do not go together.
    #[error("{url}: object {object} contradicts the rest of the register: {what}")]
    Register {
        /// The store.
        url: String,
        /// The entry.
        object: ObjectName,
        /// What does not go together.
        what: &'static str,
    },
    /// A statement that makes no entry of the register.
    #[error("{url}: {cause}")]
    Refused {
        /// The store.
        url: String,
        /// Why not.
        cause: Refused,
    },
    /// What a newer version put into an object this one would leave out of the next.
    #[error(
        "{url}: object {object} has what a newer version of Farshore put there; what comes next would be without it, so this version writes nothing behind it: use the newer one"
    )]
    Outgrown {
        /// The store.
        url: String,
        /// The object.
        object: ObjectName,
    },
    /// Others made the next entry of the register again and again.
    #[error("{url}: others make entries of the register all the time: try again")]
    Crowded {
        /// The store.
        url: String,
    },
    /// What an epoch goes on from is not there.
    #[error("{url}: object {object} goes on from point {} at place {} of volume {}, which is not there", base.point, base.at, base.volume)]
    EpochBase {
        /// The store.
        url: String,
        /// The epoch object.
        object: ObjectName,
        /// What it goes on from.
        base: EpochBase,
        /// Why that cannot be read.
        #[source]
        cause: Option<Box<VaultError>>,
    },
    /// An epoch that is not greater than the one before.
    #[error("{url}: object {object} is not of a later epoch than the one before it")]
    EpochOrder {
        /// The store.
        url: String,
        /// The epoch object.
        object: ObjectName,
    },
    /// A span writes past the end of its volume.
    #[error(
        "{url}: object {} writes past the end of volume {volume}",
        ObjectName::slot(*log, *slot)
    )]
    BeyondVolume {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The log.
        log: LogId,
        /// The slot.
        slot: Slot,
    },
    /// A log ends at a missing slot although later ones exist.
    #[error(
        "{url}: object {} is missing although slot {later} exists: segments were lost; name a point from before it",
        ObjectName::slot(*log, *slot)
    )]
    LostSlot {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
        /// The missing slot.
        slot: Slot,
        /// A later one that exists.
        later: Slot,
    },
    /// A checkpoint of a log speaks of other slots than those that are there.
    #[error(
        "{url}: object {object} says something else than the slots in front of it: the store lost some, and others came in their place"
    )]
    CheckpointOfOthers {
        /// The store.
        url: String,
        /// The checkpoint.
        object: ObjectName,
    },
    /// The last slot of a log was there, and is not any more.
    #[error(
        "{url}: object {object} is missing although it was there a moment ago: try again; if it stays so, the store has lost it"
    )]
    LostEnd {
        /// The store.
        url: String,
        /// The missing object.
        object: ObjectName,
    },
    /// The newest horizon of a log is in front of what was deleted.
    #[error(
        "{url}: object {object} is missing, and slots of log {log} in front of {floor} were deleted: the store lost the log's newest horizons, so nobody can tell where it ends"
    )]
    LostHorizon {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
        /// The first horizon that is missing.
        object: ObjectName,
        /// What the register says.
        floor: Slot,
    },
    /// The horizon of a log moved while it was read, or is behind what its reader knows.
    #[error(
        "{url}: history of log {log} was let go while it was read (its horizon {number} is newer): try again"
    )]
    Passed {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
        /// Number of the horizon.
        number: u64,
    },
    /// A log that answers to another register than the one that is there.
    #[error(
        "{url}: log {log} is written by who had applied object {object}, which is lost, or another one now: nothing is deleted until that log is sealed"
    )]
    Answer {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
        /// The entry.
        object: ObjectName,
    },
    /// A log that is in no register: what it refers to is not known to be looked at before something is deleted.
    #[error(
        "{url}: log {log} is not in the vault's register: nothing is deleted until its node was started with a version that writes it there, or it is sealed"
    )]
    Unborn {
        /// The store.
        url: String,
        /// The log.
        log: LogId,
    },
    /// No such volume.
    #[error("{url}: there is no volume {volume} in this vault")]
    NoVolume {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
    },
    /// The volume has no recovery point yet.
    #[error("{url}: volume {volume} has no recovery point yet")]
    NoPoint {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
    },
    /// The volume has no such recovery point.
    #[error("{url}: volume {volume} has no recovery point {point}")]
    PointNotFound {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The point.
        point: PointId,
    },
    /// The newest base of the volume does not keep the recovery point.
    #[error("{url}: volume {volume} has no recovery point {} any more: {object} does not list it; retention has removed it, if there ever was one", gone_text(*point))]
    PointGone {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The point.
        point: PointSelector,
        /// The base.
        object: ObjectName,
    },
    /// The volume has no such recovery point before a missing slot.
    #[error(
        "{url}: volume {volume} has no recovery point {point} before object {}, which is missing although slot {later} exists: unless its put is still under way, that segment is lost",
        ObjectName::slot(*log, *slot)
    )]
    PointBehindHole {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The point.
        point: PointId,
        /// The log.
        log: LogId,
        /// The missing slot.
        slot: Slot,
        /// A later one that exists.
        later: Slot,
    },
    /// The volume has no recovery point at that seq.
    #[error("{url}: volume {volume} has no recovery point at seq {seq}")]
    SeqNotFound {
        /// The store.
        url: String,
        /// The volume.
        volume: VolumeId,
        /// The seq.
        seq: Seq,
    },
    /// A read past the end, or over the limit.
    #[error(
        "blocks {block} to {end} cannot be read at once: the volume has {blocks}, one read has at most {max}"
    )]
    Range {
        /// First block.
        block: u64,
        /// The block behind the last.
        end: u64,
        /// Blocks of the volume.
        blocks: u64,
        /// Most blocks of one read.
        max: u64,
    },
    /// Something grew past its limit.
    #[error("{url}: {what}: more than {max}")]
    Limit {
        /// The store.
        url: String,
        /// What.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// Something cannot be sealed.
    #[error("cannot seal {object}: {cause}")]
    Seal {
        /// The object.
        object: ObjectName,
        /// Why.
        cause: Box<CodecError>,
    },
    /// A background task was cancelled or panicked.
    #[error("a task of the vault reader ended early")]
    Task {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl VaultError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::NotAVault { .. }
            | Self::WrongKey { .. }
            | Self::NotRecovery { .. }
            | Self::NotWriteOnce { .. }
            | Self::Version { .. }
            | Self::BadRevision { .. }
            | Self::Range { .. } => ErrorKind::Invalid,
            Self::AlreadyAVault { .. }
            | Self::NotEmpty { .. }
            | Self::LastRecoveryKey { .. }
            | Self::Passed { .. }
            | Self::Revised { .. }
            | Self::BaseRefused { .. }
            | Self::TwoWriters { .. } => ErrorKind::Conflict,
            Self::Crowded { .. } => ErrorKind::Conflict,
            Self::Outgrown { .. } => ErrorKind::Invalid,
            Self::Refused { cause, .. } => cause.kind(),
            Self::Key { cause, .. } => cause.kind(),
            Self::Damaged { .. }
            | Self::Lost { .. }
            | Self::UnknownKey { .. }
            | Self::Replaced { .. }
            | Self::Reference { .. }
            | Self::Map { .. }
            | Self::Gap { .. }
            | Self::NoIdentity { .. }
            | Self::NotThatKey { .. }
            | Self::Mixed { .. }
            | Self::EpochGap { .. }
            | Self::EpochBase { .. }
            | Self::Base { .. }
            | Self::BaseMap { .. }
            | Self::EpochOrder { .. }
            | Self::Register { .. }
            | Self::LostNumber { .. }
            | Self::Answer { .. }
            | Self::Unborn { .. }
            | Self::BeyondVolume { .. }
            | Self::CheckpointOfOthers { .. }
            | Self::LostEnd { .. }
            | Self::LostHorizon { .. }
            | Self::LostSlot { .. } => ErrorKind::Corrupt,
            Self::NoVolume { .. }
            | Self::NoWrapper { .. }
            | Self::NoPoint { .. }
            | Self::PointNotFound { .. }
            | Self::PointGone { .. }
            | Self::Erased { .. }
            | Self::Withheld { .. }
            | Self::PointBehindHole { .. }
            | Self::SeqNotFound { .. } => ErrorKind::NotFound,
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Seal { cause, .. } => cause.kind(),
            Self::Task { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the vault's store is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_no_space())
    }

    /// Whether a store that answered well does not show what it must have: what it has is shown late, or lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::LostSlot { .. } | Self::LostEnd { .. } | Self::LostHorizon { .. })
    }

    /// Whether the store could not be asked: trying again may help.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Store(error) if !matches!(error, StoreError::NotFound { .. } | StoreError::TooLarge { .. }))
            || matches!(self, Self::Task { .. })
    }

    /// The same, with what made it so, where a map was not looked at again because it could not be read before.
    #[must_use]
    pub(crate) fn caused_by(self, error: Self) -> Self {
        match self {
            Self::BaseMap { url, object, map, cause: None } => {
                Self::BaseMap { url, object, map, cause: Some(Box::new(error)) }
            }
            known => known,
        }
    }

    /// Whether another try may end otherwise: the store could not be asked, or history was let go meanwhile.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.is_unavailable() || matches!(self, Self::Passed { .. })
    }

    /// Whether a newer version wrote something that must be understood.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, Self::Version { .. })
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }
}

/// The keys that there are; many are cut short.
fn there_text(there: &[Fingerprint]) -> String {
    const SHOWN_MAX: usize = 8;
    if there.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = there.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    let more = if there.len() > SHOWN_MAX { ", …" } else { "" };
    format!(", whose keys have the fingerprints {}{more}", shown.join(", "))
}

fn gone_text(point: PointSelector) -> String {
    match point {
        PointSelector::Latest => "at its end".to_owned(),
        PointSelector::Point(id) => id.to_string(),
        PointSelector::Seq(seq) => format!("at seq {seq}"),
    }
}

fn end_text(end: Option<&ObjectName>) -> String {
    end.map_or_else(String::new, |slot| format!(": object {slot} is missing"))
}
