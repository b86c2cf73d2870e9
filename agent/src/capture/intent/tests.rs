use super::*;
use crate::faulty_files::FaultyFiles;
use crate::files::OsFiles;
use std::fs::File;
use std::os::unix::fs::FileExt;

const VOLUME: VolumeId = VolumeId([5; 16]);
const REGIONS: u64 = 10_000;

fn life(number: u32) -> Life {
    Life { number, stamps: Arc::default() }
}

fn os_files() -> Arc<dyn Files> {
    Arc::new(OsFiles)
}

fn open(path: &Path) -> (IntentMap, Recovered) {
    open_as(path, VOLUME, REGIONS)
}

fn open_as(path: &Path, volume: VolumeId, regions: u64) -> (IntentMap, Recovered) {
    let mut is_told = false;
    let mut unknown = || {
        is_told = true;
        Ok(())
    };
    let found = IntentMap::open(&os_files(), path, volume, regions, life(1), &mut unknown).unwrap();
    assert_eq!(found.1.is_unknown, is_told);
    found
}

#[test]
fn remembers_what_was_set_and_not_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let (mut map, recovered) = open(&path);
    assert!(recovered.is_unknown);
    map.set(&[0, 4031, 4032, 9_999]);
    map.take_changes().write().unwrap();
    map.clear(&[4031]);
    map.take_cleared().write().unwrap();
    let (_, recovered) = open(&path);
    assert!(!recovered.is_unknown);
    assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), [0, 4032, 9_999]);
    assert_eq!(path.metadata().unwrap().len(), 6 * 512);
}

/// D1: a clearing that fails must not take along an intent that was set meanwhile.
#[test]
fn what_could_not_be_written_is_written_with_the_next_intent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let (mut map, _) = open(&path);
    map.set(&[7]);
    map.take_changes().write().unwrap();
    map.clear(&[7]);
    // The intent of a write comes while the cleared one is on its way, and goes along with it.
    map.set(&[9]);
    let failed = map.take_cleared();
    map.unwritten(failed.indices());
    map.take_changes().write().unwrap();
    assert_eq!(open(&path).1.regions.iter().collect::<Vec<_>>(), [9]);
}

/// D35: the intents of before are kept, and so is room for the new part's.
#[test]
fn grows_with_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let (mut map, _) = open(&path);
    map.set(&[3, 9_999]);
    map.take_changes().write().unwrap();
    for regions in [REGIONS + 1, 4 * REGIONS] {
        map.growth(regions).make().unwrap();
        map.grown(regions);
        map.set(&[regions - 1]);
        map.take_changes().write().unwrap();
    }
    drop(map);
    let (_, recovered) = open_as(&path, VOLUME, 4 * REGIONS);
    let expected = [3, 9_999, REGIONS, 4 * REGIONS - 1];
    assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), expected);
    assert!(open(&path).1.is_unknown, "not of the size of before");
}

#[test]
fn a_damaged_sector_puts_its_regions_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    drop(open(&path));
    let file = File::options().write(true).open(&path).unwrap();
    FileExt::write_all_at(&file, &[1], 512 * 5 + 7).unwrap();
    let files = FaultyFiles::good();
    let mut nobody = || unreachable!("it is known");
    let (_, recovered) =
        IntentMap::open(&files.shared(), &path, VOLUME, REGIONS, life(1), &mut nobody).unwrap();
    assert!(files.has_synced(&path), "what puts it in doubt must outlive a power cut");
    let damaged: Vec<u64> = (8064..REGIONS).collect();
    assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), damaged);
    // D2: the byte that was damaged comes right again, as a torn write may have it.
    FileExt::write_all_at(&file, &[0], 512 * 5 + 7).unwrap();
    let (_, recovered) = open(&path);
    assert_eq!(recovered.regions.iter().collect::<Vec<_>>(), damaged);
}

#[test]
fn a_file_of_another_volume_or_size_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    drop(open(&path));
    assert!(open_as(&path, VolumeId([6; 16]), REGIONS).1.is_unknown);
    drop(open(&path));
    assert!(open_as(&path, VOLUME, REGIONS + 1).1.is_unknown);
    drop(open(&path));
    std::fs::write(&path, "short").unwrap();
    assert!(open(&path).1.is_unknown);
}

/// D7: a crash while a lost file is made anew must not leave one that says "nothing in doubt".
#[test]
fn nothing_is_made_before_the_loss_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let mut fail = || Err(io::Error::other("not noted"));
    assert!(IntentMap::open(&os_files(), &path, VOLUME, REGIONS, life(1), &mut fail).is_err());
    assert!(open(&path).1.is_unknown, "as before");
}

/// D2: damage never takes a region out of doubt.
#[test]
fn every_flipped_byte_and_every_length_leaves_more_in_doubt() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("intent");
    let (mut map, _) = open(&path);
    let set = [0, 4031, 4032, 9_999];
    map.set(&set);
    map.take_changes().write().unwrap();
    drop(map);
    let whole = std::fs::read(&path).unwrap();
    let (mut unknown, mut sectors) = (0, 0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, bytes).unwrap();
        let (_, recovered) = open(&path);
        if at < SECTOR_BYTES {
            assert!(recovered.is_unknown, "flip at {at}");
            unknown += 1;
            continue;
        }
        let found: BTreeSet<u64> = recovered.regions.iter().collect();
        let in_front = 1 + usize::try_from(LINEAGE_SECTORS).unwrap();
        let Some(index) = (at / SECTOR_BYTES).checked_sub(in_front) else {
            assert_eq!(found, set.into(), "flip at {at} concerns no region");
            continue;
        };
        let first = index as u64 * SECTOR_REGIONS;
        let damaged = first..REGIONS.min(first + SECTOR_REGIONS);
        assert_eq!(found, damaged.chain(set).collect(), "flip at {at}");
        sectors += 1;
    }
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(open(&path).1.is_unknown, "cut to {length}");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(open(&path).1.is_unknown, "grown");
    println!("intent: {unknown} flips make all unknown, {sectors} a sector; {} cuts", whole.len());
}

/// Whatever is torn or damaged of it, it never says more than what was durable.
#[test]
fn the_line_goes_on_and_says_no_more_than_was_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    assert_eq!(lineage_at(&OsFiles, &path).unwrap(), Lineage::default());
    let open = |number| {
        let stamps = Arc::<Stamps>::default();
        let life = Life { number, stamps: Arc::clone(&stamps) };
        let opened = IntentMap::open(&os_files(), &path, VOLUME, REGIONS, life, &mut || Ok(()));
        (opened.unwrap().0, stamps)
    };
    let told = Stamps::now;
    let (mut map, stamp) = open(7);
    assert_eq!(told(&stamp), Stamp { life: 7, generation: 1 }, "before the first frame");
    map.set(&[3]);
    let changes = map.take_changes();
    assert_eq!(told(&stamp).generation, 1, "nothing is said before it is durable");
    changes.write().unwrap();
    assert_eq!(told(&stamp).generation, 2);
    map.clear(&[3]);
    map.take_cleared().write().unwrap();
    assert_eq!(told(&stamp).generation, 2, "nobody synced it");
    drop(map);
    let (_, stamp) = open(8);
    assert_eq!(told(&stamp), Stamp { life: 8, generation: 1 });
    let whole = lineage_at(&OsFiles, &path).unwrap();
    assert!(whole.covers(Stamp { life: 7, generation: 2 }) && whole.covers(told(&stamp)));
    let bytes = std::fs::read(&path).unwrap();
    for at in SECTOR_BYTES..3 * SECTOR_BYTES {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let found = lineage_at(&OsFiles, &path).unwrap();
        assert!(!found.covers(Stamp { life: 7, generation: 3 }), "flip at {at}");
        assert!(!found.covers(Stamp { life: 8, generation: 2 }), "flip at {at}");
    }
    std::fs::write(&path, "short").unwrap();
    assert_eq!(lineage_at(&OsFiles, &path).unwrap(), Lineage::default());
}

#[test]
fn the_bytes_are_those_documented() {
    let header = header(VOLUME, 3);
    assert_eq!(&header[..8], b"FSIN\x02\0\0\0");
    assert_eq!(header[8..24], [5; 16]);
    assert_eq!(header[24..32], [3, 0, 0, 0, 0, 0, 0, 0]);
    let mut lineage = Lineage::default();
    lineage.begin(0x0102_0304);
    let sector = lineage_sector(&lineage, 9);
    assert_eq!(sector[..16], *b"FSIL\0\0\0\0\x09\0\0\0\0\0\0\0");
    assert_eq!(sector[72..80], [0, 0, 0, 0, 4, 3, 2, 1]);
    assert!(header[32..508].iter().all(|byte| *byte == 0));
    let mut bits = [0; BITS_BYTES];
    bits[1] = 2;
    let sector = sector_of(&bits);
    assert_eq!(sector[..4], [0, 2, 0, 0]);
    check_crc("sector", &sector).unwrap();
}
