//! What can go wrong when bytes are sealed or opened.

use farshore_proto::object::{ObjectKind, ObjectPlace};
use farshore_proto::{ChunkId, DecodeError, ErrorKind, KeyNumber, LogId, VaultId};
use std::fmt;

/// Where something sealed belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An object of a vault.
    Object(ObjectPlace),
    /// A journal.
    Journal {
        /// The vault.
        vault: VaultId,
        /// The log whose data it holds.
        log: LogId,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(ObjectPlace { kind, vault, subject, number, part }) => {
                let subject = LogId(*subject);
                match kind {
                    ObjectKind::Slot => write!(f, "slot {number} of log {subject}")?,
                    ObjectKind::Epoch => write!(f, "epoch object {number} of volume {subject}")?,
                    ObjectKind::Map => write!(f, "map of volume {subject} at seq {number}")?,
                    ObjectKind::Pages => {
                        write!(f, "part {part} of a map of volume {subject} at seq {number}")?;
                    }
                    ObjectKind::IndexRun => write!(f, "index run {subject}")?,
                    ObjectKind::Checkpoint => {
                        write!(f, "checkpoint at slot {number} of log {subject}")?;
                    }
                    ObjectKind::Horizon => write!(f, "horizon {number} of log {subject}")?,
                    ObjectKind::Register => write!(f, "register entry {number}")?,
                    ObjectKind::Machine => write!(f, "revision {number} of machine {subject}")?,
                    ObjectKind::Group => write!(f, "revision {number} of group {subject}")?,
                    ObjectKind::Base => write!(f, "base {number} of volume {subject}")?,
                    ObjectKind::Revision => write!(f, "revision {number}")?,
                }
                write!(f, " in vault {vault}")
            }
            Self::Journal { vault, log } => write!(f, "journal of log {log} in vault {vault}"),
        }
    }
}

/// Bytes that cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The layout is wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The object is whole, but it is another one than the caller asked for.
    #[error("the object found is the {found}, the {expected} was expected")]
    Misplaced {
        /// What the caller asked for.
        expected: Place,
        /// What the object says it is.
        found: Place,
    },
    /// A journal group of another file or number.
    #[error(
        "found group {found_group} of journal file {found_file} in place of group {group} of file {file}"
    )]
    MisplacedGroup {
        /// The file being read.
        file: u64,
        /// The group expected.
        group: u64,
        /// The file the group belongs to.
        found_file: u64,
        /// Its number there.
        found_group: u64,
    },
    /// No data key of that number is at hand.
    #[error("data key {key} is not among the keys of the vault")]
    NoKey {
        /// The number that the object names.
        key: KeyNumber,
    },
    /// No key of the vault's own has that number, which a header names that nobody has authenticated.
    #[error("data key {key}, which it should commit to, is not among the vault's own keys")]
    NoOwnKey {
        /// The number that the header names.
        key: KeyNumber,
    },
    /// The key derived from the data key is not the one that the object commits to.
    #[error("{what}: data key {key} is not the key that sealed it, or its header is damaged")]
    KeyMismatch {
        /// The object.
        what: &'static str,
        /// The data key.
        key: KeyNumber,
    },
    /// The bytes of a chunk are not those that whoever refers to it knows.
    #[error("chunk {number}: its bytes are not those that are referred to")]
    OtherChunk {
        /// Number of the chunk in its segment.
        number: u32,
    },
    /// What was found is of another attempt to write the object: the one that is meant is gone.
    #[error("{what}: it is of another attempt than the one that is meant")]
    Attempt {
        /// The part.
        what: &'static str,
    },
    /// The tag does not match: damaged bytes, or bytes of another place.
    #[error("{what}: the sealed bytes are damaged or belong elsewhere")]
    Tampered {
        /// The part that does not open.
        what: &'static str,
    },
    /// The parts of an object contradict each other.
    #[error("{what}: {found} bytes where {expected} are expected")]
    Length {
        /// The part.
        what: &'static str,
        /// Bytes expected.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Compressed bytes that do not decompress to what was recorded.
    #[error("{what}: the compressed bytes are damaged")]
    Compressed {
        /// The part.
        what: &'static str,
    },
    /// Over a limit, refused before anything was allocated.
    #[error("{what}: {value} is over the limit of {max}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The value found.
        value: u64,
        /// The largest legal value.
        max: u64,
    },
    /// A chunk whose bytes do not hash to its id.
    #[error("chunk {id}: its bytes do not hash to its id")]
    ChunkDiffers {
        /// The id expected.
        id: ChunkId,
    },
    /// A number that refers to nothing.
    #[error("{what} {number} does not exist")]
    Missing {
        /// What the number counts.
        what: &'static str,
        /// The number.
        number: u64,
    },
    /// What was just sealed does not open to what was sealed: broken hardware or a bug.
    #[error(
        "{what}: what was sealed does not open again; check this machine's memory and processor"
    )]
    Unverified {
        /// The part.
        what: &'static str,
    },
    /// The compressor failed.
    #[error("zstd cannot compress {bytes} bytes")]
    Compressor {
        /// Bytes it was given.
        bytes: usize,
    },
    /// The cipher failed to seal.
    #[error("{what}: the cipher refused to seal {bytes} bytes")]
    Cipher {
        /// The part.
        what: &'static str,
        /// Bytes it was given.
        bytes: usize,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Entropy,
}

impl CodecError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Decode(error) => error.kind(),
            Self::Misplaced { .. }
            | Self::MisplacedGroup { .. }
            | Self::KeyMismatch { .. }
            | Self::Tampered { .. }
            | Self::Attempt { .. }
            | Self::OtherChunk { .. }
            | Self::Length { .. }
            | Self::Compressed { .. }
            | Self::ChunkDiffers { .. }
            | Self::Missing { .. } => ErrorKind::Corrupt,
            Self::NoKey { .. } | Self::NoOwnKey { .. } => ErrorKind::NotFound,
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Unverified { .. } | Self::Compressor { .. } | Self::Cipher { .. } => {
                ErrorKind::Internal
            }
            Self::Entropy => ErrorKind::Unavailable,
        }
    }
}
