//! Whether the control plane is there, and so whether certificates can be renewed.
//!
//! A certificate that has ended is no good while its holder could have had another one. While the
//! control plane is away nobody can renew, and replication goes on with what there is: for as long
//! as an operator may need to bring it back, and for a while after that.

use farshore_api::limits::EXPIRED_SECONDS_MAX;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A control plane that has not answered for so long is away.
const AWAY_AFTER: Duration = Duration::from_secs(60);

/// How long after it came back everybody has had the time to renew: attempts are a minute apart.
const RENEWAL_TIME: Duration = Duration::from_secs(15 * 60);

/// When the control plane answered.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Option<Answers>>);

#[derive(Debug, Clone, Copy)]
struct Answers {
    /// The first since it was away, or since the start.
    since: Instant,
    last: Instant,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Option<Answers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It answered.
    pub(crate) fn answered(&self, now: Instant) {
        let mut answers = self.lock();
        let since = match *answers {
            Some(before) if now.duration_since(before.last) < AWAY_AFTER => before.since,
            _ => now,
        };
        *answers = Some(Answers { since, last: now });
    }

    /// Whether others may have been unable to renew.
    fn may_have_been_away(&self, now: Instant) -> bool {
        let answers = *self.lock();
        answers.is_none_or(|answers| {
            now.duration_since(answers.last) >= AWAY_AFTER
                || now.duration_since(answers.since) < RENEWAL_TIME
        })
    }

    /// Whether a certificate that ends, or ended, at `ends_s` (Unix time) is taken.
    pub(crate) fn takes(&self, ends_s: u64, now: Instant, wall: SystemTime) -> bool {
        let wall_s = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let is_renewable = wall_s <= ends_s.saturating_add(EXPIRED_SECONDS_MAX);
        wall_s < ends_s || (is_renewable && self.may_have_been_away(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS_S: u64 = 1_000_000;

    fn wall(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Answers every ten seconds for `time` from `start`; returns when it ended.
    fn answers(heard: &Heard, start: Instant, time: Duration) -> Instant {
        let mut now = start;
        while now < start + time {
            heard.answered(now);
            now += Duration::from_secs(10);
        }
        now
    }

    #[test]
    fn what_has_ended_is_taken_only_while_nobody_could_renew() {
        let (heard, start) = (Heard::default(), Instant::now());
        assert!(heard.takes(ENDS_S, start, wall(ENDS_S - 1)), "it has not ended");
        assert!(heard.takes(ENDS_S, start, wall(ENDS_S)), "the control plane was never heard");
        let now = answers(&heard, start, RENEWAL_TIME / 2);
        assert!(heard.takes(ENDS_S, now, wall(ENDS_S)), "it has just come back");
        let now = answers(&heard, now, RENEWAL_TIME);
        assert!(!heard.takes(ENDS_S, now, wall(ENDS_S)), "there was time to renew");
        assert!(heard.takes(ENDS_S, now, wall(ENDS_S - 1)));
        let away = now + AWAY_AFTER;
        assert!(heard.takes(ENDS_S, away, wall(ENDS_S)), "it is away again");
        let now = answers(&heard, away, Duration::from_secs(10));
        assert!(heard.takes(ENDS_S, now, wall(ENDS_S)), "and has just come back");
    }

    #[test]
    fn nothing_is_taken_for_ever() {
        let heard = Heard::default();
        let last = ENDS_S + EXPIRED_SECONDS_MAX;
        assert!(heard.takes(ENDS_S, Instant::now(), wall(last)));
        assert!(!heard.takes(ENDS_S, Instant::now(), wall(last + 1)));
    }
}
