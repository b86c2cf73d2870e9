//! What a long history costs: how soon a node is ready, and how soon it has taken volumes over, from a directory and
//! from a store that takes its time for each request.
//!
//! The library is measured that the node runs, in this process; what it finds is compared with what was written.

mod delayed;
mod report;
mod start;
mod takeover;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_vault::Vault;
use tempfile::TempDir;

use delayed::Delayed;
use report::{Report, sync_p99};
use write::{History, slots_min};

/// What the targets with a slow store are for.
const TARGET_DELAY_MS: u64 = 25;
/// A thread that ends takes what it waited with it.
const THREADS_STAY: Duration = Duration::from_secs(3600);

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
    let parts = runtime.block_on(async {
        Ok::<_, anyhow::Error>([
            takeover::measure(options, &folder).await?,
            start::measure(options, &folder).await?,
            start::compare(options, &folder).await?,
        ])
    })?;
    let (figures, histories): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let sync_p99_seconds = sync_p99(&folder)?.as_secs_f64();
    Ok((Report { figures: figures.concat(), sync_p99_seconds }, histories))
}

/// Opens the vault of a history as it is from far away. What that asked is not counted.
async fn delayed_vault(history: &History, delay: Duration) -> Result<(Vault, Arc<Delayed>)> {
    let delayed = Arc::new(Delayed::over(&history.directory, delay)?);
    let vault = Vault::open(&Delayed::store(&delayed), &history.key).await?;
    delayed.take_requests();
    Ok((vault, delayed))
}

#[cfg(test)]
mod tests;
