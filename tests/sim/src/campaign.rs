//! Many seeds, on every core: one run each, one thread a run.

use crate::faults::Fault;
use crate::oracle::Violation;
use crate::run::{Outcome, Setup, run};
use crate::trace::Trace;
use farshore_proto::bugs::{self, Bug};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

/// A seed that broke a rule.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The rule.
    pub violation: Violation,
}

/// What many runs came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Runs that ended.
    pub runs: u64,
    /// Those that broke a rule, by seed.
    pub failures: Vec<Failure>,
    /// Faults that struck.
    pub strikes: BTreeMap<Fault, u64>,
    /// Requests of guests.
    pub requests: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Puts of the store.
    pub puts: u64,
    /// Marks compared with their disk.
    pub marks: u64,
    /// Points read from the vault and compared.
    pub points: u64,
    /// Volumes that failovers took.
    pub fences: u64,
    /// Reads beside the writers that came to their end.
    pub reads: u64,
    /// Those that ended because the store was away.
    pub reads_away: u64,
    /// Points that control planes were told of.
    pub points_told: u64,
    /// Those that they dropped.
    pub points_dropped: u64,
    /// Maps written.
    pub maps: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Bases of volumes, horizons of logs made, segments deleted and spared.
    pub gone: [u64; 4],
    /// Acks judged.
    pub acks: u64,
    /// Virtual time.
    pub time: Duration,
}

impl Summary {
    fn add(&mut self, seed: u64, ended: Result<Outcome, Violation>) {
        self.runs += 1;
        let violation = match ended {
            Ok(outcome) => {
                for (fault, count) in outcome.strikes {
                    *self.strikes.entry(fault).or_default() += count;
                }
                self.requests += outcome.requests;
                self.frames += outcome.frames;
                self.puts += outcome.store.0;
                self.marks += outcome.counts.marks;
                self.points += outcome.counts.points_read;
                self.fences += outcome.counts.fences;
                self.reads += outcome.counts.reads;
                self.maps += outcome.counts.maps;
                self.checkpoints += outcome.counts.checkpoints;
                let counts = outcome.counts;
                let gone = [counts.bases, counts.horizons, counts.deleted, counts.spared];
                self.gone.iter_mut().zip(gone).for_each(|(sum, now)| *sum += now);
                self.reads_away += outcome.counts.reads_away;
                self.points_told += outcome.counts.points_told;
                self.points_dropped += outcome.counts.points_dropped;
                self.acks += outcome.counts.acks;
                self.time += outcome.time;
                outcome.violation
            }
            Err(violation) => Some(violation),
        };
        if let Some(violation) = violation {
            self.failures.push(Failure { seed, violation });
            self.failures.sort_by_key(|failure| failure.seed);
        }
    }
}

thread_local! {
    /// Where the last panic of this thread was, and what it said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic inside a run is a finding, not noise on the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(RUNNER) {
                return before(info);
            }
            PANIC.set(Some(info.to_string()));
        }));
    });
}

const RUNNER: &str = "sim-run";

/// Runs one seed, with these bugs switched on; a panic of an engine is a violation too.
///
/// # Errors
/// What the panic said.
pub fn run_one(setup: &Setup, bugs: &[Bug], trace: Trace) -> Result<Outcome, Violation> {
    bugs::switch_on(bugs);
    let ended = catch_unwind(AssertUnwindSafe(|| run(setup, trace)));
    bugs::switch_on(&[]);
    ended.map_err(|_| {
        let what = PANIC.take().unwrap_or_else(|| "a panic without a word".to_owned());
        Violation { rule: "assertion", what }
    })
}

/// Runs seeds on `threads` threads; `told` hears of every end. With `is_first_enough` the runs end at
/// the first failure, and only seeds up to the lowest that failed count.
///
/// # Panics
/// If the system has no thread for it.
pub fn run_many(
    seeds: Range<u64>,
    bugs: &[Bug],
    threads: usize,
    is_first_enough: bool,
    told: impl Fn(&Summary) + Send + Sync,
) -> Summary {
    catch_panics();
    let next = AtomicU64::new(seeds.start);
    let is_over = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let runner = std::thread::Builder::new().name(RUNNER.to_owned());
            let work = || {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let ended = run_one(&Setup::hunting(bugs, seed), bugs, Trace::off());
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.add(seed, ended);
                    if is_first_enough && !summary.failures.is_empty() {
                        is_over.store(true, Ordering::Relaxed);
                    }
                    told(&summary);
                }
            };
            runner.spawn_scoped(scope, work).expect("the system has a thread");
        }
    });
    summary.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one seed on a thread of its own, as [`run_many`] does.
///
/// # Errors
/// What a panic said.
///
/// # Panics
/// If the system has no thread for it.
pub fn run_alone(setup: &Setup, bugs: &[Bug], trace: Trace) -> Result<Outcome, Violation> {
    catch_panics();
    std::thread::scope(|scope| {
        let runner = std::thread::Builder::new().name(RUNNER.to_owned());
        let run = runner.spawn_scoped(scope, || run_one(setup, bugs, trace));
        run.expect("the system has a thread").join().expect("panics are caught inside")
    })
}

/// How a seeded bug was found.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// The bug.
    pub bug: Bug,
    /// Runs until then; all that were allowed if it was not found.
    pub runs: u64,
    /// The first failure.
    pub found: Option<Failure>,
}

/// Looks for a seeded bug with the seeds from `first` on. A seed that fails without it as well does not
/// count.
#[must_use]
pub fn hunt(bug: Bug, first: u64, seeds_max: u64, threads: usize) -> Hunt {
    let end = first + seeds_max;
    let mut next = first;
    while next < end {
        let mut failures = run_many(next..end, &[bug], threads, true, |_| ()).failures;
        if failures.is_empty() {
            break;
        }
        let failure = failures.swap_remove(0);
        next = failure.seed + 1;
        let without = run_alone(&Setup::hunting(&[bug], failure.seed), &[], Trace::off());
        if without.is_ok_and(|outcome| outcome.violation.is_none()) {
            return Hunt { bug, runs: next - first, found: Some(failure) };
        }
    }
    Hunt { bug, runs: seeds_max, found: None }
}
