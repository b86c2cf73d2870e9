//! Which chunks the vault holds already, as far as a node knows.
//!
//! A hint: missing a duplicate costs space. What it says must be right, though: a chunk is found
//! only where a committed segment, or an earlier slot of the asking shard's own log, holds it, and only where that was
//! seen to be there since the node started ([`crate::sight`]). Nothing is found before the vault's register was read,
//! and nothing that it condemns, or ever deleted: what was swept may come back for a moment. So what is known must not outlive what
//! is known of verdicts. The index is *cleared* now and then, and knows up to which entry of the register that was done; behind
//! that the node keeps in mind what verdicts name, and a run is learnt only if its writer had applied as much.

use crate::index::{Index, IndexError, Synced};
use crate::limits::{CLEARED_BEHIND_MAX, CLEARED_TARGETS_MAX};
use crate::sight::{Sighting, Sights};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::INDEX_RUN_CHUNKS_MAX;
use farshore_proto::segment::{ChunkPlace, Table};
use farshore_proto::{ChunkId, LogId, Slot, Target};
use farshore_vault::Location;
use farshore_vault::register::{At, Condemned};
use farshore_vault::runs::Run;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

mod memory;

pub use memory::MemoryIndex;

/// Chunks that wait for an index run; more are left out of the runs, not of the index.
const FRESH_MAX: usize = INDEX_RUN_CHUNKS_MAX;
/// Chunks found at the start that wait until the index is loaded; more are left out.
const FOUND_MAX: usize = 1 << 20;
/// Of them, those that are looked up at a time.
const FOUND_SLICE: usize = 4096;

/// What the rule needs of an index: the one on disk, or one in memory.
pub trait ChunkIndex {
    /// Looks each id up, in order, past what is refused. A chunk that is known may be missed.
    fn lookup(&mut self, ids: &[ChunkId], refused: &Condemned) -> Vec<Option<Location>>;

    /// Adds chunks whose segments are committed.
    ///
    /// # Errors
    /// If they cannot be kept; what was known stays known.
    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError>;

    /// How many chunks are known.
    fn count(&self) -> u64;

    /// How many were ever added: after a restart it is less only if some were lost.
    fn written(&self) -> u64 {
        self.count()
    }

    /// Whether all that was kept is known; until then chunks are missed.
    fn is_loaded(&self) -> bool {
        true
    }

    /// Loads a little; false when all is loaded.
    ///
    /// # Errors
    /// If something cannot be read; it stays unknown.
    fn load_some(&mut self) -> Result<bool, IndexError> {
        Ok(false)
    }

    /// Up to which entry of the register it was cleared, durably: no verdict up to there names what it knows. None if nothing is kept.
    fn cleared(&self) -> Option<At>;

    /// Begins to let go of what verdicts name; once that is over, and durable, it is cleared up to that entry.
    fn begin_clearing(&mut self, condemned: Arc<Condemned>);

    /// Lets go of a little; none if there is more. At the end, what makes it durable, on any thread; the answer goes to
    /// [`Self::synced`].
    ///
    /// # Errors
    /// If something cannot be read or written: it is not cleared.
    fn clear_some(&mut self) -> Result<Option<Synced>, IndexError>;

    /// It is durable that it is cleared up to an entry.
    fn synced(&mut self, cleared: At);
}

impl ChunkIndex for Index {
    fn lookup(&mut self, ids: &[ChunkId], refused: &Condemned) -> Vec<Option<Location>> {
        Self::lookup(self, ids, refused)
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        Self::insert(self, chunks)
    }

    fn count(&self) -> u64 {
        self.len() as u64
    }

    fn written(&self) -> u64 {
        Self::written(self)
    }

    fn is_loaded(&self) -> bool {
        Self::is_loaded(self)
    }

    fn load_some(&mut self) -> Result<bool, IndexError> {
        Self::load_some(self)
    }

    fn cleared(&self) -> Option<At> {
        Self::cleared(self)
    }

    fn begin_clearing(&mut self, condemned: Arc<Condemned>) {
        Self::begin_clearing(self, condemned);
    }

    fn clear_some(&mut self) -> Result<Option<Synced>, IndexError> {
        Self::clear_some(self)
    }

    fn synced(&mut self, cleared: At) {
        Self::synced(self, cleared);
    }
}

/// The chunks of a log's segments that are on their way to the vault.
#[derive(Debug, Default)]
struct Pending {
    by_slot: BTreeMap<Slot, Vec<(ChunkId, Location)>>,
    by_id: HashMap<ChunkId, Location>,
}

impl Pending {
    /// The chunks of a slot, which is not pending any more.
    fn take(&mut self, slot: Slot) -> Option<Vec<(ChunkId, Location)>> {
        let Self { by_slot, by_id } = self;
        let chunks = by_slot.remove(&slot)?;
        for (id, _) in &chunks {
            if by_id.get(id).is_some_and(|location| location.target.slot == slot) {
                by_id.remove(id);
            }
        }
        Some(chunks)
    }
}

/// How far the clearing of an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clearing {
    Idle,
    /// All that is known is looked through.
    Scan,
    /// It is made durable.
    Sync,
    /// It could not be done: not again before the next start.
    Failed,
}

/// What a node knows; its shards share it.
#[derive(Debug)]
pub struct Known<I> {
    index: I,
    /// Per log: what its own later slots may refer to before it is committed.
    pending: HashMap<LogId, Pending>,
    /// Committed chunks that are in no index run yet.
    fresh: Vec<(ChunkId, Location)>,
    /// Chunks found at the start, which the index may know once it is loaded.
    found: Vec<(ChunkId, Location)>,
    sights: Sights,
    /// Up to which entry the register is applied; none before it was read.
    applied: Option<At>,
    /// Whether the register is left out until the next start.
    is_left_out: bool,
    /// Behind which entry it is known what verdicts name; none before the register was read.
    known_behind: Option<u64>,
    clearing: Clearing,
    /// It is cleared when verdicts name so many segments.
    cleared_at: usize,
}

impl<I: ChunkIndex> Known<I> {
    /// With the chunks of `index`, all of committed segments.
    #[must_use]
    pub fn new(index: I) -> Self {
        Self {
            index,
            pending: HashMap::new(),
            fresh: Vec::new(),
            found: Vec::new(),
            sights: Sights::default(),
            applied: None,
            is_left_out: false,
            known_behind: None,
            clearing: Clearing::Idle,
            cleared_at: CLEARED_TARGETS_MAX,
        }
    }

    /// Its index is cleared as soon as verdicts name so many segments.
    #[must_use]
    pub fn clearing_at(mut self, targets: usize) -> Self {
        self.cleared_at = targets;
        self
    }

    /// Its index, for the next run.
    #[must_use]
    pub fn into_index(self) -> I {
        self.index
    }

    /// Up to which entry of the register its index was cleared; none if nothing is kept.
    #[must_use]
    pub fn cleared(&self) -> Option<At> {
        self.index.cleared()
    }

    /// Looks chunks up for a segment of `log`. What lies in a segment that was not looked at yet is not found, and the
    /// segment is to be looked at. Nothing is found before the register was applied.
    pub fn lookup(&mut self, log: LogId, ids: &[ChunkId]) -> Vec<Option<Location>> {
        if self.applied.is_none() {
            return vec![None; ids.len()];
        }
        let mut found: Vec<Option<Location>> = match self.pending.get(&log) {
            Some(Pending { by_id, .. }) => ids.iter().map(|id| by_id.get(id).copied()).collect(),
            None => vec![None; ids.len()],
        };
        let refused = Arc::clone(self.sights.refused());
        for (slot, location) in found.iter_mut().zip(self.index.lookup(ids, &refused)) {
            *slot = slot.or(location.filter(|found| self.sights.is_there(found.target)));
        }
        found
    }

    /// Applies the register up to an entry. What is looked up from now on is nothing that is condemned there; what verdicts name has to be in it
    /// as long as the index is not cleared of it.
    pub fn apply(&mut self, condemned: Arc<Condemned>) {
        let at = condemned.at;
        if self.is_left_out || self.applied.is_some_and(|applied| applied.number > at.number) {
            return;
        }
        // What is committed may be condemned before we hear that it is. That nobody knows of it any more costs space.
        for target in condemned.targets() {
            if let Some(pending) = self.pending.get_mut(&target.log)
                && let Some((_, held)) = pending.by_slot.get(&target.slot).and_then(|it| it.first())
                && held.target == *target
            {
                pending.take(target.slot);
            }
        }
        self.fresh.retain(|(_, location)| !condemned.contains(&location.target));
        // What was learnt before now is of this run, or of an index that was cleared up to there.
        let behind = *self.known_behind.get_or_insert(condemned.behind);
        let is_due = self.index.cleared().is_none()
            || condemned.judged.len() >= self.cleared_at
            || at.number.saturating_sub(behind) >= CLEARED_BEHIND_MAX;
        if is_due
            && self.clearing == Clearing::Idle
            && self.index.is_loaded()
            && self.found.is_empty()
        {
            self.clearing = Clearing::Scan;
            self.index.begin_clearing(Arc::clone(&condemned));
        }
        self.sights.refuse(condemned);
        self.applied = Some(at);
    }

    /// The register cannot be used any more: nothing is found from now on, as before it was read.
    pub fn leave_out(&mut self) {
        // A word that is under way does not take it back.
        (self.applied, self.is_left_out) = (None, true);
    }

    /// Whether the index is being cleared, and [`Self::clear_some`] has to be called.
    #[must_use]
    pub fn is_clearing(&self) -> bool {
        self.clearing == Clearing::Scan
    }

    /// Clears a little of the index. At the end, what makes that durable, on any thread: what it says goes to [`Self::synced`].
    pub fn clear_some(&mut self) -> Option<Synced> {
        match self.index.clear_some() {
            Ok(Some(synced)) => {
                self.clearing = Clearing::Sync;
                Some(synced)
            }
            Ok(None) => None,
            Err(error) => {
                self.synced(Err(error));
                None
            }
        }
    }

    /// It is durable that the index is cleared, or cannot be made so.
    pub fn synced(&mut self, cleared: Result<At, IndexError>) {
        match cleared {
            Ok(at) => {
                self.clearing = Clearing::Idle;
                self.index.synced(at);
                self.known_behind = Some(at.number);
            }
            Err(error) => {
                // What could not be made durable once may seem so the next time.
                self.clearing = Clearing::Failed;
                tracing::warn!(%error, "cannot clear the chunk index of what was deleted in the vault; the next start makes it anew");
            }
        }
    }

    /// Behind which entry it is known what verdicts name: what is learnt must have been cleared up to there. None before the register was
    /// read.
    #[must_use]
    pub fn known_behind(&self) -> Option<u64> {
        self.known_behind
    }

    /// Up to which entry the register is applied; none before it was read.
    #[must_use]
    pub fn applied(&self) -> Option<At> {
        self.applied
    }

    /// A segment was built; its log's later slots may refer to its chunks.
    pub fn built(&mut self, target: Target, table: &Table) {
        self.built_of(target, held_chunks(target, table));
    }

    /// As [`Self::built`], of a segment with these chunks.
    pub fn built_of(&mut self, target: Target, chunks: Vec<(ChunkId, Location)>) {
        let Target { log, slot, .. } = target;
        if is_on(Bug::DedupBeforeCommit) {
            self.sights.there(target);
            self.insert(&chunks);
        }
        let pending = self.pending.entry(log).or_default();
        pending.by_id.extend(chunks.iter().copied());
        pending.by_slot.insert(slot, chunks);
    }

    /// A log was sealed: its segments that are not committed are nowhere.
    pub fn forget(&mut self, log: LogId) {
        self.pending.remove(&log);
    }

    /// A segment is committed; everybody may refer to its chunks.
    pub fn committed(&mut self, log: LogId, slot: Slot) {
        let Some(pending) = self.pending.get_mut(&log) else { return };
        let Some(chunks) = pending.take(slot) else { return };
        if let Some((_, Location { target, .. })) = chunks.first() {
            self.sights.there(*target);
        }
        self.insert(&chunks);
        self.add_fresh(&chunks);
    }

    /// Chunks of a committed segment found at the start; those known already are left as they are.
    pub fn learn(&mut self, target: Target, table: &Table) {
        self.learn_of(target, &held_chunks(target, table));
    }

    /// As [`Self::learn`], of a segment with these chunks.
    pub fn learn_of(&mut self, target: Target, chunks: &[(ChunkId, Location)]) {
        self.sights.there(target);
        if self.index.is_loaded() && self.found.is_empty() {
            self.learn_found(chunks);
        } else {
            let room = FOUND_MAX.saturating_sub(self.found.len());
            self.found.extend(chunks.iter().take(room));
        }
    }

    fn learn_found(&mut self, chunks: &[(ChunkId, Location)]) {
        let (missing, _) = self.learn_missing(chunks);
        self.add_fresh(&missing);
    }

    /// Loads a little of the index; false when all is loaded.
    pub fn load_some(&mut self) -> bool {
        match self.index.load_some() {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot load all of the index; some chunks will be stored again");
            }
        }
        let rest = self.found.split_off(self.found.len().min(FOUND_SLICE));
        let now = std::mem::replace(&mut self.found, rest);
        self.learn_found(&now);
        !self.found.is_empty()
    }

    /// Chunks of an index run of which no verdict up to entry `up_to` names one; those known already are left as they are, unless they were
    /// seen to be gone. Their segments are to be looked at. Returns whether all are in the index now: not if it is not known any more what
    /// verdicts behind that entry name.
    pub fn learn_run(&mut self, up_to: u64, chunks: &[(ChunkId, Location)]) -> bool {
        if self.known_behind.is_none_or(|behind| behind > up_to) {
            return false;
        }
        self.learn_missing(chunks).1
    }

    /// Learns those chunks that are not known; returns them, and whether they are in the index now.
    fn learn_missing(
        &mut self,
        chunks: &[(ChunkId, Location)],
    ) -> (Vec<(ChunkId, Location)>, bool) {
        let refused = Arc::clone(self.sights.refused());
        let chunks = chunks.iter().filter(|(_, location)| !refused.contains(&location.target));
        let (ids, chunks): (Vec<ChunkId>, Vec<_>) = chunks.map(|chunk| (chunk.0, *chunk)).unzip();
        let found = self.index.lookup(&ids, &refused);
        chunks.iter().for_each(|(_, location)| self.sights.want(location.target));
        let is_gone = |known: &Location| self.sights.is_gone(known.target);
        let missing = chunks.into_iter().zip(found);
        let missing = missing.filter(|(_, found)| found.as_ref().is_none_or(is_gone));
        let missing: Vec<(ChunkId, Location)> = missing.map(|(chunk, _)| chunk).collect();
        let is_kept = self.insert(&missing);
        (missing, is_kept)
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> bool {
        let inserted = self.index.insert(chunks);
        if let Err(error) = &inserted {
            // Space, not safety: these chunks will be stored again.
            tracing::warn!(%error, "cannot add chunks to the index");
        }
        inserted.is_ok()
    }

    fn add_fresh(&mut self, chunks: &[(ChunkId, Location)]) {
        let room = FRESH_MAX - self.fresh.len();
        self.fresh.extend(chunks.iter().take(room));
    }

    /// Whether there are segments to look at.
    #[must_use]
    pub fn is_unseen(&self) -> bool {
        self.sights.is_waiting()
    }

    /// Segments to look at, at most so many, and which round of looks that is; what was found is told by [`Known::saw`].
    pub fn take_unseen(&mut self, max: usize) -> (u64, Vec<Target>) {
        (self.sights.round(), self.sights.take(max))
    }

    /// A look of a round at a segment ended.
    pub fn saw(&mut self, round: u64, sighting: Sighting) {
        self.sights.saw(round, sighting);
    }

    /// Committed chunks that are in no index run.
    #[must_use]
    pub fn fresh(&self) -> usize {
        self.fresh.len()
    }

    /// Takes them; the caller writes a run.
    pub fn take_fresh(&mut self) -> Run {
        let chunks = std::mem::take(&mut self.fresh);
        Run { applied: self.applied.unwrap_or_default(), chunks }
    }

    /// How many chunks are known.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.index.count()
    }

    /// How many were ever added to the index: after a restart it is less only if some were lost.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.index.written()
    }
}

/// The chunks that a segment holds itself.
#[must_use]
pub fn held_chunks(target: Target, table: &Table) -> Vec<(ChunkId, Location)> {
    let chunks = (0..).zip(&table.chunks).filter_map(|(chunk, held)| match held.place {
        ChunkPlace::Here { .. } => Some((held.id, Location { target, chunk, blocks: held.blocks })),
        ChunkPlace::There { .. } => None,
    });
    chunks.collect()
}

#[cfg(test)]
mod tests;
