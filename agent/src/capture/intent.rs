//! The intent file: one bit per 256 KiB region of the disk, set durably before the region is written.
//!
//! Written and read by the agent only. Little-endian, sectors of 512 bytes, allocated in full when
//! the file is made: setting an intent never needs space, so a full file system cannot stop it.
//!
//! | sector | offset | size | field |
//! |---|---|---|---|
//! | 0 | 0 | 4 | magic `FSIN` |
//! | | 4 | 2 | version, 2 |
//! | | 6 | 2 | zero |
//! | | 8 | 16 | volume |
//! | | 24 | 8 | number of regions |
//! | | 32 | 476 | zero |
//! | | 508 | 4 | CRC32C of the 508 bytes before |
//! | 1, 2 | 0 | 4 | magic `FSIL` |
//! | | 4 | 4 | zero |
//! | | 8 | 8 | number of the write, from 1; the sector with the higher one counts |
//! | | 16 | 64 | 8 lives that this run descends from, oldest first: generation (4), life (4); 0 if none |
//! | | 80 | 428 | zero |
//! | | 508 | 4 | CRC32C of the 508 bytes before |
//! | 3… | 0 | 504 | bits of 4032 regions, lowest first |
//! | | 504 | 4 | zero |
//! | | 508 | 4 | CRC32C of the 508 bytes before |
//!
//! Order of operations: sectors with new bits are written and synced before the write goes ahead;
//! cleared bits are written some time after the flush that made them unnecessary, without a sync. A sector that is
//! durable write raises the newest life's generation and writes it, with the bits, into one of the two
//! sectors in turn: whatever a power cut leaves, the other still says what was durable before. A sector that is
//! torn or damaged fails its checksum and puts all its regions in doubt; it is made whole at once,
//! durably, because a torn write over a damaged one can make what was there before the damage. What is
//! read at the start is synced before it counts: an agent that was killed may have left it in the page
//! cache only.

use crate::files::{FileIo, Files};
use crate::stamps::{Stamps, Underway};
use farshore_engine::doubt::RegionSet;
use farshore_engine::lineage::{LIVES_MAX, Lineage};
use farshore_proto::wire::{Put, Reader, check_crc, put_crc};
use farshore_proto::{Stamp, VolumeId};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

const MAGIC: [u8; 4] = *b"FSIN";
const LINEAGE_MAGIC: [u8; 4] = *b"FSIL";
const VERSION: u16 = 2;
/// Sectors of the lineage, behind the header.
const LINEAGE_SECTORS: u64 = 2;
const SECTOR_BYTES: usize = 512;
const BITS_BYTES: usize = 504;
/// Regions of one sector: a disk of just under 1 GiB.
const SECTOR_REGIONS: u64 = BITS_BYTES as u64 * 8;

/// What was found when the file was opened.
#[derive(Debug)]
pub struct Recovered {
    /// Regions with an intent.
    pub regions: RegionSet,
    /// Whether the file was absent or not this volume's: then nothing is known of any region.
    pub is_unknown: bool,
}

/// Who writes the intents now.
#[derive(Debug, Clone)]
pub struct Life {
    /// Drawn at the start of the run; not 0.
    pub number: u32,
    /// Where it is said which intents are durable ([`crate::hrl::Log::stamps`]).
    pub stamps: Arc<Stamps>,
}

/// The intents of one volume as they are, or will be, in the file.
#[derive(Debug)]
pub struct IntentMap {
    file: Arc<dyn FileIo>,
    volume: VolumeId,
    lineage: Lineage,
    /// Number of the last write of the lineage.
    writes: u64,
    life: Life,
    sectors: Vec<[u8; BITS_BYTES]>,
    changed: BTreeSet<usize>,
}

/// Sectors to write, as they were when they were taken.
#[derive(Debug)]
pub struct Changes {
    file: Arc<dyn FileIo>,
    sectors: Vec<(u64, Vec<u8>)>,
    /// Of changes that are to be durable: what holds then, and where that is said.
    durable: Option<(Underway, Stamp, Arc<Stamps>)>,
}

impl Changes {
    /// Writes the sectors, and makes them durable unless intents were cleared only; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self) -> io::Result<()> {
        for (offset, bytes) in &self.sectors {
            self.file.write_all_at(bytes, *offset)?;
        }
        if let Some((begun, stamp, stamps)) = &self.durable {
            self.file.sync_data()?;
            // The write that waits for this comes now, and a sync may have taken long: the next start
            // compares the disk's time with this one.
            if let Err(error) = self.file.touch() {
                tracing::debug!(%error, "the intents keep an older time: a start may read more again");
            }
            stamps.durable(*begun, *stamp);
        }
        Ok(())
    }
}

/// Room in the file for a disk that has grown.
#[derive(Debug)]
pub struct Growth {
    file: Arc<dyn FileIo>,
    volume: VolumeId,
    regions: u64,
    sectors: usize,
}

impl Growth {
    /// Makes it, durably; blocks. A crash in between leaves a file of another size than the disk: then
    /// nothing is known of any region.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self) -> io::Result<()> {
        let empty = sector_of(&[0; BITS_BYTES]);
        for index in self.sectors..sectors_of(self.regions) {
            self.file.write_all_at(&empty, offset_of(index))?;
        }
        self.file.sync_all()?;
        self.file.write_all_at(&header(self.volume, self.regions), 0)?;
        self.file.sync_all()
    }
}

impl IntentMap {
    /// Opens the file, making it if it is absent or another's; blocks.
    ///
    /// `unknown` is told before it is made: what it notes must be durable when it returns, or a crash
    /// right after would leave a file that says that no region is in doubt.
    ///
    /// # Errors
    /// What the system said, or `unknown`.
    ///
    /// # Panics
    /// If the disk has more regions than a volume can have.
    pub fn open(
        files: &dyn Files,
        path: &Path,
        volume: VolumeId,
        regions: u64,
        life: Life,
        unknown: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<(Self, Recovered)> {
        let count = sectors_of(regions);
        let file = files.open_or_create(path)?;
        let (sectors, changed) = (vec![[0; BITS_BYTES]; count], BTreeSet::new());
        let (lineage, writes) = (Lineage::default(), 0);
        let mut map = Self { file, volume, lineage, writes, life, sectors, changed };
        let mut found = RegionSet::empty(regions);
        if !map.is_of(volume, regions)? {
            unknown()?;
            map.make(files, path, volume, regions)?;
            map.take_changes().write()?;
            return Ok((map, Recovered { regions: found, is_unknown: true }));
        }
        // What a killed agent wrote last may be in the page cache only; from here on it counts.
        map.file.sync_data()?;
        (map.lineage, map.writes) = read_lineage(&*map.file)?;
        let mut sector = [0; SECTOR_BYTES];
        for index in 0..count {
            map.file.read_exact_at(&mut sector, offset_of(index))?;
            let is_whole = check_crc("intent sector", &sector).is_ok();
            if is_whole {
                map.sectors[index].copy_from_slice(&sector[..BITS_BYTES]);
            } else {
                tracing::warn!(path = %path.display(), index, "torn intent sector");
                map.sectors[index].fill(0xff);
                map.changed.insert(index);
            }
            let first = index as u64 * SECTOR_REGIONS;
            for region in first..regions.min(first + SECTOR_REGIONS) {
                if map.has(region) {
                    found.add(region);
                }
            }
        }
        // From here on frames are made in this life: the file says so first.
        map.take_changes().write()?;
        Ok((map, Recovered { regions: found, is_unknown: false }))
    }

    fn is_of(&self, volume: VolumeId, regions: u64) -> io::Result<bool> {
        let length = offset_of(self.sectors.len());
        if self.file.len()? != length {
            return Ok(false);
        }
        let mut sector = [0; SECTOR_BYTES];
        self.file.read_exact_at(&mut sector, 0)?;
        Ok(sector[..] == header(volume, regions)[..])
    }

    fn make(
        &mut self,
        files: &dyn Files,
        path: &Path,
        volume: VolumeId,
        regions: u64,
    ) -> io::Result<()> {
        // The header comes last: without it the file is nobody's.
        self.file.set_len(0)?;
        let empty = sector_of(&[0; BITS_BYTES]);
        for index in 1..=LINEAGE_SECTORS {
            self.file.write_all_at(&[0; SECTOR_BYTES], index * SECTOR_BYTES as u64)?;
        }
        for index in 0..self.sectors.len() {
            self.file.write_all_at(&empty, offset_of(index))?;
        }
        self.file.sync_all()?;
        self.file.write_all_at(&header(volume, regions), 0)?;
        self.file.sync_all()?;
        path.parent().map_or(Ok(()), |dir| files.sync_dir(dir))
    }

    fn place(region: u64) -> (usize, usize, u8) {
        let index = usize::try_from(region / SECTOR_REGIONS).expect("checked when opened");
        let bit = usize::try_from(region % SECTOR_REGIONS).expect("below a sector's regions");
        (index, bit / 8, 1 << (bit % 8))
    }

    fn has(&self, region: u64) -> bool {
        let (index, byte, bit) = Self::place(region);
        self.sectors[index][byte] & bit != 0
    }

    /// Sets the bits of these regions; [`IntentMap::take_changes`] has them.
    pub fn set(&mut self, regions: &[u64]) {
        for region in regions {
            let (index, byte, bit) = Self::place(*region);
            self.sectors[index][byte] |= bit;
            self.changed.insert(index);
        }
    }

    /// Clears the bits of these regions; [`IntentMap::take_changes`] has them.
    pub fn clear(&mut self, regions: &[u64]) {
        for region in regions {
            let (index, byte, bit) = Self::place(*region);
            self.sectors[index][byte] &= !bit;
            self.changed.insert(index);
        }
    }

    /// What makes room in the file for a disk of so many regions; none if it is there. To be followed by
    /// [`IntentMap::grown`], with nothing written to the file in between.
    #[must_use]
    pub fn growth(&self, regions: u64) -> Growth {
        Growth {
            file: Arc::clone(&self.file),
            volume: self.volume,
            regions,
            sectors: self.sectors.len(),
        }
    }

    /// There is room for so many regions.
    ///
    /// # Panics
    /// If the disk has more regions than a volume can have.
    pub fn grown(&mut self, regions: u64) {
        self.sectors.resize(sectors_of(regions), [0; BITS_BYTES]);
    }

    /// Every sector that changed since the last call, and the next generation with them.
    ///
    /// # Panics
    /// If the life is 0.
    #[must_use]
    pub fn take_changes(&mut self) -> Changes {
        assert!(self.life.number > 0, "a life has a number");
        self.lineage.begin(self.life.number);
        if !self.lineage.raise() {
            // All generations of this life were used up; whoever compares takes another for a rollback.
            self.life.number = self.life.number.wrapping_add(1).max(1);
            self.lineage.begin(self.life.number);
        }
        self.writes += 1;
        let place = (1 + self.writes % LINEAGE_SECTORS) * SECTOR_BYTES as u64;
        let mut changes = self.take_cleared();
        changes.sectors.push((place, lineage_sector(&self.lineage, self.writes)));
        let stamps = Arc::clone(&self.life.stamps);
        changes.durable = Some((stamps.begin(), self.lineage.newest(), stamps));
        changes
    }

    /// Every sector that changed since the last call, when intents were cleared only: that need not be
    /// durable, nor be told from before. What was cleared is durable in the log.
    #[must_use]
    pub fn take_cleared(&mut self) -> Changes {
        let changed = std::mem::take(&mut self.changed);
        let sectors =
            changed.into_iter().map(|index| (offset_of(index), sector_of(&self.sectors[index])));
        Changes { file: Arc::clone(&self.file), sectors: sectors.collect(), durable: None }
    }
}

fn sectors_of(regions: u64) -> usize {
    usize::try_from(regions.div_ceil(SECTOR_REGIONS)).expect("a volume has a limit")
}

fn offset_of(index: usize) -> u64 {
    (1 + LINEAGE_SECTORS + index as u64) * SECTOR_BYTES as u64
}

/// What the volume's intents descend from, before they are opened; nothing if there are none. Blocks.
///
/// # Errors
/// What the system said.
pub fn lineage_at(files: &dyn Files, path: &Path) -> io::Result<Lineage> {
    match files.open(path) {
        Ok(file) if file.len()? >= offset_of(0) => Ok(read_lineage(&*file)?.0),
        Ok(_) => Ok(Lineage::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lineage::default()),
        Err(error) => Err(error),
    }
}

/// The lineage and the number of its write: the newer whole one of the two sectors.
fn read_lineage(file: &dyn FileIo) -> io::Result<(Lineage, u64)> {
    let mut newest = (Lineage::default(), 0);
    for index in 1..=LINEAGE_SECTORS {
        let mut sector = [0; SECTOR_BYTES];
        file.read_exact_at(&mut sector, index * SECTOR_BYTES as u64)?;
        if let Some((lineage, writes)) = take_lineage(&sector)
            && writes > newest.1
        {
            newest = (lineage, writes);
        }
    }
    Ok(newest)
}

fn take_lineage(sector: &[u8; SECTOR_BYTES]) -> Option<(Lineage, u64)> {
    let mut reader = Reader::new("intent lineage", sector);
    reader.magic(LINEAGE_MAGIC).ok()?;
    check_crc("intent lineage", sector).ok()?;
    reader.reserved(4).ok()?;
    // The next write has a number, too.
    let writes = reader.u64().ok().filter(|writes| *writes < u64::MAX)?;
    let mut kept = [0; LIVES_MAX];
    for life in &mut kept {
        *life = reader.u64().ok()?;
    }
    Some((Lineage::from_kept(kept), writes))
}

fn lineage_sector(lineage: &Lineage, writes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(SECTOR_BYTES);
    out.put_bytes(&LINEAGE_MAGIC);
    out.put_zeros(4);
    out.put_u64(writes);
    lineage.to_kept().into_iter().for_each(|life| out.put_u64(life));
    out.put_zeros(SECTOR_BYTES - 4 - out.len());
    put_crc(&mut out, 0);
    out
}

fn sector_of(bits: &[u8; BITS_BYTES]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SECTOR_BYTES);
    out.put_bytes(bits);
    out.put_zeros(SECTOR_BYTES - 4 - BITS_BYTES);
    put_crc(&mut out, 0);
    out
}

fn header(volume: VolumeId, regions: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(SECTOR_BYTES);
    out.put_bytes(&MAGIC);
    out.put_u16(VERSION);
    out.put_zeros(2);
    out.put_bytes(volume.as_bytes());
    out.put_u64(regions);
    out.put_zeros(SECTOR_BYTES - 4 - out.len());
    put_crc(&mut out, 0);
    debug_assert!(Reader::new("intent header", &out).magic(MAGIC).is_ok());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty_files::FaultyFiles;
    use crate::files::OsFiles;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const VOLUME: VolumeId = VolumeId([5; 16]);
    const REGIONS: u64 = 10_000;

    fn life(number: u32) -> Life {
        Life { number, stamps: Arc::default() }
    }

    fn open(path: &Path) -> (IntentMap, Recovered) {
        open_as(path, VOLUME, REGIONS)
    }

    fn open_as(path: &Path, volume: VolumeId, regions: u64) -> (IntentMap, Recovered) {
        let mut is_told = false;
        let mut unknown = || {
            is_told = true;
            Ok(())
        };
        let found =
            IntentMap::open(&OsFiles, path, volume, regions, life(1), &mut unknown).unwrap();
        assert_eq!(found.1.is_unknown, is_told);
        found
    }

    #[test]
    fn remembers_what_was_set_and_not_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        let (mut map, recovered) = open(&path);
        assert!(recovered.is_unknown);
        map.set(&[0, 4031, 4032, 9_999]);
        map.take_changes().write().unwrap();
        map.clear(&[4031]);
        map.take_cleared().write().unwrap();
        let (_, recovered) = open(&path);
        assert!(!recovered.is_unknown);
        assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), [0, 4032, 9_999]);
        assert_eq!(path.metadata().unwrap().len(), 6 * 512);
    }

    /// D35: the intents of before are kept, and so is room for the new part's.
    #[test]
    fn grows_with_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        let (mut map, _) = open(&path);
        map.set(&[3, 9_999]);
        map.take_changes().write().unwrap();
        for regions in [REGIONS + 1, 4 * REGIONS] {
            map.growth(regions).make().unwrap();
            map.grown(regions);
            map.set(&[regions - 1]);
            map.take_changes().write().unwrap();
        }
        drop(map);
        let (_, recovered) = open_as(&path, VOLUME, 4 * REGIONS);
        let expected = [3, 9_999, REGIONS, 4 * REGIONS - 1];
        assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), expected);
        assert!(open(&path).1.is_unknown, "not of the size of before");
    }

    #[test]
    fn a_damaged_sector_puts_its_regions_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        drop(open(&path));
        let file = File::options().write(true).open(&path).unwrap();
        FileExt::write_all_at(&file, &[1], 512 * 5 + 7).unwrap();
        let files = FaultyFiles::good();
        let mut nobody = || unreachable!("it is known");
        let (_, recovered) =
            IntentMap::open(&files, &path, VOLUME, REGIONS, life(1), &mut nobody).unwrap();
        assert!(files.has_synced(&path), "what puts it in doubt must outlive a power cut");
        let damaged: Vec<u64> = (8064..REGIONS).collect();
        assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), damaged);
        // D2: the byte that was damaged comes right again, as a torn write may have it.
        FileExt::write_all_at(&file, &[0], 512 * 5 + 7).unwrap();
        let (_, recovered) = open(&path);
        assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), damaged);
    }

    #[test]
    fn a_file_of_another_volume_or_size_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        drop(open(&path));
        assert!(open_as(&path, VolumeId([6; 16]), REGIONS).1.is_unknown);
        drop(open(&path));
        assert!(open_as(&path, VOLUME, REGIONS + 1).1.is_unknown);
        drop(open(&path));
        std::fs::write(&path, "short").unwrap();
        assert!(open(&path).1.is_unknown);
    }

    /// D7: a crash while a lost file is made anew must not leave one that says "nothing in doubt".
    #[test]
    fn nothing_is_made_before_the_loss_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        let mut fail = || Err(io::Error::other("not noted"));
        assert!(IntentMap::open(&OsFiles, &path, VOLUME, REGIONS, life(1), &mut fail).is_err());
        assert!(open(&path).1.is_unknown, "as before");
    }

    /// D2: damage never takes a region out of doubt.
    #[test]
    fn every_flipped_byte_and_every_length_leaves_more_in_doubt() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("intent");
        let (mut map, _) = open(&path);
        let set = [0, 4031, 4032, 9_999];
        map.set(&set);
        map.take_changes().write().unwrap();
        drop(map);
        let whole = std::fs::read(&path).unwrap();
        let (mut unknown, mut sectors) = (0, 0);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).unwrap();
            let (_, recovered) = open(&path);
            if at < SECTOR_BYTES {
                assert!(recovered.is_unknown, "flip at {at}");
                unknown += 1;
                continue;
            }
            let found: BTreeSet<u64> = recovered.regions.iter().collect();
            let in_front = 1 + usize::try_from(LINEAGE_SECTORS).unwrap();
            let Some(index) = (at / SECTOR_BYTES).checked_sub(in_front) else {
                assert_eq!(found, set.into(), "flip at {at} concerns no region");
                continue;
            };
            let first = index as u64 * SECTOR_REGIONS;
            let damaged = first..REGIONS.min(first + SECTOR_REGIONS);
            assert_eq!(found, damaged.chain(set).collect(), "flip at {at}");
            sectors += 1;
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(open(&path).1.is_unknown, "cut to {length}");
        }
        std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(open(&path).1.is_unknown, "grown");
        println!(
            "intent: {unknown} flips make all unknown, {sectors} a sector; {} cuts",
            whole.len()
        );
    }

    /// Whatever is torn or damaged of it, it never says more than what was durable.
    #[test]
    fn the_line_goes_on_and_says_no_more_than_was_durable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        assert_eq!(lineage_at(&OsFiles, &path).unwrap(), Lineage::default());
        let open = |number| {
            let stamps = Arc::<Stamps>::default();
            let life = Life { number, stamps: Arc::clone(&stamps) };
            let opened = IntentMap::open(&OsFiles, &path, VOLUME, REGIONS, life, &mut || Ok(()));
            (opened.unwrap().0, stamps)
        };
        let told = Stamps::now;
        let (mut map, stamp) = open(7);
        assert_eq!(told(&stamp), Stamp { life: 7, generation: 1 }, "before the first frame");
        map.set(&[3]);
        let changes = map.take_changes();
        assert_eq!(told(&stamp).generation, 1, "nothing is said before it is durable");
        changes.write().unwrap();
        assert_eq!(told(&stamp).generation, 2);
        map.clear(&[3]);
        map.take_cleared().write().unwrap();
        assert_eq!(told(&stamp).generation, 2, "nobody synced it");
        drop(map);
        let (_, stamp) = open(8);
        assert_eq!(told(&stamp), Stamp { life: 8, generation: 1 });
        let whole = lineage_at(&OsFiles, &path).unwrap();
        assert!(whole.covers(Stamp { life: 7, generation: 2 }) && whole.covers(told(&stamp)));
        let bytes = std::fs::read(&path).unwrap();
        for at in SECTOR_BYTES..3 * SECTOR_BYTES {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            let found = lineage_at(&OsFiles, &path).unwrap();
            assert!(!found.covers(Stamp { life: 7, generation: 3 }), "flip at {at}");
            assert!(!found.covers(Stamp { life: 8, generation: 2 }), "flip at {at}");
        }
        std::fs::write(&path, "short").unwrap();
        assert_eq!(lineage_at(&OsFiles, &path).unwrap(), Lineage::default());
    }

    #[test]
    fn the_bytes_are_those_documented() {
        let header = header(VOLUME, 3);
        assert_eq!(&header[..8], b"FSIN\x02\0\0\0");
        assert_eq!(header[8..24], [5; 16]);
        assert_eq!(header[24..32], [3, 0, 0, 0, 0, 0, 0, 0]);
        let mut lineage = Lineage::default();
        lineage.begin(0x0102_0304);
        let sector = lineage_sector(&lineage, 9);
        assert_eq!(sector[..16], *b"FSIL\0\0\0\0\x09\0\0\0\0\0\0\0");
        assert_eq!(sector[72..80], [0, 0, 0, 0, 4, 3, 2, 1]);
        assert!(header[32..508].iter().all(|byte| *byte == 0));
        let mut bits = [0; BITS_BYTES];
        bits[1] = 2;
        let sector = sector_of(&bits);
        assert_eq!(sector[..4], [0, 2, 0, 0]);
        check_crc("sector", &sector).unwrap();
    }
}
