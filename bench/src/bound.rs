//! How near the node comes to the sum of its stages.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::ingest::Ingest;
use crate::{stages, table};

/// Rounds of the stages and of the whole way, by turns; the least time of each counts, as what
/// disturbs only adds.
const ROUNDS: usize = 3;

/// Everything, in CPU-seconds per GiB of data that is not zero.
#[derive(Debug, Serialize)]
struct Report {
    image_bytes: u64,
    data_bytes: u64,
    /// Of these, in chunks that differ.
    unique_bytes: u64,
    stored_bytes: u64,
    stages: Vec<(String, f64)>,
    sum: f64,
    node: f64,
    /// The whole way in each round.
    node_rounds: Vec<f64>,
    agent: f64,
    achieved: f64,
    node_peak_bytes: u64,
}

/// Measures and prints.
///
/// # Errors
/// If the image cannot be read or a process fails.
pub(crate) fn run(image: &Path, out: &Path) -> Result<()> {
    let data = stages::data_of(image)?;
    ensure!(!data.is_empty(), "{} holds nothing but zeros", image.display());
    let gib = data.len() as f64 / f64::from(1 << 30);
    let folder = tempfile::tempdir_in(out).context("a folder beside the results")?;
    let mut least: Vec<(String, Duration)> = Vec::new();
    let mut costs = Vec::new();
    let mut unique_bytes = 0;
    for round in 1..=ROUNDS {
        println!("round {round} of {ROUNDS}: each stage");
        let (stages, unique) = stages::all(&data, folder.path())?;
        unique_bytes = unique;
        for (number, stage) in stages.into_iter().enumerate() {
            match least.get_mut(number) {
                Some((_, cpu)) => *cpu = stage.cpu.min(*cpu),
                None => least.push((stage.name.to_owned(), stage.cpu)),
            }
        }
        println!("round {round} of {ROUNDS}: the whole way");
        let ingest = Ingest::start()?;
        costs.push(ingest.take("image", image)?);
        ingest.stop()?;
    }
    let data_bytes = data.len() as u64;
    let cost = costs.iter().min_by_key(|cost| cost.node.cpu).context("a round")?;
    let per_gib = |cpu: Duration| cpu.as_secs_f64() / gib;
    let stages: Vec<(String, f64)> =
        least.into_iter().map(|(name, cpu)| (name, per_gib(cpu))).collect();
    let sum = stages.iter().map(|(_, seconds)| seconds).sum();
    let node = per_gib(cost.node.cpu);
    let report = Report {
        image_bytes: fs::metadata(image)?.len(),
        data_bytes,
        unique_bytes,
        stored_bytes: cost.stored_bytes,
        stages,
        sum,
        node,
        node_rounds: costs.iter().map(|cost| per_gib(cost.node.cpu)).collect(),
        agent: per_gib(cost.agent),
        achieved: sum / node,
        node_peak_bytes: cost.node.peak_bytes,
    };
    let text = shown(&report);
    println!("\n{text}");
    fs::write(out.join("bound.md"), &text)?;
    fs::write(out.join("bound.json"), serde_json::to_vec_pretty(&report)?)?;
    println!("table and numbers: {}/bound.{{md,json}}", out.display());
    Ok(())
}

fn shown(report: &Report) -> String {
    let row = |name: &str, seconds: f64| vec![name.to_owned(), format!("{seconds:.2}")];
    let mut rows = vec![vec!["stage".to_owned(), "CPU-s/GiB".to_owned()]];
    rows.extend(report.stages.iter().map(|(name, seconds)| row(name, *seconds)));
    rows.push(row("sum of the stages: the bound", report.sum));
    rows.push(row("node process, whole way", report.node));
    rows.push(vec!["bound ÷ achieved".to_owned(), format!("{:.0} %", 100.0 * report.achieved)]);
    rows.push(row("agent process (scan)", report.agent));
    let rounds: Vec<String> =
        report.node_rounds.iter().map(|seconds| format!("{seconds:.2}")).collect();
    let mut text = table::markdown(&rows);
    text += &format!(
        "\nnode in each round: {}\nimage {} MiB, of which {} MiB are not zero and {} MiB unique; stored {} MiB; node at most {} MiB resident\n",
        rounds.join(", "),
        table::mib(report.image_bytes),
        table::mib(report.data_bytes),
        table::mib(report.unique_bytes),
        table::mib(report.stored_bytes),
        table::mib(report.node_peak_bytes)
    );
    text
}
