//! Appending.

use super::frames::{Behind, Frame, frames_of};
use super::lane::{Lane, Turn};
use super::recovery::{self, Lost, Recovered};
use super::still::Still;
use super::{AppendError, LogError};
use crate::clock::Now;
use crate::files::{FileIo, Files};
use crate::stamps::Stamps;
use farshore_proto::hrl::HrlHeader;
use farshore_proto::limits::{HRL_FILE_BYTES, HRL_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{BlockRange, Imprint, Seq, Timestamp, VolumeId};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Pause after the file system was found full, so that not every write tries again.
const NO_SPACE_PAUSE_MS: u64 = 500;
/// Slices handed to one write call (`IOV_MAX` is 1024).
const SLICES_MAX: usize = 512;

/// One change or mark to append.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// Whole blocks from `block` on, any number of them.
    Write {
        /// First block.
        block: u64,
        /// Their bytes.
        data: &'a [u8],
        /// Whether they were read from the disk; else they were seen being written.
        is_copy: bool,
    },
    /// Blocks that are zero.
    Zero {
        /// Which.
        range: BlockRange,
        /// Whether they were read from the disk; else they were seen being written.
        is_copy: bool,
    },
    /// A recovery point.
    Mark {
        /// Its content.
        mark: Mark,
    },
}

/// What became of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    /// It is in the log.
    At(Seq),
    /// Nothing was written since the mark at this seq: that one stands for it.
    Still(Seq),
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Lowest seq in the log; one above `last` if it is empty.
    pub first: Seq,
    /// Highest seq appended.
    pub last: Seq,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) first: Seq,
    pub(super) file: Arc<dyn FileIo>,
    /// End of the last whole frame.
    pub(super) end: u64,
    pub(super) path: PathBuf,
}

/// Where a log is kept.
#[derive(Debug, Clone)]
pub struct Home {
    /// The file system.
    pub files: Arc<dyn Files>,
    /// Bounds the pause after the file system was found full, nothing else.
    pub time: Arc<dyn Now>,
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes that its files may have together.
    pub limit_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    /// Oldest first; never empty; the last one takes appends.
    pub(super) parts: VecDeque<Part>,
    pub(super) next: Seq,
    /// Which frame is before that; nothing if it is not known.
    pub(super) previous: Imprint,
    pub(super) bytes: u64,
    /// Why nothing is appended, if so; see [`Log::hold`].
    pub(super) held: Option<String>,
    /// Its files could not be opened: they are left alone until it is restarted.
    pub(super) is_closed: bool,
    /// Changes that the log did not take, and restarts: a mark is good only if none came between.
    pub(super) breaches: u64,
    pub(super) restarts: u64,
    pub(super) no_space_until: Option<Timestamp>,
    /// Files with frames that no sync has covered.
    pub(super) unsynced: Vec<Arc<dyn FileIo>>,
    pub(super) is_dir_synced: bool,
    /// Nothing may be appended before this is mended.
    pub(super) broken: Option<Broken>,
    pub(super) still: Still,
}

/// Whether an append may wait for the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Waiting,
    AtOnce,
}

/// What went wrong half-way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// A failed append was not undone: its bytes may lie behind the end of the newest file.
    NotUndone,
    /// The only file, all of which is committed, was not emptied: its end, its header and its name may not
    /// fit each other.
    NotEmptied,
}

/// The log of one volume.
#[derive(Debug)]
pub struct Log {
    pub(super) files: Arc<dyn Files>,
    time: Arc<dyn Now>,
    pub(super) dir: PathBuf,
    pub(super) volume: VolumeId,
    limit_bytes: u64,
    pub(super) file_bytes: u64,
    /// Changes its files, which nobody does who has not the turn. Then it is not locked meanwhile.
    pub(super) lane: Lane,
    pub(super) writer: Mutex<Writer>,
    /// Held while files are synced: who finds nothing left to sync must wait for who syncs it.
    sync_lane: Mutex<()>,
    last: AtomicU64,
    bytes: AtomicU64,
    appended: Notify,
    stamps: Arc<Stamps>,
}

impl Log {
    /// Opens the log, making it if there is none, and reads every frame in it. Up to `logged` it must
    /// be whole; `lost` is told when it is not, or when there is no log.
    ///
    /// # Errors
    /// `Io` if a file cannot be read, written or made, or `lost` failed. Damage is not an error: see
    /// [`Recovered`].
    pub fn open_in(
        home: Home,
        volume: VolumeId,
        logged: Seq,
        lost: Lost<'_>,
    ) -> Result<(Self, Recovered), LogError> {
        let (files, dir) = (&*home.files, &*home.dir);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LogError::Io { action, path, source }
        };
        files.create_dir_all(dir).map_err(io("create", dir))?;
        let (mut parts, mut recovered) = recovery::recover(files, dir, volume, logged, lost)?;
        if parts.is_empty() {
            let part = create(files, dir, volume, Seq(1));
            parts.push_back(part.map_err(io("create a file in", dir))?);
            recovered.last = Seq(0);
        }
        files.sync_dir(dir).map_err(io("sync", dir))?;
        recovered.first = parts[0].first;
        let still = match recovered.marks.last() {
            Some((seq, mark)) if *seq == recovered.last => Still::at(*seq, mark),
            _ => Still::default(),
        };
        let end = (recovered.last, recovered.imprint, still);
        Ok((Self::over(home, volume, parts, end), recovered))
    }

    pub(super) fn over(
        home: Home,
        volume: VolumeId,
        parts: VecDeque<Part>,
        (last, previous, still): (Seq, Imprint, Still),
    ) -> Self {
        let Home { files, time, dir, limit_bytes } = home;
        let bytes = parts.iter().map(|part| part.end).sum();
        // What was read back may be in the page cache only.
        let unsynced = parts.iter().map(|part| Arc::clone(&part.file)).collect();
        let writer = Writer {
            parts,
            next: last.next(),
            previous,
            bytes,
            held: None,
            is_closed: false,
            breaches: 0,
            restarts: 0,
            no_space_until: None,
            unsynced,
            is_dir_synced: true,
            broken: None,
            still,
        };
        Self {
            files,
            time,
            dir,
            volume,
            limit_bytes,
            file_bytes: HRL_FILE_BYTES.min(limit_bytes / 4),
            last: AtomicU64::new(last.0),
            bytes: AtomicU64::new(bytes),
            lane: Lane::default(),
            writer: Mutex::new(writer),
            sync_lane: Mutex::default(),
            appended: Notify::new(),
            stamps: Arc::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic under the lock leaves the log as the last whole append left it.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Highest seq appended.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.last.load(Ordering::Acquire))
    }

    /// Where whoever keeps the intents says which are durable. A frame is stamped with what stands
    /// there when it is appended: a write waits for its intent, so never with less than that.
    #[must_use]
    pub fn stamps(&self) -> Arc<Stamps> {
        Arc::clone(&self.stamps)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the files may have together.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Where the log stands.
    #[must_use]
    pub fn place(&self) -> Place {
        let writer = self.lock();
        let last = Seq(writer.next.0 - 1);
        Place { first: writer.parts[0].first, last, bytes: writer.bytes }
    }

    /// Ready when something was appended since the last call, or is appended from now on.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// A number that changes whenever a change was lost to the log; see [`Log::append_mark`].
    #[must_use]
    pub fn breaches(&self) -> u64 {
        self.lock().breaches
    }

    /// Notes that a change was lost to the log, so that marks under way are refused. One may be on its way into
    /// its file already: [`Log::settle_kept`] is behind it.
    pub fn breach(&self) {
        self.lock().breaches += 1;
    }

    /// Ends what is said over a stream that does not change, before that stream gets another size: the mark
    /// that was kept is appended, or dropped if the log does not take it, and none of before stands for one of
    /// after. The log's end then, behind whatever was being appended; blocks.
    #[must_use]
    pub fn settle_kept(&self) -> Seq {
        let turn = self.lane.wait();
        let kept = self.lock().still.kept();
        if let Some((_, mark)) = kept
            && let Err(error) = self.append_in(&turn, &[Entry::Mark { mark }])
        {
            tracing::debug!(volume = %self.volume, %error, "a mark that was kept is dropped");
        }
        self.lock().still = Still::default();
        drop(turn);
        self.appended.notify_one();
        self.last()
    }

    /// How often the log was restarted since it was opened.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.lock().restarts
    }

    /// Appends changes that belong together: no mark comes between them. Returns the last seq. A mark
    /// that was kept ([`Log::mark_or_keep`]) comes in front of them.
    ///
    /// # Errors
    /// [`AppendError`]; then the log may hold some of them, and all their blocks are in doubt.
    ///
    /// # Panics
    /// If there is no entry, or one is empty or not whole blocks.
    pub fn append(&self, entries: &[Entry<'_>]) -> Result<Seq, AppendError> {
        self.append_unless(entries, &|| false)
    }

    /// The same, unless `is_given_up` says when its turn has come that nobody waits for it any more: what
    /// came to the log in the meantime may be newer.
    ///
    /// # Errors
    /// As [`Log::append`].
    ///
    /// # Panics
    /// As [`Log::append`].
    pub fn append_unless(
        &self,
        entries: &[Entry<'_>],
        is_given_up: &dyn Fn() -> bool,
    ) -> Result<Seq, AppendError> {
        let turn = self.lane.enter();
        let result = match &turn {
            Some(turn) if !is_given_up() => self.append_behind_kept(turn, entries),
            _ => Err(AppendError::Hangs),
        };
        // Before anybody else can append a mark.
        if result.is_err() {
            self.breach();
        }
        drop(turn);
        self.appended.notify_one();
        result
    }

    fn append_behind_kept(
        &self,
        turn: &Turn<'_>,
        entries: &[Entry<'_>],
    ) -> Result<Seq, AppendError> {
        let kept = self.lock().still.kept();
        let Some((_, mark)) = kept else { return self.append_in(turn, entries) };
        let mark = std::iter::once(Entry::Mark { mark });
        let all: Vec<Entry<'_>> = mark.chain(entries.iter().copied()).collect();
        self.append_in(turn, &all)
    }

    /// Appends changes if that needs no waiting, as [`Log::append`] does; whether it did.
    ///
    /// # Panics
    /// As [`Log::append`].
    #[must_use]
    pub fn append_at_once(&self, entries: &[Entry<'_>]) -> bool {
        let Some(turn) = self.lane.enter_at_once() else { return false };
        // A mark that was kept goes in front, which the longer way does.
        let is_kept = self.lock().still.kept().is_some();
        let is_appended = !is_kept && self.append_as(&turn, entries, How::AtOnce).is_ok();
        drop(turn);
        if is_appended {
            self.appended.notify_one();
        }
        is_appended
    }

    /// Whoever changes the log's files takes too long: nobody waits for that any more.
    pub fn hangs(&self) {
        self.lane.hangs();
    }

    fn in_turn<T>(
        &self,
        work: impl FnOnce(&Turn<'_>) -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        let turn = self.lane.enter().ok_or(AppendError::Hangs)?;
        work(&turn)
    }

    /// Appends a mark, if nothing was lost to the log since `breaches` was read.
    ///
    /// # Errors
    /// `Breached` if something was; otherwise as [`Log::append`], and nothing is in doubt.
    pub fn append_mark(&self, mark: Mark, breaches: u64) -> Result<Seq, AppendError> {
        let result = self.in_turn(|turn| self.mark_in(turn, mark, breaches));
        self.appended.notify_one();
        result
    }

    /// The same, unless nothing was appended since a mark that promises as much: then this one is kept until
    /// something is, and comes in front of that.
    ///
    /// # Errors
    /// As [`Log::append_mark`].
    pub fn mark_or_keep(&self, mark: Mark, breaches: u64) -> Result<Marked, AppendError> {
        let result = self.in_turn(|turn| {
            let still = {
                let mut writer = self.lock();
                if writer.breaches == breaches { writer.still.keep(mark) } else { None }
            };
            match still {
                Some(seq) => Ok(Marked::Still(seq)),
                None => self.mark_in(turn, mark, breaches).map(Marked::At),
            }
        });
        self.appended.notify_one();
        result
    }

    /// The latest mark that was kept, and the seq of the one that stands for it.
    #[must_use]
    pub fn kept_mark(&self) -> Option<(Seq, Mark)> {
        self.lock().still.kept()
    }

    fn mark_in(&self, turn: &Turn<'_>, mark: Mark, breaches: u64) -> Result<Seq, AppendError> {
        if self.breaches() != breaches {
            return Err(AppendError::Breached);
        }
        let seq = self.append_in(turn, &[Entry::Mark { mark }])?;
        self.lock().still = Still::at(seq, &mark);
        Ok(seq)
    }

    fn append_in(&self, turn: &Turn<'_>, entries: &[Entry<'_>]) -> Result<Seq, AppendError> {
        self.append_as(turn, entries, How::Waiting)
    }

    fn append_as(
        &self,
        turn: &Turn<'_>,
        entries: &[Entry<'_>],
        how: How,
    ) -> Result<Seq, AppendError> {
        assert!(!entries.is_empty(), "nothing to append");
        let broken = {
            let writer = self.lock();
            if let Some(why) = &writer.held {
                return Err(AppendError::Held { why: why.clone() });
            }
            if writer.no_space_until.is_some_and(|until| until > self.time.now()) {
                return Err(AppendError::NoSpace);
            }
            writer.broken
        };
        if let Some(broken) = broken {
            if how == How::AtOnce {
                return Err(AppendError::Io { source: io::ErrorKind::WouldBlock.into() });
            }
            self.mend(turn, broken)?;
        }
        let (behind, bytes_before) = {
            let Writer { next, previous, bytes, .. } = *self.lock();
            (Behind { next, previous, stamp: self.stamps.now() }, bytes)
        };
        let frames = frames_of(entries, behind);
        let bytes: u64 = frames.iter().map(|frame| frame.bytes()).sum();
        // Each group may need a file of its own.
        let headers = frames.chunks(SLICES_MAX / 2).len() * HRL_HEADER_BYTES;
        if bytes_before + bytes + headers as u64 > self.limit_bytes {
            return Err(AppendError::Full { limit_bytes: self.limit_bytes });
        }
        let written = self.write_frames(turn, &frames, how);
        let mut writer = self.lock();
        if let Err(source) = written {
            let is_full =
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if is_full {
                writer.no_space_until = Some(self.time.now().plus_ms(NO_SPACE_PAUSE_MS));
                return Err(AppendError::NoSpace);
            }
            return Err(AppendError::Io { source });
        }
        writer.no_space_until = None;
        Ok(Seq(writer.next.0 - 1))
    }

    /// Tries again what went wrong half-way.
    fn mend(&self, turn: &Turn<'_>, broken: Broken) -> Result<(), AppendError> {
        let mended = match broken {
            Broken::NotUndone => {
                let (file, end, _) = self.newest();
                file.set_len(end)
            }
            Broken::NotEmptied => self.recycle(turn).map_err(io::Error::other),
        };
        let mut writer = self.lock();
        match mended {
            Ok(()) => {
                writer.broken = None;
                Ok(())
            }
            Err(source) => {
                // Not at every write.
                writer.no_space_until = Some(self.time.now().plus_ms(NO_SPACE_PAUSE_MS));
                Err(AppendError::Io { source })
            }
        }
    }

    /// The file that takes appends, its end and its first seq. They stay so for whoever has the turn.
    fn newest(&self) -> (Arc<dyn FileIo>, u64, Seq) {
        let writer = self.lock();
        let part = active(&writer);
        (Arc::clone(&part.file), part.end, part.first)
    }

    fn write_frames(&self, turn: &Turn<'_>, frames: &[Frame<'_>], how: How) -> io::Result<()> {
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        if how == How::AtOnce && frames.len() > SLICES_MAX / 2 {
            return Err(would_block());
        }
        for group in frames.chunks(SLICES_MAX / 2) {
            let (mut file, mut end, first) = self.newest();
            let next = self.last().next();
            if end >= self.file_bytes && first < next {
                if how == How::AtOnce {
                    return Err(would_block());
                }
                self.rotate(turn, next)?;
                (file, end, _) = self.newest();
            }
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(group.len() * 2);
            for frame in group {
                slices.push(IoSlice::new(&frame.head));
                if !frame.body.is_empty() {
                    slices.push(IoSlice::new(frame.body));
                }
            }
            let bytes: u64 = group.iter().map(Frame::bytes).sum();
            if how == How::AtOnce {
                match file.write_at_once(&slices, end) {
                    Ok(written) if written as u64 == bytes => {}
                    Ok(0) => return Err(would_block()),
                    // Some of it may be there: it is cut off before anything is appended.
                    part => {
                        self.lock().broken = Some(Broken::NotUndone);
                        return Err(part.err().unwrap_or_else(would_block));
                    }
                }
            } else if let Err(error) = file.write_vectored_at(&mut slices, end) {
                if file.set_len(end).is_err() {
                    self.lock().broken = Some(Broken::NotUndone);
                }
                return Err(error);
            }
            let mut writer = self.lock();
            writer.parts.back_mut().expect("the log has a file").end = end + bytes;
            writer.bytes += bytes;
            writer.still = Still::default();
            writer.next = Seq(next.0 + group.len() as u64);
            writer.previous = group.last().map_or(writer.previous, Frame::imprint);
            if !writer.unsynced.iter().any(|known| Arc::ptr_eq(known, &file)) {
                writer.unsynced.push(file);
            }
            self.publish(&writer);
        }
        Ok(())
    }

    pub(super) fn publish(&self, writer: &Writer) {
        self.bytes.store(writer.bytes, Ordering::Relaxed);
        self.last.store(writer.next.0 - 1, Ordering::Release);
    }

    fn rotate(&self, _turn: &Turn<'_>, next: Seq) -> io::Result<()> {
        let part = create(&*self.files, &self.dir, self.volume, next)?;
        let mut writer = self.lock();
        writer.bytes += part.end;
        writer.unsynced.push(Arc::clone(&part.file));
        writer.is_dir_synced = false;
        writer.parts.push_back(part);
        Ok(())
    }

    /// Makes durable everything appended before the call; blocks.
    ///
    /// # Errors
    /// What the system said. Frames appended since the last good sync may be lost in a power cut
    /// even if a later sync succeeds.
    pub fn sync(&self) -> io::Result<()> {
        let _lane = self.sync_lane.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, is_dir_synced) = {
            let mut writer = self.lock();
            let synced = std::mem::replace(&mut writer.is_dir_synced, true);
            (std::mem::take(&mut writer.unsynced), synced)
        };
        let result = files.iter().try_for_each(|file| file.sync_data());
        let result = match result {
            Ok(()) if !is_dir_synced => self.files.sync_dir(&self.dir),
            other => other,
        };
        if result.is_err() {
            let mut writer = self.lock();
            writer.is_dir_synced &= is_dir_synced;
            writer.unsynced.extend(files);
        }
        result
    }
}

pub(super) fn active(writer: &Writer) -> &Part {
    writer.parts.back().expect("the log has a file")
}

pub(super) fn file_name(first: Seq) -> String {
    format!("{:020}.hrl", first.0)
}

pub(super) fn create(
    files: &dyn Files,
    dir: &Path,
    volume: VolumeId,
    first: Seq,
) -> io::Result<Part> {
    let path = dir.join(file_name(first));
    let file = files.create(&path)?;
    let header = HrlHeader { volume, first_seq: first }.encode();
    if let Err(error) = file.write_all_at(&header, 0) {
        // An empty file under this name would be taken for a torn one; it is harmless but useless.
        let _ = files.remove(&path);
        return Err(error);
    }
    Ok(Part { first, file, end: HRL_HEADER_BYTES as u64, path })
}

/// Empties a file of the log that is named by `first` and holds nothing that is needed. Needs no space.
pub(super) fn empty(
    file: &Arc<dyn FileIo>,
    path: &Path,
    volume: VolumeId,
    first: Seq,
) -> io::Result<Part> {
    let end = HRL_HEADER_BYTES as u64;
    file.set_len(end)?;
    file.write_all_at(&HrlHeader { volume, first_seq: first }.encode(), 0)?;
    Ok(Part { first, file: Arc::clone(file), end, path: path.to_owned() })
}
