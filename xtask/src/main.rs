//! The build's own commands: `cargo xtask test`, `demo`, `layers`, `tidy`.

#![forbid(unsafe_code)]

mod demo;
mod gate;
mod guest;
mod layers;
mod packages;
mod repo;
mod tidy;

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
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let code = if error.is::<MissingPackages>() { EXIT_USAGE } else { 1 };
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.task {
        Task::Test => gate::run(),
        Task::Demo(options) => demo::run(options),
        Task::Layers => layers::run(),
        Task::Tidy { bless } => tidy::run(*bless),
    }
}
