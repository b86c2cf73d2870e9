//! Crashes, losses, refusals, and a disk that misbehaves.

use super::serving::connected;
use super::*;
use crate::capture::Call;

/// Stops the agent's work at a step, once it was reached so often; from then on nothing goes through.
fn trip(step: Step, after: u64) -> (Steps, Arc<AtomicBool>) {
    let (reached, tripped) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let is_tripped = Arc::clone(&tripped);
    let steps = Steps::with_hook(move |at| {
        if at == step && reached.fetch_add(1, Ordering::SeqCst) + 1 >= after {
            is_tripped.store(true, Ordering::SeqCst);
        }
        if is_tripped.load(Ordering::SeqCst) {
            return Err(io::Error::other("crashed"));
        }
        Ok(())
    });
    (steps, tripped)
}

/// Writes until the agent crashes at the step, kills it, starts it again: the next point is the disk,
/// and only regions in doubt were read again.
async fn crash_at(step: Step, after: u64, seed: u64) {
    let size = 32 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    let (steps, tripped) = trip(step, after);
    rig.start(steps);
    let served = rig.served().await;
    let writers = (0..4_u64).map(|writer| {
        let (served, tripped) = (served.clone(), Arc::clone(&tripped));
        tokio::spawn(async move {
            let mut random = Random(seed * 100 + writer + 1);
            for _ in 0..400 {
                // All in the first 2 MiB: the rest of the disk is never in doubt.
                if change(&served, &mut random, 2 * MIB).await.is_err() {
                    assert!(tripped.load(Ordering::SeqCst), "an error without a crash");
                    return;
                }
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    drop(served);
    tripped.store(true, Ordering::SeqCst);
    rig.kill().await;
    rig.node.set_offline(true);
    rig.start(Steps::default());
    // Without its node the agent says what it will do.
    rig.served().await;
    let report = rig.report();
    if report.state == VolumeState::Resyncing {
        assert!(report.detail.starts_with("re-reading"), "{report:?}");
        assert!(report.detail.contains("region"), "{report:?}");
    }
    let before = rig.node.bytes_in();
    rig.node.set_offline(false);
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    // The log's unsent rest may come too, but never the whole disk.
    assert!(rig.node.bytes_in() - before < 300 * MIB);
    assert!(rig.report().progress >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crash_at_any_step_of_a_write_loses_nothing() {
    use Step::{
        AfterDisk, AfterIntent, AfterLog, BeforeClear, BeforeDisk, BeforeFlush, BeforeIntent,
        BetweenFlushes,
    };
    for (index, step) in
        [BeforeIntent, AfterIntent, BeforeDisk, AfterDisk, AfterLog].into_iter().enumerate()
    {
        for after in [1, 2, 40] {
            crash_at(step, after, index as u64 + after * 10).await;
        }
    }
    for (step, after) in [(BeforeFlush, 3), (BetweenFlushes, 3), (BeforeClear, 1)] {
        crash_at(step, after, 77).await;
    }
}

/// Bytes of the disk that differ from the log are found although only the disk has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_regions_in_doubt_are_read_again_after_a_crash() {
    let size = 64 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![9; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    let (steps, _) = trip(Step::AfterDisk, 3);
    rig.start(steps);
    let served = rig.served().await;
    for block in [1_u64, 5_000, 10_000] {
        let data = Bytes::from(vec![7; 4096]);
        let _ = served.write(block * 4096, data, false).await;
    }
    drop(served);
    rig.kill().await;
    rig.node.set_offline(true);
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.served().await;
    let report = rig.report();
    assert_eq!(report.state, VolumeState::Resyncing);
    assert_eq!(report.detail, "re-reading 3 regions (768 KiB)");
    rig.node.set_offline(false);
    rig.assert_point_is_disk().await;
    let sent = rig.node.bytes_in() - before;
    assert!((3 * 262_144..=3 * 262_144 + 8192).contains(&sent), "{sent} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_during_the_copy_is_resumed() {
    let size = 48 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![5; usize::try_from(size).unwrap()]).unwrap();
    let mut random = Random(9);
    for round in 0..4 {
        rig.start(Steps::default());
        let served = rig.served().await;
        for _ in 0..round * 10 {
            change(&served, &mut random, size).await.unwrap();
        }
        drop(served);
        rig.kill().await;
    }
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_crashes_again_and_again_gets_everything() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let mut random = Random(11);
    for round in 0..10_u64 {
        rig.node.hold_commits(round % 2 == 0);
        for _ in 0..40 {
            change(&served, &mut random, size).await.unwrap();
        }
        rig.node.crash();
    }
    rig.node.hold_commits(false);
    rig.assert_point_is_disk().await;
    let restarts = rig.node.hellos().iter().filter(|hello| hello.last_seq == Seq(0)).count();
    assert!(restarts <= 1, "the log sufficed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_log_does_not_block_the_guest() {
    let size = 64 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.log_bytes_max = 16 * MIB;
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    rig.node.hold_commits(true);
    for block in 0..48_u64 {
        let data = Bytes::from(vec![u8::try_from(block + 1).unwrap(); 1 << 20]);
        served.write(block * MIB, data, false).await.unwrap();
    }
    rig.until("in doubt", |report| {
        report.state == VolumeState::Resyncing && report.detail.contains("when there is room")
    })
    .await;
    let points = rig.node.points().len();
    rig.node.hold_commits(false);
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    assert!(rig.node.points().len() > points);
    // And again across a kill.
    rig.node.hold_commits(true);
    for block in 0..48_u64 {
        let data = Bytes::from(vec![u8::try_from(block + 100).unwrap(); 1 << 20]);
        served.write(block * MIB, data, false).await.unwrap();
    }
    drop(served);
    rig.kill().await;
    rig.node.hold_commits(false);
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_vault_that_lost_everything_is_filled_again() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![5; usize::try_from(size).unwrap()]).unwrap();
    rig.log_bytes_max = 16 * MIB;
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let mut random = Random(13);
    for _ in 0..100 {
        change(&served, &mut random, size).await.unwrap();
    }
    rig.point().await;
    let hellos = rig.node.hellos().len();
    rig.node.forget();
    // It asks where to go on; that it was protected before says nothing any more.
    rig.until("a hello", |_| rig.node.hellos().len() > hellos).await;
    change(&served, &mut random, size).await.unwrap();
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
}

/// A power cut: the end of the log is gone, the node has it, and the disk is older.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_power_cut_is_healed_by_reading_regions_not_the_disk() {
    let size = 64 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![9; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    served.flush().await.unwrap();
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(rig.log_dir()).unwrap().flatten().collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        files.pop().unwrap().path()
    };
    let durable = std::fs::metadata(files()).unwrap().len();
    served.write(3 * MIB, Bytes::from(vec![1; 8192]), false).await.unwrap();
    served.write(9 * MIB, Bytes::from(vec![2; 8192]), false).await.unwrap();
    rig.point().await;
    let (newest, sent) = (files(), rig.node.received());
    drop(served);
    rig.kill().await;
    std::fs::OpenOptions::new().write(true).open(newest).unwrap().set_len(durable).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
    // The disk as a power cut leaves it: its time tells nothing of a write that was lost.
    let changed = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 8192], 3 * MIB).unwrap();
    file.set_modified(changed).unwrap();
    drop(file);
    let before = rig.node.bytes_in();
    // The agent runs without its node for a while, and is killed once more.
    rig.node.set_offline(true);
    rig.start(Steps::default());
    let served = rig.served().await;
    for block in 0..200 {
        served.write(20 * MIB + block * 4096, Bytes::from(vec![4; 4096]), false).await.unwrap();
    }
    drop(served);
    rig.kill().await;
    rig.start(Steps::default());
    rig.served().await;
    rig.node.set_offline(false);
    rig.assert_point_is_disk().await;
    assert!(rig.node.received() > sent);
    let sent = rig.node.bytes_in() - before;
    assert!(sent < 8 * MIB, "{sent} bytes for a handful of regions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_or_lost_log_means_the_whole_disk_again() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![5; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    std::fs::remove_dir_all(rig.log_dir()).unwrap();
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    assert!(rig.node.bytes_in() - before >= size);
    rig.kill().await;
    let newest = std::fs::read_dir(rig.log_dir()).unwrap().flatten().next().unwrap().path();
    let file = std::fs::OpenOptions::new().write(true).open(newest).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff], 64 + 50).unwrap();
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    assert!(rig.node.bytes_in() - before >= size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fenced_volume_says_so_and_goes_on_under_a_new_epoch() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.node.refuse(Some(RefusalReason::Fenced));
    rig.until("fenced", |report| {
        report.state == VolumeState::Error && report.detail.contains("a newer epoch owns")
    })
    .await;
    let served = rig.served().await;
    served.write(0, Bytes::from(vec![6; 4096]), true).await.unwrap();
    rig.node.refuse(None);
    rig.assigned.send_modify(|volume| volume.epoch = 2);
    rig.assert_point_is_disk().await;
    assert_eq!(rig.node.hellos().last().unwrap().epoch, Epoch(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_is_missing_or_resized_is_told_and_comes_back() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    let aside = rig.dir.path().join("aside");
    std::fs::rename(rig.disk(), &aside).unwrap();
    rig.start(Steps::default());
    rig.until("missing", |report| {
        report.error.as_ref().is_some_and(|error| error.contains("is missing: attach it again"))
    })
    .await;
    std::fs::rename(&aside, rig.disk()).unwrap();
    rig.until_protected().await;
    let served = rig.served().await;
    served.write(0, Bytes::from(vec![6; 4096]), false).await.unwrap();
    drop(served);
    rig.stop().await;
    let resize = |bytes: u64| {
        std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap().set_len(bytes).unwrap();
    };
    resize(MIB);
    rig.start(Steps::default());
    rig.until("too small", |report| {
        let error = report.error.clone().unwrap_or_default();
        report.state == VolumeState::Error && error.contains("1048576 bytes, but 2097152 bytes")
    })
    .await;
    let resize = |bytes: u64| {
        std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap().set_len(bytes).unwrap();
    };
    resize(size);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    // It shrinks and comes back while it is served.
    resize(MIB);
    rig.until("shrunk", |report| report.state == VolumeState::Error).await;
    resize(size);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_in_the_log_reaches_the_vault_without_the_disk() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.node.set_offline(true);
    let served = rig.served().await;
    // Before the writes: a session that has not noticed yet may still send some of them.
    let wanted = rig.report().sent_seq + 20;
    for block in 0..20 {
        served.write(block * 4096, Bytes::from(vec![6; 4096]), false).await.unwrap();
    }
    drop(served);
    rig.kill().await;
    std::fs::remove_file(rig.disk()).unwrap();
    rig.start(Steps::default());
    rig.node.set_offline(false);
    rig.until("drained", |report| report.committed_seq >= wanted).await;
    assert_eq!(rig.report().state, VolumeState::Error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_kills_never_lose_a_write() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.log_bytes_max = 16 * MIB;
    let mut random = Random(17);
    let log = Arc::new(Mutex::new(0));
    for round in 0..25_u64 {
        rig.start(Steps::default());
        let served = rig.served().await;
        rig.node.hold_commits(random.below(3) == 0);
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (served, log) = (served.clone(), Arc::clone(&log));
                tokio::spawn(async move {
                    let mut random = Random(round * 10 + writer + 1);
                    loop {
                        if change(&served, &mut random, 4 * MIB).await.is_err() {
                            return;
                        }
                        *log.lock().unwrap() += 1;
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(10 + random.below(120))).await;
        if random.below(3) == 0 {
            rig.node.crash();
        }
        for writer in writers {
            writer.abort();
            let _ = writer.await;
        }
        drop(served);
        rig.kill().await;
        rig.node.hold_commits(false);
        if round % 5 == 4 {
            rig.start(Steps::default());
            rig.assert_point_is_disk().await;
            rig.kill().await;
        }
    }
    assert!(*log.lock().unwrap() > 500);
}

/// D26: the system may have dropped what it could not write, and calls the next flush a success.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failed_flush_is_the_last_word_until_the_disk_is_opened_anew() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    let fails = Arc::new(AtomicBool::new(false));
    let forgotten = Arc::new(AtomicU64::new(0));
    let (failing, forgetting) = (Arc::clone(&fails), Arc::clone(&forgotten));
    rig.start(Steps::with_disk(move |call| match call {
        Call::Sync if failing.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(5)),
        Call::Forget => {
            forgetting.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        _ => Ok(()),
    }));
    rig.until_protected().await;
    let served = rig.served().await;
    let client = connected(&rig.report());
    let data = || Bytes::from(vec![7; 8192]);
    served.write(0, data(), false).await.unwrap();
    fails.store(true, Ordering::SeqCst);
    let first = served.flush().await.unwrap_err();
    fails.store(false, Ordering::SeqCst);
    let second = served.flush().await.unwrap_err();
    assert_eq!(first.to_string(), second.to_string());
    served.write(4096, data(), true).await.unwrap_err();
    served.write(8192, data(), false).await.expect("it is served as long as the disk serves");
    rig.until("in error", |report| {
        report.state == VolumeState::Error
            && report.detail.contains("could not be flushed: Input/output error")
            && report.detail.contains("check the disk")
    })
    .await;
    let points = rig.node.points().len();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(rig.node.points().len(), points, "no mark while the disk may forget");
    served.flush().await.expect_err("the client that was told is still there");
    let before = rig.node.bytes_in();
    drop((client, served));
    rig.until("read again", |report| report.state == VolumeState::Protected).await;
    assert!(rig.node.bytes_in() > before, "the whole disk was read again");
    // At the first start, after the failure, and when it was opened anew: what the system kept in memory
    // behind a failed flush is not what the disk has.
    assert_eq!(forgotten.load(Ordering::SeqCst), 3, "the disk itself was read");
    rig.served().await.flush().await.unwrap();
    rig.assert_point_is_disk().await;
}
