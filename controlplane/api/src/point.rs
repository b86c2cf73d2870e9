//! Recovery points: marks that are committed to the vault.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::selector::{IdPrefix, MalformedPoint, PointSelector};

/// Difference of two clocks, in milliseconds, from which on it is told.
pub const CLOCK_DOUBT_MS: u64 = 5_000;

/// What a mark promises of the data at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointKind {
    /// The disk as after a power cut at that moment.
    #[default]
    Crash,
    /// File systems (and applications with hooks) were quiet. No agent can do that yet: asking for
    /// one is refused.
    App,
    /// Fuzzy: the disk was read while it was written, and no instant had all of it. Agents set
    /// these of disks that they scan; nobody can ask for one.
    Scan,
    /// File systems were frozen: they need no repair. No agent can do that yet.
    #[serde(rename = "file-system")]
    FileSystem,
    /// The last one: what wrote the disk was stopped before. No agent sets one yet.
    Final,
    /// A kind that this version does not know. Nobody can ask for one.
    #[serde(other)]
    Unknown,
}

impl PointKind {
    /// `crash`, `app`, `scan`, `file-system`, `final` or `unknown`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::App => "app",
            Self::Scan => "scan",
            Self::FileSystem => "file-system",
            Self::Final => "final",
            Self::Unknown => "unknown",
        }
    }

    /// The kind that a word names, as [`Self::as_str`] gives it: the vault's kinds of marks have the same. `Unknown` if none
    /// does.
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        const ALL: [PointKind; 5] = [
            PointKind::Crash,
            PointKind::App,
            PointKind::Scan,
            PointKind::FileSystem,
            PointKind::Final,
        ];
        ALL.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Unknown)
    }

    /// Why a point that promises this cannot be asked for, if so.
    #[must_use]
    pub const fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Crash => None,
            Self::App => Some("cannot be `app`: no agent can quiet applications yet"),
            Self::Scan => Some("cannot be `scan`: agents say that themselves of disks they scan"),
            Self::FileSystem => {
                Some("cannot be `file-system`: no agent can freeze file systems yet")
            }
            Self::Final => Some("cannot be `final`: no agent sets a last point yet"),
            Self::Unknown => Some("is one that this version does not know; say `crash`"),
        }
    }
}

/// Where a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointState {
    /// The agent has been asked for it.
    Requested,
    /// In the vault: it restores.
    Committed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// One recovery point of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Id of the mark, a UUIDv7.
    pub point: Uuid,
    /// What it promises.
    pub kind: PointKind,
    /// Place among the machine's points: the seq of its first volume. The greater, the newer,
    /// whatever the times say; null while requested.
    #[serde(default)]
    pub rank: Option<u64>,
    /// When the mark was set, by the agent's clock; when it was asked for, while requested.
    pub time_unix_ms: u64,
    /// When it was set, by the control plane's clock as far as that can be told: never after it was
    /// heard of, and never before an older point. Points are chosen by it where a time is given.
    #[serde(default)]
    pub at_unix_ms: Option<u64>,
    /// When the control plane heard that it is committed, by its own clock.
    #[serde(default)]
    pub heard_unix_ms: Option<u64>,
    /// How far the agent's clock was ahead of the control plane's when it set the mark (negative:
    /// behind), if that is [`CLOCK_DOUBT_MS`] or more.
    #[serde(default)]
    pub clock_off_ms: Option<i64>,
    /// Where it stands.
    pub state: PointState,
    /// Where it lies in each volume's stream; empty while requested.
    pub volumes: Vec<PointVolume>,
}

/// Where a point lies in one volume's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointVolume {
    /// The volume.
    pub volume: Uuid,
    /// The point is the stream's prefix up to and including this.
    pub seq: u64,
    /// Blocks of 4 KiB of the disk that could not be read: the point does not hold them as they were.
    /// As many as 2^32 − 1 means that many or more.
    #[serde(default)]
    pub unknown_blocks: u32,
}

/// A machine's points by rank, newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Points {
    /// At most the asked-for number, the newest ones; older ones with `?before=<first point>`.
    pub points: Vec<Point>,
}

/// Asks for a point now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreatePoint {
    /// What it shall promise; only `crash` is taken ([`PointKind::refusal`]).
    #[serde(default)]
    pub kind: PointKind,
    /// The id that it is to have, made by the caller: asking again after a lost answer then asks for
    /// the same point. A new one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<Uuid>,
}
