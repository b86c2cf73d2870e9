//! What a node must remember besides its journal: which logs are its own, and how often it started.

use anyhow::{Context, bail};
use farshore_proto::LogId;
use farshore_vault::durable;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
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
        state.incarnation =
            state.incarnation.checked_add(1).filter(|next| *next < u64::MAX).with_context(
                || format!("{} is damaged: no node started so often", path.display()),
            )?;
        state.store(dir)?;
        Ok(state)
    }

    /// Writes the state durably.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("state.json");
        durable::replace(&path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }
}

/// The logs of a running node.
#[derive(Debug, Clone)]
pub(crate) struct Logs(Arc<Mutex<(State, PathBuf)>>);

impl Logs {
    /// Of a state that is stored in `dir`.
    pub(crate) fn new(state: State, dir: &Path) -> Self {
        Self(Arc::new(Mutex::new((state, dir.to_owned()))))
    }

    /// The log of a shard.
    pub(crate) fn of(&self, shard: usize) -> LogId {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.logs[shard].into()
    }

    /// Gives a shard a new log, which is durable when this returns.
    ///
    /// # Errors
    /// What the file system says; the shard has its old log then.
    pub(crate) fn renew(&self, shard: usize) -> anyhow::Result<LogId> {
        // Whatever panicked, the state is one that was or is to be stored.
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, dir) = &mut *guard;
        let mut next = state.clone();
        next.logs[shard] = Uuid::new_v4();
        next.store(dir)?;
        *state = next;
        Ok(state.logs[shard].into())
    }
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

    #[test]
    fn a_new_log_of_a_shard_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = State::open(dir.path(), Uuid::from_u128(1), 3).unwrap();
        let logs = Logs::new(first.clone(), dir.path());
        let log = logs.renew(1).unwrap();
        assert_eq!(logs.of(1), log);
        let next = State::open(dir.path(), Uuid::from_u128(1), 3).unwrap();
        assert_eq!(next.logs, [first.logs[0], log.into(), first.logs[2]]);
        assert_ne!(log, first.logs[1].into());
        // A log that is not durable is none.
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(logs.renew(1).is_err());
    }
}
