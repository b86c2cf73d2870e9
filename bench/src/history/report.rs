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

/// A figure, perhaps with what it is to reach.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    /// At most; none where it only explains another.
    pub(super) target_seconds: Option<f64>,
    pub(super) measured_seconds: f64,
    /// How long threads of this process were ready and had no processor, all together.
    pub(super) waited_seconds: f64,
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
    pub(super) fn new(name: String, took: Took) -> Self {
        Self {
            name,
            target_seconds: None,
            measured_seconds: took.elapsed.as_secs_f64(),
            waited_seconds: took.waited.as_secs_f64(),
            requests: None,
            of_volumes: None,
            in_flight_max: None,
            remark: String::new(),
        }
    }

    pub(super) fn held_to(self, seconds: f64) -> Self {
        Self { target_seconds: Some(seconds), ..self }
    }

    pub(super) fn with_requests(self, requests: Requests) -> Self {
        let Requests { count, of_volumes, in_flight_max } = requests;
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
        self.target_seconds.is_some_and(|target| self.measured_seconds > target)
    }

    fn verdict(&self) -> &'static str {
        match (self.target_seconds, self.is_short()) {
            (None, _) => "",
            (Some(_), true) => "short",
            (Some(_), false) => "ok",
        }
    }

    fn row(&self) -> Vec<String> {
        let count = |count: Option<u64>| count.map_or_else(String::new, |count| count.to_string());
        vec![
            self.name.clone(),
            self.target_seconds.map_or_else(String::new, |target| format!("≤ {target:.2} s")),
            format!("{:.2} s", self.measured_seconds),
            self.verdict().to_owned(),
            count(self.requests),
            count(self.of_volumes),
            count(self.in_flight_max),
            format!("{:.2} s", self.waited_seconds),
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
        Figure { target_seconds: target, ..Figure::new("ready".to_owned(), took) }
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
}
