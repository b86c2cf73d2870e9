//! When a point was set, by the control plane's clock, as far as that can be told.
//!
//! Order is the rank's; this is for people, and for choosing a point by a time. It never decides what
//! is newer.

use farshore_api::point::CLOCK_DOUBT_MS;

/// What is known of the time of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointTimes {
    /// The agent's clock when it set the mark.
    pub time_ms: u64,
    /// How far that clock was ahead of ours when the agent was heard last.
    pub clock_off_ms: i64,
    /// When the point was heard of.
    pub heard_ms: u64,
    /// When the point before it by rank was set.
    pub before_ms: Option<u64>,
}

/// The time by our clock: not after the point was heard of, and then not before the point before it.
///
/// A small difference of the clocks is left alone: it may as well be the time that the report took.
#[must_use]
pub fn at_ms(times: PointTimes) -> u64 {
    let is_off = times.clock_off_ms.unsigned_abs() >= CLOCK_DOUBT_MS;
    let told = match is_off {
        true => times.time_ms.saturating_add_signed(times.clock_off_ms.saturating_neg()),
        false => times.time_ms,
    };
    // Our own clock may have been set back since the point before.
    let earliest = times.before_ms.unwrap_or(0).min(times.heard_ms);
    told.clamp(earliest, times.heard_ms)
}

/// How far the agent's clock was ahead (negative: behind) when it set the mark; none if that is
/// little.
#[must_use]
pub fn clock_off_ms(time_ms: u64, at_ms: u64) -> Option<i64> {
    let off = time_ms.checked_signed_diff(at_ms).unwrap_or(i64::MAX);
    (off.unsigned_abs() >= CLOCK_DOUBT_MS).then_some(off)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_769_860_800_000;
    const HOUR: u64 = 3_600_000;

    fn times(time_ms: u64) -> PointTimes {
        PointTimes { time_ms, clock_off_ms: 0, heard_ms: NOON, before_ms: None }
    }

    #[test]
    fn an_agents_word_is_taken_while_nothing_speaks_against_it() {
        assert_eq!(at_ms(times(NOON - 3_000)), NOON - 3_000);
        let late = at_ms(times(NOON - 5 * HOUR));
        assert_eq!(late, NOON - 5 * HOUR, "heard late, after the control plane was away");
        assert_eq!(clock_off_ms(NOON - 3_000, NOON - 3_000), None);
    }

    #[test]
    fn a_clock_that_is_ahead_shows_at_once() {
        let at = at_ms(times(NOON + 2 * HOUR));
        assert_eq!(at, NOON);
        assert_eq!(clock_off_ms(NOON + 2 * HOUR, at), Some(7_200_000));
        assert_eq!(clock_off_ms(u64::MAX, 0), Some(i64::MAX));
    }

    #[test]
    fn a_clock_that_is_behind_shows_by_the_agents_own_word_or_by_the_point_before() {
        let told = PointTimes { clock_off_ms: -7_200_000, ..times(NOON - 2 * HOUR - 1_000) };
        assert_eq!(at_ms(told), NOON - 1_000);
        let set_right_since =
            PointTimes { before_ms: Some(NOON - 9_000), ..times(NOON - 2 * HOUR) };
        assert_eq!(at_ms(set_right_since), NOON - 9_000);
    }

    #[test]
    fn it_grows_with_the_rank_and_stays_behind_the_hearing() {
        let mut before_ms = None;
        let clocks = [0, 2 * HOUR, 1, 3, HOUR, 2];
        for (number, ahead) in (1_u64..).zip(clocks) {
            let heard_ms = NOON + number * 1_000;
            let time_ms = heard_ms - 500 + ahead;
            let at = at_ms(PointTimes { time_ms, clock_off_ms: 0, heard_ms, before_ms });
            assert!(before_ms <= Some(at) && at <= heard_ms);
            before_ms = Some(at);
        }
        let set_back = PointTimes { before_ms: Some(NOON + HOUR), ..times(NOON - 1_000) };
        assert_eq!(at_ms(set_back), NOON, "our own clock was set back");
    }
}
