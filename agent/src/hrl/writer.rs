//! Appending, trimming, restarting.

use super::recovery::{self, Lost, Recovered};
use super::still::Still;
use super::{AppendError, LogError};
use crate::clock::Now;
use crate::files::{FileIo, Files};
use crate::stamps::Stamps;
use farshore_proto::frame::{Control, FrameHeader, Mark};
use farshore_proto::hrl::HrlHeader;
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HRL_FILE_BYTES, HRL_HEADER_BYTES,
    ZERO_BLOCKS_MAX,
};
use farshore_proto::{BlockRange, Seq, Stamp, Timestamp, VolumeId};
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
    },
    /// Blocks that are zero.
    Zero {
        /// Which.
        range: BlockRange,
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
    bytes: u64,
    /// Why nothing is appended, if so; see [`Log::hold`].
    pub(super) held: Option<String>,
    /// Its files could not be opened: they are left alone until it is restarted.
    pub(super) is_closed: bool,
    /// Changes that the log did not take, and restarts: a mark is good only if none came between.
    breaches: u64,
    restarts: u64,
    no_space_until: Option<Timestamp>,
    /// Files with frames that no sync has covered.
    pub(super) unsynced: Vec<Arc<dyn FileIo>>,
    is_dir_synced: bool,
    /// Nothing may be appended before this is mended.
    broken: Option<Broken>,
    still: Still,
}

/// What went wrong half-way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// A failed append was not undone: its bytes may lie behind the end of the newest file.
    NotUndone,
    /// The only file, all of which is committed, was not emptied: its end, its header and its name may not
    /// fit each other.
    NotEmptied,
}

/// The log of one volume.
#[derive(Debug)]
pub struct Log {
    files: Arc<dyn Files>,
    time: Arc<dyn Now>,
    dir: PathBuf,
    volume: VolumeId,
    limit_bytes: u64,
    file_bytes: u64,
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
        Ok((Self::over(home, volume, parts, (recovered.last, still)), recovered))
    }

    pub(super) fn over(
        home: Home,
        volume: VolumeId,
        parts: VecDeque<Part>,
        (last, still): (Seq, Still),
    ) -> Self {
        let Home { files, time, dir, limit_bytes } = home;
        let bytes = parts.iter().map(|part| part.end).sum();
        // What was read back may be in the page cache only.
        let unsynced = parts.iter().map(|part| Arc::clone(&part.file)).collect();
        let writer = Writer {
            parts,
            next: last.next(),
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

    /// Notes that a change was lost to the log, so that marks under way are refused.
    pub fn breach(&self) {
        self.lock().breaches += 1;
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
        let mut writer = self.lock();
        let result = match writer.still.kept() {
            None => self.append_locked(&mut writer, entries),
            Some((_, mark)) => {
                let mark = std::iter::once(Entry::Mark { mark });
                let all: Vec<Entry<'_>> = mark.chain(entries.iter().copied()).collect();
                self.append_locked(&mut writer, &all)
            }
        };
        if result.is_err() {
            writer.breaches += 1;
        }
        drop(writer);
        self.appended.notify_one();
        result
    }

    /// Appends a mark, if nothing was lost to the log since `breaches` was read.
    ///
    /// # Errors
    /// `Breached` if something was; otherwise as [`Log::append`], and nothing is in doubt.
    pub fn append_mark(&self, mark: Mark, breaches: u64) -> Result<Seq, AppendError> {
        let mut writer = self.lock();
        let result = self.mark_locked(&mut writer, mark, breaches);
        drop(writer);
        self.appended.notify_one();
        result
    }

    /// The same, unless nothing was appended since a mark that promises as much: then this one is kept until
    /// something is, and comes in front of that.
    ///
    /// # Errors
    /// As [`Log::append_mark`].
    pub fn mark_or_keep(&self, mark: Mark, breaches: u64) -> Result<Marked, AppendError> {
        let mut writer = self.lock();
        let is_good = writer.breaches == breaches;
        let still = if is_good { writer.still.keep(mark) } else { None };
        let result = match still {
            Some(seq) => Ok(Marked::Still(seq)),
            None => self.mark_locked(&mut writer, mark, breaches).map(Marked::At),
        };
        drop(writer);
        self.appended.notify_one();
        result
    }

    /// The latest mark that was kept, and the seq of the one that stands for it.
    #[must_use]
    pub fn kept_mark(&self) -> Option<(Seq, Mark)> {
        self.lock().still.kept()
    }

    fn mark_locked(
        &self,
        writer: &mut Writer,
        mark: Mark,
        breaches: u64,
    ) -> Result<Seq, AppendError> {
        if writer.breaches != breaches {
            return Err(AppendError::Breached);
        }
        let seq = self.append_locked(writer, &[Entry::Mark { mark }])?;
        writer.still = Still::at(seq, &mark);
        Ok(seq)
    }

    fn append_locked(
        &self,
        writer: &mut Writer,
        entries: &[Entry<'_>],
    ) -> Result<Seq, AppendError> {
        assert!(!entries.is_empty(), "nothing to append");
        if let Some(why) = &writer.held {
            return Err(AppendError::Held { why: why.clone() });
        }
        if writer.no_space_until.is_some_and(|until| until > self.time.now()) {
            return Err(AppendError::NoSpace);
        }
        self.mend(writer)?;
        let mut next = writer.next;
        let frames = frames_of(entries, &mut next, self.stamps.now());
        let bytes: u64 = frames.iter().map(|frame| frame.bytes()).sum();
        // Each group may need a file of its own.
        let headers = frames.chunks(SLICES_MAX / 2).len() * HRL_HEADER_BYTES;
        if writer.bytes + bytes + headers as u64 > self.limit_bytes {
            return Err(AppendError::Full { limit_bytes: self.limit_bytes });
        }
        let result = self.write_frames(writer, &frames);
        if let Err(source) = result {
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
    fn mend(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let mended = match writer.broken {
            None => return Ok(()),
            Some(Broken::NotUndone) => active(writer).file.set_len(active(writer).end),
            Some(Broken::NotEmptied) => self.recycle(writer).map_err(io::Error::other),
        };
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

    fn write_frames(&self, writer: &mut Writer, frames: &[Frame<'_>]) -> io::Result<()> {
        for group in frames.chunks(SLICES_MAX / 2) {
            if active(writer).end >= self.file_bytes && active(writer).first < writer.next {
                self.rotate(writer)?;
            }
            let part = writer.parts.back_mut().expect("the log has a file");
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(group.len() * 2);
            for frame in group {
                slices.push(IoSlice::new(&frame.head));
                if !frame.body.is_empty() {
                    slices.push(IoSlice::new(frame.body));
                }
            }
            let bytes: u64 = group.iter().map(Frame::bytes).sum();
            if let Err(error) = part.file.write_vectored_at(&mut slices, part.end) {
                if part.file.set_len(part.end).is_err() {
                    writer.broken = Some(Broken::NotUndone);
                }
                return Err(error);
            }
            part.end += bytes;
            writer.bytes += bytes;
            writer.still = Still::default();
            writer.next = Seq(writer.next.0 + group.len() as u64);
            if !writer.unsynced.iter().any(|file| Arc::ptr_eq(file, &part.file)) {
                writer.unsynced.push(Arc::clone(&part.file));
            }
            self.publish(writer);
        }
        Ok(())
    }

    fn publish(&self, writer: &Writer) {
        self.bytes.store(writer.bytes, Ordering::Relaxed);
        self.last.store(writer.next.0 - 1, Ordering::Release);
    }

    fn rotate(&self, writer: &mut Writer) -> io::Result<()> {
        let part = create(&*self.files, &self.dir, self.volume, writer.next)?;
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

    /// Removes the files in which everything is at or below `committed`; blocks.
    ///
    /// # Errors
    /// `Io` if a file cannot be removed; the log is whole all the same.
    pub fn trim(&self, committed: Seq) -> Result<(), LogError> {
        let mut writer = self.lock();
        while writer.parts.len() > 1 && writer.parts[1].first <= committed.next() {
            let part = &writer.parts[0];
            match self.files.remove(&part.path) {
                // Removed by an attempt that was told otherwise.
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let (action, path) = ("remove", part.path.clone());
                    return Err(LogError::Io { action, path, source });
                }
                _ => {}
            }
            if let Some(part) = writer.parts.pop_front() {
                writer.bytes -= part.end;
                writer.unsynced.retain(|file| !Arc::ptr_eq(file, &part.file));
                writer.no_space_until = None;
            }
        }
        let (next, end) = (writer.next, active(&writer).end);
        let is_done = writer.parts.len() == 1 && next <= committed.next();
        if is_done && end > HRL_HEADER_BYTES as u64 + self.file_bytes / 2 {
            self.recycle(&mut writer)?;
        }
        self.publish(&writer);
        Ok(())
    }

    /// Empties the only file, everything in which is committed, and names it by the next seq.
    ///
    /// The name comes first, durably: a file that is shorter than its name says would have lost
    /// something. If the rest is cut short, opening the log ends it.
    fn recycle(&self, writer: &mut Writer) -> Result<(), LogError> {
        let first = writer.next;
        let part = writer.parts.back_mut().expect("the log has a file");
        let path = self.dir.join(file_name(first));
        if part.path != path {
            let renamed = self.files.rename(&part.path, &path);
            renamed.map_err(|source| LogError::Io {
                action: "rename",
                path: part.path.clone(),
                source,
            })?;
            part.path.clone_from(&path);
        }
        let synced = self.files.sync_dir(&self.dir);
        let emptied = synced.and_then(|()| empty(&part.file, &path, self.volume, first));
        let emptied = match emptied {
            Ok(emptied) => emptied,
            Err(source) => {
                writer.broken = Some(Broken::NotEmptied);
                return Err(LogError::Io { action: "empty", path, source });
            }
        };
        writer.broken = None;
        writer.bytes -= part.end - emptied.end;
        let part = writer.parts.back_mut().expect("the log has a file");
        *part = emptied;
        writer.no_space_until = None;
        if writer.unsynced.is_empty() {
            let file = Arc::clone(&active(writer).file);
            writer.unsynced.push(file);
        }
        Ok(())
    }

    /// Drops everything in the log and goes on at `next`; blocks until that is durable.
    ///
    /// # Errors
    /// `Io` if a file cannot be made or removed.
    pub fn restart(&self, next: Seq) -> Result<(), LogError> {
        let mut writer = self.lock();
        writer.breaches += 1;
        writer.restarts += 1;
        let error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LogError::Io { action, path, source }
        };
        self.files.create_dir_all(&self.dir).map_err(error("create", &self.dir))?;
        // A log that could not be opened has files that it knows nothing of.
        for (_, path) in recovery::list(&*self.files, &self.dir)? {
            self.files.remove(&path).map_err(error("remove", &path))?;
        }
        let part = create(&*self.files, &self.dir, self.volume, next)
            .map_err(error("create a file in", &self.dir))?;
        self.files.sync_dir(&self.dir).map_err(error("sync", &self.dir))?;
        writer.next = next;
        writer.still = Still::default();
        writer.bytes = part.end;
        writer.unsynced = vec![Arc::clone(&part.file)];
        writer.parts = VecDeque::from([part]);
        writer.is_dir_synced = true;
        writer.broken = None;
        writer.no_space_until = None;
        if std::mem::take(&mut writer.is_closed) {
            writer.held = None;
        }
        self.publish(&writer);
        Ok(())
    }
}

fn active(writer: &Writer) -> &Part {
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

struct Frame<'a> {
    head: Vec<u8>,
    body: &'a [u8],
}

impl Frame<'_> {
    fn bytes(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }
}

fn frames_of<'a>(entries: &[Entry<'a>], next: &mut Seq, stamp: Stamp) -> Vec<Frame<'a>> {
    let mut frames = Vec::with_capacity(entries.len());
    let mut take = || {
        let seq = *next;
        *next = seq.next();
        seq
    };
    for entry in entries {
        match *entry {
            Entry::Write { block, data } => {
                for (piece, number) in data.chunks(FRAME_BODY_BYTES_MAX).zip(0_u64..) {
                    let block = block + number * (FRAME_BODY_BYTES_MAX / BLOCK_BYTES) as u64;
                    let header = FrameHeader::write(take(), block, piece).stamped(stamp);
                    frames.push(Frame { head: header.encode().to_vec(), body: piece });
                }
            }
            Entry::Zero { range } => {
                let mut left = range;
                while left.count > 0 {
                    let count = left.count.min(ZERO_BLOCKS_MAX);
                    let piece = BlockRange { block: left.block, count };
                    let header = FrameHeader::zero(take(), piece).stamped(stamp);
                    frames.push(Frame { head: header.encode().to_vec(), body: &[] });
                    left = BlockRange { block: left.block + count, count: left.count - count };
                }
            }
            Entry::Mark { mark } => {
                let head = Control::Mark(take(), mark).encode_stamped(stamp);
                assert!(head.len() > FRAME_HEADER_BYTES, "a mark has a body");
                frames.push(Frame { head, body: &[] });
            }
        }
    }
    frames
}
