//! `farshore-loadgen`: open-loop load on a node's port, from many sources at once.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use farshore_api::Exit;
use farshore_loadgen::enrol::{EnrolError, clean};
use farshore_loadgen::histograms;
use farshore_loadgen::operator::{Operator, OperatorError};
use farshore_loadgen::plan::{Plan, PlanError};
use farshore_loadgen::progress::Steps;
use farshore_loadgen::run::{RunError, run};
use farshore_loadgen::site::{SiteArgs, SiteError};
use farshore_loadgen::tally::Times;
use farshore_program::{print, tell};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "farshore-loadgen", version, about = "Open-loop load on Farshore's nodes")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write from many sources at a fixed rate and measure the time until the acks
    #[command(
        after_help = "Every source writes at a fixed interval from a phase of its own, whatever \
        comes back; times count from when a write was due. The exit code is 0 only if every source \
        went through and every write was acked committed."
    )]
    Run(Box<RunArgs>),
    /// End the protection of every machine that runs have left (load-00001 ...)
    Clean {
        #[command(flatten)]
        site: SiteArgs,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    site: SiteArgs,
    #[command(flatten)]
    plan: Plan,
    /// How to print the report
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Folder for the distributions: late.hgrm, journaled.hgrm, committed.hgrm
    #[arg(long, value_name = "DIR")]
    histograms: Option<PathBuf>,
    /// Folder in which identities are kept for later runs [default: new ones, whose machines are
    /// removed at the end]
    #[arg(long, value_name = "DIR")]
    identities: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    farshore_program::begin();
    let args = match farshore_program::parse::<Args>() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    let result = match args.verb {
        Verb::Run(args) => load(*args),
        Verb::Clean { site } => remove_all(&site),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            tell!("error: {error:#}");
            exit_of(&error).into()
        }
    }
}

fn load(args: RunArgs) -> Result<Exit> {
    // Before anything is asked: a plan that cannot be carried out is told at once.
    args.plan.check()?;
    if let Some(dir) = &args.histograms {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let operator = Operator::of(&args.site.site()?)?;
    let (report, times) = run(&args.plan, &operator, args.identities)?;
    if let Some(dir) = &args.histograms {
        keep(dir, &times)?;
    }
    match args.output {
        Format::Text => say(&report.text())?,
        Format::Json => say(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
    }
    Ok(match report.is_good() {
        true => Exit::Success,
        false if report.is_interrupted => Exit::Interrupted,
        false => Exit::Failure,
    })
}

/// Prints a result; a reader that went away wants no more.
fn say(text: &str) -> Result<()> {
    match print(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn keep(dir: &Path, times: &Times) -> Result<()> {
    for (name, of) in [
        ("late.hgrm", &times.late),
        ("journaled.hgrm", &times.journaled),
        ("committed.hgrm", &times.committed),
    ] {
        let path = dir.join(name);
        histograms::write(&path, of).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn remove_all(site: &SiteArgs) -> Result<Exit> {
    let operator = Operator::of(&site.site()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let steps = Steps::of("unprotect", 0);
    let count = runtime.block_on(clean(&operator, |all| steps.step_of(all as u64)))?;
    steps.finish();
    say(&format!(
        "{count} machines are not protected any more; what is in the vault stays there\n"
    ))?;
    Ok(Exit::Success)
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(error) = error.downcast_ref::<OperatorError>() {
        return exit_of_operator(error);
    }
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return Exit::from_io(error, Exit::InputOutput);
    }
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(SiteError::Unsaid), _) | (_, Some(RunError::Plan(_))) => Exit::Usage,
        (Some(SiteError::Down { .. }), _) => Exit::Unavailable,
        (_, Some(RunError::Operator(error))) => exit_of_operator(error),
        (_, Some(RunError::Enrol(EnrolError::Operator { error, .. }))) => exit_of_operator(error),
        (_, Some(RunError::Enrol(EnrolError::Taken { .. }))) => Exit::Conflict,
        (_, Some(RunError::Enrol(EnrolError::Unplaced { .. }))) => Exit::TimedOut,
        _ if error.is::<PlanError>() => Exit::Usage,
        _ => Exit::Failure,
    }
}

fn exit_of_operator(error: &OperatorError) -> Exit {
    match error {
        OperatorError::Unreachable { .. } => Exit::Unavailable,
        OperatorError::Client { .. } => Exit::Usage,
        OperatorError::File { .. } => Exit::DataInvalid,
        OperatorError::Refused { code, .. } => (*code).into(),
        _ => Exit::Failure,
    }
}
