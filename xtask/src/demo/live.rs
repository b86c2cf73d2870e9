//! The server runs and is replicated; then it is lost.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::console::{self, now_ms};
use super::farshore::{Farshore, cpu_seconds, wait_until};
use super::machine::Machine;
use super::run_folder::RunFolder;

/// The machine's name.
pub(crate) const NAME: &str = "web1";
const URI_LIMIT: Duration = Duration::from_secs(30);
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const COPY_LIMIT: Duration = Duration::from_secs(300);
const RECORD_LIMIT: Duration = Duration::from_secs(10);
/// Time between two lines where there is no terminal to rewrite one on.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A server that is being replicated.
#[derive(Debug)]
pub(crate) struct Source {
    machine: Machine,
    /// What its own boot from the local disk took, to the kernel's first line.
    kernel_ms: u64,
    node_pid: u32,
    node_cpu: f64,
}

/// Protects the disk, boots the server on the splitter, and shows how it goes until `rest` after
/// the initial copy is committed.
///
/// # Errors
/// If a step fails or takes too long.
pub(crate) fn replicate(
    farshore: &Farshore,
    folder: &RunFolder,
    disk: &Path,
    rest: Duration,
) -> Result<Source> {
    let node_pid = farshore.pid("node")?;
    let node_cpu = cpu_seconds(node_pid)?;
    let disk = disk.to_str().context("a folder whose name is not UTF-8")?;
    farshore.run(&[
        "machine",
        "protect",
        NAME,
        "--disk",
        disk,
        "--capture",
        "nbd",
        "--mark-interval",
        "1s",
    ])?;
    let uri = wait_until("the splitter's nbd_uri", URI_LIMIT, || {
        let shown = farshore.json(&["machine", "show", NAME])?;
        Ok(shown["volumes"][0]["nbd_uri"].as_str().map(str::to_owned))
    })?;
    let machine = Machine::start(&uri, &folder.path("server.log"))?;
    println!("the server boots from {uri}");
    let kernel = machine.console.wait_for(console::KERNEL, BOOT_LIMIT)?;
    let kernel_ms = kernel.at_ms - machine.started_ms;
    let mut source = Source { machine, kernel_ms, node_pid, node_cpu };
    watch(farshore, &mut source, rest)?;
    Ok(source)
}

fn watch(farshore: &Farshore, source: &mut Source, rest: Duration) -> Result<()> {
    let is_terminal = std::io::stdout().is_terminal();
    let start = Instant::now();
    let (mut protected, mut last_line) = (None, None::<Instant>);
    let end = loop {
        let shown = farshore.json(&["machine", "show", NAME])?;
        let records = source.machine.console.last_record(u64::MAX);
        if is_terminal || last_line.is_none_or(|at| at.elapsed() > LINE_EVERY) {
            let line = status(&shown, records);
            let (before, after) = if is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
            print!("{before}{line}{after}");
            std::io::stdout().flush()?;
            last_line = Some(Instant::now());
        }
        if !source.machine.is_running()? {
            bail!("QEMU has ended");
        }
        if shown["state"] == "protected" && records > 0 {
            let since = *protected.get_or_insert_with(Instant::now);
            if since.elapsed() > rest {
                break Ok(());
            }
        }
        if start.elapsed() > COPY_LIMIT + rest {
            break Err(format!("{NAME} is not protected in time: {shown}"));
        }
        std::thread::sleep(Duration::from_millis(250));
    };
    println!();
    end.map_err(anyhow::Error::msg)
}

/// One line that says how the replication goes.
fn status(shown: &Value, records: u64) -> String {
    let volume = &shown["volumes"][0];
    let stats = &volume["stats"];
    let mib = |value: &Value| value.as_u64().unwrap_or(0) >> 20;
    let share = |part: &Value, whole: &Value| {
        let (part, whole) = (part.as_f64().unwrap_or(0.0), whole.as_f64().unwrap_or(0.0));
        if whole > 0.0 { part / whole * 100.0 } else { 0.0 }
    };
    let rpo = shown["rpo_seconds"].as_f64();
    let rpo = rpo.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"));
    let point = shown["last_point"]["time_unix_ms"].as_u64();
    let point = point.map_or_else(
        || "none yet".to_owned(),
        |at| {
            format!("{:.1} s ago", Duration::from_millis(now_ms().saturating_sub(at)).as_secs_f64())
        },
    );
    format!(
        "{} | copy {:.0} % | RPO {rpo} | in {} MiB | duplicate {:.0} % | stored {} MiB | last point \
         {point} | records {records}",
        shown["state"].as_str().unwrap_or("?"),
        volume["progress"].as_f64().unwrap_or(0.0) * 100.0,
        mib(&stats["bytes_in"]),
        share(&stats["duplicate_bytes"], &stats["bytes_in"]),
        mib(&stats["stored_bytes"]),
    )
}

/// What is known of a server that is gone.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Everything it said.
    pub(crate) console: console::Console,
    /// When it was killed, in ms since 1970.
    pub(crate) killed_ms: u64,
    /// The newest point that was committed then, and the time of its mark.
    pub(crate) point: String,
    pub(crate) point_ms: u64,
    /// What its own boot from the local disk took, to the kernel's first line.
    pub(crate) kernel_ms: u64,
    /// CPU-seconds of the node for all that it received.
    pub(crate) node_cpu: f64,
    pub(crate) bytes_in: u64,
}

/// Kills the server and its agent in mid-write and removes the disk.
///
/// # Errors
/// If a step fails.
pub(crate) fn lose(farshore: &Farshore, mut source: Source, disk: &Path) -> Result<Lost> {
    let shown = farshore.json(&["machine", "show", NAME])?;
    let node_cpu = cpu_seconds(source.node_pid)? - source.node_cpu;
    let bytes_in = shown["volumes"][0]["stats"]["bytes_in"].as_u64().context("no bytes_in")?;
    ensure!(farshore.pid("node")? == source.node_pid, "the node was restarted meanwhile");
    // In mid-write: right after a record, the next one is under way.
    let next = source.machine.console.last_record(u64::MAX) + 1;
    source.machine.console.wait_for(&format!("record {next}"), RECORD_LIMIT)?;
    // The disk first: `farshore up` starts the agent again, and it must find nothing.
    fs::remove_file(disk).with_context(|| format!("remove {}", disk.display()))?;
    let killed_ms = now_ms();
    source.machine.kill()?;
    farshore.kill("agent")?;
    let (point, point_ms) = newest_point(farshore, killed_ms)?;
    let console = std::mem::replace(
        &mut source.machine.console,
        console::Console::read(std::io::empty(), false),
    );
    println!(
        "killed after record {}; newest committed point {point}, {:.1} s old",
        console.last_record(killed_ms),
        Duration::from_millis(killed_ms.saturating_sub(point_ms)).as_secs_f64()
    );
    Ok(Lost {
        console,
        killed_ms,
        point,
        point_ms,
        kernel_ms: source.kernel_ms,
        node_cpu,
        bytes_in,
    })
}

/// The newest committed point whose mark is not younger than `until_ms`.
fn newest_point(farshore: &Farshore, until_ms: u64) -> Result<(String, u64)> {
    let listed = farshore.json(&["point", "list", NAME])?;
    let points = listed["points"].as_array().context("`point list` printed no list")?;
    let newest = points
        .iter()
        .filter(|point| point["state"] == "committed")
        .filter_map(|point| Some((point["point"].as_str()?, point["time_unix_ms"].as_u64()?)))
        .filter(|(_, at)| *at <= until_ms)
        .max_by_key(|(_, at)| *at);
    let (point, at) = newest.context("no committed point")?;
    Ok((point.to_owned(), at))
}

/// When the mark of a point was set, in ms since 1970.
///
/// # Errors
/// If the point is not listed.
pub(crate) fn time_of_point(farshore: &Farshore, point: &str) -> Result<u64> {
    let listed = farshore.json(&["point", "list", NAME])?;
    let points = listed["points"].as_array().context("`point list` printed no list")?;
    let found = points.iter().find(|listed| listed["point"] == point);
    let found = found.with_context(|| format!("`point list` does not know {point}"))?;
    found["time_unix_ms"].as_u64().context("a point without a time")
}
