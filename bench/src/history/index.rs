//! What the dedup index takes that has seen 10⁸ chunks: its memory, its start, its answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use farshore_ingest::index::{Index, Room};
use farshore_proto::{Attempt, ChunkId, LogId, Slot, Target, VaultId};
use farshore_vault::Location;
use farshore_vault::register::Condemned;
use serde::{Deserialize, Serialize};

use super::report::{Figure, Unit};
use super::{Options, child};
use crate::tell;

const VAULT: VaultId = VaultId([1; 16]);
/// Chunks of a segment.
const SEGMENT: u64 = 512;
/// Chunks that are asked for at a time.
const ASKED: usize = 32;
/// Neighbours that are asked for one after the other, on average.
const RUN: u64 = 64;
/// Chunks that are asked for in all, of each kind.
const QUESTIONS: u64 = 1_000_000;

const TARGET_BYTES: f64 = 10.0;
/// Before the node goes on: nothing is read but the ends of the files.
const TARGET_START_SECONDS: f64 = 1.0;
const TARGET_MISSED_PERCENT: f64 = 0.1;

/// What a process of its own is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    directory: PathBuf,
    chunks: u64,
    /// Fills it; else opens and asks it.
    fills: bool,
}

/// What it found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// Inserted, or loaded.
    seconds: f64,
    start_seconds: f64,
    tables_bytes: usize,
    process_bytes: u64,
    /// Per second: in runs, one by one, unknown.
    answers: [f64; 3],
    missed_percent: f64,
    missed_after_small_percent: f64,
}

/// Fills an index and asks it, each in a process of its own.
///
/// # Errors
/// If it cannot be written or read, or says something wrong.
pub(super) fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let (directory, chunks) = (folder.join("index"), options.index_chunks);
    let job = |fills| child::Job::Index(Job { directory: directory.clone(), chunks, fills });
    let found = |fills| match child::found(&job(fills))? {
        child::Found::Index(found) => Ok(found),
        other => anyhow::bail!("an index is not {other:?}"),
    };
    let filled = found(true)?;
    tell(&format!("index: {chunks} chunks in {:.0} s", filled.seconds));
    let found = found(false)?;
    fs::remove_dir_all(&directory).context("remove the index")?;
    let name = |what: &str| format!("dedup index of {chunks} chunks: {what}");
    let rate = |what: &str, rate: f64| Figure::of(name(what), Unit::PerSecond, rate);
    let [in_runs, single, unknown] = found.answers;
    Ok(vec![
        Figure::of(name("memory a chunk"), Unit::Bytes, found.tables_bytes as f64 / chunks as f64)
            .held_to(TARGET_BYTES)
            .with_remark(format!(
                "and {} MiB of pages; the process had {} MiB at most",
                Index::CACHE_BYTES >> 20,
                found.process_bytes >> 20
            )),
        Figure::of(name("start"), Unit::Seconds, found.start_seconds).held_to(TARGET_START_SECONDS),
        Figure::of(name("loaded beside the work"), Unit::Seconds, found.seconds),
        rate("inserts", chunks as f64 / filled.seconds),
        rate(&format!("answers, known, runs of {RUN}"), in_runs),
        rate("answers, known, one by one", single),
        rate("answers, unknown", unknown),
        Figure::of(name("known ones missed"), Unit::Percent, found.missed_percent)
            .held_to(TARGET_MISSED_PERCENT),
        Figure::of(
            name("known ones missed after a tenth as many small random ones"),
            Unit::Percent,
            found.missed_after_small_percent,
        )
        .held_to(TARGET_MISSED_PERCENT),
    ])
}

/// Does a job.
///
/// # Errors
/// As [`measure`].
pub(super) fn done(job: &Job) -> Result<Found> {
    if job.fills { fill(job) } else { asked(job) }
}

fn fill(job: &Job) -> Result<Found> {
    let mut index = Index::open(&job.directory, VAULT)?;
    index.clear(Condemned::default())?;
    let begun = Instant::now();
    insert(&mut index, 0, job.chunks, 16)?;
    Ok(Found { seconds: begun.elapsed().as_secs_f64(), ..Found::default() })
}

fn asked(job: &Job) -> Result<Found> {
    let begun = Instant::now();
    let mut index = Index::begin(&job.directory, VAULT, Room::default())?;
    let _ = index.lookup(&[id(0)], &Condemned::default());
    let start_seconds = begun.elapsed().as_secs_f64();
    while index.load_some()? {}
    let seconds = begun.elapsed().as_secs_f64();
    let questions = QUESTIONS.min(job.chunks);
    let in_runs: Vec<u64> = (0..questions)
        .map(|n| (mixed(n / RUN) % job.chunks + n % RUN).min(job.chunks - 1))
        .collect();
    let single: Vec<u64> = (0..questions / 4).map(|n| mixed(n) % job.chunks).collect();
    let unknown: Vec<u64> = (0..questions).map(|n| (1 << 60) + n).collect();
    let (runs_rate, missed) = ask(&mut index, &in_runs)?;
    let (single_rate, missed_single) = ask(&mut index, &single)?;
    let (unknown_rate, known) = ask(&mut index, &unknown)?;
    ensure!(known == unknown.len(), "something is known that never was");
    let percent = |missed: usize, of: usize| 100.0 * missed as f64 / of as f64;
    let missed_percent = percent(missed + missed_single, in_runs.len() + single.len());
    let tables_bytes = index.memory_bytes();
    insert(&mut index, 1 << 61, job.chunks / 10, 1)?;
    let (_, missed) = ask(&mut index, &in_runs)?;
    Ok(Found {
        seconds,
        start_seconds,
        tables_bytes,
        process_bytes: child::peak_bytes()?,
        answers: [runs_rate, single_rate, unknown_rate],
        missed_percent,
        missed_after_small_percent: percent(missed, in_runs.len()),
    })
}

/// Inserts `count` chunks of `blocks` blocks, numbered from `first` on.
fn insert(index: &mut Index, first: u64, count: u64, blocks: u32) -> Result<()> {
    let mut done = 0;
    while done < count {
        let now = SEGMENT.min(count - done);
        let numbers = first + done..first + done + now;
        let chunks: Vec<(ChunkId, Location)> =
            numbers.map(|n| (id(n), Location { blocks, ..location(n) })).collect();
        index.insert(&chunks)?;
        done += now;
    }
    Ok(())
}

/// How many are answered a second, and how many of them are not known.
fn ask(index: &mut Index, numbers: &[u64]) -> Result<(f64, usize)> {
    let mut missed = 0;
    let begun = Instant::now();
    for numbers in numbers.chunks(ASKED) {
        let ids: Vec<ChunkId> = numbers.iter().map(|n| id(*n)).collect();
        for (n, found) in numbers.iter().zip(index.lookup(&ids, &Condemned::default())) {
            let Some(found) = found else {
                missed += 1;
                continue;
            };
            ensure!(found == location(*n), "chunk {n} is said to be at {found:?}");
        }
    }
    Ok((numbers.len() as f64 / begun.elapsed().as_secs_f64(), missed))
}

fn location(number: u64) -> Location {
    let attempt = Attempt([3; 8]);
    let target = Target { log: LogId([7; 16]), slot: Slot(number / SEGMENT), attempt };
    let chunk = u32::try_from(number % SEGMENT).expect("below a segment's chunks");
    Location { target, chunk, blocks: 16 }
}

/// An id as a keyed hash gives it, the same for the same number.
fn id(number: u64) -> ChunkId {
    let mut state = number;
    let mut bytes = [0; 32];
    for word in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x1234_5678_9abc_def1);
        *word = mixed(state).to_be_bytes();
    }
    ChunkId(bytes)
}

/// SplitMix64.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
