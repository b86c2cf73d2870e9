//! The agent's own directory is full, read-only, fails or hangs: the guest reads and writes on. D30, D31.

use super::*;
use crate::faulty_files::Sickness;

async fn write(rig: &Rig, offset: u64, byte: u8) {
    let served = rig.served().await;
    let written = served.write(offset, Bytes::from(vec![byte; 8192]), true);
    tokio::time::timeout(DEADLINE, written).await.expect("the guest is answered").unwrap();
    let read = served.read(offset, 8192).await.unwrap();
    assert_eq!(read.len(), 1);
}

fn filled(size: u64) -> Rig {
    let rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![9; usize::try_from(size).unwrap()]).unwrap();
    rig
}

/// Bytes of the disk that nobody logged: as a power cut leaves it, with the time of before.
fn change_unseen(rig: &Rig, offset: u64, byte: u8) {
    let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
    let changed = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 8192], offset).unwrap();
    file.set_modified(changed).unwrap();
}

/// A volume whose directory takes no intents any more; the log takes what is written.
async fn without_intents(sickness: Sickness, size: u64) -> Rig {
    let mut rig = filled(size);
    rig.start(Steps::default());
    rig.until_protected().await;
    write(&rig, 0, 1).await;
    rig.files.sicken(sickness);
    for region in 1..40 {
        write(&rig, region * 256 * 1024, 2).await;
    }
    rig.until("told", |report| {
        report.state == VolumeState::Degraded
            && report.detail.contains("does not take which regions are written")
    })
    .await;
    // Points are still the disk.
    rig.assert_point_is_disk().await;
    rig
}

/// D30: writes go on without intents, which come back by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_write_whose_intent_cannot_be_had_goes_on() {
    let size = 16 * MIB;
    for sickness in [Sickness::NotWritten("intent"), Sickness::Hangs("intent")] {
        let mut rig = without_intents(sickness, size).await;
        rig.files.sicken(Sickness::None);
        let before = rig.node.bytes_in();
        rig.until_protected().await;
        write(&rig, 15 * MIB, 3).await;
        rig.assert_point_is_disk().await;
        assert!(rig.node.bytes_in() - before < size / 2, "nothing had to be read again");
        // All regions have intent by now: after a kill they are read again.
        rig.kill().await;
        change_unseen(&rig, 12 * MIB + 512 * 1024, 7);
        rig.start(Steps::default());
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}

/// D30: a kill while there are no intents means the whole disk, whatever the file said before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_without_intents_reads_the_whole_disk() {
    let size = 16 * MIB;
    let mut rig = without_intents(Sickness::NotWritten("intent"), size).await;
    rig.kill().await;
    // In a region that was never written.
    change_unseen(&rig, 12 * MIB + 512 * 1024, 7);
    rig.files.sicken(Sickness::None);
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    assert!(rig.node.bytes_in() - before >= size / 2, "the whole disk was read again");
    rig.stop().await;
}

/// D30: a directory that takes nothing at all, and a kill: the server remembers that there are no intents.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_on_a_directory_that_takes_nothing_reads_the_whole_disk() {
    let size = 16 * MIB;
    for is_started_so in [false, true] {
        let mut rig = filled(size);
        let run = rig.dir.path().join("run");
        rig.files.outlast_in(run.clone());
        rig.start(Steps::default());
        rig.until_protected().await;
        write(&rig, 0, 1).await;
        rig.assert_point_is_disk().await;
        // As a block device: nothing tells later that it was written.
        let changed = std::fs::metadata(rig.disk()).unwrap().modified().unwrap();
        if is_started_so {
            rig.stop().await;
        }
        rig.files.sicken(Sickness::ReadOnly);
        if is_started_so {
            rig.start(Steps::default());
        }
        write(&rig, 12 * MIB, 2).await;
        rig.kill().await;
        std::fs::File::open(rig.disk()).unwrap().set_modified(changed).unwrap();
        // Killed once more before the directory takes anything.
        rig.start(Steps::default());
        rig.served().await;
        rig.kill().await;
        std::fs::File::open(rig.disk()).unwrap().set_modified(changed).unwrap();
        rig.files.sicken(Sickness::None);
        let before = rig.node.bytes_in();
        rig.start(Steps::default());
        rig.assert_point_is_disk().await;
        assert!(rig.node.bytes_in() - before >= size / 2, "the whole disk was read again");
        assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0, "it is said where it belongs");
        rig.stop().await;
    }
}

/// D31: an agent that is started without room, or on a directory that takes nothing, serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_that_is_started_without_room_serves_and_catches_up() {
    for sickness in [Sickness::Full, Sickness::ReadOnly] {
        for is_new in [true, false] {
            let size = 8 * MIB;
            let mut rig = filled(size);
            if !is_new {
                rig.start(Steps::default());
                rig.until_protected().await;
                write(&rig, 0, 1).await;
                rig.kill().await;
            }
            rig.files.sicken(sickness);
            rig.start(Steps::default());
            write(&rig, MIB, 2).await;
            write(&rig, 5 * MIB, 3).await;
            rig.until("told", |report| {
                report.state != VolumeState::Protected && report.detail.contains("takes nothing")
            })
            .await;
            let points = rig.node.points().len();
            rig.files.sicken(Sickness::None);
            rig.assert_point_is_disk().await;
            rig.until_protected().await;
            assert!(rig.node.points().len() > points);
            // Killed in the middle of it, and started when there is room again.
            rig.stop().await;
            rig.files.sicken(sickness);
            rig.start(Steps::default());
            write(&rig, 3 * MIB, 4).await;
            rig.kill().await;
            rig.files.sicken(Sickness::None);
            rig.start(Steps::default());
            rig.assert_point_is_disk().await;
            rig.stop().await;
        }
    }
}

/// D5: writes that the log does not take are ours all the same: a kill means their regions, not the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kill_with_a_full_log_reads_the_regions_that_were_not_logged() {
    let size = 64 * MIB;
    let mut rig = filled(size);
    rig.log_bytes_max = 16 * MIB;
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.node.hold_commits(true);
    let served = rig.served().await;
    for block in 0..20_u64 {
        let data = Bytes::from(vec![u8::try_from(block + 1).unwrap(); 1 << 20]);
        served.write(block % 10 * MIB, data, false).await.unwrap();
    }
    rig.until("full", |report| report.detail.contains("when there is room")).await;
    // Later than what is allowed for between the disk and what is noted.
    let deadline = Instant::now() + Duration::from_millis(400);
    while Instant::now() < deadline {
        served.write(0, Bytes::from(vec![77; 4096]), false).await.unwrap();
    }
    drop(served);
    rig.kill().await;
    rig.node.hold_commits(false);
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    let sent = rig.node.bytes_in() - before;
    assert!(sent < size / 2, "{sent} bytes");
}

/// D49: the log's file system hangs. The guest of that volume reads, writes and flushes on, the other's too, and
/// afterwards points are the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_hangs_holds_up_no_guest() {
    // The log alone, and all that the agent keeps of the volume.
    for part in ["hrl", "volumes"] {
        holds_up_no_guest(part).await;
    }
}

async fn holds_up_no_guest(part: &'static str) {
    let size = 16 * MIB;
    let (mut rig, mut other) = (filled(size), filled(size));
    for rig in [&mut rig, &mut other] {
        rig.start(Steps::default());
        rig.until_protected().await;
    }
    rig.files.sicken(Sickness::Hangs(part));
    for region in 0..20 {
        write(&rig, region * 256 * 1024, 1).await;
        write(&other, region * 256 * 1024, 2).await;
    }
    // More than threads that may wait for one disk.
    let served = rig.served().await;
    let many =
        (0..40).map(|at| served.write(8 * MIB + at * 8192, Bytes::from(vec![3; 8192]), false));
    let many = futures::future::join_all(many);
    for written in tokio::time::timeout(DEADLINE, many).await.expect("all are answered") {
        written.unwrap();
    }
    rig.until("told", |report| report.detail.contains("does not answer")).await;
    other.assert_point_is_disk().await;
    let points = rig.node.points().len();
    rig.files.sicken(Sickness::None);
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    assert!(rig.node.points().len() > points);
    // Killed while it hangs: what was not logged has its intent.
    rig.files.sicken(Sickness::Hangs(part));
    write(&rig, 3 * MIB, 4).await;
    write(&rig, 5 * MIB, 5).await;
    drop(served);
    let files = rig.files.clone();
    tokio::join!(rig.kill(), async { files.sicken(Sickness::None) });
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.stop().await;
    other.stop().await;
}

/// D49: what is being copied when the log hangs can be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_log_hangs_lets_its_blocks_go() {
    let size = 64 * MIB;
    let mut rig = filled(size);
    rig.start(Steps::default());
    rig.served().await;
    rig.files.sicken(Sickness::Hangs("hrl"));
    for region in 0..64 {
        write(&rig, region * MIB + 4096, 1).await;
    }
    rig.files.sicken(Sickness::None);
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    rig.stop().await;
}

/// D49: hangs that come and go, while all kinds of changes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hangs_of_the_log_that_come_and_go_lose_nothing() {
    let size = 8 * MIB;
    let mut rig = filled(size);
    rig.start(Steps::default());
    let served = rig.served().await;
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (served, stopped) = (served.clone(), stopped.clone());
            tokio::spawn(async move {
                let (mut random, mut changes) = (Random(writer + 1), 0_u64);
                while !*stopped.borrow() {
                    change(&served, &mut random, size).await.unwrap();
                    changes += 1;
                }
                changes
            })
        })
        .collect();
    for hang_ms in [50, 2_500, 1_900, 2_100, 10, 2_300] {
        rig.files.sicken(Sickness::Hangs("hrl"));
        tokio::time::sleep(Duration::from_millis(hang_ms)).await;
        rig.files.sicken(Sickness::None);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.send_replace(true);
    for writer in writers {
        let changes =
            tokio::time::timeout(DEADLINE, writer).await.expect("it is answered").unwrap();
        assert!(changes > 0);
    }
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    assert_eq!(rig.report().samples.unwrap_or_default().differences, 0);
    drop(served);
    rig.stop().await;
}
