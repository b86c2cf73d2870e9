use super::*;
use farshore_proto::MarkKind;
use farshore_proto::PointId;
use farshore_proto::mark::MarkGroup;

const WINDOW: u32 = 10_000;
const WRITE: u64 = 4096 + 48;

fn mark() -> Item {
    let (point, kind) = (PointId([7; 16]), MarkKind::Crash);
    Item::Mark(Mark {
        point,
        kind,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 5,
        group: MarkGroup::ALONE,
    })
}

fn welcome(received: u64, journaled: u64, committed: u64) -> Welcome {
    let (received, journaled, committed) = (Seq(received), Seq(journaled), Seq(committed));
    let stamp = farshore_proto::Stamp::default();
    Welcome {
        imprint: farshore_proto::Imprint::default(),
        received,
        journaled,
        committed,
        window_bytes: WINDOW,
        stamp,
    }
}

fn ack(journaled: u64, committed: u64) -> Ack {
    Ack { journaled: Seq(journaled), committed: Seq(committed), gathers_in_ms: None }
}

fn bytes(_: u64) -> u64 {
    4096
}

/// Joined behind seq `base`; write 0, write 1, a mark, write 2 sent.
fn streaming(base: u64) -> Stream {
    let mut stream = Stream::new();
    stream.welcomed(&welcome(base, base, base)).unwrap();
    stream.send(&Item::Write(0), WRITE);
    stream.send(&Item::Write(1), WRITE);
    stream.send(&mark(), MARK_FRAME_BYTES);
    assert_eq!(stream.send(&Item::Write(2), WRITE), Seq(base + 4));
    stream
}

fn hello(stream: &Stream) -> (u64, u64) {
    let hello = stream.hello(VolumeId([1; 16]), Epoch(1), 4096, 1000);
    (hello.first_seq.0, hello.last_seq.0)
}

#[test]
fn acks_are_told_as_writes_and_marks_are_none() {
    for base in [0, 100] {
        let mut stream = streaming(base);
        let moved = stream.acked(&ack(base + 3, base + 1), bytes).unwrap();
        assert_eq!(moved, Moved { journaled: (0, 2), committed: (0, 1) });
        let moved = stream.acked(&ack(base + 4, base + 3), bytes).unwrap();
        assert_eq!(moved, Moved { journaled: (2, 3), committed: (1, 2) });
        assert!(stream.is_owed() && !stream.is_settled());
        stream.acked(&ack(base + 4, base + 4), bytes).unwrap();
        assert!(stream.is_settled() && !stream.is_owed());
        assert_eq!(stream.acked_writes(), (3, 3));
    }
}

#[test]
fn the_window_opens_by_exactly_what_is_journaled() {
    let mut stream = Stream::new();
    stream.welcomed(&welcome(0, 0, 0)).unwrap();
    assert!(stream.has_room(1 << 20), "the first frame may be larger than the window");
    stream.send(&Item::Write(0), WRITE);
    stream.send(&Item::Write(1), WRITE);
    assert!(!stream.has_room(WRITE));
    assert!(stream.has_room(u64::from(WINDOW) - 2 * WRITE));
    stream.acked(&ack(1, 0), bytes).unwrap();
    assert!(stream.has_room(u64::from(WINDOW) - WRITE));
    assert!(!stream.has_room(u64::from(WINDOW) - WRITE + 1));
    stream.acked(&ack(2, 0), bytes).unwrap();
    assert!(stream.has_room(1 << 20));
}

#[test]
fn a_reconnect_sends_again_exactly_what_the_node_has_not() {
    let mut stream = streaming(100);
    stream.acked(&ack(102, 101), bytes).unwrap();
    assert_eq!(hello(&stream), (102, 104));
    stream.welcomed(&welcome(102, 102, 101)).unwrap();
    let Some((seq, item)) = stream.to_resend() else { panic!("nothing to send again") };
    assert_eq!((seq, item), (Seq(103), mark()));
    stream.send(&item, MARK_FRAME_BYTES);
    let Some((seq, item)) = stream.to_resend() else { panic!("nothing to send again") };
    assert_eq!((seq, item), (Seq(104), Item::Write(2)));
    stream.send(&item, WRITE);
    assert_eq!(stream.to_resend(), None);
    assert_eq!(stream.next_write(), 3);
}

#[test]
fn a_node_without_the_journal_gets_everything_above_committed_and_is_counted_once() {
    let mut stream = streaming(0);
    let moved = stream.acked(&ack(4, 1), bytes).unwrap();
    assert_eq!(moved.journaled, (0, 3));
    // Another node: it knows the vault only.
    stream.welcomed(&welcome(1, 1, 1)).unwrap();
    let mut again = Vec::new();
    while let Some((seq, item)) = stream.to_resend() {
        again.push(seq.0);
        let bytes = if matches!(item, Item::Mark(_)) { MARK_FRAME_BYTES } else { WRITE };
        stream.send(&item, bytes);
    }
    assert_eq!(again, [2, 3, 4]);
    let moved = stream.acked(&ack(3, 1), bytes).unwrap();
    assert_eq!(moved.journaled, (3, 3), "journaled before, and counted then");
    assert!(stream.has_room(u64::from(WINDOW) - WRITE));
    assert!(!stream.has_room(u64::from(WINDOW)), "the last write is on its way");
    stream.acked(&ack(4, 4), bytes).unwrap();
    assert!(stream.has_room(1 << 20) && stream.is_settled());
}

#[test]
fn half_a_window_stands_for_what_an_earlier_connection_sent() {
    let mut stream = streaming(0);
    stream.welcomed(&welcome(4, 2, 0)).unwrap();
    assert!(!stream.has_room(u64::from(WINDOW / 2) + 1));
    assert!(stream.has_room(u64::from(WINDOW / 2)));
    stream.acked(&ack(3, 0), bytes).unwrap();
    assert!(!stream.has_room(u64::from(WINDOW / 2) + 1));
    stream.acked(&ack(4, 0), bytes).unwrap();
    assert!(stream.has_room(1 << 20));
}

#[test]
fn what_a_node_cannot_know_or_may_not_forget_is_found() {
    let mut stream = streaming(10);
    let misfit = stream.acked(&ack(15, 10), bytes).unwrap_err();
    assert_eq!(misfit, Misfit::Foreign { has: 15, sent: 14 });
    let misfit = stream.acked(&ack(11, 12), bytes).unwrap_err();
    assert_eq!(misfit, Misfit::Order { committed: 12, journaled: 11 });
    stream.acked(&ack(13, 13), bytes).unwrap();
    let misfit = stream.welcomed(&welcome(12, 12, 12)).unwrap_err();
    assert_eq!(misfit, Misfit::Lost { has: 12, acked: 13 });
    let misfit = stream.welcomed(&welcome(15, 15, 15)).unwrap_err();
    assert_eq!(misfit, Misfit::Foreign { has: 15, sent: 14 });
    let misfit = stream.welcomed(&welcome(14, 13, 14)).unwrap_err();
    assert!(matches!(misfit, Misfit::Order { .. }));
}

#[test]
fn the_first_hello_has_nothing_and_a_lost_first_welcome_changes_nothing() {
    let stream = Stream::new();
    assert_eq!(hello(&stream), (1, 0));
    let mut stream = streaming(7);
    assert_eq!(hello(&stream), (8, 11));
    // Acks about an earlier run's seqs say nothing about this one.
    let moved = stream.acked(&ack(5, 3), bytes).unwrap();
    assert_eq!(moved, Moved::default());
}
