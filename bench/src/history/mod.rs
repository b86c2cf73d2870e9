//! What a long history costs: how soon a node is ready, how soon it has taken volumes over, how soon a view is open,
//! from a directory and from a store that takes its time for each request; what a read, a restore and maps take.
//!
//! The library is measured that the node runs, in this process or, for its memory, in one of its own; what it finds is
//! compared with what was written. What idle volumes and many marks cost is measured with real processes.

mod child;
mod delayed;
mod disk;
mod drawn;
mod idle;
mod index;
mod load;
mod maps;
mod past;
mod quiet;
mod report;
mod restore;
mod slots;
mod start;
mod takeover;
mod view;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

pub(crate) use child::run as run_child;

use report::{Figure, Report, sync_p99};
use write::{History, slots_min};

/// What the targets with a slow store are for.
const TARGET_DELAY_MS: u64 = 25;
/// A thread that ends takes what it waited with it.
const THREADS_STAY: Duration = Duration::from_secs(3600);

/// What is measured of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Theme {
    /// A node takes volumes over
    Takeover,
    /// A node starts
    Start,
    /// A view of a very large volume
    View,
    /// What maps cost
    Maps,
    /// A restore of very many runs
    Restore,
    /// A view of a volume with many maps
    Past,
    /// A view of a volume that is quiet on a busy log
    Quiet,
    /// Objects of idle volumes, alone and beside a busy one
    Idle,
    /// Slots that the marks of many volumes make
    Slots,
    /// The dedup index of many chunks
    Index,
}

/// How long a history.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Slots in each of the two logs with which a node starts
    #[arg(long, default_value_t = 1_000_000)]
    slots: u64,
    /// Slots in the log whose volumes are taken over
    #[arg(long, default_value_t = 100_000)]
    takeover_slots: u64,
    /// Volumes: of the node that starts in all, and of the log that is taken over
    #[arg(long, default_value_t = 500)]
    volumes: usize,
    /// Runs of the volume whose view is opened: some 35 bytes of disk for each
    #[arg(long, default_value_t = 200_000_000, value_parser = clap::value_parser!(u64).range(20_000..=1_000_000_000))]
    view_runs: u64,
    /// Cold reads of it
    #[arg(long, default_value_t = 200)]
    view_reads: usize,
    /// Size of the volume whose maps are counted, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1024))]
    churn_gib: u64,
    /// Runs of the volume that is restored: some 5 KiB of disk for each
    #[arg(long, default_value_t = 1_500_000, value_parser = clap::value_parser!(u64).range(1000..))]
    restore_runs: u64,
    /// Maps of the volume with a long past
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    maps: u64,
    /// Slots by which the log of a quiet volume grew since its map
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(16..))]
    quiet_slots: u64,
    /// Volumes that write once and then nothing
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=9000))]
    idle_volumes: u32,
    /// Volumes whose marks share slots
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=9000))]
    busy_volumes: u32,
    /// For how long objects and slots are counted
    #[arg(long, value_name = "MINUTES", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    load_minutes: u64,
    /// Chunks in the dedup index: some 64 bytes of disk for each
    #[arg(long, default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(10_000..=100_000_000))]
    index_chunks: u64,
    /// Measures only this; given several times, each of them
    #[arg(long, value_name = "WHAT")]
    only: Vec<Theme>,
    /// What a request to the slow store takes longer than in the directory
    #[arg(long, value_name = "MS", default_value_t = TARGET_DELAY_MS)]
    delay_ms: u64,
    /// Folder below which the histories are written: some 4 KiB for each slot
    #[arg(long, value_name = "DIR", default_value = "target/bench/history")]
    dir: PathBuf,
    /// Leaves the histories there
    #[arg(long)]
    keep: bool,
}

impl Options {
    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    fn delay_text(&self) -> String {
        format!("{} ms a request", self.delay_ms)
    }

    fn wants(&self, theme: Theme) -> bool {
        self.only.is_empty() || self.only.contains(&theme)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.volumes >= 4, "a history has 4 volumes at least");
        let least = slots_min(self.volumes as u64);
        let fewest = self.slots.min(self.takeover_slots);
        ensure!(fewest >= least, "a log with {} volumes has {least} slots at least", self.volumes);
        Ok(())
    }
}

/// Writes the histories, measures, prints and writes `history.md` and `history.json`; says whether all targets are
/// reached.
///
/// # Errors
/// If something cannot be written or read, or what is found is not what was written.
pub(crate) fn run(options: &Options, out: &Path) -> Result<bool> {
    options.check()?;
    fs::create_dir_all(&options.dir)?;
    let folder = tempfile::Builder::new().prefix("run-").tempdir_in(&options.dir)?;
    let (report, histories) = match measured(options, folder.path()) {
        Ok(measured) => measured,
        Err(error) => {
            // What failed is looked at where it lies, if anybody asked for it.
            if options.keep {
                keep(folder);
            }
            return Err(error);
        }
    };
    let text = report.text();
    println!("{text}");
    fs::write(out.join("history.md"), &text)?;
    fs::write(out.join("history.json"), serde_json::to_vec_pretty(&report)?)?;
    println!("table and numbers: {}/history.{{md,json}}", out.display());
    if options.keep {
        keep(folder);
    } else {
        histories.into_iter().try_for_each(History::clear)?;
        folder.close().context("remove the histories")?;
    }
    Ok(!report.is_short())
}

fn keep(folder: TempDir) {
    println!("the histories are in {}", folder.keep().display());
}

/// The figures, and the histories that they were found with.
fn measured(options: &Options, folder: &Path) -> Result<(Report, Vec<History>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(THREADS_STAY)
        .build()?;
    let folder = folder.canonicalize()?;
    let (figures, histories) = runtime.block_on(all(options, &folder))?;
    let sync_p99_seconds = sync_p99(&folder)?.as_secs_f64();
    Ok((Report { figures, sync_p99_seconds }, histories))
}

async fn all(options: &Options, folder: &Path) -> Result<(Vec<Figure>, Vec<History>)> {
    let (mut figures, mut histories) = (Vec::new(), Vec::new());
    let mut add = |(found, history): (Vec<Figure>, History)| {
        figures.extend(found);
        histories.push(history);
    };
    if options.wants(Theme::Takeover) {
        add(takeover::measure(options, folder).await?);
    }
    if options.wants(Theme::Start) {
        add(start::measure(options, folder).await?);
        add(start::compare(options, folder).await?);
    }
    if options.wants(Theme::View) {
        figures.extend(view::measure(options, folder).await?);
    }
    if options.wants(Theme::Maps) {
        figures.extend(maps::measure(options, folder).await?);
    }
    if options.wants(Theme::Restore) {
        figures.extend(restore::measure(options, folder).await?);
    }
    if options.wants(Theme::Past) {
        figures.extend(past::measure(options, folder).await?);
    }
    if options.wants(Theme::Quiet) {
        figures.extend(quiet::measure(options, folder).await?);
    }
    if options.wants(Theme::Idle) {
        figures.extend(idle::measure(options, folder)?);
    }
    if options.wants(Theme::Slots) {
        figures.extend(slots::measure(options, folder)?);
    }
    if options.wants(Theme::Index) {
        figures.extend(tokio::task::block_in_place(|| index::measure(options, folder))?);
    }
    Ok((figures, histories))
}

#[cfg(test)]
mod tests;
