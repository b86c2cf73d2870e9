//! `vault verify` and `vault stats`.

use std::time::Instant;

use farshore_api::Exit;
use farshore_vault::stats::{self, Stats};
use farshore_vault::verify::{self, Report, VerifyProgress};
use serde::Serialize;
use serde_json::json;

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::output::size;
use crate::table::Table;

use super::open::{Source, vault_failure};

/// Problems that are printed for people; programs get all of them.
const SHOWN_MAX: usize = 20;

/// Result of `vault verify`.
#[derive(Debug, Serialize)]
struct Verified {
    vault: String,
    read_data: bool,
    whole: bool,
    volumes: u64,
    points: u64,
    /// Fuzzy ones: the disk was scanned while it was written.
    scan_points: u64,
    /// Those without the blocks that the agent could not read.
    unknown_points: u64,
    machines: u64,
    groups: u64,
    segments: u64,
    frames: u64,
    chunks: u64,
    maps: u64,
    /// Those that could not be compared with the logs.
    maps_not_compared: u64,
    revisions: u64,
    register_entries: u64,
    bases: u64,
    horizons: u64,
    read_bytes: u64,
    problems: Vec<ProblemRow>,
    problems_left_out: u64,
    holes: Vec<HoleRow>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct ProblemRow {
    object: String,
    offset: u64,
    what: String,
}

/// Missing slots that a crash of a node explains.
#[derive(Debug, Serialize)]
struct HoleRow {
    log: String,
    slot: u64,
    later: u64,
}

impl Verified {
    fn new(vault: &str, read_data: bool, report: Report, started: Instant) -> Self {
        let whole = report.is_whole();
        let problem = |problem: verify::Problem| ProblemRow {
            object: problem.object.to_string(),
            offset: problem.offset,
            what: problem.what,
        };
        let hole = |hole: verify::Hole| HoleRow {
            log: hole.log.to_string(),
            slot: hole.slot.0,
            later: hole.later.0,
        };
        Self {
            vault: vault.to_owned(),
            read_data,
            whole,
            volumes: report.volumes,
            points: report.points,
            scan_points: report.scan_points,
            unknown_points: report.unknown_points,
            machines: report.machines,
            groups: report.groups,
            segments: report.segments,
            frames: report.frames,
            chunks: report.chunks,
            revisions: report.revisions,
            register_entries: report.register_entries,
            bases: report.bases,
            horizons: report.horizons,
            maps: report.maps,
            maps_not_compared: report.maps_not_compared,
            read_bytes: report.read_bytes,
            problems: report.problems.into_iter().map(problem).collect(),
            problems_left_out: report.problems_left_out,
            holes: report.holes.into_iter().map(hole).collect(),
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    /// How many points there are, and how many promise less than the disk at one instant.
    fn promises(&self) -> String {
        let mut text = self.points.to_string();
        if self.scan_points > 0 {
            text.push_str(&format!(", {} of them of scans (fuzzy)", self.scan_points));
        }
        if self.unknown_points > 0 {
            text.push_str(&format!(", {} of them with unknown blocks", self.unknown_points));
        }
        text
    }

    /// How many maps open, and of how many it is not known whether they are right.
    fn compared(&self) -> String {
        match self.maps_not_compared {
            0 => self.maps.to_string(),
            some => format!("{}, {some} of them not compared with the logs", self.maps),
        }
    }

    fn count(&self) -> u64 {
        self.problems.len() as u64 + self.problems_left_out
    }

    fn table(&self) -> String {
        let mut table = Table::pairs();
        table
            .pair("vault", &self.vault)
            .pair(
                "checked",
                if self.read_data { "streams, references, data" } else { "streams, references" },
            )
            .pair("machines", self.machines)
            .pair("volumes", self.volumes)
            .pair("recovery points", self.promises())
            .pair("segments", self.segments)
            .pair("chunks", self.chunks)
            .pair("maps", self.compared())
            .pair("read", size(self.read_bytes))
            .pair("took", format!("{:.1} s", self.seconds))
            .pair("problems", self.count());
        for hole in &self.holes {
            let text = format!(
                "logs/{}/{:016x} is missing, {:016x} is there (a node died there, and fills it when it \
                 runs again; if no node writes this log any more, segments are lost)",
                hole.log, hole.slot, hole.later
            );
            table.pair("open", text);
        }
        for problem in self.problems.iter().take(SHOWN_MAX) {
            let text = format!("at byte {}: {}", problem.offset, problem.what);
            table.pair(&format!("  {}", problem.object), text);
        }
        if self.count() > SHOWN_MAX as u64 {
            table.pair("  more", "--output json lists them");
        }
        table.render()
    }
}

/// Checks a vault; what is wrong is printed and makes the exit code that of damage.
pub(super) async fn verify(global: &Global, source: &Source, read_data: bool) -> Outcome {
    let started = Instant::now();
    let vault = source.open(global).await?;
    let job = Job::open_ended(global, "verifying");
    let told = |progress: VerifyProgress| {
        job.news(
            || {
                let (segments, read) = (progress.segments, size(progress.read_bytes));
                format!("{segments} segments, {read} read, {} problems", progress.problems)
            },
            || {
                json!({
                    "segments": progress.segments,
                    "read_bytes": progress.read_bytes,
                    "problems": progress.problems,
                })
            },
        );
    };
    let report = verify::verify(&vault, read_data, told).await;
    let report = report.map_err(|error| vault_failure(&error))?;
    let verified = Verified::new(vault.url(), read_data, report, started);
    job.finish(&verified, Verified::table)?;
    if verified.whole {
        return Ok(());
    }
    let problems = match verified.count() {
        1 => "a problem".to_owned(),
        count => format!("{count} problems"),
    };
    let message = format!("the vault {} has {problems}", verified.vault);
    Err(Failure::new(Exit::Corrupt, message).hint(
        "restore the named objects from a copy of the store, or use points that do not need them",
    ))
}

/// Result of `vault stats`.
#[derive(Debug, Serialize)]
struct Counted {
    raw_bytes: u64,
    zero_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    chunks: u64,
    segments: u64,
    volumes: u64,
    points: u64,
}

impl From<Stats> for Counted {
    fn from(stats: Stats) -> Self {
        Self {
            raw_bytes: stats.raw_bytes,
            zero_bytes: stats.zero_bytes,
            unique_bytes: stats.unique_bytes,
            stored_bytes: stats.stored_bytes,
            chunks: stats.chunks,
            segments: stats.segments,
            volumes: stats.volumes,
            points: stats.points,
        }
    }
}

/// Says how much a vault holds.
pub(super) async fn stats(global: &Global, source: &Source) -> Outcome {
    let vault = source.open(global).await?;
    let found = stats::stats(&vault).await.map_err(|error| vault_failure(&error))?;
    global.output.unwrap_or_default().print(&Counted::from(found), counts)
}

fn counts(counted: &Counted) -> String {
    let of_raw = |bytes: u64| match counted.raw_bytes {
        0 => size(bytes),
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        raw => format!("{} ({:.1} % of raw)", size(bytes), bytes as f64 / raw as f64 * 100.0),
    };
    let mut table = Table::pairs();
    table
        .pair("raw", format!("{} written, zeros not counted", size(counted.raw_bytes)))
        .pair("zeros", size(counted.zero_bytes))
        .pair("unique", of_raw(counted.unique_bytes))
        .pair("stored", of_raw(counted.stored_bytes))
        .pair("chunks", counted.chunks)
        .pair("segments", counted.segments)
        .pair("volumes", counted.volumes)
        .pair("recovery points", counted.points);
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_in_json_have_the_promised_fields() {
        let stats =
            Stats { raw_bytes: 4, unique_bytes: 3, stored_bytes: 2, chunks: 1, ..Stats::default() };
        let json = serde_json::to_value(Counted::from(stats)).unwrap();
        for (field, value) in
            [("raw_bytes", 4), ("unique_bytes", 3), ("stored_bytes", 2), ("chunks", 1)]
        {
            assert_eq!(json[field], value, "{field}");
        }
        assert!(counts(&stats.into()).contains("2 B (50.0 % of raw)"));
    }

    #[test]
    fn maps_that_were_not_compared_are_told() {
        let verified = |maps_not_compared| {
            let report = Report { maps: 7, maps_not_compared, ..Report::default() };
            Verified::new("file:///v", true, report, Instant::now())
        };
        assert!(!verified(0).table().contains("not compared"));
        let text = verified(2).table();
        assert!(text.contains("7, 2 of them not compared with the logs"), "{text}");
        let json = serde_json::to_value(verified(2)).unwrap();
        assert_eq!((&json["maps"], &json["maps_not_compared"]), (&json!(7), &json!(2)));
    }

    #[test]
    fn problems_are_listed_and_counted() {
        let problem = |number: u64| verify::Problem {
            object: farshore_vault::layout::ObjectName::key(
                farshore_proto::KeyNumber(1),
                farshore_proto::keys::Fingerprint([7; 8]),
            ),
            offset: number,
            what: "it is damaged".to_owned(),
        };
        let report = Report {
            problems: (0..30).map(problem).collect(),
            problems_left_out: 5,
            ..Report::default()
        };
        let verified = Verified::new("file:///v", true, report, Instant::now());
        assert!(!verified.whole);
        assert_eq!(verified.count(), 35);
        let text = verified.table();
        assert_eq!(text.matches("it is damaged").count(), SHOWN_MAX, "{text}");
        assert!(text.contains("--output json lists them"), "{text}");
        let json = serde_json::to_value(&verified).unwrap();
        assert_eq!(json["problems"][29]["object"], "keys/1/0707070707070707");
    }
}
