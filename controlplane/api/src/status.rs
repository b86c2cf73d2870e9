//! The control plane about itself.

use serde::{Deserialize, Serialize};

/// What runs, on which vault, with how many of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the control plane.
    pub version: String,
    /// URL of the vault.
    pub vault: String,
    /// Hex of the BLAKE3-256 of the CA certificate's DER, as enrolment tokens hold it.
    pub ca_fingerprint: String,
    /// When this process started.
    pub started_at_unix_ms: u64,
    /// By which time old points go.
    #[serde(default)]
    pub retention: RetentionStatus,
    /// How many there are of everything.
    pub counts: Counts,
}

/// By which time old points go: the wall clock's, unless that jumped forward further than time has
/// passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionStatus {
    /// The time, at the last look; null before the first.
    pub time_unix_ms: Option<u64>,
    /// While the wall clock is not believed: how much time has to pass until it is. Points are kept
    /// for longer meanwhile.
    pub doubt_ms: u64,
    /// While the wall clock is not believed: how many points would be dropped at once if it were.
    pub points_in_doubt: u64,
}

/// How many there are of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Agents that ever registered.
    pub agents: u64,
    /// Nodes that ever registered.
    pub nodes: u64,
    /// Nodes that reported lately.
    pub nodes_healthy: u64,
    /// Protected machines.
    pub machines: u64,
    /// Policies, failback policies included.
    pub policies: u64,
    /// Committed recovery points in the catalogue.
    pub points: u64,
    /// Failovers that are neither cleaned up nor failed.
    pub failovers_active: u64,
}

/// Something that happened. What operators did, and who was let in, stands in the [audit
/// log](crate::audit) as well, and stays there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Position, from 1, without gaps in what is kept.
    pub id: u64,
    /// When.
    pub at_unix_ms: u64,
    /// Who: `operator`, `agent/<uuid>`, `node/<uuid>`, `enrol` or `control`.
    pub actor: String,
    /// What was done, such as `machine.protect`.
    pub action: String,
    /// To which object: a name or an id.
    pub object: String,
    /// One sentence, or empty.
    pub detail: String,
}

/// Events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Those after `?after=`, at most `?limit=`; without `after` the newest ones.
    pub events: Vec<Event>,
}
