//! Journal files by the real writer, several with several groups: every byte flipped, every length,
//! files gone, swapped, of another log, vault or run.
//!
//! Whatever is damaged, an exact prefix of each volume's stream comes back. Less than all of it comes
//! back in silence only if what is missing lies behind everything that is whole: a torn tail. Covers D1,
//! D2, D3 and D6 of `docs/fault-model.md`.

use farshore_codec::{DataKey, KeyRing};
use farshore_ingest::journal::{
    FileEnd, GroupsEnd, JournalDisk, JournalFile, JournalWriter, Owner, join_streams, replay_file,
};
use farshore_ingest::recover::RecoveredVolume;
use farshore_proto::frame::{Control, FrameHeader};
use farshore_proto::journal::{GroupSize, put_entry};
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_ALIGN_BYTES};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{
    BlockRange, Epoch, KeyNumber, LogId, MarkKind, PointId, Seq, VaultId, VolumeId,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUMES: [VolumeId; 2] = [VolumeId([3; 16]), VolumeId([4; 16])];
const EPOCH: Epoch = Epoch(5);
const NUMBER: KeyNumber = KeyNumber(1);
const FIRST_FILE: u64 = 4;
const GROUPS: usize = 8;

type Files = BTreeMap<u64, Vec<u8>>;
/// Header and body, as they came.
type Stream = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Clone, Default)]
struct Disk(Rc<RefCell<Files>>);

struct File(Disk, u64);

impl JournalDisk for Disk {
    type File = File;

    async fn create(&self, file: u64) -> io::Result<File> {
        assert!(self.0.borrow_mut().insert(file, Vec::new()).is_none());
        Ok(File(self.clone(), file))
    }

    async fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl JournalFile for File {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0xee; bytes]
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        let mut files = self.0.0.borrow_mut();
        let file = files.get_mut(&self.1).unwrap();
        assert_eq!(file.len() as u64, offset);
        file.extend(buffer);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn keys() -> KeyRing {
    let mut keys = KeyRing::new(VAULT);
    keys.insert(NUMBER, DataKey::from_bytes([7; 32]));
    keys
}

/// The frame of a seq: writes, zeros and marks in turn.
fn frame(volume: usize, seq: u64) -> (Vec<u8>, Vec<u8>) {
    let byte = u8::try_from(seq * 2).unwrap() + u8::try_from(volume).unwrap();
    match seq % 3 {
        0 => {
            let mark = Mark {
                point: PointId([byte; 16]),
                kind: MarkKind::Crash,
                unknown_blocks: 0,
                is_prompt: false,
                time_unix_ms: 1_700_000_000_000 + seq,
                group: MarkGroup::ALONE,
            };
            let bytes = Control::Mark(Seq(seq), mark).encode();
            let (header, body) = bytes.split_at(48);
            (header.to_vec(), body.to_vec())
        }
        1 => {
            let body = vec![byte; BLOCK_BYTES];
            (FrameHeader::write(Seq(seq), seq, &body).encode().to_vec(), body)
        }
        _ => {
            let range = BlockRange { block: seq, count: 9 };
            (FrameHeader::zero(Seq(seq), range).encode().to_vec(), Vec::new())
        }
    }
}

/// A journal of four files, with the streams of both volumes from seq 1 on.
struct Journal {
    files: Files,
    streams: [Stream; 2],
    /// Where each group lies: file, bytes that count, end of its padding.
    groups: Vec<(u64, std::ops::Range<usize>, usize)>,
}

impl Journal {
    async fn new() -> Self {
        Self::of(VAULT, LOG, FIRST_FILE).await
    }

    async fn of(vault: VaultId, log: LogId, first_file: u64) -> Self {
        let (disk, key) = (Disk::default(), Arc::new(DataKey::from_bytes([7; 32])));
        let owner = Owner { vault, log, number: NUMBER, key };
        let file_bytes = 6 * JOURNAL_ALIGN_BYTES as u64;
        let mut writer = JournalWriter::new(disk.clone(), owner, first_file, file_bytes);
        let (mut streams, mut groups) = ([Vec::new(), Vec::new()], Vec::new());
        let (mut ends, mut seqs) = (BTreeMap::new(), [0, 0]);
        for group in 0..GROUPS {
            let (mut plain, mut entries) = (Vec::new(), 0);
            // Most groups hold both volumes; some only one.
            for volume in [0, 1, 0].into_iter().skip(group % 3) {
                seqs[volume] += 1;
                let (header, body) = frame(volume, seqs[volume]);
                let head = header.as_slice().try_into().unwrap();
                put_entry(&mut plain, VOLUMES[volume], EPOCH, head, &body);
                entries += 1;
                streams[volume].push((header, body));
            }
            let fill = |out: &mut [u8]| out.copy_from_slice(&plain);
            let written =
                writer.write(GroupSize { entries, bytes: plain.len() }, fill).await.unwrap();
            let start = *ends.entry(written.file).or_insert(JOURNAL_ALIGN_BYTES);
            let end = start + written.disk_bytes;
            ends.insert(written.file, end);
            groups.push((written.file, start..start + 64 + plain.len() + 16, end));
        }
        let files = disk.0.borrow().clone();
        assert_eq!(files.len(), 4, "{:?}", files.keys());
        for (file, end) in ends {
            assert_eq!(files[&file].len(), end);
        }
        Self { files, streams, groups }
    }

    fn last_file(&self) -> u64 {
        *self.files.keys().last().unwrap()
    }

    /// Reads files as a start does; returns how many frames of each volume came back, and whether
    /// damage was reported. What comes back is checked.
    fn read(&self, files: &Files, committed: u64) -> ([usize; 2], bool) {
        let known = |volume: &VolumeId| {
            let known = RecoveredVolume {
                epoch: EPOCH,
                size_bytes: 1 << 32,
                committed: Seq(committed),
                stamp: farshore_proto::Stamp::default(),
            };
            (*volume, known)
        };
        let volumes = VOLUMES.iter().map(known).collect();
        let (mut replayed, mut is_damaged) = (Vec::new(), false);
        for (number, bytes) in files {
            let mut bytes = bytes.clone();
            let file = (*number, bytes.as_mut_slice());
            let end = replay_file((VAULT, LOG), &keys(), file, &volumes, &mut replayed);
            is_damaged |=
                matches!(end, FileEnd::Unopened { .. } | FileEnd::Read(GroupsEnd::Damaged { .. }));
        }
        is_damaged |= !join_streams(&volumes, &mut replayed).is_empty();
        let mut counts = [0; 2];
        for frame in replayed {
            let volume = VOLUMES.iter().position(|volume| *volume == frame.volume).unwrap();
            if frame.seq == Seq(committed) {
                // For its stamp only.
                let (header, _) = &self.streams[volume][usize::try_from(committed).unwrap() - 1];
                assert!(frame.frame.header[..] == header[..]);
                continue;
            }
            let at = usize::try_from(committed).unwrap() + counts[volume];
            assert_eq!(frame.seq.0, at as u64 + 1, "an exact prefix");
            let (header, body) = &self.streams[volume][at];
            assert!(frame.frame.header[..] == header[..] && frame.frame.body == *body);
            counts[volume] += 1;
        }
        (counts, is_damaged)
    }

    fn all(&self) -> [usize; 2] {
        [self.streams[0].len(), self.streams[1].len()]
    }
}

#[tokio::test]
async fn a_whole_journal_comes_back_behind_what_the_vault_holds() {
    let journal = Journal::new().await;
    let [a, b] = journal.all();
    assert_eq!(journal.read(&journal.files, 0), ([a, b], false));
    assert_eq!(journal.read(&journal.files, 3), ([a - 3, b - 3], false));
}

#[tokio::test]
async fn every_flipped_byte_is_reported_unless_it_tears_the_tail() {
    let journal = Journal::new().await;
    let last = journal.groups.last().unwrap().clone();
    let (mut flips, mut reported, mut torn, mut harmless) = (0, 0, 0, 0);
    for (number, whole) in &journal.files {
        let mut files = journal.files.clone();
        for at in 0..whole.len() {
            files.get_mut(number).unwrap()[at] ^= 1 << (at % 8);
            let (counts, is_damaged) = journal.read(&files, 0);
            files.get_mut(number).unwrap()[at] ^= 1 << (at % 8);
            flips += 1;
            let is_tail = *number == last.0 && last.1.contains(&at);
            let is_padding = journal
                .groups
                .iter()
                .any(|(file, used, end)| file == number && (used.end..*end).contains(&at));
            match (counts == journal.all(), is_damaged) {
                (false, true) => reported += 1,
                (false, false) => {
                    assert!(is_tail, "byte {at} of file {number} is lost in silence: {counts:?}");
                    torn += 1;
                }
                (true, false) => {
                    assert!(is_padding, "byte {at} of file {number} does not count");
                    harmless += 1;
                }
                (true, true) => panic!("byte {at} of file {number}: nothing is lost"),
            }
        }
    }
    println!("journal: {flips} flips, {reported} reported, {torn} torn tail, {harmless} padding");
    assert!(reported > flips / 2 && torn == last.1.len());
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_every_byte_in_silence_and_a_torn_middle_never() {
    let journal = Journal::new().await;
    let (mut cuts, mut reported) = (0, 0);
    for (number, whole) in &journal.files {
        for length in 0..whole.len() {
            let mut files = journal.files.clone();
            files.get_mut(number).unwrap().truncate(length);
            let (counts, is_damaged) = journal.read(&files, 0);
            cuts += 1;
            reported += usize::from(is_damaged);
            if *number == journal.last_file() {
                assert!(!is_damaged, "cut to {length} of the last file");
                let whole_groups = journal
                    .groups
                    .iter()
                    .filter(|(file, used, _)| file != number || used.end <= length)
                    .count();
                let expected = frames_of(whole_groups);
                assert_eq!(counts, expected, "cut to {length} of the last file");
            } else {
                let is_lost = counts != journal.all();
                assert_eq!(is_damaged, is_lost, "cut to {length} of file {number}");
            }
        }
    }
    println!("journal: {cuts} cuts, {reported} reported");
    assert!(reported > 0);
}

/// How many frames of each volume the first groups hold.
fn frames_of(groups: usize) -> [usize; 2] {
    let mut counts = [0; 2];
    for group in 0..groups {
        for volume in [0_usize, 1, 0].into_iter().skip(group % 3) {
            counts[volume] += 1;
        }
    }
    counts
}

#[tokio::test]
async fn a_missing_swapped_or_foreign_file_is_reported() {
    let journal = Journal::new().await;
    let numbers: Vec<u64> = journal.files.keys().copied().collect();
    for number in &numbers {
        // Gone: what is behind it does not join. The last one may never have been.
        let mut files = journal.files.clone();
        files.remove(number);
        let (counts, is_damaged) = journal.read(&files, 0);
        assert!(counts != journal.all());
        assert_eq!(is_damaged, *number != journal.last_file(), "file {number} is gone");
        // Another's bytes under its name.
        for other in numbers.iter().filter(|other| *other != number) {
            let mut files = journal.files.clone();
            files.insert(*number, journal.files[other].clone());
            assert!(journal.read(&files, 0).1, "file {other} under the name of {number}");
        }
        for foreign in [
            Journal::of(VAULT, LogId([9; 16]), FIRST_FILE).await,
            Journal::of(VaultId([9; 16]), LOG, FIRST_FILE).await,
        ] {
            let mut files = journal.files.clone();
            files.insert(*number, foreign.files[number].clone());
            assert!(journal.read(&files, 0).1, "file {number} of another log or vault");
        }
    }
}

/// A file of the same number that an older run wrote, put back: it opens, because it is whole and in
/// its place. What it holds is committed, so nothing of it is taken, and what it replaced is missed.
#[tokio::test]
async fn a_file_of_an_older_run_gives_nothing_and_what_it_replaced_is_missed() {
    let journal = Journal::new().await;
    let in_first = journal.groups.iter().filter(|(file, ..)| *file == FIRST_FILE).count();
    let committed = frames_of(in_first).into_iter().min().unwrap() as u64;
    let number = FIRST_FILE + 1;
    let older = Journal::of(VAULT, LOG, number).await;
    let mut files = journal.files.clone();
    files.insert(number, older.files[&number].clone());
    let (counts, is_damaged) = journal.read(&files, committed);
    assert!(is_damaged && counts != journal.all());
}

/// Groups are bound to their file and number: one put elsewhere is not taken.
#[tokio::test]
async fn a_group_in_the_place_of_another_is_reported() {
    let journal = Journal::new().await;
    for (to_file, to, _) in &journal.groups {
        for (from_file, from, _) in &journal.groups {
            let is_same = (to_file, to.start) == (from_file, from.start);
            if is_same || from.len() > to.len() {
                continue;
            }
            let mut files = journal.files.clone();
            let bytes = journal.files[from_file][from.clone()].to_vec();
            files.get_mut(to_file).unwrap()[to.start..to.start + bytes.len()]
                .copy_from_slice(&bytes);
            let (counts, is_damaged) = journal.read(&files, 0);
            assert!(counts != journal.all());
            let is_last = (to_file, to.start)
                == journal.groups.last().map(|(file, used, _)| (file, used.start)).unwrap();
            assert!(is_damaged || is_last, "{from:?} of {from_file} at {to:?} of {to_file}");
        }
    }
}
