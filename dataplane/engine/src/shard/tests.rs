use super::*;
use crate::batch::Limits;
use crate::batch::tests::mark;
use crate::ledger::Ledger;
use farshore_proto::{BlockRange, MarkKind, PointId};

mod answer;
mod checkpoint;
mod contest;
mod fair;
mod hostile;
mod share;
mod spacing;

const SIZE_BLOCKS: u64 = 1024;
const VOLUME: VolumeId = VolumeId([1; 16]);
const SESSION: SessionId = SessionId(1);

/// A driver for tests: keeps all outputs, completes nothing by itself.
struct Bench {
    shard: Shard,
    now: Timestamp,
    out: Vec<Output>,
    handles: u64,
    seq: Seq,
}

impl Bench {
    /// With no least distance between segments, which most tests are not about.
    fn new() -> Self {
        Self::with(Settings { spacing_ms: 0, ..Settings::default() })
    }

    fn with(settings: Settings) -> Self {
        Self {
            shard: Shard::new(
                settings,
                LogEnd::new(Slot(0), 1, BTreeSet::new(), Ledger::default()),
            ),
            now: Timestamp(1000),
            out: Vec::new(),
            handles: 0,
            seq: Seq(0),
        }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        self.shard.step(self.now, input, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn hello(&self, epoch: u64) -> Hello {
        Hello {
            volume: VOLUME,
            epoch: Epoch(epoch),
            size_bytes: SIZE_BLOCKS * BLOCK_BYTES as u64,
            first_seq: Seq(1),
            last_seq: self.seq,
            mark_interval_ms: 1000,
            life: 1,
            is_overtaken: false,
        }
    }

    fn connect(&mut self, session: SessionId, epoch: u64) -> Vec<Output> {
        let hello = self.hello(epoch);
        self.greet(session, hello, Some(Epoch(epoch)))
    }

    fn greet(&mut self, session: SessionId, hello: Hello, assigned: Option<Epoch>) -> Vec<Output> {
        let from = format!("agent {}", hello.life);
        self.step(Input::Hello { session, hello, assigned, from })
    }

    /// A session that has been welcomed on a new volume.
    fn welcomed() -> Self {
        let mut bench = Self::new();
        bench.open();
        bench
    }

    fn open(&mut self) {
        let out = self.connect(SESSION, 1);
        assert!(matches!(out[..], [Output::Claim { volume: VOLUME, .. }]), "{out:?}");
        let out =
            self.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
        assert!(matches!(out[..], [Output::Welcome { .. }]), "{out:?}");
    }

    fn frame(&mut self, change: Change, bytes: usize) -> Vec<Output> {
        self.seq = self.seq.next();
        self.handles += 1;
        let input = Input::Frame {
            link: Link::default(),
            session: SESSION,
            seq: self.seq,
            stamp: Stamp { life: 1, generation: 1 },
            change,
            handle: Handle(self.handles),
            bytes,
        };
        self.step(input)
    }

    fn write(&mut self, block: u64, count: u64) -> Vec<Output> {
        let bytes = usize::try_from(count).unwrap() * BLOCK_BYTES;
        self.frame(Change::Write(BlockRange { block, count }), bytes)
    }

    fn mark(&mut self, is_prompt: bool) -> Vec<Output> {
        let point = u128::from_be_bytes([u8::try_from(self.seq.0 + 1).unwrap(); 16]);
        self.frame(mark(point, is_prompt), 32)
    }

    fn later(&mut self, ms: u64) -> Vec<Output> {
        self.now = self.now.plus_ms(ms);
        self.step(Input::Tick)
    }
}

fn journaled(out: &[Output]) -> Vec<u64> {
    let groups = out.iter().filter_map(|output| match output {
        Output::Journal { entries, .. } => Some(entries.iter().map(|entry| entry.seq.0)),
        _ => None,
    });
    groups.flatten().collect()
}

fn acks(out: &[Output]) -> Vec<(u64, u64)> {
    out.iter()
        .filter_map(|output| match output {
            Output::Ack { ack, .. } => Some((ack.journaled.0, ack.committed.0)),
            _ => None,
        })
        .collect()
}

/// A built segment: its slot, and first seq, last seq and "ends with a mark" of each span.
type Built = (u64, Vec<(u64, u64, bool)>);

fn built(out: &[Output]) -> Vec<Built> {
    out.iter()
        .filter_map(|output| match output {
            Output::Build { slot, spans, .. } => Some((
                slot.0,
                spans
                    .iter()
                    .map(|span| (span.first_seq.0, span.last_seq.0, span.mark.is_some()))
                    .collect(),
            )),
            _ => None,
        })
        .collect()
}

fn refused(out: &[Output]) -> Vec<RefusalReason> {
    out.iter()
        .filter_map(|output| match output {
            Output::Refuse { reason, .. } => Some(*reason),
            _ => None,
        })
        .collect()
}

#[test]
fn acks_journaled_only_after_the_group_is_durable() {
    let mut bench = Bench::welcomed();
    let out = bench.write(0, 1);
    assert_eq!(journaled(&out), [1]);
    assert!(acks(&out).is_empty(), "an ack before the flush");
    // What comes while a group is being written waits for the next.
    assert!(journaled(&bench.write(1, 1)).is_empty());
    assert!(journaled(&bench.write(2, 1)).is_empty());
    let out = bench.step(Input::GroupDone { group: 1, file: 0 });
    assert_eq!(acks(&out), [(1, 0)]);
    assert_eq!(journaled(&out), [2, 3]);
    let out = bench.step(Input::GroupDone { group: 2, file: 0 });
    assert_eq!(acks(&out), [(3, 0)]);
}

#[test]
fn a_mark_ends_its_span_and_closes_the_batch_after_the_linger() {
    let mut bench = Bench::welcomed();
    bench.write(0, 2);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    bench.mark(false);
    bench.write(0, 1);
    let out = bench.step(Input::GroupDone { group: 2, file: 0 });
    assert!(built(&out).is_empty(), "the linger was skipped");
    bench.step(Input::GroupDone { group: 3, file: 0 });
    let out = bench.later(250);
    assert_eq!(built(&out), [(0, vec![(1, 2, true), (3, 3, false)])]);
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    assert_eq!(acks(&out), [(3, 3)]);
    assert!(bench.shard.is_settled());
}

#[test]
fn a_prompt_mark_ships_at_once() {
    let mut bench = Bench::welcomed();
    bench.mark(true);
    let out = bench.step(Input::GroupDone { group: 1, file: 0 });
    assert_eq!(built(&out), [(0, vec![(1, 1, true)])]);
}

#[test]
fn commits_in_slot_order_whatever_the_store_does() {
    let mut bench = Bench::welcomed();
    for group in 1..=2 {
        bench.mark(true);
        bench.step(Input::GroupDone { group, file: 0 });
    }
    assert!(acks(&bench.step(Input::PutDone { slot: Slot(1) })).is_empty(), "past a hole");
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    assert_eq!(acks(&out), [(2, 1), (2, 2)]);
}

#[test]
fn drops_a_journal_file_only_when_all_of_it_is_committed() {
    let mut bench = Bench::welcomed();
    bench.write(0, 1);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    bench.mark(true);
    let out = bench.step(Input::GroupDone { group: 2, file: 1 });
    assert_eq!(built(&out).len(), 1);
    assert!(!out.iter().any(|output| matches!(output, Output::DropJournal { .. })));
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    assert!(out.contains(&Output::DropJournal { file: 0 }), "{out:?}");
    assert!(!out.contains(&Output::DropJournal { file: 1 }), "the current file goes on");
}

#[test]
fn refuses_gaps_blocks_beyond_the_end_and_strangers() {
    let mut bench = Bench::welcomed();
    bench.seq = Seq(4);
    assert_eq!(refused(&bench.write(0, 1)), [RefusalReason::Protocol]);
    // The session is over: what it still sends is dropped without another word.
    let out = bench.write(0, 1);
    assert!(matches!(out[..], [Output::Drop { .. }]), "{out:?}");

    let mut bench = Bench::welcomed();
    assert_eq!(refused(&bench.write(SIZE_BLOCKS, 1)), [RefusalReason::Protocol]);

    let mut bench = Bench::new();
    let hello = bench.hello(1);
    for (assigned, reason) in [
        (None, RefusalReason::NotAssigned),
        (Some(Epoch(2)), RefusalReason::Fenced),
        (Some(Epoch(0)), RefusalReason::Unavailable),
    ] {
        let out = bench.greet(SESSION, hello, assigned);
        assert_eq!(refused(&out), [reason]);
    }
}

#[test]
fn a_reconnecting_agent_goes_on_where_the_node_is() {
    let mut bench = Bench::welcomed();
    bench.write(0, 1);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    let out = bench.connect(SessionId(2), 1);
    assert_eq!(refused(&out), [RefusalReason::Overtaken], "the old session ends");
    let welcomes: Vec<Seq> = out
        .iter()
        .filter_map(|output| match output {
            Output::Welcome { session: SessionId(2), welcome } => Some(welcome.received),
            _ => None,
        })
        .collect();
    assert_eq!(welcomes, [Seq(1)]);
}

#[test]
fn an_agent_whose_log_begins_too_late_is_told_so() {
    let mut bench = Bench::welcomed();
    let hello = Hello { first_seq: Seq(5), last_seq: Seq(9), ..bench.hello(1) };
    let out = bench.greet(SessionId(2), hello, Some(Epoch(1)));
    assert_eq!(refused(&out), [RefusalReason::Gap]);
}

#[test]
fn a_newer_epoch_waits_until_the_old_one_is_in_the_vault() {
    let mut bench = Bench::welcomed();
    bench.write(0, 1);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    let out = bench.connect(SessionId(2), 2);
    assert_eq!(refused(&out), [RefusalReason::Unavailable]);
    assert_eq!(built(&out).len(), 1, "shipped at once");
    bench.step(Input::PutDone { slot: Slot(0) });
    let out = bench.connect(SessionId(3), 2);
    assert_eq!(refused(&out), [RefusalReason::Fenced], "the session of the old epoch ends");
    assert!(matches!(out[..], [_, Output::Claim { epoch: Epoch(2), .. }]), "{out:?}");
    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(1), Stamp::default())) });
    assert!(matches!(out[..], [Output::Welcome { .. }]), "{out:?}");
    let out = bench.connect(SessionId(4), 1);
    assert_eq!(refused(&out), [RefusalReason::Fenced]);
    let passed = Output::Passed { volume: VOLUME, newest: Epoch(2) };
    assert!(out.contains(&passed), "C8: the control plane gave an epoch that is over");
}

#[test]
fn replays_what_the_vault_does_not_hold_and_drops_the_rest() {
    let mut bench = Bench::new();
    bench.step(Input::Recovered {
        volume: VOLUME,
        epoch: Epoch(1),
        size_bytes: SIZE_BLOCKS * 4096,
        committed: (Seq(5), Stamp::default()),
    });
    let entry = |seq: u64| Entry {
        imprint: Imprint::default(),
        volume: VOLUME,
        epoch: Epoch(1),
        seq: Seq(seq),
        stamp: Stamp::default(),
        change: Change::Write(BlockRange { block: 0, count: 1 }),
        handle: Handle(seq),
        bytes: BLOCK_BYTES,
    };
    let out = bench.step(Input::Replay { entry: entry(5), file: 3 });
    assert_eq!(out, [Output::Drop { handle: Handle(5) }]);
    assert!(bench.step(Input::Replay { entry: entry(6), file: 4 }).is_empty());
    let out = bench.step(Input::Replayed { files: vec![3, 4] });
    assert_eq!(out, [Output::DropJournal { file: 3 }]);
    let out = bench.later(5000);
    assert_eq!(built(&out), [(0, vec![(6, 6, false)])]);
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    assert!(out.contains(&Output::DropJournal { file: 4 }));
    let stream = bench.shard.stream(VOLUME).unwrap();
    assert_eq!((stream.received(), stream.committed()), (Seq(6), Seq(6)));
}

#[test]
fn a_full_cache_stops_reading_and_ships() {
    let mut bench = Bench::with(Settings { cache_bytes: 8 * BLOCK_BYTES, ..Settings::default() });
    bench.open();
    let (mut held, mut paused) = (false, false);
    let mut group = 0;
    let mut slots = Vec::new();
    for _ in 0..8 {
        let mut out = bench.write(0, 1);
        if !journaled(&out).is_empty() {
            group += 1;
            out.extend(bench.step(Input::GroupDone { group, file: 0 }));
        }
        held |= out.contains(&Output::Hold { session: SESSION });
        paused |= out.contains(&Output::Pause);
        slots.extend(built(&out).into_iter().map(|(slot, _)| slot));
        assert!(slots.is_empty() || held, "nothing is shipped before its time");
    }
    assert!(held && paused);
    slots.extend(built(&bench.step(Input::Tick)).into_iter().map(|(slot, _)| slot));
    let mut resumed = false;
    for slot in slots {
        resumed |= bench.step(Input::PutDone { slot: Slot(slot) }).contains(&Output::Resume);
    }
    assert!(resumed);
}

#[test]
fn at_most_four_puts_are_on_their_way_and_batches_grow_meanwhile() {
    let mut bench = Bench::welcomed();
    let mut slots = Vec::new();
    for group in 1..=8 {
        bench.mark(true);
        slots.extend(built(&bench.step(Input::GroupDone { group, file: 0 })));
    }
    assert_eq!(slots.len(), 4);
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    // The four marks that waited leave together.
    assert_eq!(built(&out).len(), 1);
    assert_eq!(built(&out)[0].1.len(), 4);
}

#[test]
fn small_limits_make_small_groups_windows_and_batches() {
    let small = Limits { bytes: 2 * BLOCK_BYTES, ..Limits::default() };
    let settings = Settings {
        window_bytes: 3 * BLOCK_BYTES,
        group_bytes: 3 * BLOCK_BYTES,
        batch: small,
        batch_age_ms: 7,
        spacing_ms: 0,
        ..Settings::default()
    };
    let mut bench = Bench::with(settings);
    let out = bench.connect(SESSION, 1);
    assert!(matches!(out[..], [Output::Claim { .. }]));
    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    let is_small = |output: &Output| matches!(output, Output::Welcome { welcome, .. } if welcome.window_bytes == 3 * 4096);
    assert!(out.iter().any(is_small), "{out:?}");
    // A frame that is over the limit of a group alone makes a group of its own.
    assert_eq!(journaled(&bench.write(0, 9)), [1]);
    (0..4).for_each(|block| drop(bench.write(block, 1)));
    let out = bench.step(Input::GroupDone { group: 1, file: 0 });
    assert_eq!(journaled(&out), [2, 3]);
    assert_eq!(built(&out), [(0, vec![(1, 1, false)])], "a full batch leaves at once");
    let out = bench.step(Input::GroupDone { group: 2, file: 0 });
    assert_eq!(built(&out), [(1, vec![(2, 3, false)])]);
    bench.step(Input::GroupDone { group: 3, file: 0 });
    bench.write(9, 1);
    bench.step(Input::GroupDone { group: 4, file: 0 });
    assert!(built(&bench.later(6)).is_empty());
    assert_eq!(built(&bench.later(1)), [(3, vec![(6, 6, false)])]);
}

#[test]
#[should_panic(expected = "a group has a limit")]
fn limits_do_not_grow_beyond_those_of_the_formats() {
    let group_bytes = JOURNAL_GROUP_BYTES_MAX + 1;
    drop(Bench::with(Settings { group_bytes, ..Settings::default() }));
}
