//! What maps cost beside the data that they are of: bytes, CPU, and how often a run is written.
//!
//! A volume gets random writes until its map is written anew as one full layer: after that all goes the same way again,
//! so what was written until then is what is written for each write for ever. The volume is smaller than that of the
//! target, and the day with it. Segments are real, and so is what writes maps and says when; only the bytes of chunks
//! are zeros, nearly all, and their ids drawn: nothing of a map depends on them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use farshore_codec::SegmentBuilder;
use farshore_engine::maps::{Input, Maps, Output, Settings};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::map::LayerKind;
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_proto::{BlockRange, ChunkId, MapAttempt};
use farshore_vault::map::{self, merged};

use super::Options;
use super::disk::{Disk, Draw, LOG};
use super::drawn::Drawn;
use super::report::{Figure, Unit};
use crate::cpu;
use crate::tell;

/// What the volume of the target has.
const TARGET_BYTES: u64 = 1 << 40;
/// New data of a day: one in so many.
const CHURN: u64 = 50;
const TARGET_CPU_PERCENT: f64 = 2.0;
/// Of the whole way from TLS to segment, as `bench bound` found it.
const NODE_CPU_SECONDS_PER_GIB: f64 = 4.65;
/// Bytes of a run of the full layer that there is at first.
const RUN_BYTES: u64 = 48 << 10;
/// Segments of a day: one in five seconds.
const DAY_SEGMENTS: u64 = 86_400 / 5;

/// Random writes.
#[derive(Clone, Copy, Debug)]
struct Writes {
    blocks: u64,
    /// Of the bytes of maps, in hundredths of those of the data.
    target_percent: f64,
}

const ALL: [Writes; 2] =
    [Writes { blocks: 16, target_percent: 1.0 }, Writes { blocks: 1, target_percent: 5.0 }];

impl Writes {
    fn bytes(self) -> u64 {
        self.blocks * BLOCK_BYTES as u64
    }

    /// Writes between two segments: more in a larger volume, whose day has more segments' time for it.
    fn of_segment(self) -> u64 {
        (TARGET_BYTES / CHURN / self.bytes()).div_ceil(DAY_SEGMENTS)
    }
}

/// What was written until the full layer was written anew.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    writes: u64,
    maps: u64,
    layers_max: usize,
    /// Runs and bytes of layers, and CPU time.
    runs: u64,
    bytes: u64,
    cpu_seconds: f64,
}

/// Maps of a volume with random writes of two sizes.
///
/// # Errors
/// If something cannot be written or read.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let size_bytes = options.churn_gib << 30;
    let mut figures = Vec::new();
    for writes in ALL {
        let kib = writes.bytes() >> 10;
        let disk = full(folder.join(format!("maps-{kib}")), size_bytes).await?;
        let (disk, cycle) = churn(disk, writes).await?;
        if !options.keep {
            disk.clear()?;
        }
        figures.extend(figures_of(size_bytes, writes, &cycle));
    }
    Ok(figures)
}

fn figures_of(size_bytes: u64, writes: Writes, cycle: &Cycle) -> Vec<Figure> {
    let kib = writes.bytes() >> 10;
    let times = cycle.runs as f64 / cycle.writes as f64;
    let run_bytes = cycle.bytes as f64 / cycle.runs as f64;
    // Of the volume that was measured they are not quite what the rules alone say: writes cut runs, or cover them.
    let times_full = times + times_of(TARGET_BYTES, writes) - times_of(size_bytes, writes);
    let share = |times: f64| 100.0 * times * run_bytes / writes.bytes() as f64;
    let data_gib = (cycle.writes * writes.bytes()) as f64 / f64::from(1 << 30);
    let cpu_per_gib = cycle.cpu_seconds / data_gib * times_full / times;
    let name =
        |what: &str| format!("maps of 1 TiB, 2 % new a day, random writes of {kib} KiB: {what}");
    vec![
        Figure::of(name("bytes ÷ new data"), Unit::Percent, share(times_full))
            .held_to(writes.target_percent)
            .with_remark(format!(
                "measured with {} GiB and a day as much smaller: {:.2} %, {} writes, {} maps, at most {} layers. From \
                 that to 1 TiB by how much more often the rules of merging write a run there",
                size_bytes >> 30,
                share(times),
                cycle.writes,
                cycle.maps,
                cycle.layers_max,
            )),
        Figure::of(
            name("CPU ÷ the node's for the data"),
            Unit::Percent,
            100.0 * cpu_per_gib / NODE_CPU_SECONDS_PER_GIB,
        )
        .held_to(TARGET_CPU_PERCENT)
        .with_remark(format!(
            "{cpu_per_gib:.2} CPU-s for 1 GiB of data, beside {NODE_CPU_SECONDS_PER_GIB} of the node by `bench bound`; \
             {:.0} CPU-s a day",
            cpu_per_gib * (TARGET_BYTES / CHURN) as f64 / f64::from(1 << 30),
        )),
        Figure::of(name("bytes a run"), Unit::Bytes, run_bytes),
        Figure::of(name("a run is written"), Unit::Ratio, times_full)
            .with_remark(format!("with {} GiB {times:.2} ×, as measured", size_bytes >> 30)),
    ]
}

/// A volume of which there is one full layer.
async fn full(directory: PathBuf, size_bytes: u64) -> Result<Disk> {
    let mut disk = Disk::make(directory, size_bytes).await?;
    disk.segment(|_| Vec::new())?;
    let attempt = MapAttempt([0xaa; 16]);
    let (runs, blocks) = (size_bytes / RUN_BYTES, size_bytes / BLOCK_BYTES as u64);
    let drawn = Drawn { kind: LayerKind::Full, number: 0, runs, blocks };
    let page = |number| drawn.page(number, &[]);
    let layer = disk.layer(LayerKind::Full, attempt, drawn.pages(), &page)?;
    disk.manifest(attempt, vec![layer])?;
    Ok(disk)
}

/// Writes segments, and maps when they are due, until one is a full layer alone.
async fn churn(mut disk: Disk, writes: Writes) -> Result<(Disk, Cycle)> {
    let mut due = Maps::new(Settings::default());
    let (mut cycle, mut out) = (Cycle::default(), Vec::new());
    // The node that wrote the first map knows its length.
    let runs = Some(disk.size_bytes / RUN_BYTES);
    due.step(committed(&disk, u64::MAX / 2), &mut out);
    ensure!(out.pop().is_some(), "so much is due");
    due.step(Input::Ended { volume: disk.volume, runs }, &mut out);
    loop {
        let count = writes.of_segment();
        segment(&mut disk, writes, count)?;
        cycle.writes += count;
        due.step(committed(&disk, count), &mut out);
        let Some(Output::Map { volume }) = out.pop() else { continue };
        let cpu = cpu::of_this_process();
        let written = map::write(&disk.vault, volume).await?.context("there is a new point")?;
        cycle.cpu_seconds += (cpu::of_this_process() - cpu).as_secs_f64();
        cycle.maps += 1;
        cycle.runs += written.new_runs;
        cycle.bytes += written.bytes;
        cycle.layers_max = cycle.layers_max.max(written.layers);
        due.step(Input::Ended { volume, runs: Some(written.runs) }, &mut out);
        if cycle.maps.is_multiple_of(20) {
            tell(&format!("maps: {} writes, {} layers", cycle.writes, written.layers));
        }
        if written.layers == 1 {
            return Ok((disk, cycle));
        }
    }
}

/// The disk's newest segment has so many extents.
fn committed(disk: &Disk, extents: u64) -> Input {
    Input::Committed { log: LOG, slot: disk.next, spans: vec![(disk.volume, extents)] }
}

/// Writes a segment with so many random writes, each of a chunk of its own.
fn segment(disk: &mut Disk, writes: Writes, count: u64) -> Result<()> {
    let mut draw = Draw::of([10, disk.next.0, writes.blocks]);
    let places = disk.size_bytes / writes.bytes();
    let mut blocks = BTreeSet::new();
    while (blocks.len() as u64) < count {
        blocks.insert(draw.below(places) * writes.blocks);
    }
    let mut bytes = vec![0; usize::try_from(writes.bytes())?];
    let fill = |builder: &mut SegmentBuilder| {
        let extent = |block| {
            let mut id = [0; 32];
            draw.fill(&mut id);
            bytes[..32].copy_from_slice(&id);
            let chunk = builder.push_chunk(ChunkId(id), &bytes);
            let range = BlockRange { block, count: writes.blocks };
            Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } }
        };
        blocks.into_iter().map(extent).collect()
    };
    disk.segment(fill)?;
    Ok(())
}

/// How often a run is written in a volume of that size, by the rules of when a map is due and what is merged with it.
fn times_of(size_bytes: u64, writes: Writes) -> f64 {
    let settings = Settings::default();
    let mut layers = vec![size_bytes / RUN_BYTES];
    let (mut new, mut written) = (0, 0);
    loop {
        let runs: u64 = layers.iter().sum();
        let extents =
            (runs / settings.runs_per_extent).clamp(settings.extents_min, settings.extents_max);
        let segments = (extents / writes.of_segment() + 1).min(settings.segments_max);
        let came = segments * writes.of_segment();
        let count = merged(&layers, came);
        let layer = came + layers.drain(..count).sum::<u64>();
        layers.insert(0, layer);
        new += came;
        written += layer;
        if layers.len() == 1 {
            return written as f64 / new as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_written_more_often_in_a_large_volume() {
        let [large, small] = ALL;
        assert!(times_of(1 << 40, small) > times_of(1 << 34, small));
        assert!(large.of_segment() < small.of_segment());
        assert!((4.0..12.0).contains(&times_of(1 << 40, large)));
    }
}
