//! What an agent remembers of a volume besides its log: `state.json`, replaced as a whole.

use crate::disk::Identity;
use crate::durable;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How far the copy of the whole disk has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Bytes from the front whose content is in the log or at the node, durably.
    #[serde(default)]
    pub done_bytes: u64,
    /// Seq of the last frame of the copy, once all of it is in the log.
    #[serde(default)]
    pub end_seq: Option<u64>,
    /// Whether the disk had been copied before.
    #[serde(default)]
    pub is_resync: bool,
    /// Grows whenever the copy begins again.
    #[serde(default)]
    pub generation: u64,
}

/// What an agent remembers of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Size of the disk; 0 until it was opened for the first time.
    #[serde(default)]
    pub size_bytes: u64,
    /// Which file the disk is.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// The copy of the whole disk.
    #[serde(default)]
    pub copy: Copy,
    /// Highest seq that the node can have from the log, while that is below the log's last seq.
    #[serde(default)]
    pub floor: Option<u64>,
    /// The disk's change time at an orderly stop; absent while the agent runs.
    #[serde(default)]
    pub stopped_ns: Option<i64>,
}

/// The file that holds the state.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: Mutex<State>,
    was_absent: bool,
}

impl StateFile {
    /// Reads the state; a missing file is the state of a new volume. Blocks.
    ///
    /// # Errors
    /// `InvalidData` if the file is not a state, otherwise what the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (state, was_absent) = match std::fs::read(path) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes);
                (state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (State::default(), true),
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state), was_absent })
    }

    /// The state of a volume of which nothing is known any more: all of it is copied again.
    #[must_use]
    pub fn unknown(path: &Path) -> Self {
        let mut state = State::default();
        state.copy.is_resync = true;
        Self { path: path.to_owned(), state: Mutex::new(state), was_absent: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was no file.
    #[must_use]
    pub fn was_absent(&self) -> bool {
        self.was_absent
    }

    /// The state as it is in memory.
    #[must_use]
    pub fn get(&self) -> State {
        *self.lock()
    }

    /// Changes the state and makes the change durable; blocks.
    ///
    /// # Errors
    /// What the system said. The change holds in memory all the same.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        // Held while writing: two updates must not overtake each other on the way to the disk.
        let mut state = self.lock();
        let before = *state;
        change(&mut state);
        if *state == before && self.path.exists() {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&*state).map_err(io::Error::other)?;
        durable::replace(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_reopening_and_refuses_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::open(&path).unwrap();
        assert!(file.was_absent());
        file.update(|state| {
            state.size_bytes = 4096;
            state.copy.end_seq = Some(7);
            state.floor = Some(3);
        })
        .unwrap();
        let again = StateFile::open(&path).unwrap();
        assert!(!again.was_absent());
        assert_eq!(again.get(), file.get());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(StateFile::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
