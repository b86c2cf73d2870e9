//! `cargo xtask sim`: builds the simulator, fast and with every assertion on, and runs it.

use anyhow::Result;
use clap::Args;

use crate::repo;

/// Everything is for the simulator itself.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// If it cannot be built, or a rule was broken; it has said which and how to replay it.
pub(crate) fn run(options: &Options) -> Result<()> {
    repo::check(
        repo::cargo()
            .args(["run", "--quiet", "--profile", "sim", "--package", "farshore-sim", "--"])
            .args(&options.arguments),
    )
}
