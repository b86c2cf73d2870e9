//! What a node must remember besides its journal: which logs are its own, and how often it started.

use anyhow::{Context, bail};
use farshore_proto::LogId;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use uuid::Uuid;

/// The file `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The vault that the journal and the logs are for.
    pub(crate) vault: Uuid,
    /// Counts the starts; stamped into every segment.
    pub(crate) incarnation: u64,
    /// One log per shard. Their number is that of the shards, whatever the cores are later.
    pub(crate) logs: Vec<Uuid>,
}

impl State {
    /// Reads the state of an earlier run, or begins; either way this start is counted and the
    /// count durable before it is used.
    ///
    /// # Errors
    /// If the file is damaged, is for another vault, or cannot be written.
    pub(crate) fn open(dir: &Path, vault: Uuid, shards: usize) -> anyhow::Result<Self> {
        let path = dir.join("state.json");
        let mut state = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let logs = (0..shards).map(|_| Uuid::new_v4()).collect();
                Self { vault, incarnation: 0, logs }
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        if state.vault != vault {
            bail!(
                "{} belongs to a node of vault {}, not of {vault}; give the node another --data",
                dir.display(),
                state.vault
            );
        }
        state.incarnation += 1;
        state.store(dir)?;
        Ok(state)
    }

    /// Writes the state durably.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("state.json");
        write_durably(dir, &path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }

    /// The logs by their type.
    pub(crate) fn logs(&self) -> Vec<LogId> {
        self.logs.iter().copied().map(LogId::from).collect()
    }
}

/// Replaces a file, readable by its owner only, so that a crash leaves the old or the new one, whole.
pub(crate) fn write_durably(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    // What a crash left behind may have any mode: it is not written into.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_starts_and_keeps_the_logs() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Uuid::from_u128(1);
        let first = State::open(dir.path(), vault, 2).unwrap();
        let second = State::open(dir.path(), vault, 8).unwrap();
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
        assert_eq!(first.logs, second.logs, "the number of shards stays");
        assert!(State::open(dir.path(), Uuid::from_u128(2), 2).is_err(), "another vault");
    }
}
