//! Drills and failovers.
//!
//! ```text
//! requested → fencing → exporting → booting → running → committed
//!     │  (unplanned only)   ▲ (not when serve_only)  │
//!     └─────── drill ───────┘                        └→ cleaning_up → cleaned_up
//! any state before running → failed → cleaning_up, or requested again by a retry
//! running, committed, when something of it is gone → recovering → running, committed
//! ```

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::point::PointSelector;

/// What is to be done with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverKind {
    /// A test: replication goes on untouched.
    Drill,
    /// The source is lost: it is fenced first and replication of it ends.
    Unplanned,
    /// A kind that this version does not know: it is shown and left alone. Nobody can ask for one.
    #[serde(other)]
    Unknown,
}

/// Where a failover stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailoverState {
    /// Accepted.
    Requested,
    /// The volume's epoch is being raised, so that the old writer stops.
    Fencing,
    /// The export of the point is being started.
    Exporting,
    /// The machine is being started on the export, or nothing but its firmware was seen to run.
    Booting,
    /// The export serves, and the machine was seen to run its system unless only serving was asked for.
    Running,
    /// Kept for good.
    Committed,
    /// It ran, and something of it is gone or stands still: the export, the machine, its disk. It is
    /// brought back on the same overlay, again and again; `detail` says what is missing.
    Recovering,
    /// Processes are being stopped and the overlay removed.
    CleaningUp,
    /// Nothing of it is left.
    CleanedUp,
    /// Did not come up; `error` says why. A retry begins anew on the same overlay.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl FailoverState {
    /// The state as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Fencing => "fencing",
            Self::Exporting => "exporting",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Committed => "committed",
            Self::Recovering => "recovering",
            Self::CleaningUp => "cleaning_up",
            Self::CleanedUp => "cleaned_up",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it stays as it is until somebody asks for something or something breaks. A GET with
    /// `wait_ms` answers as soon as this holds.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Running | Self::Committed | Self::CleanedUp | Self::Failed)
    }
}

/// How the export listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportListen {
    /// On a Unix socket that only the control plane's user can open.
    #[default]
    Unix,
    /// On a loopback TCP port of the system's choice; any local user can connect.
    Tcp,
    /// In a way that this version does not know. Nobody can ask for it.
    #[serde(other)]
    Unknown,
}

/// Starts a failover of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateFailover {
    /// The id that it is to have, made by the caller: asking again after a lost answer then starts
    /// nothing new. A new one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Drill or unplanned.
    pub kind: FailoverKind,
    /// The point to bring back; `latest` if absent. For an unplanned failover, `latest` is chosen
    /// after the fence.
    #[serde(default)]
    pub point: PointSelector,
    /// Serve the point over NBD on an overlay, and start no machine.
    #[serde(default)]
    pub serve_only: bool,
    /// How the export listens.
    #[serde(default)]
    pub listen: ExportListen,
    /// Memory of the machine in MiB, 64 to 1 048 576; default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Virtual CPUs, 1 to 64; default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Absolute path of a firmware image on the control plane's machine, one whose name has `CODE`
    /// with its variables (`VARS` instead) beside it; default: OVMF where distributions put it. It
    /// lies there, or in the directory that the control plane was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
}

/// Ends a failover: stops its processes and removes the overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanupFailover {
    /// Also when it is committed: what the machine wrote since then is lost.
    #[serde(default)]
    pub force: bool,
}

/// A failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Its id.
    pub id: Uuid,
    /// Name of the machine.
    pub machine: String,
    /// Drill or unplanned.
    pub kind: FailoverKind,
    /// The point brought back; null until chosen.
    pub point: Option<Uuid>,
    /// The volume served.
    pub volume: Uuid,
    /// Whether no machine is started.
    pub serve_only: bool,
    /// Where it stands.
    pub state: FailoverState,
    /// Whether it was ever committed: its overlay is then the only copy of what the machine wrote.
    #[serde(default)]
    pub committed: bool,
    /// Whether the machine has shut itself down. It then stays down, and its disk is still served.
    #[serde(default)]
    pub machine_is_down: bool,
    /// Space that the overlay takes, about as much as was written over the point; null without one.
    #[serde(default)]
    pub overlay_bytes: Option<u64>,
    /// One sentence about the state, such as that the machine has shut down; empty if none.
    pub detail: String,
    /// Where the export serves the disk, once it does.
    pub nbd_uri: Option<String>,
    /// Process that serves the export.
    pub export_pid: Option<u32>,
    /// Process that runs the machine.
    pub machine_pid: Option<u32>,
    /// File with the machine's serial console.
    pub console_path: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Every state it was in, oldest first.
    pub steps: Vec<FailoverStep>,
}

/// What starting a failover would find, and do. Nothing is changed by asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverCheck {
    /// Name of the machine.
    pub machine: String,
    /// The point that would be brought back.
    pub point: Uuid,
    /// When it was marked, by the agent's clock.
    pub point_time_unix_ms: u64,
    /// The volume that would be served.
    pub volume: Uuid,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// Whether the failover could go on.
    pub ok: bool,
    /// What was found, one sentence.
    pub found: String,
}

/// When a failover entered a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverStep {
    /// The state.
    pub state: FailoverState,
    /// When it was entered.
    pub at_unix_ms: u64,
}

/// All failovers, newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failovers {
    /// At most [`crate::limits::PAGE_DEFAULT`], the newest ones.
    pub failovers: Vec<Failover>,
}
