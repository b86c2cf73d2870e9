//! A volume as it was at a recovery point.

mod build;

use crate::blocks::BlockMap;
use crate::chain::Hole;
use crate::chunks::ChunkReader;
use crate::epoch::{Known, read_known};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{READ_BYTES_MAX, READ_FRAMES_IN_FLIGHT_MAX};
use crate::log::OpenSegment;
use crate::map::{self, Base, Ids};
use crate::patience::Patience;
use crate::vault::Vault;
use bytes::Bytes;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::{BlockRange, Epoch, ErrorKind, MarkKind, PointId, Seq, Target, VolumeId};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;

pub use crate::blocks::Source;
pub use crate::chunks::Home;
pub(crate) use build::Build;

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

/// A volume at a recovery point: its block map, and the way to its bytes.
#[derive(Debug)]
pub struct VolumeView {
    reader: ChunkReader,
    targets: Vec<Target>,
    map: BlockMap,
    volume: VolumeId,
    label: String,
    point: Point,
    points: Vec<Point>,
    hole: Option<Hole>,
    patience: Patience,
}

impl VolumeView {
    /// Makes the block map of the volume at the point: from the newest map at or before it, and the
    /// stream behind that; by the whole stream if there is no map that can be used.
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
        let known = read_known(vault, volume).await?;
        let bounded = known.bounded();
        let Known { epochs, broken } = known;
        if let Some(broken) = broken {
            if selector == PointSelector::Latest || bounded == 0 {
                return Err(broken);
            }
            let found = Self::read_to(vault, volume, &epochs, bounded, selector, None).await;
            return found.map_err(|error| match error.kind() {
                ErrorKind::NotFound => broken,
                _ => error,
            });
        }
        let base = match epochs.is_empty() {
            true => None,
            false => map::find(vault, volume, &epochs, selector, Ids::Drop).await,
        };
        let Some(base) = base else {
            return Self::read_to(vault, volume, &epochs, bounded, selector, None).await;
        };
        let seq = base.start.last;
        match Self::read_to(vault, volume, &epochs, bounded, selector, Some(base)).await {
            Err(error) if !error.is_unavailable() => {
                tracing::warn!(
                    %volume, map = %seq, %error,
                    "cannot go on from a map; reading the logs from the start"
                );
                let view = Self::read_to(vault, volume, &epochs, bounded, selector, None).await?;
                // The map shows that there was a later point: an older one is not the latest.
                let is_latest = selector != PointSelector::Latest || view.point.seq >= seq;
                if is_latest { Ok(view) } else { Err(error) }
            }
            result => result,
        }
    }

    /// Opens the view by the logs, from a map on or from the start, in the first `bounded` epochs.
    async fn read_to(
        vault: &Vault,
        volume: VolumeId,
        epochs: &[EpochBody],
        bounded: usize,
        selector: PointSelector,
        base: Option<Base>,
    ) -> Result<Self, VaultError> {
        let reader = ChunkReader::new(vault, ObjectName::volume(volume));
        let (mut build, mut chain) = map::begin(vault, volume, epochs, base, Ids::Drop)?;
        let mut is_found = build.point().is_some_and(|point| selector.is(point));
        while !is_found {
            let next = match chain.next().await {
                Err(error) if error.is_unavailable() && is_on(Bug::AwayTakenForEnd) => None,
                next => next?,
            };
            let Some(found) = next.filter(|found| found.epoch < bounded) else { break };
            reader.keep(Arc::clone(&found.segment));
            is_found = build.take(&chain, &found)?.is_some_and(|point| selector.is(&point));
        }
        let hole = if is_found { None } else { chain.hole().await? };
        if !is_found && selector != PointSelector::Latest {
            return Err(not_found(vault, volume, selector, hole));
        }
        let Some(point) = build.point().copied() else {
            return Err(VaultError::NoPoint { url: vault.url().to_owned(), volume });
        };
        if let Some(Hole { log, slot, later }) = hole {
            tracing::warn!(
                %volume, %log, %slot, %later,
                "a slot is missing although a later one exists; the newest point before it is used"
            );
        }
        let label = chain.epochs().last().map(|epoch| epoch.label.clone()).unwrap_or_default();
        let (map, targets, points) = build.finish();
        let patience = Patience::new(Duration::ZERO);
        Ok(Self { reader, targets, map, volume, label, point, points, hole, patience })
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

    /// Recovery points up to the view's, in order, from the map on that it was opened by; all of
    /// them if there was none. `list_points` gives all in any case.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
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

    /// Bytes of the blocks that are not zero by the block map.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.map.data_blocks() * BLOCK_BYTES as u64
    }

    /// Cuts a range into runs that hold data (true) and runs that are zero.
    ///
    /// Blocks behind the end of the volume count as zero.
    #[must_use]
    pub fn extents(&self, range: BlockRange) -> Vec<(BlockRange, bool)> {
        let mut extents: Vec<(BlockRange, bool)> = Vec::new();
        let mut push = |range: BlockRange, is_data| match extents.last_mut() {
            _ if range.count == 0 => {}
            Some((last, kind)) if *kind == is_data => last.count += range.count,
            _ => extents.push((range, is_data)),
        };
        let mut at = range.block;
        for (run, _) in self.map.runs(range) {
            push(BlockRange { block: at, count: run.block - at }, false);
            push(run, true);
            at = run.end();
        }
        push(BlockRange { block: at, count: range.end() - at }, false);
        extents
    }

    /// The runs of a range that hold data, in order, and the chunks that hold them.
    pub fn sources(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, Source)> {
        self.map.runs(range)
    }

    /// Where the chunk of a source is stored, of which `count` blocks are wanted.
    ///
    /// # Errors
    /// `Corrupt` if its segment is damaged or missing, or holds another chunk there; `Unavailable`.
    pub async fn home(&self, source: &Source, count: u64) -> Result<Home, VaultError> {
        self.reader.home(self.targets[source.target as usize], source, count).await
    }

    /// A segment that the view refers to, without its spans.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or missing; `Unavailable`.
    pub async fn segment(&self, target: Target) -> Result<Arc<OpenSegment>, VaultError> {
        self.reader.segment(target, &ObjectName::volume(self.volume)).await
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
        let mut parts = Vec::new();
        let mut at = range.block;
        for (run, source) in self.map.runs(range) {
            if run.block > at {
                parts.push((BlockRange { block: at, count: run.block - at }, None));
            }
            parts.push((run, Some(source)));
            at = run.end();
        }
        if at < range.end() {
            parts.push((BlockRange { block: at, count: range.end() - at }, None));
        }
        let pieces = parts.into_iter().map(|(run, source)| self.piece(run, source));
        futures::stream::iter(pieces).buffered(READ_FRAMES_IN_FLIGHT_MAX).try_collect().await
    }

    async fn piece(&self, run: BlockRange, source: Option<Source>) -> Result<Piece, VaultError> {
        let Some(source) = source else { return Ok(Piece::Zeroes(run.bytes())) };
        let target = self.targets[source.target as usize];
        let read = || self.reader.blocks(target, &source, run.count);
        match self.patience.outlast(read).await {
            Err(error) if error.is_unavailable() && is_on(Bug::AwayReadAsZeros) => {
                Ok(Piece::Zeroes(run.bytes()))
            }
            read => Ok(Piece::Data(read?)),
        }
    }
}

fn not_found(
    vault: &Vault,
    volume: VolumeId,
    selector: PointSelector,
    hole: Option<Hole>,
) -> VaultError {
    let url = vault.url().to_owned();
    match (selector, hole) {
        (PointSelector::Point(point), Some(Hole { log, slot, later })) => {
            VaultError::PointBehindHole { url, volume, point, log, slot, later }
        }
        (PointSelector::Point(point), None) => VaultError::PointNotFound { url, volume, point },
        (PointSelector::Seq(seq), _) => VaultError::SeqNotFound { url, volume, seq },
        (PointSelector::Latest, _) => VaultError::NoPoint { url, volume },
    }
}

#[cfg(test)]
mod tests;
