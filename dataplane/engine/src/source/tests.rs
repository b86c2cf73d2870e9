use super::*;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{MarkKind, PointId};

const WINDOW: u32 = 8 << 20;

fn at(ms: u64) -> Timestamp {
    Timestamp(ms)
}

/// The run before this one, as the intent file has it: what the log's own frames are stamped with.
const BEFORE: Stamp = Stamp { life: 7, generation: 3 };
const LIFE: u32 = 8;

fn welcome(received: u64, journaled: u64, committed: u64) -> Input {
    welcome_of(BEFORE, received, journaled, committed)
}

/// The log does not hold the node's newest frame any more.
fn welcome_of(stamp: Stamp, received: u64, journaled: u64, committed: u64) -> Input {
    welcome_held(None, stamp, (received, journaled, committed))
}

fn welcome_held(
    held: Option<Stamp>,
    stamp: Stamp,
    (received, journaled, committed): (u64, u64, u64),
) -> Input {
    let imprint = Imprint::default();
    let welcome = Welcome {
        imprint,
        received: Seq(received),
        journaled: Seq(journaled),
        committed: Seq(committed),
        window_bytes: WINDOW,
        stamp,
    };
    Input::Welcomed { welcome, held: held.map(|held| (held, imprint)) }
}

fn ack(journaled: u64, committed: u64) -> Input {
    Input::Acked(Ack { journaled: Seq(journaled), committed: Seq(committed), gathers_in_ms: None })
}

fn mark(number: u8) -> Mark {
    Mark {
        point: PointId([number; 16]),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 1_700_000_000_000,
        group: MarkGroup::ALONE,
    }
}

fn opened_as(last: u64, floor: u64) -> Opened {
    let mut lineage = Lineage::default();
    lineage.begin(BEFORE.life);
    (0..BEFORE.generation).for_each(|_| assert!(lineage.raise()));
    let (last, floor, floor_stamp) = (Seq(last), Seq(floor), Stamp::default());
    Opened { last, floor, floor_stamp, lineage, life: LIFE, is_shared: false, sending: 3 }
}

fn opened(last: u64, floor: u64) -> Source {
    Source::new(Settings::default(), opened_as(last, floor))
}

fn step(source: &mut Source, now: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    source.step(at(now), input, &mut out);
    out
}

/// Takes a source through connect and hello up to the welcome.
fn greet(source: &mut Source, now: u64, first: u64, last: u64) -> Vec<Output> {
    assert_eq!(step(source, now, Input::Assigned), [Output::Connect]);
    step(source, now, Input::Connected { first: Seq(first), last: Seq(last) })
}

#[test]
fn goes_on_behind_what_the_node_received() {
    let mut source = opened(10, 10);
    let hello = greet(&mut source, 0, 3, 10);
    assert_eq!(hello, [Output::Hello { first: Seq(3), last: Seq(10), is_overtaken: false }]);
    let out = step(&mut source, 1, welcome(7, 7, 4));
    assert_eq!(out[0], Output::Joined);
    assert_eq!(out[1], Output::TrimTo { seq: Seq(4) });
    assert!(matches!(out[2], Output::SendFrom { seq: Seq(8), .. }));
    assert!(step(&mut source, 2, Input::Sending { last: Seq(10), bytes: 9000 }).is_empty());
    assert!(step(&mut source, 3, Input::Ready).is_empty());
    assert_eq!(step(&mut source, 4, ack(10, 9)), [Output::TrimTo { seq: Seq(9) }]);
    assert_eq!((source.sent(), source.journaled(), source.committed()), (Seq(10), Seq(10), Seq(9)));
}

#[test]
fn sends_again_what_a_lost_transport_swallowed() {
    let mut source = opened(5, 5);
    greet(&mut source, 0, 1, 5);
    step(&mut source, 0, welcome(0, 0, 0));
    step(&mut source, 0, Input::Sending { last: Seq(5), bytes: 100 });
    step(&mut source, 0, Input::Lost);
    let Waiting { until } = source.phase() else { panic!("waits") };
    assert!(step(&mut source, until.0 - 1, Input::Tick).is_empty());
    assert_eq!(step(&mut source, until.0, Input::Tick), [Output::Connect]);
    step(&mut source, until.0, Input::Connected { first: Seq(1), last: Seq(5) });
    let out = step(&mut source, until.0, welcome(2, 2, 0));
    assert!(matches!(out[..], [Output::SendFrom { seq: Seq(3), .. }]), "{out:?}");
}

#[test]
fn keeps_the_window() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome(0, 0, 0));
    let mut last = 0;
    let mut out = step(&mut source, 0, Input::Appended { last: Seq(1000) });
    let mut in_flight = 0;
    while let [Output::SendFrom { seq, bytes_max }] = out[..] {
        assert_eq!(seq, Seq(last + 1));
        in_flight += bytes_max;
        last += 1;
        step(&mut source, 0, Input::Sending { last: Seq(last), bytes: bytes_max });
        out = step(&mut source, 0, Input::Ready);
    }
    assert!(in_flight <= u64::from(WINDOW));
    assert!(in_flight > u64::from(WINDOW) - FRAME_BYTES_MAX);
    assert!(matches!(step(&mut source, 0, ack(1, 0))[..], [Output::SendFrom { .. }]));
}

#[test]
fn reports_a_point_once_and_only_when_it_is_committed() {
    let mut source = opened(3, 3);
    let recovered = Input::Marked { seq: Seq(2), mark: mark(2), at: at(5) };
    assert!(step(&mut source, 10, recovered).is_empty());
    greet(&mut source, 10, 1, 3);
    let out = step(&mut source, 10, welcome(1, 1, 0));
    assert!(!out.iter().any(|output| matches!(output, Output::PointCommitted { .. })));
    // The mark passes by again on its way to the transport.
    step(&mut source, 11, Input::Marked { seq: Seq(2), mark: mark(2), at: at(6) });
    step(&mut source, 11, Input::Sending { last: Seq(3), bytes: 500 });
    let out = step(&mut source, 1000, ack(3, 2));
    assert_eq!(
        out,
        [Output::TrimTo { seq: Seq(2) }, Output::PointCommitted { seq: Seq(2), mark: mark(2) }]
    );
    assert_eq!(source.rpo_ms(at(2005)), Some(2000));
    let out = step(&mut source, 1001, Input::Marked { seq: Seq(2), mark: mark(2), at: at(6) });
    assert!(out.is_empty(), "{out:?}");
}

/// What the log still holds of the node's newest frame says more than who could have made it.
#[test]
fn a_frame_that_the_log_holds_is_compared_itself() {
    let none = Stamp::default();
    let others = Stamp { life: 9, generation: 1 };
    let ours = Stamp { life: LIFE, generation: 1 };
    let foreign = Output::Restart { next: Seq(16), breach: Breach::Foreign };
    let cases = [
        // A copy joined and wrote to its log; then the original went on, under the intents that both know.
        (ours, BEFORE, false),
        (Stamp { generation: 2, ..BEFORE }, BEFORE, false),
        // Of this very life, resumed with its memory from a snapshot while the other went on.
        (BEFORE, Stamp::unsaid(BEFORE.life, 3), false),
        // Two branches that began the whole disk anew as often.
        (BEFORE, Stamp::unsaid(BEFORE.life, 3), false),
        (Stamp::unsaid(BEFORE.life, 3), others, false),
        // The same frame, whatever the numbers that are kept beside the log say.
        (others, others, true),
        (Stamp::unsaid(9, 7), Stamp::unsaid(9, 7), true),
        (BEFORE, BEFORE, true),
        // One of the two says nothing: the rest of what is known decides.
        (none, BEFORE, true),
        (none, others, false),
        (ours, none, true),
    ];
    for (held, stamp, joins) in cases {
        let mut source = opened(20, 20);
        greet(&mut source, 0, 5, 20);
        let out = step(&mut source, 0, welcome_held(Some(held), stamp, (15, 15, 4)));
        let is_joined = out[0] == Output::Joined;
        assert_eq!(is_joined, joins, "{held:?} and {stamp:?}: {out:?}");
        assert!(is_joined || out == [foreign.clone()], "{out:?}");
    }
    // In a run that has joined as well: its own memory of what it sent is not asked.
    let mut source = opened(20, 20);
    greet(&mut source, 0, 5, 20);
    step(&mut source, 0, welcome_held(Some(BEFORE), BEFORE, (15, 15, 4)));
    step(&mut source, 1, Input::Sending { last: Seq(20), bytes: 5_000 });
    step(&mut source, 1, Input::Lost);
    step(&mut source, 2, Input::Assigned);
    step(&mut source, 2, Input::Connected { first: Seq(5), last: Seq(20) });
    let copys = Stamp::unsaid(LIFE, 3);
    let out = step(&mut source, 2, welcome_held(Some(ours), copys, (18, 18, 4)));
    assert_eq!(out, [Output::Restart { next: Seq(19), breach: Breach::Foreign }]);
}

/// P41: a run of the agent that was set back with its memory has the same life and the same intents.
#[test]
fn frames_of_one_stamp_and_different_history_do_not_join() {
    let (none, ours, other) = (Imprint::default(), Imprint::of(5), Imprint::of(6));
    let unsaid = Stamp::default();
    for (held, said, stamp, joins) in [
        (ours, other, BEFORE, false),
        (ours, other, unsaid, false),
        (ours, ours, BEFORE, true),
        (ours, ours, unsaid, true),
        // The vault alone does not say it, nor does a log without the frame.
        (ours, none, BEFORE, true),
        (none, other, BEFORE, true),
    ] {
        // Whether another had the volume meanwhile is not asked where the frame itself tells.
        let is_shared = held.is_known() && said.is_known();
        let mut source =
            Source::new(Settings::default(), Opened { is_shared, ..opened_as(20, 20) });
        greet(&mut source, 0, 5, 20);
        let Input::Welcomed { mut welcome, .. } = welcome_of(stamp, 15, 15, 4) else { panic!() };
        welcome.imprint = said;
        let held = held.is_known().then_some((stamp, held));
        let out = step(&mut source, 0, Input::Welcomed { welcome, held });
        if joins {
            assert!(out.contains(&Output::Joined), "{held:?} {said:?}: {out:?}");
        } else {
            assert_eq!(out, [Output::Restart { next: Seq(16), breach: Breach::Foreign }]);
        }
    }
}

/// The cases of `docs/adr/0012-lineage.md`: what the node has beyond the log, or instead of it, and who
/// can have sent it.
#[test]
fn only_this_lines_own_lost_tail_is_read_again_in_part() {
    let none = Stamp::default();
    let cases = [
        // A power cut: the node's newest frame was made under intents that are still there.
        (BEFORE, 15, Breach::TailLost),
        (Stamp { generation: 0, ..BEFORE }, 15, Breach::TailLost),
        // A snapshot, taken and gone back to within one session: intents were written after it.
        (Stamp { generation: 4, ..BEFORE }, 15, Breach::Foreign),
        // The server, or a copy of it, was started after the snapshot.
        (Stamp { life: 9, generation: 1 }, 15, Breach::Foreign),
        // The node does not know: it lost its journal, or took over from the vault alone.
        (none, 15, Breach::Foreign),
        // As many frames as the log has, and fewer, but of another branch.
        (Stamp { life: 9, generation: 1 }, 10, Breach::Foreign),
        (Stamp { life: 9, generation: 1 }, 6, Breach::Foreign),
        // Another's whole disk was on its way, whose frames say only whose they are; and this line's own,
        // beyond what this directory knows of.
        (Stamp::unsaid(9, 3), 10, Breach::Foreign),
        (Stamp::unsaid(9, 3), 6, Breach::Foreign),
        (Stamp::unsaid(BEFORE.life, 3), 15, Breach::Foreign),
        // The run before this one began to send the whole disk again, at a lower number, after this directory
        // was copied.
        (Stamp::unsaid(BEFORE.life, 4), 10, Breach::Foreign),
        (Stamp::unsaid(BEFORE.life, 4), 6, Breach::Foreign),
    ];
    for (stamp, received, breach) in cases {
        let mut source = opened(20, 10);
        greet(&mut source, 0, 5, 20);
        let out = step(&mut source, 0, welcome_of(stamp, received, received, 4));
        let next = Seq(received + 1);
        assert_eq!(out, [Output::Restart { next, breach }], "{stamp:?} at {received}");
    }
    // What joins is not asked for more than it can be.
    let unsaid = Stamp::unsaid(BEFORE.life, 3);
    for (stamp, received) in
        [(BEFORE, 10), (none, 10), (none, 6), (none, 0), (unsaid, 10), (unsaid, 6)]
    {
        let mut source = opened(20, 10);
        greet(&mut source, 0, 1, 20);
        let out = step(&mut source, 0, welcome_of(stamp, received, received, 0));
        assert_eq!(out[0], Output::Joined, "{stamp:?} at {received}");
    }
}

#[test]
fn a_session_knows_its_own_frames_and_what_it_was_joined_to() {
    let mut source = opened(10, 10);
    let foreign = Stamp { life: 9, generation: 1 };
    greet(&mut source, 0, 1, 10);
    let out = step(&mut source, 0, welcome_of(foreign, 15, 15, 15));
    assert_eq!(out, [Output::Restart { next: Seq(16), breach: Breach::Foreign }]);
    step(&mut source, 0, Input::Restarted);
    let again = |source: &mut Source, now, welcome| {
        step(source, now, Input::Lost);
        let Waiting { until } = source.phase() else { panic!("waits") };
        step(source, until.0, Input::Tick);
        let (first, last) = (source.appended.next(), source.appended);
        step(source, until.0, Input::Connected { first, last });
        step(source, until.0, welcome)
    };
    // The connection breaks before the first frame: what the node has is what was joined to.
    let out = again(&mut source, 1, welcome_of(foreign, 15, 15, 15));
    assert!(!matches!(out[..], [Output::Restart { .. }, ..]), "{out:?}");
    // Its own frames, under whatever intents came since.
    step(&mut source, 2, Input::Appended { last: Seq(16) });
    step(&mut source, 2, Input::Sending { last: Seq(16), bytes: 100 });
    let own = Stamp { life: LIFE, generation: 99 };
    let out = again(&mut source, 3, welcome_of(own, 16, 16, 15));
    assert!(!matches!(out[..], [Output::Restart { .. }, ..]), "{out:?}");
    // A copy of this server sent as many in its place.
    let out = again(&mut source, 4, welcome_of(Stamp { life: 11, generation: 1 }, 16, 16, 15));
    assert_eq!(out, [Output::Restart { next: Seq(17), breach: Breach::Foreign }]);
}

/// P31: a node that took over from the vault alone does not know whose the newest frame is; who was overtaken
/// by another knows that it may not be its own.
#[test]
fn who_was_overtaken_takes_nothing_for_its_own_that_nobody_answers_for() {
    let none = Stamp::default();
    let comes_again = |is_overtaken| {
        let mut source = opened(10, 10);
        greet(&mut source, 0, 1, 10);
        assert_eq!(step(&mut source, 0, welcome_of(none, 0, 0, 0))[0], Output::Joined);
        step(&mut source, 0, Input::Sending { last: Seq(10), bytes: 100 });
        if is_overtaken {
            step(&mut source, 1, Input::Refused(RefusalReason::Overtaken));
        } else {
            step(&mut source, 1, Input::Lost);
        }
        // Another node, under another epoch.
        step(&mut source, 2, Input::Assigned);
        step(&mut source, 2, Input::Connected { first: Seq(1), last: Seq(10) });
        step(&mut source, 2, welcome_of(none, 8, 8, 8))
    };
    assert!(!matches!(comes_again(false)[..], [Output::Restart { .. }, ..]));
    let restart = Output::Restart { next: Seq(9), breach: Breach::Foreign };
    assert_eq!(comes_again(true), std::slice::from_ref(&restart));
    // Nor does it after a restart of the agent; once it has joined it is as any other.
    let opened = Opened { is_shared: true, ..opened_as(10, 10) };
    let mut source = Source::new(Settings::default(), opened);
    greet(&mut source, 0, 1, 10);
    assert_eq!(step(&mut source, 0, welcome_of(none, 8, 8, 8)), [restart]);
    let out = step(&mut source, 0, Input::Restarted);
    assert!(out.contains(&Output::Shared { is_shared: false }), "{out:?}");
}

#[test]
fn only_who_was_overtaken_says_so_until_it_is_welcome() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome_of(Stamp::default(), 0, 0, 0));
    let said = |source: &mut Source, input| {
        step(source, 0, input);
        let Waiting { until } = source.phase() else { panic!("waits") };
        step(source, until.0, Input::Tick);
        match step(source, until.0, Input::Connected { first: Seq(1), last: Seq(0) })[..] {
            [Output::Hello { is_overtaken, .. }] => is_overtaken,
            ref other => panic!("{other:?}"),
        }
    };
    assert!(!said(&mut source, Input::Lost));
    assert!(!said(&mut source, Input::Refused(RefusalReason::Unavailable)));
    assert!(said(&mut source, Input::Refused(RefusalReason::Overtaken)));
    assert!(said(&mut source, Input::Refused(RefusalReason::Contested)), "until it is let in");
    step(&mut source, 0, welcome_of(Stamp::default(), 0, 0, 0));
    assert!(!said(&mut source, Input::Lost));
    assert!(said(&mut source, Input::Refused(RefusalReason::Overtaken)));
    // Another node, or another epoch, has its own holders.
    step(&mut source, 0, Input::Assigned);
    let out = step(&mut source, 0, Input::Connected { first: Seq(1), last: Seq(0) });
    assert!(matches!(out[..], [Output::Hello { is_overtaken: false, .. }]), "{out:?}");
}

/// C15: rare in the simulator (with *OldCatalog*, once in some 1000 seeds), so it is hunted here.
#[test]
fn a_left_branch_that_is_taken_for_a_lost_tail_is_told_as_committed() {
    use farshore_proto::bugs::{Bug, switch_on};
    switch_on(&[Bug::LeftBranchTakenForTail]);
    let floor_stamp = Stamp { generation: BEFORE.generation + 1, ..BEFORE };
    let mut source = Source::new(Settings::default(), Opened { floor_stamp, ..opened_as(10, 10) });
    step(&mut source, 0, Input::Marked { seq: Seq(10), mark: mark(1), at: at(0) });
    greet(&mut source, 0, 5, 10);
    step(&mut source, 0, welcome_of(BEFORE, 15, 15, 15));
    let out = step(&mut source, 0, Input::Restarted);
    switch_on(&[]);
    assert!(out.iter().any(|output| matches!(output, Output::PointCommitted { .. })), "{out:?}");
}

/// The agent was sent back to a node of before, went on there, and comes to the newest one: that has more frames, of
/// this line too, but they are not the end of this log.
#[test]
fn what_is_older_than_the_logs_newest_frame_is_not_its_lost_tail() {
    let older = Stamp { generation: BEFORE.generation - 1, ..BEFORE };
    for (floor_stamp, breach) in [
        (older, Breach::TailLost),
        (BEFORE, Breach::TailLost),
        (Stamp { generation: BEFORE.generation + 1, ..BEFORE }, Breach::Foreign),
        (Stamp::unsaid(BEFORE.life, 3), Breach::Foreign),
    ] {
        let mut source =
            Source::new(Settings::default(), Opened { floor_stamp, ..opened_as(10, 10) });
        step(&mut source, 0, Input::Marked { seq: Seq(10), mark: mark(1), at: at(0) });
        greet(&mut source, 0, 5, 10);
        let out = step(&mut source, 0, welcome_of(BEFORE, 15, 15, 15));
        assert_eq!(out, [Output::Restart { next: Seq(16), breach }], "{floor_stamp:?}");
        let out = step(&mut source, 0, Input::Restarted);
        let told = out.iter().any(|output| matches!(output, Output::PointCommitted { .. }));
        assert_eq!(told, breach == Breach::TailLost, "{floor_stamp:?}: {out:?}");
    }
}

#[test]
fn a_power_cut_that_took_the_logs_tail_restarts_the_log() {
    let mut source = opened(20, 10);
    greet(&mut source, 0, 5, 20);
    // The node has 15, the log held 10 when it was opened: 11 to 15 are not the same frames.
    let out = step(&mut source, 0, welcome(15, 15, 12));
    assert_eq!(out, [Output::Restart { next: Seq(16), breach: Breach::TailLost }]);
    let out = step(&mut source, 0, Input::Restarted);
    assert_eq!(out, [Output::Joined, Output::TrimTo { seq: Seq(12) }][..1]);
    let out = step(&mut source, 0, Input::Appended { last: Seq(16) });
    assert!(matches!(out[..], [Output::SendFrom { seq: Seq(16), .. }]));
}

#[test]
fn a_gap_is_answered_with_an_empty_hello_and_a_full_resync() {
    let mut source = opened(20, 20);
    greet(&mut source, 0, 10, 20);
    assert_eq!(step(&mut source, 0, Input::Refused(RefusalReason::Gap)), [Output::Close]);
    let Waiting { until } = source.phase() else { panic!("waits") };
    step(&mut source, until.0, Input::Tick);
    let out = step(&mut source, until.0, Input::Connected { first: Seq(10), last: Seq(20) });
    assert_eq!(out, [Output::Hello { first: Seq(1), last: Seq(0), is_overtaken: false }]);
    let out = step(&mut source, until.0, welcome(3, 3, 3));
    assert_eq!(out, [Output::Restart { next: Seq(4), breach: Breach::Gap }]);
    step(&mut source, until.0, Input::Restarted);
    assert_eq!(source.phase(), Streaming);
    assert_eq!(source.sent(), Seq(3));
}

#[test]
fn a_fenced_source_stays_away_until_it_is_assigned_anew() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, Input::Refused(RefusalReason::Fenced));
    assert_eq!(source.phase(), Halted { reason: RefusalReason::Fenced, since: Timestamp(0) });
    assert!(step(&mut source, 59_999, Input::Tick).is_empty());
    assert_eq!(step(&mut source, 59_999, Input::Assigned), [Output::Connect]);
    assert_eq!(source.halted(), None);
}

/// C8: whoever was told may have gone back to before it was.
#[test]
fn a_fenced_source_asks_again_now_and_then_and_is_halted_meanwhile() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, Input::Refused(RefusalReason::Fenced));
    assert_eq!(source.deadline(), Some(Timestamp(60_000)));
    assert_eq!(step(&mut source, 60_000, Input::Tick), [Output::Connect]);
    step(&mut source, 60_000, Input::Connected { first: Seq(1), last: Seq(0) });
    assert_eq!(source.halted(), Some(RefusalReason::Fenced));
    step(&mut source, 60_000, welcome(0, 0, 0));
    assert_eq!((source.halted(), source.phase()), (None, Streaming));
}

#[test]
fn a_node_that_lies_is_dropped() {
    for lie in [welcome(5, 6, 0), welcome(5, 4, 5)] {
        let mut source = opened(9, 9);
        greet(&mut source, 0, 1, 9);
        assert_eq!(step(&mut source, 0, lie), [Output::GiveUp(Fault::Impossible)]);
    }
    for lie in [ack(10, 0), ack(0, 1)] {
        let mut source = opened(9, 9);
        greet(&mut source, 0, 1, 9);
        step(&mut source, 0, welcome(0, 0, 0));
        assert_eq!(step(&mut source, 0, lie), [Output::GiveUp(Fault::Impossible)]);
        assert!(matches!(source.phase(), Waiting { .. }));
    }
}

#[test]
fn waits_longer_after_each_failure_and_forgets_them_with_an_ack() {
    let mut source = opened(0, 0);
    assert_eq!(step(&mut source, 0, Input::Assigned), [Output::Connect]);
    let mut now = 0;
    let mut delays = Vec::new();
    for _ in 0..8 {
        step(&mut source, now, Input::Lost);
        let Waiting { until } = source.phase() else { panic!("waits") };
        delays.push(until.0 - now);
        now = until.0;
        step(&mut source, now, Input::Tick);
    }
    assert!(delays[..6].is_sorted(), "{delays:?}");
    assert!(delays[0] <= 100 && delays[7] > 3_700 && delays[7] <= 5_000, "{delays:?}");
    step(&mut source, now, Input::Connected { first: Seq(1), last: Seq(0) });
    step(&mut source, now, welcome(0, 0, 0));
    step(&mut source, now, ack(0, 0));
    step(&mut source, now, Input::Lost);
    let Waiting { until } = source.phase() else { panic!("waits") };
    assert!(until.0 - now <= 100);
}

fn silent(ms: u64) -> Fault {
    Fault::Silent { ms }
}

/// N20: who takes a connection and says nothing is given up, and that is told: nobody else notices.
#[test]
fn a_node_that_takes_connections_and_does_not_answer_is_told_of() {
    let mut source = opened(0, 0);
    assert_eq!(step(&mut source, 0, Input::Assigned), [Output::Connect]);
    assert!(step(&mut source, 9_999, Input::Tick).is_empty());
    assert_eq!(step(&mut source, 10_000, Input::Tick), [Output::GiveUp(silent(10_000))]);
    let Waiting { until } = source.phase() else { panic!("waits") };
    assert_eq!(step(&mut source, until.0, Input::Tick), [Output::Connect]);
    step(&mut source, until.0, Input::Connected { first: Seq(1), last: Seq(0) });
    let late = until.0 + 10_000;
    assert_eq!(step(&mut source, late, Input::Tick), [Output::GiveUp(silent(10_000))]);
    assert!(silent(10_000).text().contains("not answered for 10 s"));
}

#[test]
fn a_silent_peer_is_given_up_only_while_something_is_in_flight() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome(0, 0, 0));
    assert_eq!(source.deadline(), Some(at(30_000)), "then it says that it is there");
    step(&mut source, 500_000, Input::Appended { last: Seq(1) });
    step(&mut source, 500_000, Input::Sending { last: Seq(1), bytes: 100 });
    assert_eq!(source.deadline(), Some(at(620_000)));
    assert!(step(&mut source, 619_999, Input::Tick).is_empty());
    assert_eq!(step(&mut source, 620_000, Input::Tick), [Output::GiveUp(silent(120_000))]);
}

#[test]
fn an_idle_source_says_that_it_is_there_and_gives_up_who_does_not_answer() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome(0, 0, 0));
    assert!(step(&mut source, 29_999, Input::Tick).is_empty());
    assert_eq!(step(&mut source, 30_000, Input::Tick), [Output::SayAlive]);
    assert!(step(&mut source, 30_000, Input::Tick).is_empty(), "once");
    step(&mut source, 30_001, Input::Ready);
    step(&mut source, 31_000, ack(0, 0));
    assert_eq!(source.deadline(), Some(at(61_000)));
    assert_eq!(step(&mut source, 61_000, Input::Tick), [Output::SayAlive]);
    step(&mut source, 61_000, Input::Ready);
    assert!(step(&mut source, 180_999, Input::Tick).is_empty());
    assert_eq!(step(&mut source, 181_000, Input::Tick), [Output::GiveUp(silent(120_000))]);
}

#[test]
fn frames_follow_a_sign_of_life_when_it_is_on_its_way() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome(0, 0, 0));
    assert_eq!(step(&mut source, 30_000, Input::Tick), [Output::SayAlive]);
    assert!(step(&mut source, 30_000, Input::Appended { last: Seq(1) }).is_empty());
    let out = step(&mut source, 30_001, Input::Ready);
    assert!(matches!(out[..], [Output::SendFrom { seq: Seq(1), .. }]), "{out:?}");
}

#[test]
fn a_point_over_an_unchanged_stream_does_not_age() {
    let mut source = opened(0, 0);
    greet(&mut source, 0, 1, 0);
    step(&mut source, 0, welcome(0, 0, 0));
    step(&mut source, 100, Input::Appended { last: Seq(1) });
    step(&mut source, 100, Input::Marked { seq: Seq(1), mark: mark(1), at: at(100) });
    step(&mut source, 100, Input::Sending { last: Seq(1), bytes: 100 });
    step(&mut source, 100, Input::Ready);
    step(&mut source, 900, Input::Unchanged { seq: Seq(1), at: at(900) });
    assert_eq!(source.rpo_ms(at(1000)), None, "it is in no vault yet");
    step(&mut source, 1000, ack(1, 1));
    assert_eq!(source.rpo_ms(at(1000)), Some(100));
    step(&mut source, 2000, Input::Unchanged { seq: Seq(1), at: at(1990) });
    assert_eq!((source.rpo_ms(at(2000)), source.point_at()), (Some(10), Some(at(1990))));
    // What is said of another mark, or late, says nothing of this one.
    step(&mut source, 2000, Input::Unchanged { seq: Seq(2), at: at(2000) });
    step(&mut source, 2000, Input::Unchanged { seq: Seq(1), at: at(500) });
    assert_eq!(source.rpo_ms(at(2000)), Some(10));
}

/// A node as the protocol allows it, with losses at any moment: the stream it ends up with is the
/// log, in order, without a gap; no point is reported that it had not committed.
#[test]
fn any_interleaving_delivers_the_log_in_order() {
    for seed in 1..400 {
        Chaos::new(seed).run();
    }
}

struct Chaos {
    random: u64,
    source: Source,
    now: u64,
    appended: u64,
    first: u64,
    received: u64,
    journaled: u64,
    committed: u64,
    connecting: bool,
    greeted: bool,
    streaming: bool,
    asked: Option<u64>,
    is_speaking: bool,
    points: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            source: opened(0, 0),
            now: 0,
            appended: 0,
            first: 1,
            received: 0,
            journaled: 0,
            committed: 0,
            connecting: false,
            greeted: false,
            streaming: false,
            asked: None,
            is_speaking: false,
            points: 0,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.source.step(at(self.now), input, &mut out);
        for output in out {
            match output {
                Output::Connect => self.connecting = true,
                Output::Hello { first, last, is_overtaken } => {
                    assert!(!is_overtaken, "nobody else is there");
                    assert_eq!((first, last), (Seq(self.first), Seq(self.appended)));
                    self.greeted = true;
                }
                Output::Close | Output::GiveUp(_) => self.hang_up(),
                Output::Joined => {}
                Output::Shared { .. } => panic!("nobody else is there"),
                Output::Restart { .. } => panic!("the log joins"),
                Output::SendFrom { seq, .. } => {
                    assert!(seq.0 >= self.first, "sent from what was trimmed");
                    self.asked = Some(seq.0);
                }
                Output::SayAlive => self.is_speaking = true,
                Output::TrimTo { seq } => {
                    assert!(seq.0 <= self.committed, "S4");
                    self.first = seq.0 + 1;
                }
                Output::PointCommitted { seq, .. } => {
                    assert!(seq.0 <= self.committed, "S3: reported before it was committed");
                    assert!(seq.0 > self.points, "S3: reported twice");
                    self.points = seq.0;
                }
            }
        }
    }

    fn hang_up(&mut self) {
        (self.connecting, self.greeted, self.streaming) = (false, false, false);
        self.asked = None;
        self.is_speaking = false;
    }

    fn send(&mut self, seq: u64) {
        let last = seq + self.below(self.appended - seq + 1);
        for seq in seq..=last {
            if seq.is_multiple_of(3) {
                self.feed(Input::Marked { seq: Seq(seq), mark: mark(3), at: at(self.now) });
            }
        }
        self.feed(Input::Sending { last: Seq(last), bytes: (last - seq + 1) * 5000 });
        // The transport may swallow the end of the run and break.
        let arrived = if self.below(4) == 0 { seq - 1 + self.below(last - seq + 1) } else { last };
        assert_eq!(seq, self.received + 1, "a gap or a repeat in the node's stream");
        self.received = arrived;
        if arrived == last {
            self.feed(Input::Ready);
        } else {
            self.hang_up();
            self.feed(Input::Lost);
        }
    }

    fn turn(&mut self) {
        // Now and then nothing happens for long.
        self.now += if self.below(20) == 0 { 31_000 } else { self.below(200) };
        if std::mem::take(&mut self.is_speaking) {
            self.feed(Input::Ready);
        }
        match self.below(8) {
            0 => self.feed(Input::Assigned),
            1 if self.greeted || self.connecting || self.streaming => {
                self.hang_up();
                self.feed(Input::Lost);
            }
            2 => {
                self.appended += self.below(5);
                self.feed(Input::Appended { last: Seq(self.appended) });
            }
            3 if self.streaming => {
                self.journaled += self.below(self.received - self.journaled + 1);
                self.committed += self.below(self.journaled - self.committed + 1);
                self.feed(ack(self.journaled, self.committed));
            }
            // A restart of the node: what is not committed is gone, unless its journal held it.
            4 if !self.streaming && self.below(3) == 0 => {
                self.received =
                    self.committed.max(self.received - self.below(3).min(self.received));
                self.journaled = self.journaled.min(self.received);
            }
            5 => self.feed(Input::Tick),
            _ if self.greeted => {
                (self.greeted, self.streaming) = (false, true);
                self.feed(welcome(self.received, self.journaled, self.committed));
            }
            _ if self.connecting => {
                self.connecting = false;
                self.feed(Input::Connected { first: Seq(self.first), last: Seq(self.appended) });
            }
            _ => {
                if let Some(seq) = self.asked.take() {
                    self.send(seq);
                }
            }
        }
    }

    fn run(&mut self) {
        self.feed(Input::Assigned);
        for _ in 0..300 {
            self.turn();
        }
        // Faults stop: everything arrives and every mark is reported.
        for _ in 0..2000 {
            self.now += 100;
            if std::mem::take(&mut self.is_speaking) {
                self.feed(Input::Ready);
            } else if self.greeted {
                (self.greeted, self.streaming) = (false, true);
                self.feed(welcome(self.received, self.journaled, self.committed));
            } else if self.connecting {
                self.connecting = false;
                self.feed(Input::Connected { first: Seq(self.first), last: Seq(self.appended) });
            } else if let Some(seq) = self.asked.take() {
                self.send(seq);
            } else if self.streaming {
                (self.journaled, self.committed) = (self.received, self.received);
                self.feed(ack(self.journaled, self.committed));
            } else {
                self.feed(Input::Tick);
            }
        }
        assert_eq!(self.committed, self.appended);
        assert_eq!(self.points, self.appended / 3 * 3);
    }
}
