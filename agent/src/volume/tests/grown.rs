//! A disk that grows while it is captured.

use super::*;
use crate::faulty_files::Sickness;
use crate::loops::Loop;
use std::os::unix::fs::FileExt;
use std::process::Command;

const OLD: u64 = 2 * MIB + 1000;
const NEW: u64 = 5 * MIB + 512;

impl Rig {
    fn of_old_size(capture: Capture) -> Self {
        let rig = Self::new(OLD, capture);
        std::fs::write(rig.disk(), vec![b'o'; usize::try_from(OLD).unwrap()]).unwrap();
        rig
    }

    /// The disk grows, with bytes in it that are no zeros.
    fn grow_disk(&self) {
        let file = std::fs::File::options().write(true).open(self.disk()).unwrap();
        file.set_len(NEW).unwrap();
        file.write_all_at(&[b'n'; 3000], OLD).unwrap();
        file.write_all_at(&[b'n'; 5000], NEW - 5000).unwrap();
    }

    /// As the control plane does when it hears of it.
    fn grant(&self, size_bytes: u64) {
        self.assigned.send_modify(|volume| {
            volume.epoch += 1;
            volume.size_bytes = Some(size_bytes);
        });
    }

    async fn until_asked(&self, size_bytes: u64) {
        self.until("asked", |report| report.grown_to_bytes == Some(size_bytes)).await;
    }

    async fn until_grown(&self) {
        self.until("grown", |report| {
            report.size_bytes == NEW
                && report.grown_to_bytes.is_none()
                && report.state == VolumeState::Protected
        })
        .await;
    }
}

fn is_all(image: &[u8], byte: u8) -> bool {
    image.iter().all(|found| *found == byte)
}

/// D35: the guest reads and writes on; points of before have the size of before, the next ones are the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_grows_under_its_guest() {
    let mut rig = Rig::of_old_size(Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    assert_eq!(served.size_bytes(), OLD);
    let before = rig.point().await;
    let (stop, stopped) = watch::channel(false);
    let guest = tokio::spawn({
        let served = served.clone();
        async move {
            let mut random = Random(7);
            let mut changes = 0_u64;
            while !*stopped.borrow() {
                change(&served, &mut random, OLD).await.unwrap();
                changes += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            changes
        }
    });
    rig.grow_disk();
    rig.until_asked(NEW).await;
    let between = rig.point().await;
    rig.grant(NEW);
    rig.until_grown().await;
    assert_eq!(served.size_bytes(), NEW, "who comes now sees it");
    served.write(NEW - 100, Bytes::from(vec![b'g'; 100]), true).await.unwrap();
    stop.send_replace(true);
    assert!(guest.await.unwrap() > 0);
    rig.assert_point_is_disk().await;
    let old_blocks = usize::try_from(OLD.next_multiple_of(4096)).unwrap();
    assert!(is_all(&before.image[..usize::try_from(OLD).unwrap()], b'o'));
    assert_eq!((before.image.len(), between.image.len()), (old_blocks, old_blocks));
    // It is what is remembered.
    drop(served);
    rig.stop().await;
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    rig.kill().await;
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    assert_eq!(rig.report().samples.unwrap().differences, 0);
}

/// D35: of a device only what is new is copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_device_grows_and_only_what_is_new_is_copied() {
    let (old, new) = (2 * MIB, 3 * MIB);
    let mut rig = Rig::new(old, Capture::Nbd);
    std::fs::write(rig.disk(), vec![b'o'; usize::try_from(old).unwrap()]).unwrap();
    let Some(device) = Loop::over(&rig.disk()) else { return };
    rig.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
    rig.start(Steps::default());
    rig.until_protected().await;
    let sent = rig.node.bytes_in();
    let below = std::fs::File::options().write(true).open(rig.disk()).unwrap();
    below.set_len(new).unwrap();
    below.write_all_at(&[b'n'; 4096], new - 4096).unwrap();
    assert!(Command::new("losetup").args(["-c", &device.0]).status().unwrap().success());
    rig.until_asked(new).await;
    rig.grant(new);
    rig.until("grown", |report| report.size_bytes == new && report.state == VolumeState::Protected)
        .await;
    rig.assert_point_is_disk().await;
    assert!(rig.node.bytes_in() - sent <= MIB, "{} bytes", rig.node.bytes_in() - sent);
    rig.stop().await;
}

/// D35: what grew while the agent was off is asked for, and what was given meanwhile is taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_grew_while_nobody_looked_is_taken_over() {
    for is_granted in [false, true] {
        let mut rig = Rig::of_old_size(Capture::Nbd);
        rig.start(Steps::default());
        rig.until_protected().await;
        if is_granted {
            rig.kill().await;
        } else {
            rig.stop().await;
        }
        rig.grow_disk();
        if is_granted {
            rig.grant(NEW);
        }
        rig.start(Steps::default());
        if !is_granted {
            assert_eq!(rig.served().await.size_bytes(), OLD, "served on as it was");
            rig.until_asked(NEW).await;
            rig.until("told", |report| report.detail.contains("has grown to")).await;
            rig.grant(NEW);
        }
        rig.until_grown().await;
        rig.assert_point_is_disk().await;
    }
}

/// D35: what shrank again is refused by name, as all that shrinks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_shrinks_again_is_told_by_name() {
    let mut rig = Rig::of_old_size(Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let file = std::fs::File::options().write(true).open(rig.disk()).unwrap();
    file.set_len(NEW).unwrap();
    rig.until_asked(NEW).await;
    file.set_len(OLD).unwrap();
    rig.until("not asked", |report| report.grown_to_bytes.is_none()).await;
    rig.until_protected().await;
    rig.grant(NEW);
    rig.until("told", |report| {
        let error = report.error.clone().unwrap_or_default();
        error.contains(&format!("has {OLD} bytes, but {NEW} bytes are recorded"))
    })
    .await;
    file.set_len(NEW).unwrap();
    rig.until_grown().await;
    rig.assert_point_is_disk().await;
}

/// D35: a scanned disk grows as well, and what is known of it stays known.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scanned_disk_grows() {
    let mut rig = Rig::of_old_size(Capture::Scan);
    rig.start(Steps::default());
    rig.until_protected().await;
    let before = rig.point().await;
    let sent = rig.node.bytes_in();
    rig.grow_disk();
    rig.until_asked(NEW).await;
    rig.grant(NEW);
    rig.until_grown().await;
    rig.assert_point_is_disk().await;
    let old_blocks = usize::try_from(OLD.next_multiple_of(4096)).unwrap();
    assert_eq!(before.image.len(), old_blocks);
    let again = rig.node.bytes_in() - sent;
    assert!(again < MIB, "{again} bytes for what is new and the unit where it began");
    rig.stop().await;
}

/// D35: the last word about a disk that nobody writes is a point of the size that it was said of, and no point
/// of the new size lacks what is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mark_that_was_kept_has_the_size_of_before() {
    // Small, so that the node keeps what each of its points holds.
    let (old, new) = (MIB, 2 * MIB);
    let mut rig = Rig::new(old, Capture::Scan);
    std::fs::write(rig.disk(), vec![b'o'; usize::try_from(old).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    let newest_ms = || rig.node.points().last().unwrap().mark.time_unix_ms;
    let first_ms = newest_ms();
    rig.until("kept", |report| {
        let age = crate::clock::unix_ms().saturating_sub(newest_ms());
        let rpo = report.rpo_seconds.unwrap_or(f64::MAX);
        age > 500 && rpo * 1000.0 < 400.0
    })
    .await;
    assert_eq!(newest_ms(), first_ms, "it is in no log yet");
    let file = std::fs::File::options().write(true).open(rig.disk()).unwrap();
    file.set_len(new).unwrap();
    file.write_all_at(&vec![b'n'; usize::try_from(new - old).unwrap()], old).unwrap();
    rig.until_asked(new).await;
    rig.grant(new);
    rig.until("grown", |report| report.size_bytes == new && report.state == VolumeState::Protected)
        .await;
    rig.assert_point_is_disk().await;
    let is_old = |point: &Point| point.image.len() as u64 == old;
    let (before, after): (Vec<_>, Vec<_>) = rig.node.points().into_iter().partition(is_old);
    assert!(before.last().unwrap().mark.time_unix_ms > first_ms, "what was kept is a point");
    assert!(before.iter().all(|point| is_all(&point.image, b'o')));
    let disk = rig.disk_bytes();
    assert!(after.iter().all(|point| *point.image == disk), "each point is the disk");
    rig.stop().await;
}

/// D35 with D30: a disk that grows while its intents are void, or for which there is no room, has points all the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_grows_without_intents() {
    for is_void_before in [true, false] {
        let mut rig = Rig::of_old_size(Capture::Nbd);
        rig.start(Steps::default());
        rig.until_protected().await;
        let served = rig.served().await;
        rig.files.sicken(Sickness::NotWritten("intent"));
        let is_told = |report: &AgentVolumeReport| {
            report.state == VolumeState::Degraded
                && report.detail.contains("does not take which regions are written")
        };
        if is_void_before {
            served.write(MIB, Bytes::from(vec![1; 8192]), false).await.unwrap();
            rig.until("told", is_told).await;
        }
        rig.grow_disk();
        rig.until("asked", |report| report.grown_to_bytes == Some(NEW)).await;
        rig.grant(NEW);
        rig.until("grown", |report| report.size_bytes == NEW && is_told(report)).await;
        served.write(NEW - 100, Bytes::from(vec![b'g'; 100]), true).await.unwrap();
        rig.assert_point_is_disk().await;
        rig.files.sicken(Sickness::None);
        rig.until_grown().await;
        rig.assert_point_is_disk().await;
        drop(served);
        rig.kill().await;
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}
