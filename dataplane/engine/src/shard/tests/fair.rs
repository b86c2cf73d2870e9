//! Volumes beside each other on a slow store: what is in the next segment.

use super::share::journal;
use super::*;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;

const INTERVAL_MS: u32 = 5000;
/// Blocks of a batch, and of the cache: as many batches as a large cache has.
const BATCH: usize = 16;
const CACHE: usize = 64 * BATCH;

fn volume(number: u64) -> VolumeId {
    VolumeId((u128::from(number) + 1).to_le_bytes())
}

/// Sessions that write, and a store that is slow: it is told when a put ends.
struct Slow {
    bench: Bench,
    groups: u64,
    seqs: BTreeMap<u64, u64>,
    puts: VecDeque<Slot>,
    lasts: BTreeMap<VolumeId, Seq>,
    /// Segments that were built, put or not: last seq of each volume, and blocks.
    built: Vec<(BTreeMap<VolumeId, Seq>, usize)>,
}

impl Slow {
    fn with(volumes: u64, settings: Settings) -> Self {
        let mut slow = Self {
            bench: Bench::with(settings),
            groups: 0,
            seqs: BTreeMap::new(),
            puts: VecDeque::new(),
            lasts: BTreeMap::new(),
            built: Vec::new(),
        };
        (0..volumes).for_each(|number| slow.open(number));
        slow
    }

    fn new(volumes: u64) -> Self {
        let batch = Limits { bytes: BATCH * BLOCK_BYTES, ..Limits::default() };
        let cache_bytes = CACHE * BLOCK_BYTES;
        Self::with(volumes, Settings { cache_bytes, batch, ..Settings::default() })
    }

    fn open(&mut self, number: u64) {
        let hello =
            Hello { volume: volume(number), mark_interval_ms: INTERVAL_MS, ..self.bench.hello(1) };
        self.bench.greet(SessionId(number), hello, Some(Epoch(1)));
        let outcome = Ok((Seq(0), Stamp::default()));
        self.bench.step(Input::Claimed { volume: volume(number), outcome });
    }

    fn take(&mut self, out: Vec<Output>) {
        let out = journal(&mut self.bench, out, &mut self.groups);
        for output in out {
            assert!(!matches!(output, Output::Pause | Output::Drop { .. } | Output::Refuse { .. }));
            if let Output::Build { slot, spans, .. } = output {
                for span in &spans {
                    let last = self.lasts.insert(span.volume, span.last_seq).unwrap_or(Seq(0));
                    assert_eq!(last.next(), span.first_seq, "out of order");
                }
                let lasts = spans.iter().map(|span| (span.volume, span.last_seq)).collect();
                let blocks = spans.iter().flat_map(|span| &span.pieces);
                let blocks = blocks.map(|piece| piece.range.count).sum::<u64>();
                self.built.push((lasts, usize::try_from(blocks).unwrap()));
                self.puts.push_back(slot);
            }
        }
    }

    fn send(&mut self, number: u64, change: Change, bytes: usize) -> Seq {
        let seq = self.seqs.entry(number).or_default();
        *seq += 1;
        let seq = Seq(*seq);
        self.bench.handles += 1;
        let handle = Handle(self.bench.handles);
        let (session, stamp, link) = (SessionId(number), Stamp::default(), Link::default());
        let out =
            self.bench.step(Input::Frame { link, session, seq, stamp, change, handle, bytes });
        self.take(out);
        seq
    }

    /// Writes blocks that it did not write lately, so that each is a piece.
    fn write(&mut self, number: u64, count: u64) -> Seq {
        let at = self.seqs.get(&number).copied().unwrap_or(0) * 2 % (SIZE_BLOCKS - count);
        let bytes = usize::try_from(count).unwrap() * BLOCK_BYTES;
        self.send(number, Change::Write(BlockRange { block: at, count }), bytes)
    }

    fn mark(&mut self, number: u64, is_prompt: bool) -> Seq {
        let point = u128::from(self.bench.handles) + 1;
        self.send(number, mark(point, is_prompt), 32)
    }

    /// A backlog of so much as the cache lets these have.
    fn fill(&mut self, numbers: std::ops::Range<u64>, count: u64) {
        while numbers.clone().any(|number| !self.bench.shard.is_held(SessionId(number))) {
            for number in numbers.clone() {
                if !self.bench.shard.is_held(SessionId(number)) {
                    self.write(number, count);
                }
            }
        }
    }

    /// The store has taken one more segment.
    fn put(&mut self) {
        let slot = self.puts.pop_front().expect("something is on its way");
        let out = self.bench.step(Input::PutDone { slot });
        self.take(out);
    }

    fn committed(&self, number: u64) -> Seq {
        self.bench.shard.stream(volume(number)).unwrap().committed()
    }
}

/// H5, P45: a first copy fills segment after segment, and refills as fast as the cache lets it.
#[test]
fn what_a_small_volume_says_is_in_the_next_segment_that_is_built() {
    let mut slow = Slow::new(2);
    slow.fill(0..1, 1);
    for round in 0..20 {
        let before = slow.built.len();
        assert!(!slow.bench.shard.is_held(SessionId(1)));
        slow.write(1, 1);
        let mark = slow.mark(1, round % 2 == 1);
        slow.put();
        let (lasts, blocks) = &slow.built[before];
        assert_eq!(lasts.get(&volume(1)), Some(&mark), "it waits behind another");
        assert!(*blocks >= BATCH, "the rest is the other's");
        slow.fill(0..1, 1);
        for _ in 0..PUTS_IN_FLIGHT_MAX {
            assert!(slow.committed(1) < mark);
            slow.put();
            slow.fill(0..1, 1);
        }
        assert_eq!(slow.committed(1), mark, "with what was on its way before");
    }
}

/// The same with the sizes of a node: 32 first copies of large frames, which have to be left whole.
#[test]
fn many_small_volumes_are_not_behind_many_large_ones() {
    const LARGE: u64 = 32;
    const SMALL: u64 = 1000;
    let mut slow = Slow::with(LARGE + SMALL, Settings::default());
    slow.fill(0..LARGE, 256);
    for _ in 0..6 {
        let before = slow.built.len();
        let mut marks = BTreeMap::new();
        for number in LARGE..LARGE + SMALL {
            slow.write(number, 1);
            marks.insert(volume(number), slow.mark(number, false));
        }
        slow.put();
        let (lasts, _) = &slow.built[before];
        let late = marks.iter().filter(|(id, mark)| lasts.get(id) != Some(mark)).count();
        assert_eq!(late, 0, "of {SMALL} small ones");
        assert!(lasts.len() > marks.len() + 20, "the large ones have the rest");
        slow.fill(0..LARGE, 256);
    }
    let fronts: Vec<u64> = (0..LARGE).map(|number| slow.lasts[&volume(number)].0).collect();
    let (least, most) = (fronts.iter().min().unwrap(), fronts.iter().max().unwrap());
    assert!(most - least <= 4, "large ones go on alike: {least} to {most}");
}

/// A segment may be full of pieces that have no bytes, each of which makes three of another.
#[test]
fn a_volume_of_very_many_extents_does_not_fill_segments_alone() {
    let limits = Limits { bytes: BATCH * BLOCK_BYTES, pieces: 64, ..Limits::default() };
    let cache_bytes = CACHE * BLOCK_BYTES;
    let mut slow = Slow::with(2, Settings { cache_bytes, batch: limits, ..Settings::default() });
    while !slow.bench.shard.is_held(SessionId(0)) {
        let at = slow.bench.handles % 40;
        let range = match at {
            0 => BlockRange { block: 0, count: SIZE_BLOCKS },
            _ => BlockRange { block: at * 2, count: 1 },
        };
        slow.send(0, Change::Zero(range), 0);
    }
    let before = slow.built.len();
    slow.write(1, 1);
    let mark = slow.mark(1, false);
    slow.put();
    assert_eq!(slow.built[before].0.get(&volume(1)), Some(&mark));
}

/// H6: what a full segment had no room for does not make a small one at once.
#[test]
fn the_rest_behind_a_full_segment_is_half_an_interval_behind_it() {
    let mut slow = Slow::new(1);
    for _ in 0..BATCH * (PUTS_IN_FLIGHT_MAX + 1) + BATCH / 2 {
        slow.write(0, 1);
    }
    assert_eq!(slow.built.len(), PUTS_IN_FLIGHT_MAX);
    slow.bench.now = slow.bench.now.plus_ms(30_000);
    slow.put();
    slow.put();
    assert_eq!(slow.built.len(), PUTS_IN_FLIGHT_MAX + 1, "a whole one, and no more");
    let due = slow.bench.shard.next_deadline().unwrap();
    assert_eq!(due.since_ms(slow.bench.now), u64::from(INTERVAL_MS) / 2);
    let out = slow.bench.later(u64::from(INTERVAL_MS) / 2);
    slow.take(out);
    assert_eq!(slow.built.last().unwrap().1, BATCH / 2);
    assert_eq!(slow.lasts[&volume(0)].0, slow.seqs[&0], "all of it");
}
