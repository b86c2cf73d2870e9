//! Servers that go back to an earlier state together with their agent's directory, and copies of them.

use super::*;
use std::path::Path;

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &target).unwrap();
            let time = entry.metadata().unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(target).unwrap().set_modified(time).unwrap();
        }
    }
}

impl Rig {
    /// What a snapshot of the server holds. Nothing may be writing to its disk.
    fn snapshot(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        copy_tree(self.dir.path(), copy.path());
        copy
    }

    /// The server goes back to a snapshot; its agent does not run.
    fn go_back(&self, snapshot: &tempfile::TempDir) {
        let volumes = self.dir.path().join("volumes");
        std::fs::remove_dir_all(&volumes).unwrap();
        copy_tree(snapshot.path(), self.dir.path());
    }

    async fn write(&self, offset: u64, byte: u8) {
        let served = self.served().await;
        served.write(offset, Bytes::from(vec![byte; 8192]), false).await.unwrap();
    }
}

async fn begun(size: u64) -> Rig {
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![9; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.write(3 * MIB, 1).await;
    rig.served().await.flush().await.unwrap();
    rig.point().await;
    rig
}

/// Within one session nothing but the intents tells the time before the snapshot from that after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_within_a_session_reads_the_whole_disk_again() {
    let mut rig = begun(32 * MIB).await;
    let snapshot = rig.snapshot();
    rig.write(9 * MIB, 2).await;
    rig.served().await.flush().await.unwrap();
    rig.assert_point_is_disk().await;
    rig.kill().await;
    rig.go_back(&snapshot);
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    // And once more to the same snapshot.
    rig.write(20 * MIB, 3).await;
    rig.assert_point_is_disk().await;
    rig.kill().await;
    rig.go_back(&snapshot);
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_beyond_starts_reads_the_whole_disk_again() {
    let mut rig = begun(32 * MIB).await;
    rig.kill().await;
    let snapshot = rig.snapshot();
    for (round, offset) in [(1, 9 * MIB), (2, 15 * MIB)] {
        rig.start(Steps::default());
        rig.write(offset, round).await;
        rig.assert_point_is_disk().await;
        rig.kill().await;
    }
    rig.go_back(&snapshot);
    // Its node is away at first: what it logs meanwhile makes it look no newer.
    rig.node.set_offline(true);
    rig.start(Steps::default());
    for block in 0..50 {
        rig.write(20 * MIB + block * MIB / 8, 4).await;
    }
    rig.kill().await;
    rig.start(Steps::default());
    rig.served().await;
    rig.node.set_offline(false);
    rig.assert_point_is_disk().await;
}

/// P41: it is set back with its memory, so that the same run goes on under the same intents. What it sends then is
/// lost with the old connection, and the node has as many frames of the time that is no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_with_its_memory_reads_the_whole_disk_again() {
    let rig = begun(16 * MIB).await;
    rig.node.hold_commits(true);
    let before = rig.node.received();
    rig.write(3 * MIB, 2).await;
    rig.until("it to be received", |_| rig.node.received() > before).await;
    rig.node.set_offline(true);
    rig.node.take_others(12 << 20, 7);
    rig.node.hold_commits(false);
    rig.node.set_offline(false);
    rig.assert_point_is_disk().await;
}

/// Two branches of one snapshot that logged as many frames: their numbers join, their frames do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_to_another_branch_is_found_although_the_numbers_join() {
    let mut rig = begun(16 * MIB).await;
    let before = rig.snapshot();
    // This branch logs much that its node never gets.
    rig.node.set_offline(true);
    for block in 0..300 {
        rig.write(5 * MIB + block * 8192, 5).await;
    }
    rig.kill().await;
    let branch = rig.snapshot();
    rig.go_back(&before);
    rig.node.set_offline(false);
    rig.start(Steps::default());
    rig.write(10 * MIB, 6).await;
    rig.assert_point_is_disk().await;
    rig.kill().await;
    rig.go_back(&branch);
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
}

/// Where no intent was written since the snapshot, all later writes lie in regions that have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_over_known_intents_reads_those_regions_only() {
    let size = 64 * MIB;
    let mut rig = begun(size).await;
    rig.write(9 * MIB, 2).await;
    rig.point().await;
    let snapshot = rig.snapshot();
    rig.write(9 * MIB, 3).await;
    rig.assert_point_is_disk().await;
    rig.kill().await;
    rig.go_back(&snapshot);
    let before = rig.node.bytes_in();
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    let sent = rig.node.bytes_in() - before;
    assert!(sent < size / 4, "{sent} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_contested_volume_says_so_and_its_guest_runs_on() {
    let rig = begun(4 * MIB).await;
    rig.node.refuse(Some(RefusalReason::Contested));
    rig.until("contested", |report| {
        let is_told = report.detail.contains("contested");
        report.state == VolumeState::Error && is_told && report.error.is_some()
    })
    .await;
    rig.write(0, 7).await;
    rig.node.refuse(None);
    rig.assert_point_is_disk().await;
    // Overtaken once, it says so when it comes back, and only then.
    rig.node.refuse(Some(RefusalReason::Overtaken));
    rig.until("overtaken", |_| rig.node.hellos().last().unwrap().is_overtaken).await;
    rig.node.refuse(None);
    rig.assert_point_is_disk().await;
    rig.node.crash();
    rig.until("back", |_| !rig.node.hellos().last().unwrap().is_overtaken).await;
}
