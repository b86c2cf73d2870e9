//! What the log says of connections that were refused: every one is counted, but whoever can open a
//! socket must not be able to fill the disk with lines about it.

use farshore_proto::Timestamp;

/// Lines of one shard within [`PERIOD_MS`].
const LINES_MAX: u32 = 20;
const PERIOD_MS: u64 = 10_000;

/// Says which refusals get a line.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// When the period began, and the lines in it.
    period: Option<(Timestamp, u32)>,
    unsaid: u64,
}

impl Refusals {
    /// Whether the refusal of now gets a line; if so, how many before it got none.
    pub(crate) fn may_say(&mut self, now: Timestamp) -> Option<u64> {
        let is_over = |(begun, _): &(Timestamp, u32)| now.since_ms(*begun) >= PERIOD_MS;
        if self.period.as_ref().is_none_or(is_over) {
            self.period = Some((now, 0));
        }
        let (_, lines) = self.period.as_mut()?;
        if *lines == LINES_MAX {
            self.unsaid += 1;
            return None;
        }
        *lines += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_a_few_lines_and_the_next_says_how_many_were_left_out() {
        let mut refusals = Refusals::default();
        let said = (0..1000).filter(|n| refusals.may_say(Timestamp(100 + n)).is_some()).count();
        assert_eq!(said, LINES_MAX as usize);
        assert_eq!(refusals.may_say(Timestamp(99 + PERIOD_MS)), None);
        assert_eq!(refusals.may_say(Timestamp(100 + PERIOD_MS)), Some(1001 - said as u64));
        assert_eq!(refusals.may_say(Timestamp(101 + PERIOD_MS)), Some(0));
    }
}
