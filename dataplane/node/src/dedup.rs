//! What the shards know of the vault's chunks, together: one lock for a group of chunks, none per
//! frame. The rule is [`farshore_ingest::dedup`]'s.

use farshore_codec::{ChunkHasher, Chunker, VaultKeys};
use farshore_ingest::dedup::Known;
use farshore_ingest::index::Index;
use farshore_ingest::sight::look;
use farshore_proto::segment::Table;
use farshore_proto::{ChunkId, LogId, Slot, Target};
use farshore_vault::{Location, Vault};
use futures::StreamExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Segments that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// Shared by the shards.
#[derive(Debug, Clone)]
pub(crate) struct Dedup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chunker: Chunker,
    hasher: ChunkHasher,
    level: i32,
    known: Mutex<Known<Index>>,
    fresh_moved: Notify,
    unseen_moved: Notify,
}

impl Dedup {
    /// With the vault's keys, the chunks known so far, and the zstd level for new ones.
    pub(crate) fn new(keys: &VaultKeys, index: Index, level: i32) -> Self {
        Self(Arc::new(Shared {
            chunker: Chunker::new(&keys.chunk_key),
            hasher: ChunkHasher::new(keys.id_key.clone()),
            level,
            known: Mutex::new(Known::new(index)),
            fresh_moved: Notify::new(),
            unseen_moved: Notify::new(),
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

    fn known(&self) -> MutexGuard<'_, Known<Index>> {
        // The index checks every hit against its entry, whatever state a panic left it in.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks chunks up for a segment of `log`.
    pub(crate) fn lookup(&self, log: LogId, ids: &[ChunkId]) -> Vec<Option<Location>> {
        let mut known = self.known();
        let found = known.lookup(log, ids);
        self.tell_unseen(&known);
        found
    }

    /// A segment was built; its log's later slots may refer to its chunks.
    pub(crate) fn built(&self, target: Target, table: &Table) {
        self.known().built(target, table);
    }

    /// A log was sealed: what of it was not committed is nowhere.
    pub(crate) fn forget(&self, log: LogId) {
        self.known().forget(log);
    }

    /// A segment is committed; everybody may refer to its chunks.
    pub(crate) fn committed(&self, log: LogId, slot: Slot) {
        self.known().committed(log, slot);
        self.0.fresh_moved.notify_one();
    }

    /// Chunks of a committed segment found at the start; those known already are left as they are.
    pub(crate) fn learn(&self, target: Target, table: &Table) {
        self.known().learn(target, table);
        self.0.fresh_moved.notify_one();
    }

    /// Chunks of an index run; those known already are left as they are. False if the index did not take them.
    pub(crate) fn learn_run(&self, chunks: &[(ChunkId, Location)]) -> bool {
        let mut known = self.known();
        let is_kept = known.learn_run(chunks).1;
        self.tell_unseen(&known);
        is_kept
    }

    fn tell_unseen(&self, known: &Known<Index>) {
        if known.is_unseen() {
            self.0.unseen_moved.notify_one();
        }
    }

    /// Looks at the segments that the index knows and nobody saw since the start, as they come to be needed, for as long as
    /// the node runs.
    pub(crate) async fn look_at_segments(self, vault: Vault) {
        loop {
            let targets = self.known().take_unseen(LOOKS_AT_ONCE);
            if targets.is_empty() {
                self.0.unseen_moved.notified().await;
                continue;
            }
            self.look_at(&vault, targets).await;
        }
    }

    async fn look_at(&self, vault: &Vault, targets: Vec<Target>) {
        let looks = targets.into_iter().map(|target| look(vault, target));
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        while let Some(found) = looks.next().await {
            let mut known = self.known();
            found.into_iter().for_each(|sighting| known.saw(sighting));
        }
    }

    /// Looks at all that waits for it.
    #[cfg(test)]
    pub(crate) async fn look_at_all(&self, vault: &Vault) {
        loop {
            let targets = self.known().take_unseen(LOOKS_AT_ONCE);
            if targets.is_empty() {
                return;
            }
            self.look_at(vault, targets).await;
        }
    }

    /// Waits until at least `count` committed chunks are in no index run.
    pub(crate) async fn wait_fresh(&self, count: usize) {
        while self.known().fresh() < count {
            self.0.fresh_moved.notified().await;
        }
    }

    /// How many committed chunks are in no index run.
    pub(crate) fn fresh(&self) -> usize {
        self.known().fresh()
    }

    /// The committed chunks that are in no index run; the caller writes one.
    pub(crate) fn take_fresh(&self) -> Vec<(ChunkId, Location)> {
        self.known().take_fresh()
    }

    /// How many chunks are known.
    pub(crate) fn len(&self) -> u64 {
        self.known().count()
    }
}
