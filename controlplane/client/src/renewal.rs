//! When a certificate is due to be renewed.
//!
//! At half of its life, by the wall clock or by time that has passed, whichever comes first. A wall clock
//! that is set back, once or again and again, would put the renewal off until those who look at the
//! certificate with a right clock take it no more; time that has passed does not go back.
//!
//! One that the control plane refused and then took is due at once. Its holder was taken for a copy: a
//! machine that was set back, while the control plane still remembered the newer certificate. Nodes and
//! agents go on asking for one that is newer than both.

use std::time::{Duration, SystemTime};

/// When one certificate is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renewal {
    not_before: SystemTime,
    not_after: SystemTime,
    /// When it was taken or found, in monotonic time.
    since: Duration,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Good,
    Refused,
    TakenAgain,
}

impl Renewal {
    /// Of a certificate that is valid for so long, and that is there since so long a monotonic time.
    pub(crate) fn new(not_before: SystemTime, not_after: SystemTime, since: Duration) -> Self {
        Self { not_before, not_after, since, standing: Standing::Good }
    }

    /// The control plane did not take it.
    pub(crate) fn refused(&mut self) {
        self.standing = Standing::Refused;
    }

    /// The control plane took it; whether it is due at once for that.
    pub(crate) fn taken(&mut self) -> bool {
        let is_again = self.standing == Standing::Refused;
        if is_again {
            self.standing = Standing::TakenAgain;
        }
        is_again
    }

    /// How long until it is due, by a monotonic clock and a wall clock.
    pub(crate) fn until(&self, now: Duration, wall: SystemTime) -> Duration {
        if self.standing == Standing::TakenAgain {
            return Duration::ZERO;
        }
        let half = self.not_after.duration_since(self.not_before).unwrap_or_default() / 2;
        let by_wall = (self.not_before + half).duration_since(wall).unwrap_or_default();
        let by_time = (self.since + half).saturating_sub(now);
        by_wall.min(by_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const LIFE: Duration = Duration::from_secs(24 * 3600);
    const SINCE: Duration = Duration::from_secs(77);

    fn issued() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_769_860_800)
    }

    fn renewal() -> Renewal {
        Renewal::new(issued(), issued() + LIFE, SINCE)
    }

    #[test]
    fn it_is_due_at_half_of_its_life() {
        let hour = Duration::from_secs(3600);
        assert_eq!(renewal().until(SINCE, issued()), LIFE / 2);
        assert_eq!(renewal().until(SINCE + hour, issued() + hour), LIFE / 2 - hour);
        assert_eq!(renewal().until(SINCE + LIFE / 2, issued() + LIFE / 2), Duration::ZERO);
    }

    #[test]
    fn one_that_is_found_old_is_due_by_the_wall_clock() {
        assert_eq!(renewal().until(SINCE, issued() + LIFE), Duration::ZERO);
        assert_eq!(renewal().until(SINCE, issued() + LIFE / 2), Duration::ZERO);
    }

    /// C1: it is asked for before others take it no more, whatever this machine's clock does.
    #[test]
    fn no_steps_of_a_clock_put_a_renewal_off() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut passed, mut off_s) = (Duration::ZERO, 0_i64);
            loop {
                passed += Duration::from_secs(rng.u64(1..120));
                if rng.u32(0..20) == 0 {
                    off_s += rng.i64(-7_200..3_600);
                }
                let wall = issued() + passed;
                let off = Duration::from_secs(off_s.unsigned_abs());
                let wall = if off_s < 0 { wall - off } else { wall + off };
                if renewal().until(SINCE + passed, wall).is_zero() {
                    break;
                }
                assert!(passed < LIFE / 2, "seed {seed}: not due after {passed:?}, {off_s} s off");
            }
        }
    }

    #[test]
    fn a_certificate_without_a_life_is_due() {
        let backwards = Renewal::new(issued() + LIFE, issued(), SINCE);
        assert_eq!(backwards.until(SINCE, issued()), Duration::ZERO);
    }
}
