//! Which disk it is, and who else writes it.

use super::*;
use crate::loops::{Loop, not_tried, run};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

fn filled(path: &std::path::Path, byte: u8, bytes: u64) {
    std::fs::write(path, vec![byte; usize::try_from(bytes).unwrap()]).unwrap();
}

pub(super) async fn until_error(rig: &Rig, words: &[&str]) {
    rig.until(&format!("{words:?}"), |report| {
        let error = report.error.clone().unwrap_or_default();
        report.state == VolumeState::Error && words.iter().all(|word| error.contains(word))
    })
    .await;
}

/// T20: whoever has the control plane orders a disk that the server's own list does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_the_servers_list_lacks_is_refused_by_name_and_never_opened() {
    for capture in [Capture::Nbd, Capture::Scan] {
        let mut rig = Rig::new(2 * MIB, capture);
        let list = rig.dir.path().join("allow");
        std::fs::write(&list, "/srv/disks/*\n").unwrap();
        rig.start(Steps::default());
        let disk = rig.disk();
        until_error(&rig, &[disk.to_str().unwrap(), "not among those", "/srv/disks/*"]).await;
        assert_eq!(rig.report().nbd_uri, None);
        assert_eq!(rig.node.bytes_in(), 0, "nothing of it was sent");
        rig.stop().await;
        std::fs::write(&list, format!("{}\n", disk.display())).unwrap();
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.stop().await;
    }
}

/// D11: another file took the disk's place: while it is served that is told, later it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_file_under_the_name_is_told_and_then_refused() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    filled(&rig.disk(), 5, 2 * MIB);
    rig.start(Steps::default());
    rig.until_protected().await;
    let (other, aside) = (rig.dir.path().join("other"), rig.dir.path().join("aside"));
    filled(&other, 6, 2 * MIB);
    std::fs::rename(rig.disk(), &aside).unwrap();
    std::fs::rename(&other, rig.disk()).unwrap();
    rig.until("told", |report| {
        report.state == VolumeState::Degraded && report.detail.contains("leads to another disk")
    })
    .await;
    // What is open stays the disk.
    let served = rig.served().await;
    served.write(0, Bytes::from(vec![9; 4096]), true).await.unwrap();
    let point = rig.point().await;
    assert_eq!(*point.image, std::fs::read(&aside).unwrap());
    drop(served);
    let points = rig.node.points().len();
    rig.stop().await;
    rig.start(Steps::default());
    until_error(&rig, &["is another one: expected the file with inode", "found the file"]).await;
    assert!(rig.node.points().len() <= points + 1, "the last mark of the orderly stop at most");
    std::fs::rename(&aside, rig.disk()).unwrap();
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
}

/// D11: a link is opened anew: to the same disk under another letter it goes on, another disk is
/// refused and nothing of it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_is_followed_to_its_disk_and_to_no_other() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    let (first, second) = (rig.dir.path().join("a.img"), rig.dir.path().join("b.img"));
    filled(&first, b'A', size);
    filled(&second, b'B', size);
    let Some(one) = Loop::over(&first) else { return };
    let link = rig.dir.path().join("by-id");
    std::os::unix::fs::symlink(&one.0, &link).unwrap();
    rig.assigned.send_modify(|volume| volume.disk = link.to_str().unwrap().to_owned());
    rig.start(Steps::default());
    rig.until_protected().await;
    assert!(rig.point().await.image.iter().all(|byte| *byte == b'A'));
    rig.stop().await;
    // The letters change: another disk gets the one that this one had, most likely.
    drop(one);
    let Some(other) = Loop::over(&second) else { return };
    let Some(one) = Loop::over(&first) else { return };
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&one.0, &link).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    assert!(rig.point().await.image.iter().all(|byte| *byte == b'A'), "the same disk");
    rig.stop().await;
    let points = rig.node.points().len();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other.0, &link).unwrap();
    rig.start(Steps::default());
    until_error(&rig, &["is another one: expected loop device over", "found loop device over"])
        .await;
    assert_eq!(rig.report().nbd_uri, None);
    assert_eq!(rig.node.points().len(), points);
    rig.stop().await;
}

/// D12: who has the same bytes through another loop device, or the file behind it, has the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_loop_device_whose_bytes_others_have_is_refused_by_name() {
    let mut rig = Rig::new(16 * MIB, Capture::Nbd);
    filled(&rig.disk(), 0, 16 * MIB);
    let Some(device) = Loop::over(&rig.disk()) else { return };
    rig.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
    let twin = Loop::over(&rig.disk()).unwrap();
    let at = rig.dir.path().join("mounted here");
    std::fs::create_dir(&at).unwrap();
    let is_mounted = run(Command::new("mkfs.ext4").args(["-q", &twin.0])).is_some()
        && run(Command::new("mount").arg(&twin.0).arg(&at)).is_some();
    rig.start(Steps::default());
    // Idle as well: whoever opens it next would not be noticed.
    let named = format!("the loop device {} is another name for the same bytes", twin.0);
    until_error(&rig, &["is in use", &named]).await;
    if is_mounted {
        until_error(&rig, &["is mounted at", at.to_str().unwrap()]).await;
        run(Command::new("umount").arg(&at)).unwrap();
    } else {
        not_tried("no file system can be made and mounted");
    }
    drop(twin);
    let writer = std::fs::File::options().write(true).open(rig.disk()).unwrap();
    let writer = Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(writer).spawn();
    let mut writer = writer.unwrap();
    until_error(&rig, &["is in use", "sleep", "which is behind it, open for writing"]).await;
    writer.kill().unwrap();
    writer.wait().unwrap();
    rig.until_protected().await;
    // A part of it under a name of its own.
    let part = run(Command::new("losetup")
        .args(["--find", "--show", "--offset", "1048576", "--sizelimit", "4194304"])
        .arg(rig.disk()));
    let part = Loop(part.unwrap());
    let open = |path: &str| {
        let (path, recorded) = (std::path::Path::new(path), crate::disk::Recorded::default());
        crate::disk::Disk::open(path, crate::disk::Access::Read, &recorded)
    };
    let error = open(&part.0).unwrap_err().to_string();
    assert!(error.contains(&device.0), "{error}");
    rig.stop().await;
    assert!(open(&part.0).is_ok(), "nobody has it any more");
}

/// D12: a device that somebody has is refused by the holder's name, and taken when it is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mounted_device_is_refused_by_name_and_scanned_all_the_same() {
    let size = 16 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    let Some(device) = Loop::over(&rig.disk()) else { return };
    let at = rig.dir.path().join("mounted here");
    std::fs::create_dir(&at).unwrap();
    if run(Command::new("mkfs.ext4").args(["-q", &device.0])).is_none()
        || run(Command::new("mount").arg(&device.0).arg(&at)).is_none()
    {
        not_tried("no file system can be made and mounted");
        return;
    }
    rig.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
    rig.start(Steps::default());
    let name = at.to_str().unwrap();
    until_error(&rig, &["is in use", "is mounted at", name, "--capture scan"]).await;
    rig.stop().await;
    // The file under the loop device is written by the mount as well.
    let file = rig.disk().to_str().unwrap().to_owned();
    rig.assigned.send_modify(|volume| volume.disk = file);
    rig.start(Steps::default());
    until_error(&rig, &["is in use", &device.0, "is mounted at"]).await;
    rig.stop().await;
    rig.assigned.send_modify(|volume| {
        volume.disk.clone_from(&device.0);
        volume.capture = Capture::Scan;
        volume.volume = Uuid::from_u128(43);
    });
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.stop().await;
    run(Command::new("umount").arg(&at)).unwrap();
    rig.assigned.send_modify(|volume| {
        volume.capture = Capture::Nbd;
        volume.volume = Uuid::from_u128(44);
    });
    rig.start(Steps::default());
    rig.until_protected().await;
    // While it is served nobody can mount it.
    assert_eq!(run(Command::new("mount").arg(&device.0).arg(&at)), None);
    rig.stop().await;
}

/// D52: a scan of a mounted device sends what its file system writes, pass after pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_written_into_a_mounted_device_is_in_the_points_of_its_scan() {
    let mut rig = Rig::new(16 * MIB, Capture::Scan);
    let Some(device) = Loop::over(&rig.disk()) else { return };
    let at = rig.dir.path().join("mounted here");
    std::fs::create_dir(&at).unwrap();
    if run(Command::new("mkfs.ext4").args(["-q", &device.0])).is_none()
        || run(Command::new("mount").arg(&device.0).arg(&at)).is_none()
    {
        not_tried("no file system can be made and mounted");
        return;
    }
    let file = std::fs::File::create_new(at.join("file")).unwrap();
    let write = |byte| {
        file.write_all_at(&vec![byte; 1 << 20], 0).unwrap();
        rustix::fs::syncfs(&file).unwrap();
    };
    write(b'a');
    rig.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
    rig.start(Steps::default());
    rig.until_protected().await;
    for byte in [b'b', b'c'] {
        write(byte);
        let deadline = Instant::now() + DEADLINE;
        // The pass under way may have been there before.
        while *rig.point().await.image != rig.disk_bytes() {
            assert!(Instant::now() < deadline, "{:?} is never sent", char::from(byte));
        }
    }
    rig.stop().await;
    drop(file);
    run(Command::new("umount").arg(&at)).unwrap();
}

/// D12: a file that another process writes is refused until it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_a_process_writes_or_has_locked_is_refused_by_its_name() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    for script in ["exec 3<>\"$0\"; read x", "exec 3<\"$0\"; flock --exclusive 3; read x"] {
        let mut child = Command::new("sh")
            .args(["-c", script, rig.disk().to_str().unwrap()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // Until it has it, the agent may be first.
        while std::fs::read_link(format!("/proc/{}/fd/3", child.id())).is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        if script.contains("flock") {
            let file = std::fs::File::open(rig.disk()).unwrap();
            while file.try_lock().is_ok() {
                file.unlock().unwrap();
                tokio::time::sleep(PAUSE).await;
            }
        }
        rig.start(Steps::default());
        until_error(&rig, &["is in use", &format!("(process {})", child.id())]).await;
        drop(child.stdin.take());
        child.wait().unwrap();
        rig.until_protected().await;
        rig.stop().await;
    }
}

/// D13: what somebody else writes into the file is noticed, told, and read again; no point in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_byte_written_past_the_splitter_is_told_and_read_again() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    filled(&rig.disk(), 5, size);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    let mut random = Random(3);
    for round in 0..5_u64 {
        for _ in 0..20 {
            change(&served, &mut random, size).await.unwrap();
        }
        let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
        file.write_all_at(&[0xee], round * MIB + 77).unwrap();
        drop(file);
        // Whatever is marked from now on is the disk.
        rig.assert_point_is_disk().await;
        rig.until("told", |report| {
            report.state == VolumeState::Degraded
                && report.detail.contains("wrote to the disk past")
                || report.state == VolumeState::Protected
        })
        .await;
        rig.until_protected().await;
    }
    drop(served);
    rig.stop().await;
}

/// D13: a machine whose disk somebody else wrote says so until the vault has all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_foreign_write_degrades_until_the_vault_has_the_disk() {
    let mut rig = Rig::new(4 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let wrote = run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=512", "count=1", "seek=9"])
        .args(["conv=notrunc", &format!("of={}", rig.disk().display())]));
    assert!(wrote.is_some());
    let noticed = Instant::now();
    rig.node.hold_commits(true);
    rig.until("told", |report| {
        report.state == VolumeState::Degraded && report.detail.contains("past its NBD server")
    })
    .await;
    assert!(noticed.elapsed() < Duration::from_secs(2), "{:?}", noticed.elapsed());
    rig.node.hold_commits(false);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    rig.stop().await;
}

/// D13: what was noticed and not read again yet is read after a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_noticed_before_a_kill_is_read_again_after_it() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
    file.write_all_at(&[0xee], 2 * MIB).unwrap();
    drop(file);
    rig.until("told", |report| report.state == VolumeState::Degraded).await;
    rig.kill().await;
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    rig.stop().await;
}

/// D13: what somebody wrote while the agent was down after a kill is read after its start.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_byte_written_while_the_agent_was_killed_is_read_again() {
    let mut rig = Rig::new(4 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let served = rig.served().await;
    served.write(0, Bytes::from(vec![7; 4096]), true).await.unwrap();
    drop(served);
    rig.kill().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
    file.write_all_at(&[0xee], 2 * MIB).unwrap();
    drop(file);
    rig.start(Steps::default());
    rig.assert_point_is_disk().await;
    rig.until_protected().await;
    rig.stop().await;
}

/// D13: a loop device that is put over the file while it is served holds back points until it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_loop_device_over_a_served_file_is_told_while_it_is_there() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let Some(device) = Loop::over(&rig.disk()) else { return };
    rig.until("told", |report| {
        report.state == VolumeState::Degraded && report.detail.contains(&device.0)
    })
    .await;
    let through = std::fs::OpenOptions::new().write(true).open(&device.0).unwrap();
    through.write_all_at(&[7; 512], MIB).unwrap();
    through.sync_all().unwrap();
    drop((through, device));
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
    assert_eq!(rig.disk_bytes()[usize::try_from(MIB).unwrap()], 7);
    rig.stop().await;
}

/// D14: one file under two names is captured once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_second_name_of_a_captured_disk_is_refused() {
    let mut rig = Rig::new(2 * MIB, Capture::Nbd);
    rig.start(Steps::default());
    rig.until_protected().await;
    let (hard, soft) = (rig.dir.path().join("hard"), rig.dir.path().join("soft"));
    std::fs::hard_link(rig.disk(), &hard).unwrap();
    std::os::unix::fs::symlink(rig.disk(), &soft).unwrap();
    let device = Loop::over(&rig.disk());
    let names = [hard.to_str(), soft.to_str(), device.as_ref().map(|device| device.0.as_str())];
    for name in names.into_iter().flatten() {
        for access in [crate::disk::Access::Write, crate::disk::Access::Read] {
            let recorded = crate::disk::Recorded::default();
            let refused = crate::disk::Disk::open(name.as_ref(), access, &recorded).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains("is captured already, by this agent as"), "{text}");
            assert!(text.contains("disk.img"), "{text}");
        }
    }
    drop(device);
    rig.stop().await;
}

/// P10: without its disk nothing is protected.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_protected_before_its_disk_is_served() {
    for capture in [Capture::Nbd, Capture::Scan] {
        let mut rig = Rig::new(2 * MIB, capture);
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.kill().await;
        rig.start(Steps::default());
        loop {
            let report = rig.report();
            let is_captured = capture == Capture::Scan || report.nbd_uri.is_some();
            assert!(is_captured || report.state != VolumeState::Protected, "{report:?}");
            if report.state == VolumeState::Protected {
                break;
            }
            tokio::task::yield_now().await;
        }
        rig.stop().await;
    }
}

/// D13: what others wrote last, before an orderly stop, is not taken for ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_byte_written_by_others_right_before_the_stop_is_read_again() {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    std::fs::write(rig.disk(), vec![9; usize::try_from(size).unwrap()]).unwrap();
    for round in 1..4_u8 {
        rig.start(Steps::default());
        rig.until_protected().await;
        let file = std::fs::OpenOptions::new().write(true).open(rig.disk()).unwrap();
        FileExt::write_all_at(&file, &[round; 4096], 2 * MIB).unwrap();
        drop(file);
        rig.stop().await;
        rig.start(Steps::default());
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}
