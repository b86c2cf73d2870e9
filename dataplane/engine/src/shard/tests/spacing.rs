//! How many segments a shard makes, and what idle sessions say.

use super::share::journal;
use super::*;
use crate::gathering::next_mark;
use farshore_proto::mark::{Mark, MarkGroup};

const INTERVAL_MS: u32 = 5000;

/// One of many volumes, with its session.
fn nth(number: u64) -> (VolumeId, SessionId) {
    (VolumeId([u8::try_from(10 + number).unwrap(); 16]), SessionId(10 + number))
}

impl Bench {
    fn open_nth(&mut self, number: u64) {
        let (volume, session) = nth(number);
        let hello = Hello { volume, mark_interval_ms: INTERVAL_MS, ..self.hello(1) };
        self.greet(session, hello, Some(Epoch(1)));
        self.step(Input::Claimed { volume, outcome: Ok((Seq(0), Stamp::default())) });
    }

    fn mark_nth(&mut self, number: u64, seq: u64, is_prompt: bool) -> Vec<Output> {
        let mut point = [0; 16];
        point[..8].copy_from_slice(&seq.to_be_bytes());
        point[8..].copy_from_slice(&number.to_be_bytes());
        let (point, kind) = (PointId(point), MarkKind::Crash);
        let change = Change::Mark(Mark {
            point,
            kind,
            unknown_blocks: 0,
            is_prompt,
            time_unix_ms: 7,
            group: MarkGroup::ALONE,
        });
        self.handles += 1;
        let (session, handle) = (nth(number).1, Handle(self.handles));
        let stamp = Stamp::default();
        self.step(Input::Frame {
            link: Link::default(),
            session,
            seq: Seq(seq),
            stamp,
            change,
            handle,
            bytes: 32,
        })
    }

    fn write_nth(&mut self, number: u64, seq: u64) -> Vec<Output> {
        self.handles += 1;
        let (session, handle) = (nth(number).1, Handle(self.handles));
        let change = Change::Write(BlockRange { block: seq % 64, count: 1 });
        self.step(Input::Frame {
            link: Link::default(),
            session,
            seq: Seq(seq),
            stamp: Stamp::default(),
            change,
            handle,
            bytes: BLOCK_BYTES,
        })
    }

    /// Carries out everything at once; notes when segments were built, and gives the acks.
    fn complete(
        &mut self,
        mut out: Vec<Output>,
        groups: &mut u64,
        segments: &mut Vec<u64>,
        ms: u64,
    ) -> Vec<(SessionId, Ack)> {
        let mut acked = Vec::new();
        while !out.is_empty() {
            for output in std::mem::take(&mut out) {
                match output {
                    Output::Journal { group, .. } => {
                        *groups = group;
                        out.extend(self.step(Input::GroupDone { group, file: 0 }));
                    }
                    Output::Build { slot, .. } => {
                        segments.push(ms);
                        out.extend(self.step(Input::PutDone { slot }));
                    }
                    Output::Ack { session, ack } => acked.push((session, ack)),
                    _ => {}
                }
            }
        }
        acked
    }

    /// Carries out everything at once; returns how many segments were built.
    fn carry_out(&mut self, out: Vec<Output>, groups: &mut u64) -> usize {
        let out = journal(self, out, groups);
        let slots: Vec<u64> = built(&out).into_iter().map(|(slot, _)| slot).collect();
        for slot in &slots {
            self.step(Input::PutDone { slot: Slot(*slot) });
        }
        slots.len()
    }
}

/// H6: one segment per half interval, however many volumes set marks, and whenever.
#[test]
fn marks_of_many_volumes_share_segments() {
    const VOLUMES: u64 = 100;
    const MINUTE_MS: u64 = 60_000;
    let mut bench = Bench::with(Settings::default());
    (0..VOLUMES).for_each(|number| bench.open_nth(number));
    let (mut groups, mut segments) = (0, 0);
    let mut seqs: Vec<u64> = (0..VOLUMES).map(|_| 0).collect();
    for ms in (0..MINUTE_MS).step_by(10) {
        bench.now = Timestamp(1000 + ms);
        let out = bench.step(Input::Tick);
        segments += bench.carry_out(out, &mut groups);
        for number in 0..VOLUMES {
            let phase = number * 7919 % u64::from(INTERVAL_MS) / 10 * 10;
            if ms % u64::from(INTERVAL_MS) == phase {
                let seq = &mut seqs[usize::try_from(number).unwrap()];
                *seq += 1;
                let out = bench.mark_nth(number, *seq, false);
                segments += bench.carry_out(out, &mut groups);
            }
        }
    }
    let half_intervals = usize::try_from(MINUTE_MS * 2 / u64::from(INTERVAL_MS)).unwrap();
    assert!(
        segments <= half_intervals + 1,
        "{segments} segments in {half_intervals} half intervals"
    );
    assert!(segments >= half_intervals / 2, "{segments} segments: points wait too long");
    let waiting = (0..VOLUMES).map(|number| {
        let stream = bench.shard.stream(nth(number).0).unwrap();
        stream.received().0 - stream.committed().0
    });
    assert!(waiting.max().unwrap() <= 1, "no mark waits for more than the next one");
}

/// An agent that keeps to the word of its node.
struct Obedient {
    seq: u64,
    due: Timestamp,
    gathers_at: Option<Timestamp>,
    /// Whether its newest frame is a mark, and whether another is kept over it.
    is_still: bool,
    is_kept: bool,
    /// What it wrote that is not in the vault yet, and when.
    at_risk: Vec<(u64, u64)>,
}

impl Obedient {
    /// Begins somewhere in its first interval.
    fn nth(number: u64) -> Self {
        let due = Timestamp(1000 + number * 7919 % u64::from(INTERVAL_MS) / 10 * 10);
        let (is_still, is_kept) = (false, false);
        Self { seq: 0, due, gathers_at: None, is_still, is_kept, at_risk: Vec::new() }
    }

    fn write(&mut self, bench: &mut Bench, number: u64, ms: u64) -> Vec<Output> {
        let mut out = Vec::new();
        if std::mem::take(&mut self.is_kept) {
            self.seq += 1;
            out.extend(bench.mark_nth(number, self.seq, false));
        }
        self.is_still = false;
        self.seq += 1;
        self.at_risk.push((self.seq, ms));
        out.extend(bench.write_nth(number, self.seq));
        out
    }

    fn mark(&mut self, bench: &mut Bench, number: u64) -> Vec<Output> {
        self.due = next_mark(bench.now, self.due, INTERVAL_MS.into(), self.gathers_at);
        if std::mem::replace(&mut self.is_still, true) {
            self.is_kept = true;
            return Vec::new();
        }
        self.seq += 1;
        bench.mark_nth(number, self.seq, false)
    }
}

/// Segments of each of two minutes, and how long each write waited, when a hundred volumes write so often.
fn of_obedient_sources(write_every_ms: u64) -> ([usize; 2], Vec<u64>) {
    const VOLUMES: u64 = 100;
    const MINUTE_MS: u64 = 60_000;
    let mut bench = Bench::with(Settings::default());
    (0..VOLUMES).for_each(|number| bench.open_nth(number));
    let (mut groups, mut segments, mut waits) = (0, Vec::new(), Vec::new());
    let mut sources: Vec<Obedient> = (0..VOLUMES).map(Obedient::nth).collect();
    for ms in (0..2 * MINUTE_MS).step_by(10) {
        bench.now = Timestamp(1000 + ms);
        let mut out = bench.step(Input::Tick);
        for (number, source) in (0..).zip(&mut sources) {
            if (ms + number * 310).is_multiple_of(write_every_ms) {
                out.extend(source.write(&mut bench, number, ms));
            }
            if source.due <= bench.now {
                out.extend(source.mark(&mut bench, number));
            }
        }
        for (session, ack) in bench.complete(out, &mut groups, &mut segments, ms) {
            let source = &mut sources[usize::try_from(session.0 - 10).unwrap()];
            source.gathers_at = ack.gathers_in_ms.map(|wait| bench.now.plus_ms(wait.into()));
            let safe = source.at_risk.extract_if(.., |(seq, _)| *seq <= ack.committed.0);
            waits.extend(safe.map(|(_, written)| ms - written));
        }
    }
    let minutes =
        [0, 1].map(|minute| segments.iter().filter(|at| **at / MINUTE_MS == minute).count());
    waits.sort_unstable();
    (minutes, waits)
}

/// What agents that keep to the word of the node get: one segment an interval for all of them, from the second minute
/// on, whenever they began. Every volume writes now and then.
#[test]
fn marks_that_come_when_they_are_gathered_share_one_segment_an_interval() {
    let ([first, second], waits) = of_obedient_sources(1700);
    assert!((11..=13).contains(&second), "{second} segments in a minute");
    assert!(first <= 15, "{first} segments in the first minute");
    let p99 = waits[waits.len() * 99 / 100];
    assert!(p99 <= 7000 && waits.len() > 5000, "p99 of {} writes: {p99} ms", waits.len());
}

/// The same of volumes that rest for several intervals between two writes: the mark that an agent kept meanwhile, and
/// puts in front of the write, comes at any time and does not ship what waits.
#[test]
fn marks_that_were_kept_do_not_make_segments_of_their_own() {
    let ([first, second], waits) = of_obedient_sources(20_000);
    assert!((11..=13).contains(&second), "{second} segments in a minute");
    assert!(first <= 20, "{first} segments in the first minute");
    let p99 = waits[waits.len() * 99 / 100];
    assert!(p99 <= 7000 && waits.len() > 500, "p99 of {} writes: {p99} ms", waits.len());
}

#[test]
fn a_mark_behind_a_mark_ships_what_waits_until_something_follows_it() {
    let mut bench = Bench::with(Settings::default());
    bench.open_nth(0);
    let mut groups = 0;
    let out = bench.mark_nth(0, 1, false);
    bench.carry_out(out, &mut groups);
    bench.now = bench.now.plus_ms(2000);
    let out = bench.step(Input::Tick);
    assert_eq!(bench.carry_out(out, &mut groups), 1);
    bench.now = bench.now.plus_ms(20_000);
    let due_in = |bench: &Bench| bench.shard.next_deadline().unwrap().since_ms(bench.now);
    let out = bench.mark_nth(0, 2, false);
    bench.carry_out(out, &mut groups);
    assert_eq!(due_in(&bench), 1000, "as any other: an agent's last one is such");
    let out = bench.write_nth(0, 3);
    bench.carry_out(out, &mut groups);
    assert_eq!(due_in(&bench), u64::from(INTERVAL_MS) + 1000, "with the next mark");
    let out = bench.mark_nth(0, 4, false);
    bench.carry_out(out, &mut groups);
    assert_eq!(due_in(&bench), 1000, "which is behind a write");
}

/// H6: somebody who waits gets a segment at once, but not one for each word.
#[test]
fn prompt_marks_without_end_do_not_make_a_segment_each() {
    let mut bench = Bench::with(Settings::default());
    bench.open_nth(0);
    let (mut groups, mut segments) = (0, 0);
    for number in 0..100 {
        let out = bench.mark_nth(0, number + 1, true);
        let built = bench.carry_out(out, &mut groups);
        assert!(built == 1 || number > 0, "the first is on its way at once");
        segments += built;
        bench.now = bench.now.plus_ms(100);
        let out = bench.step(Input::Tick);
        segments += bench.carry_out(out, &mut groups);
    }
    assert!((4..=5).contains(&segments), "{segments} segments in ten seconds");
}

#[test]
fn a_session_that_says_that_it_is_there_is_answered() {
    let mut bench = Bench::welcomed();
    assert_eq!(acks(&bench.step(Input::Alive { session: SESSION })), [(0, 0)]);
    assert!(bench.step(Input::Alive { session: SessionId(9) }).is_empty(), "nobody is there");
    assert!(bench.shard.is_settled());
}

/// H6: a shard that stops ships at once what comes in meanwhile, however lately the segment before was closed.
#[test]
fn a_shard_that_stops_does_not_wait_for_its_spacing() {
    let mut bench = Bench::with(Settings::default());
    bench.open_nth(0);
    let mut groups = 0;
    let out = bench.mark_nth(0, 1, false);
    bench.carry_out(out, &mut groups);
    let out = bench.step(Input::Ship);
    assert_eq!(bench.carry_out(out, &mut groups), 1);
    let mut out = bench.mark_nth(0, 2, false);
    out.extend(bench.step(Input::Tick));
    assert_eq!(bench.carry_out(out, &mut groups), 1);
}
