//! Writing a layer: runs into pages, pages into parts, parts into the store.

use super::put_drawn;
use super::write::Shape;
use crate::blocking;
use crate::chunks::Stored;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::PART_BYTES;
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::map::{MapPlace, PartBuilder};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::{
    MAP_PARTS_MAX, PAGE_RUNS_MAX, PART_PAGES_MAX, PART_RANGES_MAX, VOLUME_BLOCKS_MAX,
};
use farshore_proto::map::{Layer, LayerKind, Page, PageChunk, PartShape, REGION_BLOCKS};
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_proto::{BlockRange, Target};
use std::collections::HashMap;

/// zstd level of maps: written seldom, read often.
pub const LEVEL: i32 = 3;
/// A run of zeros is cut to what its count can say.
const ZERO_BLOCKS_MAX: u64 = u32::MAX as u64;
/// Ranges that one page adds: a run lies in two regions at most, but for zeros.
const PAGE_RANGES_MAX: usize = 2 * PAGE_RUNS_MAX + (VOLUME_BLOCKS_MAX / REGION_BLOCKS) as usize;
const _: () = assert!(2 * PAGE_RANGES_MAX < PART_RANGES_MAX);

/// A page while it is filled.
#[derive(Debug, Default)]
struct PageBuilder {
    page: Page,
    frames: HashMap<(Target, u32), u32>,
    chunks: HashMap<(u32, u32), u32>,
}

impl PageBuilder {
    fn push(&mut self, range: BlockRange, content: Option<&Stored>) {
        let source = match content {
            None => ExtentSource::Zero,
            Some(stored) => ExtentSource::Chunk { chunk: self.chunk(stored), first: stored.first },
        };
        self.page.runs.push(Extent { range, source });
    }

    fn chunk(&mut self, stored: &Stored) -> u32 {
        let narrow = |value: usize| u32::try_from(value).expect("a page has a limit");
        let Stored { frame: at, chunk: number, offset, blocks, check, .. } = *stored;
        let Self { page, frames, chunks } = self;
        let frame = *frames.entry((at.target, at.number)).or_insert_with(|| {
            page.frames.push(at);
            narrow(page.frames.len() - 1)
        });
        *chunks.entry((frame, number)).or_insert_with(|| {
            page.chunks.push(PageChunk { frame, number, offset, blocks, check });
            narrow(page.chunks.len() - 1)
        })
    }
}

/// A run that may still be gone on with.
type Run = (BlockRange, Option<Stored>);

/// Whether `next` is the rest of what `last` is the front of: reading in windows cuts runs.
fn goes_on(last: &Run, next: &Run) -> bool {
    last.0.end() == next.0.block
        && match (&last.1, &next.1) {
            (None, None) => last.0.count + next.0.count <= ZERO_BLOCKS_MAX,
            (Some(one), Some(other)) => one.skip(last.0.count) == *other,
            _ => false,
        }
}

/// Writes the layer of one attempt.
#[derive(Debug)]
pub(super) struct LayerWriter<'a> {
    vault: &'a Vault,
    at: MapPlace,
    shape: Shape,
    last: Option<Run>,
    page: PageBuilder,
    part: Option<PartBuilder>,
    layer: Layer,
}

impl<'a> LayerWriter<'a> {
    /// Of a layer for the map `at`.
    pub(super) fn new(vault: &'a Vault, at: MapPlace, kind: LayerKind, shape: Shape) -> Self {
        assert!((1..=PAGE_RUNS_MAX).contains(&shape.page_runs), "a page has a limit");
        assert!(shape.part_bytes <= PART_BYTES, "a part has a limit");
        let (attempt, parts) = (at.attempt, Vec::new());
        let layer = Layer { at: at.at, attempt, kind, runs: 0, data_blocks: 0, parts };
        let page = PageBuilder::default();
        Self { vault, at, shape, last: None, page, part: None, layer }
    }

    /// Adds what a run of blocks holds, behind all that there are; none: zeros, of which a full layer says nothing.
    pub(super) async fn push(
        &mut self,
        range: BlockRange,
        content: Option<Stored>,
    ) -> Result<(), VaultError> {
        if content.is_none()
            && (self.layer.kind == LayerKind::Full || is_on(Bug::DeltaWithoutZeros))
        {
            return Ok(());
        }
        let mut rest = range;
        while rest.count > 0 {
            let count = rest.count.min(ZERO_BLOCKS_MAX);
            let next = (BlockRange { count, ..rest }, content);
            rest = BlockRange { block: rest.block + count, count: rest.count - count };
            match &mut self.last {
                Some(last) if goes_on(last, &next) => last.0.count += count,
                _ => self.begin(next).await?,
            }
        }
        Ok(())
    }

    /// Ends the run before, and the page with it if that is full.
    async fn begin(&mut self, next: Run) -> Result<(), VaultError> {
        let Some((range, content)) = self.last.replace(next) else { return Ok(()) };
        self.page.push(range, content.as_ref());
        if self.page.page.runs.len() < self.shape.page_runs {
            return Ok(());
        }
        let full = std::mem::take(&mut self.page);
        self.put_page(full.page).await
    }

    async fn put_page(&mut self, page: Page) -> Result<(), VaultError> {
        self.layer.runs += page.runs.len() as u64;
        self.layer.data_blocks += page.data_blocks();
        let number = self.number();
        let (part, at, vault) = (self.part.take(), self.at, self.vault.clone());
        let is_delta = self.layer.kind == LayerKind::Delta;
        let pushing = blocking::run(move || {
            let mut part = match part {
                Some(part) => part,
                None => {
                    let keys = vault.seal_keys();
                    PartBuilder::new(at, number, keys, LEVEL)?
                }
            };
            part.push(&page, is_delta)?;
            Ok(part)
        });
        let pushed = pushing.await.map_err(|source| VaultError::Task { source })?;
        let part: PartBuilder = pushed.map_err(|cause| self.unsealed(number, cause))?;
        let is_full = part.pages_bytes() >= self.shape.part_bytes
            || part.pages() == PART_PAGES_MAX
            || part.ranges() + PAGE_RANGES_MAX > PART_RANGES_MAX;
        self.part = Some(part);
        if is_full { self.end_part().await } else { Ok(()) }
    }

    fn number(&self) -> u32 {
        u32::try_from(self.layer.parts.len()).expect("parts have a limit")
    }

    fn unsealed(&self, number: u32, cause: farshore_codec::CodecError) -> VaultError {
        let object = ObjectName::pages(self.at.volume, self.at.at, self.at.attempt, number);
        VaultError::Seal { object, cause: Box::new(cause) }
    }

    async fn end_part(&mut self) -> Result<(), VaultError> {
        let Some(part) = self.part.take() else { return Ok(()) };
        let number = self.number();
        if number as usize == MAP_PARTS_MAX {
            let (url, max) = (self.vault.url().to_owned(), MAP_PARTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "parts of a map", max });
        }
        let finishing = blocking::run(move || part.finish());
        let finished = finishing.await.map_err(|source| VaultError::Task { source })?;
        let (object, shape, _) = finished.map_err(|cause| self.unsealed(number, cause))?;
        let name = ObjectName::pages(self.at.volume, self.at.at, self.at.attempt, number);
        self.layer.parts.push(shape);
        put_drawn(self.vault, name, Bytes::from(object)).await
    }

    /// Puts what is left; gives the layer as the manifest names it.
    pub(super) async fn finish(mut self) -> Result<Layer, VaultError> {
        if let Some((range, content)) = self.last.take() {
            self.page.push(range, content.as_ref());
            let last = std::mem::take(&mut self.page);
            self.put_page(last.page).await?;
        }
        self.end_part().await?;
        Ok(self.layer)
    }
}

/// Bytes of the parts of a layer.
pub(super) fn bytes_of(parts: &[PartShape]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}
