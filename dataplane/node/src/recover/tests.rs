use super::*;
use crate::dedup::Dedup;
use crate::learning::{Learnt, learn};
use crate::state::State;
use bytes::Bytes;
use farshore_codec::journal::JournalSealer;
use farshore_codec::{Built, SegmentBuilder, WrappingKey};
use farshore_ingest::index::Index;
use farshore_proto::epoch::EpochBody;
use farshore_proto::frame::FrameHeader;
use farshore_proto::journal::{GroupSize, put_entry};
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BLOCKS_MIN, JOURNAL_GROUP_HEADER_BYTES};
use farshore_proto::segment::SlotWriter;
use farshore_proto::{ChunkId, Epoch, LogId, Seq, Slot, Target, VolumeId};
use farshore_vault::epoch::claim;
use farshore_vault::log::{PutOutcome, put_segment};
use farshore_vault::register::{Reader, newest};
use farshore_vault::{Access, Location, Store, runs};

const THEIRS: LogId = LogId([1; 16]);
const OURS: LogId = LogId([2; 16]);

async fn vault(dir: &Path) -> Vault {
    let store = Store::open(dir.join("vault").to_str().unwrap(), Access::Make).unwrap();
    Vault::init(&store, &WrappingKey::draw(WrapperKind::Recovery).unwrap()).await.unwrap()
}

fn dedup(dir: &Path, vault: &Vault) -> Dedup {
    let index = Index::open(&dir.join("index"), vault.id()).unwrap();
    assert!(index.is_empty());
    let dedup = Dedup::new(vault.vault_keys(), index, 1).unwrap();
    dedup.condemns_nothing();
    dedup
}

/// A committed segment of some chunks.
async fn commit(vault: &Vault, log: LogId, first: u8) -> (Built, Vec<ChunkId>) {
    commit_at(vault, (log, Slot(0)), first).await
}

async fn commit_at(vault: &Vault, (log, slot): (LogId, Slot), first: u8) -> (Built, Vec<ChunkId>) {
    let keys = vault.seal_keys();
    let writer = SlotWriter::of_run(1);
    let mut builder = SegmentBuilder::new(vault.id(), log, slot, writer, keys, 1).unwrap();
    let chunk = |byte: u8| {
        let bytes = vec![byte; CHUNK_BLOCKS_MIN * BLOCK_BYTES];
        let id = vault.hasher().id(&bytes);
        builder.push_chunk(id, &bytes);
        id
    };
    let ids = (first..first + 10).map(chunk).collect();
    let built = builder.finish().unwrap();
    let put = put_segment(vault, log, slot, Bytes::from(built.bytes())).await.unwrap();
    assert_eq!(put, PutOutcome::Committed);
    (built, ids)
}

/// A start of the one shard whose directory is `dir`.
async fn recovered(vault: &Vault, dir: &Path, incarnation: u64, dedup: &Dedup) -> Recovery {
    let state = State { vault: vault.id().into(), incarnation, logs: vec![OURS.into()] };
    let logs = Logs::new(state, dir);
    let threads = tokio::runtime::Handle::current();
    let register = &Register::new(vault.clone(), threads, dedup.clone(), Ok(Reader::default()));
    let place = Place { vault, logs: &logs, register, shard: 0, journal: &dir.join("journal") };
    recover(&place, incarnation).await.unwrap()
}

fn is_in(log: LogId, found: &[Option<Location>]) -> bool {
    found
        .iter()
        .all(|found| found.is_some_and(|at| (at.target.log, at.target.slot) == (log, Slot(0))))
}

#[tokio::test]
async fn an_emptied_index_finds_duplicates_of_all_nodes_through_runs() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    // Another node commits and leaves a run.
    let first = dedup(&dir.path().join("a"), &vault);
    let (built, theirs) = commit(&vault, THEIRS, 1).await;
    let attempt = built.header.attempt();
    first.built(Target { log: THEIRS, slot: Slot(0), attempt }, &built.table);
    assert!(first.take_fresh().await.chunks.is_empty(), "not committed yet");
    first.committed(THEIRS, Slot(0));
    first.wait_fresh(10).await;
    assert_eq!(runs::write(&vault, 1, &first.take_fresh().await).await.unwrap(), 1);
    // This one begins with an empty index, and its own log beside.
    let (_, ours) = commit(&vault, OURS, 100).await;
    let second = dedup(&dir.path().join("b"), &vault);
    learn(&vault, &second, &mut Learnt::open(&dir.path().join("b/index"), 0)).await;
    assert!(second.take_fresh().await.chunks.is_empty(), "what is in a run needs no other");
    let journal = dir.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let recovery = recovered(&vault, dir.path(), 1, &second).await;
    assert_eq!(recovery.opening.next_slot, Slot(5), "behind what an earlier run may still put");
    assert_eq!(second.lookup(OURS, theirs.clone()).await, vec![None; 10], "nobody has seen it");
    second.look_at_all(&vault).await;
    assert!(is_in(THEIRS, &second.lookup(OURS, theirs.clone()).await));
    assert!(is_in(OURS, &second.lookup(OURS, ours.clone()).await));
    assert_eq!(second.len().await, 20);
    assert_eq!(second.take_fresh().await.chunks.len(), 10, "its own chunks were in no run");
}

/// S25: the store lost the end of a log, or was set back; the log went on with other segments.
#[tokio::test]
async fn what_the_store_lost_is_not_referred_to_though_the_index_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let first = dedup(&dir.path().join("a"), &vault);
    for log in [OURS, THEIRS] {
        let (built, _) = commit(&vault, log, if log == OURS { 1 } else { 101 }).await;
        let attempt = built.header.attempt();
        first.built(Target { log, slot: Slot(0), attempt }, &built.table);
        first.committed(log, Slot(0));
    }
    let known = first.take_fresh().await;
    let ids: Vec<ChunkId> = known.chunks.iter().map(|(id, _)| *id).collect();
    assert!(first.lookup(OURS, ids.clone()).await.iter().all(Option::is_some));
    let file = |log: LogId| {
        let name = farshore_vault::layout::ObjectName::slot(log, Slot(0));
        dir.path().join("vault").join(name.to_string())
    };
    for log in [OURS, THEIRS] {
        std::fs::remove_file(file(log)).unwrap();
    }
    // One of the logs has something else in that slot, the other nothing.
    commit(&vault, THEIRS, 201).await;
    let second = dedup(&dir.path().join("b"), &vault);
    assert!(second.learn_run(known.applied.number, known.chunks).await.is_some());
    second.look_at_all(&vault).await;
    assert_eq!(second.lookup(OURS, ids.clone()).await, vec![None; 20]);
}

#[tokio::test]
async fn a_damaged_run_costs_duplicates_only() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let first = dedup(&dir.path().join("a"), &vault);
    let (built, theirs) = commit(&vault, THEIRS, 1).await;
    let attempt = built.header.attempt();
    first.built(Target { log: THEIRS, slot: Slot(0), attempt }, &built.table);
    first.committed(THEIRS, Slot(0));
    runs::write(&vault, 1, &first.take_fresh().await).await.unwrap();
    let folder = dir.path().join("vault/index");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[150] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let second = dedup(&dir.path().join("b"), &vault);
    learn(&vault, &second, &mut Learnt::open(&dir.path().join("b/index"), 0)).await;
    assert_eq!(second.lookup(OURS, theirs.clone()).await, vec![None; 10]);
}

/// What is wrong with the register holds up no backup: a log that was written is gone on with, and nothing is looked up.
#[tokio::test]
async fn a_log_is_gone_on_with_though_the_register_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let journal = dir.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let state =
        |incarnation| State { vault: vault.id().into(), incarnation, logs: vec![OURS.into()] };
    let index = |name: &str| {
        let index = Index::open(&dir.path().join(name), vault.id()).unwrap();
        Dedup::new(vault.vault_keys(), index, 1).unwrap()
    };
    let start = async |incarnation, dedup: &Dedup| {
        let logs = Logs::new(state(incarnation), dir.path());
        let threads = tokio::runtime::Handle::current();
        let register = &Register::new(vault.clone(), threads, dedup.clone(), Ok(Reader::default()));
        let place = Place { vault: &vault, logs: &logs, register, shard: 0, journal: &journal };
        let recovery = recover(&place, incarnation).await?;
        register.begin([recovery.opening.ledger.register()]).await?;
        anyhow::Ok(recovery)
    };
    let first = dir.path().join("vault/gc/0000000001");
    // A log of which there is nothing yet is begun, and refers to nothing.
    std::fs::create_dir(dir.path().join("vault/gc")).unwrap();
    std::fs::write(&first, "no entry").unwrap();
    let (_, theirs) = commit(&vault, THEIRS, 51).await;
    let begun = index("a");
    let recovery = start(1, &begun).await.unwrap();
    assert_eq!(recovery.opening.next_slot, Slot(4));
    begun.look_at_all(&vault).await;
    assert_eq!(begun.lookup(OURS, theirs).await, vec![None; 10]);
    // The next start has it born.
    std::fs::remove_file(&first).unwrap();
    let at = Slot(4);
    let (_, ids) = commit_at(&vault, (OURS, at), 1).await;
    let whole = index("b");
    start(2, &whole).await.unwrap();
    assert!(newest(&vault, 0).await.unwrap().state.logs.contains_key(&OURS));
    assert!(whole.lookup(OURS, ids.clone()).await.iter().all(Option::is_some));
    std::fs::write(&first, "damaged").unwrap();
    let damaged = index("c");
    let recovery = start(3, &damaged).await.unwrap();
    assert!(recovery.opening.next_slot > Slot(4));
    assert_eq!(damaged.lookup(OURS, ids).await, vec![None; 10]);
}

/// P2: what was journaled is replayed, also of a volume whose first segment was never put.
#[tokio::test]
async fn a_journal_is_replayed_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path()).await;
    let volume = VolumeId([3; 16]);
    let body = EpochBody {
        epoch: Epoch(1),
        log: OURS,
        first_slot: Slot(0),
        first_seq: Seq(1),
        size_bytes: 1 << 20,
        stamp: farshore_proto::Stamp::default(),
        label: String::new(),
        ended: None,
        base: None,
    };
    claim(&vault, volume, &body).await.unwrap();
    let journal = dir.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let (number, key) = vault.newest_key();
    for file in [9_u64, 10] {
        let mut sealer = JournalSealer::create(vault.id(), OURS, file, key, number).unwrap();
        let bytes = vec![7; BLOCK_BYTES];
        let header = FrameHeader::write(Seq(file - 8), 0, &bytes).encode();
        let mut plain = Vec::new();
        put_entry(&mut plain, volume, Epoch(1), &header, &bytes);
        let mut group = vec![0; JournalSealer::disk_bytes(plain.len())];
        group[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(&plain);
        sealer.seal_group(GroupSize { entries: 1, bytes: plain.len() }, &mut group).unwrap();
        let content = [sealer.header().encode(), group].concat();
        std::fs::write(journal.join(format!("{file:020}.journal")), content).unwrap();
    }
    std::fs::write(journal.join("notes.txt"), "not ours").unwrap();
    let dedup = dedup(dir.path(), &vault);
    let recovery = recovered(&vault, dir.path(), 2, &dedup).await;
    let seqs: Vec<(u64, u64)> =
        recovery.replayed.iter().map(|frame| (frame.file, frame.seq.0)).collect();
    assert_eq!(seqs, [(9, 1), (10, 2)]);
    assert_eq!(recovery.opening.first_file, 11);
    assert_eq!(
        recovery.opening.next_slot,
        Slot(4),
        "behind what a put of the run before may reach"
    );
}
