//! What a run found, for people and for programs.

use crate::amount::{Bytes, megabytes};
use crate::limits::FAILURES_TOLD;
use crate::source::Outcome;
use crate::tally::{Latencies, Tally};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Points of a distribution, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many there are.
    pub count: u64,
    /// Half are below.
    pub p50_ms: f64,
    /// 90 % are below.
    pub p90_ms: f64,
    /// 99 % are below.
    pub p99_ms: f64,
    /// 99.9 % are below.
    pub p999_ms: f64,
    /// The largest.
    pub max_ms: f64,
}

/// Bytes and writes each second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Bytes each second.
    pub bytes_per_second: f64,
    /// Writes each second.
    pub writes_per_second: f64,
}

/// The sums at one instant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot {
    sent: u64,
    journaled: (u64, u64),
    committed: (u64, u64),
    cpu: Duration,
}

impl Snapshot {
    /// The sums now.
    #[must_use]
    pub fn of(tally: &Tally) -> Self {
        let sums = &tally.sums;
        Self {
            sent: sums.sent_bytes.load(Relaxed),
            journaled: (sums.journaled_bytes.load(Relaxed), sums.journaled_writes.load(Relaxed)),
            committed: (sums.committed_bytes.load(Relaxed), sums.committed_writes.load(Relaxed)),
            cpu: crate::cpu::used(),
        }
    }
}

/// What the plan of a run was, as the report repeats it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    /// Sources.
    pub sources: u32,
    /// Further ones that write once.
    pub idle: u32,
    /// Bytes each second of all sources.
    pub rate_bytes_per_second: u64,
    /// Sizes of writes.
    pub block_size: String,
    /// Percent of each fresh block that compresses away.
    pub compressible: u32,
    /// Percent of writes that repeat an earlier one.
    pub duplicates: u32,
    /// Percent of writes that are zeros.
    pub zeros: u32,
    /// Bytes of each volume.
    pub volume_bytes: u64,
    /// Seconds between two marks of a source.
    pub mark_interval_seconds: f64,
    /// Seconds that do not count.
    pub warmup_seconds: f64,
    /// Seconds that count.
    pub duration_seconds: f64,
    /// The seed.
    pub seed: u64,
}

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was asked for.
    pub asked: Asked,
    /// Whether somebody ended the run before its time.
    pub is_interrupted: bool,
    /// When the time that counts began, by the wall clock.
    pub counted_from_unix_ms: u64,
    /// And when it ended.
    pub counted_to_unix_ms: u64,
    /// Sources welcomed by a node.
    pub connected: u64,
    /// Sources that went on behind data of an earlier run.
    pub continued: u64,
    /// Sources that cannot go on.
    pub failed: u64,
    /// Why, of the first of them.
    pub failures: Vec<String>,
    /// Writes due in the window that counts, by the timetable.
    pub offered: Rate,
    /// Acked journaled inside the window.
    pub journaled: Rate,
    /// Acked committed inside the window.
    pub committed: Rate,
    /// From due to given to the connection.
    pub late: Percentiles,
    /// From due to acked journaled.
    pub journaled_latency: Percentiles,
    /// From due to acked committed.
    pub committed_latency: Percentiles,
    /// Writes that the timetables of the whole run had.
    pub writes_due: u64,
    /// Of them, not acked committed when the run was over.
    pub writes_lost: u64,
    /// Most writes due and not sent of one source.
    pub backlog_of_one_max: u64,
    /// Most writes due and not sent of all sources, looked at each quarter of a second.
    pub backlog_of_all_max: u64,
    /// Frames sent again after a reconnect.
    pub resent_frames: u64,
    /// Connections after the first of each source.
    pub reconnects: u64,
    /// Refusals by the node's word.
    pub refusals: BTreeMap<String, u64>,
    /// Connections not had or broken, by reason.
    pub errors: BTreeMap<String, u64>,
    /// CPU seconds of this process inside the window.
    pub cpu_seconds: f64,
    /// The same for each GiB of writes sent meanwhile.
    pub cpu_seconds_per_gib: Option<f64>,
    /// Seconds from the first source's connect to the last one's welcome.
    pub connect_seconds: f64,
    /// Seconds of enrolment.
    pub enrol_seconds: f64,
    /// Seconds in all.
    pub wall_seconds: f64,
}

/// What the report is made from beside the tally.
#[derive(Debug, Clone)]
pub struct Findings {
    /// What was asked for.
    pub asked: Asked,
    /// How each source ended; fewer than there are if the run was interrupted.
    pub outcomes: Vec<Outcome>,
    /// Sources that never got as far as an outcome.
    pub unfinished: u64,
    /// Whether somebody ended the run before its time.
    pub is_interrupted: bool,
    /// Writes due inside the window.
    pub offered_writes: u64,
    /// Writes due in all.
    pub writes_due: u64,
    /// The sums when the window began and ended.
    pub window: (Snapshot, Snapshot),
    /// Most writes waiting in all.
    pub backlog_of_all_max: u64,
    /// When the run began, by the wall clock.
    pub began_unix: Duration,
    /// Time to connect all.
    pub connect: Duration,
    /// Time to enrol all.
    pub enrol: Duration,
    /// Time of everything.
    pub wall: Duration,
}

fn percentiles(times: &Latencies) -> Percentiles {
    let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
    let at = |percent| ms(times.value_at_percentile(percent));
    Percentiles {
        count: times.len(),
        p50_ms: at(50.0),
        p90_ms: at(90.0),
        p99_ms: at(99.0),
        p999_ms: at(99.9),
        max_ms: ms(times.max()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates are for reading; 2^53 bytes are 8 PiB")]
fn per_second(bytes: u64, writes: u64, time: Duration) -> Rate {
    let seconds = time.as_secs_f64().max(1e-9);
    Rate { bytes_per_second: bytes as f64 / seconds, writes_per_second: writes as f64 / seconds }
}

#[expect(clippy::cast_precision_loss, reason = "as above")]
fn per_gib(cpu: Duration, bytes: u64) -> Option<f64> {
    (bytes > 0).then(|| cpu.as_secs_f64() / (bytes as f64 / f64::from(1 << 30)))
}

impl Report {
    /// Puts it together.
    #[must_use]
    pub fn of(found: &Findings, tally: &Tally) -> Self {
        let (times, troubles) = (tally.times(), tally.troubles());
        let (begin, end) = &found.window;
        let length = tally.window.length();
        let failures: Vec<_> = found
            .outcomes
            .iter()
            .filter_map(|outcome| {
                let text = outcome.failure.as_ref()?;
                Some(format!("{}: {text}", crate::enrol::machine_name(outcome.source)))
            })
            .collect();
        let committed: u64 = found.outcomes.iter().map(|outcome| outcome.committed).sum();
        let committed = committed.max(tally.sums.committed_writes.load(Relaxed));
        let cpu = end.cpu.saturating_sub(begin.cpu);
        let between = |a: (u64, u64), b: (u64, u64)| per_second(b.0 - a.0, b.1 - a.1, length);
        let offered_bytes = tally.sums.offered_bytes.load(Relaxed);
        let unix_ms = |at: Duration| u64::try_from((found.began_unix + at).as_millis());
        Self {
            asked: found.asked.clone(),
            is_interrupted: found.is_interrupted,
            counted_from_unix_ms: unix_ms(tally.window.begin).unwrap_or(u64::MAX),
            counted_to_unix_ms: unix_ms(tally.window.end).unwrap_or(u64::MAX),
            connected: tally.sums.welcomed.load(Relaxed),
            continued: tally.sums.continued.load(Relaxed),
            failed: failures.len() as u64 + found.unfinished,
            failures: failures.into_iter().take(FAILURES_TOLD).collect(),
            offered: per_second(offered_bytes, found.offered_writes, length),
            journaled: between(begin.journaled, end.journaled),
            committed: between(begin.committed, end.committed),
            late: percentiles(&times.late),
            journaled_latency: percentiles(&times.journaled),
            committed_latency: percentiles(&times.committed),
            writes_due: found.writes_due,
            writes_lost: found.writes_due.saturating_sub(committed),
            backlog_of_one_max: tally.sums.backlog_of_one_max.load(Relaxed),
            backlog_of_all_max: found.backlog_of_all_max,
            resent_frames: tally.sums.resent_frames.load(Relaxed),
            reconnects: troubles.reconnects,
            refusals: troubles.refusals,
            errors: troubles.errors,
            cpu_seconds: cpu.as_secs_f64(),
            cpu_seconds_per_gib: per_gib(cpu, end.sent - begin.sent),
            connect_seconds: found.connect.as_secs_f64(),
            enrol_seconds: found.enrol.as_secs_f64(),
            wall_seconds: found.wall.as_secs_f64(),
        }
    }

    /// Whether every source went through and every write is committed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.writes_lost == 0 && !self.is_interrupted
    }

    /// The table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let Asked { sources, idle, block_size, volume_bytes, .. } = &self.asked;
        let mut line = |name: &str, value: String| {
            // Into a string: it cannot fail.
            let _ = writeln!(out, "{name:<18} {value}");
        };
        let ended = if self.is_interrupted { ", interrupted" } else { "" };
        line(
            "sources",
            format!(
                "{} of {} connected, {} failed{ended}",
                self.connected,
                u64::from(*sources) + u64::from(*idle),
                self.failed
            ),
        );
        line("writes", format!("{block_size} on volumes of {}", Bytes(*volume_bytes)));
        let rate = |rate: &Rate| {
            format!("{}, {:.1} writes/s", megabytes(rate.bytes_per_second), rate.writes_per_second)
        };
        line("offered", rate(&self.offered));
        line("journaled", rate(&self.journaled));
        line("committed", rate(&self.committed));
        line("latency [ms]", "       p50       p90       p99     p99.9       max".to_owned());
        for (name, of) in [
            ("  sent (late)", &self.late),
            ("  journaled", &self.journaled_latency),
            ("  committed", &self.committed_latency),
        ] {
            let all = [of.p50_ms, of.p90_ms, of.p99_ms, of.p999_ms, of.max_ms];
            line(name, all.map(|ms| format!("{ms:>10.2}")).concat());
        }
        line(
            "backlog max",
            format!(
                "{} writes of one source, {} of all",
                self.backlog_of_one_max, self.backlog_of_all_max
            ),
        );
        line("writes lost", format!("{} of {}", self.writes_lost, self.writes_due));
        line(
            "reconnects",
            format!("{}, {} frames sent again", self.reconnects, self.resent_frames),
        );
        for (name, counts) in [("refusals", &self.refusals), ("errors", &self.errors)] {
            let told = counts.iter().map(|(reason, count)| format!("{reason} {count}"));
            let told = told.collect::<Vec<_>>().join(", ");
            line(name, if told.is_empty() { "none".to_owned() } else { told });
        }
        let each = self.cpu_seconds_per_gib.map_or("-".to_owned(), |cpu| format!("{cpu:.2}"));
        line("own CPU", format!("{:.2} s, {each} s/GiB", self.cpu_seconds));
        line(
            "time",
            format!(
                "{:.1} s: {:.1} s to enrol, {:.1} s to connect",
                self.wall_seconds, self.enrol_seconds, self.connect_seconds
            ),
        );
        if self.continued > 0 {
            line(
                "note",
                format!(
                    "{} volumes held data of earlier runs; the same seed sends the same bytes, which the vault may know",
                    self.continued
                ),
            );
        }
        for failure in &self.failures {
            line("failure", failure.clone());
        }
        out
    }
}

#[cfg(test)]
mod tests;
