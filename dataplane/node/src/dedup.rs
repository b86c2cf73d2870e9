//! What the shards know of the vault's chunks, together. It is kept by a thread of its own: shards send it what they have to
//! say, and wait for what they ask beside their other work, so that none of them holds a lock or reads a file. The rule is
//! [`farshore_ingest::dedup`]'s.

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use farshore_codec::{ChunkHasher, Chunker, VaultKeys};
use farshore_ingest::dedup::{Known, held_chunks};
use farshore_ingest::index::{Index, IndexError};
use farshore_ingest::sight::look;
use farshore_proto::segment::Table;
use farshore_proto::{ChunkId, LogId, Slot, Target};
use farshore_vault::register::{At, Condemned};
use farshore_vault::runs::Run;
use farshore_vault::{Location, Vault};
use futures::StreamExt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use tokio::sync::{Notify, oneshot, watch};

/// Segments that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 16;
/// What may wait for the thread: a shard asks for one batch at a time, and says two things of each segment.
const WAITING_MAX: usize = 1 << 14;

/// While the index is loaded: questions that are answered between two parts of it.
const LOADED_EVERY: usize = 16;

/// Something to be done with what is known.
type Work = Box<dyn FnOnce(&mut Known<Index>) + Send>;

/// Shared by the shards.
#[derive(Debug, Clone)]
pub(crate) struct Dedup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chunker: Chunker,
    hasher: ChunkHasher,
    level: i32,
    works: Sender<Work>,
    moved: Arc<Moved>,
    /// The greatest number of a run that was seen in the vault, and one; 0 before anybody looked.
    next_run: AtomicU64,
}

/// Who waits for a change is told here.
#[derive(Debug)]
struct Moved {
    fresh: Notify,
    unseen: Notify,
    is_loaded: watch::Sender<bool>,
    /// Up to which entry the vault's register is applied; none before it was read.
    applied: watch::Sender<Option<At>>,
}

impl Dedup {
    /// With the vault's keys, the chunks known so far, and the zstd level for new ones. What is not loaded of the index
    /// is, beside the work.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn new(keys: &VaultKeys, index: Index, level: i32) -> io::Result<Self> {
        let moved = Arc::new(Moved {
            fresh: Notify::new(),
            unseen: Notify::new(),
            is_loaded: watch::Sender::new(false),
            applied: watch::Sender::new(None),
        });
        let (works, waiting) = bounded(WAITING_MAX);
        let thread = std::thread::Builder::new().name("dedup".to_owned());
        let known = Known::new(index);
        let telling = Arc::clone(&moved);
        // It ends with the last of those who may ask.
        drop(thread.spawn(move || work(known, &waiting, &telling))?);
        Ok(Self(Arc::new(Shared {
            chunker: Chunker::new(&keys.chunk_key),
            hasher: ChunkHasher::new(keys.id_key.clone()),
            level,
            works,
            moved,
            next_run: AtomicU64::new(0),
        })))
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

    /// What is said while the thread is far behind is lost: that costs space only.
    fn tell(&self, work: impl FnOnce(&mut Known<Index>) + Send + 'static) {
        if self.0.works.try_send(Box::new(work)).is_err() {
            tracing::warn!("the chunk index is far behind; some chunks will be stored again");
        }
    }

    /// None if the thread is far behind.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Known<Index>) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.tell(move |known| _ = sender.send(question(known)));
        answer(receiver).await
    }

    /// Looks chunks up for a segment of `log`; answers none if nothing can be said.
    pub(crate) async fn lookup(&self, log: LogId, ids: Vec<ChunkId>) -> Vec<Option<Location>> {
        self.ask(move |known| known.lookup(log, &ids)).await.unwrap_or_default()
    }

    /// Applies the vault's register up to an entry: what is looked up from now on is none of what is condemned. Gives the entry behind
    /// which it has to be kept in mind what verdicts name; none if the thread is far behind.
    pub(crate) async fn apply(&self, condemned: Condemned) -> Option<u64> {
        let at = condemned.at;
        let apply = move |known: &mut Known<Index>| {
            known.apply(Arc::new(condemned));
            known.known_behind().unwrap_or(0)
        };
        let behind = self.ask(apply).await?;
        self.0.moved.applied.send_modify(|applied| {
            *applied = Some(applied.unwrap_or_default().later(at));
        });
        Some(behind)
    }

    /// Nothing is looked up any more. False if the thread is far behind.
    pub(crate) async fn leave_out(&self) -> bool {
        self.ask(Known::leave_out).await.is_some()
    }

    /// Behind which entry of the register it is known what verdicts name; none before it was read.
    pub(crate) async fn known_behind(&self) -> Option<u64> {
        self.ask(|known| known.known_behind()).await.flatten()
    }

    /// Up to which entry it is applied; in front of the first before it was read.
    pub(crate) fn applied(&self) -> At {
        self.0.moved.applied.borrow().unwrap_or_default()
    }

    /// The register is read, and condemns nothing.
    #[cfg(test)]
    pub(crate) fn condemns_nothing(&self) {
        self.tell(|known| known.apply(Arc::default()));
        self.0.moved.applied.send_replace(Some(At::NONE));
    }

    /// Chunks of a committed segment.
    #[cfg(test)]
    pub(crate) fn learn_at(&self, target: Target, chunks: Vec<(ChunkId, Location)>) {
        self.tell(move |known| known.learn_of(target, &chunks));
    }

    /// A segment was built; its log's later slots may refer to its chunks.
    pub(crate) fn built(&self, target: Target, table: &Table) {
        let chunks = held_chunks(target, table);
        self.tell(move |known| known.built_of(target, chunks));
    }

    /// A log was sealed: what of it was not committed is nowhere.
    pub(crate) fn forget(&self, log: LogId) {
        self.tell(move |known| known.forget(log));
    }

    /// A segment is committed; everybody may refer to its chunks.
    pub(crate) fn committed(&self, log: LogId, slot: Slot) {
        self.tell(move |known| known.committed(log, slot));
    }

    /// Chunks of a committed segment found at the start; those known already are left as they are.
    pub(crate) fn learn(&self, target: Target, table: &Table) {
        let chunks = held_chunks(target, table);
        self.tell(move |known| known.learn_of(target, &chunks));
    }

    /// What an index run says; chunks known already are left as they are. None if the index did not take them, else how many it ever
    /// took.
    pub(crate) async fn learn_run(
        &self,
        up_to: u64,
        chunks: Vec<(ChunkId, Location)>,
    ) -> Option<u64> {
        let learn = move |known: &mut Known<Index>| {
            known.learn_run(up_to, &chunks).then(|| known.written())
        };
        self.ask(learn).await.flatten()
    }

    /// Waits until the register was applied: before, nothing can be learnt of others.
    pub(crate) async fn until_applied(&self) {
        // It cannot fail: the sender is ours.
        let _ = self.0.moved.applied.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until the index is loaded; then, how many entries it ever took.
    pub(crate) async fn loaded(&self) -> u64 {
        // It cannot fail: the sender is ours.
        let _ = self.0.moved.is_loaded.subscribe().wait_for(|is_loaded| *is_loaded).await;
        self.ask(|known| known.written()).await.unwrap_or_default()
    }

    /// Looks at the segments that the index knows and nobody saw since the start, as they come to be needed, for as long as
    /// the node runs.
    pub(crate) async fn look_at_segments(self, vault: Vault) {
        loop {
            let (round, targets) = self.take_unseen().await;
            if targets.is_empty() {
                self.0.moved.unseen.notified().await;
                continue;
            }
            self.look_at(&vault, round, targets).await;
        }
    }

    async fn take_unseen(&self) -> (u64, Vec<Target>) {
        self.ask(|known| known.take_unseen(LOOKS_AT_ONCE)).await.unwrap_or_default()
    }

    async fn look_at(&self, vault: &Vault, round: u64, targets: Vec<Target>) {
        let looks = targets.into_iter().map(|target| look(vault, target));
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        while let Some(found) = looks.next().await {
            self.tell(move |known| {
                found.into_iter().for_each(|sighting| known.saw(round, sighting));
            });
        }
    }

    /// Looks at all that waits for it.
    #[cfg(test)]
    pub(crate) async fn look_at_all(&self, vault: &Vault) {
        loop {
            let (round, targets) = self.take_unseen().await;
            if targets.is_empty() {
                return;
            }
            self.look_at(vault, round, targets).await;
        }
    }

    /// Waits until at least `count` committed chunks are in no index run.
    pub(crate) async fn wait_fresh(&self, count: usize) {
        while self.fresh().await < count {
            self.0.moved.fresh.notified().await;
        }
    }

    /// How many committed chunks are in no index run.
    pub(crate) async fn fresh(&self) -> usize {
        self.ask(|known| known.fresh()).await.unwrap_or_default()
    }

    /// The committed chunks that are in no index run; the caller writes one.
    pub(crate) async fn take_fresh(&self) -> Run {
        self.ask(Known::take_fresh).await.unwrap_or_default()
    }

    /// How many chunks are known.
    #[cfg(test)]
    pub(crate) async fn len(&self) -> u64 {
        self.ask(|known| known.count()).await.unwrap_or_default()
    }

    /// Runs of the vault have numbers up to this one.
    pub(crate) fn saw_run(&self, number: u64) {
        self.0.next_run.fetch_max(number.saturating_add(1), Ordering::Relaxed);
    }

    /// The number of the next run to be written: above all that were seen.
    pub(crate) fn next_run(&self) -> u64 {
        self.0.next_run.load(Ordering::Relaxed).max(1)
    }
}

/// What the thread says; nothing if it let go of the question.
#[cfg(not(test))]
async fn answer<T>(receiver: oneshot::Receiver<T>) -> Option<T> {
    receiver.await.ok()
}

/// The clock of a test that goes on while all tasks wait is not to go on while the thread works.
#[cfg(test)]
async fn answer<T>(mut receiver: oneshot::Receiver<T>) -> Option<T> {
    loop {
        match receiver.try_recv() {
            Ok(said) => return Some(said),
            Err(oneshot::error::TryRecvError::Empty) => std::thread::yield_now(),
            Err(oneshot::error::TryRecvError::Closed) => return None,
        }
    }
}

/// Does what is asked, and loads and clears the index in between.
fn work(mut known: Known<Index>, waiting: &Receiver<Work>, moved: &Moved) {
    let (mut is_loaded, mut done) = (false, 0_usize);
    // Making durable what was cleared takes as long as the disk does: on a thread of its own.
    let mut syncing: Option<JoinHandle<Result<At, IndexError>>> = None;
    loop {
        let is_idle = is_loaded && !known.is_clearing();
        let next = if is_idle {
            waiting.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            waiting.try_recv()
        };
        match next {
            Ok(work) => {
                let fresh = known.fresh();
                work(&mut known);
                done += 1;
                if known.fresh() > fresh {
                    moved.fresh.notify_one();
                }
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return,
        }
        if let Some(synced) = syncing.take_if(|thread| thread.is_finished()) {
            match synced.join() {
                Ok(cleared) => known.synced(cleared),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        // However much is asked, the rest goes on.
        let is_turn = waiting.is_empty() || done.is_multiple_of(LOADED_EVERY);
        if !is_loaded && is_turn {
            is_loaded = !known.load_some();
            if is_loaded {
                tracing::info!(chunks = known.count(), "the chunk index is loaded");
                moved.is_loaded.send_replace(true);
                moved.fresh.notify_one();
            }
        } else if known.is_clearing()
            && is_turn
            && let Some(synced) = known.clear_some()
        {
            syncing = Some(std::thread::spawn(synced));
        }
        if known.is_unseen() {
            moved.unseen.notify_one();
        }
    }
}
