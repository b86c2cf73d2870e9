//! Agents that break the order of operations (N3, P6): refused, and the stream stays as it was.

use super::*;

fn welcomes(out: &[Output]) -> Vec<(SessionId, Welcome)> {
    out.iter()
        .filter_map(|output| match output {
            Output::Welcome { session, welcome } => Some((*session, *welcome)),
            _ => None,
        })
        .collect()
}

fn write(session: SessionId, seq: u64, block: u64) -> Input {
    Input::Frame {
        link: Link::default(),
        session,
        seq: Seq(seq),
        stamp: Stamp::default(),
        change: Change::Write(BlockRange { block, count: 1 }),
        handle: Handle(1000 + seq),
        bytes: BLOCK_BYTES,
    }
}

/// I3: the claim made an epoch object of the first hello; the stream must be that one.
#[test]
fn a_second_hello_does_not_change_the_claim_of_the_first() {
    let mut bench = Bench::new();
    bench.connect(SESSION, 1);
    let hello = Hello { size_bytes: 64 * SIZE_BLOCKS * BLOCK_BYTES as u64, ..bench.hello(1) };
    assert_eq!(
        refused(&bench.greet(SessionId(2), hello, Some(Epoch(1)))),
        [RefusalReason::Unavailable]
    );
    let hello = bench.hello(2);
    assert_eq!(
        refused(&bench.greet(SessionId(3), hello, Some(Epoch(2)))),
        [RefusalReason::Unavailable]
    );

    bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    let stream = bench.shard.stream(VOLUME).unwrap();
    assert_eq!((stream.epoch(), stream.size_blocks()), (Epoch(1), SIZE_BLOCKS));
}

#[test]
fn a_frame_before_the_welcome_ends_the_session() {
    let mut bench = Bench::new();
    bench.connect(SESSION, 1);
    let out = bench.step(write(SESSION, 1, 0));
    assert_eq!(refused(&out), [RefusalReason::Protocol]);
    // The claim goes on for the volume; nobody is welcomed by its end.
    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    assert!(out.is_empty(), "{out:?}");
    let out = bench.connect(SessionId(2), 1);
    assert_eq!(welcomes(&out).len(), 1, "{out:?}");
    assert!(refused(&out).is_empty(), "no session was left behind: {out:?}");
}

#[test]
fn a_claim_whose_session_went_away_opens_nothing() {
    for outcome in [
        Ok((Seq(0), Stamp::default())),
        Err((RefusalReason::Unavailable, "the vault is away".into())),
    ] {
        let mut bench = Bench::new();
        bench.connect(SESSION, 1);
        bench.step(Input::Gone { session: SESSION });
        let out = bench.step(Input::Claimed { volume: VOLUME, outcome });
        assert!(out.is_empty(), "{out:?}");
    }
}

/// P6: between the claim of a newer epoch and its end nothing may join the old one's stream.
#[test]
fn the_old_epoch_ends_when_the_claim_of_the_newer_one_begins() {
    let mut bench = Bench::welcomed();
    let out = bench.connect(SessionId(2), 2);
    assert_eq!(refused(&out), [RefusalReason::Fenced]);
    let out = bench.step(write(SESSION, 1, 0));
    assert!(matches!(out[..], [Output::Drop { .. }]), "{out:?}");
    // Even if the control plane goes back to the old one: it restored its database, say.
    let hello = bench.hello(1);
    assert_eq!(
        refused(&bench.greet(SessionId(3), hello, Some(Epoch(1)))),
        [RefusalReason::Unavailable]
    );

    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    assert_eq!(welcomes(&out)[0].0, SessionId(2));
    bench.step(write(SessionId(2), 1, 0));
    let out = bench.step(Input::GroupDone { group: 1, file: 0 });
    assert_eq!(acks(&out), [(1, 0)]);
}

/// I7: what waits for the journal is bounded for each volume, whatever its agent sends.
#[test]
fn more_than_the_window_ends_the_session_and_keeps_what_was_taken() {
    let mut bench = Bench::welcomed();
    let body_bytes = 256 * BLOCK_BYTES;
    let mut taken = 0;
    let end = loop {
        let out = bench.write(0, 256);
        if !refused(&out).is_empty() {
            break refused(&out);
        }
        taken += FRAME_HEADER_BYTES + body_bytes;
        assert!(taken <= 2 * WINDOW_BYTES, "{taken} bytes and no end");
    };
    assert_eq!(end, [RefusalReason::Limit]);
    // An agent that connects again may not know of what waits: it may send a window more.
    assert!(taken > 2 * WINDOW_BYTES - 2 * body_bytes, "{taken} bytes");

    let received = bench.shard.stream(VOLUME).unwrap().received();
    let out = bench.connect(SessionId(2), 1);
    assert_eq!(welcomes(&out)[0].1.received, received, "nothing taken was lost");
    let mut group = 1;
    while bench.shard.stream(VOLUME).unwrap().journaled() < received {
        bench.step(Input::GroupDone { group, file: 0 });
        group += 1;
    }
    // The journal has it all: there is room for a whole window and more again.
    for seq in received.0 + 1..=received.0 + 15 {
        let change = Change::Write(BlockRange { block: 0, count: 256 });
        let (session, handle) = (SessionId(2), Handle(2000 + seq));
        let (seq, stamp) = (Seq(seq), Stamp::default());
        let frame = Input::Frame {
            link: Link::default(),
            session,
            seq,
            stamp,
            change,
            handle,
            bytes: body_bytes,
        };
        assert!(refused(&bench.step(frame)).is_empty(), "seq {seq}");
    }
}

#[test]
fn a_replayed_or_swapped_frame_ends_the_session_alone() {
    for seqs in [[1, 1], [1, 3], [2, 1]] {
        let mut bench = Bench::welcomed();
        let mut refusals = Vec::new();
        for seq in seqs {
            refusals.extend(refused(&bench.step(write(SESSION, seq, 0))));
        }
        assert_eq!(refusals, [RefusalReason::Protocol], "{seqs:?}");
        let taken = u64::from(seqs[0] == 1);
        assert_eq!(bench.shard.stream(VOLUME).unwrap().received(), Seq(taken), "{seqs:?}");
    }
}
