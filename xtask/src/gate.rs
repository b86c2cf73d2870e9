//! `cargo xtask test`: everything that must hold, in order, stopping at the first failure.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::progress::shown;
use crate::{layers, packages, progress, repo, servers, tidy};

type Step = (&'static str, fn() -> Result<()>);

/// Cheap checks first, so that a slip is told within seconds.
const STEPS: [Step; 8] = [
    ("packages", install),
    ("formatting", formatting),
    ("layers", layers::run),
    ("tidy", || tidy::run(false)),
    ("lints", lints),
    ("build", build),
    ("tests", tests),
    ("examples in documentation", examples),
];

/// Runs every step.
///
/// # Errors
/// The first step that fails.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let mut times = Vec::new();
    for (number, (name, step)) in STEPS.iter().enumerate() {
        println!("\n== {}/{} {name}", number + 1, STEPS.len());
        let begun = Instant::now();
        step().with_context(|| {
            format!("`cargo xtask test` stopped at \"{name}\" after {}", shown(start.elapsed()))
        })?;
        println!("== {name}: {}", shown(begun.elapsed()));
        times.push((*name, begun.elapsed()));
    }
    println!();
    for (name, time) in times {
        println!("{:>8}  {name}", shown(time));
    }
    println!("cargo xtask test: everything holds, {} in all", shown(start.elapsed()));
    Ok(())
}

fn install() -> Result<()> {
    packages::ensure(false)?;
    packages::ensure_nextest()?;
    servers::ensure()
}

fn formatting() -> Result<()> {
    repo::check(repo::cargo().args(["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` puts it right")
}

fn lints() -> Result<()> {
    progress::build("lints", &["clippy"], &["--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn build() -> Result<()> {
    progress::build("building", &["build"], &["--workspace"])
}

fn tests() -> Result<()> {
    progress::build("building tests", &["test", "--no-run"], &["--workspace"])?;
    progress::check(
        "tests",
        repo::cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]),
    )
}

fn examples() -> Result<()> {
    progress::check("examples", repo::cargo().args(["test", "--quiet", "--doc", "--workspace"]))
}
