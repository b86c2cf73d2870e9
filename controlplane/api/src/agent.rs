//! What an agent tells the control plane, and what it is told.
//!
//! Life of an agent: enrol → register (at every start) → poll assignments and report every
//! [`crate::limits::REPORT_INTERVAL_MS`], in two independent loops. It goes on replicating when the
//! control plane does not answer.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::identity::Certified;
use crate::machine::Capture;
use crate::point::PointKind;

/// Says where the agent runs. Sent at every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterAgent {
    /// Name of its machine.
    pub hostname: String,
    /// The agent's version.
    pub version: String,
    /// Whether it runs beside the control plane (`farshore up`): the default for new machines.
    #[serde(default)]
    pub local: bool,
}

/// Answer to a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The identity in the certificate.
    pub id: Uuid,
}

/// What the agent is to replicate.
///
/// Only `detached` ends a volume: its disk is served until the last client has left. A volume of
/// which nothing is said goes on as it was told last: its server must not lose its disk because a
/// database was restored or a node is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// Give this as `after` in the next poll; it is then answered when something differs, or after
    /// `wait_ms`. Only for comparing: greater is newer.
    pub version: u64,
    /// Volumes that are placed on a node.
    pub volumes: Vec<AgentVolume>,
    /// Volumes that the agent is to end, because somebody unprotected their machines; listed until it
    /// has said that it did ([`AgentReport::detached`]).
    #[serde(default)]
    pub detached: Vec<Uuid>,
    /// Volumes whose machines run elsewhere since a failover: nobody takes what is written to them
    /// here. Their disks are served on.
    #[serde(default)]
    pub fenced: Vec<Uuid>,
}

/// One volume for the agent to replicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentVolume {
    /// The volume.
    pub volume: Uuid,
    /// Name of the machine that it belongs to.
    pub machine: String,
    /// Path of the disk.
    pub disk: String,
    /// How to learn of changes.
    pub capture: Capture,
    /// For `nbd`: serve the disk on this loopback port in place of a Unix socket.
    #[serde(default)]
    pub nbd_port: Option<u16>,
    /// Milliseconds between two marks.
    pub mark_interval_ms: u64,
    /// Goes into every frame; the node refuses others.
    pub epoch: u64,
    /// The size that the volume has under this epoch, since its disk has grown; absent before. The agent
    /// sends under the epoch once it has taken that over.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Where to send.
    pub node: NodeAddress,
    /// Marks to set as soon as possible, under these ids; listed until they are reported committed.
    pub marks_requested: Vec<MarkRequest>,
}

/// How to reach a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The node.
    pub id: Uuid,
    /// `ip:port` to connect to.
    pub address: String,
    /// TLS server name to ask for ([`crate::identity::node_server_name`]).
    pub server_name: String,
    /// Certificates of an older generation are over; `u64::MAX` when the node was revoked.
    #[serde(default)]
    pub generation_min: u64,
}

/// A mark that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRequest {
    /// Id that the mark is to have.
    pub point: Uuid,
    /// What it is to promise.
    pub kind: PointKind,
}

/// Which of the reports of an agent or node one is: of a late one only what stays true counts. With a nil
/// run, reports count as they come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportOrder {
    /// Drawn by each run of a process. Drawn again when an answer says that a report was late
    /// ([`Reported::late`]), though it was the last that was sent.
    pub run: Uuid,
    /// Grows with each report of a run.
    pub number: u64,
}

impl ReportOrder {
    /// The order of the next report, and of the first one of a new run if the answer to this one was that
    /// it is late.
    #[must_use]
    pub fn next(self, was_late: bool) -> Self {
        if was_late || self.run.is_nil() {
            return Self { run: Uuid::new_v4(), number: 1 };
        }
        Self { number: self.number + 1, ..self }
    }
}

/// How the agent's volumes do, and which marks became committed.
///
/// Idempotent: a report that got no answer may be sent again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentReport {
    /// Which of the agent's reports it is.
    #[serde(default)]
    pub order: ReportOrder,
    /// The agent's clock when it says this: how far it is off shows beside its points.
    #[serde(default)]
    pub clock_unix_ms: Option<u64>,
    /// All volumes that the agent has, at most [`crate::limits::REPORT_VOLUMES_MAX`].
    pub volumes: Vec<AgentVolumeReport>,
    /// Marks committed since the last answered report, at most
    /// [`crate::limits::REPORT_POINTS_MAX`].
    #[serde(default)]
    pub points: Vec<PointReport>,
    /// Of the volumes that are to be ended, those that the agent does not serve (any more); at most
    /// [`crate::limits::REPORT_VOLUMES_MAX`].
    #[serde(default)]
    pub detached: Vec<Uuid>,
}

/// Where the replication of one volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Not started yet, or waits for its node.
    Pending,
    /// The initial copy is on its way.
    Copying,
    /// Regions in doubt are being read again.
    Resyncing,
    /// The initial copy is committed and changes flow.
    Protected,
    /// Something is late; the detail says what.
    Degraded,
    /// Cannot go on; `error` says why.
    Error,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl VolumeState {
    /// The state as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Copying => "copying",
            Self::Resyncing => "resyncing",
            Self::Protected => "protected",
            Self::Degraded => "degraded",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }
}

/// What a disk is, whatever it is called on its server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// The same for one disk wherever one asks, different for two; what follows the last `#` is where a
    /// partition begins on the disk before it. Empty if nothing is known.
    #[serde(default)]
    pub key: String,
    /// The same for people.
    #[serde(default)]
    pub text: String,
}

/// What comparing a served disk with what was sent of it has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleReport {
    /// Bytes compared since the disk is served.
    #[serde(default)]
    pub bytes: u64,
    /// Times that all of the disk was.
    #[serde(default)]
    pub rounds: u64,
    /// How often the disk was not what was sent, over all runs of the agent.
    #[serde(default)]
    pub differences: u64,
    /// Where that was last.
    #[serde(default)]
    pub last: Option<Difference>,
}

/// Bytes of a disk that were not what was sent of them, though nobody was seen to write them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The first.
    pub offset: u64,
    /// From the first to the last.
    pub length: u64,
    /// When it was seen, by the agent's clock.
    pub time_unix_ms: u64,
}

/// How one volume does, seen by its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentVolumeReport {
    /// The volume.
    pub volume: Uuid,
    /// The epoch under which the agent sends.
    pub epoch: u64,
    /// Where it stands.
    pub state: VolumeState,
    /// One sentence about the state; may be empty.
    #[serde(default)]
    pub detail: String,
    /// Share of the initial copy or resync that is done, 0 to 1.
    #[serde(default)]
    pub progress: f64,
    /// Size of the disk.
    #[serde(default)]
    pub size_bytes: u64,
    /// Highest sequence number sent.
    #[serde(default)]
    pub sent_seq: u64,
    /// Acked journaled.
    #[serde(default)]
    pub journaled_seq: u64,
    /// Acked committed.
    #[serde(default)]
    pub committed_seq: u64,
    /// Age of the newest committed mark's data now; null before the first one.
    #[serde(default)]
    pub rpo_seconds: Option<f64>,
    /// Where the splitter serves the disk.
    #[serde(default)]
    pub nbd_uri: Option<String>,
    /// Why it cannot go on, and what to do.
    #[serde(default)]
    pub error: Option<String>,
    /// What the disk is that the agent has open.
    #[serde(default)]
    pub identity: Option<DiskIdentity>,
    /// What comparing the disk with what was sent has brought; absent if it is not compared: a scan
    /// compares all of it at each pass.
    #[serde(default)]
    pub samples: Option<SampleReport>,
    /// The size that the disk has grown to, while its volume is smaller: a new epoch is asked for.
    #[serde(default)]
    pub grown_to_bytes: Option<u64>,
}

/// A mark that is in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointReport {
    /// Id of the mark, a UUIDv7.
    pub point: Uuid,
    /// The volume.
    pub volume: Uuid,
    /// The epoch under which it became committed. A point told late, after a failover, counts if it lies
    /// before the fence; 0, not known, is before every fence.
    #[serde(default)]
    pub epoch: u64,
    /// The point is the stream's prefix up to and including this.
    pub seq: u64,
    /// What it promises.
    pub kind: PointKind,
    /// Blocks of 4 KiB that could not be read ([`crate::point::PointVolume::unknown_blocks`]).
    #[serde(default)]
    pub unknown_blocks: u32,
    /// When it was set, by the agent's clock.
    pub time_unix_ms: u64,
}

/// Answer to a report of an agent or a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Newest version of the assignments; poll if it differs from yours.
    pub version: u64,
    /// Volumes of the report that are not yours (any more); what was said of them was ignored.
    pub ignored_volumes: Vec<Uuid>,
    /// A newer report of yours, or one of a later run, was there before: of this one only what stays true
    /// was taken.
    #[serde(default)]
    pub late: bool,
}

/// An agent as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its identity.
    pub id: Uuid,
    /// Name of its machine.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// Whether it runs beside the control plane.
    pub local: bool,
    /// Whether it reported within [`crate::limits::SILENT_AFTER_SECONDS`].
    pub healthy: bool,
    /// When it was last heard.
    pub last_seen_unix_ms: u64,
    /// Machines that it protects.
    pub machines: u64,
    /// Where its identity stands.
    #[serde(default)]
    pub certified: Certified,
}

/// All agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agents {
    /// In the order of their registration.
    pub agents: Vec<Agent>,
}
