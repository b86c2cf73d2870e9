//! Journal files on a simulated disk: each step takes time, and the node may die between any two.

use crate::disk::{Disk, File};
use crate::tasks::Sleep;
use farshore_ingest::journal::{JournalDisk, JournalFile};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const WRITE_US: Range<u64> = 20..400;
const SYNC_US: Range<u64> = 100..4_000;
const CREATE_US: Range<u64> = 20..200;

type Sleeper = Arc<dyn Fn(Duration) -> Sleep + Send + Sync>;

/// How long things take.
#[derive(Clone)]
struct Pace {
    sleeper: Sleeper,
    rng: Arc<Mutex<fastrand::Rng>>,
}

impl Pace {
    async fn wait(&self, range: Range<u64>) {
        let us = self.rng.lock().unwrap_or_else(PoisonError::into_inner).u64(range);
        (self.sleeper)(Duration::from_micros(us)).await;
    }
}

/// The journal directory of one shard.
pub struct SimJournal {
    disk: Disk,
    dir: PathBuf,
    pace: Pace,
}

impl fmt::Debug for SimJournal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimJournal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SimJournal {
    pub(super) fn new(
        disk: Disk,
        shard: usize,
        sleeper: impl Fn(Duration) -> Sleep + Send + Sync + 'static,
        rng: fastrand::Rng,
    ) -> Self {
        let pace = Pace { sleeper: Arc::new(sleeper), rng: Arc::new(Mutex::new(rng)) };
        Self { disk, dir: dir(shard), pace }
    }
}

/// The journal directory of a shard.
pub(super) fn dir(shard: usize) -> PathBuf {
    Path::new("/journal").join(shard.to_string())
}

/// Path of a journal file.
pub(super) fn path(shard: usize, file: u64) -> PathBuf {
    dir(shard).join(format!("{file:020}.journal"))
}

/// The number of a journal file.
pub(super) fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".journal")?.parse().ok()
}

/// All of a file.
pub(super) fn read(disk: &Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl JournalDisk for SimJournal {
    type File = SimFile;

    async fn create(&self, file: u64) -> io::Result<SimFile> {
        self.pace.wait(CREATE_US).await;
        let file = self.disk.create_new(&self.dir.join(format!("{file:020}.journal")))?;
        Ok(SimFile { file, pace: self.pace.clone() })
    }

    async fn sync_names(&self) -> io::Result<()> {
        self.pace.wait(SYNC_US).await;
        self.disk.sync_dir(&self.dir)
    }
}

/// An open journal file.
pub struct SimFile {
    file: File,
    pace: Pace,
}

impl JournalFile for SimFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0xee; bytes]
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        self.pace.wait(WRITE_US).await;
        self.file.write_at(&buffer, offset)
    }

    async fn sync(&self) -> io::Result<()> {
        self.pace.wait(SYNC_US).await;
        self.file.sync()
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimFile").finish_non_exhaustive()
    }
}
