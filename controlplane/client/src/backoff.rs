//! Pauses between attempts.

use crate::http::ClientError;
use std::time::Duration;
use tokio::time::Instant;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A failure that lasts is told once in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Waits longer after each failure in a row: 0.2 s, doubled up to 5 s, and as long as was asked for.
///
/// After a success begin with a new one.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    told: Option<Instant>,
}

impl Backoff {
    /// Tells of the failure, unless one was told a short time ago, and waits. `what` was to be done.
    pub async fn after(&mut self, what: &str, error: &ClientError) {
        if self.told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(what, %error, "the control plane did not do it; trying again");
        }
        // Whoever is asked to wait longer waits longer.
        let asked = error.retry_after().unwrap_or_default();
        tokio::time::sleep(self.next_pause().max(asked)).await;
    }

    fn next_pause(&mut self) -> Duration {
        let pause = PAUSE_MIN * (1 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        pause.min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
        backoff.failures = u32::MAX;
        assert_eq!(backoff.next_pause(), PAUSE_MAX);
    }
}
