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
//! cleared bits are written some time after the flush that made them unnecessary, without a sync. A
//! durable write raises the newest life's generation and writes it, with the bits, into one of the two
//! sectors in turn: whatever a power cut leaves, the other still says what was durable before. A sector that is
//! torn or damaged fails its checksum and puts all its regions in doubt; it is made whole at once,
//! durably, because a torn write over a damaged one can make what was there before the damage. What is
//! read at the start is synced before it counts: an agent that was killed may have left it in the page
//! cache only.
//!
//! A file that takes no intents is made void, in place or by taking its name away: then it is nobody's, and
//! the next start reads the whole disk. Once it takes something again all bits are set, header last.

use super::void_note::VoidNote;
use crate::files::{FileIo, Files};
use crate::stamps::{Stamps, Underway};
use farshore_engine::doubt::RegionSet;
use farshore_engine::lineage::{LIVES_MAX, Lineage};
use farshore_proto::wire::{Put, Reader, check_crc, put_crc};
use farshore_proto::{Stamp, VolumeId};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
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

/// Whose intents are where.
#[derive(Debug, Clone)]
struct Home {
    files: Arc<dyn Files>,
    path: PathBuf,
    volume: VolumeId,
    regions: u64,
    note: VoidNote,
}

/// The intents of one volume as they are, or will be, in the file.
#[derive(Debug)]
pub struct IntentMap {
    home: Home,
    /// Absent while the file cannot be opened.
    file: Option<Arc<dyn FileIo>>,
    /// What the file says counts for nothing.
    is_void: bool,
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
    file: Option<Arc<dyn FileIo>>,
    sectors: Vec<(u64, Vec<u8>)>,
    /// Which of the map's sectors they are.
    indices: Vec<usize>,
    /// Of changes that are to be durable: what holds then, and where that is said.
    durable: Option<(Underway, Stamp, Arc<Stamps>)>,
}

impl Changes {
    /// Which of the map's sectors these are, for [`IntentMap::unwritten`].
    #[must_use]
    pub fn indices(&self) -> Vec<usize> {
        self.indices.clone()
    }

    /// Writes the sectors, and makes them durable unless intents were cleared only; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        for (offset, bytes) in &self.sectors {
            file.write_all_at(bytes, *offset)?;
        }
        if let Some((begun, stamp, stamps)) = &self.durable {
            file.sync_data()?;
            touch(&**file);
            stamps.durable(*begun, *stamp);
        }
        Ok(())
    }
}

/// Room in the file for a disk that has grown.
#[derive(Debug)]
pub struct Growth {
    file: Option<Arc<dyn FileIo>>,
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
        let Some(file) = &self.file else {
            return Err(io::Error::other("what cannot be opened does not grow"));
        };
        let empty = sector_of(&[0; BITS_BYTES]);
        for index in self.sectors..sectors_of(self.regions) {
            file.write_all_at(&empty, offset_of(index))?;
        }
        file.sync_all()?;
        file.write_all_at(&header(self.volume, self.regions), 0)?;
        file.sync_all()
    }
}

/// The write that waits for an intent comes now, and a sync may have taken long: the next start compares
/// the disk's time with the file's.
pub(super) fn touch(file: &dyn FileIo) {
    if let Err(error) = file.touch() {
        tracing::debug!(%error, "the intents keep an older time: a start may read more again");
    }
}

/// That the intents count for nothing, on its way to the disk.
#[derive(Debug, Clone)]
pub struct Voiding {
    home: Home,
    file: Option<Arc<dyn FileIo>>,
}

impl Voiding {
    /// Makes it durable, in place or by taking the file's name away: neither needs space. Blocks.
    ///
    /// # Errors
    /// What the system said: then a later start may take the intents for what they were, unless
    /// [`Voiding::note`] went well and it is in the same run of the server.
    pub fn write(&self) -> io::Result<()> {
        let Err(error) = self.overwrite() else { return Ok(()) };
        self.remove().map_err(|_| error)
    }

    /// Notes it for a start in the same run of the server, where no disk is waited for.
    ///
    /// # Errors
    /// What the system said.
    pub fn note(&self) -> io::Result<()> {
        self.home.note.make()
    }

    fn overwrite(&self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => self.home.files.open(&self.home.path)?,
        };
        file.write_all_at(&[0; SECTOR_BYTES], 0)?;
        file.sync_data()
    }

    fn remove(&self) -> io::Result<()> {
        match self.home.files.remove(&self.home.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.home.path.parent().map_or(Ok(()), |dir| self.home.files.sync_dir(dir))
    }
}

/// A whole file on its way to the disk.
#[derive(Debug)]
pub struct Layout {
    home: Home,
    bits: [u8; BITS_BYTES],
    lineage: (u64, Vec<u8>),
    durable: (Underway, Stamp, Arc<Stamps>),
}

impl Layout {
    /// Makes the file, durably, and says under which stamp its intents are; blocks.
    ///
    /// # Errors
    /// What the system said: then the file is nobody's.
    pub fn write(&self) -> io::Result<Arc<dyn FileIo>> {
        let Home { files, path, volume, regions, note } = &self.home;
        let file = files.open_or_create(path)?;
        let count = regions.div_ceil(SECTOR_REGIONS);
        let length = (1 + LINEAGE_SECTORS + count) * SECTOR_BYTES as u64;
        if file.len()? != length {
            file.set_len(0)?;
        }
        // The header comes last, and goes first: without it the file is nobody's. What is there already
        // is written over: that needs no space.
        file.write_all_at(&[0; SECTOR_BYTES], 0)?;
        file.sync_data()?;
        for index in 1..=LINEAGE_SECTORS {
            file.write_all_at(&[0; SECTOR_BYTES], index * SECTOR_BYTES as u64)?;
        }
        file.write_all_at(&self.lineage.1, self.lineage.0)?;
        let sector = sector_of(&self.bits);
        for index in 0..count {
            file.write_all_at(&sector, (1 + LINEAGE_SECTORS + index) * SECTOR_BYTES as u64)?;
        }
        file.sync_all()?;
        file.write_all_at(&header(*volume, *regions), 0)?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |dir| files.sync_dir(dir))?;
        touch(&*file);
        note.remove();
        let (begun, stamp, stamps) = &self.durable;
        stamps.durable(*begun, *stamp);
        Ok(file)
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
        files: &Arc<dyn Files>,
        path: &Path,
        volume: VolumeId,
        regions: u64,
        life: Life,
        unknown: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<(Self, Recovered)> {
        let file = files.open_or_create(path)?;
        let mut map = Self::empty(files, path, volume, regions, life);
        if map.home.note.is_there() || !is_of(&*file, volume, regions)? {
            unknown()?;
            let made = map.lay_out(0).write()?;
            map.mended(made);
            let regions = RegionSet::empty(regions);
            return Ok((map, Recovered { regions, is_unknown: true }));
        }
        // What a killed agent wrote last may be in the page cache only; from here on it counts.
        file.sync_data()?;
        (map.lineage, map.writes) = read_lineage(&*file)?;
        let mut found = RegionSet::empty(regions);
        let mut sector = [0; SECTOR_BYTES];
        for index in 0..map.sectors.len() {
            file.read_exact_at(&mut sector, offset_of(index))?;
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
        map.mended(file);
        // From here on frames are made in this life: the file says so first.
        map.take_changes().write()?;
        Ok((map, Recovered { regions: found, is_unknown: false }))
    }

    /// Intents whose file cannot be used: nothing is known of any region. What the file says is not void
    /// before [`IntentMap::void`].
    #[must_use]
    pub fn unusable(
        files: &Arc<dyn Files>,
        path: &Path,
        volume: VolumeId,
        regions: u64,
        life: Life,
    ) -> (Self, Recovered) {
        let map = Self::empty(files, path, volume, regions, life);
        (map, Recovered { regions: RegionSet::full(regions), is_unknown: true })
    }

    fn empty(
        files: &Arc<dyn Files>,
        path: &Path,
        volume: VolumeId,
        regions: u64,
        life: Life,
    ) -> Self {
        let count =
            usize::try_from(regions.div_ceil(SECTOR_REGIONS)).expect("a volume has a limit");
        Self {
            home: Home {
                files: Arc::clone(files),
                path: path.to_owned(),
                volume,
                regions,
                note: VoidNote::of(&**files, volume),
            },
            file: None,
            is_void: true,
            lineage: Lineage::default(),
            writes: 0,
            life,
            sectors: vec![[0; BITS_BYTES]; count],
            changed: BTreeSet::new(),
        }
    }

    /// The file, unless it cannot be opened.
    #[must_use]
    pub(super) fn file(&self) -> Option<Arc<dyn FileIo>> {
        self.file.clone()
    }

    /// Regions of the disk.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.home.regions
    }

    /// Whether what the file says counts for nothing.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.is_void
    }

    /// From here on what the file says counts for nothing; to be made durable before any write goes ahead
    /// without its intent. Frames say nothing of intents from here on.
    pub fn void(&mut self) -> Voiding {
        self.life.stamps.forget();
        self.is_void = true;
        Voiding { home: self.home.clone(), file: self.file.clone() }
    }

    /// The file as it is to be, with intents of all regions or of none: 0xff or 0. Once it is durable,
    /// [`IntentMap::mended`] takes it.
    pub fn lay_out(&mut self, bits: u8) -> Layout {
        self.sectors.fill([bits; BITS_BYTES]);
        self.changed.clear();
        let lineage = self.next_lineage();
        let stamps = Arc::clone(&self.life.stamps);
        let durable = (stamps.begin(), self.lineage.newest(), stamps);
        Layout { home: self.home.clone(), bits: [bits; BITS_BYTES], lineage, durable }
    }

    /// The file says again what counts.
    pub fn mended(&mut self, file: Arc<dyn FileIo>) {
        self.file = Some(file);
        self.is_void = false;
    }

    /// The next generation: where it is to be written, and its bytes.
    fn next_lineage(&mut self) -> (u64, Vec<u8>) {
        assert!(self.life.number > 0, "a life has a number");
        self.lineage.begin(self.life.number);
        if !self.lineage.raise() {
            // All generations of this life were used up; whoever compares takes another for a rollback.
            self.life.number = self.life.number.wrapping_add(1).max(1);
            self.lineage.begin(self.life.number);
        }
        self.writes += 1;
        let place = (1 + self.writes % LINEAGE_SECTORS) * SECTOR_BYTES as u64;
        (place, lineage_sector(&self.lineage, self.writes))
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
            file: self.file.clone(),
            volume: self.home.volume,
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
        self.home.regions = regions;
    }

    /// Every sector that changed since the last call, and the next generation with them.
    ///
    /// # Panics
    /// If the life is 0.
    #[must_use]
    pub fn take_changes(&mut self) -> Changes {
        let lineage = self.next_lineage();
        let mut changes = self.take_cleared();
        changes.sectors.push(lineage);
        let stamps = Arc::clone(&self.life.stamps);
        changes.durable = Some((stamps.begin(), self.lineage.newest(), stamps));
        changes
    }

    /// Every sector that changed since the last call, when intents were cleared only: that need not be
    /// durable, nor be told from before. What was cleared is durable in the log.
    #[must_use]
    pub fn take_cleared(&mut self) -> Changes {
        let indices: Vec<usize> = std::mem::take(&mut self.changed).into_iter().collect();
        let sectors =
            indices.iter().map(|index| (offset_of(*index), sector_of(&self.sectors[*index])));
        let sectors = sectors.collect();
        let file = self.file.clone().filter(|_| !self.is_void);
        Changes { file, sectors, indices, durable: None }
    }

    /// Sectors that were taken and cannot be written have changed still: among what was to be cleared may be
    /// an intent that was set meanwhile, and whoever makes that durable must find it.
    pub fn unwritten(&mut self, indices: Vec<usize>) {
        let count = self.sectors.len();
        self.changed.extend(indices.into_iter().filter(|index| *index < count));
    }
}

fn sectors_of(regions: u64) -> usize {
    usize::try_from(regions.div_ceil(SECTOR_REGIONS)).expect("a volume has a limit")
}

fn is_of(file: &dyn FileIo, volume: VolumeId, regions: u64) -> io::Result<bool> {
    let count = regions.div_ceil(SECTOR_REGIONS);
    if file.len()? != (1 + LINEAGE_SECTORS + count) * SECTOR_BYTES as u64 {
        return Ok(false);
    }
    let mut sector = [0; SECTOR_BYTES];
    file.read_exact_at(&mut sector, 0)?;
    Ok(sector[..] == header(volume, regions)[..])
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
mod tests;
