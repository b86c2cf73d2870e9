//! `cargo xtask bench`: what a byte costs, and what it costs with the best peers.

use std::process::Command;

use anyhow::{Context, Result};

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

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// `images DIR`, `bound IMAGE`, `scan`, `peers IMAGE --second IMAGE`; `--help` says more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Builds what is needed and runs the benchmark.
///
/// # Errors
/// If something cannot be built or installed, or the benchmark fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_program("mke2fs", &["e2fsprogs"])?;
    if options.words.iter().any(|word| word == "peers") {
        install_peers()?;
    }
    progress::build_packages(&["--release"], &BUILT)?;
    let program = repo::target().join("release/farshore-bench");
    repo::check(Command::new(program).args(&options.words))
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
