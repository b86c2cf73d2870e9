//! Opening a log after whatever happened to it.
//!
//! What does not decode ends the log. Up to a seq that the caller names it must be whole: an end before
//! that is damage, and the caller notes durably that the whole disk is sent again before the log is cut.
//! Behind it a kill or a power cut may have torn anything, in any order, and what was lost is found by
//! its intents: the log is cut there, with good frames behind it or not.

use super::writer::{Part, file_name};
use super::{LogError, writer};
use crate::files::{FileIo, Files};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::{Control, FrameHeader, FrameKind, imprint};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{DecodeError, Imprint, Seq, VolumeId};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

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
    /// Which frame that is; nothing if it is not known.
    pub imprint: Imprint,
    /// The marks in the log.
    pub marks: Vec<(Seq, Mark)>,
    /// Bytes behind the last whole frame that were cut off.
    pub torn_bytes: u64,
    /// Whether there was no file at all.
    pub was_absent: bool,
    /// What was damaged, in words; everything behind it was dropped.
    pub damage: Option<String>,
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss<'a> {
    /// There is none.
    Gone,
    /// It is damaged, in words.
    Damage(&'a str),
}

/// Told of a loss before its traces are removed: what it notes must be durable when it returns.
/// Otherwise a crash right after would leave a log that looks whole.
pub type Lost<'a> = &'a mut dyn FnMut(Loss<'_>) -> io::Result<()>;

/// What opening works with.
struct Opening<'a> {
    files: &'a dyn Files,
    volume: VolumeId,
    /// Up to here the log must be whole.
    logged: Seq,
    lost: Lost<'a>,
    /// Something was cut off: later files are removed.
    is_cut: bool,
    recovered: Recovered,
}

/// Reads every file of the log and cuts it to what is whole. Up to `logged` it must be.
pub(super) fn recover(
    files: &dyn Files,
    dir: &Path,
    volume: VolumeId,
    logged: Seq,
    lost: Lost<'_>,
) -> Result<(VecDeque<Part>, Recovered), LogError> {
    let found = list(files, dir)?;
    let recovered = Recovered {
        first: Seq(1),
        last: Seq(0),
        imprint: Imprint::default(),
        marks: Vec::new(),
        torn_bytes: 0,
        was_absent: found.is_empty(),
        damage: None,
    };
    if found.is_empty() {
        lost(Loss::Gone).map_err(failed("note the loss of", dir))?;
    }
    let mut opening = Opening { files, volume, logged, lost, is_cut: false, recovered };
    let mut parts = VecDeque::new();
    let count = found.len();
    for (index, (first, path)) in found.into_iter().enumerate() {
        let last = opening.recovered.last;
        if !opening.is_cut && index > 0 && first != last.next() {
            opening.cut(last, &path, &format!("does not join seq {last}"))?;
        }
        if opening.is_cut {
            files.remove(&path).map_err(failed("remove", &path))?;
            continue;
        }
        let is_newest = index + 1 == count;
        if let Some(part) = opening.part(first, &path, is_newest)? {
            parts.push_back(part);
        }
    }
    Ok((parts, opening.recovered))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { action, path, source }
}

pub(super) fn list(files: &dyn Files, dir: &Path) -> Result<Vec<(Seq, PathBuf)>, LogError> {
    let mut found = Vec::new();
    for name in files.list(dir).map_err(failed("list", dir))? {
        let number = name.to_str().and_then(|name| name.strip_suffix(".hrl"));
        let Some(first) = number.and_then(|number| number.parse().ok()) else { continue };
        if first > 0 && name.to_str() == Some(&file_name(Seq(first))) {
            found.push((Seq(first), dir.join(name)));
        }
    }
    found.sort();
    Ok(found)
}

impl Opening<'_> {
    /// The log ends at `last`, because something is wrong with a file: that is damage, and noted as
    /// such, if it must be longer.
    fn cut(&mut self, last: Seq, path: &Path, what: &str) -> Result<(), LogError> {
        self.is_cut = true;
        let what = format!("{} {what}", path.display());
        if last >= self.logged {
            tracing::warn!(%last, what, "the log was cut short: what it lost is in doubt");
            return Ok(());
        }
        (self.lost)(Loss::Damage(&what)).map_err(failed("note the damage of", path))?;
        self.recovered.damage = Some(what);
        Ok(())
    }

    /// Opens one file and cuts it to what is whole; none if it is removed.
    fn part(&mut self, first: Seq, path: &Path, is_newest: bool) -> Result<Option<Part>, LogError> {
        let file = self.files.open(path).map_err(failed("open", path))?;
        let length = file.len().map_err(failed("open", path))?;
        let before = Seq(first.0 - 1);
        let header = header_of(&*file, length).map_err(failed("read", path))?;
        let header = match header {
            Ok(header) => header,
            Err(error) => return self.without_header(first, path, (&*file, length), &error),
        };
        let is_ours = header.volume == self.volume;
        let is_only = is_newest && self.recovered.last == Seq(0);
        if is_ours
            && is_only
            && header.first_seq < first
            && was_being_emptied(&*file, header.first_seq, first, length)
                .map_err(failed("read", path))?
        {
            let part = writer::empty(&file, path, self.volume, first);
            self.recovered.last = before;
            return part.map(Some).map_err(failed("empty", path));
        }
        if !is_ours || header.first_seq != first {
            // No crash leaves that.
            let what = format!("{} is another log's", path.display());
            self.is_cut = true;
            (self.lost)(Loss::Damage(&what)).map_err(failed("note the damage of", path))?;
            self.recovered.damage = Some(what);
            self.files.remove(path).map_err(failed("remove", path))?;
            return Ok(None);
        }
        let scan = scan(&*file, first, length).map_err(failed("read", path))?;
        self.recovered.marks.extend(scan.marks);
        self.recovered.last = scan.last;
        // A file without a frame goes on behind the one before it, of which the newest frame is known.
        if let Some(imprint) = scan.imprint {
            self.recovered.imprint = imprint;
        }
        if let Some(error) = scan.stopped {
            self.cut(scan.last, path, &format!("is damaged at offset {}: {error}", scan.end))?;
            self.recovered.torn_bytes += length - scan.end;
            file.set_len(scan.end).map_err(failed("cut", path))?;
            file.sync_all().map_err(failed("sync", path))?;
        } else if is_newest && scan.last < self.logged {
            let logged = self.logged;
            self.cut(scan.last, path, &format!("ends at seq {}, not {logged}", scan.last))?;
        }
        Ok(Some(Part { first, file, end: scan.end, path: path.to_owned() }))
    }

    /// A file whose header does not decode: a crash while it was made, or damage; or a newer version made it.
    fn without_header(
        &mut self,
        first: Seq,
        path: &Path,
        (file, length): (&dyn FileIo, u64),
        error: &DecodeError,
    ) -> Result<Option<Part>, LogError> {
        let before = Seq(first.0 - 1);
        self.cut(before, path, &format!("has no valid header: {error}"))?;
        self.recovered.torn_bytes += length;
        if self.recovered.damage.is_some() {
            self.files.remove(path).map_err(failed("remove", path))?;
            return Ok(None);
        }
        // First and durably: after a power cut the new header must not have the old frames behind it, which
        // may join as well as those that come now.
        file.set_len(0).map_err(failed("cut", path))?;
        file.sync_all().map_err(failed("sync", path))?;
        let dir = path.parent().expect("a file lies in a directory");
        let part = writer::create(self.files, dir, self.volume, first);
        self.recovered.last = before;
        part.map(Some).map_err(failed("write", path))
    }
}

/// The header of a file, if it decodes.
fn header_of(file: &dyn FileIo, length: u64) -> io::Result<Result<HrlHeader, DecodeError>> {
    let mut head = [0; HRL_HEADER_BYTES];
    if let Ok(have @ 0..HRL_HEADER_BYTES) = usize::try_from(length) {
        let (what, needed) = ("hrl header", HRL_HEADER_BYTES);
        return Ok(Err(DecodeError::Truncated { what, needed, have }));
    }
    file.read_exact_at(&mut head, 0)?;
    Ok(HrlHeader::decode(&head))
}

/// Whether a power cut came while the only file, which is named by seq `name` and whose header says
/// `head`, was emptied: everything in it was committed.
fn was_being_emptied(file: &dyn FileIo, head: Seq, name: Seq, length: u64) -> io::Result<bool> {
    if length == HRL_HEADER_BYTES as u64 {
        return Ok(true);
    }
    let scan = scan(file, head, length)?;
    Ok(scan.stopped.is_none() && scan.last.next() == name)
}

struct Scan {
    end: u64,
    last: Seq,
    imprint: Option<Imprint>,
    marks: Vec<(Seq, Mark)>,
    stopped: Option<DecodeError>,
}

/// Walks the frames of a file, checking every one.
fn scan(file: &dyn FileIo, first: Seq, length: u64) -> io::Result<Scan> {
    let mut scan = Scan {
        end: HRL_HEADER_BYTES as u64,
        last: Seq(first.0 - 1),
        imprint: None,
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
                    scan.imprint = window[at..].first_chunk().map(imprint);
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
    let (header, body) = match frame_at(bytes) {
        Err(DecodeError::Checksum { what: "frame body" }) if is_on(Bug::HrlTrustsTornTail) => {
            let head = bytes.first_chunk().expect("its header was decoded");
            let header = FrameHeader::decode(head)?;
            (header, &bytes[FRAME_HEADER_BYTES..][..header.body_bytes])
        }
        frame => frame?,
    };
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

fn read_window(
    file: &dyn FileIo,
    offset: u64,
    length: u64,
    window: &mut Vec<u8>,
) -> io::Result<()> {
    let bytes = (length - offset).min(WINDOW_BYTES as u64);
    window.resize(usize::try_from(bytes).expect("bounded by the window"), 0);
    file.read_exact_at(window, offset)
}
