//! `cargo xtask bench`: what a byte costs, and what it costs with the best peers.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{packages, progress, repo};

/// Version of the one peer that Debian does not have.
const RUSTIC: &str = "rustic-rs@0.11.4";
/// What the release build must hold: the processes that are measured, and what measures them.
const BUILT: [&str; 6] = [
    "farshore-cli",
    "farshore-control",
    "farshore-node",
    "farshore-agent",
    "farshore-loadgen",
    "farshore-bench",
];

/// Exit status of a benchmark in which a figure misses its target.
pub(crate) const EXIT_SHORT: u8 = 2;

/// A benchmark ran to its end, and a figure misses its target.
#[derive(Debug)]
pub(crate) struct Short;

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a figure is short of its target")
    }
}

impl std::error::Error for Short {}

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// `images DIR`, `bound IMAGE`, `scan`, `history`, `peers IMAGE --second IMAGE`; `--help` says more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Builds what is needed and runs the benchmark.
///
/// # Errors
/// If something cannot be built or installed, or the benchmark fails; [`Short`] if a figure misses its target.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_program("mke2fs", &["e2fsprogs"])?;
    if options.words.iter().any(|word| word == "peers") {
        install_peers()?;
    }
    progress::build_packages(&["--release"], &BUILT)?;
    let program = repo::target().join("release/farshore-bench");
    let mut bench = Command::new(program);
    bench.args(&options.words);
    let status = bench.status().context("start the benchmark")?;
    if status.code() == Some(i32::from(EXIT_SHORT)) {
        return Err(Short.into());
    }
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

fn install_peers() -> Result<()> {
    packages::ensure_program("restic", &["restic"])?;
    packages::ensure_program("borg", &["borgbackup"])?;
    packages::ensure_program("time", &["time"])?;
    let folder = repo::target().join("peers");
    if folder.join("bin/rustic").is_file() {
        return Ok(());
    }
    println!("installing {RUSTIC}, which takes a while");
    let mut cargo = repo::cargo();
    cargo.args(["install", "--quiet", "--locked", RUSTIC, "--root"]).arg(&folder);
    repo::check(&mut cargo).context("install rustic")
}
