use super::*;
use crate::learning::{Learnt, learn};
use bytes::Bytes;
use farshore_codec::{SegmentBuilder, WrappingKey};
use farshore_ingest::index::Index;
use farshore_proto::epoch::EpochBody;
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BLOCKS_MIN};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::segment::{
    ChunkPlace, Extent, ExtentSource, SegmentChunk, SlotWriter, Span, Table,
};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, Epoch, LogId, MarkKind, PointId, Seq, Slot, Target,
};
use farshore_vault::epoch::claim;
use farshore_vault::log::put_segment;
use farshore_vault::{Access, Location, Store};
use std::path::Path;
use std::time::Instant;

const VOLUME: VolumeId = VolumeId([1; 16]);

const LOG: LogId = LogId([7; 16]);

async fn vault(dir: &Path) -> Vault {
    let store = Store::open(dir.join("vault").to_str().unwrap(), Access::Make).unwrap();
    Vault::init(&store, &WrappingKey::draw(WrapperKind::Recovery).unwrap()).await.unwrap()
}

/// Waits until a folder of the vault holds an object, however deep.
async fn wait_for(dir: &Path, folder: &str) {
    // The store writes beside the object's name first, with a `#` in it: that is no object yet.
    fn holds(at: &Path) -> bool {
        let Ok(entries) = std::fs::read_dir(at) else { return false };
        entries.map(|entry| entry.unwrap().path()).any(|path| {
            let is_staged = path.to_string_lossy().contains('#');
            holds(&path) || (path.is_file() && !is_staged)
        })
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds(&dir.join("vault").join(folder)) {
        assert!(Instant::now() < deadline, "nothing was written to {folder}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A segment with so many new chunks of one block, the first made of `first`; it is put.
async fn commit_chunks(vault: &Vault, slot: Slot, first: u64, count: u64) -> (Target, Table) {
    let keys = vault.seal_keys();
    let writer = SlotWriter::of_run(1);
    let mut builder = SegmentBuilder::new(vault.id(), LOG, slot, writer, keys, 1).unwrap();
    for chunk in first..first + count {
        let bytes = chunk.to_le_bytes().repeat(BLOCK_BYTES / 8);
        builder.push_chunk(vault.hasher().id(&bytes), &bytes);
    }
    let built = builder.finish().unwrap();
    put_segment(vault, LOG, slot, Bytes::from(built.bytes())).await.unwrap();
    (Target { log: LOG, slot, attempt: built.header.attempt() }, built.table)
}

/// A volume with one point, in one segment.
async fn commit_volume(vault: &Vault) {
    let body = EpochBody {
        epoch: Epoch(1),
        log: LOG,
        first_slot: Slot(0),
        first_seq: Seq(1),
        size_bytes: 1 << 20,
        stamp: farshore_proto::Stamp::default(),
        label: String::new(),
        ended: None,
        base: None,
    };
    claim(vault, VOLUME, &body).await.unwrap();
    let keys = vault.seal_keys();
    let writer = SlotWriter::of_run(1);
    let mut builder = SegmentBuilder::new(vault.id(), LOG, Slot(0), writer, keys, 1).unwrap();
    let bytes = vec![5; CHUNK_BLOCKS_MIN * BLOCK_BYTES];
    let chunk = builder.push_chunk(vault.hasher().id(&bytes), &bytes);
    let point = PointId([3; 16]);
    let mark = Mark {
        point,
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 1,
        group: MarkGroup::ALONE,
    };
    let range = BlockRange { block: 0, count: CHUNK_BLOCKS_MIN as u64 };
    builder.push_span(Span {
        volume: VOLUME,
        epoch: Epoch(1),
        first_seq: Seq(1),
        last_seq: Seq(2),
        previous: None,
        mark: Some(mark),
        stamp: farshore_proto::Stamp::default(),
        imprint: farshore_proto::Imprint::default(),
        extents: vec![Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } }],
    });
    let built = builder.finish().unwrap();
    put_segment(vault, LOG, Slot(0), Bytes::from(built.bytes())).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_due_is_mapped_and_one_that_cannot_be_is_only_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    commit_volume(&vault).await;
    let metrics = Arc::new(Metrics::default());
    let maps = Maps::new(vault.clone(), Arc::clone(&metrics), Handle::current());
    maps.committed(LOG, Slot(0), &[(VolumeId([0; 16]), 20_000)]);
    maps.committed(LOG, Slot(0), &[(VOLUME, 20_000)]);
    wait_for(dir.path(), "maps").await;
    assert!(map::write(&vault, VOLUME).await.unwrap().is_none(), "the newest point has its map");
    assert_eq!(metrics.troubles().told(), None);
}

/// P36: what comes near to what can be restored is told.
#[test]
fn a_volume_that_is_not_mapped_for_long_is_told_until_it_is() {
    let troubles = Troubles::default();
    let url = "file:///v".to_owned();
    let limit = || VaultError::Limit { url: url.clone(), what: "parts of a map", max: 65_536 };
    let other = || VaultError::NoVolume { url: url.clone(), volume: VOLUME };
    tell(&troubles, VOLUME, UNMAPPED_TOLD - 1, &Err(other()));
    assert_eq!(troubles.told(), None, "it may well be mapped soon");
    for (unmapped, error) in [(1, limit()), (UNMAPPED_TOLD, other())] {
        tell(&troubles, VOLUME, unmapped, &Err(error));
        let told = troubles.told().unwrap();
        assert!(told.contains(&format!("volume {VOLUME} has not been mapped")), "{told}");
        tell(&troubles, VOLUME, 1, &Err(other()));
        assert_eq!(troubles.told(), Some(told), "another failure is no better word");
        tell(&troubles, VOLUME, 0, &Ok(None));
        assert_eq!(troubles.told(), None);
    }
}

/// S26: what cannot be read to be mapped cannot be restored either: that is no matter of time.
#[test]
fn a_volume_whose_stream_is_damaged_is_told_at_once() {
    let troubles = Troubles::default();
    let url = "file:///v".to_owned();
    let lost = VaultError::LostSlot { url, log: LOG, slot: Slot(3), later: Slot(9) };
    tell(&troubles, VOLUME, 1, &Err(lost));
    let told = troubles.told().unwrap();
    assert!(told.contains(&format!("volume {VOLUME} cannot be mapped")), "{told}");
    assert!(told.contains("is damaged") && told.contains("vault verify"), "{told}");
    tell(&troubles, VOLUME, 0, &Ok(None));
    assert_eq!(troubles.told(), None);
}

fn dedup(dir: &Path, vault: &Vault) -> Dedup {
    let index = Index::open(&dir.join("index"), vault.id()).unwrap();
    let dedup = Dedup::new(vault.vault_keys(), index, 1).unwrap();
    dedup.condemns_nothing();
    dedup
}

/// Waits until the thread has done what it was told, and told others of it: the clock of these tests goes on as soon as all tasks wait, whatever
/// a thread does.
async fn told(known: &Dedup) {
    known.fresh().await;
    known.fresh().await;
}

fn at(slot: Slot) -> Target {
    Target { log: LOG, slot, attempt: Attempt([1; 8]) }
}

/// A table that says it holds chunks numbered from `first` on.
fn table(first: u32, count: u32) -> Table {
    let chunk = |n: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes());
        SegmentChunk { id: ChunkId(id), blocks: 4, place: ChunkPlace::Here { frame: 0, offset: 0 } }
    };
    Table { chunks: (first..first + count).map(chunk).collect(), ..Table::default() }
}

#[tokio::test]
async fn new_chunks_become_runs_when_there_are_enough_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let known = dedup(&dir.path().join("a"), &vault);
    let task = tokio::spawn(write_runs(vault.clone(), known.clone()));
    for (slot, count) in [(Slot(0), 65_000_u32), (Slot(1), 1000)] {
        known.built(at(slot), &table(u32::try_from(slot.0).unwrap() * 65_000, count));
        known.committed(LOG, slot);
    }
    wait_for(dir.path(), "index").await;
    task.abort();
    let fresh = || async {
        let dir = dir.path().join(uuid::Uuid::new_v4().to_string());
        let fresh = dedup(&dir, &vault);
        learn(&vault, &fresh, &mut Learnt::open(&dir.join("index"), 0)).await;
        fresh.len().await
    };
    assert_eq!(fresh().await, 66_000);
    for (slot, count, expected) in [(Slot(2), 1023, 66_000), (Slot(3), 1024, 67_024)] {
        known.built(at(slot), &table(100_000 * u32::try_from(slot.0).unwrap(), count));
        known.committed(LOG, slot);
        write_last_run(&vault, &known).await;
        assert_eq!(fresh().await, expected, "after {count} more");
    }
}

/// Two nodes find each other's chunks while both run, however few there are.
#[tokio::test(start_paused = true)]
async fn some_new_chunks_become_a_run_after_a_while_and_are_learnt_once() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let known = dedup(&dir.path().join("a"), &vault);
    known.loaded().await;
    let task = tokio::spawn(write_runs(vault.clone(), known.clone()));
    known.built(at(Slot(0)), &table(0, 1024));
    known.committed(LOG, Slot(0));
    told(&known).await;
    let other_dir = dir.path().join("b");
    let other = dedup(&other_dir, &vault);
    other.loaded().await;
    let begun = tokio::time::Instant::now();
    let learning =
        tokio::spawn(crate::learning::run(vault.clone(), other.clone(), other_dir.join("index")));
    while other.len().await < 1024 {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // It looks twice more.
    tokio::time::sleep(Duration::from_secs(40)).await;
    learning.abort();
    task.abort();
    assert_eq!(known.fresh().await, 0);
    let noted = std::fs::read_to_string(other_dir.join("index/learnt-runs")).unwrap();
    assert_eq!(noted.lines().count(), 1, "{noted}");
}

/// Whoever may create objects can give one any name: that must not be what all later runs are numbered by.
#[tokio::test]
async fn a_name_that_is_no_run_takes_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let folder = dir.path().join("a");
    let known = dedup(&folder, &vault);
    let mut learnt = Learnt::open(&folder.join("index"), 0);
    let chunk = (ChunkId([7; 32]), Location { target: at(Slot(0)), chunk: 0, blocks: 4 });
    runs::write(&vault, 41, &runs::Run { chunks: vec![chunk], ..runs::Run::default() })
        .await
        .unwrap();
    let made_up = dir.path().join("vault/index/ffffffff-ffff-8fff-8fff-ffffffffffff");
    std::fs::write(made_up, "no run").unwrap();
    for _ in 0..3 {
        learn(&vault, &known, &mut learnt).await;
        assert_eq!(known.next_run(), 42);
    }
    assert_eq!(known.len().await, 1);
    // Nor after a start, which knows it.
    drop(known);
    let again = dedup(&dir.path().join("b"), &vault);
    learn(&vault, &again, &mut learnt).await;
    assert_eq!(again.next_run(), 42);
}

/// Two nodes take the same image at the same pace, the second a minute behind the first: nearly all of it is there already.
#[tokio::test(start_paused = true)]
async fn a_second_node_that_begins_a_minute_later_adds_little() {
    const SLOTS: u64 = 40;
    const EVERY: Duration = Duration::from_secs(5);
    const BEHIND: u64 = 12;
    const CHUNKS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let first = dedup(&dir.path().join("a"), &vault);
    let other_dir = dir.path().join("b");
    let second = dedup(&other_dir, &vault);
    first.loaded().await;
    second.loaded().await;
    let tasks = [
        tokio::spawn(write_runs(vault.clone(), first.clone())),
        tokio::spawn(crate::learning::run(vault.clone(), second.clone(), other_dir.join("index"))),
        tokio::spawn(second.clone().look_at_segments(vault.clone())),
    ];
    let mut image: Vec<Vec<ChunkId>> = Vec::new();
    let mut added = 0;
    for turn in 0..SLOTS + BEHIND {
        if turn < SLOTS {
            let (target, table) = commit_chunks(&vault, Slot(turn), turn * CHUNKS, CHUNKS).await;
            first.built(target, &table);
            first.committed(LOG, Slot(turn));
            told(&first).await;
            image.push(table.chunks.iter().map(|chunk| chunk.id).collect());
        }
        if let Some(behind) = turn.checked_sub(BEHIND) {
            let ids = image[usize::try_from(behind).unwrap()].clone();
            let found = second.lookup(LogId([9; 16]), ids).await;
            told(&second).await;
            added += found.iter().filter(|found| found.is_none()).count() as u64;
        }
        tokio::time::sleep(EVERY).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let percent = 100.0 * added as f64 / (SLOTS * CHUNKS) as f64;
    assert!(percent <= 10.0, "the second node adds {percent} % of the image");
    println!("the second node adds {percent:.1} % of the image");
}
