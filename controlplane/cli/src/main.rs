//! `farshore`: the operator's command.
//!
//! One module per noun holds its arguments and its verbs. `client` talks to the control plane,
//! `output` prints, `up` is the foreground supervisor of the all-in-one installation. `point export`
//! and `vault …` read the vault directly.

#![deny(unsafe_code)]

mod agent;
mod args;
mod audit;
mod client;
mod confirm;
mod endpoints;
mod events;
mod exit_codes;
mod failover;
mod failure;
mod job;
mod machine;
mod node;
mod output;
mod point;
mod policy;
mod status;
mod table;
mod up;
mod vault;

use std::process::ExitCode;

use farshore_api::Exit;
use farshore_program::tell;
use tokio::runtime::Builder;

use crate::args::{Args, Noun};
use crate::failure::{Failure, Outcome};

fn main() -> ExitCode {
    farshore_program::begin();
    let args = match farshore_program::parse() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    match run(args) {
        Ok(()) => Exit::Success.into(),
        Err(failure) => {
            tell!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// Runs the verb.
///
/// `up` gets one thread: its children are told to stop when the thread that started them ends, so
/// that one must live as long as the process. Everything else may use every core.
fn run(args: Args) -> Outcome {
    let mut runtime = match args.noun {
        Noun::Up(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().map_err(|error| {
        Failure::new(Exit::Internal, format!("cannot start the event loop: {error}"))
    })?;
    runtime.block_on(args::dispatch(args))
}
