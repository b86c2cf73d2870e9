//! Opening a log after whatever happened to it.
//!
//! A crash in the middle of an append leaves a torn frame at the very end: it is cut off. Anything
//! else that does not decode (a bad frame with good ones behind it, files that do not join) is
//! damage: the log is cut before it, and the caller sends the whole disk again.

use super::writer::{Part, file_name};
use super::{LogError, writer};
use farshore_proto::frame::{Control, FrameHeader, FrameKind, Mark};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use farshore_proto::{DecodeError, Seq, VolumeId};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX;
/// Bytes read at once: several of the largest frames.
const WINDOW_BYTES: usize = 4 << 20;

/// What was found when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Lowest seq in the log.
    pub first: Seq,
    /// Highest seq in the log; 0 if it never held one.
    pub last: Seq,
    /// The marks in the log.
    pub marks: Vec<(Seq, Mark)>,
    /// Bytes of a torn frame that were cut off.
    pub torn_bytes: u64,
    /// Whether there was no file at all.
    pub was_absent: bool,
    /// What was damaged, in words; everything behind it was dropped.
    pub damage: Option<String>,
}

/// Reads every file of the log and cuts it to what is whole.
pub(super) fn recover(
    dir: &Path,
    volume: VolumeId,
) -> Result<(VecDeque<Part>, Recovered), LogError> {
    let files = list(dir)?;
    let mut recovered = Recovered {
        first: Seq(1),
        last: Seq(0),
        marks: Vec::new(),
        torn_bytes: 0,
        was_absent: files.is_empty(),
        damage: None,
    };
    let mut parts = VecDeque::new();
    let count = files.len();
    for (index, (first, path)) in files.into_iter().enumerate() {
        if recovered.damage.is_some() {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            continue;
        }
        let joins = parts.is_empty() || first == recovered.last.next();
        if !joins {
            let last = recovered.last;
            recovered.damage = Some(format!("{} does not join seq {last}", path.display()));
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            continue;
        }
        let is_newest = index + 1 == count;
        if let Some(part) = open_part(volume, first, &path, is_newest, &mut recovered)? {
            parts.push_back(part);
        }
    }
    Ok((parts, recovered))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { action, path, source }
}

fn list(dir: &Path) -> Result<Vec<(Seq, PathBuf)>, LogError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".hrl"));
        let Some(first) = number.and_then(|number| number.parse().ok()) else { continue };
        if first > 0 && name.to_str() == Some(&file_name(Seq(first))) {
            files.push((Seq(first), entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

fn open_part(
    volume: VolumeId,
    first: Seq,
    path: &Path,
    is_newest: bool,
    recovered: &mut Recovered,
) -> Result<Option<Part>, LogError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).map_err(failed("open", path))?;
    let length = file.metadata().map_err(failed("open", path))?.len();
    let mut head = [0; HRL_HEADER_BYTES];
    let has_head = length >= HRL_HEADER_BYTES as u64;
    if has_head {
        file.read_exact_at(&mut head, 0).map_err(failed("read", path))?;
    }
    let header = if has_head { HrlHeader::decode(&head).ok() } else { None };
    if header.is_none_or(|header| header.volume != volume || header.first_seq != first) {
        // A crash while the file was made leaves its name without a header, and nothing in it.
        let is_torn = is_newest && header.is_none() && length <= HRL_HEADER_BYTES as u64;
        if !is_torn {
            recovered.damage = Some(format!("{} has no valid header", path.display()));
            fs::remove_file(path).map_err(failed("remove", path))?;
            return Ok(None);
        }
        let dir = path.parent().expect("a file lies in a directory");
        let part = writer::create(dir, volume, first).map_err(failed("write", path))?;
        recovered.torn_bytes += length;
        recovered.last = Seq(first.0 - 1);
        return Ok(Some(part));
    }
    let scan = scan(&file, first, length).map_err(failed("read", path))?;
    recovered.marks.extend(scan.marks);
    recovered.last = scan.last;
    if let Some(error) = scan.stopped {
        let later =
            later_frame(&file, scan.end, length, scan.last).map_err(failed("read", path))?;
        if !is_newest || later.is_some() {
            let (name, end) = (path.display(), scan.end);
            recovered.damage = Some(format!("{name} is damaged at offset {end}: {error}"));
        }
        recovered.torn_bytes += length - scan.end;
        file.set_len(scan.end).map_err(failed("cut", path))?;
        file.sync_all().map_err(failed("sync", path))?;
    }
    Ok(Some(Part { first, file: Arc::new(file), end: scan.end, path: path.to_owned() }))
}

struct Scan {
    end: u64,
    last: Seq,
    marks: Vec<(Seq, Mark)>,
    stopped: Option<DecodeError>,
}

/// Walks the frames of a file, checking every one.
fn scan(file: &File, first: Seq, length: u64) -> io::Result<Scan> {
    let mut scan = Scan {
        end: HRL_HEADER_BYTES as u64,
        last: Seq(first.0 - 1),
        marks: Vec::new(),
        stopped: None,
    };
    let mut window = Vec::new();
    while scan.end < length && scan.stopped.is_none() {
        read_window(file, scan.end, length, &mut window)?;
        let is_last = scan.end + window.len() as u64 == length;
        let mut at = 0;
        while at < window.len() && (is_last || window.len() - at >= FRAME_BYTES_MAX) {
            match next_frame(&window[at..], scan.last.next()) {
                Ok((header, mark)) => {
                    scan.marks.extend(mark);
                    scan.last = header.seq;
                    at += FRAME_HEADER_BYTES + header.body_bytes;
                }
                Err(error) => {
                    scan.stopped = Some(error);
                    break;
                }
            }
        }
        scan.end += at as u64;
    }
    Ok(scan)
}

fn next_frame(
    bytes: &[u8],
    expected: Seq,
) -> Result<(FrameHeader, Option<(Seq, Mark)>), DecodeError> {
    let (header, body) = frame_at(bytes)?;
    if header.seq != expected {
        return Err(DecodeError::Range { what: "log frame seq", value: header.seq.0 });
    }
    let mark = match header.kind {
        FrameKind::Mark => match Control::decode(&header, body)? {
            Control::Mark(seq, mark) => Some((seq, mark)),
            _ => unreachable!("a mark decodes to a mark"),
        },
        _ => None,
    };
    Ok((header, mark))
}

fn read_window(file: &File, offset: u64, length: u64, window: &mut Vec<u8>) -> io::Result<()> {
    let bytes = (length - offset).min(WINDOW_BYTES as u64);
    window.resize(usize::try_from(bytes).expect("bounded by the window"), 0);
    file.read_exact_at(window, offset)
}

/// The first whole frame of a later seq behind `from`, if there is one: then what lies at `from`
/// is not the torn end of the log.
fn later_frame(file: &File, from: u64, length: u64, last: Seq) -> io::Result<Option<Seq>> {
    let mut window = Vec::new();
    let mut offset = from;
    while offset < length {
        read_window(file, offset, length, &mut window)?;
        let is_last = offset + window.len() as u64 == length;
        // Frames are read again from the next window if they might not fit this one.
        let reach = if is_last { window.len() } else { window.len() - FRAME_BYTES_MAX };
        for at in 0..reach {
            if window[at..].starts_with(b"FSF1")
                && let Ok((header, _)) = frame_at(&window[at..])
                && header.seq > last
            {
                return Ok(Some(header.seq));
            }
        }
        offset += reach as u64;
    }
    Ok(None)
}
