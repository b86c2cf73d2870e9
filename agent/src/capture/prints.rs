//! The prints of a served disk: for each block, the checksum of what was sent of it last. The sampler
//! compares the disk with them.
//!
//! Written and read by the agent only. Little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `FSPR` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 16 | volume |
//! | 24 | 8 | size of the disk in bytes |
//! | 32 | 4060 | zero |
//! | 4092 | 4 | CRC32C of the 4092 bytes before |
//! | 4096… | 4 each | CRC32C of a block; 0: unknown, 1 stands for a CRC32C of 0 |
//!
//! Order of operations: a block goes into the log → its print is noted, in memory first → what is noted is
//! written → and synced before the intent of its region is cleared, and before it is noted how far
//! a copy has come. So after a crash a print is wrong only where a region has its intent still, and
//! those prints are made unknown at the start; their regions are read again.
//!
//! Nothing here may stand in the way of a write: it is noted in memory only, what finds no room there makes its
//! page unknown, and a file that cannot be written is emptied and knows nothing from then on.

use crate::durable::sync_dir;
use crate::hrl::Entry;
use farshore_engine::doubt::{REGION_BLOCKS, RegionSet};
use farshore_proto::limits::{BLOCK_BYTES, PRINT_BYTES, PRINTS_PENDING_MAX, blocks_of};
use farshore_proto::wire::{Put, check_crc, put_crc};
use farshore_proto::{BlockRange, VolumeId};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Name of the file, in the volume's directory.
pub const PRINTS_FILE: &str = "prints";
const HEADER_BYTES: usize = 4096;
/// Blocks whose prints share a page of the file (4 MiB of the disk).
const PAGE_BLOCKS: u64 = (4096 / PRINT_BYTES) as u64;
/// Prints written at once.
const PUT_BLOCKS_MAX: u64 = 16 << 10;

/// Checksum of a block; 0 for an unknown one.
pub type Print = u32;
/// Of a block that nothing is known of.
pub const UNKNOWN: Print = 0;

/// Checksum of a block's content; never that of an unknown one.
#[must_use]
pub fn print_of(block: &[u8]) -> Print {
    crc32c::crc32c(block).max(1)
}

/// What is noted and not written.
#[derive(Debug)]
struct Noted {
    prints: BTreeMap<u64, Print>,
    /// Pages that are unknown but for `prints`.
    blurred: RegionSet,
}

/// What was sent of each block of a disk.
#[derive(Debug)]
pub struct Prints {
    file: File,
    volume: VolumeId,
    blocks: AtomicU64,
    of_zeros: Print,
    noted: Mutex<Noted>,
    /// Held by who writes or reads the file.
    lane: Mutex<()>,
    /// Held by who syncs the file: who comes later is not to take the other's failure for a success.
    sync_lane: Mutex<()>,
    is_given_up: AtomicBool,
    /// Much is noted and not written.
    is_crowded: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prints {
    /// Opens the file, or makes one that knows nothing if it is absent, damaged, or not this disk's. Of the
    /// regions with an intent nothing is known. Blocks.
    ///
    /// # Errors
    /// What the system said; without room for the whole file too.
    pub fn open(
        path: &Path,
        volume: VolumeId,
        size_bytes: u64,
        doubtful: &RegionSet,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let blocks = blocks_of(size_bytes);
        let length = offset_of(blocks);
        let wanted = header(volume, size_bytes);
        if !is_of(&file, length, &wanted)? {
            file.set_len(0)?;
            let made = make_room(&file, length, &wanted);
            if made.is_err() {
                file.set_len(0)?;
            }
            made?;
            path.parent().map_or(Ok(()), sync_dir)?;
        }
        let noted = Noted {
            prints: BTreeMap::new(),
            blurred: RegionSet::empty(blocks.div_ceil(PAGE_BLOCKS)),
        };
        let of_zeros = print_of(&[0; BLOCK_BYTES]);
        let prints = Self {
            file,
            volume,
            blocks: AtomicU64::new(blocks),
            of_zeros,
            noted: Mutex::new(noted),
            lane: Mutex::default(),
            sync_lane: Mutex::default(),
            is_given_up: AtomicBool::new(false),
            is_crowded: Notify::new(),
        };
        for region in doubtful.iter() {
            let block = region * REGION_BLOCKS;
            let count = REGION_BLOCKS.min(blocks.saturating_sub(block));
            prints.put_same(BlockRange { block, count }, UNKNOWN)?;
        }
        Ok(prints)
    }

    /// Removes the file of a volume; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The disk has grown: nothing is known of what is new. Blocks.
    pub fn grow(&self, size_bytes: u64) {
        let _lane = lock(&self.lane);
        let blocks = blocks_of(size_bytes);
        if self.is_given_up() || blocks < self.blocks() {
            return;
        }
        let made = make_room(&self.file, offset_of(blocks), &header(self.volume, size_bytes));
        if let Err(error) = made {
            return self.give_up(&error);
        }
        lock(&self.noted).blurred.grow(blocks.div_ceil(PAGE_BLOCKS));
        self.blocks.store(blocks, Ordering::SeqCst);
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    /// Notes what was put into the log; the caller holds the blocks.
    pub fn note(&self, entries: &[Entry<'_>]) {
        for entry in entries {
            match entry {
                Entry::Write { block, data, .. } => {
                    let prints: Vec<Print> = data.chunks(BLOCK_BYTES).map(print_of).collect();
                    let count = prints.len() as u64;
                    self.keep(BlockRange { block: *block, count }, &|at| prints[at]);
                }
                Entry::Zero { range, .. } => self.keep(*range, &|_| self.of_zeros),
                Entry::Mark { .. } => {}
            }
        }
    }

    /// Notes that nothing is known of blocks any more, in memory; the caller holds them.
    pub fn forget(&self, range: BlockRange) {
        self.keep(range, &|_| UNKNOWN);
    }

    /// What was found on the disk where nothing was known.
    pub fn learn(&self, block: u64, print: Print) {
        self.keep(BlockRange { block, count: 1 }, &|_| print);
    }

    /// Keeps prints in memory; pages for which there is no room there are unknown.
    fn keep(&self, range: BlockRange, print: &dyn Fn(usize) -> Print) {
        let mut noted = lock(&self.noted);
        for (at, block) in (range.block..range.end()).enumerate() {
            let is_there = noted.prints.contains_key(&block);
            if is_there || noted.prints.len() < PRINTS_PENDING_MAX {
                noted.prints.insert(block, print(at));
            } else {
                noted.blurred.add(block / PAGE_BLOCKS);
            }
        }
        if noted.prints.len() > PRINTS_PENDING_MAX / 2 {
            self.is_crowded.notify_one();
        }
    }

    /// Ready when so much is noted that it should be written.
    pub async fn crowded(&self) {
        self.is_crowded.notified().await;
    }

    /// Writes a run past what is kept of its blocks; the caller has the file.
    fn write_run(&self, range: BlockRange, print: &dyn Fn(usize) -> Print) -> io::Result<()> {
        let blurred: Vec<u64> = {
            let mut noted = lock(&self.noted);
            // What is noted is older; but the blur of a page would come later.
            let mut old: Vec<u64> =
                noted.prints.range(range.block..range.end()).map(|(block, _)| *block).collect();
            old.drain(..).for_each(|block| {
                noted.prints.remove(&block);
            });
            let pages = range.block / PAGE_BLOCKS..range.end().div_ceil(PAGE_BLOCKS);
            let blurred: Vec<u64> = pages.filter(|page| noted.blurred.has(*page)).collect();
            blurred.iter().for_each(|page| noted.blurred.remove(*page));
            blurred
        };
        self.blur(&blurred)?;
        let mut at = 0;
        while at < range.count {
            let count = (range.count - at).min(PUT_BLOCKS_MAX);
            let prints = (at..at + count)
                .flat_map(|at| print(usize::try_from(at).unwrap_or(usize::MAX)).to_le_bytes());
            self.file.write_all_at(&prints.collect::<Vec<u8>>(), offset_of(range.block + at))?;
            at += count;
        }
        Ok(())
    }

    fn put_same(&self, range: BlockRange, print: Print) -> io::Result<()> {
        let _lane = lock(&self.lane);
        self.write_run(range, &|_| print)
    }

    fn blur(&self, pages: &[u64]) -> io::Result<()> {
        for page in pages {
            let block = page * PAGE_BLOCKS;
            let count = PAGE_BLOCKS.min(self.blocks() - block);
            let length = usize::try_from(count).map_err(io::Error::other)? * PRINT_BYTES;
            self.file.write_all_at(&vec![0; length], offset_of(block))?;
        }
        Ok(())
    }

    /// Writes what is noted; blocks.
    pub fn write(&self) {
        let _lane = lock(&self.lane);
        if !self.is_given_up()
            && let Err(error) = self.write_noted()
        {
            self.give_up(&error);
        }
    }

    fn write_noted(&self) -> io::Result<()> {
        let (prints, blurred) = {
            let mut noted = lock(&self.noted);
            let empty = RegionSet::empty(self.blocks().div_ceil(PAGE_BLOCKS));
            let blurred: Vec<u64> = match noted.blurred.is_empty() {
                true => Vec::new(),
                false => std::mem::replace(&mut noted.blurred, empty).iter().collect(),
            };
            (std::mem::take(&mut noted.prints), blurred)
        };
        self.blur(&blurred)?;
        let (mut first, mut run) = (0, Vec::new());
        for (block, print) in prints {
            if block != first + (run.len() / PRINT_BYTES) as u64 {
                self.file.write_all_at(&run, offset_of(first))?;
                run.clear();
                first = block;
            }
            run.extend_from_slice(&print.to_le_bytes());
        }
        self.file.write_all_at(&run, offset_of(first))
    }

    /// Makes durable what was noted before the call; blocks.
    ///
    /// # Errors
    /// If prints that may be wrong cannot be made to be forgotten either: then no intent may be cleared.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_by(File::sync_data)
    }

    fn sync_by(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let _turn = lock(&self.sync_lane);
        self.write();
        if !self.is_given_up() {
            let Err(error) = sync(&self.file) else { return Ok(()) };
            let _lane = lock(&self.lane);
            self.give_up(&error);
        }
        // That it is empty must be durable, or a start would believe what was there before.
        self.file.set_len(0)?;
        self.file.sync_all()
    }

    /// From here on nothing is known, in this run and at the next start. The caller has the file.
    fn give_up(&self, error: &io::Error) {
        self.is_given_up.store(true, Ordering::SeqCst);
        lock(&self.noted).prints.clear();
        tracing::error!(%error, "what was sent of a disk cannot be noted: it is not sampled");
        if let Err(error) = self.file.set_len(0) {
            tracing::error!(%error, "what was noted of it cannot be emptied either");
        }
    }

    /// Whether nothing is noted any more, because the file could not be written.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst)
    }

    /// What is known of blocks; blocks the thread.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self, range: BlockRange) -> io::Result<Vec<Print>> {
        let _lane = lock(&self.lane);
        let count = usize::try_from(range.count).map_err(io::Error::other)?;
        if self.is_given_up() {
            return Ok(vec![UNKNOWN; count]);
        }
        let mut bytes = vec![0; count * PRINT_BYTES];
        self.file.read_exact_at(&mut bytes, offset_of(range.block))?;
        let (kept, _) = bytes.as_chunks::<PRINT_BYTES>();
        let noted = lock(&self.noted);
        let newest = |(kept, block): (&[u8; PRINT_BYTES], u64)| match noted.prints.get(&block) {
            Some(print) => *print,
            None if noted.blurred.has(block / PAGE_BLOCKS) => UNKNOWN,
            None => Print::from_le_bytes(*kept),
        };
        Ok(kept.iter().zip(range.block..).map(newest).collect())
    }
}

fn offset_of(block: u64) -> u64 {
    HEADER_BYTES as u64 + block * PRINT_BYTES as u64
}

/// Makes the file so long, with that header, durably. All of it is allocated at once: no write of the
/// server may depend on room later.
fn make_room(file: &File, length: u64, header: &[u8]) -> io::Result<()> {
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, length)) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(length)?,
        Err(error) => return Err(error.into()),
    }
    file.sync_all()?;
    file.write_all_at(header, 0)?;
    file.sync_all()
}

fn is_of(file: &File, length: u64, wanted: &[u8]) -> io::Result<bool> {
    if file.metadata()?.len() != length {
        return Ok(false);
    }
    let mut found = [0; HEADER_BYTES];
    file.read_exact_at(&mut found, 0)?;
    Ok(check_crc("prints header", &found).is_ok() && found[..] == *wanted)
}

fn header(volume: VolumeId, size_bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_bytes(b"FSPR");
    out.put_u16(1);
    out.put_zeros(2);
    out.put_bytes(volume.as_bytes());
    out.put_u64(size_bytes);
    out.put_zeros(HEADER_BYTES - 4 - out.len());
    put_crc(&mut out, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([9; 16]);
    const BLOCKS: u64 = 3 * PAGE_BLOCKS + 5;
    const SIZE: u64 = BLOCKS * BLOCK_BYTES as u64 - 100;

    fn nothing() -> RegionSet {
        RegionSet::empty(BLOCKS.div_ceil(REGION_BLOCKS))
    }

    fn open(dir: &tempfile::TempDir) -> Prints {
        Prints::open(&dir.path().join(PRINTS_FILE), VOLUME, SIZE, &nothing()).unwrap()
    }

    fn one(prints: &Prints, block: u64) -> Print {
        prints.read(BlockRange { block, count: 1 }).unwrap()[0]
    }

    fn content(byte: u8, blocks: usize) -> Vec<u8> {
        vec![byte; blocks * BLOCK_BYTES]
    }

    #[test]
    fn keeps_what_was_synced_and_reads_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let prints = open(&dir);
        let (short, long) = (content(7, 3), content(8, 100));
        prints.note(&[
            Entry::Write { block: 1, data: &short, is_copy: false },
            Entry::Write { block: 2, data: &long, is_copy: false },
            Entry::Zero { range: BlockRange { block: BLOCKS - 1, count: 1 }, is_copy: false },
        ]);
        let of = |byte| print_of(&content(byte, 1));
        let expected = [UNKNOWN, of(7), of(8), of(8)];
        assert_eq!(prints.read(BlockRange { block: 0, count: 4 }).unwrap(), expected);
        prints.note(&[Entry::Write { block: 2, data: &short, is_copy: false }]);
        prints.forget(BlockRange { block: 3, count: 1 });
        prints.sync().unwrap();
        drop(prints);
        let prints = open(&dir);
        let expected = [UNKNOWN, of(7), of(7), UNKNOWN, of(7), of(8)];
        assert_eq!(prints.read(BlockRange { block: 0, count: 6 }).unwrap(), expected);
        assert_eq!(one(&prints, BLOCKS - 1), of(0), "the last block, which the disk has in part");
    }

    /// D34: what was sent and not synced is not believed where an intent says so.
    #[test]
    fn knows_nothing_of_regions_with_an_intent() {
        let dir = tempfile::tempdir().unwrap();
        let prints = open(&dir);
        let data = content(7, 200);
        prints.note(&[Entry::Write { block: 0, data: &data, is_copy: false }]);
        prints.sync().unwrap();
        drop(prints);
        let mut doubtful = nothing();
        doubtful.add(1);
        let path = dir.path().join(PRINTS_FILE);
        let prints = Prints::open(&path, VOLUME, SIZE, &doubtful).unwrap();
        let known: Vec<bool> = (0..200).map(|block| one(&prints, block) != UNKNOWN).collect();
        for (block, is_known) in known.into_iter().enumerate() {
            let region = block as u64 / REGION_BLOCKS;
            assert_eq!(is_known, region != 1, "block {block}");
        }
    }

    #[test]
    fn a_file_of_another_disk_or_a_damaged_one_knows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PRINTS_FILE);
        let noted = |prints: &Prints| {
            prints
                .note(&[Entry::Zero { range: BlockRange { block: 0, count: 1 }, is_copy: false }]);
            prints.sync().unwrap();
        };
        noted(&open(&dir));
        assert_ne!(one(&open(&dir), 0), UNKNOWN);
        let other = Prints::open(&path, VolumeId([8; 16]), SIZE, &nothing()).unwrap();
        assert_eq!(one(&other, 0), UNKNOWN);
        noted(&open(&dir));
        let smaller = Prints::open(&path, VOLUME, SIZE - BLOCK_BYTES as u64, &nothing()).unwrap();
        assert_eq!(one(&smaller, 0), UNKNOWN);
        for damage in [3, 1000, HEADER_BYTES as u64 - 1] {
            noted(&open(&dir));
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, damage).unwrap();
            file.write_all_at(&[byte[0] ^ 4], damage).unwrap();
            assert_eq!(one(&open(&dir), 0), UNKNOWN, "at {damage}");
        }
        noted(&open(&dir));
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert_eq!(one(&open(&dir), 0), UNKNOWN, "cut");
    }

    /// Nothing waits for the file: what finds no room in memory is not known, and never wrong.
    #[test]
    fn too_much_at_once_is_unknown_and_the_newest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let size = (4 * PRINTS_PENDING_MAX * BLOCK_BYTES) as u64;
        let regions = RegionSet::empty(blocks_of(size).div_ceil(REGION_BLOCKS));
        let path = dir.path().join(PRINTS_FILE);
        let prints = Prints::open(&path, VOLUME, size, &regions).unwrap();
        let (old, new) = (content(1, 1), content(2, 1));
        let last = 2 * PRINTS_PENDING_MAX as u64 + 7;
        prints.note(&[Entry::Write { block: last, data: &old, is_copy: false }]);
        prints.sync().unwrap();
        for block in 0..PRINTS_PENDING_MAX as u64 {
            prints.note(&[Entry::Write { block: block * 2, data: &new, is_copy: false }]);
        }
        assert_eq!(one(&prints, last), print_of(&old));
        prints.note(&[Entry::Write { block: last, data: &new, is_copy: false }]);
        assert_eq!(one(&prints, last), UNKNOWN, "not the old one");
        prints.write();
        // Once there is room, what is sent again is known again.
        let run = content(3, 64);
        prints.note(&[Entry::Write { block: last - 3, data: &run, is_copy: false }]);
        assert_eq!(one(&prints, last), print_of(&content(3, 1)));
        assert_eq!(one(&prints, last + 100), UNKNOWN);
        prints.sync().unwrap();
        assert_eq!(one(&prints, last), print_of(&content(3, 1)));
        assert_eq!(one(&prints, 2), print_of(&new));
    }

    /// D34: whoever writes the disk, or only asks how it is, waits for no sync of this file.
    #[test]
    fn nobody_waits_for_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        let prints = open(&dir);
        let (run, all) = (content(3, 64), BlockRange { block: 5, count: 64 });
        prints
            .sync_by(|file| {
                assert!(prints.lane.try_lock().is_ok(), "the file is free while it is synced");
                prints.note(&[Entry::Write { block: 5, data: &run, is_copy: false }]);
                assert!(!prints.is_given_up());
                file.sync_data()
            })
            .unwrap();
        assert_eq!(prints.read(all).unwrap(), [print_of(&content(3, 1)); 64]);
        // Nor for who writes it.
        let lane = prints.lane.lock().unwrap();
        prints.note(&[Entry::Zero { range: all, is_copy: false }]);
        prints.forget(BlockRange { block: 6, count: 63 });
        drop(lane);
        prints.sync().unwrap();
        drop(prints);
        let prints = open(&dir);
        assert_eq!((one(&prints, 5), one(&prints, 68)), (print_of(&[0; BLOCK_BYTES]), UNKNOWN));
    }

    /// D35: what was known of the disk stays known.
    #[test]
    fn grows_with_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let prints = open(&dir);
        prints.note(&[Entry::Zero { range: BlockRange { block: 7, count: 1 }, is_copy: false }]);
        let size = 5 * SIZE;
        prints.grow(size);
        let last = blocks_of(size) - 1;
        prints.note(&[Entry::Zero { range: BlockRange { block: last, count: 1 }, is_copy: false }]);
        prints.sync().unwrap();
        drop(prints);
        let regions = RegionSet::empty(blocks_of(size).div_ceil(REGION_BLOCKS));
        let path = dir.path().join(PRINTS_FILE);
        let prints = Prints::open(&path, VOLUME, size, &regions).unwrap();
        let of_zeros = print_of(&[0; BLOCK_BYTES]);
        assert_eq!([7, 8, last].map(|block| one(&prints, block)), [of_zeros, UNKNOWN, of_zeros]);
    }

    #[test]
    fn the_bytes_are_those_documented() {
        let dir = tempfile::tempdir().unwrap();
        let prints = open(&dir);
        let data = content(5, 1);
        prints.note(&[Entry::Write { block: 1, data: &data, is_copy: false }]);
        prints.sync().unwrap();
        let bytes = std::fs::read(dir.path().join(PRINTS_FILE)).unwrap();
        assert_eq!(bytes[..8], *b"FSPR\x01\0\0\0");
        assert_eq!(bytes[8..24], [9; 16]);
        assert_eq!(bytes[24..32], SIZE.to_le_bytes());
        assert!(bytes[32..4092].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[4096..4100], [0; 4]);
        assert_eq!(bytes[4100..4104], crc32c::crc32c(&data).to_le_bytes());
        assert_eq!(bytes.len() as u64, 4096 + BLOCKS * 4);
    }
}
