use super::*;
use crate::faulty_files::{FaultyFiles, Sickness, time};
use farshore_proto::frame::{FrameHeader, imprint};
use farshore_proto::hrl::HrlHeader;
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES, HRL_HEADER_BYTES, ZERO_BLOCKS_MAX};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{BlockRange, Imprint, MarkKind, PointId, Stamp, VolumeId};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

mod damage;

const VOLUME: VolumeId = VolumeId([3; 16]);
const LIMIT: u64 = 64 << 20;

impl Log {
    /// A log on files that work; losses need no note.
    fn open(dir: &Path, volume: VolumeId, limit_bytes: u64) -> Result<(Self, Recovered), LogError> {
        Self::open_on(&FaultyFiles::good(), dir, (volume, limit_bytes), Seq(0))
    }

    fn open_on(
        files: &FaultyFiles,
        dir: &Path,
        (volume, limit_bytes): (VolumeId, u64),
        logged: Seq,
    ) -> Result<(Self, Recovered), LogError> {
        let home = Home { files: files.shared(), time: time(), dir: dir.to_owned(), limit_bytes };
        Self::open_in(home, volume, logged, &mut |_| Ok(()))
    }
}

/// Opens a log that must be whole up to `logged`.
fn open_logged(dir: &Path, logged: u64) -> (Log, Recovered) {
    Log::open_on(&FaultyFiles::good(), dir, (VOLUME, LIMIT), Seq(logged)).unwrap()
}

fn open(dir: &Path) -> (Log, Recovered) {
    Log::open(dir, VOLUME, LIMIT).unwrap()
}

#[test]
fn says_whose_each_frame_is_that_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stamps = [1, 2, 2, 5].map(|generation| Stamp { life: 7, generation });
    for (number, stamp) in (0..).zip(stamps) {
        log.stamps().durable(log.stamps().begin(), stamp);
        write(&log, u64::from(number), number);
    }
    let held = |log: &Log, seq| {
        let Held { stamp, mut behind, .. } = log.find(Seq(seq)).unwrap()?;
        assert_eq!(behind.next(), Seq(seq + 1));
        if seq < log.last().0 {
            let run = log.read_run(&mut behind, 1, &mut Vec::new()).unwrap();
            assert_eq!(run.last, Seq(seq + 1), "what is behind it is read from there");
        }
        Some(stamp)
    };
    let all = |log: &Log| [0, 1, 2, 3, 4, 5].map(|seq| held(log, seq));
    let expected = [None, Some(stamps[0]), Some(stamps[1]), Some(stamps[2]), Some(stamps[3]), None];
    assert_eq!(all(&log), expected);
    log.sync().unwrap();
    drop(log);
    let (log, _) = open(dir.path());
    assert_eq!(all(&log), expected);
    log.restart(Seq(9)).unwrap();
    assert_eq!(held(&log, 4), None);
    assert_eq!(held(&log, 8), None);
}

/// What a log's frames say of those before them, and the imprint of the newest; each is checked against the log's.
fn links(log: &Log) -> (Vec<Imprint>, Imprint) {
    let (bytes, _) = read_all(log, log.place().first.0, 1);
    let (mut rest, mut said, mut newest) = (&bytes[..], Vec::new(), Imprint::default());
    while let Some(head) = rest.first_chunk() {
        let header = FrameHeader::decode(head).unwrap();
        let held = log.find(header.seq).unwrap().unwrap();
        assert_eq!(held.imprint, imprint(head));
        assert!(said.is_empty() || header.previous == newest, "frame {}", header.seq);
        said.push(header.previous);
        newest = held.imprint;
        rest = &rest[FRAME_HEADER_BYTES + header.body_bytes..];
    }
    (said, newest)
}

#[test]
fn each_frame_says_which_it_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let files = FaultyFiles::good();
    let open = || Log::open_on(&files, dir.path(), (VOLUME, 4 << 20), Seq(0)).unwrap().0;
    let log = open();
    let append = |log: &Log, number: u8| {
        let zeros = BlockRange { block: 9, count: ZERO_BLOCKS_MAX + 1 };
        log.append(&[
            Entry::Write { block: 4, data: &block(number).repeat(257), is_copy: false },
            Entry::Zero { range: zeros, is_copy: false },
            Entry::Mark { mark: mark(number) },
        ])
    };
    append(&log, 1).unwrap();
    let (said, newest) = links(&log);
    assert_eq!(said.len(), 5);
    assert!(!said[0].is_known() && said[1..].iter().all(|previous| previous.is_known()));

    // Over a restart of the agent, and a file that was just made.
    let next = log.last().next();
    drop(log);
    let head = HrlHeader { volume: VOLUME, first_seq: next }.encode();
    fs::write(dir.path().join(writer::file_name(next)), head).unwrap();
    let log = open();
    assert_eq!(links(&log).1, newest);
    // Into the next file, and behind what was not taken.
    write(&log, 0, 2);
    files.sicken(Sickness::Full);
    append(&log, 3).unwrap_err();
    files.sicken(Sickness::None);
    log.lock().no_space_until = None;
    append(&log, 4).unwrap();
    assert!(log.lock().parts.len() > 1, "files are of a mebibyte here");
    let (said, newest) = links(&log);
    assert_eq!(said.len(), 11);

    // What is committed is gone; the frame behind it says all the same which that was.
    log.trim(log.last()).unwrap();
    assert_eq!(links(&log), (Vec::new(), Imprint::default()));
    write(&log, 0, 5);
    assert_eq!(links(&log).0, [newest]);
    drop(log);
    let log = open();
    write(&log, 0, 6);
    assert_eq!(links(&log).0[0], newest);

    // Another disk, so to say.
    log.restart(Seq(40)).unwrap();
    write(&log, 0, 7);
    assert_eq!(links(&log).0, [Imprint::default()]);
}

/// P41: a server is set back to a snapshot with its memory: life, intents and numbers are the same.
#[test]
fn two_branches_of_one_log_differ_for_ever() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let newest = |number: usize| {
        let (log, _) = open(dirs[number].path());
        log.stamps().durable(log.stamps().begin(), Stamp { life: 7, generation: 3 });
        write(&log, 0, 1);
        write(&log, 0, u8::try_from(number).unwrap());
        (0..9).for_each(|_| assert!(write(&log, 0, 5) > Seq(2)));
        log.find(log.last()).unwrap().unwrap()
    };
    let [one, other] = [newest(0), newest(1)];
    assert_eq!(one.stamp, other.stamp);
    assert!(one.imprint.differs(other.imprint), "the last nine frames are the same");
}

fn block(number: u8) -> Vec<u8> {
    vec![number; BLOCK_BYTES]
}

fn write(log: &Log, at: u64, number: u8) -> Seq {
    log.append(&[Entry::Write { block: at, data: &block(number), is_copy: false }]).unwrap()
}

fn mark(number: u8) -> Mark {
    Mark {
        point: PointId([number; 16]),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: number.is_multiple_of(2),
        time_unix_ms: 1_700_000_000_000 + u64::from(number),
        group: MarkGroup::ALONE,
    }
}

fn only_file(dir: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    files.remove(0)
}

/// Every byte from `from` on, read in runs of at most `bytes_max`.
fn read_all(log: &Log, from: u64, bytes_max: u64) -> (Vec<u8>, Vec<(Seq, Mark)>) {
    let mut cursor = Cursor::at(Seq(from));
    let (mut bytes, mut marks, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    while cursor.next() <= log.last() {
        let run = log.read_run(&mut cursor, bytes_max, &mut buffer).unwrap();
        bytes.extend_from_slice(&buffer);
        marks.extend(run.marks);
    }
    (bytes, marks)
}

#[test]
fn reads_back_what_was_appended_in_runs_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovered) = open(dir.path());
    assert!(recovered.was_absent);
    assert_eq!(log.place(), Place { first: Seq(1), last: Seq(0), bytes: 64 });
    assert_eq!(write(&log, 7, 1), Seq(1));
    let zero = Entry::Zero { range: BlockRange { block: 9, count: 5_000_000 }, is_copy: false };
    assert_eq!(log.append(&[zero]).unwrap(), Seq(3), "a long run of zeros is two frames");
    assert_eq!(log.append_mark(mark(1), 0).unwrap(), Seq(4));
    let big = vec![9; 300 * BLOCK_BYTES];
    assert_eq!(
        log.append(&[Entry::Write { block: 100, data: &big, is_copy: false }]).unwrap(),
        Seq(6)
    );
    let whole = fs::read(only_file(dir.path())).unwrap();
    for bytes_max in [1, 5_000, 1 << 20, 16 << 20] {
        let (bytes, marks) = read_all(&log, 1, bytes_max);
        assert_eq!(bytes, whole[HRL_HEADER_BYTES..]);
        assert_eq!(marks, [(Seq(4), mark(1))]);
    }
    let (tail, _) = read_all(&log, 6, 1 << 20);
    assert!(whole.ends_with(&tail) && tail.len() == FRAME_HEADER_BYTES + 44 * BLOCK_BYTES);
    let mut buffer = Vec::new();
    let missing = log.read_run(&mut Cursor::at(Seq(7)), 1, &mut buffer).unwrap_err();
    assert!(matches!(missing, LogError::Missing { seq: Seq(7) }));
}

#[test]
fn a_copy_is_told_from_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    // Each is two frames.
    let (data, range) = (vec![9; 300 * BLOCK_BYTES], BlockRange { block: 9, count: 5_000_000 });
    for is_copy in [true, false] {
        let write = Entry::Write { block: 100, data: &data, is_copy };
        log.append(&[write, Entry::Zero { range, is_copy }]).unwrap();
    }
    log.append_mark(mark(1), 0).unwrap();
    let (bytes, _) = read_all(&log, 1, 1 << 20);
    let (mut rest, mut copies) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let (header, body) = farshore_proto::hrl::frame_at(rest).unwrap();
        copies.push(header.is_copy());
        rest = &rest[FRAME_HEADER_BYTES + body.len()..];
    }
    assert_eq!(copies, [true, true, true, true, false, false, false, false, false]);
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    // In memory where that is possible: every cut is synced.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    log.append_mark(mark(7), 0).unwrap();
    let kept = fs::metadata(only_file(dir.path())).unwrap().len();
    write(&log, 2, 2);
    drop(log);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    for length in kept..whole.len() as u64 {
        fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
        let (log, recovered) = open(dir.path());
        assert_eq!((recovered.first, recovered.last), (Seq(1), Seq(2)), "cut at {length}");
        assert_eq!(recovered.torn_bytes, length - kept);
        assert_eq!((recovered.damage, recovered.marks), (None, vec![(Seq(2), mark(7))]));
        assert_eq!(fs::metadata(&path).unwrap().len(), kept);
        assert_eq!(write(&log, 9, 9), Seq(3), "goes on where it was cut");
    }
    // A torn header: the file was being made.
    for length in 0..HRL_HEADER_BYTES {
        fs::write(&path, &whole[..length]).unwrap();
        let (log, recovered) = open(dir.path());
        assert_eq!((recovered.last, recovered.damage), (Seq(0), None), "cut at {length}");
        assert_eq!(write(&log, 9, 9), Seq(1));
    }
}

#[test]
fn damage_in_front_of_good_frames_is_told_never_silent() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for number in 1..=5 {
        write(&log, number.into(), number);
    }
    drop(log);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    let frame = FRAME_HEADER_BYTES + BLOCK_BYTES;
    for (index, offset) in [(0, 10), (1, 60), (3, 4_000)] {
        let mut bytes = whole.clone();
        bytes[HRL_HEADER_BYTES + index * frame + offset] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (_, recovered) = open_logged(dir.path(), 5);
        assert_eq!(recovered.last, Seq(index as u64), "what is good in front is kept");
        assert!(recovered.damage.is_some(), "frame {index} byte {offset}");
        // Where nobody relies on it, it is what a power cut leaves.
        fs::write(&path, &bytes).unwrap();
        let (_, recovered) = open_logged(dir.path(), index as u64);
        assert_eq!((recovered.last, recovered.damage), (Seq(index as u64), None));
    }
    // The very last frame, flipped or gone.
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    for bytes in [&bytes[..], &bytes[..bytes.len() - frame]] {
        fs::write(&path, bytes).unwrap();
        let (_, recovered) = open_logged(dir.path(), 5);
        assert_eq!(recovered.last, Seq(4));
        assert!(recovered.damage.is_some());
    }
    // A file of another volume.
    fs::write(&path, &whole).unwrap();
    let (_, recovered) = Log::open(dir.path(), VolumeId([4; 16]), LIMIT).unwrap();
    assert!(recovered.damage.is_some());
}

#[test]
fn trims_whole_files_and_only_at_committed() {
    let dir = tempfile::tempdir().unwrap();
    // A limit of 64 MiB makes files of 16 MiB: 16 frames of 1 MiB each.
    let (log, _) = open(dir.path());
    let big = vec![1; 1 << 20];
    for number in 0..40 {
        log.append(&[Entry::Write { block: number * 256, data: &big, is_copy: false }]).unwrap();
    }
    let count = || fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(count(), 3);
    log.trim(Seq(15)).unwrap();
    assert_eq!((count(), log.place().first), (3, Seq(1)));
    log.trim(Seq(16)).unwrap();
    assert_eq!((count(), log.place().first), (2, Seq(17)));
    let (bytes, _) = read_all(&log, 30, 3 << 20);
    assert_eq!(bytes.len(), 11 * ((1 << 20) + FRAME_HEADER_BYTES), "across files");
    log.trim(Seq(39)).unwrap();
    assert_eq!((count(), log.place().first), (1, Seq(33)));
    // All of it: the last file is emptied, and the next seq is still known.
    log.trim(Seq(40)).unwrap();
    assert_eq!(log.place(), Place { first: Seq(41), last: Seq(40), bytes: 64 });
    assert_eq!(count(), 1);
    // A small file is not worth it.
    write(&log, 0, 1);
    log.trim(Seq(41)).unwrap();
    assert_eq!((log.place().first, log.last()), (Seq(41), Seq(41)));
    for number in 0..8 {
        log.append(&[Entry::Write { block: number * 256, data: &big, is_copy: false }]).unwrap();
    }
    log.trim(Seq(49)).unwrap();
    assert_eq!(log.place(), Place { first: Seq(50), last: Seq(49), bytes: 64 });
    let (again, recovered) = open(dir.path());
    assert_eq!((recovered.first, recovered.last), (Seq(50), Seq(49)));
    assert_eq!(write(&again, 3, 3), Seq(50));
    let (bytes, _) = read_all(&again, 50, 1);
    assert_eq!(bytes.len(), FRAME_HEADER_BYTES + BLOCK_BYTES);
}

#[test]
fn reopening_joins_files_and_notices_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let big = vec![1; 1 << 20];
    for number in 0..40 {
        log.append(&[Entry::Write { block: number * 256, data: &big, is_copy: false }]).unwrap();
    }
    drop(log);
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.first, recovered.last, recovered.damage), (Seq(1), Seq(40), None));
    fs::remove_file(dir.path().join("00000000000000000017.hrl")).unwrap();
    let (_, recovered) = open_logged(dir.path(), 40);
    assert_eq!(recovered.last, Seq(16));
    assert!(recovered.damage.unwrap().contains("does not join seq 16"));
}

#[test]
fn a_full_log_refuses_and_takes_again_after_a_trim() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), VOLUME, 16 << 20).unwrap();
    let big = vec![1; 1 << 20];
    let mut last = Seq(0);
    let refused = loop {
        match log.append(&[Entry::Write { block: 0, data: &big, is_copy: false }]) {
            Ok(seq) => last = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }));
    assert_eq!((last, log.last()), (Seq(15), Seq(15)));
    assert_eq!(log.breaches(), 1);
    assert!(matches!(log.append_mark(mark(1), 0), Err(AppendError::Breached)));
    log.append_mark(mark(1), 1).unwrap();
    log.trim(Seq(10)).unwrap();
    log.append(&[Entry::Write { block: 0, data: &big, is_copy: false }]).unwrap();
}

#[test]
fn a_restart_forgets_everything_and_goes_on_where_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    let breaches = log.breaches();
    log.restart(Seq(100)).unwrap();
    assert!(matches!(log.append_mark(mark(1), breaches), Err(AppendError::Breached)));
    assert_eq!((log.place().first, log.last(), log.restarts()), (Seq(100), Seq(99), 1));
    assert_eq!(write(&log, 1, 1), Seq(100));
    drop(log);
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.first, recovered.last), (Seq(100), Seq(100)));
}

#[test]
fn damage_found_while_reading_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    write(&log, 2, 2);
    let file = OpenOptions::new().write(true).open(only_file(dir.path())).unwrap();
    file.write_all_at(&[0xff], (HRL_HEADER_BYTES + FRAME_HEADER_BYTES + BLOCK_BYTES) as u64)
        .unwrap();
    let mut cursor = Cursor::at(Seq(1));
    let error = log.read_run(&mut cursor, 1 << 20, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { seq: Seq(2), .. }));
}

/// M4: a power cut while the only file was emptied costs no resync. Name, header and length may be
/// durable each by itself.
#[test]
fn a_power_cut_while_the_log_is_emptied_is_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = full_of(dir.path(), 3);
    let old = fs::read(only_file(dir.path())).unwrap();
    let old_name = only_file(dir.path());
    log.trim(Seq(3)).unwrap();
    let new = fs::read(only_file(dir.path())).unwrap();
    let new_name = only_file(dir.path());
    assert_ne!(old_name, new_name);
    drop(log);
    let cut = |head: &[u8], name: &Path| {
        fs::remove_file(only_file(dir.path())).unwrap();
        fs::write(name, head).unwrap();
        let opened = || {
            let files = FaultyFiles::good();
            Log::open_on(&files, dir.path(), (VOLUME, 4 << 20), Seq(3)).unwrap()
        };
        let (log, recovered) = opened();
        assert_eq!(recovered.damage, None, "{} bytes in {}", head.len(), name.display());
        drop(log);
        let (_, again) = opened();
        assert_eq!((again.last, again.damage), (recovered.last, None), "the same again");
        recovered.last
    };
    assert_eq!(cut(&old, &new_name), Seq(3), "only the name");
    assert_eq!(cut(&old[..HRL_HEADER_BYTES], &new_name), Seq(3), "name and length");
    assert_eq!(cut(&new, &new_name), Seq(3), "everything");
    // Frames that do not end where the name says are damage.
    fs::remove_file(only_file(dir.path())).unwrap();
    fs::write(&new_name, &old[..old.len() - 5]).unwrap();
    let (_, recovered) = Log::open(dir.path(), VOLUME, 4 << 20).unwrap();
    assert!(recovered.damage.is_some());
}

/// A log of so many frames of 256 blocks, with files of 1 MiB.
fn full_of(dir: &Path, frames: u64) -> Log {
    let (log, _) = Log::open(dir, VOLUME, 4 << 20).unwrap();
    let big = vec![1; 64 * BLOCK_BYTES];
    for number in 0..frames {
        log.append(&[Entry::Write { block: number * 64, data: &big, is_copy: false }]).unwrap();
    }
    log
}

/// P1: a kill while the only file is emptied.
#[test]
fn a_kill_while_the_log_is_emptied_is_not_damage() {
    for changes in 0.. {
        let dir = tempfile::tempdir().unwrap();
        drop(full_of(dir.path(), 3));
        let files = FaultyFiles::good();
        let (log, _) = Log::open_on(&files, dir.path(), (VOLUME, 4 << 20), Seq(3)).unwrap();
        files.set_left(changes);
        let trimmed = log.trim(Seq(3));
        if trimmed.is_err() {
            let block = block(1);
            let append = || log.append(&[Entry::Write { block: 0, data: &block, is_copy: false }]);
            if changes > 0 {
                files.set_left(0);
                let is_refused = matches!(append(), Err(AppendError::Io { .. }));
                assert!(is_refused, "nothing is appended behind what is not known");
            }
            files.set_left(u64::MAX);
            if changes == 2 {
                // Nobody trims again what is trimmed: it is emptied when something is appended.
                while let Err(error) = append() {
                    assert!(matches!(error, AppendError::NoSpace), "{error}");
                    std::thread::yield_now();
                }
                assert_eq!((log.place().first, log.last()), (Seq(4), Seq(4)));
                continue;
            }
            log.trim(Seq(3)).unwrap();
            assert_eq!(write(&log, 0, 1), Seq(4), "emptied at the second try");
            continue;
        }
        drop(log);
        let (_, recovered) = Log::open(dir.path(), VOLUME, 4 << 20).unwrap();
        assert_eq!((recovered.last, recovered.damage), (Seq(3), None));
        assert_eq!(changes, 3);
        return;
    }
}

/// M4: two syncs at once, as by a flush of the guest beside the copy.
#[test]
fn a_sync_waits_for_the_one_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let files = FaultyFiles::good();
    let opened = Log::open_on(&files, dir.path(), (VOLUME, LIMIT), Seq(0)).unwrap();
    let log = std::sync::Arc::new(opened.0);
    write(&log, 1, 1);
    files.hold_syncs(true);
    let sync = || {
        let log = std::sync::Arc::clone(&log);
        std::thread::spawn(move || log.sync().unwrap())
    };
    let first = sync();
    while files.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    let second = sync();
    for _ in 0..100 {
        std::thread::yield_now();
        std::thread::sleep(Duration::from_millis(1));
        assert!(!second.is_finished(), "the frame is not durable yet");
    }
    files.hold_syncs(false);
    first.join().unwrap();
    second.join().unwrap();
}

#[test]
fn marks_over_an_unchanged_log_are_kept_and_the_last_comes_in_front_of_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    assert_eq!(log.mark_or_keep(mark(1), 0).unwrap(), Marked::At(Seq(2)));
    assert_eq!(log.kept_mark(), None);
    for number in [3, 5] {
        assert_eq!(log.mark_or_keep(mark(number), 0).unwrap(), Marked::Still(Seq(2)));
    }
    assert_eq!((log.last(), log.kept_mark()), (Seq(2), Some((Seq(2), mark(5)))));
    assert_eq!(write(&log, 1, 2), Seq(4), "the mark came first");
    assert_eq!(log.kept_mark(), None);
    let (_, marks) = read_all(&log, 1, 1 << 20);
    assert_eq!(marks, [(Seq(2), mark(1)), (Seq(3), mark(5))]);
    // Another promise is another mark, and so is one that somebody waits for.
    assert_eq!(log.mark_or_keep(mark(7), 0).unwrap(), Marked::At(Seq(5)));
    let less = Mark { unknown_blocks: 1, ..mark(9) };
    assert_eq!(log.mark_or_keep(less, 0).unwrap(), Marked::At(Seq(6)));
    let scan = Mark { kind: MarkKind::Scan, ..less };
    assert_eq!(log.mark_or_keep(scan, 0).unwrap(), Marked::At(Seq(7)));
    assert_eq!(log.mark_or_keep(scan, 0).unwrap(), Marked::Still(Seq(7)));
    assert_eq!(log.append_mark(mark(2), 0).unwrap(), Seq(8));
    assert_eq!(log.kept_mark(), None, "the newer one says as much");
}

/// What is kept is true of the log up to its end: what happens to the disk later does not change that,
/// but nothing new is kept then.
#[test]
fn a_kept_mark_outlives_a_breach_and_no_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    log.mark_or_keep(mark(1), 0).unwrap();
    log.mark_or_keep(mark(3), 0).unwrap();
    log.breach();
    assert!(matches!(log.mark_or_keep(mark(5), 0), Err(AppendError::Breached)));
    assert_eq!(log.kept_mark(), Some((Seq(2), mark(3))));
    log.restart(Seq(20)).unwrap();
    assert_eq!(log.kept_mark(), None);
    let breaches = log.breaches();
    assert_eq!(log.mark_or_keep(mark(7), breaches).unwrap(), Marked::At(Seq(20)));
    drop(log);
    // A log that ends with a mark still does when it is opened again.
    let (log, _) = open(dir.path());
    assert_eq!(log.mark_or_keep(mark(9), 0).unwrap(), Marked::Still(Seq(20)));
    write(&log, 1, 2);
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.marks, [(Seq(20), mark(7)), (Seq(21), mark(9))]);
    assert_eq!(log.mark_or_keep(mark(9), 0).unwrap(), Marked::At(Seq(23)));
}

/// D35: what was kept of a stream is in its log before it gets another size, or nowhere.
#[test]
fn a_kept_mark_crosses_no_growth() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    write(&log, 1, 1);
    log.mark_or_keep(mark(1), 0).unwrap();
    log.mark_or_keep(mark(3), 0).unwrap();
    assert_eq!((log.settle_kept(), log.kept_mark()), (Seq(3), None));
    assert_eq!(log.settle_kept(), Seq(3), "once");
    // Nothing was written since, but a point of before has not the size of one of after.
    assert_eq!(log.mark_or_keep(mark(5), 0).unwrap(), Marked::At(Seq(4)));
    assert_eq!(log.mark_or_keep(mark(7), 0).unwrap(), Marked::Still(Seq(4)));
    log.hold("no room".to_owned());
    assert_eq!((log.settle_kept(), log.kept_mark()), (Seq(4), None));
    log.release();
    assert_eq!(write(&log, 1, 2), Seq(5), "it does not come later");
    let (_, marks) = read_all(&log, 1, 1 << 20);
    assert_eq!(marks, [(Seq(2), mark(1)), (Seq(3), mark(3)), (Seq(4), mark(5))]);
}

/// D49: what hangs holds up nobody else, lies in its place when it comes to its end, and what was given up
/// before its turn came is not in the log.
#[test]
fn an_append_that_hangs_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let files = FaultyFiles::good();
    let (log, _) = Log::open_on(&files, dir.path(), (VOLUME, LIMIT), Seq(0)).unwrap();
    write(&log, 0, 1);
    files.sicken(Sickness::Hangs("hrl"));
    let data = block(3);
    let entry = [Entry::Write { block: 2, data: &data, is_copy: false }];
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| write(&log, 1, 2));
        while files.hanging() == 0 {
            std::thread::yield_now();
        }
        let waiting = scope.spawn(|| log.append(&entry));
        assert!(!log.append_at_once(&entry));
        assert!(matches!(waiting.join().unwrap(), Err(AppendError::Hangs)));
        let breaches = log.breaches();
        assert_eq!(breaches, 1, "marks under way are refused");
        assert!(matches!(log.append_mark(mark(1), breaches), Err(AppendError::Hangs)));
        assert!(matches!(log.mark_or_keep(mark(1), breaches), Err(AppendError::Hangs)));
        let error = log.trim(Seq(1)).unwrap_err();
        assert!(matches!(error, LogError::Io { action: "trim", .. }));
        assert_eq!((log.place().last, log.held(), log.kept_mark()), (Seq(1), None, None));
        files.sicken(Sickness::None);
        assert_eq!(hung.join().unwrap(), Seq(2));
    });
    let data = block(4);
    let entry = [Entry::Write { block: 2, data: &data, is_copy: false }];
    assert!(matches!(log.append_unless(&entry, &|| true), Err(AppendError::Hangs)));
    assert_eq!(write(&log, 2, 5), Seq(3));
    let (bytes, _) = read_all(&log, 1, 1 << 20);
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.last, recovered.torn_bytes), (Seq(3), 0));
    assert_eq!(read_all(&log, 1, 1 << 20).0, bytes);
}

/// What came only in part, or with an error, is cut off before anything else is appended: none of it is ever
/// taken for a frame.
#[test]
fn what_is_appended_at_once_in_part_leaves_nothing_behind() {
    const FRAME: usize = FRAME_HEADER_BYTES + BLOCK_BYTES;
    let cases = [(usize::MAX, false), (FRAME, true), (FRAME + 5, true), (3, true), (0, true)];
    for (bytes, is_told) in cases {
        let dir = tempfile::tempdir().unwrap();
        let files = FaultyFiles::good();
        let (log, _) = Log::open_on(&files, dir.path(), (VOLUME, LIMIT), Seq(0)).unwrap();
        files.sicken(Sickness::AtOnce { bytes: usize::MAX, is_told: true });
        let first = block(1);
        assert!(log.append_at_once(&[Entry::Write { block: 0, data: &first, is_copy: false }]));
        files.sicken(Sickness::AtOnce { bytes, is_told });
        let (one, other) = (block(2), block(3));
        let both = [
            Entry::Write { block: 1, data: &one, is_copy: false },
            Entry::Write { block: 2, data: &other, is_copy: false },
        ];
        assert!(!log.append_at_once(&both), "{bytes} bytes");
        assert_eq!((log.last(), log.breaches()), (Seq(1), 0), "the longer way comes");
        // Another one has its turn first, and the process ends.
        files.sicken(Sickness::None);
        assert_eq!(write(&log, 3, 4), Seq(2));
        let (written, _) = read_all(&log, 1, 1 << 20);
        drop(log);
        let (log, recovered) = open(dir.path());
        assert_eq!((recovered.last, recovered.torn_bytes), (Seq(2), 0), "{bytes} bytes");
        assert_eq!(read_all(&log, 1, 1 << 20).0, written);
    }
}

/// What is appended without waiting, where the file system can, is what is appended otherwise.
#[test]
fn what_is_appended_at_once_is_in_the_log() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let home = Home {
        files: std::sync::Arc::new(crate::files::OsFiles),
        time: time(),
        dir: dir.path().to_owned(),
        limit_bytes: LIMIT,
    };
    let (log, _) = Log::open_in(home, VOLUME, Seq(0), &mut |_| Ok(())).unwrap();
    let mut at_once = 0;
    for number in 1..100 {
        let data = block(number);
        let entries = [Entry::Write { block: number.into(), data: &data, is_copy: false }];
        match log.append_at_once(&entries) {
            true => at_once += 1,
            false => drop(log.append(&entries).unwrap()),
        }
        assert_eq!(log.last(), Seq(number.into()));
    }
    println!("{at_once} of 99 at once");
    let (bytes, _) = read_all(&log, 1, 1 << 20);
    assert_eq!(bytes.len(), 99 * (FRAME_HEADER_BYTES + BLOCK_BYTES));
    log.sync().unwrap();
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.last, recovered.torn_bytes), (Seq(99), 0));
    assert_eq!(read_all(&log, 1, 1 << 20).0, bytes);
}
