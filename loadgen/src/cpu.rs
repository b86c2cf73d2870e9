//! What this process costs.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CPU time of all threads, user and system, since the process began.
#[must_use]
pub fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
