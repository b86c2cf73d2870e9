//! Protected machines and their volumes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::agent::SampleReport;
use crate::point::Point;

/// How the agent learns of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// Reads the disk again at every mark and sends the blocks whose hash differs.
    Scan,
    /// Serves the disk over NBD and sees every write.
    Nbd,
    /// A way that this version does not know. Nobody can ask for it.
    #[serde(other)]
    Unknown,
}

impl Capture {
    /// `scan`, `nbd` or `unknown`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Nbd => "nbd",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a machine's replication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MachineState {
    /// Waits for a node or for its agent's first report.
    Pending,
    /// The initial copy is on its way.
    Copying,
    /// Regions in doubt are read again; points go on once that is done.
    Resyncing,
    /// The initial copy is committed and changes flow.
    Protected,
    /// Was protected, but something is late or silent; the detail says what.
    Degraded,
    /// The agent cannot go on; the detail says why and what to do.
    Error,
    /// Fenced by an unplanned failover: the copy is what runs.
    FailedOver,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Protects a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateMachine {
    /// `[a-z0-9][a-z0-9._-]{0,62}`, unique.
    pub name: String,
    /// Absolute path of the disk (file or block device) on the agent's machine. A link is followed anew
    /// whenever the disk is opened.
    pub disk: String,
    /// How to learn of changes.
    pub capture: Capture,
    /// Policy to follow; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Overrides the policy's mark interval, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark_interval_ms: Option<u64>,
    /// For `nbd`: serve the disk on this port of the agent's loopback in place of a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_port: Option<u16>,
    /// The agent that has the disk; if absent, the only one, or else the first local one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<Uuid>,
}

/// A protected machine as `machine show` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// Where its replication stands.
    pub state: MachineState,
    /// One sentence about the state; empty when there is nothing to say.
    pub state_detail: String,
    /// Age in seconds of the newest data that a failover would bring back; null before the first
    /// commit. It grows while the agent is silent.
    pub rpo_seconds: Option<f64>,
    /// Name of its policy.
    pub policy: String,
    /// Milliseconds between two marks (for scan: between two scans).
    pub mark_interval_ms: u64,
    /// How the agent learns of changes.
    pub capture: Capture,
    /// The agent that has the disk.
    pub agent: Uuid,
    /// The node that its volumes are placed on; null while there is none.
    pub node: Option<Uuid>,
    /// Epoch of its volume; 0 before the first placement.
    pub epoch: u64,
    /// Its disks.
    pub volumes: Vec<Volume>,
    /// The newest committed recovery point.
    pub last_point: Option<Point>,
    /// When it was protected.
    pub created_at_unix_ms: u64,
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Id, also in the vault.
    pub id: Uuid,
    /// Path on the agent's machine, as it was given.
    pub disk: String,
    /// What the disk is: names of its maker or of the system; absent until the agent has opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Size of the disk; 0 until the agent has opened it.
    pub size_bytes: u64,
    /// Share of the initial copy (or resync) that is done, 0 to 1.
    pub progress: f64,
    /// Highest sequence number given to the node.
    pub sent_seq: u64,
    /// Everything up to here is in a node's journal.
    pub journaled_seq: u64,
    /// Everything up to here is in the vault.
    pub committed_seq: u64,
    /// Where the splitter serves the disk (capture `nbd`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_uri: Option<String>,
    /// What comparing the disk with what was sent has brought (capture `nbd`); absent if it is not
    /// compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SampleReport>,
    /// What the node did with the bytes of this volume.
    pub stats: VolumeStats,
}

/// What a node did with the bytes of a volume, since the volume's first epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStats {
    /// Received from the agent.
    #[serde(default)]
    pub bytes_in: u64,
    /// All zeros: not stored.
    #[serde(default)]
    pub zero_bytes: u64,
    /// Known already: stored as references.
    #[serde(default)]
    pub duplicate_bytes: u64,
    /// New: compressed and sealed.
    #[serde(default)]
    pub unique_bytes: u64,
    /// Written to the vault.
    #[serde(default)]
    pub stored_bytes: u64,
}

/// All protected machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machines {
    /// In the order of their names.
    pub machines: Vec<Machine>,
}
