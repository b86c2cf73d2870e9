//! restic, borg and rustic beside Farshore, on the same images on the same machine.
//!
//! The peers read a file and write a local repository: no network, no journal, no acknowledgement. Of
//! Farshore the node process counts, with all of these. Every tool encrypts and compresses; each
//! starts with nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;

use crate::cpu::{self, Used};
use crate::folder::bytes_below;
use crate::ingest::Ingest;
use crate::{plot, table};

const PASSWORD: &str = "of this benchmark";

/// What one tool needed.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) tool: String,
    /// CPU-seconds per GiB of the first image.
    pub(crate) cpu_s_per_gib: f64,
    pub(crate) stored_bytes: u64,
    /// CPU-seconds per GiB of the second image, and what it added.
    second_cpu_s_per_gib: Option<f64>,
    added_bytes: Option<u64>,
    peak_bytes: u64,
}

/// A program that keeps a repository in a folder.
struct Peer {
    name: &'static str,
    version: fn(&Place) -> Command,
    init: fn(&Place) -> Command,
    backup: fn(&Place, &Path) -> Command,
}

/// Where a peer works.
struct Place {
    folder: TempDir,
    program: PathBuf,
}

impl Place {
    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        let home = self.folder.path().join("home");
        command
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RUSTIC_PASSWORD", PASSWORD)
            .env("BORG_PASSPHRASE", PASSWORD)
            .env("BORG_BASE_DIR", &home);
        command
    }
}

const PEERS: [Peer; 3] = [
    Peer {
        name: "restic",
        version: |place| with(place, &["version"]),
        init: |place| {
            let mut command =
                with(place, &["init", "--quiet", "--repository-version", "2", "--repo"]);
            command.arg(place.repository());
            command
        },
        backup: |place, image| {
            let mut command = with(place, &["backup", "--quiet", "--repo"]);
            command.arg(place.repository()).arg(image);
            command
        },
    },
    Peer {
        name: "rustic",
        version: |place| with(place, &["--version"]),
        init: |place| {
            let mut command =
                with(place, &["--log-level", "error", "--no-progress", "--repository"]);
            command.arg(place.repository()).arg("init");
            command
        },
        backup: |place, image| {
            let mut command =
                with(place, &["--log-level", "error", "--no-progress", "--repository"]);
            command.arg(place.repository()).arg("backup").arg(image);
            command
        },
    },
    Peer {
        name: "borg",
        version: |place| with(place, &["--version"]),
        init: |place| {
            let mut command = with(place, &["init", "--encryption", "repokey-blake2"]);
            command.arg(place.repository());
            command
        },
        backup: |place, image| {
            let mut command = with(place, &["create", "--compression", "zstd,1"]);
            let name = image.file_stem().unwrap_or_default().to_string_lossy();
            command.arg(format!("{}::{name}", place.repository().display())).arg(image);
            command
        },
    },
];

fn with(place: &Place, words: &[&str]) -> Command {
    let mut command = place.command();
    command.args(words);
    command
}

/// Runs everything and prints table and plot.
///
/// # Errors
/// If a tool is missing or fails.
pub(crate) fn run(image: &Path, second: Option<&Path>, out: &Path) -> Result<()> {
    let images = [Some(image), second];
    let gib = |image: &Path| -> Result<f64> {
        let bytes = fs::metadata(image).with_context(|| format!("read {}", image.display()))?.len();
        ensure!(bytes > 0, "{} is empty", image.display());
        Ok(bytes as f64 / f64::from(1 << 30))
    };
    let sizes = images.map(|image| image.map(gib).transpose());
    let [first_gib, second_gib] = sizes;
    let (first_gib, second_gib) = (first_gib?.unwrap_or_default(), second_gib?);
    // Everybody finds the images in the page cache.
    for image in images.into_iter().flatten() {
        std::io::copy(&mut fs::File::open(image)?, &mut std::io::sink())?;
    }
    let mut rows = Vec::new();
    for peer in &PEERS {
        let seen = try_peer(peer, image, second)?;
        rows.push(row(&seen, first_gib, second_gib));
        println!("{} done", rows[rows.len() - 1].tool);
    }
    rows.push(row(&try_farshore(image, second)?, first_gib, second_gib));
    let text = table::markdown(&cells(&rows));
    println!("\n{text}");
    fs::write(out.join("peers.md"), &text)?;
    fs::write(out.join("peers.json"), serde_json::to_vec_pretty(&rows)?)?;
    plot::peers(&rows, &out.join("peers.svg"))?;
    println!("table, numbers and plot: {}/peers.{{md,json,svg}}", out.display());
    Ok(())
}

/// What was seen of one tool.
struct Seen {
    tool: String,
    first: (Used, u64),
    second: Option<(Used, u64)>,
}

fn try_peer(peer: &Peer, image: &Path, second: Option<&Path>) -> Result<Seen> {
    let place = Place { folder: tempfile::tempdir()?, program: program(peer.name)? };
    fs::create_dir(place.folder.path().join("home"))?;
    let version = (peer.version)(&place).output().with_context(|| format!("run {}", peer.name))?;
    let version = String::from_utf8_lossy(&version.stdout);
    let number =
        version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let tool = format!("{} {}", peer.name, number.unwrap_or("?"));
    cpu::of_command(&(peer.init)(&place))?;
    let take = |image: &Path| -> Result<(Used, u64)> {
        let image = image.canonicalize()?;
        let used = cpu::of_command(&(peer.backup)(&place, &image))?;
        Ok((used, bytes_below(&place.repository())?))
    };
    let first = take(image)?;
    let second = second.map(take).transpose()?;
    Ok(Seen { tool, first, second })
}

fn try_farshore(image: &Path, second: Option<&Path>) -> Result<Seen> {
    let ingest = Ingest::start()?;
    let take = |name, image| -> Result<(Used, u64)> {
        let cost = ingest.take(name, image)?;
        Ok((cost.node, cost.stored_bytes))
    };
    let first = take("first", image)?;
    let second = second.map(|image| take("second", image)).transpose()?;
    ingest.stop()?;
    Ok(Seen { tool: format!("Farshore {} (node)", env!("CARGO_PKG_VERSION")), first, second })
}

fn row(seen: &Seen, first_gib: f64, second_gib: Option<f64>) -> Row {
    let (first, stored_bytes) = seen.first;
    let per_gib = |cpu: Duration, gib: f64| cpu.as_secs_f64() / gib;
    let second = seen.second.zip(second_gib);
    let peak_bytes =
        seen.second.map_or(first.peak_bytes, |(used, _)| first.peak_bytes.max(used.peak_bytes));
    Row {
        tool: seen.tool.clone(),
        cpu_s_per_gib: per_gib(first.cpu, first_gib),
        stored_bytes,
        second_cpu_s_per_gib: second.map(|((used, _), gib)| per_gib(used.cpu, gib)),
        added_bytes: second.map(|((_, stored), _)| stored.saturating_sub(stored_bytes)),
        peak_bytes,
    }
}

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let head = ["tool", "CPU-s/GiB", "stored MiB", "2nd CPU-s/GiB", "2nd adds MiB", "peak MiB"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |n| format!("{n:.2}"));
    for row in rows {
        cells.push(vec![
            row.tool.clone(),
            number(Some(row.cpu_s_per_gib)),
            table::mib(row.stored_bytes),
            number(row.second_cpu_s_per_gib),
            row.added_bytes.map_or_else(|| "-".to_owned(), table::mib),
            table::mib(row.peak_bytes),
        ]);
    }
    cells
}

/// A peer's program: what `cargo xtask bench` installed, or what is on the PATH.
fn program(name: &str) -> Result<PathBuf> {
    let own = farshore_e2e::command::binaries()?;
    let own = own.parent().map(|target| target.join("peers/bin").join(name));
    if let Some(own) = own.filter(|own| own.is_file()) {
        return Ok(own);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not installed: run `cargo xtask bench peers`"))
}
