//! The one place that reads the wall clock.
//!
//! It dates what people see and decides when tokens and certificates expire and who is silent. It
//! decides nothing about data.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 if the clock stands before that.
#[must_use]
pub fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
#[must_use]
pub fn now_s() -> u64 {
    now_ms() / 1000
}
