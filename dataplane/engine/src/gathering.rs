//! When the marks of a shard's volumes come: together, so that one segment holds them all.
//!
//! A mark ends a batch. Were each set at a time of its own, a shard with many volumes would put a segment every time
//! that it may. So the node tells each agent when it gathers marks next, on no clock but its own: in so many
//! milliseconds. The agent sets its marks then, and an interval later, and is told again with every ack, so that two
//! clocks that do not run alike stay together. Who does not keep to it costs segments, nothing else.

use farshore_proto::{Timestamp, VolumeId};

/// Of the time that a batch waits for more marks, they come within so much: the rest is for their way.
const SPREAD: (u64, u64) = (3, 4);
/// A mark is this part of the interval behind the one before at least, when the times of both sides are brought together.
const NEAREST: u64 = 4;

/// In how many milliseconds a node gathers the marks of a volume next, whose marks are `interval_ms` apart; none if it
/// does not know of an interval. Within the linger of the shard each volume has its own moment: so many marks are not
/// journaled at once.
#[must_use]
pub fn gathers_in_ms(
    now: Timestamp,
    volume: VolumeId,
    (interval_ms, linger_ms): (u64, u64),
) -> Option<u32> {
    if interval_ms == 0 {
        return None;
    }
    let drawn = u64::from(u16::from_le_bytes([volume.0[0], volume.0[15]]));
    let spread = (linger_ms * SPREAD.0 / SPREAD.1).min(interval_ms - 1) + 1;
    let at = (now.0 + interval_ms - drawn % spread) % interval_ms;
    u32::try_from(interval_ms - at).ok().filter(|ms| *ms < u32::MAX)
}

/// When the next mark is due, after one that was due at `due` was set `now`: an interval later, or when the node
/// gathers marks, which it said to do at `gathers_at` and every interval.
#[must_use]
pub fn next_mark(
    now: Timestamp,
    due: Timestamp,
    interval_ms: u64,
    gathers_at: Option<Timestamp>,
) -> Timestamp {
    let interval_ms = interval_ms.max(1);
    let Some(gathers_at) = gathers_at else { return due.plus_ms(interval_ms).max(now) };
    let earliest = now.plus_ms(interval_ms / NEAREST);
    // The first of the node's moments from then on.
    let behind =
        (earliest.0 % interval_ms + interval_ms - gathers_at.0 % interval_ms) % interval_ms;
    earliest.plus_ms((interval_ms - behind) % interval_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_word_of_the_node_marks_are_an_interval_apart() {
        assert_eq!(next_mark(Timestamp(1010), Timestamp(1000), 500, None), Timestamp(1500));
        assert_eq!(next_mark(Timestamp(9000), Timestamp(1000), 500, None), Timestamp(9000));
        assert_eq!(gathers_in_ms(Timestamp(5), VolumeId([1; 16]), (0, 0)), None);
    }

    proptest! {
        /// Two clocks that begin anywhere and run alike: the first mark behind an ack is at the node's moment, and all
        /// that follow, an interval apart.
        #[test]
        fn marks_come_when_the_node_gathers_them(
            node in 0..u64::MAX / 4,
            agent in 0..u64::MAX / 4,
            interval in 100..3_600_000_u64,
            linger in 0..1000_u64,
            volume: [u8; 16],
        ) {
            let volume = VolumeId(volume);
            let linger = linger.min(interval / 4);
            let told = gathers_in_ms(Timestamp(node), volume, (interval, linger)).unwrap();
            prop_assert!(u64::from(told) <= interval);
            let gathers_at = Some(Timestamp(agent + u64::from(told)));
            let first = next_mark(Timestamp(agent), Timestamp(agent), interval, gathers_at);
            let wait = first.0 - agent;
            prop_assert!((interval / 4..=interval + interval / 4).contains(&wait), "{wait}");
            let phase = (node + wait) % interval;
            prop_assert!(phase <= linger * 3 / 4, "{phase} of {interval}");
            let second = next_mark(first, first, interval, gathers_at);
            prop_assert_eq!(second.0 - first.0, interval);
        }
    }
}
