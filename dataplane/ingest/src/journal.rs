//! The journal in front of a shard's log: the order in which its files are written, and how they are
//! read back.
//!
//! The order is the whole point, so it is written once, here; files are the driver's. A new file: its
//! header, a sync of the file, a sync of its name. Then groups: written, synced, and only then told.
//! An error ends the journal for good (I8): the kernel may have dropped the pages, so neither an
//! acknowledgement nor a second try would be honest.

use crate::frames::Frame;
use crate::recover::RecoveredVolume;
use farshore_codec::journal::{JournalOpener, JournalSealer};
use farshore_codec::{CodecError, DataKey, KeyRing};
use farshore_engine::batch::{Change, Entry, Handle};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::journal::{Entry as JournalEntry, GroupSize};
use farshore_proto::limits::{
    FRAME_HEADER_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_ENTRY_PREFIX_BYTES, JOURNAL_GROUP_HEADER_BYTES,
};
use farshore_proto::{Epoch, KeyNumber, LogId, Seq, Stamp, VaultId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

pub use farshore_codec::journal::GroupsEnd;

/// Space that a journal file sets aside at a time.
const RESERVE_BYTES: u64 = 16 << 20;

/// Where a driver keeps journal files.
pub trait JournalDisk {
    /// A journal file.
    type File: JournalFile;

    /// Creates the file of a number, which must not exist.
    fn create(&self, file: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// Makes the names of all files durable.
    fn sync_names(&self) -> impl Future<Output = io::Result<()>>;

    /// Deletes a file that was created and never written to.
    fn discard(&self, file: u64) -> impl Future<Output = io::Result<()>> {
        let _ = file;
        async { Ok(()) }
    }
}

/// A journal file: aligned writes past the page cache where the file system can.
pub trait JournalFile {
    /// Memory that the file can write.
    type Buffer: AsMut<[u8]>;

    /// A buffer of `bytes` (whole alignment units). Its content is arbitrary.
    fn buffer(&self, bytes: usize) -> Self::Buffer;

    /// Writes the whole buffer at `offset` (aligned).
    fn write_at(&self, buffer: Self::Buffer, offset: u64) -> impl Future<Output = io::Result<()>>;

    /// Makes everything written durable.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Sets space aside for the first `bytes` of the file, so that no write below them meets a full disk; a
    /// file system that cannot do so says nothing.
    fn reserve(&self, bytes: u64) -> impl Future<Output = io::Result<()>> {
        let _ = bytes;
        async { Ok(()) }
    }
}

/// Why a group cannot be written now.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The disk is full. Nothing was written: ask again when there may be room.
    #[error("there is no room for the journal")]
    NoSpace {
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// Anything else: the journal must not be written any more.
    #[error("the journal cannot be written")]
    Disk {
        /// What the disk says.
        #[source]
        source: io::Error,
    },
}

impl RoomError {
    /// Of setting space aside, or making a file.
    fn of(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { source },
            _ => Self::Disk { source },
        }
    }
}

/// Whose journal it is, and under which key.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The vault the data is for.
    pub vault: VaultId,
    /// The log that the shard appends to.
    pub log: LogId,
    /// Number of the data key.
    pub number: KeyNumber,
    /// The data key.
    pub key: Arc<DataKey>,
}

/// A group that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The file it is in.
    pub file: u64,
    /// Its bytes on the disk.
    pub disk_bytes: usize,
}

struct Open<F> {
    file: F,
    sealer: JournalSealer,
    offset: u64,
    /// Space is set aside for so many of its bytes.
    reserved: u64,
}

/// Writes the groups of one shard. Files of earlier runs are only read.
pub struct JournalWriter<D: JournalDisk> {
    disk: D,
    owner: Owner,
    file_bytes: u64,
    next_file: u64,
    open: Option<Open<D::File>>,
}

impl<D: JournalDisk> fmt::Debug for JournalWriter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalWriter").field("next_file", &self.next_file).finish_non_exhaustive()
    }
}

impl<D: JournalDisk> JournalWriter<D> {
    /// A writer whose first file is `first_file`, above all there are. A file is closed when the next
    /// group would take it past `file_bytes`, unless it holds none.
    #[must_use]
    pub fn new(disk: D, owner: Owner, first_file: u64, file_bytes: u64) -> Self {
        Self { disk, owner, file_bytes, next_file: first_file, open: None }
    }

    /// Makes sure that there is room for a group of `plain_bytes`: opens its file, and sets its space aside.
    /// So a disk that is full is met before anything was written: to wait then is honest, where after a
    /// write that failed it would not be.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Panics
    /// Never: a file is open when it is looked at.
    pub async fn make_room(&mut self, plain_bytes: usize) -> Result<(), RoomError> {
        let disk_bytes = JournalSealer::disk_bytes(plain_bytes) as u64;
        let is_full = |open: &Open<D::File>| open.offset + disk_bytes > self.file_bytes;
        if self.open.as_ref().is_none_or(is_full) {
            // The old file closes here; every group in it was synced.
            self.open = Some(self.create().await?);
        }
        let open = self.open.as_mut().expect("made above");
        let needed = open.offset + disk_bytes;
        if needed > open.reserved {
            // Some more than needed, if there is so much.
            let ahead = needed.max((open.reserved + RESERVE_BYTES).min(self.file_bytes));
            open.reserved = match open.file.reserve(ahead).await {
                Ok(()) => ahead,
                Err(_) => {
                    open.file.reserve(needed).await.map_err(RoomError::of).map(|()| needed)?
                }
            };
        }
        Ok(())
    }

    /// Writes one group and makes it durable. `fill` lays its entries out
    /// ([`lay_out`]); it is called once, unless a file cannot be made.
    ///
    /// # Errors
    /// What the disk says. The journal must not be written any more then.
    ///
    /// # Panics
    /// Never: a file is open when it is written.
    pub async fn write(
        &mut self,
        size: GroupSize,
        fill: impl FnOnce(&mut [u8]),
    ) -> io::Result<Written> {
        let made = self.make_room(size.bytes).await;
        made.map_err(|error| match error {
            RoomError::NoSpace { source } | RoomError::Disk { source } => source,
        })?;
        let disk_bytes = JournalSealer::disk_bytes(size.bytes);
        let open = self.open.as_mut().expect("made above");
        let mut buffer = open.file.buffer(disk_bytes);
        fill(&mut buffer.as_mut()[JOURNAL_GROUP_HEADER_BYTES..][..size.bytes]);
        let sealed = open.sealer.seal_group(size, buffer.as_mut());
        let header = sealed.map_err(io::Error::other)?;
        open.file.write_at(buffer, open.offset).await?;
        if !is_on(Bug::GroupNotSynced) {
            open.file.sync().await?;
        }
        open.offset += disk_bytes as u64;
        Ok(Written { file: header.file, disk_bytes })
    }

    async fn create(&mut self) -> Result<Open<D::File>, RoomError> {
        let number = self.next_file;
        self.next_file += 1;
        let Owner { vault, log, number: key_number, ref key } = self.owner;
        let sealer = JournalSealer::create(vault, log, number, key, key_number)
            .map_err(|error| RoomError::Disk { source: io::Error::other(error) })?;
        let file = self.disk.create(number).await.map_err(RoomError::of)?;
        let reserved = JOURNAL_ALIGN_BYTES as u64;
        if let Err(error) = file.reserve(reserved).await {
            drop(file);
            // Left behind it would be one that holds nothing.
            self.disk.discard(number).await.map_err(|source| RoomError::Disk { source })?;
            return Err(RoomError::of(error));
        }
        self.begin(&file, &sealer).await.map_err(|source| RoomError::Disk { source })?;
        Ok(Open { file, sealer, offset: JOURNAL_ALIGN_BYTES as u64, reserved })
    }

    /// Writes the header of a file, and makes file and name durable.
    async fn begin(&self, file: &D::File, sealer: &JournalSealer) -> io::Result<()> {
        let mut buffer = file.buffer(JOURNAL_ALIGN_BYTES);
        buffer.as_mut().copy_from_slice(&sealer.header().encode());
        file.write_at(buffer, 0).await?;
        file.sync().await?;
        // The name must survive too, or a crash would lose the whole file.
        if !is_on(Bug::JournalNameNotSynced) {
            self.disk.sync_names().await?;
        }
        Ok(())
    }

    /// Salt of the file being written, for whoever checks that none is used twice.
    #[must_use]
    pub fn salt(&self) -> Option<[u8; 32]> {
        self.open.as_ref().map(|open| open.sealer.header().salt)
    }
}

/// What a group holds before it is sealed.
#[must_use]
pub fn size_of(group: &[Entry]) -> GroupSize {
    let bytes = |entry: &Entry| JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + entry.bytes;
    GroupSize { entries: group.len(), bytes: group.iter().map(bytes).sum() }
}

/// Lays a group out.
///
/// # Panics
/// If the engine's sizes are not those of the frames: a bug in the caller.
pub fn lay_out(group: &[Entry], frame: impl Fn(Handle) -> Rc<Frame>, plain: &mut [u8]) {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        plain[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    for entry in group {
        let frame = frame(entry.handle);
        put(&entry.volume.0);
        put(&entry.epoch.0.to_le_bytes());
        put(&frame.header);
        put(&frame.body);
    }
    assert_eq!(at, plain.len(), "the engine's sizes are those of the frames");
}

/// A frame found in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// Whose.
    pub volume: VolumeId,
    /// Under which epoch it came.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub seq: Seq,
    /// Under which intents of the agent it was made.
    pub stamp: Stamp,
    /// What it does.
    pub change: Change,
    /// The frame as it came.
    pub frame: Frame,
    /// The file it is in.
    pub file: u64,
}

/// How the reading of a journal file ended.
#[derive(Debug, PartialEq, Eq)]
pub enum FileEnd {
    /// It holds not even a header: a crash came while it was made, before any group.
    Empty {
        /// What is missing.
        cause: CodecError,
    },
    /// It is not a file of this journal, or its header is damaged: nothing of it was read.
    Unopened {
        /// What is wrong.
        cause: CodecError,
    },
    /// It was opened, and its groups read up to some end.
    Read(GroupsEnd),
}

/// Which volumes have frames in a journal file, as far as it can be read. `bytes` is the whole file;
/// it is opened in place.
#[must_use]
pub fn volumes_in(
    owner: (VaultId, LogId),
    keys: &KeyRing,
    file: (u64, &mut [u8]),
) -> BTreeSet<VolumeId> {
    let mut volumes = BTreeSet::new();
    if let Ok(opener) = open(owner, keys, file.0, file.1) {
        opener.read_groups(file.1, |entry| {
            volumes.insert(entry.volume);
            Ok(())
        });
    }
    volumes
}

/// Reads a journal file: the frames that the vault does not hold, in order, go to `out`. `file` is its
/// number and all of its bytes, opened in place.
///
/// A torn last group is what a crash leaves and is cut. A damaged group ends the file's replay: what
/// followed for a volume no longer joins its stream, and its agent still has it.
pub fn replay_file(
    (vault, log): (VaultId, LogId),
    keys: &KeyRing,
    (number, bytes): (u64, &mut [u8]),
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    out: &mut Vec<Replayed>,
) -> FileEnd {
    // The header is synced before the first group: without it there is no group.
    let is_empty = bytes.len() <= JOURNAL_ALIGN_BYTES;
    match open((vault, log), keys, number, bytes) {
        Err(cause) if is_empty => FileEnd::Empty { cause },
        Err(cause) => FileEnd::Unopened { cause },
        Ok(opener) => {
            let take = |entry: JournalEntry<'_>| take_entry(&entry, number, volumes, out);
            FileEnd::Read(opener.read_groups(bytes, take))
        }
    }
}

/// A place in a volume's stream at which frames are missing although the journal holds later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Whose stream.
    pub volume: VolumeId,
    /// The seq that comes next.
    pub expected: Seq,
    /// The seq that was found instead.
    pub found: Seq,
    /// The file that it is in.
    pub file: u64,
}

/// Leaves of `replayed`, the frames of all files in order, an exact prefix of each volume's stream
/// behind what the vault holds, and the last frame that it does hold; says where the first frame is missing, for each volume that misses one.
///
/// A file is begun when all before it is durable, so what is missing in front of a later file was
/// damaged or lost, and was acknowledged. Agents send it again, and all behind it.
#[must_use]
pub fn join_streams(
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    replayed: &mut Vec<Replayed>,
) -> Vec<Gap> {
    let mut lasts: BTreeMap<VolumeId, Seq> =
        volumes.iter().map(|(volume, known)| (*volume, known.committed)).collect();
    let mut gaps: BTreeMap<VolumeId, Gap> = BTreeMap::new();
    replayed.retain(|frame| {
        let Some(last) = lasts.get_mut(&frame.volume) else { return false };
        let Replayed { volume, seq: found, file, .. } = *frame;
        let expected = last.next();
        if volumes.get(&volume).is_some_and(|known| known.committed == found) {
            return true;
        }
        if found > expected {
            gaps.entry(volume).or_insert(Gap { volume, expected, found, file });
        }
        if found != expected {
            return false;
        }
        *last = found;
        true
    });
    gaps.into_values().collect()
}

fn open(
    (vault, log): (VaultId, LogId),
    keys: &KeyRing,
    number: u64,
    bytes: &[u8],
) -> Result<JournalOpener, CodecError> {
    let block = &bytes[..bytes.len().min(JOURNAL_ALIGN_BYTES)];
    let opener = JournalOpener::open(block, vault, log, keys)?;
    let found_file = opener.header().number;
    if found_file != number {
        // Under another name its groups would come at another place of the stream.
        let cause =
            CodecError::MisplacedGroup { file: number, group: 0, found_file, found_group: 0 };
        return Err(cause);
    }
    Ok(opener)
}

fn take_entry(
    entry: &JournalEntry<'_>,
    file: u64,
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    out: &mut Vec<Replayed>,
) -> Result<(), CodecError> {
    let is_wanted = volumes.get(&entry.volume).is_some_and(|volume| {
        // The newest that the vault has, too: segments of before stamps do not say whose it is.
        entry.epoch == volume.epoch && entry.header.seq >= volume.committed
    });
    if !is_wanted {
        return Ok(());
    }
    let Some(change) = Change::decode(&entry.header, entry.body)? else { return Ok(()) };
    out.push(Replayed {
        volume: entry.volume,
        epoch: entry.epoch,
        seq: entry.header.seq,
        stamp: entry.header.stamp,
        change,
        frame: Frame { header: entry.header.encode(), body: entry.body.to_vec() },
        file,
    });
    Ok(())
}

#[cfg(test)]
mod tests;
