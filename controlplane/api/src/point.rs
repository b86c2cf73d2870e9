//! Recovery points: marks that are committed to the vault.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
}

impl PointKind {
    /// `crash`, `app` or `scan`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::App => "app",
            Self::Scan => "scan",
        }
    }

    /// Why a point that promises this cannot be asked for, if so.
    #[must_use]
    pub const fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Crash => None,
            Self::App => Some("cannot be `app`: no agent can quiet applications yet"),
            Self::Scan => Some("cannot be `scan`: agents say that themselves of disks they scan"),
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
    /// When the mark was set, by the agent's clock; when it was asked for, while requested.
    pub time_unix_ms: u64,
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

/// A machine's points, newest last.
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
}

/// Names a point: by id, or `latest` for the newest committed one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PointSelector {
    /// The newest committed one.
    #[default]
    Latest,
    /// This one.
    Id(Uuid),
}

impl fmt::Display for PointSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("latest"),
            Self::Id(id) => id.fmt(formatter),
        }
    }
}

/// The text is neither `latest` nor a point's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is neither `latest` nor a recovery point's id")]
pub struct MalformedPoint {
    /// What was given, cut to 64 characters.
    pub text: String,
}

impl FromStr for PointSelector {
    type Err = MalformedPoint;

    fn from_str(text: &str) -> Result<Self, MalformedPoint> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        Uuid::parse_str(text)
            .map(Self::Id)
            .map_err(|_| MalformedPoint { text: text.chars().take(64).collect() })
    }
}

impl Serialize for PointSelector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointSelector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_survive_json() {
        for selector in [PointSelector::Latest, PointSelector::Id(Uuid::from_u128(9))] {
            let json = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<PointSelector>(&json).unwrap(), selector);
        }
        assert!(serde_json::from_str::<PointSelector>("\"newest\"").is_err());
    }
}
