//! The agent's files on a simulated disk, behind a fuse: a kill or a power cut can come between any
//! two operations of the production code, and in the middle of a write.

use crate::disk::{Disk, File};
use farshore_agent::Now;
use farshore_agent::files::{FileIo, Files};
use farshore_proto::Timestamp;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An end that comes in the middle of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doom {
    /// Changes of files that still go through.
    pub changes: u64,
    /// How much of the next write does, in thousandths.
    pub tear_per_mille: u32,
    /// Whether the power is cut then; otherwise the process is killed.
    pub is_cut: bool,
}

#[derive(Debug, Default)]
struct Fuse {
    doom: Option<Doom>,
    is_blown: bool,
}

/// The files; clones share the fuse.
#[derive(Debug, Clone, Default)]
pub(super) struct SimFiles {
    pub(super) disk: Disk,
    fuse: Arc<Mutex<Fuse>>,
}

#[derive(Debug)]
struct SimFile {
    file: File,
    files: SimFiles,
}

/// How much of a change goes through.
enum Share {
    All,
    PerMille(u32),
}

fn dead() -> io::Error {
    io::Error::other("the process has ended")
}

impl SimFiles {
    fn lock(&self) -> MutexGuard<'_, Fuse> {
        self.fuse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the fuse, or takes it out.
    pub(super) fn set_doom(&self, doom: Option<Doom>) {
        *self.lock() = Fuse { doom, is_blown: false };
    }

    /// The doom, if the fuse has blown.
    pub(super) fn blown(&self) -> Option<Doom> {
        let fuse = self.lock();
        fuse.doom.filter(|_| fuse.is_blown)
    }

    fn look(&self) -> io::Result<()> {
        if self.lock().is_blown { Err(dead()) } else { Ok(()) }
    }

    /// Before every change.
    fn change(&self) -> io::Result<Share> {
        let mut fuse = self.lock();
        if fuse.is_blown {
            return Err(dead());
        }
        let Some(doom) = &mut fuse.doom else { return Ok(Share::All) };
        if doom.changes > 0 {
            doom.changes -= 1;
            return Ok(Share::All);
        }
        let share = Share::PerMille(doom.tear_per_mille);
        fuse.is_blown = true;
        Ok(share)
    }

    /// Before a change that happens or does not.
    fn whole_change(&self) -> io::Result<()> {
        match self.change()? {
            Share::All => Ok(()),
            Share::PerMille(_) => Err(dead()),
        }
    }

    fn wrap(&self, file: File) -> Arc<dyn FileIo> {
        Arc::new(SimFile { file, files: self.clone() })
    }
}

impl Files for SimFiles {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.look()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        self.whole_change()?;
        let file = match self.disk.open(path) {
            Ok(file) => {
                file.set_len(0)?;
                file
            }
            Err(_) => self.disk.create_new(path)?,
        };
        Ok(self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        self.look()?;
        Ok(self.wrap(self.disk.open(path)?))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        if let Ok(file) = self.open(path) {
            return Ok(file);
        }
        self.whole_change()?;
        Ok(self.wrap(self.disk.create_new(path)?))
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.open(path).is_ok()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.look()?;
        let file = self.disk.open(path)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.look()?;
        let paths = self.disk.list(dir);
        Ok(paths.iter().filter_map(|path| path.file_name()).map(OsString::from).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.whole_change()?;
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole_change()?;
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.whole_change()?;
        self.disk.sync_dir(dir)
    }
}

impl FileIo for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.files.look()?;
        self.file.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.files.look()?;
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.files.change()? {
            Share::All => self.file.write_at(bytes, offset),
            Share::PerMille(share) => {
                let kept = bytes.len() * share as usize / 1000;
                self.file.write_at(&bytes[..kept], offset)?;
                Err(dead())
            }
        }
    }

    fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        self.write_all_at(&bytes, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.files.whole_change()?;
        self.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.files.whole_change()?;
        self.file.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The world's clock, as the production code reads it.
#[derive(Debug, Clone, Default)]
pub(super) struct SimTime(Arc<AtomicU64>);

impl SimTime {
    pub(super) fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::Relaxed);
    }
}

impl Now for SimTime {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}
