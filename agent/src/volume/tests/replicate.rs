//! What happens when nothing goes wrong.

use super::*;
use crate::capture::Call;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_the_disk_and_follows_its_writes() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    let before: Vec<u8> = (0..size).map(|at| (at / 4096 % 250) as u8).collect();
    std::fs::write(rig.disk(), &before).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    let served = rig.served().await;
    let mut random = Random(1);
    for _ in 0..300 {
        change(&served, &mut random, size).await.unwrap();
    }
    rig.assert_point_is_disk().await;
    rig.until("told", |report| report.committed_seq > 250).await;
    let report = rig.report();
    assert_eq!((report.size_bytes, report.progress), (size, 1.0));
    assert!(report.nbd_uri.as_ref().unwrap().starts_with("nbd+unix:///disk?socket="));
    assert!(report.committed_seq <= report.journaled_seq);
    assert!(report.rpo_seconds.unwrap() < 5.0);
    let points = rig.live().points.oldest(1000);
    assert!(points.iter().any(|point| point.seq <= report.committed_seq));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_overlapping_writes_arrive_in_the_order_of_the_disk() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    let served = rig.served().await;
    let writers = (1..9_u64).map(|seed| {
        let served = served.clone();
        tokio::spawn(async move {
            let mut random = Random(seed);
            for _ in 0..150 {
                // A small disk: nearly every write meets another.
                change(&served, &mut random, MIB).await.unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
    drop(served);
    rig.assert_point_is_disk().await;
}

/// A writer that numbers its writes: every point is the disk after some number of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_point_is_an_exact_prefix_of_the_writes() {
    let blocks = 512;
    let mut rig = Rig::new(blocks * 4096, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let mut random = Random(3);
    let mut writes = Vec::new();
    let deadline = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < deadline {
        let (block, number) = (random.below(blocks), writes.len() as u64 + 1);
        writes.push(block);
        let data = number.to_le_bytes().repeat(512);
        served.write(block * 4096, Bytes::from(data), false).await.unwrap();
    }
    rig.assert_point_is_disk().await;
    let number_at = |image: &[u8], block: u64| {
        let at = usize::try_from(block).unwrap() * 4096;
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    };
    let points = rig.node.points();
    // Fifteen marks fall into that time; a busy machine sets fewer.
    assert!(points.len() > 2, "{} points", points.len());
    for point in points {
        let last = (0..blocks).map(|block| number_at(&point.image, block)).max().unwrap();
        let mut expected = vec![0; usize::try_from(blocks).unwrap()];
        for (block, number) in writes.iter().zip(1..=last) {
            expected[usize::try_from(*block).unwrap()] = number;
        }
        for block in 0..blocks {
            let found = number_at(&point.image, block);
            assert_eq!(found, expected[usize::try_from(block).unwrap()], "block {block}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_orderly_stop_leaves_nothing_in_doubt_and_nothing_to_send_again() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let mut random = Random(5);
    for _ in 0..100 {
        change(&served, &mut random, size).await.unwrap();
    }
    drop(served);
    rig.stop().await;
    // The last mark is the disk.
    let last = rig.node.points().pop().unwrap();
    assert_eq!(last.seq.0, rig.node.received());
    assert!(*last.image == rig.disk_bytes());
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    assert_eq!(rig.node.bytes_in(), before, "nothing was sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_changed_while_the_agent_was_stopped_is_sent_anew() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    std::fs::write(rig.disk(), vec![8; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scan_sends_what_differs_and_nothing_else() {
    let size = 16 * MIB + 4096;
    let mut rig = Rig::new(size, Capture::Scan);
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    bytes[5 << 20..9 << 20].fill(3);
    std::fs::write(rig.disk(), &bytes).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    assert_eq!(rig.node.bytes_in(), 4 * MIB, "zeros are told, not sent");
    // Nobody says that the disk was still while it was read: the points say so, too.
    let is_scan = |point: &Point| point.mark.kind == MarkKind::Scan;
    assert!(rig.node.points().iter().all(is_scan), "the points of a scan say that they are fuzzy");
    let (seq, points) = (rig.node.received(), rig.node.points().len() as u64);
    rig.assert_point_is_disk().await;
    let (more, new) = (rig.node.received() - seq, rig.node.points().len() as u64 - points);
    assert!(more <= new + 1, "an unchanged disk sends marks only: {more} frames, {new} points");
    bytes[1_000_000] = 1;
    *bytes.last_mut().unwrap() = 7;
    std::fs::write(rig.disk(), &bytes).unwrap();
    let before = rig.node.bytes_in();
    rig.assert_point_is_disk().await;
    assert_eq!(rig.node.bytes_in() - before, 2 * 4096, "the units' zeros are told");
    // What the log or vault holds is remembered.
    rig.stop().await;
    bytes[2_000_000] = 1;
    std::fs::write(rig.disk(), &bytes).unwrap();
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    assert_eq!(rig.node.bytes_in() - before, 4096);
    // And forgotten when the vault has lost it.
    rig.node.forget();
    rig.until("resyncing", |report| report.state != VolumeState::Protected).await;
    rig.assert_point_is_disk().await;
}

/// P34: an idle disk costs nothing, and stays protected.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_idle_disk_sends_nothing_and_its_point_does_not_age() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    let set_at = rig.node.points().last().unwrap().mark.time_unix_ms;
    // Until it was idle for many intervals; its sessions stands by signs of life.
    let (received, hellos) = (rig.node.received(), rig.node.hellos().len());
    let alive = rig.node.alive();
    rig.until("idle for some signs of life", |_| rig.node.alive() >= alive + 2).await;
    let age = |report: &AgentVolumeReport| {
        let age_ms = crate::clock::unix_ms().saturating_sub(set_at);
        report.rpo_seconds.is_some_and(|rpo| rpo * 2000.0 < age_ms as f64)
    };
    rig.until("younger than its last point", age).await;
    assert_eq!((rig.node.received(), rig.node.hellos().len()), (received, hellos));
    // The next change: in front of it the disk as it was last.
    let served = rig.served().await;
    let written_at = crate::clock::unix_ms();
    served.write(0, Bytes::from(vec![7; 4096]), true).await.unwrap();
    rig.until("sent", |report| report.committed_seq >= received + 2).await;
    let points = rig.node.points();
    let kept = points.iter().find(|point| point.seq.0 == received + 1).expect("the kept mark");
    assert!(kept.mark.time_unix_ms > set_at && kept.mark.time_unix_ms <= written_at + 1);
    assert!(kept.image.iter().all(|byte| *byte == 0), "the disk before the write");
    rig.assert_point_is_disk().await;
}

/// A pass that finds nothing new adds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scanned_disk_that_rests_sends_nothing() {
    let mut rig = Rig::new(2 * MIB, Capture::Scan);
    std::fs::write(rig.disk(), vec![3; 2 << 20]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    let received = rig.node.received();
    let alive = rig.node.alive();
    rig.until("idle for some signs of life", |_| rig.node.alive() >= alive + 2).await;
    assert_eq!(rig.node.received(), received);
    assert_eq!(rig.report().state, VolumeState::Protected);
}

/// D51: a pass is under way when somebody writes and asks for a point; the pass has gone by there already.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_point_of_a_scan_has_what_was_written_before_it_was_asked_for() {
    use std::os::unix::fs::FileExt;
    const FREE: u64 = 0;
    const ARMED: u64 = 1;
    const HELD: u64 = 2;
    let size = 12 * MIB;
    let mut rig = Rig::new(size, Capture::Scan);
    // Nothing that could be passed over.
    std::fs::write(rig.disk(), vec![3; 12 << 20]).unwrap();
    let pass = Arc::new(AtomicU64::new(FREE));
    let (passing, at_end) = (Arc::clone(&pass), Arc::clone(&pass));
    let _at_end = AtEnd(|| at_end.store(FREE, Ordering::SeqCst));
    rig.start(Steps::with_disk(move |call| {
        let is_last = matches!(call, Call::Read { offset, length } if offset + length == size);
        let hold = || passing.compare_exchange(ARMED, HELD, Ordering::SeqCst, Ordering::SeqCst);
        if is_last && hold().is_ok() {
            while passing.load(Ordering::SeqCst) == HELD {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }));
    rig.until_protected().await;
    let disk = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
    for number in 4..8_u8 {
        pass.store(ARMED, Ordering::SeqCst);
        rig.until("in a pass", |_| pass.load(Ordering::SeqCst) == HELD).await;
        disk.write_all_at(&[number; 4096], 0).unwrap();
        let written_at = crate::clock::unix_ms();
        let asked = rig.point();
        let let_go = async {
            tokio::time::sleep(20 * PAUSE).await;
            pass.store(FREE, Ordering::SeqCst);
        };
        let (point, ()) = tokio::join!(asked, let_go);
        assert_eq!(point.image[0], number, "it was written before");
        // And no older one says that it is of later, whenever its pass was over.
        let older = rig.node.points().into_iter().filter(|other| other.seq < point.seq);
        let newest = older.map(|other| other.mark.time_unix_ms).max();
        assert!(newest <= Some(written_at), "{newest:?} is after {written_at}");
    }
}

/// N20: a node that takes connections and hangs is no secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_does_not_answer_is_told_of() {
    let mut rig = Rig::new(MIB, Capture::Nbd);
    rig.node.set_dumb(true);
    rig.start(Steps::default());
    rig.until("told", |report| report.detail.contains("has not answered for 10 s")).await;
    assert_ne!(rig.report().state, VolumeState::Protected);
    rig.node.set_dumb(false);
    rig.until_protected().await;
    assert_eq!(rig.report().detail, "");
}

/// D28: a scan that hangs in its disk sets no points, and that shows, however good the session is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scan_that_hangs_is_not_called_protected() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Scan);
    std::fs::write(rig.disk(), vec![3; 2 << 20]).unwrap();
    let hangs = Arc::new(AtomicBool::new(false));
    let (hanging, at_end) = (Arc::clone(&hangs), Arc::clone(&hangs));
    let _at_end = AtEnd(|| at_end.store(false, Ordering::SeqCst));
    rig.start(Steps::with_disk(move |call| {
        if matches!(call, Call::Read { .. }) {
            // A worker of the runtime that just sleeps keeps the task that it would run next to itself.
            tokio::task::block_in_place(|| {
                while hanging.load(Ordering::SeqCst) {
                    std::thread::sleep(PAUSE);
                }
            });
        }
        Ok(())
    }));
    rig.until_protected().await;
    hangs.store(true, Ordering::SeqCst);
    rig.until("told", |report| {
        report.state == VolumeState::Degraded && report.detail.contains("no point could be set")
    })
    .await;
    hangs.store(false, Ordering::SeqCst);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
}

/// A mark that was asked for is set once, whoever sets marks: what has one id is one point.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_point_that_was_asked_for_is_set_once() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.node.hold_commits(true);
    let point = Uuid::now_v7();
    rig.assigned.send_modify(|volume| {
        volume.marks_requested.push(MarkRequest { point, kind: PointKind::Crash });
    });
    let log = || Opening::open(&rig.env(Steps::default()), &rig.assigned.borrow(), false).unwrap();
    let (before, served) = (rig.node.received(), rig.served().await);
    served.write(0, Bytes::from(vec![7; 4096]), true).await.unwrap();
    rig.until("sent", |_| rig.node.received() >= before + 2).await;
    // In order: its last mark would come behind that one.
    drop(served);
    let live = rig.running.as_ref().unwrap();
    live.stop.send_replace(true);
    let deadline = Instant::now() + DEADLINE;
    while !live.task.is_finished() {
        assert!(Instant::now() < deadline, "it stops");
        tokio::time::sleep(PAUSE).await;
    }
    let marks: Vec<Uuid> = log().marks.iter().map(|(_, mark)| mark.point.into()).collect();
    assert!(marks.len() >= 2, "there is a last one, too: {marks:?}");
    assert_eq!(marks.iter().filter(|set| **set == point).count(), 1, "{marks:?}");
}
