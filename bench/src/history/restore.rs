//! A restore of more runs than are sorted in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use farshore_export::limits::SORT_PLACES_MAX;
use farshore_export::restore::{RestoreOptions, restore};
use farshore_proto::limits::{BLOCK_BYTES, PAGE_RUNS_MAX, SEGMENT_FRAME_BYTES};
use farshore_proto::map::{FrameAt, LayerKind, Page, PageChunk};
use farshore_proto::segment::{Extent, ExtentSource};
use farshore_proto::{BlockRange, MapAttempt, VolumeId};
use farshore_vault::{PointSelector, VolumeView};
use serde::{Deserialize, Serialize};

use super::Options;
use super::child::{self, peak_bytes};
use super::delayed::{Delayed, Fetched};
use super::disk::{Disk, Draw, frames_of, key_in, vault_in};
use super::drawn::{block_of, page_chunk};
use super::report::{Figure, Unit};
use crate::cpu;
use crate::folder::bytes_below;
use crate::tell;

const TARGET_MEMORY_BYTES: f64 = (512_u64 << 20) as f64;
/// Of the frames that the point has something in.
const TARGET_FETCHED: f64 = 1.15;
/// Chunks of a block in a segment: 32 MiB.
const SEGMENT_CHUNKS: u64 = 8192;
/// Chunks of a block in a frame.
const FRAME_CHUNKS: u64 = (SEGMENT_FRAME_BYTES / BLOCK_BYTES) as u64;
/// Of so many frames there is one that nothing of the point lies in: more are not fetched along with their neighbours.
const UNWANTED: u64 = 10;
/// Bytes of a block that do not compress; the others are zero.
const DENSE_BYTES: usize = BLOCK_BYTES / 4;
/// So many runs are of one chunk, taken together.
const SHARED: u64 = 6;
/// Blocks that lie side by side, and as many that are zero behind them.
const PATCH_BLOCKS: u64 = 64;

/// A restore to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    directory: PathBuf,
    volume: u128,
    to: PathBuf,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    written_bytes: u64,
    fetched_bytes: u64,
    /// Bytes of segments that were fetched again.
    again_bytes: u64,
    seconds: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
}

/// Restores the volume of a job.
///
/// # Errors
/// If it cannot be read or written.
pub(super) async fn done(job: &Job) -> Result<Found> {
    let delayed = Delayed::noting(&vault_in(&job.directory))?;
    let (vault, store) = delayed.open(&key_in(&job.directory)?).await?;
    let volume = VolumeId(job.volume.to_be_bytes());
    let view = VolumeView::open(&vault, volume, PointSelector::Latest).await?;
    store.take_fetched();
    let (begun, cpu) = (Instant::now(), cpu::of_this_process());
    let report = restore(&view, &job.to, RestoreOptions::default(), |_| {}).await?;
    Ok(Found {
        written_bytes: report.written_bytes,
        fetched_bytes: report.fetched_bytes,
        again_bytes: again_bytes(store.take_fetched()),
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: (cpu::of_this_process() - cpu).as_secs_f64(),
        peak_bytes: peak_bytes()?,
    })
}

/// Bytes that were fetched more than once.
fn again_bytes(mut fetched: Vec<Fetched>) -> u64 {
    fetched.sort_unstable_by(|(one, a), (other, b)| (one, a.start).cmp(&(other, b.start)));
    let mut again = 0;
    for of_object in fetched.chunk_by(|(one, _), (other, _)| one == other) {
        let mut end = 0;
        for (_, range) in of_object {
            again += end.min(range.end).saturating_sub(range.start);
            end = end.max(range.end);
        }
    }
    again
}

/// A volume that was written.
struct Written {
    disk: Disk,
    /// Stored bytes of the frames that it has something in.
    frames_bytes: u64,
    frames: usize,
    remark: String,
}

/// A restore to a sparse file.
///
/// # Errors
/// If it cannot be written, or what is restored is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let runs = options.restore_runs;
    let Written { disk, frames_bytes, frames, remark } =
        write(runs, folder.join("restore")).await?;
    let to = disk.directory.join("restored");
    let job = Job {
        directory: disk.directory.clone(),
        volume: u128::from_be_bytes(disk.volume.0),
        to: to.clone(),
    };
    let child::Found::Restore(found) = child::found(&child::Job::Restore(job))? else {
        bail!("another job was done");
    };
    check(runs, &to, &found)?;
    if !options.keep {
        disk.clear()?;
    }
    let name = |what: &str| format!("restore of {runs} runs of a block in {frames} frames: {what}");
    let per_second = found.written_bytes as f64 / found.cpu_seconds;
    Ok(vec![
        Figure::of(name("memory of a process"), Unit::Bytes, found.peak_bytes as f64)
            .held_to(TARGET_MEMORY_BYTES)
            .with_remark(format!(
                "VmHWM of one that opens the view and restores; {SORT_PLACES_MAX} runs are sorted in memory. {remark}"
            )),
        Figure::of(
            name("fetched bytes ÷ those of the frames"),
            Unit::Ratio,
            found.fetched_bytes as f64 / frames_bytes as f64,
        )
        .held_to(TARGET_FETCHED)
        .with_remark(format!(
            "of each {UNWANTED} frames that are stored side by side, {:.0} KiB each, one is not of the point",
            frames_bytes as f64 / frames as f64 / 1024.0
        )),
        Figure::of(name("fetched a second time"), Unit::Bytes, found.again_bytes as f64)
            .held_to(0.0),
        Figure::of(name("bytes restored"), Unit::BytesPerCpuSecond, per_second).with_remark(
            format!("{:.1} s, {:.1} CPU-s; to a sparse file", found.seconds, found.cpu_seconds),
        ),
    ])
}

/// The chunk of a run.
fn chunk_of(run: u64, chunks: u64) -> u64 {
    let chunk = Draw::of([7, run, 0]).below(chunks);
    let is_unwanted = chunk / FRAME_CHUNKS % UNWANTED == UNWANTED - 1;
    if is_unwanted { chunk - FRAME_CHUNKS } else { chunk }
}

fn chunks_of(runs: u64) -> u64 {
    (runs / SHARED).next_multiple_of(SEGMENT_CHUNKS)
}

/// The block of a run.
fn block_at(run: u64) -> u64 {
    run + run / PATCH_BLOCKS * PATCH_BLOCKS
}

fn bytes_of(chunk: u64) -> Vec<u8> {
    let mut bytes = block_of(Draw::of([8, chunk, 0]).next());
    bytes[DENSE_BYTES..].fill(0);
    bytes
}

/// Compares some blocks of what was restored with what was written.
fn check(runs: u64, to: &Path, found: &Found) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let wrote = runs * BLOCK_BYTES as u64;
    ensure!(
        found.written_bytes == wrote,
        "{} bytes are restored, not {wrote}",
        found.written_bytes
    );
    let file = std::fs::File::open(to)?;
    let mut block = vec![0; BLOCK_BYTES];
    let step = usize::try_from(runs / 1000 + 1)?;
    for run in (0..runs).step_by(step) {
        file.read_exact_at(&mut block, block_at(run) * BLOCK_BYTES as u64)?;
        let chunk = chunk_of(run, chunks_of(runs));
        ensure!(block == bytes_of(chunk), "run {run} is not what was written");
    }
    Ok(())
}

async fn write(runs: u64, directory: PathBuf) -> Result<Written> {
    let begun = Instant::now();
    let size_bytes = (block_at(runs) + PATCH_BLOCKS) * BLOCK_BYTES as u64;
    let mut disk = Disk::make(directory, size_bytes).await?;
    let chunks = chunks_of(runs);
    let mut places: Vec<(FrameAt, PageChunk)> = Vec::new();
    for start in (0..chunks).step_by(usize::try_from(SEGMENT_CHUNKS)?) {
        let hasher = disk.vault.hasher().clone();
        let built = disk.segment(|builder| {
            for chunk in start..start + SEGMENT_CHUNKS {
                let bytes = bytes_of(chunk);
                builder.push_chunk(hasher.id(&bytes), &bytes);
            }
            Vec::new()
        })?;
        let frames = frames_of(&built);
        for (number, chunk) in (0..).zip(&built.table.chunks) {
            let farshore_proto::segment::ChunkPlace::Here { frame, .. } = chunk.place else {
                bail!("a chunk is elsewhere");
            };
            let page = page_chunk(number, chunk, 0).context("a chunk is here")?;
            places.push((frames[frame as usize], page));
        }
    }
    let attempt = MapAttempt([0xaa; 16]);
    let page = |number| page_of(number, runs, &places);
    let pages = runs.div_ceil(PAGE_RUNS_MAX as u64);
    let layer = disk.layer(LayerKind::Full, attempt, pages, &page)?;
    disk.manifest(attempt, vec![layer])?;
    disk.sync()?;
    let place_of = |run| &places[usize::try_from(chunk_of(run, chunks)).expect("below a length")];
    let touched: BTreeSet<FrameAt> = (0..runs).map(|run| place_of(run).0).collect();
    let gib = bytes_below(&disk.directory)? as f64 / f64::from(1 << 30);
    tell(&format!("restore: {gib:.1} GiB in {:.0?}", begun.elapsed()));
    Ok(Written {
        disk,
        frames_bytes: touched.iter().map(|at| u64::from(at.frame.stored_bytes)).sum(),
        frames: touched.len(),
        remark: format!("{gib:.1} GiB of history"),
    })
}

fn page_of(number: u64, runs: u64, places: &[(FrameAt, PageChunk)]) -> Page {
    let mut page = Page::default();
    let mut frames: BTreeMap<FrameAt, u32> = BTreeMap::new();
    let mut chunks: BTreeMap<u64, u32> = BTreeMap::new();
    let start = number * PAGE_RUNS_MAX as u64;
    for run in start..(start + PAGE_RUNS_MAX as u64).min(runs) {
        let chunk = chunk_of(run, places.len() as u64);
        let chunk = *chunks.entry(chunk).or_insert_with(|| {
            let (frame, chunk) = places[usize::try_from(chunk).expect("below a length")];
            let next = u32::try_from(frames.len()).expect("a page has a limit");
            let number = *frames.entry(frame).or_insert_with(|| {
                page.frames.push(frame);
                next
            });
            page.chunks.push(PageChunk { frame: number, ..chunk });
            u32::try_from(page.chunks.len() - 1).expect("a page has a limit")
        });
        let range = BlockRange { block: block_at(run), count: 1 };
        page.runs.push(Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } });
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_again_is_counted() {
        let of = |object: &str, range| (object.to_owned(), range);
        let once = vec![of("a", 0..10), of("b", 0..10), of("a", 10..20)];
        assert_eq!(again_bytes(once.clone()), 0);
        let twice = [once, vec![of("a", 5..12), of("b", 2..3)]].concat();
        assert_eq!(again_bytes(twice), 8);
    }
}
