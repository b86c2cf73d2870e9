//! What the agent keeps beside the disk is damaged while it is stopped or killed, and while it runs: the
//! next point is the disk all the same. D2, D7.

use super::*;
use std::path::Path;

/// A damage of the files in a volume's directory.
type Damage = fn(&Path);

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn newest_log(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("hrl")).unwrap();
    files.map(|file| file.unwrap().path()).max().unwrap()
}

/// The digits of a field of the state.
fn edit_state(dir: &Path, field: &str, change: impl FnOnce(&str) -> String) {
    edit(&dir.join("state.json"), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let (front, rest) = text.split_once(&format!("\"{field}\": ")).unwrap();
        let end = rest.find([',', '\n']).unwrap();
        let (value, rest) = rest.split_at(end);
        *bytes = format!("{front}\"{field}\": {}{rest}", change(value)).into_bytes();
    });
}

const LOG_DAMAGES: &[(&str, Damage)] = &[
    ("a bit of the last frame of the log", |dir| {
        edit(&newest_log(dir), |bytes| *bytes.last_mut().unwrap() ^= 1);
    }),
    ("a bit in the middle of the log", |dir| {
        edit(&newest_log(dir), |bytes| {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
        });
    }),
    ("a bit of the log's header", |dir| edit(&newest_log(dir), |bytes| bytes[20] ^= 1)),
    ("the last frames of the log", |dir| {
        edit(&newest_log(dir), |bytes| bytes.truncate(bytes.len() - 2 * (48 + 4096)));
    }),
    ("all of the log but its header", |dir| edit(&newest_log(dir), |bytes| bytes.truncate(64))),
    ("all of the log", |dir| edit(&newest_log(dir), Vec::clear)),
    ("the log's file", |dir| std::fs::remove_file(newest_log(dir)).unwrap()),
    ("the state, cut", |dir| edit(&dir.join("state.json"), |bytes| bytes.truncate(40))),
    ("the state, empty", |dir| edit(&dir.join("state.json"), Vec::clear)),
    ("the state, gone", |dir| std::fs::remove_file(dir.join("state.json")).unwrap()),
    ("a digit of how far the log is relied on", |dir| {
        edit_state(dir, "logged", |value| format!("{}0", &value[..value.len() - 1]));
    }),
];

/// Changes a disk while the node is away, stops or kills the agent, damages what it left, starts it
/// again: the next point is the disk.
async fn survives(capture: Capture, is_killed: bool, what: &str, damage: Damage) {
    let size = 4 * MIB;
    let mut rig = Rig::new(size, capture);
    std::fs::write(rig.disk(), vec![3; usize::try_from(size).unwrap()]).unwrap();
    rig.start(Steps::default());
    rig.until_protected().await;
    rig.node.set_offline(true);
    match capture {
        Capture::Nbd => {
            let served = rig.served().await;
            for block in [1_u64, 40, 300, 700, 900] {
                let data = Bytes::from(vec![7; 4096]);
                served.write(block * 4096, data, false).await.unwrap();
            }
            // From here on no intent speaks for them: only the log has them.
            served.flush().await.unwrap();
            drop(served);
        }
        Capture::Scan | Capture::Unknown => {
            let before = rig.log_bytes();
            edit(&rig.disk(), |disk| disk[3 * 65_536..5 * 65_536].fill(9));
            let deadline = Instant::now() + DEADLINE;
            while rig.log_bytes() < before + 2 * 65_536 {
                assert!(Instant::now() < deadline, "the scan finds the change");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    if is_killed {
        rig.kill().await
    } else {
        rig.stop().await
    }
    damage(rig.log_dir().parent().unwrap());
    rig.node.set_offline(false);
    rig.start(Steps::default());
    let point = rig.point().await;
    let disk = rig.disk_bytes();
    let differs = disk.chunks(4096).zip(point.image.chunks(4096)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}, {capture:?}, killed {is_killed}: first block that differs");
    rig.stop().await;
}

impl Rig {
    fn log_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.log_dir()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_served_disk_survives_damage_of_log_and_state_after_a_stop() {
    for (what, damage) in LOG_DAMAGES {
        survives(Capture::Nbd, false, what, *damage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_served_disk_survives_damage_of_log_and_state_after_a_kill() {
    for (what, damage) in LOG_DAMAGES {
        survives(Capture::Nbd, true, what, *damage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scanned_disk_survives_damage_of_log_and_state_after_a_kill() {
    for (what, damage) in LOG_DAMAGES {
        survives(Capture::Scan, true, what, *damage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scanned_disk_survives_damage_of_its_hashes() {
    let damages: [(&str, Damage); 4] = [
        ("a bit of the hashes' header", |dir| edit(&dir.join("hashes"), |bytes| bytes[45] ^= 1)),
        ("a bit of a hash", |dir| edit(&dir.join("hashes"), |bytes| bytes[512 + 3 * 16] ^= 1)),
        ("the hashes, cut", |dir| edit(&dir.join("hashes"), |bytes| bytes.truncate(600))),
        ("the hashes, gone", |dir| std::fs::remove_file(dir.join("hashes")).unwrap()),
    ];
    for (what, damage) in damages {
        survives(Capture::Scan, true, what, damage).await;
    }
}

/// Writes that the kill left without their frames: their regions' intents say so, or, damaged, say less
/// and so mean more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_served_disk_survives_damage_of_its_intents() {
    let damages: [(&str, Damage); 5] = [
        ("nothing", |_| ()),
        ("a bit of the intents' header", |dir| edit(&dir.join("intent"), |bytes| bytes[9] ^= 1)),
        ("a bit of a sector", |dir| edit(&dir.join("intent"), |bytes| bytes[512] ^= 1)),
        ("the intents, cut", |dir| edit(&dir.join("intent"), |bytes| bytes.truncate(700))),
        ("the intents, gone", |dir| std::fs::remove_file(dir.join("intent")).unwrap()),
    ];
    for (what, damage) in damages {
        let size = 4 * MIB;
        let mut rig = Rig::new(size, Capture::Nbd);
        rig.start(Steps::default());
        rig.until_protected().await;
        let served = rig.served().await;
        for block in [0_u64, 500, 1000] {
            let data = Bytes::from(vec![7; 4096]);
            served.write(block * 4096, data, false).await.unwrap();
        }
        drop(served);
        rig.kill().await;
        // Only the disk has these: as a kill leaves it between disk and log.
        edit(&rig.disk(), |disk| {
            for block in [0_usize, 500, 1000] {
                disk[block * 4096..][..4096].fill(8);
            }
        });
        damage(rig.log_dir().parent().unwrap());
        rig.start(Steps::default());
        let point = rig.point().await;
        let disk = rig.disk_bytes();
        let differs = disk.chunks(4096).zip(point.image.chunks(4096)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: first block that differs");
        rig.stop().await;
    }
}

/// A bit flips in the log while the agent runs, before the frame was sent: it is not sent, again and
/// again or at all; the disk is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_frame_that_is_damaged_before_it_is_sent_means_that_the_disk_is_sent_again() {
    for back in [1, 48 + 4096 + 10] {
        let mut rig = Rig::new(4 * MIB, Capture::Nbd);
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.node.set_offline(true);
        let served = rig.served().await;
        for block in [1_u64, 40] {
            let data = Bytes::from(vec![7; 4096]);
            served.write(block * 4096, data, false).await.unwrap();
        }
        served.flush().await.unwrap();
        drop(served);
        {
            use std::os::unix::fs::FileExt;
            let log = newest_log(rig.log_dir().parent().unwrap());
            let file = std::fs::File::options().read(true).write(true).open(log).unwrap();
            let at = file.metadata().unwrap().len() - back;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
        rig.node.set_offline(false);
        rig.assert_point_is_disk().await;
        rig.until_protected().await;
        rig.stop().await;
    }
}
