//! `farshore-node`: the replication gateway of Farshore.
//!
//! `serve` takes sessions from agents on 9443, journals their frames and ships segments to the
//! vault. `export` serves one recovery point over NBD with a copy-on-write overlay.

#![deny(unsafe_code)]

mod acceptor;
mod assignments;
mod claims;
mod control;
mod dedup;
mod derived;
mod descriptors;
mod export;
mod failure;
mod fatal;
mod identity;
mod metrics;
mod points;
mod recover;
#[expect(unsafe_code, reason = "glommio takes a socket over by its descriptor only")]
mod rt;
mod serve;
mod services;
mod shard;
mod state;
mod tls;
mod troubles;

use clap::{Parser, Subcommand};
use farshore_program::tell;
use std::process::ExitCode;
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
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match args.command {
                Command::Serve(args) => serve::run(args).await,
                Command::Export(args) => export::run(args).await,
            }
        }),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::from(failure::exit_of(&error).code())
        }
    }
}
