//! A volume as it was at a recovery point.

mod build;
mod image;
mod stream;

use crate::base::{Ground, VolumeBase, last_number, read_ground};
use crate::chain::Hole;
use crate::chunks::ChunkReader;
use crate::epoch::Known;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{
    HORIZON_TRIES_MAX, READ_BYTES_MAX, READ_FRAMES_IN_FLIGHT_MAX, WINDOW_BLOCKS, WINDOWS_AHEAD,
};
use crate::map::Avoided;
use crate::patience::Patience;
use crate::vault::Vault;
use bytes::Bytes;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::segment::Span;
use farshore_proto::{
    BlockRange, Epoch, ErrorKind, MapAttempt, MarkKind, PointId, Seq, Target, VolumeId,
};
use futures::{StreamExt, TryStreamExt};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;

pub use crate::chunks::Stored;
pub(crate) use build::{Build, Tail};
pub(crate) use image::{Held, Image, LayerError};
use stream::Opened;
pub(crate) use stream::{Origin, Stream};

/// Which recovery point of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointSelector {
    /// The newest.
    Latest,
    /// The one with this id.
    Point(PointId),
    /// The one at this seq.
    Seq(Seq),
}

impl PointSelector {
    /// Whether a point is the one; which is the newest is known only at the end.
    fn is(&self, point: &Point) -> bool {
        match self {
            Self::Latest => false,
            Self::Point(id) => point.id == *id,
            Self::Seq(seq) => point.seq == *seq,
        }
    }
}

/// A recovery point of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// Its place in the stream.
    pub seq: Seq,
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// What it promises.
    pub kind: MarkKind,
    /// Blocks that the agent could not read: what the point holds there is older, or nothing.
    pub unknown_blocks: u32,
    /// The agent's wall clock; for people, never for order.
    pub time_unix_ms: u64,
    /// Size of the volume.
    pub size_bytes: u64,
}

impl Point {
    /// The point that a span of an epoch ends with, if it has a mark.
    pub(crate) fn at_end(body: &EpochBody, span: &Span) -> Option<Self> {
        span.mark.map(|mark| Self {
            id: mark.point,
            seq: span.last_seq,
            epoch: body.epoch,
            kind: mark.kind,
            unknown_blocks: mark.unknown_blocks,
            time_unix_ms: mark.time_unix_ms,
            size_bytes: body.size_bytes,
        })
    }
}

/// A piece of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes: of a cached frame, or a copy where that is far larger.
    Data(Bytes),
    /// So many zero bytes, which are stored nowhere.
    Zeroes(u64),
}

impl Piece {
    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(bytes) => *bytes,
        }
    }
}

/// Joins pieces into one buffer.
///
/// # Panics
/// If they do not fit into memory: reads have a limit.
#[must_use]
pub fn flatten(pieces: &[Piece]) -> Vec<u8> {
    let bytes: u64 = pieces.iter().map(Piece::bytes).sum();
    let mut out = Vec::with_capacity(usize::try_from(bytes).expect("a read has a limit"));
    for piece in pieces {
        match piece {
            Piece::Data(data) => out.extend_from_slice(data),
            Piece::Zeroes(bytes) => {
                out.resize(out.len() + usize::try_from(*bytes).expect("a read has a limit"), 0);
            }
        }
    }
    out
}

/// A volume at a recovery point: what is in memory of its map, and the way to the rest and to its bytes.
#[derive(Debug)]
pub struct VolumeView {
    reader: ChunkReader,
    volume: VolumeId,
    epochs: Vec<EpochBody>,
    bounded: usize,
    /// The volume's newest base when it was opened.
    base: Option<VolumeBase>,
    label: String,
    point: Point,
    hole: Option<Hole>,
    patience: Patience,
    image: RwLock<Arc<Image>>,
    /// Maps that turned out not to be readable; whoever holds it makes another image.
    avoided: AsyncMutex<Avoided>,
}

impl VolumeView {
    /// Opens the volume at the point: by the newest map at or before it, and the
    /// stream behind that; by the whole stream if there is no map that can be used. Of the map only the directories are
    /// read: pages are loaded when they are needed.
    ///
    /// An epoch that cannot be read hides only the points from the epoch before it on.
    ///
    /// # Errors
    /// `NotFound`: no such volume or point; `Corrupt`: an object on the way to the point is damaged
    /// or missing, or the stream does not join (the message names log, slot and seqs);
    /// `Unavailable`; `Limit`.
    pub async fn open(
        vault: &Vault,
        volume: VolumeId,
        selector: PointSelector,
    ) -> Result<Self, VaultError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let ground = read_ground(vault, volume).await?;
            let is_known = !ground.known.epochs.is_empty();
            let number = ground.base.as_ref().map_or(0, |base| base.number);
            match Self::open_on(vault, volume, selector, ground).await {
                Err(error) if tries == HORIZON_TRIES_MAX => return Err(error),
                Err(VaultError::Passed { .. }) => {}
                // What is gone by a base that was made meanwhile is not lost.
                Err(error) if is_known && error.kind() == ErrorKind::Corrupt => {
                    let newest = last_number(vault, volume).await;
                    if newest.is_ok_and(|newest| newest > number) {
                        continue;
                    }
                    return Err(error);
                }
                opened => return opened,
            }
        }
    }

    async fn open_on(
        vault: &Vault,
        volume: VolumeId,
        selector: PointSelector,
        Ground { known, base }: Ground,
    ) -> Result<Self, VaultError> {
        let bounded = known.bounded();
        let Known { epochs, broken } = known;
        let reader = ChunkReader::new(vault, ObjectName::volume(volume));
        let mut avoided = Avoided::new();
        let under = base.as_ref();
        let stream =
            Stream { reader: &reader, volume, epochs: &epochs, bounded, base: under, depth: 0 };
        let opened = match broken {
            Some(broken) if selector == PointSelector::Latest || bounded == 0 => {
                return Err(broken);
            }
            Some(broken) => {
                let opened = stream.open(selector, &mut avoided).await;
                opened.map_err(|error| match (error.kind(), &error) {
                    (_, VaultError::PointGone { .. }) => error,
                    (ErrorKind::NotFound, _) => broken,
                    _ => error,
                })?
            }
            None if epochs.is_empty() => {
                let url = vault.url().to_owned();
                return Err(VaultError::NoVolume { url, volume });
            }
            None => stream.open(selector, &mut avoided).await?,
        };
        let Opened { image, point, hole } = opened;
        if let Some(Hole { log, slot, later }) = hole {
            tracing::warn!(
                %volume, %log, %slot, %later,
                "a slot is missing although a later one exists; the newest point before it is used"
            );
        }
        let label = epochs.last().map(|epoch| epoch.label.clone()).unwrap_or_default();
        let (image, avoided) = (RwLock::new(Arc::new(image)), AsyncMutex::new(avoided));
        let patience = Patience::new(Duration::ZERO);
        Ok(Self {
            reader,
            volume,
            epochs,
            bounded,
            base,
            label,
            point,
            hole,
            patience,
            image,
            avoided,
        })
    }

    /// The same view, whose reads outlast a store that is away.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The vault that it is read from.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        self.reader.vault()
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Machine and disk, for people, as the newest epoch says.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The point of the view.
    #[must_use]
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// A missing slot behind which there may be newer points; only of a view of the latest.
    #[must_use]
    pub fn hole(&self) -> Option<Hole> {
        self.hole
    }

    /// Size of the volume.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.point.size_bytes
    }

    /// Bytes of the blocks that are not zero, at most: blocks that several layers of a map have count several times.
    #[must_use]
    pub fn data_bytes_max(&self) -> u64 {
        let blocks = self.image().data_blocks_max().min(blocks_of(self.size_bytes()));
        blocks * BLOCK_BYTES as u64
    }

    fn image(&self) -> Arc<Image> {
        Arc::clone(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a range holds, by the map, or by another one or the logs if that cannot be read.
    async fn held(&self, range: BlockRange) -> Result<Vec<(BlockRange, Held)>, VaultError> {
        loop {
            let image = self.image();
            let LayerError { attempt, error } = match image.held(&self.reader, range).await {
                Ok(held) => return Ok(held),
                Err(failed) => failed,
            };
            if error.is_unavailable() {
                return Err(error);
            }
            self.open_again(&image, attempt, error).await?;
        }
    }

    /// Makes another image than `failed`, without what `attempt` wrote, unless that was done meanwhile.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the image as it is: the next read begins anew.
    async fn open_again(
        &self,
        failed: &Arc<Image>,
        attempt: MapAttempt,
        error: VaultError,
    ) -> Result<(), VaultError> {
        let mut known = self.avoided.lock().await;
        if !Arc::ptr_eq(failed, &self.image()) {
            return Ok(());
        }
        let Self { reader, volume, epochs, bounded, base, point, .. } = self;
        tracing::warn!(%volume, point = %point.seq, %error, "a map cannot be read; an older one or the logs are");
        let (base, bounded) = (base.as_ref(), *bounded);
        let stream = Stream { reader, volume: *volume, epochs, bounded, base, depth: 0 };
        let mut avoided = known.clone();
        avoided.insert(attempt);
        let opened = stream.open(PointSelector::Seq(point.seq), &mut avoided).await;
        let opened = opened.map_err(|failed| failed.caused_by(error))?;
        *self.image.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(opened.image);
        *known = avoided;
        Ok(())
    }

    /// Cuts a range into runs that hold data (true) and runs that are zero.
    ///
    /// Blocks behind the end of the volume count as zero.
    ///
    /// # Errors
    /// `Corrupt` if neither map nor logs can be read; `Unavailable`, after as much patience as it was given.
    pub async fn extents(&self, range: BlockRange) -> Result<Vec<(BlockRange, bool)>, VaultError> {
        let mut extents: Vec<(BlockRange, bool)> = Vec::new();
        let mut push = |range: BlockRange, is_data| match extents.last_mut() {
            _ if range.count == 0 => {}
            Some((last, kind)) if *kind == is_data => last.count += range.count,
            _ => extents.push((range, is_data)),
        };
        let mut at = range.block;
        while at < range.end() {
            let next = self.image().next_at(at).unwrap_or(range.end()).min(range.end());
            push(BlockRange { block: at, count: next - at }, false);
            let count = WINDOW_BLOCKS.min(range.end() - next);
            let window = BlockRange { block: next, count };
            at = window.end();
            if count > 0 {
                for (run, held) in self.patience.outlast(|| self.held(window)).await? {
                    push(run, held != Held::Zero);
                }
            }
        }
        Ok(extents)
    }

    /// All runs that hold data, and the frames that hold them, in windows in block order.
    ///
    /// # Errors
    /// Of an item, as [`Self::extents`]; `Corrupt` also if the table of a segment is damaged or missing.
    pub fn windows(
        &self,
    ) -> impl futures::Stream<Item = Result<Vec<(BlockRange, Stored)>, VaultError>> + '_ {
        let (mut block, end) = (0, blocks_of(self.size_bytes()));
        let ranges = std::iter::from_fn(move || {
            block = self.image().next_at(block).filter(|next| *next < end)?;
            let range = BlockRange { block, count: WINDOW_BLOCKS.min(end - block) };
            block = range.end();
            Some(range)
        });
        futures::stream::iter(ranges).map(|range| self.stored(range)).buffered(WINDOWS_AHEAD)
    }

    /// Fetches bytes of a segment that the view refers to.
    ///
    /// # Errors
    /// `Corrupt` if it is missing; `Unavailable`, after as much patience as it was given.
    pub async fn fetch(&self, target: Target, range: Range<u64>) -> Result<Bytes, VaultError> {
        let name = ObjectName::slot(target.log, target.slot);
        let vault = self.reader.vault();
        let read = || async {
            let user = ObjectName::volume(self.volume);
            match vault.store().get_range(&name, range.clone()).await {
                Ok(part) => Ok(part.bytes),
                Err(error) => Err(vault.lost(error.into(), name.clone(), &user).await),
            }
        };
        self.patience.outlast(read).await
    }

    /// The runs of a range that hold data, and the frames that hold them, in order.
    async fn stored(&self, range: BlockRange) -> Result<Vec<(BlockRange, Stored)>, VaultError> {
        let held = self.patience.outlast(|| self.held(range)).await?;
        let mut found = Vec::with_capacity(held.len());
        for (run, held) in held {
            let stored = || self.place(&held, run.count);
            if let Some(stored) = self.patience.outlast(stored).await? {
                found.push((run, stored));
            }
        }
        Ok(found)
    }

    /// Where blocks are stored; nowhere if they are zeros.
    async fn place(&self, held: &Held, count: u64) -> Result<Option<Stored>, VaultError> {
        match held {
            Held::Zero => Ok(None),
            Held::Stored(stored) => Ok(Some(*stored)),
            Held::Listed(target, source) => {
                self.reader.stored(*target, source, count).await.map(Some)
            }
        }
    }

    /// Reads blocks: pieces in order that add up to the range. What the last block of the volume has behind
    /// the volume's end is zero.
    ///
    /// # Errors
    /// `Invalid` past the end of the volume or over `READ_BYTES_MAX`; `Corrupt` if what is needed
    /// is damaged or missing; `Unavailable`, after as much patience as it was given.
    pub async fn read(&self, range: BlockRange) -> Result<Vec<Piece>, VaultError> {
        let blocks = blocks_of(self.size_bytes());
        let max = (READ_BYTES_MAX / BLOCK_BYTES) as u64;
        let end = range.block.saturating_add(range.count);
        if end > blocks || range.count > max {
            return Err(VaultError::Range { block: range.block, end, blocks, max });
        }
        let held = self.patience.outlast(|| self.held(range)).await?;
        let pieces = held.into_iter().map(|(run, held)| self.piece(run, held));
        futures::stream::iter(pieces).buffered(READ_FRAMES_IN_FLIGHT_MAX).try_collect().await
    }

    async fn piece(&self, run: BlockRange, held: Held) -> Result<Piece, VaultError> {
        let read = || async {
            match self.place(&held, run.count).await? {
                None => Ok(Piece::Zeroes(run.bytes())),
                Some(stored) => self.reader.blocks(&stored, run.count).await.map(Piece::Data),
            }
        };
        match self.patience.outlast(read).await {
            Err(error) if error.is_unavailable() && is_on(Bug::AwayReadAsZeros) => {
                Ok(Piece::Zeroes(run.bytes()))
            }
            read => read,
        }
    }
}

#[cfg(test)]
mod tests;
