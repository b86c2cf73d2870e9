//! What a byte costs: each stage alone, the whole node, and the best peers on the same data. And what history costs.

#![forbid(unsafe_code)]

mod bound;
mod cpu;
mod folder;
mod history;
mod images;
mod ingest;
mod peers;
mod plot;
mod scan;
mod stages;
mod table;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Exit status when a figure misses its target.
const EXIT_SHORT: u8 = 2;
/// Exit status for a line that cannot be understood: not the usual 2, which says that a figure is short.
const EXIT_USAGE: u8 = 64;
const SHORT_HELP: &str =
    "Ends with status 2 when a figure is short of its target, with 1 when it cannot be measured.";

/// Benchmarks of Farshore.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Folder for results: a table as Markdown and JSON, a plot as SVG
    #[arg(long, global = true, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Makes two similar disk images, a.img and b.img, out of this machine's files
    Images {
        /// Folder that gets them
        #[arg(value_name = "DIR")]
        to: PathBuf,
        /// Size of each in MiB
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=65_536))]
        mib: u64,
    },
    /// Each stage alone, their sum, the whole node, and how near it comes
    Bound {
        /// A disk image
        image: PathBuf,
    },
    /// What a long history costs: a start, a takeover, a view, a restore, and maps, beside what they are to reach
    #[command(after_help = SHORT_HELP)]
    History(history::Options),
    /// Does one job of the history in a process of its own
    #[command(hide = true)]
    HistoryChild,
    /// What a scan costs the agent: random data, zeros and a sparse file, beside what it is to reach
    Scan {
        /// Size of the disks with random data and with zeros in MiB
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..=65_536))]
        mib: u64,
    },
    /// restic, borg, rustic and Farshore on the same two images
    Peers {
        /// A disk image
        image: PathBuf,
        /// A second, similar one: only what it adds is counted
        #[arg(long, value_name = "IMAGE")]
        second: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody reads it: then there is nothing else to do either.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_SHORT),
        Err(error) => {
            tell(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says something to whoever waits. That nobody reads it is no reason to stop.
fn tell(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Runs a benchmark; says whether all that it holds to a target reaches it.
fn run(arguments: &Arguments) -> Result<bool> {
    let out = &arguments.out;
    if !matches!(arguments.what, What::HistoryChild) {
        std::fs::create_dir_all(out)?;
    }
    match &arguments.what {
        What::Images { to, mib } => images::make(to, *mib)?,
        What::Bound { image } => bound::run(image, out)?,
        What::History(options) => return history::run(options, out),
        What::HistoryChild => history::run_child()?,
        What::Scan { mib } => scan::run(*mib, out)?,
        What::Peers { image, second } => peers::run(image, second.as_deref(), out)?,
    }
    Ok(true)
}
