//! `farshore-sim`: runs seeds, tells one run as a story, hunts the seeded bugs.

#![allow(clippy::disallowed_macros, reason = "not a program of the product")]

use anyhow::{Context, Result, bail};
use clap::Parser;
use farshore_proto::bugs::Bug;
use farshore_sim::campaign::{Failure, Summary, hunt, run_alone, run_many};
use farshore_sim::run::Setup;
use farshore_sim::trace::Trace;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs agent, node and vault protocol on a simulated network, disk, store and clock.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// Seeds to run, the second not included, such as 0..300
    #[arg(long, value_parser = parse_seeds, conflicts_with_all = ["seed", "bugs"])]
    seeds: Option<Range<u64>>,
    /// One seed to run
    #[arg(long)]
    seed: Option<u64>,
    /// Tell the run of --seed step by step
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Switch a seeded bug on
    #[arg(long, value_parser = parse_bug, value_name = "NAME")]
    bug: Option<Bug>,
    /// Hunt every seeded bug and say how many seeds each took
    #[arg(long)]
    bugs: bool,
    /// Seeds after which a bug counts as not found
    #[arg(long, default_value_t = 2000, value_name = "N")]
    bug_seeds: u64,
    /// End at the first seed that fails
    #[arg(long)]
    first: bool,
    /// Threads; all cores if absent
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("give two numbers, such as 0..300")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a seed"));
    let seeds = number(first)?..number(end)?;
    if seeds.is_empty() { Err(format!("{text} has no seed in it")) } else { Ok(seeds) }
}

fn simulated() -> Vec<Bug> {
    Bug::ALL.into_iter().filter(|bug| bug.is_simulated()).collect()
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    Bug::of_name(name).filter(|bug| bug.is_simulated()).ok_or_else(|| {
        let names: Vec<&str> = simulated().into_iter().map(Bug::name).collect();
        format!("no such bug; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    match work(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(args: &Args) -> Result<bool> {
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("count the cores")?.get(),
    };
    let bugs: Vec<Bug> = args.bug.into_iter().collect();
    if args.bugs {
        return Ok(hunt_all(args, threads));
    }
    if let Some(seed) = args.seed {
        return Ok(tell_one(seed, &bugs, args.trace));
    }
    let Some(seeds) = args.seeds.clone() else {
        bail!("say which seeds: --seeds 0..300, or --seed 17 --trace, or --bugs");
    };
    let begun = Instant::now();
    let is_terminal = std::io::stderr().is_terminal();
    let count = seeds.end - seeds.start;
    let told = |summary: &Summary| {
        if is_terminal && summary.runs.is_multiple_of(20) {
            eprint!("\r{} of {count} seeds, {} failed ", summary.runs, summary.failures.len());
            // Progress that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    };
    let summary = run_many(seeds, &bugs, threads, args.first, told);
    if is_terminal {
        eprintln!();
    }
    print_summary(&summary, begun.elapsed());
    summary.failures.iter().for_each(|failure| print_failure(failure, &bugs));
    Ok(summary.failures.is_empty())
}

fn tell_one(seed: u64, bugs: &[Bug], is_told: bool) -> bool {
    let trace = if is_told { Trace::printed() } else { Trace::off() };
    let violation = match run_alone(&Setup::hunting(bugs, seed), bugs, trace) {
        Ok(outcome) => {
            say(&format!(
                "seed {seed}: {:.1} virtual seconds, {} requests, {} frames, {} points compared",
                outcome.time.as_secs_f64(),
                outcome.requests,
                outcome.frames,
                outcome.counts.points_read
            ));
            outcome.violation
        }
        Err(violation) => Some(violation),
    };
    if let Some(violation) = violation {
        say(&format!("seed {seed}: {} is broken: {}", violation.rule, violation.what));
        return false;
    }
    say(&format!("seed {seed}: every rule held"));
    true
}

/// A line of a story; whoever reads no further has seen enough.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn print_failure(failure: &Failure, bugs: &[Bug]) {
    let Failure { seed, violation } = failure;
    println!("seed {seed}: {} is broken: {}", violation.rule, violation.what);
    let bug = bugs.first().map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    println!("  replay: cargo xtask sim --seed {seed} --trace{bug}");
}

fn print_summary(summary: &Summary, time: Duration) {
    println!(
        "{} seeds in {:.1} s: {} failed; {:.1} virtual hours, {} requests, {} frames, {} puts",
        summary.runs,
        time.as_secs_f64(),
        summary.failures.len(),
        summary.time.as_secs_f64() / 3600.0,
        summary.requests,
        summary.frames,
        summary.puts
    );
    println!(
        "judged: {} marks against their disk, {} acks, {} points read back, {} reads beside writers and {} \
         that the store was away for, with {} maps, {} checkpoints of logs, {} bases, {} horizons, {} segments deleted and {} spared, {} fences, {} points that the control plane heard of \
         and {} that grew too old",
        summary.marks,
        summary.acks,
        summary.points,
        summary.reads,
        summary.reads_away,
        summary.maps,
        summary.checkpoints,
        summary.gone[0],
        summary.gone[1],
        summary.gone[2],
        summary.gone[3],
        summary.fences,
        summary.points_told,
        summary.points_dropped
    );
    let strikes: Vec<String> =
        summary.strikes.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("faults: {}", strikes.join(", "));
}

fn hunt_all(args: &Args, threads: usize) -> bool {
    println!("| seeded bug | seeds | found as | what it said |");
    println!("| --- | --- | --- | --- |");
    let wanted: Vec<Bug> = args.bug.map_or_else(simulated, |bug| vec![bug]);
    let mut is_all = true;
    for bug in wanted {
        let hunt = hunt(bug, 0, args.bug_seeds, threads);
        let (rule, what) = match &hunt.found {
            Some(failure) => (failure.violation.rule, failure.violation.what.clone()),
            None => ("not found", String::new()),
        };
        is_all &= hunt.found.is_some();
        let what: String = what.replace('\n', " ").chars().take(150).collect();
        println!("| {} | {} | {rule} | {what} |", bug.name(), hunt.runs);
    }
    is_all
}
