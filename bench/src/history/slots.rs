//! How many slots the marks of many volumes make, and how long writes wait for them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Options;
use super::load::{INTERVAL, MINUTE_MS, Plan, Site};
use super::report::{Figure, Unit};

/// Slots in a minute: one an interval, and one for where minutes begin.
const SLOTS_MAX: f64 = 13.0;
const RPO_MAX_SECONDS: f64 = 10.0;
/// What does not compress is stored as large as it is: a little less, for tables, marks and frames.
const RATE_BYTES: u64 = 9_500_000;
const STORED_MAX: f64 = 10e6;
const WRITE_BYTES: u64 = 64 << 10;
/// Of a volume that is quiet most of the time: several intervals.
const SELDOM: Duration = Duration::from_secs(20);
/// By then every source knows when its node gathers marks.
const WARMUP: Duration = Duration::from_secs(60);

/// # Errors
/// If the processes do not do what they are to, or nothing was measured.
pub(super) fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let volumes = options.busy_volumes;
    let seldom_bytes = u64::from(volumes) * WRITE_BYTES / SELDOM.as_secs();
    let mut figures = Vec::new();
    for (how, rate_bytes, seed) in [
        ("without a pause".to_owned(), RATE_BYTES, 11),
        (format!("every {} s", SELDOM.as_secs()), seldom_bytes, 12),
    ] {
        let counted = Duration::from_secs(options.load_minutes * 60);
        let write_bytes = WRITE_BYTES;
        let plan =
            Plan { busy: volumes, idle: 0, rate_bytes, write_bytes, warmup: WARMUP, counted, seed };
        let name = format!("{volumes} volumes that write {how}");
        figures.extend(one(&name, &plan, options.load_minutes, folder)?);
    }
    Ok(figures)
}

fn one(name: &str, plan: &Plan, minutes: u64, folder: &Path) -> Result<Vec<Figure>> {
    let site = Site::start(folder)?;
    let found = site.load(plan)?;
    let added = site.added(&found)?;
    site.stop()?;
    ensure!(found.writes() > 0 && added.slots() > 0, "nothing was written");
    let stored = added.bytes() as f64 * 1e3 / found.counted_ms() as f64;
    ensure!(stored <= STORED_MAX, "{stored:.0} bytes a second were stored");
    let by_minute = added.by_minute(found.counted_ms() / MINUTE_MS);
    let most = by_minute.iter().flatten().copied().max().unwrap_or(0);
    let [p50, p99, longest] = found.committed_seconds();
    let told = format!(
        "{:.2} MB/s stored, marks every {} s, phases drawn; slots in each of {minutes} minutes, shard by shard: {by_minute:?}; {}",
        stored / 1e6,
        INTERVAL.as_secs(),
        added.others_text()
    );
    let waited = format!(
        "{} writes from when they were due, p50 {p50:.2} s, most {longest:.2} s; {} sessions ended",
        found.writes(),
        found.reconnects
    );
    Ok(vec![
        Figure::of(format!("slots a shard and minute, {name}"), Unit::Objects, most as f64)
            .held_to(SLOTS_MAX)
            .with_remark(told),
        Figure::of(format!("write to committed p99, {name}"), Unit::Seconds, p99)
            .held_to(RPO_MAX_SECONDS)
            .with_remark(waited),
    ])
}
