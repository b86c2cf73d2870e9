//! How long to wait before something is brought back once more.

use std::time::Duration;

use tokio::time::Instant;

/// Pause after the first failure; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause: what is mended meanwhile, such as a full disk, is noticed that soon.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What has run for so long is brought back at once.
const STABLE: Duration = Duration::from_secs(60);

/// Failures in a row, and since when there was none.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    up_since: Option<Instant>,
}

impl Backoff {
    /// Everything runs from now on.
    pub(super) fn up(&mut self, now: Instant) {
        self.up_since.get_or_insert(now);
    }

    /// Something that ran is gone.
    pub(super) fn lost(&mut self, now: Instant) {
        let was_stable = self.up_since.take().is_some_and(|since| now - since >= STABLE);
        self.failures = if was_stable { 0 } else { self.failures.saturating_add(1) };
    }

    /// It could not be brought back.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// The operator wants it at once.
    pub(super) fn forget(&mut self) {
        self.failures = 0;
    }

    /// Time to wait before the next attempt.
    pub(super) fn pause(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            failures => PAUSE_MIN.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_a_minute_of_peace() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert_eq!(backoff.pause(), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            backoff.up(now);
            backoff.lost(now);
            pauses.push(backoff.pause().as_secs());
        }
        assert_eq!(pauses[..6], [1, 2, 4, 8, 15, 15], "what ends at once is not started at once");
        assert_eq!(pauses[39], 15);
        backoff.up(now);
        backoff.up(now + STABLE);
        backoff.lost(now + STABLE);
        assert_eq!(backoff.pause(), Duration::ZERO);
        backoff.failed();
        assert_eq!(backoff.pause(), PAUSE_MIN);
        backoff.forget();
        assert_eq!(backoff.pause(), Duration::ZERO);
    }
}
