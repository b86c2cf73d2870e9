//! What a byte costs: each stage alone, the whole node, and the best peers on the same data.

#![forbid(unsafe_code)]

mod bound;
mod cpu;
mod images;
mod ingest;
mod peers;
mod plot;
mod scan;
mod stages;
mod table;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)?;
    match arguments.what {
        What::Images { to, mib } => images::make(&to, mib),
        What::Bound { image } => bound::run(&image, &arguments.out),
        What::Scan { mib } => scan::run(mib, &arguments.out),
        What::Peers { image, second } => peers::run(&image, second.as_deref(), &arguments.out),
    }
}
