//! Which chunks the vault holds already, as far as a node knows.
//!
//! A hint: missing a duplicate costs space. What it says must be right, though: a chunk is found
//! only where a committed segment, or an earlier slot of the asking shard's own log, holds it, and only where that was
//! seen to be there since the node started ([`crate::sight`]). Nothing is found before the vault's register was read,
//! and nothing that it condemns.

use crate::index::{Index, IndexError};
use crate::sight::{Sighting, Sights};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::INDEX_RUN_CHUNKS_MAX;
use farshore_proto::segment::{ChunkPlace, Table};
use farshore_proto::{ChunkId, LogId, Slot, Target};
use farshore_vault::Location;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Chunks that wait for an index run; more are left out of the runs, not of the index.
const FRESH_MAX: usize = INDEX_RUN_CHUNKS_MAX;
/// Chunks found at the start that wait until the index is loaded; more are left out.
const FOUND_MAX: usize = 1 << 20;
/// Of them, those that are looked up at a time.
const FOUND_SLICE: usize = 4096;

/// What the rule needs of an index: the one on disk, or one in memory.
pub trait ChunkIndex {
    /// Looks each id up, in order. A chunk that is known may be missed.
    fn lookup(&mut self, ids: &[ChunkId]) -> Vec<Option<Location>>;

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
}

impl ChunkIndex for Index {
    fn lookup(&mut self, ids: &[ChunkId]) -> Vec<Option<Location>> {
        Self::lookup(self, ids)
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
}

/// An index in memory, for small vaults and tests.
impl ChunkIndex for HashMap<ChunkId, Location> {
    fn lookup(&mut self, ids: &[ChunkId]) -> Vec<Option<Location>> {
        ids.iter().map(|id| self.get(id).copied()).collect()
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        self.extend(chunks.iter().copied());
        Ok(())
    }

    fn count(&self) -> u64 {
        self.len() as u64
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
    applied: Option<u64>,
}

impl<I: ChunkIndex> Known<I> {
    /// With the chunks of `index`, all of committed segments.
    #[must_use]
    pub fn new(index: I) -> Self {
        let sights = Sights::default();
        let (fresh, found) = (Vec::new(), Vec::new());
        Self { index, pending: HashMap::new(), fresh, found, sights, applied: None }
    }

    /// Its index, for the next run.
    #[must_use]
    pub fn into_index(self) -> I {
        self.index
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
        for (slot, location) in found.iter_mut().zip(self.index.lookup(ids)) {
            *slot = slot.or(location.filter(|found| self.sights.is_there(found.target)));
        }
        found
    }

    /// Applies the register up to an entry: `condemned` is what nobody may refer to, and nothing else is. What is looked up
    /// from now on is none of it.
    pub fn apply(&mut self, number: u64, condemned: HashSet<Target>) {
        if self.applied > Some(number) {
            return;
        }
        self.sights.refuse(condemned);
        // What is committed may be condemned before we hear that it is. That nobody knows of it any more costs space.
        let condemned = self.sights.refused().filter_map(|target| {
            let pending = self.pending.get(&target.log)?;
            let (_, held) = pending.by_slot.get(&target.slot)?.first()?;
            (held.target == *target).then_some(*target)
        });
        for Target { log, slot, .. } in condemned.collect::<Vec<_>>() {
            if let Some(pending) = self.pending.get_mut(&log) {
                pending.take(slot);
            }
        }
        self.applied = Some(number);
    }

    /// Up to which entry the register is applied; none before it was read.
    #[must_use]
    pub fn applied(&self) -> Option<u64> {
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
        let (missing, _) = self.learn_run(chunks);
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

    /// Chunks of an index run; those known already are left as they are, unless they were seen to be gone. Their segments
    /// are to be looked at. Returns the others, and whether they are in the index now.
    pub fn learn_run(
        &mut self,
        chunks: &[(ChunkId, Location)],
    ) -> (Vec<(ChunkId, Location)>, bool) {
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let found = self.index.lookup(&ids);
        chunks.iter().for_each(|(_, location)| self.sights.want(location.target));
        let is_gone = |known: &Location| self.sights.is_gone(known.target);
        let missing = chunks.iter().zip(found);
        let missing = missing.filter(|(_, found)| found.as_ref().is_none_or(is_gone));
        let missing: Vec<(ChunkId, Location)> = missing.map(|(chunk, _)| *chunk).collect();
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
    pub fn take_fresh(&mut self) -> Vec<(ChunkId, Location)> {
        std::mem::take(&mut self.fresh)
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
mod tests {
    use super::*;
    use crate::index::Room;
    use farshore_proto::Attempt;

    /// Takes so many calls, and is full then.
    struct Full {
        known: HashMap<ChunkId, Location>,
        takes: usize,
    }

    impl ChunkIndex for Full {
        fn lookup(&mut self, ids: &[ChunkId]) -> Vec<Option<Location>> {
            self.known.lookup(ids)
        }

        fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
            self.takes =
                self.takes.checked_sub(1).ok_or(IndexError::Full { what: "entries", max: 1 })?;
            ChunkIndex::insert(&mut self.known, chunks)
        }

        fn count(&self) -> u64 {
            self.known.count()
        }
    }

    fn location(byte: u8) -> Location {
        let target = Target { log: LogId([byte; 16]), slot: Slot(1), attempt: Attempt([1; 8]) };
        Location { target, chunk: 0, blocks: 4 }
    }

    /// What is known when the register was read, and condemns nothing.
    fn applied<I: ChunkIndex>(index: I) -> Known<I> {
        let mut known = Known::new(index);
        known.apply(0, HashSet::new());
        known
    }

    /// Who has not read the register does not know what is condemned.
    #[test]
    fn nothing_is_found_before_the_register_was_read() {
        let (id, at) = (ChunkId([1; 32]), location(1));
        let mut known = Known::new(HashMap::from([(id, at)]));
        known.saw(0, Sighting::There(at.target));
        let ours = LogId([9; 16]);
        let pending = Target { log: ours, ..location(9).target };
        known.built_of(pending, vec![(ChunkId([9; 32]), Location { target: pending, ..at })]);
        assert_eq!(known.lookup(ours, &[id, ChunkId([9; 32])]), [None, None]);
        known.apply(3, HashSet::new());
        assert!(known.lookup(ours, &[id, ChunkId([9; 32])]).iter().all(Option::is_some));
        assert_eq!(known.applied(), Some(3));
    }

    #[test]
    fn what_is_condemned_is_found_by_nobody_whoever_holds_it() {
        let ours = LogId([9; 16]);
        let [theirs, own] = [location(1), location(9)];
        let ids = [ChunkId([1; 32]), ChunkId([9; 32])];
        let mut known = applied(HashMap::from([(ids[0], theirs)]));
        known.saw(0, Sighting::There(theirs.target));
        known.built_of(own.target, vec![(ids[1], own)]);
        assert_eq!(known.lookup(ours, &ids), [Some(theirs), Some(own)]);
        known.apply(5, [theirs.target, own.target].into());
        assert_eq!(known.lookup(ours, &ids), [None, None]);
        // We hear late that ours is committed: it was condemned since.
        known.committed(ours, own.target.slot);
        assert_eq!(known.lookup(ours, &ids), [None, None]);
        // What was applied is not taken back by an older word.
        known.apply(4, HashSet::new());
        assert_eq!((known.lookup(ours, &ids), known.applied()), (vec![None, None], Some(5)));
        // Spared or swept: that is for a look to say.
        known.apply(7, HashSet::new());
        assert_eq!(known.lookup(ours, &ids[..1]), [None]);
        assert_eq!(known.take_unseen(9), (1, vec![theirs.target]));
        known.saw(1, Sighting::There(theirs.target));
        assert_eq!(known.lookup(ours, &ids[..1]), [Some(theirs)]);
    }

    /// It is held elsewhere too: what is condemned keeps that from nobody.
    #[test]
    fn a_chunk_that_is_condemned_is_learnt_where_else_it_is() {
        let (id, condemned, elsewhere) = (ChunkId([1; 32]), location(1), location(2));
        let mut known = applied(HashMap::from([(id, condemned)]));
        known.apply(1, [condemned.target].into());
        known.learn_run(&[(id, elsewhere)]);
        known.saw(0, Sighting::There(elsewhere.target));
        assert_eq!(known.lookup(LogId([9; 16]), &[id]), [Some(elsewhere)]);
    }

    /// S25: what the index knows was true once.
    #[test]
    fn a_segment_is_referred_to_only_once_it_was_seen() {
        let (id, at) = (ChunkId([1; 32]), location(1));
        let mut known = applied(HashMap::from([(id, at)]));
        let ours = LogId([9; 16]);
        assert_eq!(known.lookup(ours, &[id]), [None]);
        assert_eq!(known.take_unseen(9), (0, vec![at.target]));
        known.saw(0, Sighting::There(at.target));
        assert_eq!(known.lookup(ours, &[id]), [Some(at)]);

        let mut known = applied(HashMap::from([(id, at)]));
        known.saw(0, Sighting::Gone(at.target));
        assert_eq!((known.lookup(ours, &[id]), known.is_unseen()), (vec![None], false));
        // It is held elsewhere: what is gone keeps that from nobody.
        let elsewhere = location(2);
        known.learn_run(&[(id, elsewhere)]);
        known.saw(0, Sighting::There(elsewhere.target));
        assert_eq!(known.lookup(ours, &[id]), [Some(elsewhere)]);
    }

    /// What a start finds in its logs' ends is in the index already, as soon as that is loaded.
    #[test]
    fn what_a_start_finds_waits_until_the_index_is_loaded() {
        use farshore_proto::VaultId;
        use farshore_proto::segment::SegmentChunk;
        let dir = tempfile::tempdir().unwrap();
        let vault = VaultId([1; 16]);
        let target = location(1).target;
        let chunk = |id: u8| {
            let place = ChunkPlace::Here { frame: 0, offset: 0 };
            SegmentChunk { id: ChunkId([id; 32]), blocks: 4, place }
        };
        let table = |chunks: &[u8]| Table {
            chunks: chunks.iter().copied().map(chunk).collect(),
            ..Table::default()
        };
        Index::open(dir.path(), vault)
            .unwrap()
            .insert(&held_chunks(target, &table(&[1, 2])))
            .unwrap();

        let mut known = applied(Index::begin(dir.path(), vault, Room::default()).unwrap());
        known.learn(target, &table(&[1, 2, 3]));
        assert_eq!((known.written(), known.fresh()), (2, 0));
        while known.load_some() {}
        assert_eq!((known.written(), known.fresh()), (3, 1), "the third one is new");
        let ids = [1, 2, 3].map(|id| ChunkId([id; 32]));
        assert!(known.lookup(LogId([9; 16]), &ids).iter().all(Option::is_some));
        known.learn(target, &table(&[1, 2, 3]));
        assert_eq!((known.written(), known.fresh()), (3, 1));
    }

    /// Who notes what was learnt must be told that it was not kept.
    #[test]
    fn a_run_that_the_index_does_not_take_is_not_kept() {
        let mut known = Known::new(Full { known: HashMap::new(), takes: 1 });
        let run = |byte: u8| vec![(ChunkId([byte; 32]), location(byte))];
        assert_eq!(known.learn_run(&run(1)), (run(1), true));
        assert_eq!(known.learn_run(&run(2)), (run(2), false));
        assert_eq!(known.count(), 1);
    }
}
