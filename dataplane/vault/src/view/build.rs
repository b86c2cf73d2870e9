//! A volume's block map while its stream is read.

use super::Point;
use crate::blocks::{BlockMap, ChunkAt, Source};
use crate::chain::{Chain, Found, Start};
use crate::error::VaultError;
use crate::limits::{POINTS_MAX, VIEW_RUNS_MAX};
use crate::log::OpenSegment;
use crate::map::Ids;
use crate::vault::Vault;
use farshore_proto::limits::blocks_of;
use farshore_proto::map::MapBody;
use farshore_proto::segment::{ChunkPlace, ExtentSource};
use farshore_proto::{BlockRange, ChunkId, Target};
use std::collections::HashMap;

/// Segments that chunks are in, by number.
#[derive(Debug, Default)]
pub(crate) struct TargetNumbers {
    list: Vec<Target>,
    numbers: HashMap<Target, u32>,
}

impl TargetNumbers {
    fn number(&mut self, target: Target) -> u32 {
        let next = u32::try_from(self.list.len()).expect("there are fewer segments than runs");
        *self.numbers.entry(target).or_insert_with(|| {
            self.list.push(target);
            next
        })
    }
}

/// A volume while its stream is read: as it was at the newest point so far, and what came since.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) map: BlockMap,
    pub(super) points: Vec<Point>,
    targets: TargetNumbers,
    /// What was written since the last mark: it counts only if another mark follows.
    pending: Vec<(BlockRange, Option<Source>)>,
    size_bytes: u64,
    /// Full ids and lengths of chunks, if they are kept.
    ids: Option<HashMap<ChunkAt, (ChunkId, u32)>>,
    /// Epoch and slot of the span that ended with the newest point, and its seq.
    end: Option<Start>,
}

impl Build {
    /// Before the first span.
    pub(crate) fn new(ids: Ids) -> Self {
        Self {
            map: BlockMap::default(),
            points: Vec::new(),
            targets: TargetNumbers::default(),
            pending: Vec::new(),
            size_bytes: 0,
            ids: (ids == Ids::Keep).then(HashMap::new),
            end: None,
        }
    }

    /// At a point that a map is at; the parts of the map are still to be added.
    pub(crate) fn at(point: Point, start: Start, ids: Ids) -> Self {
        let size_bytes = point.size_bytes;
        Self { points: vec![point], size_bytes, end: Some(start), ..Self::new(ids) }
    }

    /// Adds a part of a map that begins at or behind block `floor`; returns where the next one may
    /// begin, or nothing if this one begins before.
    pub(crate) fn add_part(
        &mut self,
        vault: &Vault,
        part: &MapBody,
        floor: u64,
    ) -> Result<Option<u64>, VaultError> {
        if self.map.len() + part.runs.len() > VIEW_RUNS_MAX {
            return Err(too_many_runs(vault));
        }
        if part.runs.first().is_some_and(|run| run.range.block < floor) {
            return Ok(None);
        }
        for run in &part.runs {
            // In range: the decoder compared them.
            let chunk = part.chunks[run.chunk as usize];
            let at = ChunkAt { target: self.targets.number(chunk.target), chunk: chunk.chunk };
            self.keep_id(at, chunk.id, chunk.blocks);
            self.map.append(run.range, Source::new(at, &chunk.id, run.first));
        }
        Ok(Some(part.runs.last().map_or(floor, |run| run.range.end())))
    }

    /// Takes a span; returns the point that it ends with.
    pub(crate) fn take(
        &mut self,
        chain: &Chain<'_>,
        found: &Found,
    ) -> Result<Option<Point>, VaultError> {
        let Found { epoch, slot, span, segment, .. } = found;
        for extent in &span.extents {
            let source = match extent.source {
                ExtentSource::Zero => None,
                ExtentSource::Chunk { chunk, first } => Some(self.source(segment, chunk, first)),
            };
            self.pending.push((extent.range, source));
        }
        // An extent cuts a run in two at most.
        if self.map.len() + 2 * self.pending.len() > VIEW_RUNS_MAX {
            return Err(too_many_runs(chain.vault()));
        }
        let Some(mark) = span.mark else { return Ok(None) };
        if self.points.len() == POINTS_MAX {
            let (url, max) = (chain.vault().url().to_owned(), POINTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "recovery points of a volume", max });
        }
        let body = &chain.epochs()[*epoch];
        let point = Point {
            id: mark.point,
            seq: span.last_seq,
            epoch: body.epoch,
            kind: mark.kind,
            unknown_blocks: mark.unknown_blocks,
            time_unix_ms: mark.time_unix_ms,
            size_bytes: body.size_bytes,
        };
        self.apply(body.size_bytes);
        self.points.push(point);
        self.end = Some(Start { epoch: *epoch, slot: *slot, last: span.last_seq });
        Ok(Some(point))
    }

    /// Where chunk `number` of the table of a slot is stored: references are followed here, where
    /// the table is at hand.
    fn source(&mut self, segment: &OpenSegment, number: u32, first: u32) -> Source {
        // In range: the table's decoder compared them.
        let chunk = segment.table.chunks[number as usize];
        let (target, number) = match chunk.place {
            ChunkPlace::Here { .. } => (segment.target(), number),
            ChunkPlace::There { target, chunk } => (target, chunk),
        };
        let at = ChunkAt { target: self.targets.number(target), chunk: number };
        self.keep_id(at, chunk.id, chunk.blocks);
        Source::new(at, &chunk.id, first)
    }

    fn keep_id(&mut self, at: ChunkAt, id: ChunkId, blocks: u32) {
        if let Some(ids) = &mut self.ids {
            ids.insert(at, (id, blocks));
        }
    }

    fn apply(&mut self, size_bytes: u64) {
        for (range, source) in self.pending.drain(..) {
            match source {
                None => self.map.clear(range),
                Some(source) => self.map.insert(range, source),
            }
        }
        if size_bytes < self.size_bytes {
            let block = blocks_of(size_bytes);
            let count = blocks_of(self.size_bytes) - block;
            if count > 0 {
                self.map.clear(BlockRange { block, count });
            }
        }
        self.size_bytes = size_bytes;
    }

    /// The newest point so far.
    pub(crate) fn point(&self) -> Option<&Point> {
        self.points.last()
    }

    /// Where reading goes on behind the newest point.
    pub(crate) fn end(&self) -> Option<Start> {
        self.end
    }

    /// The segments by number.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets.list
    }

    /// The id and length of a chunk, if ids are kept.
    pub(crate) fn chunk_id(&self, at: ChunkAt) -> Option<(ChunkId, u32)> {
        self.ids.as_ref()?.get(&at).copied()
    }

    /// Where a source is stored, and the id of its chunk, for comparisons between builds.
    pub(crate) fn stored(&self, source: &Source) -> (Target, u32, u32, Option<(ChunkId, u32)>) {
        let Source { target, chunk, first, .. } = *source;
        (self.targets.list[target as usize], chunk, first, self.chunk_id(source.at()))
    }

    /// The parts of a view.
    pub(super) fn finish(self) -> (BlockMap, Vec<Target>, Vec<Point>) {
        (self.map, self.targets.list, self.points)
    }
}

fn too_many_runs(vault: &Vault) -> VaultError {
    let (url, max) = (vault.url().to_owned(), VIEW_RUNS_MAX as u64);
    VaultError::Limit { url, what: "runs in the block map of a volume", max }
}
