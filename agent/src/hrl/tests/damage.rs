//! Every byte of a log of several files: flipped or cut away, before it is opened and while it is open;
//! files gone, swapped, of another volume, older than they were.
//!
//! Up to the seq that others rely on, every damage is told. What is read back are the frames that were
//! appended, or an error that names file and offset. Covers D1, D2, D3 and D7 of `docs/fault-model.md`.

use super::*;
use std::collections::BTreeMap;

/// Makes files of 16 KiB.
const SMALL_LIMIT: u64 = 64 << 10;
/// Bytes of the inside of a body between two that are damaged.
const STRIDE: usize = 61;

/// Bytes of each file by its name, and where each frame begins and ends in it.
struct Whole {
    files: BTreeMap<String, Vec<u8>>,
    frames: Vec<(String, std::ops::Range<usize>)>,
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open_small(dir: &Path, logged: u64) -> (Log, Recovered, u32) {
    let home = Home {
        files: FaultyFiles::good().shared(),
        time: time(),
        dir: dir.to_owned(),
        limit_bytes: SMALL_LIMIT,
    };
    let mut told = 0;
    let mut lost = |_: Loss<'_>| {
        told += 1;
        Ok(())
    };
    let (log, recovered) = Log::open_in(home, VOLUME, Seq(logged), &mut lost).unwrap();
    (log, recovered, told)
}

impl Whole {
    /// Three files: writes, zeros and marks.
    fn new() -> Self {
        let dir = folder();
        let (log, ..) = open_small(dir.path(), 0);
        for number in 1..=10_u8 {
            write(&log, number.into(), number);
            match number % 3 {
                0 => drop(log.append_mark(mark(number), log.breaches()).unwrap()),
                1 => {
                    let range = BlockRange { block: 7, count: number.into() };
                    log.append(&[Entry::Zero { range, is_copy: false }]).unwrap();
                }
                _ => {}
            }
        }
        drop(log);
        let files = read_files(dir.path());
        assert_eq!(files.len(), 3, "{:?}", files.keys());
        let mut frames = Vec::new();
        for (name, bytes) in &files {
            let mut at = HRL_HEADER_BYTES;
            while at < bytes.len() {
                let (header, _) = farshore_proto::hrl::frame_at(&bytes[at..]).unwrap();
                let end = at + FRAME_HEADER_BYTES + header.body_bytes;
                frames.push((name.clone(), at..end));
                at = end;
            }
        }
        Self { files, frames }
    }

    fn last(&self) -> u64 {
        self.frames.len() as u64
    }

    fn put(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// The bytes of a file that are damaged one by one: all of headers, some of bodies.
    fn places(&self, name: &str) -> Vec<usize> {
        let mut places: Vec<usize> = (0..HRL_HEADER_BYTES).collect();
        for (_, frame) in self.frames.iter().filter(|(file, _)| file == name) {
            let body = frame.start + FRAME_HEADER_BYTES;
            places.extend(frame.start..body);
            places.extend((body..frame.end).step_by(STRIDE));
            places.push(frame.end - 1);
        }
        places.dedup();
        places
    }

    /// Frames in front of a byte of a file.
    fn before(&self, name: &str, at: usize) -> u64 {
        let is_before = |(file, frame): &&(String, std::ops::Range<usize>)| {
            file.as_str() < name || (file == name && frame.end <= at)
        };
        self.frames.iter().filter(is_before).count() as u64
    }

    fn frames_of(&self, name: &str) -> u64 {
        self.frames.iter().filter(|(file, _)| file == name).count() as u64
    }

    /// The bytes of the first frames, as they lie on the wire.
    fn bytes(&self, frames: u64) -> Vec<u8> {
        let frames = self.frames.iter().take(usize::try_from(frames).unwrap());
        frames.flat_map(|(name, range)| &self.files[name][range.clone()]).copied().collect()
    }

    /// Opens what lies in `dir`, where everything up to `logged` is relied on and `kept` frames are
    /// whole: damage is told if it takes anything that is relied on, and only then.
    fn check(&self, dir: &Path, kept: u64, logged: u64, how: &str) -> bool {
        let (log, recovered, told) = open_small(dir, logged);
        let is_damage = recovered.damage.is_some();
        assert_eq!(told, u32::from(is_damage), "{how}: noted before anything is removed");
        if is_damage {
            let text = recovered.damage.as_ref().unwrap();
            assert!(text.contains(dir.to_str().unwrap()) && text.contains(".hrl"), "{how}: {text}");
        } else {
            assert_eq!(recovered.last, Seq(kept), "{how}");
            assert!(kept >= logged, "{how}: seqs {kept} to {logged} are lost in silence");
        }
        // With a file that is gone altogether the log begins anew, behind nothing.
        assert!(recovered.last <= Seq(kept), "{how}");
        let last = recovered.last.0;
        if last > 0 {
            assert!(read_all(&log, 1, 1 << 20).0 == self.bytes(last), "{how}");
        }
        is_damage
    }
}

fn read_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let bytes = fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), bytes)
        })
        .collect()
}

#[test]
fn every_flipped_byte_is_told_up_to_where_the_log_is_relied_on() {
    let (whole, dir) = (Whole::new(), folder());
    let (mut flips, mut told) = (0, 0);
    for (name, bytes) in &whole.files {
        for at in whole.places(name) {
            for logged in [whole.last(), whole.last() / 2] {
                whole.put(dir.path());
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(dir.path().join(name), bytes).unwrap();
                let kept = whole.before(name, at);
                let how = format!("flip at {at} of {name}, relied on up to {logged}");
                let is_told = whole.check(dir.path(), kept, logged, &how);
                assert_eq!(is_told, kept < logged, "{how}");
                flips += 1;
                told += usize::from(is_told);
            }
        }
    }
    println!("hrl log: {flips} flips, {told} told as damage, the others behind what is relied on");
    assert!(flips > 2000);
}

#[test]
fn every_lost_end_is_told_up_to_where_the_log_is_relied_on() {
    let (whole, dir) = (Whole::new(), folder());
    let mut cuts = 0;
    for (name, bytes) in &whole.files {
        let lengths = whole.places(name).into_iter().chain(
            whole.frames.iter().filter(|(file, _)| file == name).map(|(_, frame)| frame.end),
        );
        for length in lengths.filter(|length| *length < bytes.len()) {
            for logged in [whole.last(), whole.last() / 2] {
                whole.put(dir.path());
                fs::write(dir.path().join(name), &bytes[..length]).unwrap();
                let kept = whole.before(name, length);
                let how = format!("cut of {name} to {length}, relied on up to {logged}");
                let is_told = whole.check(dir.path(), kept, logged, &how);
                assert_eq!(is_told, kept < logged, "{how}");
                cuts += 1;
            }
        }
    }
    println!("hrl log: {cuts} cuts");
    assert!(cuts > 2000);
}

#[test]
fn a_file_that_is_gone_swapped_foreign_or_old_is_told() {
    let (whole, dir) = (Whole::new(), folder());
    let logged = whole.last();
    let names: Vec<&String> = whole.files.keys().collect();
    let other = {
        let dir = folder();
        let (log, _) = Log::open(dir.path(), VolumeId([4; 16]), SMALL_LIMIT).unwrap();
        write(&log, 1, 1);
        drop(log);
        read_files(dir.path()).into_values().next().unwrap()
    };
    for name in &names {
        whole.put(dir.path());
        fs::remove_file(dir.path().join(name)).unwrap();
        let (_, recovered, told) = open_small(dir.path(), logged);
        if *name == names[0] {
            // As after a trim; the node misses what was in it, if that was not committed.
            assert_eq!((recovered.damage, told), (None, 0));
            assert_eq!(recovered.first, Seq(whole.frames_of(name) + 1));
        } else {
            assert!(recovered.damage.is_some() && told == 1, "{name} is gone: {recovered:?}");
        }
        for from in names.iter().filter(|from| from != &name) {
            whole.put(dir.path());
            fs::write(dir.path().join(name), &whole.files[*from]).unwrap();
            let (log, recovered, told) = open_small(dir.path(), logged);
            assert!(recovered.damage.is_some() && told == 1, "{from} as {name}: {recovered:?}");
            let last = recovered.last.0;
            assert!(last == 0 || read_all(&log, 1, 1 << 20).0 == whole.bytes(last));
        }
        whole.put(dir.path());
        fs::write(dir.path().join(name), &other).unwrap();
        let (_, recovered, told) = open_small(dir.path(), logged);
        assert!(recovered.damage.is_some() && told == 1, "another volume's as {name}");
        // As it was before its last frame was appended.
        let (_, last) = whole.frames.iter().rfind(|(file, _)| file == *name).unwrap();
        whole.put(dir.path());
        fs::write(dir.path().join(name), &whole.files[*name][..last.start]).unwrap();
        let (_, recovered, told) = open_small(dir.path(), logged);
        assert!(recovered.damage.is_some() && told == 1, "an older {name}: {recovered:?}");
    }
}

#[test]
fn a_log_of_a_newer_version_is_damage_and_is_told_as_what_it_is() {
    let (whole, dir) = (Whole::new(), folder());
    let name = whole.files.keys().next().unwrap();
    for (at, byte, what) in [(9, 1, "feature 8"), (40, 2, "key 2")] {
        let mut bytes = whole.files[name].clone();
        bytes[at] = byte;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        whole.put(dir.path());
        fs::write(dir.path().join(name), &bytes).unwrap();
        let (log, recovered, told) = open_small(dir.path(), whole.last());
        let text = recovered.damage.unwrap();
        assert!(text.contains("a newer version of Farshore") && text.contains(what), "{text}");
        assert_eq!((told, log.last()), (1, Seq(0)));
    }
}

/// Reads everything; the error names the file, and where in it the frame that is not whole begins.
fn read_damaged(log: &Log, dir: &Path) -> (Vec<u8>, Option<(String, u64, Seq)>) {
    let mut cursor = Cursor::at(Seq(1));
    let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
    while cursor.next() <= log.last() {
        match log.read_run(&mut cursor, 6_000, &mut buffer) {
            Ok(_) => bytes.extend_from_slice(&buffer),
            Err(LogError::Damaged { path, offset, seq, .. }) => {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                return (bytes, Some((name, offset, seq)));
            }
            Err(error) => panic!("{error}"),
        }
    }
    (bytes, None)
}

/// Bits that flip while the log is open are found when the frames are sent, never sent.
#[test]
fn nothing_damaged_is_read_back_from_an_open_log() {
    let (whole, dir) = (Whole::new(), folder());
    whole.put(dir.path());
    let (log, ..) = open_small(dir.path(), whole.last());
    let mut flips = 0;
    for (name, bytes) in &whole.files {
        let file = OpenOptions::new().write(true).open(dir.path().join(name)).unwrap();
        for at in whole.places(name).into_iter().filter(|at| *at >= HRL_HEADER_BYTES) {
            FileExt::write_all_at(&file, &[bytes[at] ^ (1 << (at % 8))], at as u64).unwrap();
            let before = whole.before(name, at);
            let (read, damage) = read_damaged(&log, dir.path());
            let (_, frame) = &whole.frames[usize::try_from(before).unwrap()];
            let expected = (name.clone(), frame.start as u64, Seq(before + 1));
            assert_eq!(damage, Some(expected), "flip at {at} of {name}");
            assert!(whole.bytes(before).starts_with(&read), "flip at {at} of {name}");
            FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
            flips += 1;
        }
        // A file that loses its end.
        let (_, last) = whole.frames.iter().rfind(|(file, _)| file == name).unwrap();
        for length in [last.start, last.start + 10, last.end - 1] {
            file.set_len(length as u64).unwrap();
            let (_, damage) = read_damaged(&log, dir.path());
            assert_eq!(damage.map(|(file, ..)| file).as_ref(), Some(name), "cut to {length}");
        }
        FileExt::write_all_at(&file, bytes, 0).unwrap();
    }
    assert_eq!(read_damaged(&log, dir.path()), (whole.bytes(whole.last()), None));
    println!("hrl log: {flips} flips while it was open");
    assert!(flips > 1000);
}

/// Without that, a power cut could leave the new header with the old frames behind it.
#[test]
fn a_file_without_a_header_is_durably_empty_before_it_is_written_anew() {
    let dir = folder();
    let (log, _) = open(dir.path());
    write(&log, 0, 1);
    drop(log);
    let path = dir.path().join("00000000000000000001.hrl");
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 64], 0).unwrap();
    // The end comes behind the first change.
    let files = FaultyFiles::after(1);
    Log::open_on(&files, dir.path(), (VOLUME, LIMIT), Seq(0)).unwrap_err();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(files.has_synced(&path), "before anything else is changed");
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.last, log.last()), (Seq(0), Seq(0)));
}
