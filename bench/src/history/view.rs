//! A view of a volume too large to be read whole: what opening it takes, and a read that finds nothing in memory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::map::LayerKind;
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_proto::{BlockRange, MapAttempt, VolumeId};
use farshore_vault::view::flatten;
use farshore_vault::{PointSelector, VolumeView};
use serde::{Deserialize, Serialize};

use super::Options;
use super::child::{self, peak_bytes};
use super::delayed::Requests;
use super::disk::{Disk, Draw};
use super::drawn::{Drawn, Real, block_of, real_frames};
use super::report::{Figure, Unit};
use crate::folder::bytes_below;
use crate::tell;

/// From a store that takes [`super::TARGET_DELAY_MS`] for each request.
const TARGET_OPEN_SECONDS: f64 = 2.0;
const TARGET_MEMORY_BYTES: f64 = (256_u64 << 20) as f64;
const TARGET_READ_REQUESTS: f64 = 2.0;
const TARGET_READ_BYTES: f64 = 1.5 * (1_u64 << 20) as f64;
/// What the volume of the target has, and in how many runs.
const TARGET_BLOCKS: u64 = (10 << 40) / BLOCK_BYTES as u64;
const TARGET_RUNS: u64 = 200_000_000;
/// Fewest runs of a delta.
const DELTA_RUNS_MIN: u64 = 8;
/// Segments behind the map, and extents of each.
const TAIL_SEGMENTS: u64 = 8;
const TAIL_EXTENTS: u64 = 40;
/// Reads of what is behind the map.
const TAIL_READS: u64 = 4;

/// A block to be read, and of what it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Read {
    block: u64,
    pub(super) seed: u64,
}

/// A view to be opened and read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    directory: PathBuf,
    volume: u128,
    delay_ms: u64,
    /// Each in a page and a frame of its own.
    pub(super) reads: Vec<Read>,
}

/// What that took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    open_seconds: f64,
    open: Requests,
    open_peak_bytes: u64,
    /// The most that one read took.
    read_requests: u64,
    read_bytes: u64,
    read_median_seconds: f64,
    peak_bytes: u64,
}

/// Opens the view of a job and reads; refuses what is not what was written.
///
/// # Errors
/// If it cannot be opened or read, or holds something else.
pub(super) async fn done(job: &Job) -> Result<Found> {
    let delay = Duration::from_millis(job.delay_ms);
    let (vault, store) = child::open(&job.directory, delay).await?;
    let volume = VolumeId(job.volume.to_be_bytes());
    let begun = Instant::now();
    let view = VolumeView::open(&vault, volume, PointSelector::Latest).await?;
    let mut found = Found {
        open_seconds: begun.elapsed().as_secs_f64(),
        open: store.take_requests(),
        open_peak_bytes: peak_bytes()?,
        ..Found::default()
    };
    let mut times = Vec::new();
    for Read { block, seed } in &job.reads {
        let begun = Instant::now();
        let pieces = view.read(BlockRange { block: *block, count: 1 }).await?;
        times.push(begun.elapsed());
        let requests = store.take_requests();
        found.read_requests = found.read_requests.max(requests.count);
        found.read_bytes = found.read_bytes.max(requests.bytes);
        ensure!(flatten(&pieces) == block_of(*seed), "block {block} is not what was written");
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    found.read_median_seconds = median.as_secs_f64();
    found.peak_bytes = peak_bytes()?;
    Ok(found)
}

/// A view that was written, and what is to be read of it.
pub(super) struct Written {
    disk: Disk,
    reads: Vec<Read>,
    remark: String,
}

impl Written {
    /// What a process is to do with it.
    pub(super) fn job(&self, delay_ms: u64) -> Job {
        Job {
            directory: self.disk.directory.clone(),
            volume: u128::from_be_bytes(self.disk.volume.0),
            delay_ms,
            reads: self.reads.clone(),
        }
    }
}

/// Opening a view of 10 TiB, or of as many runs as asked for, and cold reads of it.
///
/// # Errors
/// If it cannot be written, or what is read is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let written = write(options, folder.join("view")).await?;
    let job = child::Job::View(written.job(options.delay_ms));
    let child::Found::View(found) = child::found(&job)? else { bail!("another job was done") };
    let Written { disk, reads, remark } = written;
    let count = reads.len();
    let size = disk.size_bytes as f64 / (1_u64 << 40) as f64;
    let name = format!("view of {size:.2} TiB in {} runs, {{}}", options.view_runs);
    let name = |what: &str| name.replace("{}", what);
    let delay = options.delay_text();
    if !options.keep {
        disk.clear()?;
    }
    let median = format!("a cold read of 4 KiB, {delay}: median of {count}");
    Ok(vec![
        Figure::of(name(&format!("open, {delay}")), Unit::Seconds, found.open_seconds)
            .held_to(TARGET_OPEN_SECONDS)
            .with_requests(found.open)
            .with_remark(remark),
        Figure::of(name("memory of a process"), Unit::Bytes, found.peak_bytes as f64)
            .held_to(TARGET_MEMORY_BYTES)
            .with_remark(format!(
                "VmHWM of one that opens vault and view and reads; {:.1} MiB when the view was open",
                found.open_peak_bytes as f64 / f64::from(1 << 20)
            )),
        Figure::of(
            name(&format!("a cold read of 4 KiB: requests, worst of {count}")),
            Unit::Requests,
            found.read_requests as f64,
        )
        .held_to(TARGET_READ_REQUESTS)
        .with_remark("each in a page and a frame that was not read before".to_owned()),
        Figure::of(
            name(&format!("a cold read of 4 KiB: fetched, worst of {count}")),
            Unit::Bytes,
            found.read_bytes as f64,
        )
        .held_to(TARGET_READ_BYTES)
        .with_remark("frames of 512 KiB that do not compress".to_owned()),
        Figure::of(name(&median), Unit::Seconds, found.read_median_seconds),
    ])
}

/// The deltas of a map with so many runs, newest first.
fn deltas(runs: u64, blocks: u64) -> Vec<Drawn> {
    let small = (runs * 16_384 / TARGET_RUNS).max(DELTA_RUNS_MIN);
    let large = (runs / 200).max(DELTA_RUNS_MIN);
    let of = |(number, runs)| Drawn { kind: LayerKind::Delta, number, runs, blocks };
    (1..).zip([small, small, small, large]).map(of).collect()
}

/// Writes the view.
///
/// # Errors
/// If it cannot be written.
pub(super) async fn write(options: &Options, directory: PathBuf) -> Result<Written> {
    let runs = options.view_runs;
    let blocks =
        u64::try_from(u128::from(TARGET_BLOCKS) * u128::from(runs) / u128::from(TARGET_RUNS))?;
    let begun = Instant::now();
    let mut disk = Disk::make(directory, blocks * BLOCK_BYTES as u64).await?;
    let real = real_frames(&mut disk, options.view_reads + options.view_reads / 4)?;
    let full = Drawn { kind: LayerKind::Full, number: 0, runs, blocks };
    let mut drawn = deltas(runs, blocks);
    drawn.push(full);
    let mut layers = Vec::new();
    // From the oldest on, each at a place of its own.
    for layer in drawn.iter().rev() {
        disk.segment(|_| Vec::new())?;
        let attempt = MapAttempt(u128::from(layer.number + 1).to_be_bytes());
        let page = |number| layer.page(number, &real);
        layers.insert(0, disk.layer(layer.kind, attempt, layer.pages(), &page)?);
    }
    let parts: usize = layers.iter().map(|layer| layer.parts.len()).sum();
    let bytes: u64 = layers.iter().flat_map(|layer| &layer.parts).map(|part| part.bytes).sum();
    let all_runs: u64 = layers.iter().map(|layer| layer.runs).sum();
    let texts: Vec<String> = layers.iter().map(|layer| layer.runs.to_string()).collect();
    disk.manifest(MapAttempt([0xaa; 16]), layers)?;
    let tail = tail(&mut disk, blocks)?;
    disk.sync()?;
    let reads = reads(options.view_reads, &drawn, &real, (&tail, tail_stride(blocks)))?;
    let gib = bytes_below(&disk.directory)? as f64 / f64::from(1 << 30);
    tell(&format!("view: {gib:.1} GiB in {:.0?}", begun.elapsed()));
    let remark = format!(
        "{gib:.1} GiB of history; layers of {} runs in {parts} parts, {:.1} bytes a run; {} extents in {TAIL_SEGMENTS} \
         segments behind the map",
        texts.join(", "),
        bytes as f64 / all_runs as f64,
        TAIL_SEGMENTS * TAIL_EXTENTS,
    );
    Ok(Written { disk, reads, remark })
}

/// Every so many blocks one is behind the map.
fn tail_stride(blocks: u64) -> u64 {
    blocks / (TAIL_SEGMENTS * TAIL_EXTENTS)
}

/// Writes what is behind the map; says what can be read there.
fn tail(disk: &mut Disk, blocks: u64) -> Result<Vec<Read>> {
    let mut reads = Vec::new();
    for segment in 0..TAIL_SEGMENTS {
        let hasher = disk.vault.hasher().clone();
        disk.segment(|builder| {
            let extents = (0..TAIL_EXTENTS).map(|extent| {
                let number = segment * TAIL_EXTENTS + extent;
                let seed = Draw::of([5, segment, extent]).next();
                let bytes = block_of(seed);
                let chunk = builder.push_chunk(hasher.id(&bytes), &bytes);
                let block = number * tail_stride(blocks);
                if extent == 0 {
                    reads.push(Read { block, seed });
                }
                let range = BlockRange { block, count: 1 };
                Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } }
            });
            extents.collect()
        })?;
    }
    Ok(reads)
}

/// So many blocks, each in a page and a frame of its own: of small deltas all pages, of the others drawn ones.
fn reads(
    count: usize,
    layers: &[Drawn],
    real: &[Real],
    (tail, stride): (&[Read], u64),
) -> Result<Vec<Read>> {
    let is_small = |layer: &&Drawn| layer.pages() <= 4;
    let small = layers.iter().enumerate().filter(|(_, layer)| is_small(layer));
    let mut wanted: Vec<(usize, u64)> =
        small.flat_map(|(at, layer)| (0..layer.pages()).map(move |page| (at, page))).collect();
    let mut draw = Draw(6);
    let tries = 1000 * count as u64;
    wanted.extend((0..tries).map(|number| {
        // The full layer and the largest delta in turn.
        let at = layers.len() - 1 - usize::from(number.is_multiple_of(2));
        (at, draw.below(layers[at].pages()))
    }));
    let (mut frames, mut pages) = (BTreeSet::new(), BTreeSet::new());
    let mut reads: Vec<Read> = tail.iter().take(usize::try_from(TAIL_READS)?).copied().collect();
    for (at, page) in wanted {
        if reads.len() == count {
            break;
        }
        let (block, frame) = layers[at].first(page, real.len());
        let is_hidden =
            layers[..at].iter().any(|newer| newer.covers(block)) || block.is_multiple_of(stride);
        if !is_hidden && !frames.contains(&frame) && pages.insert((at, page)) {
            frames.insert(frame);
            reads.push(Read { block, seed: real[frame].seed });
        }
    }
    let missing = count - reads.len();
    (missing == 0).then_some(reads).with_context(|| format!("{missing} reads are not cold"))
}
