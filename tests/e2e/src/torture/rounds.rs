//! Round after round: work, a fault, recovery, rest, and the comparison of everything with
//! everything.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::plan::{Fault, Plan};
use super::reverts::When;
use super::site::{Guest, Site};
use super::summary::{Summary, seconds};
use super::watch::set_ms;
use super::{Options, faults::Struck};
use crate::image;
use crate::logs;
use crate::random::Random;
use crate::system::System;

/// Answers that every job has had before a fault comes, so that it meets work.
const ANSWERS_BEFORE: u64 = 6;
/// How long the jobs may be held up, by a fault or by what comes after it.
const PROGRESS_LIMIT: Duration = Duration::from_secs(90);
/// How long the system may take to be as before once a fault is over.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// Errors that faults bring into the logs, of full disks and wrong clocks; any other is a violation.
const EXPECTED_ERRORS: [&str; 2] = ["No space left on device", "clock"];
/// Errors that a copy of the agent brings, of the disks that it has not and the volumes that it claims.
const COPY_ERRORS: [&str; 2] = ["is captured already", "two agents claim volume"];
/// A point may have been set so long before the control plane heard that it is committed.
const HEARD_MS: u64 = 10_000;

/// A committed recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) id: String,
    pub(super) seq: u64,
    /// By the agent's clock of then.
    pub(super) time_ms: u64,
    /// When it was set.
    pub(super) set_ms: u64,
}

impl Point {
    /// Whether it is the same one. What the control plane takes for the time of a wrong clock is not the
    /// point's.
    fn is(&self, other: &Self) -> bool {
        (&self.id, self.seq, self.time_ms) == (&other.id, other.seq, other.time_ms)
    }
}

/// Runs the torture to its end.
///
/// # Errors
/// What was violated, with the seed and the folder, which is kept then.
pub fn run(options: &Options) -> Result<Summary> {
    let mut summary = Summary::new(options);
    let begun = Instant::now();
    let mut site = Site::start(options)?;
    let mut run = Run {
        options,
        random: Random::new(options.seed ^ 0x5eed),
        older: Vec::new(),
        is_agent_cloned: false,
    };
    let done = run.torture(&mut site, &mut summary, begun);
    let ended = done.and_then(|()| run.finish(&mut site, &mut summary));
    summary.take(&site, begun.elapsed());
    if let Err(error) = ended {
        let kept = site.keep();
        summary.fail(&error, &site.violations.all(), &kept);
        return Err(error.context(summary.replay()));
    }
    Ok(summary)
}

struct Run<'a> {
    options: &'a Options,
    random: Random,
    /// For each guest, the points that were checked and the earliest moment each can be of.
    older: Vec<Vec<Checked>>,
    is_agent_cloned: bool,
}

/// A point that was looked at.
#[derive(Clone, Debug)]
struct Checked {
    point: Point,
    earliest: When,
    latest: When,
}

/// What a look at a machine at rest found.
#[derive(Debug, Default)]
struct Found {
    checked: Vec<Checked>,
    /// Ids of points that the control plane knows no more; the vault has them.
    forgotten: Vec<String>,
}

impl Run<'_> {
    fn torture(&mut self, site: &mut Site, summary: &mut Summary, begun: Instant) -> Result<()> {
        let mut plan = Plan::new(self.options.seed, &self.options.faults);
        let end = Duration::from_secs(self.options.minutes * 60);
        self.older = vec![Vec::new(); site.guests.len()];
        self.check_all(site, summary, None).context("before the first fault")?;
        while begun.elapsed() < end {
            let fault = plan.next();
            let context = || format!("round {}, {}", summary.rounds + 1, fault.name());
            let text = context();
            self.round(site, summary, fault).context(text)?;
            summary.rounds += 1;
            println!("{:>7}  {}", seconds(begun.elapsed()), summary.last_line());
        }
        Ok(())
    }

    fn round(&mut self, site: &mut Site, summary: &mut Summary, fault: Fault) -> Result<()> {
        for guest in &site.guests {
            guest.jobs.progress(ANSWERS_BEFORE, PROGRESS_LIMIT)?;
        }
        site.wait_for_both_nodes()?;
        site.watch.take_worst_rpo();
        let before = site.watch.machines();
        let begun = Instant::now();
        self.is_agent_cloned |= fault == Fault::AgentCloned;
        let struck = site.strike(fault, self.options)?;
        let since_ms = struck.over_ms;
        site.watch
            .until("everything to be protected again", RECOVERY_LIMIT, |machines| {
                machines.values().all(|seen| seen.is_good_since(since_ms))
            })
            .context("the system does not recover")?;
        let recovered = struck.over.elapsed();
        for guest in &site.guests {
            guest.jobs.progress(2, PROGRESS_LIMIT)?;
        }
        for (name, now) in site.watch.machines() {
            let epoch = before[&name].epoch;
            ensure!(now.epoch >= epoch, "{name}: the epoch went from {epoch} to {}", now.epoch);
        }
        site.watch.let_go_back(false);
        if struck.is_read_again {
            site.note_copies()?;
        }
        site.check_copies()?;
        if struck.forgets_since_ms.is_some() {
            site.copy_catalogue()?;
        }
        let checking = Instant::now();
        self.check_all(site, summary, Some(&struck))?;
        summary.note(fault, &struck, recovered, site.watch.take_worst_rpo());
        summary.last_times(begun.elapsed(), checking.elapsed());
        Ok(())
    }

    /// All guests rest; disks, log of writes, newest point and some older ones must agree.
    fn check_all(
        &mut self,
        site: &mut Site,
        summary: &mut Summary,
        struck: Option<&Struck>,
    ) -> Result<()> {
        for guest in &site.guests {
            guest.jobs.pause(PROGRESS_LIMIT)?;
        }
        let choices: Vec<u64> = site.guests.iter().map(|_| self.random.next_u64()).collect();
        let (system, is_long) = (&site.system, self.options.is_long());
        let results: Vec<Result<Found>> = thread::scope(|scope| {
            let checks: Vec<_> = site
                .guests
                .iter()
                .zip(&self.older)
                .zip(choices)
                .map(|((guest, older), choice)| {
                    // A short run has time for the points around the fault, a long one for one more.
                    let choice = is_long.then_some(choice);
                    scope.spawn(move || guest.check(system, struck, older, choice))
                })
                .collect();
            checks.into_iter().map(|check| check.join().expect("a check does not panic")).collect()
        });
        for (guest, (result, older)) in
            site.guests.iter().zip(results.into_iter().zip(&mut self.older))
        {
            let found = result.with_context(|| format!("machine {}", guest.machine.name))?;
            summary.points += found.checked.len();
            older.retain(|checked| !found.forgotten.contains(&checked.point.id));
            older.extend(found.checked);
            older.sort_by_key(|checked| checked.point.seq);
            check_order(older).with_context(|| format!("machine {}", guest.machine.name))?;
        }
        site.violations.check()?;
        for guest in &site.guests {
            guest.jobs.resume();
        }
        Ok(())
    }

    /// The end: everything rests, the whole vault is read, and nobody logged what was not expected.
    fn finish(&mut self, site: &mut Site, summary: &mut Summary) -> Result<()> {
        self.check_all(site, summary, None).context("after the last round")?;
        let vault = site.system.endpoint("vault")?;
        let bare = site.system.bare()?;
        let begun = Instant::now();
        bare.ok(&format!("vault verify --vault {vault} --read-data"))?;
        summary.verified = Some(begun.elapsed());
        site.stop()?;
        let mut expected = EXPECTED_ERRORS.map(str::to_owned).to_vec();
        if self.is_agent_cloned {
            expected.extend(COPY_ERRORS.map(str::to_owned));
        }
        let found = logs::unexpected(site.system.folder(), &expected)?;
        ensure!(found.is_empty(), "unexpected errors in the logs:\n{}", found.join("\n"));
        site.violations.check()
    }
}

/// Points in the order of their seqs must be states of the disk in that order.
fn check_order(checked: &[Checked]) -> Result<()> {
    let mut before: Option<&Checked> = None;
    for now in checked {
        if let Some(before) = before {
            ensure!(
                before.earliest <= now.latest,
                "point {} (seq {}) is an older state of the disk than point {} (seq {})",
                now.point.id,
                now.point.seq,
                before.point.id,
                before.point.seq
            );
        }
        if before.is_none_or(|before| before.earliest < now.earliest) {
            before = Some(now);
        }
    }
    Ok(())
}

impl Guest {
    /// Its committed points, oldest first, checked to rise.
    pub(super) fn points(&self, system: &System) -> Result<Vec<Point>> {
        let name = &self.machine.name;
        let listed = system.farshore().json(&format!("point list {name} --limit 10000"))?;
        let listed = listed["points"].as_array().context("no list of points")?;
        let committed = listed.iter().filter(|point| point["state"] == "committed");
        let points: Vec<Point> = committed
            .map(|point| {
                Some(Point {
                    id: point["point"].as_str()?.to_owned(),
                    seq: point["volumes"][0]["seq"].as_u64()?,
                    time_ms: point["time_unix_ms"].as_u64()?,
                    set_ms: set_ms(point)?,
                })
            })
            .collect::<Option<_>>()
            .context("a point without id, seq or time")?;
        for pair in points.windows(2) {
            ensure!(pair[0].seq < pair[1].seq, "points {:?} and {:?} of {name}", pair[0], pair[1]);
        }
        Ok(points)
    }

    /// Holds disk, log, newest point and some older points against each other, at rest.
    fn check(
        &self,
        system: &System,
        struck: Option<&Struck>,
        older: &[Checked],
        choice: Option<u64>,
    ) -> Result<Found> {
        let machine = &self.machine;
        self.jobs.log().check_disk(&machine.disk, &machine.base)?;
        let (point, file) = (machine.mark()?, system.path(&format!("{}.point", machine.name)));
        machine.export(&point, &file)?;
        image::compare(&machine.disk, &file).context("the newest point is not the disk")?;
        let points = self.points(system)?;
        let gone: Vec<&Checked> = older
            .iter()
            .filter(|checked| !points.iter().any(|point| point.is(&checked.point)))
            .collect();
        let since_ms = struck.and_then(|struck| struck.forgets_since_ms);
        for Checked { point, .. } in &gone {
            let may_be = since_ms.is_some_and(|since_ms| point.set_ms + HEARD_MS > since_ms);
            ensure!(may_be, "{point:?} is gone or changed");
        }
        self.check_forgotten(system, &gone)?;
        let forgotten = gone.into_iter().map(|checked| checked.point.id.clone()).collect();
        let mut checked = Vec::new();
        for point in chosen(&points, struck, choice) {
            let file = system.path(&format!("{}.older", machine.name));
            machine.export(&point.id, &file)?;
            let (earliest, latest) = self.judge(&file, point)?;
            fs::remove_file(&file)?;
            checked.push(Checked { point: point.clone(), earliest, latest });
        }
        fs::remove_file(&file)?;
        Ok(Found { checked, forgotten })
    }

    /// Points that the control plane knows no more are in the vault as they were: all are listed, and
    /// the newest is what it was.
    fn check_forgotten(&self, system: &System, forgotten: &[&Checked]) -> Result<()> {
        let Some(newest) = forgotten.last() else { return Ok(()) };
        let (vault, bare, volume) = (system.endpoint("vault")?, system.bare()?, &self.volume);
        let listed = bare.json(&format!("vault points --vault {vault} --volume {volume}"))?;
        let listed = listed["points"].as_array().context("no list of points")?;
        for Checked { point, .. } in forgotten {
            let is_there = listed.iter().any(|found| {
                found["point"] == point.id.as_str() && found["seq"].as_u64() == Some(point.seq)
            });
            ensure!(is_there, "{point:?} is gone from the vault");
        }
        let file = system.path(&format!("{}.forgotten", self.machine.name));
        let (id, to) = (&newest.point.id, file.display());
        bare.ok(&format!(
            "vault restore --vault {vault} --volume {volume} --point {id} --to {to}"
        ))?;
        let (earliest, latest) = self.judge(&file, &newest.point)?;
        let is_same = earliest <= newest.latest && newest.earliest <= latest;
        ensure!(is_same, "{:?} is another state of the disk than it was", newest.point);
        fs::remove_file(&file).with_context(|| format!("remove {to}"))
    }
}

/// The last point before the fault, the first after it, and one of any age if there is a choice.
fn chosen<'a>(points: &'a [Point], struck: Option<&Struck>, choice: Option<u64>) -> Vec<&'a Point> {
    let mut chosen = Vec::new();
    if let Some(struck) = struck {
        let before = points.partition_point(|point| point.set_ms <= struck.begun_ms);
        chosen.extend(before.checked_sub(1).map(|at| &points[at]));
        chosen.extend(points.get(before));
    }
    if let Some(choice) = choice {
        let at = usize::try_from(choice % points.len() as u64).expect("an index");
        chosen.push(&points[at]);
    }
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Moment;

    #[test]
    fn a_life_that_ended_lies_before_the_next_whatever_their_moments_are() {
        let checked = |seq, earliest, latest| Checked {
            point: Point { id: format!("point {seq}"), seq, time_ms: seq, set_ms: seq },
            earliest,
            latest,
        };
        let (start, end) = (Moment::START, Moment::END);
        let before = checked(1, (0, end), (0, end));
        let after = checked(2, (1, start), (1, start));
        check_order(&[before.clone(), after.clone()]).unwrap();
        let error = check_order(&[after, before]).unwrap_err().to_string();
        assert!(error.contains("is an older state of the disk"), "{error}");
    }
}
