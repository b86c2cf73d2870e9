//! A volume as it was at a recovery point.

use crate::blocks::{BlockMap, Source};
use crate::chain::{Chain, Found, Hole};
use crate::chunks::ChunkReader;
use crate::error::VaultError;
use crate::limits::{POINTS_MAX, READ_BYTES_MAX, READ_FRAMES_IN_FLIGHT_MAX, VIEW_RUNS_MAX};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_proto::{BlockRange, Epoch, LogId, MarkKind, PointId, Seq, Slot, VolumeId};
use futures::{StreamExt, TryStreamExt};

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
    /// The agent's wall clock; for people, never for order.
    pub time_unix_ms: u64,
    /// Size of the volume.
    pub size_bytes: u64,
}

/// A piece of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes; a slice of a cached frame.
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
    pub(crate) reader: ChunkReader,
    pub(crate) logs: Vec<LogId>,
    pub(crate) map: BlockMap,
    volume: VolumeId,
    label: String,
    point: Point,
    points: Vec<Point>,
    hole: Option<Hole>,
}

impl VolumeView {
    /// Reads the volume's stream up to the point and makes its block map.
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
        let mut chain = Chain::open(vault, volume).await?;
        let mut build = Build::new(ChunkReader::new(vault));
        let mut is_found = false;
        while let Some(found) = chain.next().await? {
            let Some(point) = build.take(&chain, found)? else { continue };
            is_found = match selector {
                PointSelector::Latest => false,
                PointSelector::Point(id) => point.id == id,
                PointSelector::Seq(seq) => point.seq == seq,
            };
            if is_found {
                break;
            }
        }
        let hole = if is_found { None } else { chain.hole().await? };
        if !is_found && selector != PointSelector::Latest {
            return Err(not_found(vault, volume, selector, hole));
        }
        let Some(point) = build.points.last().copied() else {
            return Err(VaultError::NoPoint { url: vault.url().to_owned(), volume });
        };
        if let Some(Hole { log, slot, later }) = hole {
            tracing::warn!(
                %volume, %log, %slot, %later,
                "a slot is missing although a later one exists; the newest point before it is used"
            );
        }
        let label = chain.epochs().last().map(|epoch| epoch.label.clone()).unwrap_or_default();
        let Build { reader, logs, map, points, .. } = build;
        Ok(Self { reader, logs, map, volume, label, point, points, hole })
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

    /// All recovery points up to the view's, in order.
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

    /// Bytes that are not zero by the block map.
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

    /// Reads blocks: pieces in order that add up to the range.
    ///
    /// # Errors
    /// `Invalid` past the end of the volume or over `READ_BYTES_MAX`; `Corrupt` if what is needed
    /// is damaged or missing; `Unavailable`.
    pub async fn read(&self, range: BlockRange) -> Result<Vec<Piece>, VaultError> {
        let blocks = self.size_bytes() / BLOCK_BYTES as u64;
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
        let Some(Source { log, chunk, slot, first }) = source else {
            return Ok(Piece::Zeroes(run.bytes()));
        };
        let bytes = self.reader.chunk(self.logs[log as usize], slot, chunk).await?;
        let start = first as usize * BLOCK_BYTES;
        let length = usize::try_from(run.bytes()).expect("a run of a chunk is short");
        // In range: the table's decoder compared every extent with the length of its chunk.
        Ok(Piece::Data(bytes.slice(start..start + length)))
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

/// Where the blocks of a pending span come from: log number, slot, extents.
type Pending = Vec<(u32, Slot, Vec<Extent>)>;

/// A view while the stream is read.
#[derive(Debug)]
struct Build {
    reader: ChunkReader,
    logs: Vec<LogId>,
    map: BlockMap,
    points: Vec<Point>,
    /// Spans since the last mark: they count only if another mark follows.
    pending: Pending,
    pending_extents: usize,
    size_bytes: u64,
}

impl Build {
    fn new(reader: ChunkReader) -> Self {
        Self {
            reader,
            logs: Vec::new(),
            map: BlockMap::default(),
            points: Vec::new(),
            pending: Vec::new(),
            pending_extents: 0,
            size_bytes: 0,
        }
    }

    /// Takes a span; returns the point that it ends with.
    fn take(&mut self, chain: &Chain<'_>, found: Found) -> Result<Option<Point>, VaultError> {
        let Found { epoch, log, slot, span, segment } = found;
        self.reader.keep(log, slot, segment);
        let number = self.logs.iter().position(|known| *known == log).unwrap_or_else(|| {
            self.logs.push(log);
            self.logs.len() - 1
        });
        let number = u32::try_from(number).expect("there are fewer logs than epochs");
        self.pending_extents += span.extents.len();
        self.pending.push((number, slot, span.extents));
        let limit = |what, max: usize| VaultError::Limit {
            url: self.reader.vault().url().to_owned(),
            what,
            max: max as u64,
        };
        // An extent cuts a run in two at most.
        if self.map.len() + 2 * self.pending_extents > VIEW_RUNS_MAX {
            return Err(limit("runs in the block map of a volume", VIEW_RUNS_MAX));
        }
        let Some(mark) = span.mark else { return Ok(None) };
        if self.points.len() == POINTS_MAX {
            return Err(limit("recovery points of a volume", POINTS_MAX));
        }
        let epoch = &chain.epochs()[epoch];
        let point = Point {
            id: mark.point,
            seq: span.last_seq,
            epoch: epoch.epoch,
            kind: mark.kind,
            time_unix_ms: mark.time_unix_ms,
            size_bytes: epoch.size_bytes,
        };
        self.apply(epoch.size_bytes);
        self.points.push(point);
        Ok(Some(point))
    }

    fn apply(&mut self, size_bytes: u64) {
        self.pending_extents = 0;
        for (log, slot, extents) in self.pending.drain(..) {
            for extent in extents {
                match extent.source {
                    ExtentSource::Zero => self.map.clear(extent.range),
                    ExtentSource::Chunk { chunk, first } => {
                        self.map.insert(extent.range, Source { log, chunk, slot, first });
                    }
                }
            }
        }
        if size_bytes < self.size_bytes {
            let block = size_bytes / BLOCK_BYTES as u64;
            let count = self.size_bytes / BLOCK_BYTES as u64 - block;
            self.map.clear(BlockRange { block, count });
        }
        self.size_bytes = size_bytes;
    }
}

#[cfg(test)]
mod tests;
