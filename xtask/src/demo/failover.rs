//! The newest point boots from the vault.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::checks::{Checks, Finding};
use super::console::{BOOT, Boot, Console, KERNEL, now_ms};
use super::farshore::Farshore;
use super::live::{Lost, NAME, time_of_point};

const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Design: from the request to the guest's kernel, beyond what the guest needs by itself.
const FAILOVER_LIMIT_MS: u64 = 5000;
/// With a mark every second: mark, batch, put, and room for two busy cores.
const RPO_LIMIT_MS: u64 = 5000;

/// The server, running again.
#[derive(Debug)]
pub(crate) struct Revived {
    id: String,
    /// The point it runs from.
    pub(crate) point: String,
    point_ms: u64,
    /// From the request, in ms.
    kernel_ms: u64,
    recorder_ms: u64,
    /// What the recorder found.
    pub(crate) boot: Boot,
    next_record: bool,
}

/// Asks for the failover and waits until the server writes again.
///
/// # Errors
/// If it does not come up.
pub(crate) fn start(farshore: &Farshore, lost: &Lost) -> Result<Revived> {
    let asked_ms = now_ms();
    let started = farshore
        .json(&["failover", "start", NAME, "--point", "latest", "--memory", "256", "--yes"])?;
    let text = |name: &str| {
        let text = started[name].as_str().map(str::to_owned);
        text.with_context(|| format!("the failover has no {name}: {started}"))
    };
    let (id, point, path) = (text("id")?, text("point")?, text("console_path")?);
    let file = File::open(&path).with_context(|| format!("open the console {path}"))?;
    let console = Console::read(file, true);
    let kernel = console.wait_for(KERNEL, BOOT_LIMIT)?;
    let recorder = console.wait_for(BOOT, BOOT_LIMIT)?;
    println!("the recovered server says: {}", recorder.text);
    let boot = Boot::parse(&recorder.text)?;
    let next = format!("record {}", boot.last + 1);
    let next_record = console.wait_for(&next, BOOT_LIMIT).is_ok();
    let point_ms = time_of_point(farshore, &point)?;
    println!(
        "from point {point}; the newest committed when the server was lost was {}",
        lost.point
    );
    steps(&started, asked_ms);
    Ok(Revived {
        id,
        point,
        point_ms,
        kernel_ms: kernel.at_ms.saturating_sub(asked_ms),
        recorder_ms: recorder.at_ms.saturating_sub(asked_ms),
        boot,
        next_record,
    })
}

/// Says how long each state took.
fn steps(started: &Value, asked_ms: u64) {
    for step in started["steps"].as_array().into_iter().flatten() {
        let after = step["at_unix_ms"].as_u64().unwrap_or(asked_ms).saturating_sub(asked_ms);
        println!("  {:>6} ms  {}", after, step["state"].as_str().unwrap_or("?"));
    }
}

/// Compares what came back with what the lost server had promised.
pub(crate) fn check(lost: &Lost, revived: &Revived, checks: &mut Checks) {
    let boot = revived.boot;
    checks.add(Finding {
        check: "records: a gap or a torn one",
        expected: "0 and 0".to_owned(),
        seen: format!("{} and {}", boot.gaps, boot.torn),
        holds: boot.gaps == 0 && boot.torn == 0 && boot.records == boot.last,
    });
    let promised = lost.console.last_record(revived.point_ms);
    checks.add(Finding {
        check: "records committed before the point",
        expected: format!("all of 1..{promised}"),
        seen: format!("1..{}", boot.last),
        holds: boot.last >= promised && promised > 0,
    });
    checks.add(Finding {
        check: "the point is the newest committed one",
        expected: format!("not before {}", ago(lost.killed_ms, lost.point_ms)),
        seen: ago(lost.killed_ms, revived.point_ms),
        holds: revived.point_ms >= lost.point_ms,
    });
    let last = lost.console.last_record(lost.killed_ms);
    let rpo_ms = lost.killed_ms.saturating_sub(revived.point_ms);
    checks.add(Finding {
        check: "RPO reached",
        expected: format!("<= {}", seconds(RPO_LIMIT_MS)),
        seen: format!(
            "{} ({} records after the point)",
            seconds(rpo_ms),
            last.saturating_sub(boot.last)
        ),
        holds: rpo_ms <= RPO_LIMIT_MS,
    });
    checks.add(Finding {
        check: "request to guest kernel running",
        expected: format!(
            "<= {} + its own {}",
            seconds(FAILOVER_LIMIT_MS),
            seconds(lost.kernel_ms)
        ),
        seen: format!(
            "{} (recorder after {})",
            seconds(revived.kernel_ms),
            seconds(revived.recorder_ms)
        ),
        holds: revived.kernel_ms <= FAILOVER_LIMIT_MS + lost.kernel_ms,
    });
    checks.add(Finding {
        check: "the recovered server works on",
        expected: format!("record {}", boot.last + 1),
        seen: if revived.next_record { "written" } else { "nothing" }.to_owned(),
        holds: revived.next_record,
    });
}

impl Revived {
    /// Ends the failover: its machine, its export, its overlay.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub(crate) fn end(self, farshore: &Farshore) -> Result<()> {
        farshore.run(&["failover", "cleanup", &self.id, "--force", "--yes"])
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", Duration::from_millis(ms).as_secs_f64())
}

fn ago(now_ms: u64, then_ms: u64) -> String {
    format!("{} before the kill", seconds(now_ms.saturating_sub(then_ms)))
}
