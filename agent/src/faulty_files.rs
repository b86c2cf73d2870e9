//! Files for tests: the system's, until a fuse blows. From then on nothing goes through, as if the
//! agent had been killed between two operations.

use crate::clock::{Clock, Now};
use crate::files::{FileIo, Files, OsFiles};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Debug, Default)]
struct Fuse {
    /// Changes of the disk that still go through.
    left: AtomicU64,
    is_blown: AtomicBool,
    /// What a path must contain to be refused, whatever the fuse says.
    refused: Mutex<Option<&'static str>>,
    sickness: Mutex<Sickness>,
    /// While true, syncs of files wait.
    holds_syncs: Mutex<bool>,
    syncs_waiting: AtomicU64,
    /// How many wait for a file system that hangs.
    hanging: AtomicU64,
    released: Condvar,
    /// Where it is noted what outlasts the agent.
    run_dir: Mutex<Option<PathBuf>>,
    /// Directories synced so far, and files synced since their last change.
    synced: Mutex<BTreeSet<PathBuf>>,
}

/// What is wrong with the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sickness {
    #[default]
    None,
    /// No space: nothing is made and nothing grows.
    Full,
    /// Nothing is opened for writing, made, changed or removed.
    ReadOnly,
    /// Files whose path contains this cannot be written, but removed.
    NotWritten(&'static str),
    /// Who writes or syncs files whose path contains this waits.
    Hangs(&'static str),
    /// Writes that may not wait are made as far as so many bytes, and told of or not: an error then.
    AtOnce { bytes: usize, is_told: bool },
}

/// The system's files behind a fuse.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyFiles(Arc<Fuse>);

#[derive(Debug)]
struct FaultyFile {
    fuse: Arc<Fuse>,
    file: Arc<dyn FileIo>,
    path: PathBuf,
}

impl FaultyFiles {
    /// Files whose fuse blows after `changes` changes.
    pub(crate) fn after(changes: u64) -> Self {
        let files = Self::default();
        files.0.left.store(changes, Ordering::SeqCst);
        files
    }

    /// How many more changes go through.
    pub(crate) fn set_left(&self, changes: u64) {
        self.0.left.store(changes, Ordering::SeqCst);
    }

    /// Files that work.
    pub(crate) fn good() -> Self {
        Self::after(u64::MAX)
    }

    pub(crate) fn is_blown(&self) -> bool {
        self.0.is_blown.load(Ordering::SeqCst)
    }

    /// Refuses changes of paths that contain this, or none.
    pub(crate) fn refuse(&self, part: Option<&'static str>) {
        *self.0.refused.lock().unwrap() = part;
    }

    pub(crate) fn sicken(&self, sickness: Sickness) {
        *self.0.sickness.lock().unwrap() = sickness;
        self.0.released.notify_all();
    }

    /// What outlasts the agent is noted in this directory, which is never sick.
    pub(crate) fn outlast_in(&self, dir: PathBuf) {
        *self.0.run_dir.lock().unwrap() = Some(dir);
    }

    /// How many wait for a file system that hangs.
    pub(crate) fn hanging(&self) -> u64 {
        self.0.hanging.load(Ordering::SeqCst)
    }

    pub(crate) fn hold_syncs(&self, holds: bool) {
        *self.0.holds_syncs.lock().unwrap() = holds;
        self.0.released.notify_all();
    }

    pub(crate) fn syncs_waiting(&self) -> u64 {
        self.0.syncs_waiting.load(Ordering::SeqCst)
    }

    /// Whether a directory was synced through these, or a file since its last change.
    pub(crate) fn has_synced(&self, path: &Path) -> bool {
        self.0.synced.lock().unwrap().contains(path)
    }

    fn wrap(&self, path: &Path, file: Arc<dyn FileIo>) -> Arc<dyn FileIo> {
        Arc::new(FaultyFile { fuse: Arc::clone(&self.0), file, path: path.to_owned() })
    }

    pub(crate) fn shared(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }
}

/// A clock for what is opened over them.
pub(crate) fn time() -> Arc<dyn Now> {
    Arc::new(Clock::start())
}

impl Fuse {
    fn open(&self) -> io::Result<()> {
        let sickness = *self.sickness.lock().unwrap();
        match sickness {
            Sickness::ReadOnly => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            _ => Ok(()),
        }
    }

    /// Before a file is made or grows.
    fn grow(&self, path: &Path) -> io::Result<()> {
        let sickness = *self.sickness.lock().unwrap();
        match sickness {
            Sickness::Full => Err(io::ErrorKind::StorageFull.into()),
            _ => self.change(path),
        }
    }

    /// Waits until the file system answers; how it is then.
    fn answer(&self, path: &Path) -> Sickness {
        let mut sickness = self.sickness.lock().unwrap();
        while matches!(*sickness, Sickness::Hangs(part) if path.to_string_lossy().contains(part)) {
            self.hanging.fetch_add(1, Ordering::SeqCst);
            sickness = self.released.wait(sickness).unwrap();
            self.hanging.fetch_sub(1, Ordering::SeqCst);
        }
        *sickness
    }

    fn write(&self, path: &Path, grows: bool) -> io::Result<()> {
        let is_of = |part: &str| path.to_string_lossy().contains(part);
        match self.answer(path) {
            Sickness::NotWritten(part) if is_of(part) => Err(io::Error::from_raw_os_error(5)),
            _ if grows => self.grow(path),
            _ => self.change(path),
        }
    }

    fn change(&self, path: &Path) -> io::Result<()> {
        self.open()?;
        let refused = *self.refused.lock().unwrap();
        if refused.is_some_and(|part| path.to_string_lossy().contains(part)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            self.is_blown.store(true, Ordering::SeqCst);
            return Err(io::Error::other("the fuse has blown"));
        }
        self.left.store(left - 1, Ordering::SeqCst);
        self.synced.lock().unwrap().remove(path);
        Ok(())
    }

    fn sync(&self, path: &Path) {
        self.answer(path);
        self.synced.lock().unwrap().insert(path.to_owned());
        let holds = self.holds_syncs.lock().unwrap();
        self.syncs_waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.released.wait_while(holds, |holds| *holds).unwrap());
        self.syncs_waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Files for FaultyFiles {
    fn run_dir(&self) -> Option<PathBuf> {
        self.0.run_dir.lock().unwrap().clone()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsFiles.create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        self.0.grow(path)?;
        Ok(self.wrap(path, OsFiles.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        let file = OsFiles.open(path)?;
        self.0.open()?;
        Ok(self.wrap(path, file))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn FileIo>> {
        if OsFiles.exists(path) {
            self.0.change(path)?
        } else {
            self.0.grow(path)?
        }
        Ok(self.wrap(path, OsFiles.open_or_create(path)?))
    }

    fn exists(&self, path: &Path) -> bool {
        OsFiles.exists(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        OsFiles.read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        OsFiles.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.answer(path);
        self.0.change(path)?;
        OsFiles.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.change(to)?;
        OsFiles.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.synced.lock().unwrap().insert(dir.to_owned());
        OsFiles.sync_dir(dir)
    }
}

impl FileIo for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let grows = offset + bytes.len() as u64 > self.file.len()?;
        self.fuse.write(&self.path, grows)?;
        self.file.write_all_at(bytes, offset)
    }

    fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.fuse.write(&self.path, true)?;
        self.file.write_vectored_at(slices, offset)
    }

    fn write_at_once(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let sickness = *self.fuse.sickness.lock().unwrap();
        let Sickness::AtOnce { bytes, is_told } = sickness else { return Ok(0) };
        let mut all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        all.truncate(bytes);
        self.file.write_all_at(&all, offset)?;
        if is_told { Ok(all.len()) } else { Err(io::Error::other("not all of it was written")) }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.fuse.answer(&self.path);
        self.fuse.change(&self.path)?;
        self.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fuse.sync(&self.path);
        self.file.sync_data()
    }

    fn touch(&self) -> io::Result<()> {
        self.fuse.open()?;
        self.file.touch()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.fuse.sync(&self.path);
        self.file.sync_all()
    }
}
