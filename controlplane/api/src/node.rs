//! What a node tells the control plane, and what it is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::agent::{PointReport, ReportOrder};
use crate::identity::Certified;
use crate::machine::VolumeStats;

pub use crate::agent::{Registered, Reported};

/// Says where the node listens. Sent at every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    /// `ip:port` that agents connect to.
    pub address: String,
    /// Number of shards.
    pub shards: u32,
    /// The node's version.
    pub version: String,
}

/// The volumes that a node owns. A volume that is not listed (any more) is to be let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// Give this as `after` in the next poll; it is then answered when something differs, or after
    /// `wait_ms`. Only for comparing: greater is newer.
    pub version: u64,
    /// Its volumes.
    pub volumes: Vec<NodeVolume>,
    /// Volumes that were its and are fenced: the fence waits until the node says that it let them go.
    #[serde(default)]
    pub to_let_go: Vec<ToLetGo>,
}

/// A volume that a node had and that is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToLetGo {
    /// The volume.
    pub volume: Uuid,
    /// The epoch of the fence: says which fence it is.
    pub epoch: u64,
}

/// One volume that a node owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVolume {
    /// The volume.
    pub volume: Uuid,
    /// Accept frames of this epoch only.
    pub epoch: u64,
    /// The last epoch that a node was given before this one, to be fenced in the vault first; null
    /// for the first. That node may never have written: the vault says.
    pub parent_epoch: Option<u64>,
    /// The only agent that may send.
    pub agent: Uuid,
    /// Certificates of the agent of an older generation are over; `u64::MAX` when it was revoked.
    #[serde(default)]
    pub agent_generation_min: u64,
    /// Name of the machine.
    pub machine: String,
    /// Its id; null from a control plane that does not say it.
    #[serde(default)]
    pub machine_id: Option<Uuid>,
    /// What the machine calls the disk.
    #[serde(default)]
    pub disk: String,
    /// Milliseconds between two marks: the longest that a batch may stay open.
    pub mark_interval_ms: u64,
}

/// How the node does. Idempotent: a report that got no answer may be sent again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// Which of the node's reports it is.
    #[serde(default)]
    pub order: ReportOrder,
    /// Seconds since the process started.
    pub uptime_seconds: f64,
    /// CPU time of the process, user and system.
    pub cpu_seconds: f64,
    /// Its volumes, at most [`crate::limits::REPORT_VOLUMES_MAX`].
    #[serde(default)]
    pub volumes: Vec<NodeVolumeReport>,
    /// Marks committed since the last answered report, at most
    /// [`crate::limits::REPORT_POINTS_MAX`]: a point counts even if its agent died before it could
    /// report it.
    #[serde(default)]
    pub points: Vec<PointReport>,
    /// Volumes whose epoch lies in a log that the node cannot write, because it lost its state or
    /// began new logs: only a greater epoch lets it go on. At most
    /// [`crate::limits::REPORT_VOLUMES_MAX`]; named again for as long as it holds.
    #[serde(default)]
    pub epochs_wanted: Vec<Uuid>,
    /// Volumes that a newer epoch than the node's owns in the vault, as after the control plane's
    /// catalogue was put back from an older copy: it raises theirs above those. At most
    /// [`crate::limits::REPORT_VOLUMES_MAX`]; named again for as long as it holds.
    #[serde(default)]
    pub epochs_seen: Vec<EpochSeen>,
    /// Volumes that were to be let go ([`Assignments::to_let_go`]) and are: nothing of them will reach the
    /// node's logs any more. At most [`crate::limits::REPORT_VOLUMES_MAX`]; named again for as long as it is
    /// asked for.
    #[serde(default)]
    pub let_go: Vec<LetGo>,
    /// What keeps the node from its work, as a sentence: a vault that takes no segments, say. Null
    /// when nothing does. Its machines are degraded meanwhile.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Counters by name (`[a-z0-9_.]`, at most 64 bytes), at most
    /// [`crate::limits::REPORT_COUNTERS_MAX`].
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// The newest epoch of a volume that a node found in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochSeen {
    /// The volume.
    pub volume: Uuid,
    /// The epoch, at most [`crate::limits::EPOCH_SEEN_MAX`].
    pub epoch: u64,
}

/// A volume that a node has let go: whatever it was acknowledged is in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LetGo {
    /// The volume.
    pub volume: Uuid,
    /// The epoch of the fence that asked for it.
    pub epoch: u64,
    /// The log that the node's shard of the volume writes. The word is about this log and no other.
    pub log: Uuid,
}

/// How one volume does, seen by its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeVolumeReport {
    /// The volume.
    pub volume: Uuid,
    /// The epoch under which the node writes.
    pub epoch: u64,
    /// Everything up to here is in the journal.
    #[serde(default)]
    pub journaled_seq: u64,
    /// Everything up to here is in the vault.
    #[serde(default)]
    pub committed_seq: u64,
    /// Two living agents claim the volume, as the sentence says; null if not. Neither is let in.
    #[serde(default)]
    pub contested: Option<String>,
    /// What was done with the volume's bytes since this node took it; the control plane keeps the
    /// last numbers of each epoch.
    #[serde(default)]
    pub stats: VolumeStats,
}

/// Whether a node lives, as the control plane's own clock and ears tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeLife {
    /// It was heard lately, or an agent's writes get on under it.
    Heard,
    /// It was not heard since the control plane started or woke up, or is silent for too short a
    /// time, or while nobody is heard. Its volumes stay.
    Silent,
    /// It is silent for too long, but so are others, or only agents speak for it: its volumes stay until a
    /// person says that it is gone.
    Asked,
    /// It is lost: its volumes go to other nodes.
    Lost,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

impl NodeLife {
    /// The word as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
            Self::Asked => "asked",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

/// A node as the operator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub id: Uuid,
    /// `ip:port` that agents connect to.
    pub address: String,
    /// Number of shards.
    pub shards: u32,
    /// Its version.
    pub version: String,
    /// Whether it reported within [`crate::limits::SILENT_AFTER_SECONDS`].
    pub healthy: bool,
    /// When it last reported, by the control plane's wall clock.
    pub last_seen_unix_ms: u64,
    /// Whether it lives.
    pub life: NodeLife,
    /// What keeps it from its work, by its own report; null when nothing does.
    pub trouble: Option<String>,
    /// Volumes placed on it.
    pub volumes: u64,
    /// Seconds since the process started, at its last report.
    pub uptime_seconds: f64,
    /// CPU time of the process at its last report.
    pub cpu_seconds: f64,
    /// Counters of its last report.
    pub counters: BTreeMap<String, u64>,
    /// Where its identity stands.
    #[serde(default)]
    pub certified: Certified,
}

/// All nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    /// In the order of their registration.
    pub nodes: Vec<Node>,
}
