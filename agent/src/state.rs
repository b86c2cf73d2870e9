//! What an agent remembers of a volume besides its log: `state.json`, replaced as a whole, with a
//! checksum over what it says.

use crate::disk::Identity;
use crate::durable;
use crate::files::Files;
use farshore_engine::lineage::LIVES_MAX;
use farshore_proto::wire::put_crc;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Bytes of a disk that were not what was sent of them, though nobody was seen to write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The first.
    pub offset: u64,
    /// From the first to the last of one look.
    pub length: u64,
    /// When it was seen; shown to people.
    pub time_unix_ms: u64,
}

/// What an agent remembers of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Size of the disk; 0 until it was opened for the first time.
    #[serde(default)]
    pub size_bytes: u64,
    /// What the disk is.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// The copy of the whole disk.
    #[serde(default)]
    pub copy: Copy,
    /// Highest seq that the log must hold: what was durable in it when intents were last cleared, or
    /// the progress of the copy noted. A log that ends before it is damaged; what it holds behind it
    /// is also found by its intents.
    #[serde(default)]
    pub logged: u64,
    /// Highest seq that the node can have from the log, while that is below the log's last seq.
    #[serde(default)]
    pub floor: Option<u64>,
    /// Whether somebody else was seen to write the disk, and it is not being read again yet.
    #[serde(default)]
    pub is_disturbed: bool,
    /// Whether the sampler found a difference that is not durably in doubt yet: a start reads the whole disk.
    #[serde(default)]
    pub differs: bool,
    /// The run of the server in which the disk was captured last; absent where that has no name.
    #[serde(default)]
    pub boot: Option<String>,
    /// What the intents descended from at the first start since a session joined, while `floor` is there.
    #[serde(default)]
    pub lineage: Option<[u64; LIVES_MAX]>,
    /// Whether another agent took the volume over since the stream joined last.
    #[serde(default)]
    pub is_shared: bool,
    /// The disk's change time at an orderly stop; absent while the agent runs.
    #[serde(default)]
    pub stopped_ns: Option<i64>,
    /// How often the sampler found the disk to differ from what was sent.
    #[serde(default)]
    pub differences: u64,
    /// Where it did last.
    #[serde(default)]
    pub difference: Option<Difference>,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    state: State,
    /// CRC32C of the state as it is written without spaces: a flipped bit in a number is still JSON.
    crc32c: u32,
}

fn checksum(state: &State) -> io::Result<u32> {
    let mut bytes = serde_json::to_vec(state).map_err(io::Error::other)?;
    let end = bytes.len();
    put_crc(&mut bytes, 0);
    Ok(bytes[end..].try_into().map_or(0, u32::from_le_bytes))
}

fn decode(bytes: &[u8]) -> io::Result<State> {
    let invalid = |error: serde_json::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let kept: Kept = serde_json::from_slice(bytes).map_err(invalid)?;
    if checksum(&kept.state)? != kept.crc32c {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum is wrong"));
    }
    Ok(kept.state)
}

fn encode(state: State) -> io::Result<Vec<u8>> {
    let crc32c = checksum(&state)?;
    let kept = Kept { state, crc32c };
    serde_json::to_vec_pretty(&kept).map_err(io::Error::other)
}

/// The file that holds the state.
#[derive(Debug)]
pub struct StateFile {
    files: Arc<dyn Files>,
    path: PathBuf,
    /// Held while the file is written: two updates must not overtake each other on the way to the disk, and
    /// who only asks for the state waits for no disk.
    lane: Mutex<()>,
    inner: Mutex<Inner>,
    was_absent: bool,
}

#[derive(Debug, Clone)]
struct Inner {
    state: State,
    /// Grows with each change.
    number: u64,
    /// The change up to which the file holds it.
    written: u64,
}

impl StateFile {
    /// Reads the state; a missing file is the state of a new volume. Blocks.
    ///
    /// # Errors
    /// `InvalidData` if the file is not a state, otherwise what the system said.
    pub fn open(files: Arc<dyn Files>, path: &Path) -> io::Result<Self> {
        let (state, was_absent) = match files.read(path) {
            Ok(bytes) => {
                // An agent that was killed may have left its name in the page cache only.
                path.parent().map_or(Ok(()), |dir| files.sync_dir(dir))?;
                (decode(&bytes)?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (State::default(), true),
            Err(error) => return Err(error),
        };
        let inner = Mutex::new(Inner { state, number: u64::from(was_absent), written: 0 });
        Ok(Self { files, path: path.to_owned(), lane: Mutex::default(), inner, was_absent })
    }

    /// The state of a volume of which nothing is known any more: all of it is copied again.
    #[must_use]
    pub fn unknown(files: Arc<dyn Files>, path: &Path) -> Self {
        let mut state = State::default();
        state.copy.is_resync = true;
        let inner = Mutex::new(Inner { state, number: 1, written: 0 });
        let (path, lane) = (path.to_owned(), Mutex::default());
        Self { files, path, lane, inner, was_absent: false }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was no file.
    #[must_use]
    pub fn was_absent(&self) -> bool {
        self.was_absent
    }

    /// The state as it is in memory.
    #[must_use]
    pub fn get(&self) -> State {
        self.lock().state.clone()
    }

    /// Number of its last change.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.lock().number
    }

    /// Number of the last change that is durable, with all before it.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.lock().written
    }

    /// Changes the state and makes the change durable; blocks.
    ///
    /// # Errors
    /// What the system said. The change holds in memory all the same, and the next update writes it.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let _lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, number) = {
            let mut inner = self.lock();
            let before = inner.state.clone();
            change(&mut inner.state);
            inner.number += u64::from(inner.state != before);
            let is_written = inner.number == inner.written;
            ((!is_written).then(|| inner.state.clone()), inner.number)
        };
        let state = match state {
            Some(state) => state,
            None if self.files.exists(&self.path) => return Ok(()),
            None => self.get(),
        };
        durable::replace(&*self.files, &self.path, &encode(state)?)?;
        self.lock().written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::OsFiles;

    #[test]
    fn survives_reopening_and_refuses_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let open = |path: &Path| StateFile::open(Arc::new(OsFiles), path);
        let file = open(&path).unwrap();
        assert!(file.was_absent());
        file.update(|state| {
            state.size_bytes = 4096;
            state.copy.end_seq = Some(7);
            state.floor = Some(3);
        })
        .unwrap();
        let again = open(&path).unwrap();
        assert!(!again.was_absent());
        assert_eq!(again.get(), file.get());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// D2: a flipped bit either makes no difference or is found.
    #[test]
    fn no_flipped_bit_changes_what_it_says() {
        let state = State {
            size_bytes: 1 << 30,
            identity: Some(Identity::file(17, 4711)),
            copy: Copy { done_bytes: 1 << 30, end_seq: Some(77), is_resync: true, generation: 3 },
            logged: 99,
            floor: Some(123),
            is_disturbed: true,
            differs: true,
            boot: Some("8379d2d5".to_owned()),
            lineage: Some([5; LIVES_MAX]),
            is_shared: true,
            stopped_ns: Some(1_767_225_600_000_000_123),
            differences: 3,
            difference: Some(Difference { offset: 4096, length: 8192, time_unix_ms: 99 }),
        };
        let good = encode(state.clone()).unwrap();
        let mut found = 0;
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match decode(&bytes) {
                Ok(found) => assert_eq!(found, state, "bit {bit}"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                    found += 1;
                }
            }
        }
        assert!(found > good.len() * 4, "only {found} found");
    }
}
