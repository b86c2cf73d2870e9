//! Disks: files that know what was synced, and the guest's blocks.
//!
//! A kill of a process keeps everything written. A power cut keeps what was synced; of each write since
//! then, some sectors or none; of the names made and removed since their directory was synced, the
//! first few.

use farshore_proto::limits::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Unsynced {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Debug, Clone)]
enum Naming {
    Made(PathBuf, u64),
    Gone(PathBuf),
}

impl Naming {
    fn path(&self) -> &Path {
        match self {
            Self::Made(path, _) | Self::Gone(path) => path,
        }
    }
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// No space: writes that make a file longer fail, as does making files.
    Full,
    /// The next write fails, once.
    NextWrite,
    /// The next sync fails, once; what it should have made durable is not.
    NextSync,
}

#[derive(Debug, Default, Clone)]
struct State {
    next: u64,
    contents: BTreeMap<u64, Content>,
    seen: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    naming: Vec<Naming>,
    trouble: Trouble,
    syncs: u64,
}

/// What a file system held at one moment.
#[derive(Debug)]
pub struct Snapshot(State);

/// A file system; clones share it. It outlives processes.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

/// An open file.
#[derive(Debug, Clone)]
pub struct File {
    disk: Disk,
    number: u64,
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file that does not exist.
    ///
    /// # Errors
    /// `AlreadyExists`, or the disk's trouble.
    pub fn create_new(&self, path: &Path) -> io::Result<File> {
        let mut state = self.lock();
        if state.seen.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
        }
        if state.trouble == Trouble::Full {
            return Err(no_space());
        }
        let number = state.next;
        state.next += 1;
        state.contents.insert(number, Content::default());
        state.seen.insert(path.to_owned(), number);
        state.naming.push(Naming::Made(path.to_owned(), number));
        Ok(File { disk: self.clone(), number })
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let number = self.lock().seen.get(path).copied().ok_or_else(|| missing(path))?;
        Ok(File { disk: self.clone(), number })
    }

    /// Names of the files right below a directory, in order.
    #[must_use]
    pub fn list(&self, dir: &Path) -> Vec<PathBuf> {
        let state = self.lock();
        state.seen.keys().filter(|path| path.parent() == Some(dir)).cloned().collect()
    }

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.seen.remove(path).ok_or_else(|| missing(path))?;
        state.naming.push(Naming::Gone(path.to_owned()));
        Ok(())
    }

    /// Gives a file another name, in the place of what has it now.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let number = state.seen.remove(from).ok_or_else(|| missing(from))?;
        state.seen.insert(to.to_owned(), number);
        // One step on a journaling file system: never both names gone.
        state.naming.push(Naming::Made(to.to_owned(), number));
        state.naming.push(Naming::Gone(from.to_owned()));
        Ok(())
    }

    /// Makes the names below a directory durable.
    ///
    /// # Errors
    /// The disk's trouble.
    pub fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.fail_sync()?;
        state.syncs += 1;
        let (synced, rest): (Vec<Naming>, Vec<Naming>) =
            state.naming.drain(..).partition(|naming| naming.path().parent() == Some(dir));
        state.naming = rest;
        synced.into_iter().for_each(|naming| state.make_durable(naming));
        Ok(())
    }

    /// What is wrong from now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// Syncs so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The power goes: see the module.
    pub fn cut_power(&self, rng: &mut fastrand::Rng) {
        let mut state = self.lock();
        let namings = std::mem::take(&mut state.naming);
        let kept = rng.usize(0..=namings.len());
        namings.into_iter().take(kept).for_each(|naming| state.make_durable(naming));
        state.seen = state.durable.clone();
        let named: Vec<u64> = state.durable.values().copied().collect();
        state.contents.retain(|number, _| named.contains(number));
        for content in state.contents.values_mut() {
            content.cut_power(rng);
        }
        state.trouble = Trouble::None;
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.lock().clone())
    }

    /// It holds again what it held then. Nobody has a file open.
    pub fn go_back(&self, snapshot: &Snapshot) {
        *self.lock() = snapshot.0.clone();
    }

    /// The disk is lost and replaced by an empty one.
    pub fn wipe(&self) {
        *self.lock() = State::default();
    }

    /// One bit of some file flips; returns which, or none if there is nothing to flip.
    pub fn flip(&self, rng: &mut fastrand::Rng) -> Option<PathBuf> {
        let mut state = self.lock();
        let files: Vec<(PathBuf, u64)> =
            state.seen.iter().map(|(path, number)| (path.clone(), *number)).collect();
        let (path, number) = rng.choice(files)?;
        let content = state.contents.get_mut(&number)?;
        if content.seen.is_empty() {
            return None;
        }
        let at = rng.usize(0..content.seen.len());
        let bit = 1 << rng.u32(0..8);
        content.seen[at] ^= bit;
        if let Some(byte) = content.durable.get_mut(at) {
            *byte ^= bit;
        }
        Some(path)
    }
}

impl State {
    fn make_durable(&mut self, naming: Naming) {
        match naming {
            Naming::Made(path, number) => {
                self.durable.insert(path, number);
            }
            Naming::Gone(path) => {
                self.durable.remove(&path);
            }
        }
    }

    fn fail_sync(&mut self) -> io::Result<()> {
        if self.trouble == Trouble::NextSync {
            self.trouble = Trouble::None;
            return Err(broken());
        }
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, piece: &[u8]) {
    if bytes.len() < offset + piece.len() {
        bytes.resize(offset + piece.len(), 0);
    }
    bytes[offset..offset + piece.len()].copy_from_slice(piece);
}

impl Content {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Unsynced::Length(length) => self.durable.resize(length, 0),
                Unsynced::Write { offset, bytes } => put(&mut self.durable, offset, &bytes),
            }
        }
        debug_assert_eq!(self.durable.len(), self.seen.len());
    }

    fn cut_power(&mut self, rng: &mut fastrand::Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match (change, rng.u32(0..3)) {
                (_, 0) => {}
                (Unsynced::Length(length), _) => self.durable.resize(length, 0),
                (Unsynced::Write { offset, bytes }, 1) => put(&mut self.durable, offset, &bytes),
                (Unsynced::Write { offset, bytes }, _) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        // Sectors are whole or not there.
                        let end = bytes
                            .len()
                            .min(((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset);
                        if rng.bool() {
                            put(&mut self.durable, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

impl File {
    fn with<T>(&self, work: impl FnOnce(&mut State, &mut Content) -> T) -> io::Result<T> {
        let mut state = self.disk.lock();
        let mut content = state.contents.remove(&self.number).ok_or_else(broken)?;
        let done = work(&mut state, &mut content);
        state.contents.insert(self.number, content);
        Ok(done)
    }

    /// Reads exactly this many bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|_, content| {
            let piece = content.seen.get(offset..offset + into.len());
            into.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })?
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// The disk's trouble.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|state, content| {
            if state.trouble == Trouble::Full && offset + bytes.len() > content.seen.len() {
                return Err(no_space());
            }
            if state.trouble == Trouble::NextWrite {
                state.trouble = Trouble::None;
                return Err(broken());
            }
            put(&mut content.seen, offset, bytes);
            content.unsynced.push(Unsynced::Write { offset, bytes: bytes.to_vec() });
            Ok(())
        })?
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        self.with(|_, content| {
            content.seen.resize(length, 0);
            content.unsynced.push(Unsynced::Length(length));
        })
    }

    /// Bytes in the file.
    ///
    /// # Errors
    /// If the file is gone.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> io::Result<u64> {
        self.with(|_, content| content.seen.len() as u64)
    }

    /// Makes the content durable.
    ///
    /// # Errors
    /// The disk's trouble; then nothing became durable, and never will by trying again.
    pub fn sync(&self) -> io::Result<()> {
        self.with(|state, content| {
            if let Err(error) = state.fail_sync() {
                // The kernel drops what it could not write: the next sync would claim success.
                content.seen.clone_from(&content.durable);
                content.unsynced.clear();
                return Err(error);
            }
            state.syncs += 1;
            content.sync();
            Ok(())
        })?
    }
}

/// What a block holds: 0 for zeros, any other number for bytes made from it.
pub type Tag = u64;

/// The bytes of a block. Every sector says what it is part of.
#[must_use]
pub fn block_bytes(tag: Tag) -> Vec<u8> {
    if tag == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let mut sector = [0; SECTOR_BYTES];
    for (word, at) in sector.chunks_exact_mut(8).zip(0_u64..) {
        let value = if at == 0 { tag } else { tag.rotate_left(17) ^ at };
        word.copy_from_slice(&value.to_le_bytes());
    }
    sector.repeat(BLOCK_BYTES / SECTOR_BYTES)
}

/// The tag of a block's bytes, if any tag makes them.
#[must_use]
pub fn tag_of(bytes: &[u8]) -> Option<Tag> {
    let tag = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (block_bytes(tag) == bytes).then_some(tag)
}

/// Tags of what a power cut made of a block that was being written.
const TORN: Tag = 1 << 63;

/// A guest's disk.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// What reads return.
    pub seen: Vec<Tag>,
    durable: Vec<Tag>,
    torn: u64,
}

impl GuestDisk {
    /// A disk with this content, written some time ago and not synced since.
    #[must_use]
    pub fn new(content: Vec<Tag>) -> Self {
        Self { durable: vec![0; content.len()], seen: content, torn: 0 }
    }

    /// The blocks' bytes, one after the other.
    ///
    /// # Panics
    /// If the range is not on the disk.
    #[must_use]
    pub fn read(&self, block: u64, count: u64) -> Vec<u8> {
        let range = index(block)..index(block + count);
        let mut bytes = Vec::with_capacity(range.len() * BLOCK_BYTES);
        self.seen[range].iter().for_each(|tag| bytes.extend_from_slice(&block_bytes(*tag)));
        bytes
    }

    /// Writes blocks.
    ///
    /// # Panics
    /// If the range is not on the disk.
    pub fn write(&mut self, block: u64, tags: &[Tag]) {
        self.seen[index(block)..][..tags.len()].copy_from_slice(tags);
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        self.durable.clone_from(&self.seen);
    }

    /// The power goes: each block written since the last sync is old, new or torn.
    pub fn cut_power(&mut self, rng: &mut fastrand::Rng) {
        for (seen, durable) in self.seen.iter_mut().zip(&self.durable) {
            if seen != durable {
                match rng.u32(0..4) {
                    0 => {}
                    1 => {
                        self.torn += 1;
                        *seen = TORN | rng.u64(0..1 << 32) << 16 | self.torn;
                    }
                    _ => *seen = *durable,
                }
            }
        }
        self.durable.clone_from(&self.seen);
    }
}

/// A block's place in a slice.
///
/// # Panics
/// If it does not fit memory.
#[must_use]
pub fn index(block: u64) -> usize {
    usize::try_from(block).expect("a simulated disk is small")
}
