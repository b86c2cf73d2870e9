//! Volumes beside each other: what one fills up, what another still gets; what is refused and forgotten.

use super::*;
use farshore_proto::mark::{Mark, MarkGroup};

const OTHER: VolumeId = VolumeId([2; 16]);
const OTHERS: SessionId = SessionId(2);

impl Bench {
    fn open_other(&mut self) {
        let hello = Hello { volume: OTHER, ..self.hello(1) };
        let out = self.greet(OTHERS, hello, Some(Epoch(1)));
        assert!(matches!(out[..], [Output::Claim { volume: OTHER, .. }]), "{out:?}");
        self.step(Input::Claimed { volume: OTHER, outcome: Ok((Seq(0), Stamp::default())) });
    }

    fn others(&mut self, seq: u64, change: Change, bytes: usize) -> Vec<Output> {
        let (stamp, handle) = (Stamp::default(), Handle(10_000 + seq));
        let (session, seq) = (OTHERS, Seq(seq));
        self.step(Input::Frame {
            link: Link::default(),
            session,
            seq,
            stamp,
            change,
            handle,
            bytes,
        })
    }
}

/// Carries a shard's journal out at once and counts its groups.
pub(super) fn journal(bench: &mut Bench, mut out: Vec<Output>, groups: &mut u64) -> Vec<Output> {
    let mut all = Vec::new();
    while out.iter().any(|output| matches!(output, Output::Journal { .. })) {
        *groups += 1;
        let next = bench.step(Input::GroupDone { group: *groups, file: 0 });
        all.append(&mut out);
        out = next;
    }
    all.append(&mut out);
    all
}

/// H5: the first copy of one volume, with a store that is slower than its agent.
#[test]
fn a_volume_that_fills_the_cache_does_not_hold_another_back() {
    let blocks = 400;
    let settings = Settings { cache_bytes: blocks * BLOCK_BYTES, ..Settings::default() };
    let mut bench = Bench::with(settings);
    bench.open();
    bench.open_other();
    let (mut groups, mut slots, mut is_held) = (0, Vec::new(), false);
    for number in 0.. {
        assert!(number < blocks, "it was never held");
        let out = bench.write(0, 1);
        let out = journal(&mut bench, out, &mut groups);
        assert!(!out.contains(&Output::Pause), "the other still has room");
        slots.extend(built(&out).into_iter().map(|(slot, _)| slot));
        if out.contains(&Output::Hold { session: SESSION }) {
            is_held = true;
            break;
        }
    }
    assert!(is_held && bench.shard.is_held(SESSION) && !bench.shard.is_held(OTHERS));
    // A block and a mark of the other: taken, journaled, and in the next segment.
    let began = bench.now;
    let out = bench.others(1, Change::Write(BlockRange { block: 0, count: 1 }), BLOCK_BYTES);
    let mut out = journal(&mut bench, out, &mut groups);
    let point = PointId([9; 16]);
    let (kind, time_unix_ms) = (MarkKind::Crash, 7);
    let mark = Mark {
        point,
        kind,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms,
        group: MarkGroup::ALONE,
    };
    let marked = bench.others(2, Change::Mark(mark), 32);
    out.extend(journal(&mut bench, marked, &mut groups));
    assert!(!out.iter().any(|output| matches!(output, Output::Drop { .. } | Output::Pause)));
    let mut is_committed = false;
    let mut is_released = false;
    while !is_committed {
        slots.extend(built(&out).into_iter().map(|(slot, _)| slot));
        out = match slots.is_empty() {
            true => bench.later(50),
            false => bench.step(Input::PutDone { slot: Slot(slots.remove(0)) }),
        };
        assert!(bench.now.since_ms(began) <= BATCH_AGE_MS_MAX, "not within the age of a batch");
        is_released |= out.contains(&Output::Release { session: SESSION });
        is_committed = bench.shard.stream(OTHER).unwrap().committed() == Seq(2);
    }
    while !slots.is_empty() {
        let out = bench.step(Input::PutDone { slot: Slot(slots.remove(0)) });
        is_released |= out.contains(&Output::Release { session: SESSION });
    }
    assert!(is_released && !bench.shard.is_held(SESSION), "it goes on");
}

/// Small ones do not take from a large one what they do not use.
#[test]
fn many_small_volumes_do_not_hold_a_large_one() {
    let settings = Settings { cache_bytes: 400 * BLOCK_BYTES, ..Settings::default() };
    let mut bench = Bench::with(settings);
    bench.open();
    bench.open_other();
    let mut groups = 0;
    let out = bench.others(1, Change::Write(BlockRange { block: 0, count: 1 }), BLOCK_BYTES);
    journal(&mut bench, out, &mut groups);
    // More than half of what is shared: its equal share is less.
    for _ in 0..200 {
        let out = bench.write(0, 1);
        let out = journal(&mut bench, out, &mut groups);
        assert!(!out.contains(&Output::Hold { session: SESSION }));
    }
}

#[test]
fn what_could_not_be_restored_is_refused_before_anything_is_taken() {
    let settings = Settings { volume_blocks_max: SIZE_BLOCKS - 1, ..Settings::default() };
    let mut bench = Bench::with(settings);
    let out = bench.connect(SESSION, 1);
    assert_eq!(refused(&out), [RefusalReason::Limit]);
    let [Output::Refuse { text, .. }] = &out[..] else { panic!("{out:?}") };
    assert!(text.contains("cannot be restored"), "{text}");
}

/// A node that lives long sees many volumes come and go.
#[test]
fn volumes_that_were_taken_away_are_forgotten() {
    let mut bench = Bench::new();
    for number in 0..SHARD_VOLUMES_MAX + 10 {
        let number = u64::try_from(number).unwrap();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let (volume, session) = (VolumeId(id), SessionId(number + 100));
        let out = bench.greet(session, Hello { volume, ..bench.hello(1) }, Some(Epoch(1)));
        assert!(matches!(out[..], [Output::Claim { .. }]), "volume {number}: {out:?}");
        bench.step(Input::Claimed { volume, outcome: Ok((Seq(0), Stamp::default())) });
        let out = bench.step(Input::Revoked { volume });
        assert_eq!(refused(&out), [RefusalReason::Unavailable]);
    }
    assert_eq!(bench.shard.streams().count(), 0);
    // What is still on its way to the vault is not forgotten before it is there.
    bench.open();
    bench.write(0, 1);
    bench.step(Input::Revoked { volume: VOLUME });
    assert_eq!(bench.shard.streams().count(), 1);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    assert!(bench.shard.holds(VOLUME));
    bench.step(Input::PutDone { slot: Slot(0) });
    assert_eq!(bench.shard.streams().count(), 0);
    assert!(!bench.shard.holds(VOLUME));
    // If it comes back, the vault says where it stands.
    let out = bench.connect(SessionId(7), 1);
    assert!(matches!(out[..], [Output::Claim { volume: VOLUME, .. }]), "{out:?}");
}

/// P33: a log names every volume that ever was in it, and nobody says of the others that they are gone.
#[test]
fn a_log_full_of_volumes_that_nobody_comes_for_keeps_no_other_out() {
    let mut bench = Bench::new();
    let id = |number: usize| VolumeId((number as u128).to_le_bytes());
    let (epoch, size_bytes) = (Epoch(1), SIZE_BLOCKS * BLOCK_BYTES as u64);
    for number in 0..SHARD_VOLUMES_MAX {
        let committed = (Seq(7), Stamp::default());
        bench.step(Input::Recovered { volume: id(number), epoch, size_bytes, committed });
    }
    bench.step(Input::Replayed { files: Vec::new() });
    let greet = |bench: &mut Bench, number: usize| {
        let session = SessionId(100 + number as u64);
        bench.greet(session, Hello { volume: id(number), ..bench.hello(1) }, Some(epoch))
    };
    // All but two have a session.
    for number in 2..SHARD_VOLUMES_MAX {
        let out = greet(&mut bench, number);
        assert!(matches!(out[..], [Output::Welcome { .. }]), "{out:?}");
    }
    // One agent went away for a moment.
    bench.step(Input::Gone { session: SessionId(102) });
    for number in [SHARD_VOLUMES_MAX, SHARD_VOLUMES_MAX + 1, SHARD_VOLUMES_MAX + 2] {
        let out = greet(&mut bench, number);
        assert!(matches!(out[..], [Output::Claim { .. }]), "volume {number}: {out:?}");
        bench.step(Input::Claimed { volume: id(number), outcome: Ok((Seq(0), Stamp::default())) });
        let is_kept = bench.shard.stream(id(2)).is_some();
        assert_eq!(is_kept, number < SHARD_VOLUMES_MAX + 2, "those that nobody came for go first");
    }
    let out = greet(&mut bench, SHARD_VOLUMES_MAX + 3);
    assert_eq!(refused(&out), [RefusalReason::Limit], "all of them are served");
    // What is not in the vault yet stays, whoever else comes.
    let change = Change::Write(BlockRange { block: 0, count: 1 });
    let (session, stamp, handle) = (SessionId(103), Stamp::default(), Handle(1));
    bench.step(Input::Frame {
        link: Link::default(),
        session,
        seq: Seq(8),
        stamp,
        change,
        handle,
        bytes: BLOCK_BYTES,
    });
    bench.step(Input::Gone { session });
    let out = greet(&mut bench, SHARD_VOLUMES_MAX + 3);
    assert_eq!(refused(&out), [RefusalReason::Limit]);
    // Who lost its place claims anew.
    bench.step(Input::Gone { session: SessionId(104) });
    let out = greet(&mut bench, 0);
    assert!(matches!(out[..], [Output::Claim { .. }]), "{out:?}");
}

/// Whoever fences it waits for that, and lets nobody in by an older word.
#[test]
fn a_volume_that_is_taken_away_is_let_go_once_its_last_is_in_the_vault() {
    let mut bench = Bench::new();
    assert!(!bench.shard.holds(VOLUME));
    bench.connect(SESSION, 1);
    assert!(bench.shard.holds(VOLUME), "it is being claimed");
    bench.step(Input::Revoked { volume: VOLUME });
    assert!(bench.shard.holds(VOLUME), "the claim may still reach the vault");
    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    assert_eq!(refused(&out), [RefusalReason::Unavailable], "{out:?}");
    assert!(!bench.shard.holds(VOLUME));

    bench.open();
    assert!(bench.shard.holds(VOLUME), "its agent may send");
    bench.write(0, 1);
    bench.step(Input::GroupDone { group: 1, file: 0 });
    // One frame waits in the batch, another for the journal.
    bench.write(1, 1);
    let out = bench.step(Input::Revoked { volume: VOLUME });
    assert_eq!(built(&out).len(), 1, "shipped at once: {out:?}");
    let out = bench.step(Input::GroupDone { group: 2, file: 0 });
    assert_eq!(built(&out).len(), 1, "this too: {out:?}");
    bench.step(Input::PutDone { slot: Slot(1) });
    assert!(bench.shard.holds(VOLUME));
    bench.step(Input::PutDone { slot: Slot(0) });
    assert!(!bench.shard.holds(VOLUME));
}
