//! A volume while its stream is read.

use super::{Origin, Point};
use crate::blocks::{BlockMap, Source, check_of};
use crate::chain::{Chain, Found, Start};
use crate::error::VaultError;
use crate::limits::TAIL_RUNS_MAX;
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

/// What was read of a stream: from its start, or behind a map.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) map: BlockMap,
    /// Segments that its chunks are in, by number.
    pub(crate) targets: Vec<Target>,
}

/// A volume while its stream is read: as it was at the newest point so far, and what came since. Behind a map, only
/// what came behind it.
#[derive(Debug)]
pub(crate) struct Build {
    map: BlockMap,
    /// The newest point so far.
    point: Option<Point>,
    targets: TargetNumbers,
    /// What was written since the last mark: it counts only if another mark follows.
    pending: Vec<(BlockRange, Option<Source>)>,
    size_bytes: u64,
    /// Epoch and slot of the span that ended with the newest point, and its seq.
    end: Option<Start>,
}

impl Build {
    /// Behind a map, or before the first span of a branch that begins with `origin`.
    pub(crate) fn behind(map: Option<&Base>, origin: &Origin) -> Self {
        match (map, &origin.image) {
            (Some(map), _) => Self::over(map),
            (None, None) => Self::new(),
            (None, Some(_)) => {
                let (map, size_bytes) = (BlockMap::over_layers(), origin.size_bytes);
                Self { map, size_bytes, ..Self::new() }
            }
        }
    }

    /// Before the first span.
    fn new() -> Self {
        Self {
            map: BlockMap::default(),
            point: None,
            targets: TargetNumbers::default(),
            pending: Vec::new(),
            size_bytes: 0,
            end: None,
        }
    }

    /// Behind a map.
    fn over(base: &Base) -> Self {
        Self {
            map: BlockMap::over_layers(),
            point: base.own_point(),
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
        self.apply(body.size_bytes);
        self.point = Some(point);
        self.end = Some(Start { epoch: *epoch, slot: *slot, last: span.last_seq });
        Ok(Some(point))
    }

    /// Where chunk `number` of the table of a slot is stored: references are followed here, where
    /// the table is at hand.
    fn source(&mut self, segment: &OpenSegment, number: u32, first: u32) -> Source {
        // In range: the table's decoder compared them.
        let chunk = segment.table.chunks[number as usize];
        let check = check_of(&chunk.id);
        let (target, chunk) = match chunk.place {
            ChunkPlace::Here { .. } => (segment.target(), number),
            ChunkPlace::There { target, chunk } => (target, chunk),
        };
        Source { target: self.targets.number(target), chunk, first, check }
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
    pub(crate) fn point(&self) -> Option<Point> {
        self.point
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

    /// Takes what was read, for a layer: what comes next lies over it.
    pub(crate) fn cut(&mut self) -> Tail {
        let map = std::mem::replace(&mut self.map, BlockMap::over_layers());
        Tail { map, targets: self.targets.list.clone() }
    }

    /// What was read, up to the newest point.
    pub(super) fn finish(self) -> Tail {
        Tail { map: self.map, targets: self.targets.list }
    }
}

fn too_many_runs(vault: &Vault) -> VaultError {
    let (url, max) = (vault.url().to_owned(), TAIL_RUNS_MAX as u64);
    VaultError::Limit { url, what: "runs of a volume behind its newest map", max }
}
