//! Files that a program keeps for itself and finds again after a crash: what is damaged in them may
//! cost work, and may never be believed.

use super::memory_files::MemoryFiles;
use crate::{checksum, taken};
use farshore_agent::capture::hashes::{self, Hashes};
use farshore_agent::capture::intent::{IntentMap, Life};
use farshore_agent::capture::prints::Prints;
use farshore_agent::capture::unknown::{UNKNOWN_FILE, Unknown};
use farshore_agent::hrl::{Cursor, Entry, Home, Log, Recovered};
use farshore_agent::state::{State, StateFile};
use farshore_agent::{Clock, files::Files};
use farshore_engine::doubt::RegionSet;
use farshore_export::overlay::{Overlay, OverlayBase};
use farshore_ingest::index::Index;
use farshore_proto::hrl::frame_at;
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_HEADER_BYTES, HRL_HEADER_BYTES, VOLUME_BLOCKS_MAX,
};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, LogId, MarkKind, PointId, Seq, Slot, Target, VaultId, VolumeId,
};
use farshore_vault::Location;
use farshore_vault::register::Condemned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

const VAULT: VaultId = VaultId([1; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);

/// A folder in memory where there is one, for those that want a real file.
fn folder() -> TempDir {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a temporary folder can be made")
}

// The chunk index: two files in one input, the length of the first (16 bits) before them.

const LOGS_HEADER_BYTES: usize = 64;
const ENTRIES_HEADER_BYTES: usize = 4096;

fn known() -> [(ChunkId, Location); 3] {
    let at = |log: u8, slot, chunk| Location {
        target: Target { log: LogId([log; 16]), slot: Slot(slot), attempt: Attempt([0; 8]) },
        chunk,
        blocks: 8,
    };
    [
        (ChunkId([0x21; 32]), at(2, 7, 0)),
        (ChunkId([0x42; 32]), at(2, 7, 1)),
        (ChunkId([0x63; 32]), at(9, 1, 5)),
    ]
}

/// The file that says that the others are of use.
const CLEARED: &str = "cleared";

fn cleared() -> &'static [u8] {
    static CLEARED_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    CLEARED_BYTES.get_or_init(|| {
        let folder = folder();
        let mut index = Index::open(folder.path(), VAULT).expect("a new index");
        index.clear(Condemned::default()).expect("there is nothing to clear");
        fs::read(folder.path().join(CLEARED)).expect("it was made")
    })
}

/// The first file of ordinary chunks.
const CHUNKS: &str = "chunks-0000000000";

pub(super) fn chunk_index(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (logs, entries) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    index_of(logs, entries);
    if logs.len() >= LOGS_HEADER_BYTES && entries.len() >= ENTRIES_HEADER_BYTES {
        let (mut logs, mut entries) = (logs.to_vec(), entries.to_vec());
        checksum::put_right(&mut logs, LOGS_HEADER_BYTES);
        checksum::put_right(&mut entries, ENTRIES_HEADER_BYTES);
        index_of(&logs, &entries);
    }
}

fn index_of(logs: &[u8], entries: &[u8]) {
    let folder = folder();
    fs::write(folder.path().join("logs"), logs).expect("written");
    fs::write(folder.path().join(CHUNKS), entries).expect("written");
    fs::write(folder.path().join(CLEARED), cleared()).expect("written");
    let Ok(mut index) = Index::open(folder.path(), VAULT) else { return };
    let is_head = |bytes: &[u8], length: usize| {
        bytes.is_empty()
            || bytes.get(24..length - 4).is_some_and(|zeros| zeros.iter().all(|b| *b == 0))
    };
    assert!(is_head(logs, LOGS_HEADER_BYTES) && is_head(entries, ENTRIES_HEADER_BYTES));
    let refused = Condemned::default();
    for (id, location) in known() {
        for found in index.lookup(&[id], &refused).into_iter().flatten() {
            assert_eq!(found, location, "a place that nobody noted");
            taken();
        }
    }
    // Whatever it made of the files, it goes on from there.
    let more = (ChunkId([0x84; 32]), known()[0].1);
    if index.insert(&[more]).is_ok() {
        assert_eq!(index.lookup(&[more.0], &refused), [Some(more.1)]);
    }
    // Nor does it matter what of it is let go of.
    let judged = [known()[0].1.target].into();
    let condemned = Condemned { judged, ..Condemned::default() };
    if index.clear(condemned).is_ok() {
        assert_eq!(index.lookup(&[known()[0].0, more.0], &refused), [None; 2]);
    }
}

pub(super) fn chunk_index_samples() -> Vec<Vec<u8>> {
    let folder = folder();
    let mut index = Index::open(folder.path(), VAULT).expect("a new index");
    index.insert(&known()).expect("there is room");
    drop(index);
    let read = |name: &str| fs::read(folder.path().join(name)).expect("it was made");
    let logs = read("logs");
    let length = u16::try_from(logs.len()).expect("it is short").to_le_bytes();
    vec![[&length[..], &logs, &read(CHUNKS)].concat()]
}

// The map of an overlay, over a point of 1 MiB.

const OVERLAY_BLOCKS: u64 = 256;
const OVERLAY: OverlayBase =
    OverlayBase { volume: VOLUME, seq: Seq(43), size_bytes: OVERLAY_BLOCKS * BLOCK_BYTES as u64 };

pub(super) fn overlay_map(bytes: &[u8]) {
    checksum::both(bytes, 64, |bytes| {
        let folder = folder();
        let (data, map) = (folder.path().join("o"), folder.path().join("o.map"));
        let file = fs::File::create(&data).expect("made");
        file.set_len(OVERLAY.size_bytes).expect("made long");
        fs::write(map, bytes).expect("written");
        let Ok(overlay) = Overlay::open(&data, OVERLAY) else { return };
        let head = &bytes[..64];
        assert_eq!(crc32c::crc32c(&head[..60]).to_le_bytes(), head[60..]);
        assert_eq!(head[..32], [b"FSOV\x03\0\0\0", &VOLUME.0[..], &43_u64.to_le_bytes()].concat());
        assert_eq!(head[56..60], [0; 4]);
        let whole = BlockRange { block: 0, count: OVERLAY_BLOCKS };
        let runs: Vec<_> = overlay.runs(whole).collect();
        assert_eq!(runs.iter().map(|(run, _)| run.count).sum::<u64>(), OVERLAY_BLOCKS);
        taken();
    });
}

pub(super) fn overlay_map_samples() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path().join("o");
    let overlay = Overlay::open(&path, OVERLAY).expect("a new overlay");
    overlay.write(5, &[7; BLOCK_BYTES]).expect("written");
    overlay.flush().expect("flushed");
    overlay.write(6, &[8; BLOCK_BYTES]).expect("written");
    drop(overlay);
    vec![fs::read(folder.path().join("o.map")).expect("it was made")]
}

// The intents of a disk of 5000 regions: a header, two sectors of the lineage, two of bits.

const REGIONS: u64 = 5000;
const SECTOR_BYTES: usize = 512;
const SECTOR_REGIONS: u64 = 504 * 8;

fn open_intents(files: &Arc<MemoryFiles>, path: &Path) -> (IntentMap, Vec<u64>, bool) {
    let mut is_told = false;
    let mut unknown = || {
        is_told = true;
        Ok(())
    };
    let opened = {
        let life = Life { number: 1, stamps: Arc::default() };
        let files: Arc<dyn Files> = Arc::<MemoryFiles>::clone(files);
        IntentMap::open(&files, path, VOLUME, REGIONS, life, &mut unknown)
    };
    let (map, recovered) = opened.expect("memory does not fail");
    assert_eq!(recovered.is_unknown, is_told);
    (map, recovered.regions.iter().collect(), recovered.is_unknown)
}

pub(super) fn intent(bytes: &[u8]) {
    let path = PathBuf::from("volume/intent");
    for end in [None, Some(1), Some(2), Some(3), Some(4), Some(5)]
        .map(|end| end.map(|end| end * SECTOR_BYTES))
    {
        let mut bytes = bytes.to_vec();
        if let Some(end) = end.filter(|end| *end <= bytes.len()) {
            checksum::put_right(&mut bytes[end - SECTOR_BYTES..], SECTOR_BYTES);
        }
        let files = MemoryFiles::with(&path, &bytes);
        let (_, regions, is_unknown) = open_intents(&files, &path);
        let header = &intent_samples()[0][..SECTOR_BYTES];
        let is_ours = bytes.len() == 5 * SECTOR_BYTES && bytes.starts_with(header);
        assert_eq!(is_unknown, !is_ours);
        if is_ours {
            assert_eq!(regions, in_doubt(&bytes));
            taken();
        }
    }
}

/// Regions whose bit is set, and all those of a damaged sector.
fn in_doubt(file: &[u8]) -> Vec<u64> {
    let mut regions = Vec::new();
    for (first, sector) in (0..).step_by(504 * 8).zip(file[3 * SECTOR_BYTES..].chunks(SECTOR_BYTES))
    {
        let (bits, crc) = sector.split_at(SECTOR_BYTES - 4);
        let is_damaged = crc32c::crc32c(bits).to_le_bytes() != *crc;
        let set = |bit: u64| {
            let at = usize::try_from(bit / 8).expect("it is small");
            is_damaged || bits[at] >> (bit % 8) & 1 == 1
        };
        regions.extend((0..SECTOR_REGIONS).filter(|bit| set(*bit)).map(|bit| first + bit));
    }
    regions.retain(|region| *region < REGIONS);
    regions
}

pub(super) fn intent_samples() -> Vec<Vec<u8>> {
    let path = PathBuf::from("volume/intent");
    let files = Arc::new(MemoryFiles::default());
    let (mut map, _, _) = open_intents(&files, &path);
    map.set(&[0, 77, 4031, 4032, 4999]);
    map.take_changes().write().expect("memory does not fail");
    vec![files.bytes(&path).expect("it was made")]
}

// The hashes of a disk of 10 units and a bit.

const HASHED_BYTES: u64 = 10 * hashes::UNIT_BYTES as u64 + BLOCK_BYTES as u64;
const HASHES_HEADER_BYTES: usize = 512;
const RESTARTS: u64 = 2;

pub(super) fn hashes(bytes: &[u8]) {
    checksum::both(bytes, HASHES_HEADER_BYTES, |bytes| {
        let folder = folder();
        let path = folder.path().join("hashes");
        fs::write(&path, bytes).expect("written");
        let opened = Hashes::open(&path, VOLUME, HASHED_BYTES, RESTARTS).expect("files work");
        let units = usize::try_from(hashes::units(HASHED_BYTES)).expect("there are few");
        let known = opened.read(0, units).expect("it is as long as it must be").concat();
        let good = &hashes_samples()[0];
        let mut ours = bytes.get(..HASHES_HEADER_BYTES).map(<[u8]>::to_vec).unwrap_or_default();
        if ours.len() == HASHES_HEADER_BYTES {
            // The key is drawn, and the disk may have grown; all else is given.
            ours[24..32].copy_from_slice(&good[24..32]);
            ours[40..72].copy_from_slice(&good[40..72]);
            ours[508..].copy_from_slice(&good[508..512]);
        }
        let size = bytes.get(24..32).and_then(|size| size.try_into().ok()).map(u64::from_le_bytes);
        let size = size.filter(|size| *size <= HASHED_BYTES).unwrap_or(u64::MAX);
        let length = hashes::units(size).saturating_mul(16) + HASHES_HEADER_BYTES as u64;
        let has_crc = bytes.len() >= HASHES_HEADER_BYTES
            && crc32c::crc32c(&bytes[..508]).to_le_bytes() == bytes[508..512];
        if bytes.len() as u64 == length && has_crc && ours == good[..HASHES_HEADER_BYTES] {
            let mut kept = bytes[HASHES_HEADER_BYTES..].to_vec();
            kept.resize(units * 16, 0);
            if size < HASHED_BYTES {
                let last = usize::try_from(size).expect("it is small") / hashes::UNIT_BYTES * 16;
                kept[last..last + 16].fill(0);
            }
            assert_eq!(known, kept);
            taken();
        } else {
            assert!(known.iter().all(|byte| *byte == 0), "nothing is known from another's file");
        }
    });
}

pub(super) fn hashes_samples() -> Vec<Vec<u8>> {
    // Laid out by hand, for the key of a new file is random.
    let mut file = Vec::new();
    file.extend_from_slice(b"FSHS\x02\0\0\0");
    file.extend_from_slice(&VOLUME.0);
    file.extend_from_slice(&HASHED_BYTES.to_le_bytes());
    file.extend_from_slice(&RESTARTS.to_le_bytes());
    file.extend_from_slice(&[0x4b; 32]);
    file.resize(HASHES_HEADER_BYTES, 0);
    checksum::put_right(&mut file, HASHES_HEADER_BYTES);
    for unit in 0..11_u8 {
        file.extend_from_slice(&[unit % 3; 16]);
    }
    vec![file]
}

// The prints of a disk of 20 blocks and a bit.

const PRINTED_BYTES: u64 = 20 * BLOCK_BYTES as u64 + 512;
const PRINTS_HEADER_BYTES: usize = 4096;

pub(super) fn prints(bytes: &[u8]) {
    checksum::both(bytes, PRINTS_HEADER_BYTES, |bytes| {
        let folder = folder();
        let path = folder.path().join("prints");
        fs::write(&path, bytes).expect("written");
        let doubtful = RegionSet::empty(1);
        let opened = Prints::open(&path, VOLUME, PRINTED_BYTES, &doubtful).expect("files work");
        let known = opened.read(BlockRange { block: 0, count: 21 }).expect("it is long enough");
        let good = &prints_samples()[0];
        let is_ours = bytes.len() == good.len()
            && bytes[..PRINTS_HEADER_BYTES] == good[..PRINTS_HEADER_BYTES];
        if is_ours {
            let told: Vec<u8> = known.iter().flat_map(|print| print.to_le_bytes()).collect();
            assert_eq!(told, bytes[PRINTS_HEADER_BYTES..]);
            taken();
        } else {
            assert!(known.iter().all(|print| *print == 0), "nothing is known from another's file");
        }
    });
}

pub(super) fn prints_samples() -> Vec<Vec<u8>> {
    let mut file = Vec::new();
    file.extend_from_slice(b"FSPR\x01\0\0\0");
    file.extend_from_slice(&VOLUME.0);
    file.extend_from_slice(&PRINTED_BYTES.to_le_bytes());
    file.resize(PRINTS_HEADER_BYTES, 0);
    checksum::put_right(&mut file, PRINTS_HEADER_BYTES);
    for block in 0..21_u32 {
        file.extend_from_slice(&(block * 0x0101_0101).to_le_bytes());
    }
    vec![file]
}

// The blocks of a disk that cannot be read, in JSON.

/// The bytes with the checksum that their ranges should have.
fn with_right_sum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kept: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let numbers = kept.get("ranges")?.as_array()?.iter().flat_map(|pair| pair.as_array());
    let numbers: Option<Vec<u64>> = numbers.flatten().map(serde_json::Value::as_u64).collect();
    let bytes: Vec<u8> = numbers?.into_iter().flat_map(u64::to_le_bytes).collect();
    kept.as_object_mut()?.insert("crc32c".to_owned(), crc32c::crc32c(&bytes).into());
    serde_json::to_vec(&kept).ok()
}

pub(super) fn unknown(bytes: &[u8]) {
    open_unknown(bytes);
    if let Some(right) = with_right_sum(bytes) {
        open_unknown(&right);
    }
}

fn open_unknown(bytes: &[u8]) {
    let dir = Path::new("volume");
    let files: Arc<dyn Files> = MemoryFiles::with(&dir.join(UNKNOWN_FILE), bytes);
    let unknown = match Unknown::open(Arc::clone(&files), dir) {
        Ok(unknown) => unknown,
        Err(error) => return assert_eq!(error.kind(), io::ErrorKind::InvalidData),
    };
    let whole = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };
    let ranges = unknown.within(whole);
    assert!(ranges.is_sorted_by(|a, b| a.end() < b.block), "in order and apart");
    assert_eq!(unknown.count(), ranges.iter().map(|range| range.count).sum::<u64>());
    assert!(unknown.count() <= VOLUME_BLOCKS_MAX);
    let readable: u64 = unknown.readable(whole).iter().map(|range| range.count).sum();
    assert_eq!(readable + unknown.count(), VOLUME_BLOCKS_MAX);
    let _ = unknown.first_byte();
    // Whatever it made of the file, it goes on from there.
    let more = BlockRange { block: 7, count: 2 };
    unknown.add(more);
    unknown.settle().expect("memory does not fail");
    let again = Unknown::open(files, dir).expect("just written");
    assert_eq!(again.within(whole), unknown.within(whole));
    assert_eq!(again.within(more), [more]);
    taken();
}

pub(super) fn unknown_samples() -> Vec<Vec<u8>> {
    let dir = Path::new("volume");
    let files = Arc::new(MemoryFiles::default());
    let unknown = Unknown::open(Arc::<MemoryFiles>::clone(&files), dir).expect("a new file");
    for (block, count) in [(300, 2), (1700, 1)] {
        unknown.add(BlockRange { block, count });
    }
    unknown.settle().expect("memory does not fail");
    vec![files.bytes(&dir.join(UNKNOWN_FILE)).expect("it was made")]
}

// What an agent remembers of a volume, in JSON.

/// What the bytes say of the state, with the checksum it should have.
fn with_right_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let state: State = serde_json::from_slice(bytes).ok()?;
    let crc = crc32c::crc32c(&serde_json::to_vec(&state).ok()?);
    let mut kept = serde_json::to_value(state).ok()?;
    kept.as_object_mut()?.insert("crc32c".to_owned(), crc.into());
    serde_json::to_vec(&kept).ok()
}

pub(super) fn state(bytes: &[u8]) {
    open_state(bytes);
    if let Some(right) = with_right_checksum(bytes) {
        assert!(open_state(&right), "a checksum that is right");
        taken();
    }
}

fn open_state(bytes: &[u8]) -> bool {
    let path = PathBuf::from("volume/state.json");
    let files = MemoryFiles::with(&path, bytes);
    let shared: Arc<dyn Files> = Arc::<MemoryFiles>::clone(&files);
    match StateFile::open(Arc::clone(&shared), &path) {
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            false
        }
        Ok(file) => {
            let known = file.get();
            file.update(|state| state.copy.generation = 77).expect("memory does not fail");
            file.update(|state| state.clone_from(&known)).expect("memory does not fail");
            let again = StateFile::open(shared, &path).expect("just written");
            assert_eq!(again.get(), known);
            true
        }
    }
}

pub(super) fn state_samples() -> Vec<Vec<u8>> {
    let path = PathBuf::from("volume/state.json");
    let files = Arc::new(MemoryFiles::default());
    let file = StateFile::open(Arc::<MemoryFiles>::clone(&files), &path).expect("a new state");
    file.update(|state| {
        state.size_bytes = 64 << 20;
        state.copy.end_seq = Some(99);
        state.copy.done_bytes = 64 << 20;
        state.floor = Some(41);
        state.stopped_ns = Some(-5);
    })
    .expect("memory does not fail");
    vec![files.bytes(&path).expect("it was made")]
}

// The one file of an hrl log, opened as after a crash.

const LOG_BYTES_MAX: u64 = 64 << 20;

fn open_log(files: &Arc<MemoryFiles>) -> (Log, Recovered) {
    let shared: Arc<dyn Files> = Arc::<MemoryFiles>::clone(files);
    let home = Home {
        files: shared,
        time: Arc::new(Clock::start()),
        dir: PathBuf::from("hrl"),
        limit_bytes: LOG_BYTES_MAX,
    };
    Log::open_in(home, VOLUME, Seq(0), &mut |_| Ok(())).expect("memory does not fail")
}

fn log_path(first: u64) -> PathBuf {
    PathBuf::from(format!("hrl/{first:020}.hrl"))
}

pub(super) fn log(bytes: &[u8]) {
    checksum::both(bytes, HRL_HEADER_BYTES, |bytes| {
        let path = log_path(1);
        let files = MemoryFiles::with(&path, bytes);
        let (log, recovered) = open_log(&files);
        let kept = files.bytes(&path).unwrap_or_default();
        let whole = recovered.last.0 >= recovered.first.0;
        if whole {
            assert!(bytes.starts_with(&kept), "what is kept is what was there");
        }
        let mut rest = kept.get(HRL_HEADER_BYTES..).unwrap_or_default();
        let mut seq = recovered.first.0;
        while let Ok((header, body)) = frame_at(rest) {
            assert_eq!(header.seq.0, seq, "frames follow each other");
            rest = &rest[FRAME_HEADER_BYTES + body.len()..];
            seq += 1;
        }
        assert!(
            rest.is_empty() && seq == recovered.last.0 + 1,
            "nothing is left behind the last frame"
        );
        read_back(&log, &recovered);
        if whole {
            taken();
        }
        // Opened again there is nothing more to say, and it takes what comes next.
        drop(log);
        let (log, again) = open_log(&files);
        assert_eq!((again.first, again.last), (recovered.first, recovered.last));
        assert_eq!((again.torn_bytes, again.damage), (0, None));
        let zero = Entry::Zero { range: BlockRange { block: 0, count: 1 }, is_copy: false };
        assert_eq!(log.append(&[zero]).ok(), Some(recovered.last.next()));
    });
}

/// Reads every frame that was recovered, as a session does.
fn read_back(log: &Log, recovered: &Recovered) {
    let mut cursor = Cursor::at(recovered.first);
    let mut buffer = Vec::new();
    while cursor.next() <= recovered.last {
        let run = log.read_run(&mut cursor, 1 << 20, &mut buffer).expect("it was recovered");
        assert_eq!(run.last.next(), cursor.next());
    }
}

pub(super) fn log_samples() -> Vec<Vec<u8>> {
    let files = Arc::new(MemoryFiles::default());
    let (log, _) = open_log(&files);
    let mark = Mark {
        point: PointId([4; 16]),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: true,
        time_unix_ms: 9,
        group: MarkGroup::ALONE,
    };
    log.append(&[
        Entry::Write { block: 5, data: &[0x5a; BLOCK_BYTES], is_copy: false },
        Entry::Zero { range: BlockRange { block: 8, count: 1024 }, is_copy: true },
        Entry::Mark { mark },
    ])
    .expect("there is room");
    let whole = files.bytes(&log_path(1)).expect("it was made");
    // A small one of zeros and marks, in which more of the changes hit something.
    let files = Arc::new(MemoryFiles::default());
    let (log, _) = open_log(&files);
    let zero = |block| Entry::Zero { range: BlockRange { block, count: 1 }, is_copy: false };
    log.append(&[zero(1), Entry::Mark { mark }, zero(2), zero(3)]).expect("there is room");
    let small = files.bytes(&log_path(1)).expect("it was made");
    vec![whole, small]
}
