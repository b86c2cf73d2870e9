//! What a scan costs the agent: the first pass and later ones over random data, zeros, and the time to
//! protect a large sparse file; each beside what it is to reach.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore_e2e::random::Random;
use farshore_e2e::{Part, Setting, System, wait};

use crate::cpu;
use crate::table::markdown;

const LIMIT: Duration = Duration::from_secs(1800);
const MIB: u64 = 1 << 20;
const GIB: f64 = (1_u64 << 30) as f64;
/// Later passes that are measured; the middle one counts.
const PASSES: usize = 5;
const SPARSE_GIB: u64 = 64;

/// A figure with what it is to reach.
struct Figure {
    name: String,
    target: f64,
    measured: f64,
    unit: &'static str,
    /// Whether more is better.
    is_rate: bool,
}

impl Figure {
    fn row(&self) -> Vec<String> {
        let Self { name, target, measured, unit, is_rate } = self;
        let is_reached = if *is_rate { measured >= target } else { measured <= target };
        let sign = if *is_rate { "≥" } else { "≤" };
        vec![
            name.clone(),
            format!("{sign} {target:.2} {unit}"),
            format!("{measured:.2} {unit}"),
            if is_reached { "ok" } else { "short" }.to_owned(),
        ]
    }
}

/// Measures all of it on a disk of so many MiB of each kind, and writes `scan.md`.
///
/// # Errors
/// If something cannot be run.
pub(crate) fn run(mib: u64, out: &Path) -> Result<()> {
    let mut system = System::start(Setting::default())?;
    let gib = (mib * MIB) as f64 / GIB;
    let mut figures = Vec::new();

    let random = system.path("random.raw");
    fill(&random, mib, |random, bytes| random.fill(bytes))?;
    let (first, _) = protect(&system, "random", &random)?;
    figures.push(per_gib("random data, first pass", 1.0, first, gib));
    let mut later = Vec::new();
    for _ in 0..PASSES {
        later.push(pass(&system, "random")?);
    }
    later.sort();
    figures.push(per_gib("random data, later passes", 0.4, later[PASSES / 2], gib));
    unprotect(&system, "random")?;

    let zeros = system.path("zeros.raw");
    fill(&zeros, mib, |_, bytes| bytes.fill(0))?;
    let (spent, _) = protect(&system, "zeros", &zeros)?;
    figures.push(Figure {
        name: "zeros, on one core".to_owned(),
        target: 1.5,
        measured: (mib * MIB) as f64 / 1e9 / spent.as_secs_f64().max(0.01),
        unit: "GB/s",
        is_rate: true,
    });
    unprotect(&system, "zeros")?;

    let sparse = system.path("sparse.raw");
    File::create(&sparse)?.set_len(SPARSE_GIB << 30)?;
    let (spent, took) = protect(&system, "sparse", &sparse)?;
    let name = format!("a sparse file of {SPARSE_GIB} GiB");
    figures.push(per_gib(&format!("{name}, CPU"), 0.02, spent, SPARSE_GIB as f64));
    figures.push(Figure {
        name: format!("{name}, time to protect"),
        target: 10.0,
        measured: took.as_secs_f64(),
        unit: "s",
        is_rate: false,
    });
    system.stop()?;

    let head = ["the agent's scan", "target", "measured", ""].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> =
        std::iter::once(head).chain(figures.iter().map(Figure::row)).collect();
    let text = markdown(&rows);
    print!("{text}");
    fs::write(out.join("scan.md"), text).context("write scan.md")
}

fn per_gib(name: &str, target: f64, spent: Duration, gib: f64) -> Figure {
    let measured = spent.as_secs_f64() / gib;
    Figure { name: name.to_owned(), target, measured, unit: "CPU-s/GiB", is_rate: false }
}

/// Makes a file in which every block is there.
fn fill(path: &Path, mib: u64, content: impl Fn(&mut Random, &mut [u8])) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = Random::new(7);
    let mut piece = vec![0; usize::try_from(MIB)?];
    for _ in 0..mib {
        content(&mut random, &mut piece);
        file.write_all(&piece).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(file.sync_all()?)
}

/// What the agent spends until a disk is protected, and how long that takes. Points come only when they are
/// asked for: a pass more would be counted otherwise.
fn protect(system: &System, name: &str, disk: &Path) -> Result<(Duration, Duration)> {
    let agent = system.pid(Part::Agent)?;
    let (before, begun) = (cpu::of_process(agent)?.cpu, Instant::now());
    let farshore = system.farshore();
    let disk = disk.display();
    let line = format!("machine protect {name} --disk {disk} --capture scan --mark-interval 24h");
    farshore.ok(&line)?;
    wait::until(&format!("{name} to be protected"), LIMIT, || {
        let shown = farshore.json(&format!("machine show {name}"))?;
        ensure!(shown["state"] != "error", "{shown}");
        Ok((shown["state"] == "protected").then_some(()))
    })?;
    Ok((cpu::of_process(agent)?.cpu - before, begun.elapsed()))
}

/// What the agent spends on one more pass.
fn pass(system: &System, name: &str) -> Result<Duration> {
    let agent = system.pid(Part::Agent)?;
    let before = cpu::of_process(agent)?.cpu;
    system.farshore().ok(&format!("point mark {name} --wait"))?;
    Ok(cpu::of_process(agent)?.cpu - before)
}

fn unprotect(system: &System, name: &str) -> Result<()> {
    system.farshore().ok(&format!("machine unprotect {name} --yes")).map(|_| ())
}
