use super::*;
use std::fs;

const SIZE: u64 = 4 << 20;

fn base() -> OverlayBase {
    OverlayBase { volume: VolumeId([7; 16]), seq: Seq(12), size_bytes: SIZE }
}

fn read(overlay: &Overlay, block: u64) -> Vec<u8> {
    let mut into = vec![0xff; BLOCK_BYTES];
    overlay.read(block, &mut into).unwrap();
    into
}

fn held(overlay: &Overlay) -> Vec<u64> {
    let range = BlockRange { block: 0, count: SIZE / BLOCK_BYTES as u64 };
    let runs = overlay.runs(range).filter(|(_, held)| *held);
    runs.flat_map(|(run, _)| run.block..run.end()).collect()
}

/// As a power cut would leave the map: opened by another run of the kernel.
fn pretend_reboot(path: &Path) {
    let map = map::path_of(path);
    let mut bytes = fs::read(&map).unwrap();
    bytes[40..56].fill(0x5a);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&map, bytes).unwrap();
}

#[test]
fn what_was_written_is_there_after_the_process_died_without_a_flush() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let overlay = Overlay::open(&path, base()).unwrap();
    overlay.write(3, &[1; 2 * BLOCK_BYTES]).unwrap();
    overlay.zero(BlockRange { block: 9, count: 2 }).unwrap();
    overlay.write(1023, &[2; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let overlay = Overlay::open(&path, base()).unwrap();
    assert_eq!(held(&overlay), [3, 4, 9, 10, 1023]);
    assert_eq!(overlay.held_blocks(), 5);
    assert_eq!(read(&overlay, 4), [1; BLOCK_BYTES]);
    assert_eq!(read(&overlay, 9), [0; BLOCK_BYTES]);
    assert_eq!(read(&overlay, 1023), [2; BLOCK_BYTES]);
}

#[test]
fn after_a_power_cut_only_what_was_flushed_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let overlay = Overlay::open(&path, base()).unwrap();
    overlay.write(3, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write(5, &[2; BLOCK_BYTES]).unwrap();
    drop(overlay);
    pretend_reboot(&path);
    let overlay = Overlay::open(&path, base()).unwrap();
    assert_eq!(held(&overlay), [3]);
    // What was live before the power cut stays gone at the next opening, too.
    drop(overlay);
    let overlay = Overlay::open(&path, base()).unwrap();
    assert_eq!(held(&overlay), [3]);
    overlay.write(6, &[3; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let overlay = Overlay::open(&path, base()).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    pretend_reboot(&path);
    assert_eq!(held(&Overlay::open(&path, base()).unwrap()), [3, 6]);
}

#[test]
fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let _overlay = Overlay::open(&path, base()).unwrap();
    let error = Overlay::open(&path, base()).unwrap_err();
    assert!(matches!(error, OverlayError::InUse { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn an_overlay_of_another_point_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    drop(Overlay::open(&path, base()).unwrap());
    for other in [
        OverlayBase { seq: Seq(13), ..base() },
        OverlayBase { volume: VolumeId([8; 16]), ..base() },
        OverlayBase { size_bytes: 2 * SIZE, ..base() },
    ] {
        let error = Overlay::open(&path, other).unwrap_err();
        assert!(matches!(error, OverlayError::OtherPoint { .. }), "{error}");
    }
    assert!(held(&Overlay::open(&path, base()).unwrap()).is_empty());
}

#[test]
fn a_file_that_is_no_overlay_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious.img");
    fs::write(&path, vec![9; 8192]).unwrap();
    let error = Overlay::open(&path, base()).unwrap_err();
    assert!(matches!(error, OverlayError::NotOverlay { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), vec![9; 8192]);
}

#[test]
fn a_damaged_or_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    drop(Overlay::open(&path, base()).unwrap());
    let map = map::path_of(&path);
    let whole = fs::read(&map).unwrap();
    for at in [0, 5, 9, 30, 33, 45, 58, 61] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&map, bytes).unwrap();
        let error = Overlay::open(&path, base()).unwrap_err();
        assert!(matches!(error, OverlayError::Damaged { .. }), "byte {at}: {error}");
    }
    fs::write(&map, &whole).unwrap();
    fs::remove_file(&path).unwrap();
    let error = Overlay::open(&path, base()).unwrap_err();
    assert!(error.to_string().contains("its data file is gone"), "{error}");
}
