//! The one place that reads the wall clock.
//!
//! It dates what people see and decides when tokens and certificates expire. It decides nothing about
//! data: who is silent is counted in monotonic time, and old points go by
//! [`crate::domain::retention`].

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

/// Milliseconds for which the system has run, with the time that it slept.
#[must_use]
pub fn up_ms() -> u64 {
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = up.tv_sec.saturating_mul(1_000).saturating_add(up.tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or_default()
}

/// What tells this host from others: the id of its installation, with its name, since images are copied
/// with their id and containers of one image have it in common. Empty where there is none.
#[must_use]
pub fn host() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match id.trim() {
        "" => String::new(),
        id => format!("{id}/{}", name.trim()),
    }
}

/// What tells this run of the system from others; empty where the kernel does not say.
#[must_use]
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}
