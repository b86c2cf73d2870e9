//! The one place that reads the wall clock.
//!
//! It dates what people see and decides when tokens and certificates expire. It decides nothing about
//! data: who is silent is counted in monotonic time, and old points go by
//! [`crate::domain::retention`].

use farshore_api::limits::SILENT_AFTER_SECONDS;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// Where the steady clock of this run began: both clocks at one moment.
static BEGAN: LazyLock<(u64, Instant)> = LazyLock::new(|| (now_ms(), Instant::now()));

/// A clock that no step of the wall clock moves: the wall clock as it stood when this run first asked, and the
/// time that has passed since. What is heard of others is dated by it, so that silence is time that passed.
#[must_use]
pub fn steady_ms() -> u64 {
    let passed = u64::try_from(BEGAN.1.elapsed().as_millis()).unwrap_or(u64::MAX);
    BEGAN.0.saturating_add(passed)
}

/// How long nothing came since an instant of the steady clock, perhaps of an earlier run's: then at least
/// since this run began, whatever the wall clock was then.
#[must_use]
pub fn silence_ms(seen_ms: u64) -> u64 {
    silence(seen_ms, BEGAN.0, steady_ms())
}

/// Since when of [`steady_ms`] an agent or node must have been heard to count as healthy.
#[must_use]
pub fn healthy_since_ms() -> u64 {
    steady_ms().saturating_sub(SILENT_AFTER_SECONDS * 1000)
}

/// Whether an agent or node that was heard at an instant of [`steady_ms`] counts as healthy.
#[must_use]
pub fn is_healthy(seen_ms: u64) -> bool {
    (healthy_since_ms()..=steady_ms()).contains(&seen_ms)
}

fn silence(seen_ms: u64, began_ms: u64, steady_ms: u64) -> u64 {
    let of_this_run = (began_ms..=steady_ms).contains(&seen_ms);
    let least = if of_this_run { 0 } else { steady_ms.saturating_sub(began_ms) };
    steady_ms.saturating_sub(seen_ms).max(least)
}

/// An instant of the steady clock as the wall clock has it now, for people.
#[must_use]
pub fn shown_ms(seen_ms: u64) -> u64 {
    now_ms().saturating_sub(silence_ms(seen_ms))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_time_that_passed_whatever_an_earlier_run_took_for_now() {
        assert_eq!(silence(5_000, 1_000, 6_000), 1_000);
        assert_eq!(silence(1_000, 1_000, 6_000), 5_000);
        // Of a run whose clock was ahead, and of one that ended long ago.
        assert_eq!(silence(90_000, 1_000, 6_000), 5_000);
        assert_eq!(silence(0, 1_000, 6_000), 6_000);
        // Of a run whose clock was just a little ahead of this one's begin.
        assert_eq!(silence(999, 1_000, 6_000), 5_001);
    }

    #[test]
    fn what_is_heard_now_is_silent_from_now_on() {
        let seen = steady_ms();
        assert!(silence_ms(seen) < 60_000 && is_healthy(seen));
        assert!(!is_healthy(seen + 3_600_000), "an earlier run said so, by a clock that was ahead");
        assert!(shown_ms(seen).abs_diff(now_ms()) < 60_000);
    }
}
