//! Disks that cannot be read in places, that hang, and that are mostly holes.

use super::*;
use crate::capture::Call;
use std::collections::BTreeSet;

/// Blocks that cannot be read, and the bytes that were.
#[derive(Default)]
struct Sick {
    bad: Mutex<BTreeSet<u64>>,
    read: AtomicU64,
}

impl Sick {
    fn steps(self: &Arc<Self>) -> Steps {
        let sick = Arc::clone(self);
        Steps::with_disk(move |call| match call {
            Call::Read { offset, length } => {
                let blocks = offset / 4096..(offset + length).div_ceil(4096);
                if sick.bad.lock().unwrap().range(blocks).next().is_some() {
                    return Err(io::Error::from_raw_os_error(5));
                }
                sick.read.fetch_add(length, Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn set(&self, blocks: impl IntoIterator<Item = u64>) {
        *self.bad.lock().unwrap() = blocks.into_iter().collect();
    }
}

fn filled(rig: &Rig, size: u64) {
    let bytes = (0..size).map(|at| u8::try_from(at / 4096 % 250 + 1).unwrap());
    std::fs::write(rig.disk(), bytes.collect::<Vec<u8>>()).unwrap();
}

async fn until_degraded(rig: &Rig) {
    rig.until("told", |report| {
        report.state == VolumeState::Degraded
            && report.detail.starts_with("3 blocks of the disk cannot be read, the first at byte")
            && report.detail.contains(&(300 * 4096).to_string())
    })
    .await;
}

/// The next point is the disk but for these blocks.
async fn assert_point_is_disk_but_for(rig: &Rig, bad: &[u64]) {
    let point = rig.point().await;
    let disk = rig.disk_bytes();
    let blocks = disk.chunks(4096).zip(point.image.chunks(4096)).zip(0_u64..);
    let differ: Vec<u64> = blocks.filter(|((a, b), _)| a != b).map(|(_, block)| block).collect();
    assert_eq!(differ, bad);
    assert_eq!(point.mark.unknown_blocks as usize, bad.len(), "the point itself says so");
}

/// A served disk of which three blocks cannot be read, which is told and in its point.
async fn served_sick(size: u64) -> (Rig, Arc<Sick>) {
    let mut rig = Rig::new(size, Capture::Nbd);
    filled(&rig, size);
    let sick = Arc::new(Sick::default());
    sick.set([300, 301, 1700]);
    rig.start(sick.steps());
    until_degraded(&rig).await;
    assert_point_is_disk_but_for(&rig, &[300, 301, 1700]).await;
    (rig, sick)
}

/// D27: bad sectors are unknown, not the end of the copy; a write makes them known.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bad_sectors_of_a_served_disk_are_unknown_and_the_rest_is_protected() {
    let size = 8 * MIB;
    let (mut rig, sick) = served_sick(size).await;
    rig.stop().await;
    rig.start(sick.steps());
    let before = rig.node.bytes_in();
    until_degraded(&rig).await;
    assert!(rig.node.bytes_in() - before < size / 2, "it is remembered, not found anew");
    let served = rig.served().await;
    // Off the grid too: what cannot be read back is in doubt, and no fault of the write.
    served.write(300 * 4096 + 512, Bytes::from(vec![7; 1024]), false).await.unwrap();
    until_degraded(&rig).await;
    served.write(300 * 4096, Bytes::from(vec![7; 8192]), false).await.unwrap();
    served.write(1700 * 4096, Bytes::from(vec![7; 4096]), true).await.unwrap();
    sick.set([]);
    rig.until_protected().await;
    drop(served);
    rig.assert_point_is_disk().await;
}

/// D27: what can be read again later is sent by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sectors_that_come_back_are_read_again() {
    for capture in [Capture::Nbd, Capture::Scan] {
        let size = 8 * MIB;
        let mut rig = Rig::new(size, capture);
        filled(&rig, size);
        let sick = Arc::new(Sick::default());
        sick.set([300, 301, 1700]);
        rig.start(sick.steps());
        until_degraded(&rig).await;
        assert_point_is_disk_but_for(&rig, &[300, 301, 1700]).await;
        sick.set([]);
        rig.until_protected().await;
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}

/// D27: a disk on which nothing can be read is no disk with many unknown blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_disk_is_not_a_disk_of_unknown_blocks() {
    let size = 2 * MIB;
    let mut rig = Rig::new(size, Capture::Scan);
    filled(&rig, size);
    let sick = Arc::new(Sick::default());
    sick.set(0..size / 4096);
    rig.start(sick.steps());
    rig.until("in error", |report| {
        report.state == VolumeState::Error && report.detail.contains("cannot be scanned")
    })
    .await;
    assert!(rig.node.points().is_empty());
    sick.set([]);
    rig.until_protected().await;
    rig.assert_point_is_disk().await;
}

/// D27: while one bad sector takes its time to say so, its neighbours are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sector_that_takes_long_holds_up_no_other() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    filled(&rig, size);
    let (hangs, hung) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (holding, waiting) = (Arc::clone(&hangs), Arc::clone(&hung));
    rig.start(Steps::with_disk(move |call| match call {
        Call::Read { offset, length } if (offset..offset + length).contains(&(300 * 4096)) => {
            while length == 4096 && holding.load(Ordering::SeqCst) {
                waiting.store(true, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
            }
            Err(io::Error::from_raw_os_error(5))
        }
        _ => Ok(()),
    }));
    let deadline = Instant::now() + DEADLINE;
    while !hung.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline, "the sector is tried alone");
        tokio::time::sleep(PAUSE).await;
    }
    let served = rig.served().await;
    for block in [299_u64, 301, 511] {
        let data = Bytes::from(vec![7; 4096]);
        let written = served.write(block * 4096, data, false);
        tokio::time::timeout(DEADLINE, written).await.expect("it waits for nothing").unwrap();
    }
    hangs.store(false, Ordering::SeqCst);
    assert_point_is_disk_but_for(&rig, &[300]).await;
}

/// D27: where it cannot be noted which blocks cannot be read, that shows, the rest is protected, and a start
/// takes nothing for copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bad_sectors_that_cannot_be_noted_are_told_and_the_rest_goes_on() {
    let size = 8 * MIB;
    let mut rig = Rig::new(size, Capture::Nbd);
    filled(&rig, size);
    let sick = Arc::new(Sick::default());
    let bad = [300, 301, 1700];
    sick.set(bad);
    rig.files.refuse(Some("unknown"));
    rig.start(sick.steps());
    rig.until("told", |report| {
        report.state == VolumeState::Degraded
            && report.detail.contains("does not take which blocks cannot be read")
            && report.detail.contains("3 blocks of the disk cannot be read")
    })
    .await;
    assert_point_is_disk_but_for(&rig, &bad).await;
    rig.kill().await;
    rig.start(sick.steps());
    assert_point_is_disk_but_for(&rig, &bad).await;
    rig.files.refuse(None);
    until_degraded(&rig).await;
    rig.kill().await;
    rig.start(sick.steps());
    until_degraded(&rig).await;
    assert_point_is_disk_but_for(&rig, &bad).await;
}

/// Holes and zeros cost next to nothing, and a zero that was none before is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn holes_are_not_read_and_zeros_not_sent_unless_something_was_there() {
    use std::os::unix::fs::FileExt;
    for capture in [Capture::Scan, Capture::Nbd] {
        let size = 256 * MIB;
        let mut rig = Rig::new(size, capture);
        // Opened for a moment only: a disk that somebody has open is not served.
        let path = rig.disk();
        let write = |data: &[u8], offset: u64| {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(data, offset).unwrap();
        };
        let empty = || std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let data = vec![9; usize::try_from(MIB).unwrap()];
        write(&data, 100 * MIB);
        let sick = Arc::new(Sick::default());
        rig.start(sick.steps());
        rig.until_protected().await;
        let read = sick.read.load(Ordering::SeqCst);
        // A pass that read the holes would read all of it; how many passes there were is the machine's.
        assert!(read < size / 4, "{capture:?}: {read} bytes were read");
        rig.assert_point_is_disk().await;
        let frames = rig.node.received();
        assert!(frames < 40, "{capture:?}: {frames} frames");
        match capture {
            Capture::Scan | Capture::Unknown => {
                // Once as bytes, once as a hole.
                write(&data[..0x8000], 7 * MIB);
                // The pass that sets the next mark may have come by before.
                rig.point().await;
                rig.assert_point_is_disk().await;
                let zeros = vec![0; usize::try_from(MIB).unwrap()];
                write(&zeros, 100 * MIB);
                rig.point().await;
                rig.assert_point_is_disk().await;
                empty();
                rig.point().await;
            }
            Capture::Nbd => {
                let served = rig.served().await;
                let length = u32::try_from(MIB).unwrap();
                served.write_zeroes(100 * MIB, length, true, false).await.unwrap();
            }
        }
        rig.assert_point_is_disk().await;
        rig.stop().await;
        // A file that knows nothing of what was sent: zeros are sent all the same.
        write(&data, 200 * MIB);
        rig.start(Steps::default());
        rig.assert_point_is_disk().await;
        rig.kill().await;
        empty();
        let dir = rig.log_dir().parent().unwrap().to_owned();
        for name in ["hashes", "intent"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        rig.start(Steps::default());
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}

/// D28: a disk that hangs delays nobody else: neither other disks, nor sessions, nor reports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_delays_no_other() {
    let (hangs, hung) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (holding, waiting) = (Arc::clone(&hangs), Arc::clone(&hung));
    let mut sick = Rig::new(4 * MIB, Capture::Nbd);
    sick.start(Steps::with_disk(move |call| match call {
        Call::WriteAtOnce { .. } => Err(io::ErrorKind::WouldBlock.into()),
        Call::Write { .. } => {
            waiting.fetch_add(1, Ordering::SeqCst);
            while holding.load(Ordering::SeqCst) {
                std::thread::sleep(PAUSE);
            }
            Ok(())
        }
        _ => Ok(()),
    }));
    let mut good = Rig::new(4 * MIB, Capture::Nbd);
    good.start(Steps::default());
    sick.until_protected().await;
    good.until_protected().await;
    let served = sick.served().await;
    let writes: Vec<_> = (0..64_u64)
        .map(|at| {
            let served = served.clone();
            let data = Bytes::from(vec![7; 4096]);
            tokio::spawn(async move { served.write(at * 4096, data, false).await })
        })
        .collect();
    let deadline = Instant::now() + DEADLINE;
    while hung.load(Ordering::SeqCst) < crate::capture::splitter::THREADS_MAX as u64 {
        assert!(Instant::now() < deadline, "only {hung:?} writes wait");
        tokio::time::sleep(PAUSE).await;
    }
    // Twice as many as there are workers wait; everything else goes on.
    let other = good.served().await;
    for at in 0..32 {
        other.write(at * 4096, Bytes::from(vec![3; 4096]), at == 9).await.unwrap();
    }
    good.assert_point_is_disk().await;
    good.until_protected().await;
    let _ = sick.report();
    let most = crate::capture::splitter::THREADS_MAX as u64;
    assert_eq!(hung.load(Ordering::SeqCst), most, "no more threads wait for one disk");
    hangs.store(false, Ordering::SeqCst);
    for write in writes {
        write.await.unwrap().unwrap();
    }
    drop((served, other));
    sick.assert_point_is_disk().await;
}

/// D27: a block that can be read again is in the next point, not in the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_whose_newest_point_lacks_blocks_is_not_called_protected() {
    let (rig, sick) = served_sick(8 * MIB).await;
    rig.node.hold_commits(true);
    sick.set([]);
    let served = rig.served().await;
    for block in [300_u64, 301, 1700] {
        served.write(block * 4096, Bytes::from(vec![7; 4096]), true).await.unwrap();
    }
    rig.until("told", |report| {
        assert_ne!(report.state, VolumeState::Protected, "{report:?}");
        report.detail.contains("the newest point lacks 3 of the disk's blocks")
    })
    .await;
    rig.node.hold_commits(false);
    rig.until_protected().await;
}
