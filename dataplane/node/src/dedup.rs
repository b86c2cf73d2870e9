//! Which chunks the vault holds already, as far as this node knows.
//!
//! A hint: missing a duplicate costs space. What it says must be right, though: a chunk is found
//! only where a committed segment, or an earlier slot of the asking shard's own log, holds it.

use farshore_codec::{ChunkHasher, Chunker, VaultKeys};
use farshore_proto::limits::INDEX_RUN_CHUNKS_MAX;
use farshore_proto::segment::{ChunkPlace, Table};
use farshore_proto::{ChunkId, LogId, Slot};
use farshore_vault::index::{Index, Location};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Chunks that wait for an index run; more are left out of the runs, not of the index.
const FRESH_MAX: usize = INDEX_RUN_CHUNKS_MAX;

/// A chunk that need not be stored again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) blocks: u32,
    pub(crate) place: ChunkPlace,
}

/// The chunks of a segment that is on its way to the vault.
type Pending = BTreeMap<Slot, Vec<(ChunkId, Location)>>;

#[derive(Debug)]
struct Known {
    index: Index,
    /// Per log: what its own later slots may refer to before it is committed.
    pending: HashMap<LogId, (Pending, HashMap<ChunkId, Location>)>,
    /// Committed chunks that are in no index run yet.
    fresh: Vec<(ChunkId, Location)>,
}

/// Shared by the shards; one lock for a group of chunks, none per frame.
#[derive(Debug, Clone)]
pub(crate) struct Dedup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chunker: Chunker,
    hasher: ChunkHasher,
    level: i32,
    known: Mutex<Known>,
    fresh_moved: Notify,
}

impl Dedup {
    /// With the vault's keys, the chunks known so far, and the zstd level for new ones.
    pub(crate) fn new(keys: &VaultKeys, index: Index, level: i32) -> Self {
        Self(Arc::new(Shared {
            chunker: Chunker::new(&keys.chunk_key),
            hasher: ChunkHasher::new(keys.id_key.clone()),
            level,
            known: Mutex::new(Known { index, pending: HashMap::new(), fresh: Vec::new() }),
            fresh_moved: Notify::new(),
        }))
    }

    pub(crate) fn chunker(&self) -> &Chunker {
        &self.0.chunker
    }

    pub(crate) fn hasher(&self) -> &ChunkHasher {
        &self.0.hasher
    }

    pub(crate) fn level(&self) -> i32 {
        self.0.level
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // The index checks every hit against its entry, whatever state a panic left it in.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks chunks up for a segment of `log`.
    pub(crate) fn lookup(&self, log: LogId, ids: &[ChunkId]) -> Vec<Option<Found>> {
        let mut known = self.known();
        let mut found: Vec<Option<Location>> = match known.pending.get(&log) {
            Some((_, recent)) => ids.iter().map(|id| recent.get(id).copied()).collect(),
            None => vec![None; ids.len()],
        };
        for (slot, location) in found.iter_mut().zip(known.index.lookup(ids)) {
            *slot = slot.or(location);
        }
        found
            .into_iter()
            .map(|location| {
                location.map(|Location { log, slot, chunk, blocks }| Found {
                    blocks,
                    place: ChunkPlace::There { log, slot, chunk },
                })
            })
            .collect()
    }

    /// A segment was built; its log's later slots may refer to its chunks.
    pub(crate) fn built(&self, log: LogId, slot: Slot, table: &Table) {
        let chunks: Vec<(ChunkId, Location)> = held_chunks(log, slot, table).collect();
        let mut known = self.known();
        let (pending, recent) = known.pending.entry(log).or_default();
        recent.extend(chunks.iter().copied());
        pending.insert(slot, chunks);
    }

    /// A segment is committed; everybody may refer to its chunks.
    pub(crate) fn committed(&self, log: LogId, slot: Slot) {
        let mut known = self.known();
        let Some((pending, recent)) = known.pending.get_mut(&log) else { return };
        let Some(chunks) = pending.remove(&slot) else { return };
        for (id, _) in &chunks {
            if recent.get(id).is_some_and(|location| location.slot == slot) {
                recent.remove(id);
            }
        }
        known.insert(&chunks);
        self.add_fresh(known, &chunks);
    }

    /// Chunks of a committed segment found at the start; those known already are left as they are.
    pub(crate) fn learn(&self, log: LogId, slot: Slot, table: &Table) {
        let chunks: Vec<(ChunkId, Location)> = held_chunks(log, slot, table).collect();
        let mut known = self.known();
        let missing = known.learn(&chunks);
        self.add_fresh(known, &missing);
    }

    /// Chunks of an index run; those known already are left as they are.
    pub(crate) fn learn_run(&self, chunks: &[(ChunkId, Location)]) {
        self.known().learn(chunks);
    }

    fn add_fresh(&self, mut known: MutexGuard<'_, Known>, chunks: &[(ChunkId, Location)]) {
        let room = FRESH_MAX - known.fresh.len();
        known.fresh.extend(chunks.iter().take(room));
        drop(known);
        self.0.fresh_moved.notify_one();
    }

    /// Waits until at least `count` committed chunks are in no index run.
    pub(crate) async fn wait_fresh(&self, count: usize) {
        while self.known().fresh.len() < count {
            self.0.fresh_moved.notified().await;
        }
    }

    /// The committed chunks that are in no index run; the caller writes one.
    pub(crate) fn take_fresh(&self) -> Vec<(ChunkId, Location)> {
        std::mem::take(&mut self.known().fresh)
    }

    /// How many chunks are known.
    pub(crate) fn len(&self) -> u64 {
        self.known().index.len() as u64
    }
}

impl Known {
    /// Inserts what is not known yet and returns it.
    fn learn(&mut self, chunks: &[(ChunkId, Location)]) -> Vec<(ChunkId, Location)> {
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let found = self.index.lookup(&ids);
        let missing = chunks.iter().zip(found).filter(|(_, found)| found.is_none());
        let missing: Vec<(ChunkId, Location)> = missing.map(|(chunk, _)| *chunk).collect();
        self.insert(&missing);
        missing
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) {
        if let Err(error) = self.index.insert(chunks) {
            // Space, not safety: these chunks will be stored again.
            tracing::warn!(%error, "cannot add chunks to the index");
        }
    }
}

fn held_chunks(
    log: LogId,
    slot: Slot,
    table: &Table,
) -> impl Iterator<Item = (ChunkId, Location)> + '_ {
    table.chunks.iter().enumerate().filter_map(move |(number, chunk)| match chunk.place {
        ChunkPlace::Here { .. } => {
            let chunk_number = u32::try_from(number).expect("a table has a limit");
            Some((chunk.id, Location { log, slot, chunk: chunk_number, blocks: chunk.blocks }))
        }
        ChunkPlace::There { .. } => None,
    })
}
