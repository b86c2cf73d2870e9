//! The agent's clock: monotonic, but starting at the wall clock's time, so that marks read back from
//! a log have an age.

use farshore_proto::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Milliseconds since the Unix epoch by the wall clock; shown to people, never used for order.
#[must_use]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Tells a monotonic time.
pub trait Now: std::fmt::Debug + Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// A monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_ms: u64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), origin_ms: unix_ms() }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.origin_ms.saturating_add(elapsed))
    }

    /// When the runtime's clock showed `instant`, or will.
    #[must_use]
    pub fn at(&self, instant: Instant) -> Timestamp {
        let elapsed = instant.saturating_duration_since(self.origin).as_millis();
        Timestamp(self.origin_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX)))
    }

    /// When `at` is on the runtime's clock.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.origin + std::time::Duration::from_millis(at.0.saturating_sub(self.origin_ms))
    }

    /// The moment of this clock at which the wall clock showed `unix_ms_then`.
    #[must_use]
    pub fn at_wall(&self, unix_ms_then: u64) -> Timestamp {
        let age = unix_ms().saturating_sub(unix_ms_then);
        Timestamp(self.now().0.saturating_sub(age))
    }
}

impl Now for Clock {
    fn now(&self) -> Timestamp {
        Self::now(self)
    }
}
