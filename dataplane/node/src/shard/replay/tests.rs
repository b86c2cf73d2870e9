use super::*;
use farshore_codec::DataKey;
use farshore_codec::journal::JournalSealer;
use farshore_proto::KeyNumber;
use farshore_proto::frame::FrameHeader;
use farshore_proto::journal::put_entry;
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_GROUP_HEADER_BYTES};

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const NUMBER: KeyNumber = KeyNumber(1);

fn keys() -> KeyRing {
    let mut keys = KeyRing::new(VAULT);
    keys.insert(NUMBER, DataKey::from_bytes([7; 32]));
    keys
}

/// A journal file whose group `n` holds the write of seq `n + 1`.
fn file(number: u64, groups: u64) -> Vec<u8> {
    let ring = keys();
    let key = ring.get(NUMBER).unwrap();
    let mut sealer = JournalSealer::create(VAULT, LOG, number, key, NUMBER).unwrap();
    let mut bytes = sealer.header().encode();
    for group in 0..groups {
        let body = vec![u8::try_from(group).unwrap() + 1; BLOCK_BYTES];
        let header = FrameHeader::write(Seq(group + 1), group, &body).encode();
        let mut plain = Vec::new();
        put_entry(&mut plain, VOLUME, Epoch(1), &header, &body);
        let mut disk = vec![0; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(&plain);
        sealer.seal_group(plain.len(), &mut disk).unwrap();
        bytes.extend(disk);
    }
    bytes
}

fn read_back(bytes: &[u8], committed: u64) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("00000000000000000005.journal"), bytes).unwrap();
    let volume = RecoveredVolume { epoch: Epoch(1), size_blocks: 100, committed: Seq(committed) };
    let volumes = BTreeMap::from([(VOLUME, volume)]);
    let (replayed, files) = read_files(dir.path(), VAULT, LOG, &keys(), &volumes).unwrap();
    assert_eq!(files, [5]);
    for frame in &replayed {
        let byte = u8::try_from(frame.seq.0).unwrap();
        assert!(frame.frame.body.iter().all(|found| *found == byte), "bytes of another frame");
    }
    replayed.into_iter().map(|frame| frame.seq.0).collect()
}

#[test]
fn replays_what_the_vault_does_not_hold() {
    let bytes = file(5, 4);
    assert_eq!(read_back(&bytes, 0), [1, 2, 3, 4]);
    assert_eq!(read_back(&bytes, 2), [3, 4]);
    assert_eq!(read_back(&bytes, 4), [0; 0]);
}

#[test]
fn a_torn_tail_costs_only_the_group_it_tears() {
    let bytes = file(5, 2);
    let group = (bytes.len() - JOURNAL_ALIGN_BYTES) / 2;
    // Padding behind the second group is not part of it: cut inside what was sealed.
    let sealed = JOURNAL_GROUP_HEADER_BYTES + 24 + FRAME_HEADER_BYTES + BLOCK_BYTES + 16;
    let second = JOURNAL_ALIGN_BYTES + group;
    for cut in (second..second + sealed).step_by(97) {
        assert_eq!(read_back(&bytes[..cut], 0), [1], "cut at {cut}");
    }
    assert_eq!(read_back(&bytes[..JOURNAL_ALIGN_BYTES], 0), [0; 0]);
    assert_eq!(read_back(&bytes[..100], 0), [0; 0]);
}

#[test]
fn a_damaged_group_is_never_returned_and_nothing_behind_it_is() {
    let bytes = file(5, 3);
    let group = (bytes.len() - JOURNAL_ALIGN_BYTES) / 3;
    let sealed = JOURNAL_GROUP_HEADER_BYTES + 24 + FRAME_HEADER_BYTES + BLOCK_BYTES + 16;
    let second = JOURNAL_ALIGN_BYTES + group;
    for at in (second..second + sealed).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(read_back(&damaged, 0), [1], "flipped byte {at}");
    }
}

#[test]
fn a_group_of_another_file_or_log_is_not_taken() {
    let mut mixed = file(5, 1);
    let other = file(6, 2);
    mixed.extend_from_slice(&other[other.len() - (other.len() - JOURNAL_ALIGN_BYTES) / 2..]);
    assert_eq!(read_back(&mixed, 0), [1]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("00000000000000000005.journal"), file(5, 2)).unwrap();
    let (replayed, _) =
        read_files(dir.path(), VAULT, LogId([9; 16]), &keys(), &BTreeMap::new()).unwrap();
    assert!(replayed.is_empty());
}
