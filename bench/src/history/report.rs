//! Figures beside what they are to reach, and what the machine did to them meanwhile.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::delayed::Requests;
use crate::table::markdown;

/// Syncs of a file from which the slowest in a hundred is taken.
const SYNCS: usize = 200;
const SYNC_BYTES: usize = 4096;

/// What was measured while some work was done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    elapsed: Duration,
    waited: Duration,
}

/// Measures work from now on.
#[derive(Debug)]
pub(super) struct Clock {
    begun: Instant,
    waited: Duration,
}

impl Clock {
    /// # Errors
    /// If the system does not tell how long threads wait for a processor.
    pub(super) fn start() -> Result<Self> {
        Ok(Self { waited: waited()?, begun: Instant::now() })
    }

    /// # Errors
    /// As [`Clock::start`].
    pub(super) fn stop(&self) -> Result<Took> {
        let elapsed = self.begun.elapsed();
        Ok(Took { elapsed, waited: waited()?.saturating_sub(self.waited) })
    }
}

/// How long the threads of this process, taken together, were ready and had no processor. Of those that ended
/// nothing is known any more: the runtime keeps its threads.
fn waited() -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir("/proc/self/task").context("list the threads")? {
        // One that has just ended is not there.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let field = text.split_whitespace().nth(1).context("schedstat has another form")?;
        nanoseconds += field.parse::<u64>().context("schedstat has another form")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Bytes for each second of a processor.
    BytesPerCpuSecond,
    /// Requests to the store.
    Requests,
    /// Objects in the store.
    Objects,
    /// One number of times another.
    Ratio,
    /// Hundredths.
    Percent,
    /// Times a second.
    PerSecond,
}

impl Unit {
    fn text(self, value: f64) -> String {
        let mib = value / f64::from(1 << 20);
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes if value >= f64::from(1 << 20) => format!("{mib:.1} MiB"),
            Self::Bytes if value >= f64::from(1 << 10) => format!("{:.1} KiB", value / 1024.0),
            Self::Bytes => format!("{value:.1} B"),
            Self::BytesPerCpuSecond => format!("{mib:.0} MiB/CPU-s"),
            Self::Requests | Self::Objects => format!("{value:.0}"),
            Self::Ratio => format!("{value:.2} ×"),
            Self::Percent => format!("{value:.2} %"),
            Self::PerSecond => format!("{:.0} k/s", value / 1e3),
        }
    }
}

/// A figure, perhaps with what it is to reach.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    /// Of target and measured.
    pub(super) unit: Unit,
    /// At most; none where it only explains another.
    pub(super) target: Option<f64>,
    pub(super) measured: f64,
    /// How long threads of this process were ready and had no processor, all together; none where no time was taken.
    pub(super) waited_seconds: Option<f64>,
    /// None where nobody counted.
    pub(super) requests: Option<u64>,
    /// Those for epochs of volumes.
    pub(super) of_volumes: Option<u64>,
    /// Requests without an answer at the same time, at most.
    pub(super) in_flight_max: Option<u64>,
    /// What went on in it.
    pub(super) remark: String,
}

impl Figure {
    /// A figure without target, requests or remark.
    pub(super) fn of(name: impl Into<String>, unit: Unit, measured: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            target: None,
            measured,
            waited_seconds: None,
            requests: None,
            of_volumes: None,
            in_flight_max: None,
            remark: String::new(),
        }
    }

    /// Of how long something took.
    pub(super) fn timed(name: impl Into<String>, took: Took) -> Self {
        let waited_seconds = Some(took.waited.as_secs_f64());
        Self { waited_seconds, ..Self::of(name, Unit::Seconds, took.elapsed.as_secs_f64()) }
    }

    /// It is to be this at most.
    pub(super) fn held_to(self, most: f64) -> Self {
        Self { target: Some(most), ..self }
    }

    pub(super) fn with_requests(self, requests: Requests) -> Self {
        let Requests { count, of_volumes, in_flight_max, .. } = requests;
        Self {
            requests: Some(count),
            of_volumes: Some(of_volumes),
            in_flight_max: Some(in_flight_max),
            ..self
        }
    }

    pub(super) fn with_remark(self, remark: String) -> Self {
        Self { remark, ..self }
    }

    /// Whether it has a target and misses it.
    pub(super) fn is_short(&self) -> bool {
        self.target.is_some_and(|target| self.measured > target)
    }

    fn verdict(&self) -> &'static str {
        match (self.target, self.is_short()) {
            (None, _) => "",
            (Some(_), true) => "short",
            (Some(_), false) => "ok",
        }
    }

    fn row(&self) -> Vec<String> {
        let count = |count: Option<u64>| count.map_or_else(String::new, |count| count.to_string());
        let waited = |seconds| Unit::Seconds.text(seconds);
        vec![
            self.name.clone(),
            self.target.map_or_else(String::new, |target| format!("≤ {}", self.unit.text(target))),
            self.unit.text(self.measured),
            self.verdict().to_owned(),
            count(self.requests),
            count(self.of_volumes),
            count(self.in_flight_max),
            self.waited_seconds.map_or_else(String::new, waited),
        ]
    }
}

/// What one run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) figures: Vec<Figure>,
    /// The slowest in a hundred of small syncs in the directory.
    pub(super) sync_p99_seconds: f64,
}

impl Report {
    /// Whether a figure misses its target.
    pub(super) fn is_short(&self) -> bool {
        self.figures.iter().any(Figure::is_short)
    }

    /// The table, and what is to be said of it.
    pub(super) fn text(&self) -> String {
        let head = [
            "history",
            "target",
            "measured",
            "",
            "requests",
            "for epochs",
            "at once ≤",
            "no CPU for",
        ];
        let head = head.map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> =
            std::iter::once(head).chain(self.figures.iter().map(Figure::row)).collect();
        let mut text = markdown(&rows);
        text.push('\n');
        for figure in self.figures.iter().filter(|figure| !figure.remark.is_empty()) {
            text += &format!("- {}: {}\n", figure.name, figure.remark);
        }
        text += &format!(
            "- fdatasync of {SYNC_BYTES} bytes in the directory: p99 {:.1} ms of {SYNCS}\n\
             - \"no CPU for\": threads of this process were ready and waited so long, all together\n\
             - the history was written just before: what is read comes from the page cache\n",
            self.sync_p99_seconds * 1e3
        );
        text
    }
}

/// What the slowest in a hundred of small writes and syncs takes.
///
/// # Errors
/// If nothing can be written in the directory.
pub(super) fn sync_p99(directory: &Path) -> Result<Duration> {
    let mut file: File = tempfile::tempfile_in(directory).context("make a file to sync")?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[7; SYNC_BYTES])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[SYNCS * 99 / 100 - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(target: Option<f64>) -> Figure {
        let took = Took { elapsed: Duration::from_secs(10), waited: Duration::ZERO };
        Figure { target, ..Figure::timed("ready", took) }
    }

    #[test]
    fn a_figure_is_short_behind_its_target_only() {
        assert!(figure(Some(9.9)).is_short());
        assert!(!figure(Some(10.0)).is_short());
        assert!(!figure(None).is_short());
        assert_eq!(figure(None).verdict(), "");
    }

    #[test]
    fn the_table_says_what_is_short() {
        let report =
            Report { figures: vec![figure(Some(9.0)), figure(None)], sync_p99_seconds: 0.002 };
        assert!(report.is_short());
        let text = report.text();
        assert!(text.contains("| ≤ 9.00 s |  10.00 s | short |"), "{text}");
        assert!(text.contains("p99 2.0 ms"), "{text}");
    }

    #[test]
    fn each_unit_is_told_in_its_own_way() {
        let text = |unit, value| Figure::of("x", unit, value).held_to(value).row()[1..3].join(" ");
        assert_eq!(text(Unit::Bytes, 600.0), "≤ 600.0 B 600.0 B");
        assert_eq!(text(Unit::Bytes, 1536.0), "≤ 1.5 KiB 1.5 KiB");
        assert_eq!(text(Unit::Bytes, 1_572_864.0), "≤ 1.5 MiB 1.5 MiB");
        assert_eq!(text(Unit::Requests, 2.0), "≤ 2 2");
        assert_eq!(text(Unit::Percent, 0.5), "≤ 0.50 % 0.50 %");
        assert_eq!(text(Unit::Ratio, 1.15), "≤ 1.15 × 1.15 ×");
        let short = Figure::of("x", Unit::Requests, 3.0).held_to(2.0);
        let json = serde_json::to_value(&short).unwrap();
        assert!(short.is_short() && json["unit"] == "requests" && json["measured"] == 3.0);
    }
}
