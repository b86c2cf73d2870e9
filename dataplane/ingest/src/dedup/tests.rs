use super::*;
use crate::index::Room;
use farshore_proto::Attempt;

/// Takes so many calls, and is full then.
struct Full {
    known: MemoryIndex,
    takes: usize,
}

impl ChunkIndex for Full {
    fn lookup(&mut self, ids: &[ChunkId], refused: &Condemned) -> Vec<Option<Location>> {
        self.known.lookup(ids, refused)
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        self.takes =
            self.takes.checked_sub(1).ok_or(IndexError::Full { what: "entries", max: 1 })?;
        ChunkIndex::insert(&mut self.known, chunks)
    }

    fn count(&self) -> u64 {
        self.known.count()
    }

    fn cleared(&self) -> Option<At> {
        self.known.cleared()
    }

    fn begin_clearing(&mut self, condemned: Arc<Condemned>) {
        self.known.begin_clearing(condemned);
    }

    fn clear_some(&mut self) -> Result<Option<Synced>, IndexError> {
        self.known.clear_some()
    }

    fn synced(&mut self, cleared: At) {
        self.known.synced(cleared);
    }
}

fn location(byte: u8) -> Location {
    let target = Target { log: LogId([byte; 16]), slot: Slot(1), attempt: Attempt([1; 8]) };
    Location { target, chunk: 0, blocks: 4 }
}

/// Up to this entry these are condemned, without a verdict.
fn open<const N: usize>(number: u64, targets: [Target; N]) -> Arc<Condemned> {
    let at = At { number, ..At::default() };
    Arc::new(Condemned { at, open: targets.into(), ..Condemned::default() })
}

/// Up to this entry verdicts name these.
fn judged<const N: usize>(number: u64, targets: [Target; N]) -> Arc<Condemned> {
    let at = At { number, ..At::default() };
    Arc::new(Condemned { at, judged: targets.into(), ..Condemned::default() })
}

/// Clears what is to be cleared.
fn clear<I: ChunkIndex>(known: &mut Known<I>) {
    while known.is_clearing() {
        if let Some(synced) = known.clear_some() {
            known.synced(synced());
        }
    }
}

/// What is known when the register was read, and condemns nothing.
fn applied<I: ChunkIndex>(index: I) -> Known<I> {
    let mut known = Known::new(index);
    known.apply(open(0, []));
    clear(&mut known);
    known
}

/// Who has not read the register does not know what is condemned.
#[test]
fn nothing_is_found_before_the_register_was_read() {
    let (id, at) = (ChunkId([1; 32]), location(1));
    let mut known = Known::new(MemoryIndex::from([(id, at)]));
    known.saw(0, Sighting::There(at.target));
    let ours = LogId([9; 16]);
    let pending = Target { log: ours, ..location(9).target };
    known.built_of(pending, vec![(ChunkId([9; 32]), Location { target: pending, ..at })]);
    assert_eq!(known.lookup(ours, &[id, ChunkId([9; 32])]), [None, None]);
    known.apply(open(3, []));
    assert!(known.lookup(ours, &[id, ChunkId([9; 32])]).iter().all(Option::is_some));
    assert_eq!(known.applied().map(|at| at.number), Some(3));
}

#[test]
fn what_is_condemned_is_found_by_nobody_whoever_holds_it() {
    let ours = LogId([9; 16]);
    let [theirs, own] = [location(1), location(9)];
    let ids = [ChunkId([1; 32]), ChunkId([9; 32])];
    let mut known = applied(MemoryIndex::from([(ids[0], theirs)]));
    known.saw(0, Sighting::There(theirs.target));
    known.built_of(own.target, vec![(ids[1], own)]);
    assert_eq!(known.lookup(ours, &ids), [Some(theirs), Some(own)]);
    known.apply(open(5, [theirs.target, own.target]));
    assert_eq!(known.lookup(ours, &ids), [None, None]);
    // We hear late that ours is committed: it was condemned since.
    known.committed(ours, own.target.slot);
    assert_eq!(known.lookup(ours, &ids), [None, None]);
    // What was applied is not taken back by an older word.
    known.apply(open(4, []));
    assert_eq!(
        (known.lookup(ours, &ids), known.applied()),
        (vec![None, None], Some(open(5, []).at))
    );
    // Spared or swept: that is for a look to say.
    known.apply(open(7, []));
    assert_eq!(known.lookup(ours, &ids[..1]), [None]);
    assert_eq!(known.take_unseen(9), (1, vec![theirs.target]));
    known.saw(1, Sighting::There(theirs.target));
    assert_eq!(known.lookup(ours, &ids[..1]), [Some(theirs)]);
}

/// It is held elsewhere too: what is condemned keeps that from nobody.
#[test]
fn a_chunk_that_is_condemned_is_learnt_where_else_it_is() {
    let (id, condemned, elsewhere) = (ChunkId([1; 32]), location(1), location(2));
    let mut known = applied(MemoryIndex::from([(id, condemned)]));
    known.apply(open(1, [condemned.target]));
    assert!(known.learn_run(1, &[(id, elsewhere)]));
    known.saw(0, Sighting::There(elsewhere.target));
    assert_eq!(known.lookup(LogId([9; 16]), &[id]), [Some(elsewhere)]);
}

/// S25: what the index knows was true once.
#[test]
fn a_segment_is_referred_to_only_once_it_was_seen() {
    let (id, at) = (ChunkId([1; 32]), location(1));
    let mut known = applied(MemoryIndex::from([(id, at)]));
    let ours = LogId([9; 16]);
    assert_eq!(known.lookup(ours, &[id]), [None]);
    assert_eq!(known.take_unseen(9), (0, vec![at.target]));
    known.saw(0, Sighting::There(at.target));
    assert_eq!(known.lookup(ours, &[id]), [Some(at)]);

    let mut known = applied(MemoryIndex::from([(id, at)]));
    known.saw(0, Sighting::Gone(at.target));
    assert_eq!((known.lookup(ours, &[id]), known.is_unseen()), (vec![None], false));
    // It is held elsewhere: what is gone keeps that from nobody.
    let elsewhere = location(2);
    assert!(known.learn_run(1, &[(id, elsewhere)]));
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
    let mut index = Index::open(dir.path(), vault).unwrap();
    index.clear(Condemned::default()).unwrap();
    index.insert(&held_chunks(target, &table(&[1, 2]))).unwrap();
    drop(index);

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
    let mut known = applied(Full { known: MemoryIndex::default(), takes: 1 });
    let of = |byte: u8| [(ChunkId([byte; 32]), location(byte))];
    assert!(known.learn_run(0, &of(1)));
    assert!(!known.learn_run(0, &of(2)));
    assert_eq!(known.count(), 1);
}

/// A put that was sent twice brings back what was swept.
#[test]
fn what_was_swept_is_refused_until_nothing_that_is_known_names_it() {
    let (id, at, ours) = (ChunkId([1; 32]), location(1), LogId([9; 16]));
    let mut known = applied(MemoryIndex::from([(id, at)])).clearing_at(2);
    known.apply(judged(4, [at.target]));
    known.saw(0, Sighting::There(at.target));
    assert_eq!(known.lookup(ours, &[id]), [None]);
    assert!(!known.is_clearing(), "it is not worth it yet");
    assert_eq!((known.known_behind(), known.count()), (Some(0), 1));
    // A run of somebody who had not applied that names it.
    assert!(known.learn_run(3, &[(id, at), (ChunkId([2; 32]), location(2))]));
    known.saw(0, Sighting::There(location(2).target));
    assert_eq!(known.lookup(ours, &[id, ChunkId([2; 32])]), [None, Some(location(2))]);
    known.apply(judged(7, [at.target, location(3).target]));
    assert!(known.is_clearing());
    clear(&mut known);
    assert_eq!((known.known_behind(), known.count()), (Some(7), 1), "it is not known any more");
    // So it need not be refused any more: but nothing that may name it is learnt.
    known.apply(judged(8, []));
    assert!(!known.learn_run(6, &[(id, at)]));
    assert_eq!(known.lookup(ours, &[id]), [None]);
    assert!(known.learn_run(7, &[]));
    assert!(known.learn_run(9, &[]), "who wrote it is ahead of us");
}

/// Without the register nobody knows what a run names that was swept.
#[test]
fn no_run_is_learnt_before_the_register_was_read() {
    let mut known = Known::new(MemoryIndex::default());
    assert!(!known.learn_run(9, &[]));
    known.apply(Arc::new(Condemned { behind: 4, ..Condemned::clone(&open(5, [])) }));
    assert!(!known.learn_run(3, &[]) && known.learn_run(4, &[]));
}

/// What a start finds in its log's end may be judged and swept before it is told: who reads the register since before that keeps it in mind.
#[test]
fn what_was_learnt_before_the_register_was_applied_is_refused_until_the_index_is_cleared() {
    let (id, at, ours) = (ChunkId([1; 32]), location(1), LogId([9; 16]));
    let mut known = Known::new(MemoryIndex::default());
    known.learn_of(at.target, &[(id, at)]);
    known.apply(Arc::new(Condemned { behind: 3, ..Condemned::clone(&judged(5, [at.target])) }));
    assert_eq!(known.known_behind(), Some(3), "the reader is not to forget what it names yet");
    assert!(known.is_clearing(), "it says nothing yet");
    known.saw(0, Sighting::There(at.target));
    assert_eq!(known.lookup(ours, &[id]), [None]);
    clear(&mut known);
    assert_eq!((known.known_behind(), known.count()), (Some(5), 0));
}

/// Who left the register out has logs that it does not know.
#[test]
fn a_register_that_is_left_out_is_not_applied_again() {
    let (id, at, ours) = (ChunkId([1; 32]), location(1), LogId([9; 16]));
    let mut known = applied(MemoryIndex::from([(id, at)]));
    known.saw(0, Sighting::There(at.target));
    assert_eq!(known.lookup(ours, &[id]), [Some(at)]);
    known.leave_out();
    for number in [0, 7] {
        // It was under way.
        known.apply(open(number, []));
        assert_eq!((known.lookup(ours, &[id]), known.applied()), (vec![None], None));
    }
    assert_eq!(known.take_fresh().applied, At::NONE);
}

/// What another node is told is nothing that was condemned up to the entry that is stated with it.
#[test]
fn a_run_names_nothing_that_its_writer_has_applied() {
    let mut known = applied(MemoryIndex::default());
    let ours = LogId([9; 16]);
    for slot in 1..=3 {
        let target = Target { log: ours, slot: Slot(slot), ..location(9).target };
        let chunk =
            (ChunkId([u8::try_from(slot).unwrap(); 32]), Location { target, ..location(9) });
        known.built_of(target, vec![chunk]);
        known.committed(ours, Slot(slot));
    }
    let at = |slot| Target { slot: Slot(slot), ..location(9).target };
    known.apply(judged(4, [at(1)]));
    known.apply(Arc::new(Condemned { open: [at(2)].into(), ..Condemned::clone(&judged(5, [])) }));
    let told = known.take_fresh();
    let slots: Vec<Slot> = told.chunks.iter().map(|(_, at)| at.target.slot).collect();
    assert_eq!((told.applied.number, slots), (5, vec![Slot(3)]));
    assert_eq!(Known::new(MemoryIndex::default()).take_fresh(), Run::default());
}

#[test]
fn an_index_that_cannot_be_cleared_is_not_cleared_again() {
    let mut known = applied(MemoryIndex::from([(ChunkId([1; 32]), location(1))])).clearing_at(1);
    known.apply(judged(2, [location(1).target]));
    assert!(known.is_clearing());
    known.synced(Err(IndexError::Full { what: "entries", max: 1 }));
    known.apply(judged(3, [location(1).target]));
    assert!(!known.is_clearing(), "what could not be made durable may seem so the next time");
    assert_eq!(known.known_behind(), Some(0));
}
