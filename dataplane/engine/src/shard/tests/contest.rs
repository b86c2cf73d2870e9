//! Who holds a volume: one agent that comes again in every way it can, and two that both live.

use super::*;

fn welcome_of(out: &[Output]) -> Option<(SessionId, Stamp)> {
    out.iter().find_map(|output| match output {
        Output::Welcome { session, welcome } => Some((*session, welcome.stamp)),
        _ => None,
    })
}

fn told(out: &[Output]) -> Vec<Option<&str>> {
    out.iter()
        .filter_map(|output| match output {
            Output::Contested { text, .. } => Some(text.as_deref()),
            _ => None,
        })
        .collect()
}

impl Bench {
    fn comes(&mut self, session: u64, life: u32, is_overtaken: bool) -> Vec<Output> {
        let hello = Hello { life, is_overtaken, ..self.hello(1) };
        self.greet(SessionId(session), hello, Some(Epoch(1)))
    }
}

/// Every way in which one agent comes again: nothing of it may look like two.
#[test]
fn one_agent_that_comes_again_is_never_two() {
    let mut bench = Bench::welcomed();
    let mut session = 1;
    let mut joins = |bench: &mut Bench, life, is_told: bool| {
        session += 1;
        let out = bench.comes(session, life, false);
        assert_eq!(welcome_of(&out).map(|(session, _)| session), Some(SessionId(session)));
        assert!(told(&out).is_empty(), "{out:?}");
        // Its old session, if the node still has it, ends; nobody reads that.
        let expected: &[RefusalReason] = if is_told { &[RefusalReason::Overtaken] } else { &[] };
        assert_eq!(refused(&out), expected);
        session
    };
    // Quickly again and again, the old connections half open; the welcome never read.
    for _ in 0..20 {
        joins(&mut bench, 1, true);
    }
    // After the node heard that the connection ended.
    let last = joins(&mut bench, 1, true);
    bench.step(Input::Gone { session: SessionId(last) });
    let last = joins(&mut bench, 1, false);
    // A crash, a power cut, a rollback: another life, with the old connection open or closed.
    joins(&mut bench, 2, true);
    let last = joins(&mut bench, 3, true).max(last);
    bench.step(Input::Gone { session: SessionId(last) });
    joins(&mut bench, 4, false);
    // A restart that never got as far as a hello changes nothing; the one after it does.
    joins(&mut bench, 6, true);
    // A node that refused for another reason in between.
    let hello = Hello { life: 6, ..bench.hello(1) };
    assert_eq!(refused(&bench.greet(SessionId(900), hello, None)), [RefusalReason::NotAssigned]);
    joins(&mut bench, 6, true);
}

#[test]
fn an_overtaken_holder_that_comes_back_is_a_second_one() {
    let mut bench = Bench::welcomed();
    let out = bench.comes(2, 2, false);
    assert_eq!(refused(&out), [RefusalReason::Overtaken], "as after a crash: nobody knows yet");
    let out = bench.comes(3, 1, true);
    assert_eq!(refused(&out), [RefusalReason::Contested; 2], "both");
    let text = told(&out)[0].unwrap();
    assert!(text.contains("agent 1") && text.contains("agent 2"), "{text}");
    assert!(text.contains(&VOLUME.to_string()), "{text}");
    // Frames of neither are taken.
    let frame = Input::Frame {
        link: Link::default(),
        session: SessionId(2),
        seq: Seq(1),
        stamp: Stamp::default(),
        change: Change::Zero(BlockRange { block: 0, count: 1 }),
        handle: Handle(1),
        bytes: 0,
    };
    assert!(matches!(bench.step(frame)[..], [Output::Drop { .. }]));
    // While both come, both stay out, however long.
    for round in 0..100 {
        bench.now = bench.now.plus_ms(5_000);
        assert_eq!(refused(&bench.comes(10 + round, 1, true)), [RefusalReason::Contested]);
        assert_eq!(refused(&bench.comes(500 + round, 2, false)), [RefusalReason::Contested]);
    }
    // One is stopped: the other goes on, not before its time.
    let mut session = 1_000;
    let began = bench.now;
    loop {
        bench.now = bench.now.plus_ms(5_000);
        session += 1;
        let out = bench.comes(session, 2, false);
        if let Some((welcomed, _)) = welcome_of(&out) {
            assert_eq!(welcomed, SessionId(session));
            assert_eq!(told(&out), [None], "the trouble is over");
            break;
        }
        assert_eq!(refused(&out), [RefusalReason::Contested]);
    }
    assert_eq!(bench.now.since_ms(began), CONTEST_MS);
    // If the other comes after all, it begins again.
    assert_eq!(refused(&bench.comes(2_000, 1, true)), [RefusalReason::Contested; 2]);
}

/// A copy that was resumed with its memory has the same life.
#[test]
fn two_holders_of_one_life_are_told_apart_by_what_they_were_told() {
    let mut bench = Bench::welcomed();
    bench.comes(2, 1, false);
    let out = bench.comes(3, 1, true);
    assert_eq!(refused(&out), [RefusalReason::Contested; 2]);
    assert!(told(&out)[0].is_some());
}

#[test]
fn a_new_epoch_has_new_holders() {
    let mut bench = Bench::welcomed();
    bench.comes(2, 2, false);
    bench.comes(3, 1, true);
    bench.connect(SessionId(4), 2);
    let out =
        bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) });
    assert_eq!(welcome_of(&out).map(|(session, _)| session), Some(SessionId(4)));
    assert_eq!(told(&out), [None], "what is counted and shown ends too");
}

/// What is not this shard's any more is not contested here, and is forgotten.
#[test]
fn a_contest_ends_with_the_assignment() {
    let mut bench = Bench::welcomed();
    bench.comes(2, 2, false);
    let out = bench.comes(3, 1, true);
    assert!(matches!(told(&out)[..], [Some(_)]), "{out:?}");
    let out = bench.step(Input::Revoked { volume: VOLUME });
    assert_eq!(told(&out), [None]);
    assert_eq!(bench.shard.streams().count(), 0);
    assert!(told(&bench.step(Input::Revoked { volume: VOLUME })).is_empty(), "once");
}

#[test]
fn the_welcome_says_who_sent_the_newest_frame() {
    let mut bench = Bench::welcomed();
    let stamp = |bench: &mut Bench, session| welcome_of(&bench.comes(session, 1, false)).unwrap().1;
    assert_eq!(stamp(&mut bench, 2), Stamp::default(), "the vault does not know");
    bench.comes(1, 1, false);
    bench.write(0, 1);
    assert_eq!(stamp(&mut bench, 3), Stamp { life: 1, generation: 1 });

    // After a restart the vault does, and behind it the journal; of segments of before stamps the journal
    // does for the vault too.
    let entry = |seq: u64| Entry {
        imprint: Imprint::of(u32::try_from(seq).unwrap()),
        volume: VOLUME,
        epoch: Epoch(1),
        seq: Seq(seq),
        stamp: Stamp { life: 9, generation: u32::try_from(seq).unwrap() },
        change: Change::Zero(BlockRange { block: 0, count: 1 }),
        handle: Handle(seq),
        bytes: 0,
    };
    let (nobodys, vaults) = (Stamp::default(), Stamp { life: 8, generation: 2 });
    for (held, replayed, known) in [
        (nobodys, &[4_u64, 5][..], entry(5).stamp),
        (nobodys, &[5, 6, 7], entry(7).stamp),
        (nobodys, &[3, 4], nobodys),
        (nobodys, &[], nobodys),
        (vaults, &[], vaults),
        (vaults, &[4, 5], vaults),
        (vaults, &[5, 6], entry(6).stamp),
    ] {
        let mut bench = Bench::new();
        let (volume, epoch, committed) = (VOLUME, Epoch(1), (Seq(5), held));
        let size_bytes = SIZE_BLOCKS * BLOCK_BYTES as u64;
        bench.step(Input::Recovered { volume, epoch, size_bytes, committed });
        for seq in replayed {
            bench.step(Input::Replay { entry: entry(*seq), file: 3 });
        }
        bench.step(Input::Replayed { files: vec![3] });
        bench.seq = Seq(7);
        assert_eq!(stamp(&mut bench, 1), known, "{held:?} {replayed:?}");
    }
}

/// Seed 1733: the node that takes a volume over has nothing but the vault to tell whose the newest frames are.
#[test]
fn after_a_claim_the_welcome_says_what_the_vault_does() {
    let mut bench = Bench::new();
    bench.connect(SESSION, 1);
    let stamp = Stamp { life: 8, generation: 2 };
    let out = bench.step(Input::Claimed { volume: VOLUME, outcome: Ok((Seq(5), stamp)) });
    assert_eq!(welcome_of(&out).unwrap().1, stamp);
}

/// P41: the connection of before may live on under a server that was set back with its memory: what the node has
/// of the frames between is another history's.
#[test]
fn a_frame_behind_another_than_the_newest_is_refused() {
    let mut bench = Bench::welcomed();
    let frame = |bench: &mut Bench, seq, previous, imprint| {
        bench.step(Input::Frame {
            link: Link { previous, imprint },
            session: SESSION,
            seq: Seq(seq),
            stamp: Stamp { life: 1, generation: 1 },
            change: Change::Zero(BlockRange { block: 0, count: 1 }),
            handle: Handle(seq),
            bytes: 0,
        })
    };
    let (unknown, [one, two, three]) = (Imprint::default(), [1, 2, 3].map(Imprint::of));
    assert!(refused(&frame(&mut bench, 1, three, one)).is_empty(), "nothing is known of frame 0");
    assert!(refused(&frame(&mut bench, 2, one, two)).is_empty());
    assert_eq!(refused(&frame(&mut bench, 3, one, three)), [RefusalReason::Gap]);
    assert_eq!(bench.shard.stream(VOLUME).unwrap().received(), Seq(2));

    let beyond = Input::Frame {
        link: Link { previous: two, imprint: three },
        session: SessionId(2),
        seq: Seq(3),
        stamp: Stamp { life: 1, generation: 1 },
        change: Change::Zero(BlockRange { block: SIZE_BLOCKS, count: 1 }),
        handle: Handle(3),
        bytes: 0,
    };
    bench.seq = Seq(2);
    bench.comes(2, 1, false);
    assert_eq!(refused(&bench.step(beyond)), [RefusalReason::Protocol]);
    let out = bench.comes(1, 1, false);
    assert_eq!(welcomed(&out).imprint, two, "what was refused is not the newest");
    // Whose log was emptied does not know what it is behind.
    assert!(refused(&frame(&mut bench, 3, unknown, three)).is_empty());
    assert!(refused(&frame(&mut bench, 4, three, one)).is_empty());
}

#[test]
fn which_the_newest_frame_is_comes_from_the_journal_and_not_from_the_vault() {
    let stamp = Stamp { life: 9, generation: 1 };
    let entry = |seq: u64, epoch, stamp| Entry {
        imprint: Imprint::of(u32::try_from(seq).unwrap()),
        volume: VOLUME,
        epoch: Epoch(epoch),
        seq: Seq(seq),
        stamp,
        change: Change::Zero(BlockRange { block: 0, count: 1 }),
        handle: Handle(seq),
        bytes: 0,
    };
    let others = Stamp { life: 8, generation: 1 };
    for (replayed, known) in [
        (vec![], Imprint::default()),
        (vec![entry(4, 2, stamp)], Imprint::default()),
        // The newest in the vault, unless the journal's is not that.
        (vec![entry(5, 2, stamp)], Imprint::of(5)),
        (vec![entry(5, 1, stamp)], Imprint::default()),
        (vec![entry(5, 2, others)], Imprint::default()),
        (vec![entry(5, 2, stamp), entry(6, 2, stamp)], Imprint::of(6)),
        (vec![entry(6, 2, stamp)], Imprint::of(6)),
        (vec![entry(7, 2, stamp)], Imprint::default()),
    ] {
        let mut bench = Bench::new();
        let (volume, epoch, committed) = (VOLUME, Epoch(2), (Seq(5), stamp));
        let size_bytes = SIZE_BLOCKS * BLOCK_BYTES as u64;
        bench.step(Input::Recovered { volume, epoch, size_bytes, committed });
        for entry in &replayed {
            bench.step(Input::Replay { entry: *entry, file: 3 });
        }
        bench.step(Input::Replayed { files: vec![3] });
        bench.seq = Seq(7);
        let out = bench.connect(SESSION, 2);
        assert_eq!(welcomed(&out).imprint, known, "{replayed:?}");
    }
}

fn welcomed(out: &[Output]) -> Welcome {
    let welcomes = out.iter().find_map(|output| match output {
        Output::Welcome { welcome, .. } => Some(*welcome),
        _ => None,
    });
    welcomes.unwrap_or_else(|| panic!("no welcome: {out:?}"))
}
