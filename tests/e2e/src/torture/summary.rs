//! What a run did and found, as a table.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use super::faults::Struck;
use super::plan::{Fault, NAME_CHARS};
use super::site::Site;
use super::{Options, SEED_ENV};
use crate::oracle::Totals;

/// What the design promises from the loss of a node to replication elsewhere.
const MOVE_PROMISE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
struct OfKind {
    count: u64,
    worst_recovery: Duration,
    worst_rpo: f64,
    moved: usize,
    worst_move: Duration,
    late_puts: usize,
    not_tried: Option<&'static str>,
}

/// What a run did and found.
#[derive(Clone, Debug)]
pub struct Summary {
    seed: u64,
    minutes: u64,
    /// Rounds that were ended.
    pub rounds: u64,
    kinds: BTreeMap<Fault, OfKind>,
    last: String,
    /// Points that were exported and held against the log of writes.
    pub points: usize,
    totals: Totals,
    reads: u64,
    breaks: u64,
    slowest: Duration,
    elapsed: Duration,
    moves: Vec<Duration>,
    moves_seen: usize,
    /// Time to read and open the whole vault at the end.
    pub verified: Option<Duration>,
    violations: Vec<String>,
    kept: String,
}

impl Summary {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            seed: options.seed,
            minutes: options.minutes,
            rounds: 0,
            kinds: BTreeMap::new(),
            last: String::new(),
            points: 0,
            totals: Totals::default(),
            reads: 0,
            breaks: 0,
            slowest: Duration::ZERO,
            elapsed: Duration::ZERO,
            moves: Vec::new(),
            moves_seen: 0,
            verified: None,
            violations: Vec::new(),
            kept: String::new(),
        }
    }

    pub(super) fn note(&mut self, fault: Fault, struck: &Struck, recovered: Duration, rpo: f64) {
        let kind = self.kinds.entry(fault).or_default();
        kind.not_tried = struck.not_tried;
        if let Some(why) = struck.not_tried {
            self.last = format!("{:<NAME_CHARS$} not tried: {why}", fault.name());
            return;
        }
        kind.count += 1;
        kind.worst_recovery = kind.worst_recovery.max(recovered);
        kind.worst_rpo = kind.worst_rpo.max(rpo);
        kind.late_puts += struck.late_puts;
        self.last = format!("{:<NAME_CHARS$} recovered {:>7}", fault.name(), seconds(recovered));
        if let Some((moved, took)) = struck.moved {
            kind.moved += moved;
            kind.worst_move = kind.worst_move.max(took);
            self.moves.push(took);
            let _ = write!(self.last, ", {moved} moved {:>7}", seconds(took));
        }
        let _ = write!(self.last, ", RPO up to {rpo:.1} s");
    }

    pub(super) fn last_times(&mut self, round: Duration, checking: Duration) {
        let _ = write!(self.last, "; round {}, checks {}", seconds(round), seconds(checking));
    }

    pub(super) fn last_line(&self) -> &str {
        &self.last
    }

    pub(super) fn take(&mut self, site: &Site, elapsed: Duration) {
        self.elapsed = elapsed;
        self.moves_seen = site.watch.moves();
        for guest in &site.guests {
            let totals = guest.totals();
            self.totals.issued += totals.issued;
            self.totals.issued_bytes += totals.issued_bytes;
            self.totals.acked += totals.acked;
            self.totals.acked_bytes += totals.acked_bytes;
            let (breaks, reads) = guest.jobs.breaks_and_reads();
            (self.breaks, self.reads) = (self.breaks + breaks, self.reads + reads);
            self.slowest = self.slowest.max(guest.jobs.slowest());
        }
    }

    pub(super) fn fail(&mut self, error: &anyhow::Error, noted: &[String], kept: &Path) {
        self.violations = noted.to_vec();
        self.violations.push(format!("{error:#}"));
        self.violations.dedup();
        self.kept = kept.display().to_string();
        println!("{self}");
    }

    /// How to get the same faults and writes again.
    #[must_use]
    pub fn replay(&self) -> String {
        format!(
            "seed {}: `{SEED_ENV}={} cargo xtask torture --minutes {}`; the files are in {}",
            self.seed, self.seed, self.minutes, self.kept
        )
    }
}

impl Summary {
    fn write_kinds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<NAME_CHARS$} {:>5} {:>10} {:>8} {:>6} {:>10} {:>9}",
            "fault", "times", "recovered", "RPO", "moved", "elsewhere", "late puts"
        )?;
        for fault in Fault::ALL {
            let Some(kind) = self.kinds.get(&fault) else {
                writeln!(f, "{:<NAME_CHARS$} {:>5}", fault.name(), 0)?;
                continue;
            };
            if let Some(why) = kind.not_tried {
                writeln!(f, "{:<NAME_CHARS$} {:>5} not tried: {why}", fault.name(), 0)?;
                continue;
            }
            let (moved, took) = match kind.moved {
                0 => ("–".to_owned(), "–".to_owned()),
                moved => (moved.to_string(), seconds(kind.worst_move)),
            };
            writeln!(
                f,
                "{:<NAME_CHARS$} {:>5} {:>10} {:>6.1} s {:>6} {:>10} {:>9}",
                fault.name(),
                kind.count,
                seconds(kind.worst_recovery),
                kind.worst_rpo,
                moved,
                took,
                kind.late_puts
            )?;
        }
        Ok(())
    }

    fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { issued, issued_bytes, acked, acked_bytes } = self.totals;
        let mib = |bytes: u64| bytes >> 20;
        writeln!(f, "writes issued        {issued} ({} MiB)", mib(issued_bytes))?;
        writeln!(f, "writes acknowledged  {acked} ({} MiB)", mib(acked_bytes))?;
        writeln!(f, "blocks read back     {}", self.reads)?;
        writeln!(f, "connections broken   {}", self.breaks)?;
        writeln!(f, "slowest answer       {}, on a connection that held", seconds(self.slowest))?;
        let points = self.points;
        writeln!(f, "points checked       {points}, and one per machine and round that is its disk")
    }

    fn write_moves(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.moves.clone();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let late = sorted.iter().filter(|took| **took > MOVE_PROMISE).count();
        writeln!(
            f,
            "moves                {}, elsewhere in {} (median), {late} later than the promised {}",
            sorted.len(),
            seconds(median),
            seconds(MOVE_PROMISE)
        )?;
        let asked: usize = self.kinds.values().map(|kind| kind.moved).sum();
        let seen = self.moves_seen;
        writeln!(f, "volumes moved        {seen} times, {asked} of them by these moves")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seed, rounds, elapsed) = (self.seed, self.rounds, seconds(self.elapsed));
        writeln!(f, "torture, seed {seed}: {rounds} rounds in {elapsed}\n")?;
        self.write_kinds(f)?;
        writeln!(f)?;
        self.write_figures(f)?;
        self.write_moves(f)?;
        match self.verified {
            Some(took) => {
                writeln!(f, "vault verify         every object opens, {}", seconds(took))?
            }
            None => writeln!(f, "vault verify         not reached")?,
        }
        if self.violations.is_empty() {
            return write!(f, "violated             nothing");
        }
        for violation in &self.violations {
            writeln!(f, "VIOLATED             {violation}")?;
        }
        write!(f, "again                {}", self.replay())
    }
}

/// A time as people read it.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
