//! What an export says of itself besides serving: the file that its `--status-file` names.
//!
//! It is replaced as a whole whenever its content changes, so a reader finds the old or the new one. It is
//! not removed when the export ends: whoever reads it knows whether the process lives.

use serde::{Deserialize, Serialize};

/// How an export serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportState {
    /// Every read and write so far was answered.
    Serving,
    /// Reads wait for the vault's store, which does not answer. They go on by themselves when it does.
    Waiting,
    /// A read was given up with an error after its patience, or because what it needs is damaged; none
    /// has succeeded since.
    Failing,
    /// The overlay's file system is full: writes fail, and go on when there is room.
    OverlayFull,
}

/// The content of the file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// How it serves.
    pub state: ExportState,
    /// Why it does not serve as it should, as a sentence; null when it does.
    pub reason: Option<String>,
    /// Since when the state is this one.
    pub since_unix_ms: u64,
    /// How long a read waits for the store before it fails.
    pub patience_seconds: u64,
}
