//! Identifiers and units as types: no function of the data plane takes two bare integers.

use crate::limits::BLOCK_BYTES;
use std::fmt;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The id as 16 bytes, in the order of its text.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id.into_bytes())
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                Self::from_bytes(id.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self::from)
            }
        }
    };
}

uuid_id! {
    /// One vault: a place in an object store that holds recovery data.
    VaultId
}
uuid_id! {
    /// One protected disk.
    VolumeId
}
uuid_id! {
    /// One append-only log in the vault; one shard of one node writes it.
    LogId
}
uuid_id! {
    /// One recovery point (mark). All volumes of a machine carry the same id for the same mark.
    PointId
}

uuid_id! {
    /// One protected server.
    MachineId
}
uuid_id! {
    /// Volumes that are marked together.
    GroupId
}

uuid_id! {
    /// One attempt to mark several volumes at one instant.
    MarkAttempt
}

uuid_id! {
    /// One attempt to write a map of a volume.
    MapAttempt
}

uuid_id! {
    /// One run of the dedup index in the vault.
    RunId
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            ///
            /// # Panics
            /// At 2^64 - 1, which no run can reach.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a 64-bit counter does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// The place of a write or mark in its volume's stream. The first is 1; 0 means "none yet".
    /// All order in Farshore comes from this number, never from a clock.
    Seq
}
number! {
    /// Who may write a volume: issued by the control plane, strictly increasing per volume, from 1.
    Epoch
}
number! {
    /// The place of a segment in its log, from 0.
    Slot
}

/// Number of a wrapped data key in the vault, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyNumber(pub u32);

impl fmt::Display for KeyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A dedup domain of a vault: volumes that share chunks, chunk ids and keys. The first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub u32);

impl Domain {
    /// None: what is the vault's own, whatever its domains are.
    pub const OWN: Self = Self(0);
    /// The domain that each vault has.
    pub const FIRST: Self = Self(1);
}

/// Which attempt at the name of an object: the first bytes of its salt, which each attempt draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub [u8; 8]);

impl Attempt {
    /// Of the object that has this salt.
    #[must_use]
    pub fn of(salt: &[u8; 32]) -> Self {
        let mut attempt = [0; 8];
        attempt.copy_from_slice(&salt[..8]);
        Self(attempt)
    }
}

/// A place in a volume's stream: all of it up to and including `seq`, as far as the epoch of an ordinal goes. Streams
/// that part at a failover have the same seqs; places tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Ordinal of the epoch, from 1.
    pub ordinal: u64,
    /// The last seq.
    pub seq: Seq,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ordinal, self.seq)
    }
}

/// Keyed BLAKE3-256 of a chunk's bytes; equal only inside one vault's dedup domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// Which frame one is among all that could have its number: 24 bits of the checksum of its header, which
/// covers its body's, and the imprint of the frame before it; see `docs/formats/frame.md`.
///
/// The default says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Imprint([u8; 3]);

impl Imprint {
    /// Of a frame whose header has this checksum.
    #[must_use]
    pub fn of(checksum: u32) -> Self {
        let [a, b, c, _] = checksum.to_le_bytes();
        // 0 says nothing.
        Self([a.max(u8::from((b, c) == (0, 0))), b, c])
    }

    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 3]) -> Self {
        Self(bytes)
    }

    /// Its bytes, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 3] {
        self.0
    }

    /// Whether it says anything.
    #[must_use]
    pub fn is_known(self) -> bool {
        self != Self::default()
    }

    /// Whether both say something, and it is not the same.
    #[must_use]
    pub fn differs(self, other: Self) -> bool {
        self.is_known() && other.is_known() && self != other
    }
}

/// Under which durable intents of which run of an agent a frame was made; see
/// `docs/formats/frame.md`.
///
/// The default is of frames made without intents: it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Drawn at each start of an agent; 0 if there are no intents.
    pub life: u32,
    /// Raised with every durable write of the intents; from [`Stamp::UNSAID`] on if nothing is said of them.
    pub generation: u32,
}

impl Stamp {
    /// The generations of frames that say only whose they are begin here: above every one that intents have.
    pub const UNSAID: u32 = 1 << 31;

    /// Of a frame that says nothing of intents, but in which sending of the whole disk it was made: one that
    /// began behind a lost or foreign end gives numbers a second time. `sending` counts them, modulo 2^31.
    #[must_use]
    pub fn unsaid(life: u32, sending: u32) -> Self {
        // Without a life nobody's: as from an agent that has no intents.
        let generation = if life == 0 { 0 } else { Self::UNSAID | sending };
        Self { life, generation }
    }

    /// Whether it says anything.
    #[must_use]
    pub fn is_known(self) -> bool {
        self != Self::default()
    }

    /// As one number.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        u64::from(self.life) << 32 | u64::from(self.generation)
    }

    /// From one number.
    #[must_use]
    pub fn from_u64(value: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        let (life, generation) = ([a, b, c, d], [e, f, g, h]);
        Self { life: u32::from_be_bytes(life), generation: u32::from_be_bytes(generation) }
    }
}

/// What a mark promises about the data below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkKind {
    /// As after a power cut at that instant.
    Crash,
    /// Applications were quiet and had flushed.
    App,
    /// Fuzzy: the disk was read while it was written, no instant had all of it.
    Scan,
    /// File systems were frozen: they need no repair.
    FileSystem,
    /// The last one: what wrote the disk was stopped before.
    Final,
    /// One of a later program, that promises no less than a crash.
    Other(OtherKind),
}

/// The code of a kind of mark that is not known: at least [`FIRST`](Self::FIRST), as those that promise less than a crash
/// are below, and refused by who does not know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherKind(u8);

impl OtherKind {
    /// The first of their codes.
    pub const FIRST: u8 = 128;
}

impl MarkKind {
    /// Every kind that is known.
    pub const ALL: [Self; 5] = [Self::Crash, Self::App, Self::Scan, Self::FileSystem, Self::Final];

    /// Its word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::App => "app",
            Self::Scan => "scan",
            Self::FileSystem => "file-system",
            Self::Final => "final",
            Self::Other(_) => "other",
        }
    }

    /// Its byte in every format.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Crash => 1,
            Self::App => 2,
            Self::Scan => 3,
            Self::FileSystem => 4,
            Self::Final => 5,
            Self::Other(kind) => kind.0,
        }
    }

    /// The kind of a byte, if legal.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Crash),
            2 => Some(Self::App),
            3 => Some(Self::Scan),
            4 => Some(Self::FileSystem),
            5 => Some(Self::Final),
            OtherKind::FIRST.. => Some(Self::Other(OtherKind(code))),
            _ => None,
        }
    }
}

/// Milliseconds of a monotonic clock that the driver chose; only differences mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time plus `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; 0 if that is later.
    #[must_use]
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A run of 4 KiB blocks of a volume; never empty when it comes from a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockRange {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
}

impl BlockRange {
    /// The first block after the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.block + self.count
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.count * BLOCK_BYTES as u64
    }

    /// Byte offset of the first block.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.block * BLOCK_BYTES as u64
    }

    /// Whether the two share a block.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.block < other.end() && other.block < self.end()
    }
}
