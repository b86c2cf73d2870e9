//! What the sources found, gathered in one place.

use crate::limits::{LATENCY_MAX, REASONS_MAX};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Times in microseconds.
pub type Latencies = Histogram<u64>;

/// The part of a run that counts: from the end of the warm-up to the end of the timetable, both
/// counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First instant that counts.
    pub begin: Duration,
    /// First instant that does not count any more.
    pub end: Duration,
}

impl Window {
    /// Whether an instant is inside.
    #[must_use]
    pub fn holds(&self, at: Duration) -> bool {
        (self.begin..self.end).contains(&at)
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}

/// Times since writes were due, of those that were due inside the window.
#[derive(Debug, Clone)]
pub struct Times {
    /// Until the write was given to the connection: the part of the latency that is the
    /// generator's own or a closed window's.
    pub late: Latencies,
    /// Until the ack `journaled`.
    pub journaled: Latencies,
    /// Until the ack `committed`.
    pub committed: Latencies,
}

/// What went wrong without being the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Connections after the first of a source.
    pub reconnects: u64,
    /// Refusals of nodes by their word.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that were not had or broke, by reason.
    pub errors: BTreeMap<String, u64>,
}

/// Sums that only grow, over the whole run.
#[derive(Debug, Default)]
pub struct Sums {
    /// Sources welcomed at least once.
    pub welcomed: AtomicU64,
    /// Sources that found data of an earlier run on their volume.
    pub continued: AtomicU64,
    /// Writes given to a connection for the first time, whenever due.
    pub sent_writes: AtomicU64,
    /// Their bytes.
    pub sent_bytes: AtomicU64,
    /// Frames given to a connection again, marks too.
    pub resent_frames: AtomicU64,
    /// Bytes of writes journaled.
    pub journaled_bytes: AtomicU64,
    /// Writes journaled.
    pub journaled_writes: AtomicU64,
    /// Bytes of writes committed.
    pub committed_bytes: AtomicU64,
    /// Writes committed.
    pub committed_writes: AtomicU64,
    /// Bytes, of writes that were due inside the window, given to a connection.
    pub offered_bytes: AtomicU64,
    /// Most writes that were due and not sent, of one source.
    pub backlog_of_one_max: AtomicU64,
}

/// Where all sources put what they find.
#[derive(Debug)]
pub struct Tally {
    /// What counts.
    pub window: Window,
    /// Sums.
    pub sums: Sums,
    times: Mutex<Times>,
    troubles: Mutex<Troubles>,
}

/// Which time of a write is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Given to the connection.
    Sent,
    /// Acked journaled.
    Journaled,
    /// Acked committed.
    Committed,
}

/// A histogram of times up to the limit, exact to a thousandth.
///
/// # Panics
/// Never: the bounds are constants in order.
#[must_use]
pub fn latencies() -> Latencies {
    let max = u64::try_from(LATENCY_MAX.as_micros()).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, max, 3).expect("the bounds are in order")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// An empty tally.
    #[must_use]
    pub fn new(window: Window) -> Self {
        let times = Times { late: latencies(), journaled: latencies(), committed: latencies() };
        let (times, troubles) = (Mutex::new(times), Mutex::default());
        Self { window, sums: Sums::default(), times, troubles }
    }

    /// Notes times: for each write when it was due and how many bytes it has. `now` and the due
    /// times count from the start of the run.
    pub fn note(&self, stage: Stage, now: Duration, writes: impl Iterator<Item = (Duration, u64)>) {
        let (mut bytes, mut count, mut offered) = (0, 0, 0);
        let mut times = lock(&self.times);
        let histogram = match stage {
            Stage::Sent => &mut times.late,
            Stage::Journaled => &mut times.journaled,
            Stage::Committed => &mut times.committed,
        };
        for (due, size) in writes {
            bytes += size;
            count += 1;
            if self.window.holds(due) {
                offered += size;
                let micros = now.saturating_sub(due).as_micros();
                histogram.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX).max(1));
            }
        }
        drop(times);
        let sums = &self.sums;
        let (of_writes, of_bytes) = match stage {
            Stage::Sent => {
                sums.offered_bytes.fetch_add(offered, Relaxed);
                (&sums.sent_writes, &sums.sent_bytes)
            }
            Stage::Journaled => (&sums.journaled_writes, &sums.journaled_bytes),
            Stage::Committed => (&sums.committed_writes, &sums.committed_bytes),
        };
        of_writes.fetch_add(count, Relaxed);
        of_bytes.fetch_add(bytes, Relaxed);
    }

    /// Notes how many due writes of a source wait.
    pub fn note_backlog(&self, writes: u64) {
        self.sums.backlog_of_one_max.fetch_max(writes, Relaxed);
    }

    /// Counts a refusal.
    pub fn refused(&self, word: &str) {
        count(&mut lock(&self.troubles).refusals, word);
    }

    /// Counts a connection that was not had or broke.
    pub fn failed(&self, reason: &str) {
        count(&mut lock(&self.troubles).errors, reason);
    }

    /// Counts a reconnect.
    pub fn reconnected(&self) {
        lock(&self.troubles).reconnects += 1;
    }

    /// What went wrong so far.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        lock(&self.troubles).clone()
    }

    /// The times so far.
    #[must_use]
    pub fn times(&self) -> Times {
        lock(&self.times).clone()
    }

    /// The time in microseconds below which `percent` of the journaled acks so far came.
    #[must_use]
    pub fn journaled_at(&self, percent: f64) -> u64 {
        lock(&self.times).journaled.value_at_percentile(percent)
    }
}

/// Counts within the limit: what is told apart comes from outside.
fn count(counts: &mut BTreeMap<String, u64>, reason: &str) {
    let is_told = counts.contains_key(reason) || counts.len() < REASONS_MAX;
    *counts.entry(if is_told { reason } else { "other" }.to_owned()).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_writes_due_inside_the_window_have_times_and_all_are_summed() {
        let tally = Tally::new(Window { begin: 10 * MS, end: 20 * MS });
        let writes = [9, 10, 19, 20].map(|due| (due * MS, 4096));
        tally.note(Stage::Journaled, 30 * MS, writes.into_iter());
        let times = tally.times().journaled;
        assert_eq!(times.len(), 2);
        assert!((19_980..=20_020).contains(&times.max()), "{}", times.max());
        assert!((10_990..=11_010).contains(&times.min()), "{}", times.min());
        assert_eq!(tally.sums.journaled_bytes.load(Relaxed), 4 * 4096);
        assert_eq!(tally.sums.offered_bytes.load(Relaxed), 0);
        tally.note(Stage::Sent, 30 * MS, writes.into_iter());
        assert_eq!(tally.sums.offered_bytes.load(Relaxed), 2 * 4096);
    }

    #[test]
    fn a_time_beyond_the_limit_counts_as_the_limit() {
        let tally = Tally::new(Window { begin: Duration::ZERO, end: 20 * MS });
        let now = LATENCY_MAX * 3;
        tally.note(Stage::Committed, now, std::iter::once((MS, 1)));
        let max = tally.times().committed.max();
        assert!(max >= u64::try_from(LATENCY_MAX.as_micros()).unwrap(), "{max}");
    }

    #[test]
    fn reasons_are_counted_up_to_a_limit() {
        let tally = Tally::new(Window { begin: Duration::ZERO, end: MS });
        for number in 0..REASONS_MAX + 10 {
            tally.failed(&format!("reason {number}"));
        }
        tally.failed("reason 0");
        let errors = tally.troubles().errors;
        assert_eq!(errors.len(), REASONS_MAX + 1);
        assert_eq!((errors["other"], errors["reason 0"]), (10, 2));
    }
}
