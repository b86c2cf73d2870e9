//! A view of a volume with a long past: many maps, and as many segments behind the newest as there may be.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use farshore_codec::SegmentBuilder;
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_vault::{PointSelector, VolumeView, map};

use super::disk::{Disk, Draw};
use super::drawn::block_of;
use super::report::{Clock, Figure};
use super::{Options, child};
use crate::tell;

/// From a store that takes [`super::TARGET_DELAY_MS`] for each request.
const TARGET_SECONDS: f64 = 2.0;
/// Segments behind the newest map: at 256 another one is due.
const BEHIND: u64 = 250;
/// Extents of a segment.
const EXTENTS: u64 = 64;
const SIZE_BYTES: u64 = 1 << 36;

/// Opening the latest view.
///
/// # Errors
/// If the past cannot be written, or what is opened is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut disk = Disk::make(folder.join("past"), SIZE_BYTES).await?;
    let mut layers = 0;
    for number in 0..options.maps {
        segment(&mut disk)?;
        let written = map::write(&disk.vault, disk.volume).await?;
        layers = written.context("each mark is mapped")?.layers;
        if number % 100 == 99 {
            tell(&format!("past: {} maps", number + 1));
        }
    }
    for _ in 0..BEHIND {
        segment(&mut disk)?;
    }
    let name = format!(
        "view of a volume with {} maps and {BEHIND} segments behind the newest",
        options.maps
    );
    let remark = format!("{EXTENTS} extents a segment; the newest map has {layers} layers");
    Ok(vec![open_latest(options, disk, &name, remark).await?])
}

/// Opens the latest view of a disk from a slow store, and takes the disk away.
///
/// # Errors
/// If it cannot be opened, or its point is not the newest that was written.
pub(super) async fn open_latest(
    options: &Options,
    disk: Disk,
    name: &str,
    remark: String,
) -> Result<Figure> {
    disk.sync()?;
    let (vault, store) = child::open(&disk.directory, options.delay()).await?;
    let clock = Clock::start()?;
    let view = VolumeView::open(&vault, disk.volume, PointSelector::Latest).await?;
    let took = clock.stop()?;
    let found = view.point().seq;
    ensure!(found == disk.last, "the newest point is {found}");
    let figure = Figure::timed(format!("{name}: open, {}", options.delay_text()), took)
        .held_to(TARGET_SECONDS)
        .with_requests(store.take_requests())
        .with_remark(remark);
    if !options.keep {
        disk.clear()?;
    }
    Ok(figure)
}

/// Writes a segment with a few extents.
fn segment(disk: &mut Disk) -> Result<()> {
    let mut draw = Draw::of([9, disk.next.0, 0]);
    let hasher = disk.vault.hasher().clone();
    let mut blocks = BTreeSet::new();
    while (blocks.len() as u64) < EXTENTS {
        blocks.insert(draw.below(SIZE_BYTES / BLOCK_BYTES as u64));
    }
    let fill = |builder: &mut SegmentBuilder| {
        let extent = |block| {
            let bytes = block_of(draw.next());
            let chunk = builder.push_chunk(hasher.id(&bytes), &bytes);
            let range = BlockRange { block, count: 1 };
            Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } }
        };
        blocks.into_iter().map(extent).collect()
    };
    disk.segment(fill)?;
    Ok(())
}
