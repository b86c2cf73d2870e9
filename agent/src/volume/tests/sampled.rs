//! Comparing a served disk with what was sent of it.

use super::*;
use crate::loops::Loop;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 4 * MIB;

impl Rig {
    /// Waits until the whole disk was compared once more.
    async fn until_compared(&self) {
        let rounds = |report: &AgentVolumeReport| report.samples.unwrap_or_default().rounds;
        let before = rounds(&self.report());
        self.until("compared", |report| rounds(report) > before + 1).await;
    }

    fn differences(&self) -> u64 {
        self.report().samples.unwrap_or_default().differences
    }

    fn filled(size_bytes: u64) -> Self {
        let rig = Self::new(size_bytes, Capture::Nbd);
        let bytes: Vec<u8> =
            (0..size_bytes).map(|at| u8::try_from(at / 4096 % 251).unwrap() | 1).collect();
        std::fs::write(rig.disk(), bytes).unwrap();
        rig
    }
}

/// D34: one byte that nobody was seen to change is found, told, read again and in the next point.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_byte_that_changed_unseen_is_told_and_read_again() {
    let mut rig = Rig::filled(SIZE + 1000);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.until_compared().await;
    assert_eq!(rig.differences(), 0);
    let at = SIZE - 5000;
    rig.served().await.0.change_unseen(&[0xee], at);
    rig.until("told", |report| report.samples.is_some_and(|samples| samples.differences == 1))
        .await;
    let last = rig.report().samples.unwrap().last.unwrap();
    assert_eq!((last.offset, last.length), (at / 4096 * 4096, 4096));
    assert!(last.time_unix_ms > 0);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    rig.until_compared().await;
    assert_eq!(rig.differences(), 1, "it was mended");
    // In the last block, which the disk has in part.
    rig.served().await.0.change_unseen(&[0xee], SIZE + 999);
    rig.until("told", |report| report.samples.is_some_and(|samples| samples.differences == 2))
        .await;
    let last = rig.report().samples.unwrap().last.unwrap();
    assert_eq!((last.offset, last.length), (SIZE, 1000));
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    // It is remembered.
    rig.stop().await;
    rig.start(Steps::default());
    rig.until_compared().await;
    assert_eq!(rig.differences(), 2);
}

/// D34: a device under which somebody changes bytes, which the kernel counts as nobody's write of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_device_that_changes_below_is_found() {
    let mut rig = Rig::filled(SIZE);
    let Some(device) = Loop::over(&rig.disk()) else { return };
    rig.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.until_compared().await;
    // The system keeps what it read of the device; what is below shows once that is dropped.
    let below = std::fs::File::options().write(true).open(rig.disk()).unwrap();
    below.write_all_at(&[0xee; 3 * 4096], 77 * 4096).unwrap();
    let cached = std::fs::File::open(&device.0).unwrap();
    rustix::fs::fadvise(&cached, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    rig.until("told", |report| report.samples.is_some_and(|samples| samples.differences > 0)).await;
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    rig.stop().await;
}

/// D34: somebody who wrote much past the capture has the whole disk read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_differences_have_the_whole_disk_read_again() {
    let mut rig = Rig::filled(SIZE);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let before = rig.node.bytes_in();
    for unit in 0..SIZE / 65_536 {
        served.0.change_unseen(&[0xee; 512], unit * 65_536);
    }
    rig.until("read again", |_| rig.node.bytes_in() >= before + SIZE).await;
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    assert!(rig.differences() >= 16, "{}", rig.differences());
}

/// D34: nothing that we do is taken for a difference, however the disk is written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_writes_kills_and_stops_are_no_difference() {
    let size = SIZE + 512;
    let mut rig = Rig::filled(size);
    let mut random = Random(0x5eed);
    for run in 0..6 {
        rig.start(Steps::default());
        let served = rig.served().await;
        let begun = rig.report().samples.unwrap_or_default().bytes;
        let mut changes = 0;
        while changes < 300 || rig.report().samples.unwrap_or_default().bytes < begun + size {
            let many = (0..8).map(|salt| {
                let mut random = Random(random.below(u64::MAX) ^ salt | 1);
                let served = served.clone();
                tokio::spawn(async move { change(&served, &mut random, size).await })
            });
            for done in many.collect::<Vec<_>>() {
                done.await.unwrap().unwrap();
            }
            changes += 8;
            // What is copied and in doubt is not compared: there must be moments without.
            if changes % 64 == 0 {
                rig.until("at rest", |_| served.0.is_consistent()).await;
            }
        }
        rig.until_protected().await;
        rig.until_compared().await;
        assert_eq!(rig.differences(), 0, "run {run}: {:?}", rig.report().samples);
        drop(served);
        if run % 2 == 0 { rig.kill().await } else { rig.stop().await }
    }
}

/// D34: without a file that can be kept the disk is served, and nothing is compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_is_served_without_prints() {
    let mut rig = Rig::filled(SIZE);
    let dir = rig.log_dir().parent().unwrap().to_owned();
    std::fs::create_dir_all(dir.join("prints")).unwrap();
    rig.start(Steps::default());
    // Not even what is in the way can be removed.
    rig.until_protected().await;
    assert_eq!(rig.report().samples, None);
    rig.stop().await;
    std::fs::remove_dir(dir.join("prints")).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    // Cut behind our back: it knows nothing, and learns.
    std::fs::File::options().write(true).open(dir.join("prints")).unwrap().set_len(4096).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.until_compared().await;
    assert_eq!(rig.differences(), 0);
    rig.stop().await;
    rig.sample_rate = 0;
    rig.start(Steps::default());
    rig.until_protected().await;
    assert_eq!(rig.report().samples, None);
    assert!(!dir.join("prints").exists(), "what is not kept up would be wrong later");
}

/// D34: a difference that was found and not read again when the agent was killed is in no point of the next
/// run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_right_behind_a_difference_reads_the_disk_again() {
    let mut rig = Rig::filled(SIZE);
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.until_compared().await;
    // As many as it takes to note the difference; the intent of what differs is not durable any more.
    rig.files.set_left(3);
    rig.served().await.0.change_unseen(&[0xee], 5000);
    let deadline = Instant::now() + DEADLINE;
    while !rig.files.is_blown() {
        assert!(Instant::now() < deadline, "not found: {:?}", rig.report());
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!(rig.differences(), 1);
    rig.kill().await;
    rig.files.set_left(u64::MAX);
    // Nobody finds it anew.
    rig.sample_rate = 0;
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.stop().await;
}

/// D48: what cannot be noted is read again once, not with each attempt; a kill meanwhile reads all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_differs_much_is_read_once_while_that_cannot_be_noted() {
    let mut rig = Rig::filled(SIZE);
    rig.start(Steps::default());
    rig.until_protected().await;
    let splitter = rig.served().await.0;
    let change = |byte: u8| {
        for unit in 0..SIZE / 65_536 {
            splitter.change_unseen(&[byte; 512], unit * 65_536);
        }
    };
    rig.files.refuse(Some("state.json"));
    change(0xee);
    rig.until("told", |report| report.detail.contains("no point is set before it does")).await;
    let points = rig.node.points().len();
    rig.until("read", |report| report.detail.contains("no point") && report.progress >= 1.0).await;
    assert_eq!(rig.node.points().len(), points, "a start would not know of it");
    rig.files.refuse(None);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    rig.until_compared().await;
    rig.files.refuse(Some("state.json"));
    change(0xdd);
    rig.until("told", |report| report.detail.contains("no point is set before it does")).await;
    drop(splitter);
    rig.kill().await;
    rig.files.refuse(None);
    rig.sample_rate = 0;
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.stop().await;
}
