//! A volume while its stream is read.

use super::Point;
use crate::blocks::{BlockMap, ChunkAt, Source};
use crate::chain::{Chain, Found, Start};
use crate::error::VaultError;
use crate::limits::{POINTS_MAX, TAIL_RUNS_MAX};
use crate::log::OpenSegment;
use crate::map::Base;
use crate::vault::Vault;
use farshore_proto::limits::blocks_of;
use farshore_proto::segment::{ChunkPlace, ExtentSource};
use farshore_proto::{BlockRange, Target};
use std::collections::HashMap;

/// Segments that chunks are in, by number.
#[derive(Debug, Default)]
struct TargetNumbers {
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

/// A volume while its stream is read: as it was at the newest point so far, and what came since. Behind a map, only
/// what came behind it.
#[derive(Debug)]
pub(crate) struct Build {
    map: BlockMap,
    points: Vec<Point>,
    targets: TargetNumbers,
    /// What was written since the last mark: it counts only if another mark follows.
    pending: Vec<(BlockRange, Option<Source>)>,
    size_bytes: u64,
    /// Epoch and slot of the span that ended with the newest point, and its seq.
    end: Option<Start>,
}

impl Build {
    /// Before the first span.
    pub(crate) fn new() -> Self {
        Self {
            map: BlockMap::default(),
            points: Vec::new(),
            targets: TargetNumbers::default(),
            pending: Vec::new(),
            size_bytes: 0,
            end: None,
        }
    }

    /// Behind a map.
    pub(crate) fn over(base: &Base) -> Self {
        Self {
            map: BlockMap::over_layers(),
            points: base.own_point().into_iter().collect(),
            size_bytes: base.manifest.size_bytes,
            end: base.own_point().map(|_| base.start),
            ..Self::new()
        }
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
        if self.map.len() + 2 * self.pending.len() > TAIL_RUNS_MAX {
            return Err(too_many_runs(chain.vault()));
        }
        let body = &chain.epochs()[*epoch];
        let Some(point) = Point::at_end(body, span) else { return Ok(None) };
        if self.points.len() == POINTS_MAX {
            let (url, max) = (chain.vault().url().to_owned(), POINTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "recovery points of a volume", max });
        }
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
        Source::new(at, &chunk.id, first)
    }

    /// What came since the last mark counts too now, in a volume of so many bytes.
    pub(crate) fn apply(&mut self, size_bytes: u64) {
        for (range, source) in self.pending.drain(..) {
            self.map.set(range, source);
        }
        if size_bytes < self.size_bytes {
            let block = blocks_of(size_bytes);
            let count = blocks_of(self.size_bytes) - block;
            self.map.set(BlockRange { block, count }, None);
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

    /// Runs of the map so far.
    pub(crate) fn runs(&self) -> usize {
        self.map.len()
    }

    /// Extents behind the newest point.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes the map, for a layer: what comes next lies over it. Also the segments by number.
    pub(crate) fn cut(&mut self) -> (BlockMap, Vec<Target>) {
        let map = std::mem::replace(&mut self.map, BlockMap::over_layers());
        (map, self.targets.list.clone())
    }

    /// The parts of a view.
    pub(super) fn finish(self) -> (BlockMap, Vec<Target>, Vec<Point>) {
        (self.map, self.targets.list, self.points)
    }
}

fn too_many_runs(vault: &Vault) -> VaultError {
    let (url, max) = (vault.url().to_owned(), TAIL_RUNS_MAX as u64);
    VaultError::Limit { url, what: "runs of a volume behind its newest map", max }
}
