//! The build's own commands: `cargo xtask test`, `demo`, `sim`, `torture`, `nightly`, `layers`, `tidy`.

#![allow(clippy::disallowed_macros, reason = "not a program of the product")]
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod fuzz;
mod gate;
mod guest;
mod layers;
mod nightly;
mod packages;
mod progress;
mod repo;
mod servers;
mod sim;
mod tidy;
mod torture;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::packages::MissingPackages;

/// Exit status when the machine lacks something that only its owner can install.
const EXIT_USAGE: u8 = 64;

/// Farshore's build commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that must hold: formatting, rules, lints, all tests.
    Test,
    /// The main job in three minutes: a real server replicated, killed, booted from the vault.
    Demo(demo::Options),
    /// The simulator: `--seeds 0..300`, `--seed 17 --trace`, `--bugs`; `--help` says more.
    #[command(disable_help_flag = true)]
    Sim(sim::Options),
    /// Looks for inputs that a decoder does not bear, guided by coverage.
    Fuzz(fuzz::Options),
    /// Real kills for half an hour: processes killed, stopped, starved and moved under writing guests.
    Torture(torture::Options),
    /// What takes hours: 10,000 seeds, every seeded bug, the decoders, torture, the demo; a table at the end.
    Nightly(nightly::Options),
    /// What a byte costs: `images DIR`, `bound IMAGE`, `scan`, `history`, `peers IMAGE`; `--help` says more.
    #[command(disable_help_flag = true)]
    Bench(bench::Options),
    /// Installs the object stores that tests run against, below target/servers.
    Servers,
    /// Checks which crate may know which, and where the runtimes may be named.
    Layers,
    /// Checks file sizes, names, leftovers, format documents and links.
    Tidy {
        /// Rewrites the codec hashes in docs/formats after their documents were looked at.
        #[arg(long)]
        bless: bool,
    },
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::as_compiler() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let code = match () {
                () if error.is::<MissingPackages>() => EXIT_USAGE,
                () if error.is::<bench::Short>() => bench::EXIT_SHORT,
                () => 1,
            };
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.task {
        Task::Test => gate::run(),
        Task::Demo(options) => demo::run(options),
        Task::Sim(options) => sim::run(options),
        Task::Fuzz(options) => fuzz::run(options),
        Task::Torture(options) => torture::run(options),
        Task::Nightly(options) => nightly::run(options),
        Task::Bench(options) => bench::run(options),
        Task::Servers => servers::ensure(),
        Task::Layers => layers::run(),
        Task::Tidy { bless } => tidy::run(*bless),
    }
}
