//! When each write of a source is due.
//!
//! Every source writes at a fixed interval and begins at a phase of its own, drawn from the seed. The
//! due time of any write follows from its number alone, so waiting writes take no memory; and a write
//! is never due before one of a lower number of any source, which is what lets a duplicate repeat
//! "something sent before" without asking anybody. Many sources with random phases arrive together
//! much like a Poisson process; one source alone is regular.

use crate::random::draw;
use std::time::Duration;

/// The due times of one source, counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timetable {
    phase_ns: u64,
    interval_ns: u64,
    writes: u64,
}

/// Nanoseconds of a time that is bounded by the limits of a run.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Timetable {
    /// The timetable of source `source`: a write each `interval` until `end`.
    #[must_use]
    pub fn new(seed: u64, source: u32, interval: Duration, end: Duration) -> Self {
        let interval_ns = nanos(interval).max(1);
        let phase_ns = draw(seed, "phase", source.into(), 0) % interval_ns;
        let writes = nanos(end).saturating_sub(phase_ns).div_ceil(interval_ns);
        Self { phase_ns, interval_ns, writes }
    }

    /// The timetable of an idle source: one write within `within`, and nothing more.
    #[must_use]
    pub fn once(seed: u64, source: u32, within: Duration, end: Duration) -> Self {
        let interval_ns = nanos(within.min(end)).max(1);
        Self {
            phase_ns: draw(seed, "phase", source.into(), 0) % interval_ns,
            interval_ns,
            writes: 1,
        }
    }

    /// Writes of the whole run.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// When a write is due.
    #[must_use]
    pub fn due(&self, write: u64) -> Duration {
        Duration::from_nanos(self.phase_ns.saturating_add(write.saturating_mul(self.interval_ns)))
    }

    /// Writes that are due by `elapsed`, this instant included.
    #[must_use]
    pub fn due_by(&self, elapsed: Duration) -> u64 {
        let Some(since) = nanos(elapsed).checked_sub(self.phase_ns) else { return 0 };
        (since / self.interval_ns + 1).min(self.writes)
    }
}

/// When the first mark of a source is due: somewhere in its first interval.
#[must_use]
pub fn first_mark(seed: u64, source: u32, interval: Duration) -> Duration {
    let interval_ns = nanos(interval).max(1);
    Duration::from_nanos(draw(seed, "mark", source.into(), 0) % interval_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn due_times_are_evenly_spaced_and_counted_exactly() {
        for source in 0..50 {
            let table = Timetable::new(1, source, 10 * MS, 1000 * MS);
            assert!(table.due(0) < 10 * MS);
            assert_eq!(table.due(7) - table.due(6), 10 * MS);
            assert_eq!(table.writes(), 100);
            assert!(table.due(99) < 1000 * MS && table.due(100) >= 1000 * MS);
            for write in [0, 1, 50, 99] {
                let due = table.due(write);
                assert_eq!(table.due_by(due), write + 1);
                assert_eq!(table.due_by(due - Duration::from_nanos(1)), write);
            }
            assert_eq!(table.due_by(Duration::from_secs(100)), 100);
        }
    }

    #[test]
    fn phases_differ_by_source_and_by_seed_and_fill_the_interval() {
        let phase = |seed, source| Timetable::new(seed, source, 100 * MS, 200 * MS).due(0);
        assert_eq!(phase(1, 5), phase(1, 5));
        assert_ne!(phase(1, 5), phase(2, 5));
        let late = (0..1000).filter(|source| phase(1, *source) >= 50 * MS).count();
        assert!((450..550).contains(&late), "{late} of 1000 in the later half");
    }

    #[test]
    fn no_write_is_due_before_one_of_a_lower_number() {
        let tables: Vec<_> =
            (0..100).map(|source| Timetable::new(3, source, 10 * MS, 100 * MS)).collect();
        let latest = tables.iter().map(|table| table.due(4)).max();
        let earliest = tables.iter().map(|table| table.due(5)).min();
        assert!(latest < earliest);
    }

    #[test]
    fn first_marks_have_a_phase_within_the_interval() {
        let first = first_mark(1, 9, 1000 * MS);
        assert!(first < 1000 * MS);
        assert_ne!(first, first_mark(1, 10, 1000 * MS));
    }

    #[test]
    fn an_idle_source_writes_once_and_early() {
        for source in 0..50 {
            let table = Timetable::once(1, source, 100 * MS, 1000 * MS);
            assert!(table.writes() == 1 && table.due(0) < 100 * MS);
            assert_eq!(table.due_by(1000 * MS), 1);
            assert!(Timetable::once(1, source, 100 * MS, 10 * MS).due(0) < 10 * MS);
        }
    }
}
