//! `farshore-node`: the replication gateway of Farshore.
//!
//! `serve` takes sessions from agents on 9443, journals their frames and ships segments to the
//! vault. `export` serves one recovery point over NBD with a copy-on-write overlay.

#![deny(unsafe_code)]

mod acceptor;
mod assignments;
mod claims;
mod clock;
mod control;
mod dedup;
mod derived;
mod descriptors;
mod export;
mod failure;
mod fatal;
mod identity;
mod learning;
mod machines;
mod metrics;
mod points;
mod recover;
mod register;
#[expect(unsafe_code, reason = "glommio takes a socket over by its descriptor only")]
mod rt;
mod serve;
mod services;
mod shard;
mod state;
mod tls;
mod troubles;

use anyhow::Context;
use clap::{Parser, Subcommand};
use farshore_program::tell;
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(name = "farshore-node", version, about = "Farshore's replication gateway")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take sessions from agents and ship their changes to the vault.
    Serve(serve::ServeArgs),
    /// Serve a recovery point over NBD, read-write on an overlay.
    Export(export::ExportArgs),
}

/// Threads that wait for a store or the control plane.
fn runtime(name: &str) -> anyhow::Result<Runtime> {
    let runtime =
        Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build();
    runtime.with_context(|| format!("start the threads for {name}"))
}

/// Claims and maps have threads of their own: however much they read, the next put need not wait for it.
fn serve(args: serve::ServeArgs) -> anyhow::Result<()> {
    let (io, aside) = (runtime("io")?, runtime("aside")?);
    let served = io.block_on(serve::run(args, aside.handle()));
    // What is left of it is derived, or asked for again.
    aside.shutdown_background();
    served
}

fn main() -> ExitCode {
    farshore_program::begin();
    let args = match farshore_program::parse::<Args>() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    let filter = EnvFilter::try_from_env("FARSHORE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(farshore_program::errors)
        .with_ansi(false)
        .init();
    farshore_program::abort_on_panic();
    let result = match args.command {
        Command::Serve(args) => serve(args),
        Command::Export(args) => runtime("io").and_then(|io| io.block_on(export::run(args))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::from(failure::exit_of(&error).code())
        }
    }
}
