//! What the blocks of a volume hold at a place of its stream: what was read behind a map, over the map's layers.

use super::Tail;
use crate::blocks::Source;
use crate::chunks::{ChunkReader, Stored};
use crate::error::VaultError;
use crate::limits::{READ_PAGES_IN_FLIGHT_MAX, WINDOW_BLOCKS, WINDOWS_AHEAD};
use crate::map::{Layer, PageKey};
use farshore_proto::map::{LayerKind, Page};
use farshore_proto::segment::ExtentSource;
use farshore_proto::{BlockRange, MapAttempt, Target};
use futures::{Stream, StreamExt, TryStreamExt};
use std::sync::Arc;

/// What a run of blocks holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Zeros.
    Zero,
    /// Blocks of a chunk whose frame a page knows.
    Stored(Stored),
    /// Blocks of a chunk that a table names; the table of the segment that holds it knows the frame.
    Listed(Target, Source),
}

impl Held {
    /// What is left behind its first blocks.
    pub(crate) fn skip(self, blocks: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Stored(stored) => Self::Stored(stored.skip(blocks)),
            Self::Listed(target, source) => Self::Listed(target, source.skip(blocks)),
        }
    }
}

/// A layer that cannot be read.
#[derive(Debug)]
pub(crate) struct LayerError {
    /// The attempt that wrote it.
    pub(crate) attempt: MapAttempt,
    /// Why.
    pub(crate) error: VaultError,
}

/// A volume at a place, as far as it is in memory; the rest is loaded.
#[derive(Debug)]
pub(crate) struct Image {
    /// What was read of streams, newest first: over the layers.
    tails: Vec<Arc<Tail>>,
    /// Newest first.
    layers: Vec<Arc<Layer>>,
    /// Whether there is more below, of which it says nothing; else what it does not name is zero.
    is_partial: bool,
}

impl Image {
    /// All of a volume: what was read behind a map, and the map's layers.
    pub(crate) fn whole(tail: Arc<Tail>, layers: Vec<Arc<Layer>>) -> Self {
        Self { tails: vec![tail], layers, is_partial: false }
    }

    /// All of a volume that goes on from what another image holds.
    pub(crate) fn over(tail: Arc<Tail>, under: &Self) -> Self {
        let tails = [&[tail][..], &under.tails].concat();
        Self { tails, layers: under.layers.clone(), is_partial: under.is_partial }
    }

    /// Of what any of these has a say; only where, not what.
    pub(crate) fn mentioned(images: &[&Self]) -> Self {
        let tails = images.iter().flat_map(|image| image.tails.iter().cloned()).collect();
        let layers = images.iter().flat_map(|image| image.layers.iter().cloned()).collect();
        Self { tails, layers, is_partial: true }
    }

    /// The same above layers that are left out.
    pub(crate) fn partial(tail: Arc<Tail>, layers: Vec<Arc<Layer>>) -> Self {
        Self { tails: vec![tail], layers, is_partial: true }
    }

    /// What a range holds: runs in block order, with gaps if it is partial.
    pub(crate) async fn held(
        &self,
        reader: &ChunkReader,
        range: BlockRange,
    ) -> Result<Vec<(BlockRange, Held)>, LayerError> {
        let mut found = Vec::new();
        let mut open = vec![range];
        for tail in &self.tails {
            open = look_behind(tail, &open, &mut found);
        }
        for layer in &self.layers {
            if open.is_empty() {
                break;
            }
            open = look_in(layer, reader, &open, &mut found).await?;
        }
        if !self.is_partial {
            found.extend(open.into_iter().map(|gap| (gap, Held::Zero)));
        }
        found.sort_unstable_by_key(|(run, _)| run.block);
        Ok(found)
    }

    /// All that it says, in windows in block order, a few resolved ahead.
    pub(crate) fn windows<'a>(
        &'a self,
        reader: &'a ChunkReader,
    ) -> impl Stream<Item = Result<Vec<(BlockRange, Held)>, LayerError>> + 'a {
        let mut block = 0;
        let ranges = std::iter::from_fn(move || {
            let range = BlockRange { block: self.next_at(block)?, count: WINDOW_BLOCKS };
            block = range.end();
            Some(range)
        });
        let windows = futures::stream::iter(ranges).map(|range| self.held(reader, range));
        windows.buffered(WINDOWS_AHEAD)
    }

    /// Blocks that hold data, at most.
    pub(crate) fn data_blocks_max(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.data_blocks());
        let tails = self.tails.iter().map(|tail| tail.map.data_blocks());
        layers.chain(tails).sum()
    }

    /// The first block at or behind `block` of which it may say something other than zero.
    pub(crate) fn next_at(&self, block: u64) -> Option<u64> {
        let layers = self.layers.iter().filter_map(|layer| layer.next_at(block));
        let tails = self.tails.iter().filter_map(|tail| tail.map.next_at(block));
        layers.chain(tails).min()
    }
}

fn push_gap(open: &mut Vec<BlockRange>, from: u64, to: u64) {
    if from < to {
        open.push(BlockRange { block: from, count: to - from });
    }
}

/// Adds what was read of a stream of the open ranges; returns those of which it says nothing.
fn look_behind(
    tail: &Tail,
    open: &[BlockRange],
    found: &mut Vec<(BlockRange, Held)>,
) -> Vec<BlockRange> {
    let Tail { map, targets } = tail;
    let listed = |source: Source| Held::Listed(targets[source.target as usize], source);
    let mut rest = Vec::new();
    for range in open {
        let mut at = range.block;
        for (run, content) in map.runs(*range) {
            push_gap(&mut rest, at, run.block);
            at = run.end();
            found.push((run, content.map_or(Held::Zero, listed)));
        }
        push_gap(&mut rest, at, range.end());
    }
    rest
}

/// Adds what a layer says of the open ranges; returns those of which it says nothing.
async fn look_in(
    layer: &Arc<Layer>,
    reader: &ChunkReader,
    open: &[BlockRange],
    found: &mut Vec<(BlockRange, Held)>,
) -> Result<Vec<BlockRange>, LayerError> {
    let mut covered = Vec::new();
    let mut rest = Vec::new();
    for range in open {
        let mut at = range.block;
        for part in layer.covered(*range) {
            push_gap(&mut rest, at, part.block);
            at = part.end();
            covered.push(part);
        }
        push_gap(&mut rest, at, range.end());
    }
    let mut wanted: Vec<PageKey> = covered.iter().flat_map(|part| layer.pages_in(*part)).collect();
    wanted.dedup();
    let failed = |error| LayerError { attempt: layer.attempt(), error };
    let pages = wanted.into_iter().map(|key| reader.page(layer, key));
    let pages = futures::stream::iter(pages).buffered(READ_PAGES_IN_FLIGHT_MAX);
    let pages: Vec<Arc<Page>> = pages.try_collect().await.map_err(failed)?;
    let mut runs = Runs { pages: &pages, page: 0, run: 0 };
    for part in covered {
        let (mut at, before) = (part.block, rest.len());
        runs.take(part, |run, held| {
            push_gap(&mut rest, at, run.block);
            at = run.end();
            found.push((run, held));
        });
        push_gap(&mut rest, at, part.end());
        if layer.kind() == LayerKind::Delta && rest.len() > before {
            // The directory says that it covers what no page names.
            let url = reader.vault().url().to_owned();
            return Err(failed(VaultError::Map { url, object: layer.object() }));
        }
    }
    rest.sort_unstable_by_key(|gap| gap.block);
    Ok(rest)
}

/// The runs of pages, walked once from front to back.
struct Runs<'a> {
    pages: &'a [Arc<Page>],
    page: usize,
    run: usize,
}

impl Runs<'_> {
    /// Gives the runs in a range, cut to it; ranges ascend.
    fn take(&mut self, range: BlockRange, mut each: impl FnMut(BlockRange, Held)) {
        while let Some(page) = self.pages.get(self.page) {
            if self.run == 0 {
                self.run = page.runs.partition_point(|run| run.range.end() <= range.block);
            }
            let Some(extent) = page.runs.get(self.run) else {
                (self.page, self.run) = (self.page + 1, 0);
                continue;
            };
            let from = extent.range.block.max(range.block);
            let end = extent.range.end().min(range.end());
            if extent.range.block >= range.end() {
                return;
            }
            if from < end {
                let held = match extent.source {
                    ExtentSource::Zero => Held::Zero,
                    ExtentSource::Chunk { chunk, first } => {
                        Held::Stored(Stored::of_page(page, chunk, first))
                    }
                };
                let held = held.skip(from - extent.range.block);
                each(BlockRange { block: from, count: end - from }, held);
            }
            if extent.range.end() > range.end() {
                // The rest of it may be in the next range.
                return;
            }
            self.run += 1;
        }
    }
}
