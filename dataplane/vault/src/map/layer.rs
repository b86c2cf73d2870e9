//! A layer of a map: its parts with their directories, opened; pages are loaded when they are asked for.

use super::place;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{COVERED_RANGES_MAX, LAYERS_AT_ONCE, PARTS_AT_ONCE, page_bytes};
use crate::vault::Vault;
use crate::view::LayerError;
use farshore_codec::CodecError;
use farshore_codec::map::{MapPlace, PartOpener};
use farshore_proto::map::{self, LayerKind, Page, PageAt, PartShape, REGION_BLOCKS};
use farshore_proto::object::ObjectKind;
use farshore_proto::{BlockRange, MapAttempt, VolumeId};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// A page: the attempt that wrote its layer, the part and the page in it.
pub(crate) type PageKey = (MapAttempt, u32, u32);

/// Which blocks a delta has a say in, at 4 bytes a range.
#[derive(Debug, Default)]
pub(crate) struct Covers {
    /// Regions that have any, and where their ranges begin in the list.
    regions: Vec<(u32, u32)>,
    /// First and last block in the region.
    ranges: Vec<(u16, u16)>,
}

impl Covers {
    /// Adds ranges behind all that there are; each lies in one region.
    pub(crate) fn extend(&mut self, ranges: &[BlockRange]) {
        let narrow = |value: u64| u16::try_from(value % REGION_BLOCKS).expect("in its region");
        for range in ranges {
            let region = u32::try_from(range.block / REGION_BLOCKS).expect("a volume has a limit");
            if self.regions.last().is_none_or(|(last, _)| *last != region) {
                let next = u32::try_from(self.ranges.len()).expect("ranges have a limit");
                self.regions.push((region, next));
            }
            self.ranges.push((narrow(range.block), narrow(range.end() - 1)));
        }
    }

    fn len(&self) -> usize {
        self.ranges.len()
    }

    fn in_region(&self, index: usize) -> &[(u16, u16)] {
        let start = self.regions[index].1 as usize;
        let end = self.regions.get(index + 1).map_or(self.ranges.len(), |(_, end)| *end as usize);
        &self.ranges[start..end]
    }

    /// What of a range is covered, in order.
    pub(crate) fn within(&self, range: BlockRange) -> Vec<BlockRange> {
        let mut found: Vec<BlockRange> = Vec::new();
        let first = self
            .regions
            .partition_point(|(region, _)| (u64::from(*region) + 1) * REGION_BLOCKS <= range.block);
        for index in first..self.regions.len() {
            let base = u64::from(self.regions[index].0) * REGION_BLOCKS;
            if base >= range.end() {
                break;
            }
            let ranges = self.in_region(index);
            let from = ranges.partition_point(|(_, last)| base + u64::from(*last) < range.block);
            for (first, last) in &ranges[from..] {
                let start = (base + u64::from(*first)).max(range.block);
                let end = (base + u64::from(*last) + 1).min(range.end());
                if start >= range.end() {
                    break;
                }
                match found.last_mut() {
                    Some(before) if before.end() == start => before.count += end - start,
                    _ => found.push(BlockRange { block: start, count: end - start }),
                }
            }
        }
        found
    }
}

/// A layer, opened.
#[derive(Debug)]
pub(crate) struct Layer {
    at: MapPlace,
    /// As the manifest names it.
    known: map::Layer,
    parts: Vec<PartOpener>,
    covers: Covers,
}

impl Layer {
    /// Opens all directories of a layer.
    ///
    /// # Errors
    /// `Corrupt` if a part is missing, damaged, or not what the manifest says; `Limit`; `Unavailable`.
    async fn open(
        vault: &Vault,
        volume: VolumeId,
        known: map::Layer,
        user: &ObjectName,
    ) -> Result<Self, VaultError> {
        let at = place(vault, volume, (known.at, known.attempt));
        let shapes = (0..).zip(known.parts.clone());
        let parts = shapes.map(|(part, shape)| open_part(vault, at, part, shape, user));
        let mut opening = std::pin::pin!(futures::stream::iter(parts).buffered(PARTS_AT_ONCE));
        let (mut parts, mut covers) = (Vec::with_capacity(known.parts.len()), Covers::default());
        while let Some(mut part) = opening.try_next().await? {
            covers.extend(&part.take_covers());
            parts.push(part);
        }
        let layer = Self { at, known, parts, covers };
        if layer.is_as_known() {
            return Ok(layer);
        }
        Err(VaultError::Map { url: vault.url().to_owned(), object: user.clone() })
    }

    /// Whether the parts are in block order, and have what the manifest says.
    fn is_as_known(&self) -> bool {
        let runs: u64 =
            self.parts.iter().flat_map(|part| part.pages()).map(|p| u64::from(p.runs)).sum();
        let mut floor = 0;
        let mut is_next = |part: &PartOpener| match (part.pages().first(), part.pages().last()) {
            (Some(first), Some(last)) => first.first >= std::mem::replace(&mut floor, last.end),
            _ => false,
        };
        runs == self.known.runs && self.parts.iter().all(&mut is_next)
    }

    pub(crate) fn kind(&self) -> LayerKind {
        self.known.kind
    }

    /// Blocks that it says hold data.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.known.data_blocks
    }

    /// What its errors name.
    pub(crate) fn object(&self) -> ObjectName {
        ObjectName::pages(self.at.volume, self.at.at, self.at.attempt, 0)
    }

    pub(crate) fn attempt(&self) -> MapAttempt {
        self.at.attempt
    }

    /// What of a range it has a say in.
    pub(crate) fn covered(&self, range: BlockRange) -> Vec<BlockRange> {
        match self.known.kind {
            LayerKind::Full => vec![range],
            LayerKind::Delta => self.covers.within(range),
        }
    }

    fn page(&self, key: PageKey) -> PageAt {
        self.parts[key.1 as usize].pages()[key.2 as usize]
    }

    /// The pages with runs in a range.
    pub(crate) fn pages_in(&self, range: BlockRange) -> Vec<PageKey> {
        let narrow = |value: usize| u32::try_from(value).expect("parts and pages have limits");
        let mut found = Vec::new();
        let ends = |part: &PartOpener| part.pages().last().map_or(0, |page| page.end);
        let first = self.parts.partition_point(|part| ends(part) <= range.block);
        for (number, part) in self.parts.iter().enumerate().skip(first) {
            let pages = part.pages();
            let from = pages.partition_point(|page| page.end <= range.block);
            for (page, at) in pages.iter().enumerate().skip(from) {
                if at.first >= range.end() {
                    return found;
                }
                found.push((self.at.attempt, narrow(number), narrow(page)));
            }
        }
        found
    }

    /// The first block at or behind `block` that a page may have a run at.
    pub(crate) fn next_at(&self, block: u64) -> Option<u64> {
        let is_before = |page: &PageAt| page.end <= block;
        let part = self.parts.partition_point(|part| part.pages().last().is_none_or(is_before));
        let pages = self.parts.get(part)?.pages();
        let page = pages.get(pages.partition_point(is_before))?;
        Some(page.first.max(block))
    }

    /// Fetches and opens a page.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or gone; `Unavailable`.
    pub(crate) async fn read(
        self: &Arc<Self>,
        vault: &Vault,
        key: PageKey,
        user: &ObjectName,
    ) -> Result<Page, VaultError> {
        let (_, part, page) = key;
        let name = ObjectName::pages(self.at.volume, self.at.at, self.at.attempt, part);
        let range = self.parts[part as usize].page_range(page as usize);
        let start = range.start;
        let sealed = match vault.store().get_range(&name, range).await {
            Ok(part) => part.bytes,
            Err(error) => return Err(vault.lost(error.into(), name, user).await),
        };
        let layer = Arc::clone(self);
        let opening = crate::blocking::run(move || {
            layer.parts[part as usize].open_page(page as usize, &sealed)
        });
        let opened = opening.await.map_err(|source| VaultError::Task { source })?;
        opened.map_err(|cause| vault.damaged(name, start, cause))
    }

    /// Bytes that a page takes in memory, about.
    pub(crate) fn page_bytes(&self, key: PageKey) -> u64 {
        page_bytes(self.page(key).raw_bytes.into())
    }
}

async fn open_part(
    vault: &Vault,
    at: MapPlace,
    part: u32,
    shape: PartShape,
    user: &ObjectName,
) -> Result<PartOpener, VaultError> {
    let name = ObjectName::pages(at.volume, at.at, at.attempt, part);
    let front = match vault.store().get_range(&name, 0..shape.front_bytes.into()).await {
        Ok(front) if front.object_bytes == shape.bytes => front.bytes,
        Ok(front) => {
            let (what, expected, found) = ("map part", shape.bytes, front.object_bytes);
            return Err(vault.damaged(name, 0, CodecError::Length { what, expected, found }));
        }
        Err(error) => return Err(vault.lost(error.into(), name, user).await),
    };
    let open = move |vault: &Vault| PartOpener::open(&front, &at, part, vault.ring());
    vault.open_aside(name, ObjectKind::Pages, open).await
}

/// Opens the layers of a map, newest first, but for those that are `opened` already and of which its manifest says the same.
///
/// # Errors
/// `Corrupt` if a part is missing, damaged, or not what the manifest says; `Limit`; `Unavailable`.
pub(crate) async fn open_layers(
    vault: &Vault,
    volume: VolumeId,
    known: &[map::Layer],
    user: &ObjectName,
    opened: &[Arc<Layer>],
) -> Result<Vec<Arc<Layer>>, LayerError> {
    let find = |known: &map::Layer| opened.iter().find(|layer| layer.known == *known).cloned();
    // Each owns what it opens: a closure that borrows it makes no future that can be spawned.
    let layers: Vec<_> = known.iter().map(|known| (known.clone(), find(known))).collect();
    let layers = futures::stream::iter(layers).map(|(known, opened)| async move {
        let attempt = known.attempt;
        let layer = match opened {
            Some(layer) => return Ok(layer),
            None => Layer::open(vault, volume, known, user).await,
        };
        layer.map(Arc::new).map_err(|error| LayerError { attempt, error })
    });
    let mut layers = std::pin::pin!(layers.buffered(LAYERS_AT_ONCE));
    let (mut opened, mut ranges) = (Vec::with_capacity(known.len()), 0);
    while let Some(layer) = layers.try_next().await? {
        ranges += layer.covers.len() as u64;
        if ranges > COVERED_RANGES_MAX {
            let (url, max) = (vault.url().to_owned(), COVERED_RANGES_MAX);
            let error = VaultError::Limit { url, what: "ranges in the deltas of a map", max };
            return Err(LayerError { attempt: layer.attempt(), error });
        }
        opened.push(layer);
    }
    Ok(opened)
}
