//! The marks of one source: when they are due, and which of them go into the stream.
//!
//! A source does what agents do. It sets its marks when the node gathers them, once the node has said when that is.
//! Over a stream that does not change it sends none: the latest is kept, and goes in front of the next write.

use farshore_engine::gathering::next_mark;
use farshore_proto::Timestamp;
use farshore_proto::mark::Mark;
use std::time::Duration;

/// The marks of one source. Times count from the start of the run, which is the source's clock.
#[derive(Debug)]
pub struct Marks {
    interval_ms: u64,
    end: Duration,
    due: Duration,
    gathers_at: Option<Timestamp>,
    /// Whether the newest in the stream is a mark.
    is_still: bool,
    kept: Option<Mark>,
    is_over: bool,
}

fn clock(elapsed: Duration) -> Timestamp {
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

impl Marks {
    /// The first is due at `first`, the last at `end`.
    #[must_use]
    pub fn new(first: Duration, interval: Duration, end: Duration) -> Self {
        let interval_ms = clock(interval).0;
        let (due, gathers_at, kept) = (first.min(end), None, None);
        Self { interval_ms, end, due, gathers_at, is_still: false, kept, is_over: false }
    }

    /// When the next is due; none behind the last.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        (!self.is_over).then_some(self.due)
    }

    /// The node gathers marks in so many milliseconds; none if it does not say.
    pub fn told(&mut self, elapsed: Duration, gathers_in_ms: Option<u32>) {
        let gathers_at = gathers_in_ms.map(|ms| clock(elapsed).plus_ms(ms.into()));
        self.gathers_at = gathers_at.or(self.gathers_at);
    }

    /// Whether the one that is due would say nothing new.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.is_still
    }

    /// The one that is due is in the stream.
    pub fn set(&mut self, elapsed: Duration) {
        (self.is_still, self.kept) = (true, None);
        self.pass(elapsed);
    }

    /// The one that is due is kept: nothing came behind the newest in the stream.
    pub fn keep(&mut self, mark: Mark, elapsed: Duration) {
        debug_assert!(self.is_still, "a mark stands for a stream that has not changed");
        self.kept = Some(mark);
        self.pass(elapsed);
    }

    /// What has to be in the stream before the next write.
    #[must_use]
    pub fn kept(&self) -> Option<Mark> {
        self.kept
    }

    /// What was kept is in the stream.
    pub fn kept_is_sent(&mut self) {
        self.kept = None;
    }

    /// A write is in the stream.
    pub fn wrote(&mut self) {
        debug_assert!(self.kept.is_none(), "what was kept goes in front");
        self.is_still = false;
    }

    fn pass(&mut self, elapsed: Duration) {
        if self.due >= self.end {
            self.is_over = true;
            return;
        }
        let (now, due) = (clock(elapsed), clock(self.due));
        let next = next_mark(now, due, self.interval_ms, self.gathers_at);
        self.due = Duration::from_millis(next.0).min(self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::mark::MarkGroup;
    use farshore_proto::{MarkKind, PointId};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn mark(number: u8) -> Mark {
        Mark {
            point: PointId([number; 16]),
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: false,
            time_unix_ms: number.into(),
            group: MarkGroup::ALONE,
        }
    }

    #[test]
    fn marks_are_an_interval_apart_until_the_node_says_when_it_gathers_them() {
        let mut marks = Marks::new(ms(300), ms(1000), ms(9000));
        marks.set(ms(310));
        assert_eq!(marks.due(), Some(ms(1300)));
        marks.told(ms(1200), Some(700));
        marks.set(ms(1300));
        assert_eq!(marks.due(), Some(ms(1900)), "at the node's moment");
        marks.told(ms(1400), None);
        marks.set(ms(1930));
        assert_eq!(marks.due(), Some(ms(2900)), "and an interval later");
    }

    #[test]
    fn the_last_is_at_the_end_and_none_is_behind_it() {
        let mut marks = Marks::new(ms(800), ms(1000), ms(1500));
        marks.set(ms(800));
        assert_eq!(marks.due(), Some(ms(1500)));
        marks.set(ms(1501));
        assert_eq!(marks.due(), None);
    }

    #[test]
    fn while_nothing_is_written_the_latest_is_kept_for_the_next_write() {
        let mut marks = Marks::new(ms(0), ms(1000), ms(9000));
        assert!(!marks.is_still(), "nobody knows what an earlier run left");
        marks.set(ms(0));
        assert!(marks.is_still() && marks.kept().is_none());
        marks.keep(mark(1), ms(1000));
        marks.keep(mark(2), ms(2000));
        assert_eq!((marks.kept(), marks.due()), (Some(mark(2)), Some(ms(3000))));
        marks.kept_is_sent();
        marks.wrote();
        assert!(!marks.is_still() && marks.kept().is_none());
    }
}
