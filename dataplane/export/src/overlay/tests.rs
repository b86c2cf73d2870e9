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
    for at in [0, 9, 30, 33, 45, 58, 61] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&map, bytes).unwrap();
        let error = Overlay::open(&path, base()).unwrap_err();
        assert!(matches!(error, OverlayError::Damaged { .. }), "byte {at}: {error}");
    }
    let mut other = whole.clone();
    other[4] ^= 1;
    fs::write(&map, other).unwrap();
    let error = Overlay::open(&path, base()).unwrap_err();
    assert!(matches!(error, OverlayError::Version { .. }), "{error}");
    fs::write(&map, &whole).unwrap();
    fs::remove_file(&path).unwrap();
    let error = Overlay::open(&path, base()).unwrap_err();
    assert!(error.to_string().contains("its data file is gone"), "{error}");
}

/// D2: a bit that flips would serve the overlay's hole for the point's data, or the point's data for what
/// was written.
#[test]
fn a_flipped_bit_of_the_map_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let large = OverlayBase { size_bytes: 40 << 20, ..base() };
    let overlay = Overlay::open(&path, large).unwrap();
    // In the first sector, across the border of the next two, and in the last.
    overlay.write(5, &[1; BLOCK_BYTES]).unwrap();
    overlay.zero(BlockRange { block: 4000, count: 100 }).unwrap();
    overlay.write((40 << 8) - 1, &[2; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write(6, &[3; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let map = map::path_of(&path);
    let whole = fs::read(&map).unwrap();
    let written = |bitmap: usize| [0, 1, 2].map(|sector| 4096 * bitmap + 512 * sector);
    for is_rebooted in [false, true] {
        // What counts is the live bitmap, or the flushed one after the machine went down.
        let counted = written(if is_rebooted { 1 } else { 2 });
        for sector in counted {
            for at in (sector..sector + 512).step_by(13).chain([sector + 504, sector + 511]) {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(&map, bytes).unwrap();
                if is_rebooted {
                    pretend_reboot(&path);
                }
                let error = Overlay::open(&path, large).unwrap_err();
                assert!(matches!(error, OverlayError::Damaged { .. }), "byte {at}: {error}");
            }
        }
        // A sector in another's place, or out of the other bitmap, is found too.
        for (from, to) in [(counted[0], counted[1]), (counted[0] ^ 0x3000, counted[0])] {
            let mut bytes = whole.clone();
            bytes.copy_within(from..from + 512, to);
            fs::write(&map, bytes).unwrap();
            if is_rebooted {
                pretend_reboot(&path);
            }
            let error = Overlay::open(&path, large).unwrap_err();
            assert!(matches!(error, OverlayError::Damaged { .. }), "{from} at {to}: {error}");
        }
    }
    fs::write(&map, &whole).unwrap();
    let count = Overlay::open(&path, large).unwrap().held_blocks();
    assert_eq!(count, 103);
}

/// D2: a disk that loses a sector gives zeros for it, which must not read as the old point.
#[test]
fn a_sector_of_the_map_that_became_zeros_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let large = OverlayBase { size_bytes: 40 << 20, ..base() };
    let overlay = Overlay::open(&path, large).unwrap();
    overlay.write(5, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let map = map::path_of(&path);
    let whole = fs::read(&map).unwrap();
    for is_rebooted in [false, true] {
        let bitmap = if is_rebooted { 4096 } else { 2 * 4096 };
        // The one with the bit, those without one, and all of them at once.
        for (from, bytes) in [(0, 512), (512, 512), (1024, 512), (0, 4096)] {
            let mut lost = whole.clone();
            lost[bitmap + from..][..bytes].fill(0);
            fs::write(&map, lost).unwrap();
            if is_rebooted {
                pretend_reboot(&path);
            }
            let error = Overlay::open(&path, large).unwrap_err();
            assert!(matches!(error, OverlayError::Damaged { .. }), "{from}: {error}");
        }
    }
    fs::write(&map, &whole).unwrap();
    assert_eq!(Overlay::open(&path, large).unwrap().held_blocks(), 1);
}

/// The process or the machine may go down at any write: what is left is an overlay, or none yet.
#[test]
fn an_overlay_that_was_cut_short_while_it_was_made_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let overlay = Overlay::open(&path, base()).unwrap();
    drop(overlay);
    let map = map::path_of(&path);
    let mut partial = map.clone().into_os_string();
    partial.push(".partial");
    let mut bytes = fs::read(&map).unwrap();
    for cut in [0, 64, 4096, 4096 + 512, 8192] {
        fs::remove_file(&map).unwrap();
        // As a power cut leaves it: what came behind is zeros, or not there.
        bytes[cut..].fill(0);
        for left in [&bytes[..], &bytes[..cut]] {
            fs::write(&partial, left).unwrap();
            assert!(held(&Overlay::open(&path, base()).unwrap()).is_empty());
            pretend_reboot(&path);
            assert!(held(&Overlay::open(&path, base()).unwrap()).is_empty());
            fs::remove_file(&map).unwrap();
        }
        drop(Overlay::open(&path, base()).unwrap());
        bytes = fs::read(&map).unwrap();
    }
}

/// What a disk may leave of a flush when the power goes: some sectors of it, each whole.
#[test]
fn a_torn_flush_leaves_a_map_that_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let large = OverlayBase { size_bytes: 40 << 20, ..base() };
    let map = map::path_of(&path);
    let opened = |torn: &[u8]| -> Vec<u64> {
        fs::write(&map, torn).unwrap();
        pretend_reboot(&path);
        let overlay = Overlay::open(&path, large).unwrap();
        let range = BlockRange { block: 0, count: 40 << 8 };
        let runs = overlay.runs(range).filter(|(_, held)| *held);
        runs.flat_map(|(run, _)| run.block..run.end()).collect()
    };
    let overlay = Overlay::open(&path, large).unwrap();
    let new = fs::read(&map).unwrap();
    overlay.write(5, &[1; BLOCK_BYTES]).unwrap();
    overlay.write(5000, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    let before = fs::read(&map).unwrap();
    overlay.write(7, &[1; BLOCK_BYTES]).unwrap();
    overlay.write(5001, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let after = fs::read(&map).unwrap();
    for (sector, held) in [(4096, [5, 5000, 5001]), (4096 + 512, [5, 7, 5000])] {
        let mut torn = after.clone();
        torn[sector..sector + 512].copy_from_slice(&before[sector..sector + 512]);
        assert_eq!(opened(&torn), held);
    }
    // Nor does the first flush need both: a sector is as it was made until it is written.
    for (sector, held) in [(4096, 5000), (4096 + 512, 5)] {
        let mut torn = before.clone();
        torn[sector..sector + 512].copy_from_slice(&new[sector..sector + 512]);
        assert_eq!(opened(&torn), [held]);
    }
}

/// Pins the bytes: `docs/formats/overlay.md`.
#[test]
fn a_sector_is_laid_out_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.overlay");
    let overlay = Overlay::open(&path, OverlayBase { size_bytes: 64 << 20, ..base() }).unwrap();
    overlay.write(5, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write(4032 + 6, &[1; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let bytes = fs::read(map::path_of(&path)).unwrap();
    assert_eq!(bytes.len(), 3 * 4096);
    let sector = |at: usize| -> (u8, Vec<u8>) {
        let sector = &bytes[at..at + 512];
        assert!(sector[1..504].iter().all(|byte| *byte == 0));
        (sector[0], sector[504..].to_vec())
    };
    assert_eq!(sector(4096), (0x20, GOLDEN[0].to_vec()));
    assert_eq!(sector(8192), (0x20, GOLDEN[1].to_vec()));
    assert_eq!(sector(8192 + 512), (0x40, GOLDEN[2].to_vec()));
    // Sealed when the map was made, and padded.
    assert_eq!(sector(4096 + 512), (0, GOLDEN[3].to_vec()));
    assert_eq!(sector(4096 + 4 * 512), (0, GOLDEN[4].to_vec()));
    assert!(bytes[4096 + 5 * 512..8192].iter().all(|byte| *byte == 0));
}

/// Number and checksum of each.
const GOLDEN: [[u8; 8]; 5] = [
    [0x00, 0x00, 0x00, 0x00, 0xe2, 0x8a, 0x17, 0x6d],
    [0x00, 0x00, 0x00, 0x00, 0x16, 0x79, 0x47, 0x7e],
    [0x01, 0x00, 0x00, 0x00, 0xc1, 0x7e, 0x07, 0x61],
    [0x01, 0x00, 0x00, 0x00, 0x67, 0x3d, 0x36, 0x48],
    [0x04, 0x00, 0x00, 0x00, 0x7b, 0xec, 0x62, 0x90],
];

/// D44: a failed sync outlives the process: what the guest was not told must not look like a success later.
#[test]
fn a_failed_flush_is_known_to_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.overlay");
    let overlay = Overlay::open(&path, base()).unwrap();
    overlay.write(3, &[3; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write(4, &[4; BLOCK_BYTES]).unwrap();
    overlay.fail(&OverlayError::Failed { path: path.clone() });
    assert!(matches!(overlay.flush(), Err(OverlayError::Failed { .. })));
    drop(overlay);
    let consent = map::consent_of(&path);
    for _ in 0..2 {
        let error = Overlay::open(&path, base()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(consent.to_str().unwrap()), "{error}");
    }
    // Somebody says that what was not flushed may go.
    fs::write(&consent, "").unwrap();
    let overlay = Overlay::open(&path, base()).unwrap();
    assert!(!consent.exists(), "it is said for once");
    assert!(overlay.holds(3) && !overlay.holds(4));
    assert_eq!(read(&overlay, 3), [3; BLOCK_BYTES]);
    overlay.write(4, &[5; BLOCK_BYTES]).unwrap();
    drop(overlay);
    assert!(Overlay::open(&path, base()).unwrap().holds(4), "all is well again");
}

/// D44: a machine that went down has nothing running on the overlay: what was flushed counts, as ever.
#[test]
fn a_failed_flush_in_front_of_a_power_cut_is_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.overlay");
    let overlay = Overlay::open(&path, base()).unwrap();
    overlay.write(3, &[3; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write(4, &[4; BLOCK_BYTES]).unwrap();
    overlay.fail(&OverlayError::Failed { path: path.clone() });
    drop(overlay);
    pretend_reboot(&path);
    let overlay = Overlay::open(&path, base()).unwrap();
    assert!(overlay.holds(3) && !overlay.holds(4));
}
