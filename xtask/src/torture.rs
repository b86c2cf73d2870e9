//! `cargo xtask torture`: real processes killed, stopped, starved and moved for half an hour, while
//! guests write.
//!
//! The loop itself is `farshore_e2e::torture`, which `cargo xtask test` runs for three minutes.

use anyhow::{Context, Result};

use crate::{packages, progress, repo};

/// Options of the torture.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long faults go on coming; from 10 on they last longer
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Decides the order of the faults and all writes; drawn and printed if absent
    #[arg(long)]
    seed: Option<u64>,
    /// Only these faults, in this order again and again, such as node-frozen,agent-killed
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    faults: Vec<String>,
}

/// Installs what is missing, builds everything, runs the loop and leaves its table on the terminal.
///
/// # Errors
/// If something is missing and cannot be installed, it does not build, or the loop found something that must not be.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_for_torture()?;
    let packages = ["farshore-cli", "farshore-control", "farshore-node", "farshore-agent"];
    progress::build_packages(&[], &packages)?;
    let mut test = repo::cargo();
    test.args(["test", "--quiet", "--package", "farshore-e2e", "--test", "torture"])
        .args(["--", "--nocapture"])
        .env("FARSHORE_TORTURE_MINUTES", options.minutes.to_string());
    if let Some(seed) = options.seed {
        test.env("FARSHORE_TORTURE_SEED", seed.to_string());
    }
    if !options.faults.is_empty() {
        test.env("FARSHORE_TORTURE_FAULTS", options.faults.join(","));
    }
    repo::check(&mut test).context("the torture found something; its table is above")
}
