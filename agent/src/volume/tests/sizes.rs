//! Disks of any number of bytes.

use super::*;

const SIZES: [u64; 7] = [1, 511, 512, 4097, MIB - 1, MIB + 512, 3 * 65_536 + 4096 + 1];

/// A change anywhere, and often across the last block.
async fn change_bytes(served: &Served, random: &mut Random, size: u64) {
    let most = size.min(if random.below(4) == 0 { 20_000 } else { 700 });
    let length = 1 + random.below(most);
    let last = size - length;
    let offset = if random.below(2) == 0 {
        last - random.below(last + 1).min(9)
    } else {
        random.below(last + 1)
    };
    let fua = random.below(8) == 0;
    if random.below(4) == 0 {
        let (length, trim) = (u32::try_from(length).unwrap(), random.below(2) == 0);
        served.write_zeroes(offset, length, trim, fua).await.unwrap();
    } else {
        let byte = u8::try_from(1 + random.below(255)).unwrap();
        let data = Bytes::from(vec![byte; usize::try_from(length).unwrap()]);
        served.write(offset, data, fua).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_of_any_size_is_copied_and_followed_to_the_byte() {
    for size in SIZES {
        let mut rig = Rig::new(size, Capture::Nbd);
        let before: Vec<u8> = (0..size).map(|at| 1 + (at % 250) as u8).collect();
        std::fs::write(rig.disk(), &before).unwrap();
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.assert_point_is_disk().await;
        let served = rig.served().await;
        assert_eq!(served.size_bytes(), size);
        let mut random = Random(size);
        for _ in 0..60 {
            change_bytes(&served, &mut random, size).await;
        }
        rig.assert_point_is_disk().await;
        // What is in doubt after a kill is read again, the last region with it.
        drop(served);
        rig.kill().await;
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.assert_point_is_disk().await;
        let report = rig.report();
        assert_eq!((report.size_bytes, report.progress), (size, 1.0));
        assert_eq!(std::fs::metadata(rig.disk()).unwrap().len(), size, "the disk keeps its size");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_of_any_size_is_scanned_to_the_byte() {
    for size in SIZES {
        let mut rig = Rig::new(size, Capture::Scan);
        std::fs::write(rig.disk(), vec![3; usize::try_from(size).unwrap()]).unwrap();
        rig.start(Steps::default());
        rig.until_protected().await;
        rig.assert_point_is_disk().await;
        let mut disk = rig.disk_bytes();
        *disk.last_mut().unwrap() = 9;
        std::fs::write(rig.disk(), &disk).unwrap();
        rig.assert_point_is_disk().await;
        rig.stop().await;
    }
}
