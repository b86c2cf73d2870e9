//! `cargo xtask nightly`: what takes too long for each change, one after another, to the end.
//!
//! Each part is a command of its own that anybody can run alone. A part that fails does not keep the
//! others from running; the table at the end says which did.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::repo;

/// A part: its name and the arguments of `cargo xtask` that run it.
type Part = (&'static str, &'static [&'static str]);

/// The short ones first: what fails at once is known at once.
const PARTS: [Part; 5] = [
    ("seeded bugs", &["sim", "--bugs"]),
    ("simulator", &["sim", "--seeds", "0..10000"]),
    ("decoders", &["fuzz", "all", "--seconds", "20"]),
    ("torture", &["torture", "--minutes", "30"]),
    ("demo", &["demo"]),
];

/// Options of the long run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these parts, by name, such as simulator,torture
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
}

/// Runs every part and prints the table, with the commit that it is of.
///
/// # Errors
/// If a name is none of a part's, or a part failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let parts = chosen(&options.only)?;
    let commit = repo::text(Command::new("git").current_dir(repo::root()).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]))
    .context("ask git for the commit")?;
    println!("nightly of {commit}");
    let mut rows = Vec::new();
    for (name, arguments) in parts {
        println!("\n== {name}: cargo xtask {}", arguments.join(" "));
        let begun = Instant::now();
        let ended = part(arguments);
        if let Err(error) = &ended {
            eprintln!("error: {name}: {error:#}");
        }
        rows.push((name, begun.elapsed(), ended.is_ok()));
    }
    println!("\nnightly of {commit}");
    for (name, time, is_ok) in &rows {
        println!("{:>10}  {:<6}  {name}", shown(*time), if *is_ok { "ok" } else { "FAILED" });
    }
    let failed: Vec<&str> =
        rows.iter().filter(|(_, _, is_ok)| !is_ok).map(|(name, _, _)| *name).collect();
    if !failed.is_empty() {
        bail!("{} of {} parts failed: {}", failed.len(), rows.len(), failed.join(", "));
    }
    println!("cargo xtask nightly: everything holds");
    Ok(())
}

fn part(arguments: &[&str]) -> Result<()> {
    repo::check(repo::cargo().args(["run", "--quiet", "--package", "xtask", "--"]).args(arguments))
}

fn chosen(only: &[String]) -> Result<Vec<Part>> {
    for name in only {
        if !PARTS.iter().any(|(known, _)| known == name) {
            let names = PARTS.map(|(known, _)| known).join(", ");
            bail!("there is no part {name:?}; there are {names}");
        }
    }
    let is_chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    Ok(PARTS.into_iter().filter(|(name, _)| is_chosen(name)).collect())
}

fn shown(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_chosen_by_name_and_a_wrong_name_is_told() {
        let names = |only: &[&str]| -> Result<Vec<&str>> {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            Ok(chosen(&only)?.into_iter().map(|(name, _)| name).collect())
        };
        assert_eq!(names(&[]).unwrap(), PARTS.map(|(name, _)| name));
        assert_eq!(names(&["torture", "simulator"]).unwrap(), ["simulator", "torture"]);
        let error = names(&["tortoise"]).unwrap_err().to_string();
        assert!(error.contains("tortoise") && error.contains("torture"), "{error}");
    }
}
