//! Whether a certificate that is shown may still be used.
//!
//! An identity's certificates are numbered. A newer one ends the older ones, but not when it is
//! issued: the answer may be lost, and its holder must be able to go on with what it has. It ends
//! them when it is *used*. Calls that were on their way then are let through for a while.
//!
//! After that there is one holder of the newest certificate, and whoever shows an older one is
//! another: a copy of the directory, or the same machine set back to an older state. They are told
//! apart by whether the newer one is still there.

use std::time::Duration;

/// How long after the first use of a newer certificate an older one is taken for the same holder's:
/// longer than a connection is idle before it is closed.
pub const GRACE: Duration = Duration::from_secs(60);

/// A holder that has not been heard for so long is gone: each reports every second.
pub const LIVING: Duration = Duration::from_secs(60);

/// What the catalogue holds of the identity and of the certificate that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The identity was revoked.
    pub is_revoked: bool,
    /// Two holders of the identity were seen since it was enrolled.
    pub is_cloned: bool,
    /// The newest generation that was issued.
    pub newest: u64,
    /// Older generations are over.
    pub min: u64,
    /// The certificate itself; `None` if it was never issued, as far as is known.
    pub shown: Option<Shown>,
    /// The newest generation that was used, and when first, in Unix milliseconds.
    pub used: Option<(u64, u64)>,
}

/// The row of the certificate that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// It was used before.
    pub is_used: bool,
}

/// What is done with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is good.
    Good,
    /// It is good and was never used before: from now on older ones are over.
    First,
    /// Our CA signed it, it is newer than anything in the catalogue, so the catalogue was set back.
    Newer,
    /// A newer one is in use since a moment ago: good for this call, not for this connection.
    Late,
    /// A newer one was in use and is not any more: the holder was set back to an older state.
    SetBack,
    /// A newer one is in use at the same time: two hold the key.
    Cloned,
    /// The identity was enrolled again since.
    Over,
    /// The identity was revoked.
    Revoked,
    /// It is none that was issued here.
    Unknown,
}

/// When a certificate was used first, as far as this process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstUse {
    /// It was so long ago, by the monotonic clock.
    Seen(Duration),
    /// It was before this process began, which was so long ago.
    Before(Duration),
}

/// How long ago the newest used certificate was used first. Where this process saw it, no step of the wall
/// clock moves it: set back, the clock would have a copy go on for as long as it was set back, set forward,
/// it would have a call that was on its way look like one of a copy. Where it was before, the process has
/// run since at least.
#[must_use]
pub fn used_for(since_ms: u64, now_ms: u64, first_use: FirstUse) -> Duration {
    match first_use {
        FirstUse::Seen(ago) => ago,
        FirstUse::Before(ago) => ago.max(Duration::from_millis(now_ms.saturating_sub(since_ms))),
    }
}

/// Judges a certificate of `generation`. `now_ms` is the wall clock, `first_use` of the newest used one;
/// `silent` is how long ago that was seen last.
#[must_use]
pub fn judge(
    known: &Known,
    generation: u64,
    now_ms: u64,
    first_use: FirstUse,
    silent: Duration,
) -> Verdict {
    if known.is_revoked {
        return Verdict::Revoked;
    }
    let Some(shown) = known.shown else {
        return if generation > known.newest { Verdict::Newer } else { Verdict::Unknown };
    };
    if generation < known.min {
        return Verdict::Over;
    }
    match known.used {
        Some((used, since_ms)) if used > generation => {
            if used_for(since_ms, now_ms, first_use) < GRACE {
                Verdict::Late
            } else if silent >= LIVING {
                Verdict::SetBack
            } else {
                Verdict::Cloned
            }
        }
        _ if !shown.is_used => Verdict::First,
        _ => Verdict::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 10_000_000;
    const HEARD: Duration = Duration::from_secs(1);

    /// As by a process that has just begun.
    fn judge(known: &Known, generation: u64, now_ms: u64, silent: Duration) -> Verdict {
        super::judge(known, generation, now_ms, FirstUse::Before(HEARD), silent)
    }

    fn known(newest: u64, used: Option<(u64, u64)>, is_used: bool) -> Known {
        let shown = Some(Shown { is_used });
        Known { is_revoked: false, is_cloned: false, newest, min: 1, shown, used }
    }

    #[test]
    fn a_lost_answer_ends_nothing() {
        // 2 was issued and never arrived: 1 goes on, and 3 is good when it comes.
        let lost = known(2, Some((1, 0)), true);
        assert_eq!(judge(&lost, 1, NOW_MS, HEARD), Verdict::Good);
        let after = known(3, Some((1, 0)), false);
        assert_eq!(judge(&after, 3, NOW_MS, HEARD), Verdict::First);
    }

    #[test]
    fn the_newer_one_ends_the_older_when_it_is_used() {
        let grace_ms = u64::try_from(GRACE.as_millis()).unwrap();
        let just_now = known(2, Some((2, NOW_MS - grace_ms + 1)), true);
        assert_eq!(judge(&just_now, 1, NOW_MS, HEARD), Verdict::Late);
        let since_long = known(2, Some((2, NOW_MS - grace_ms)), true);
        assert_eq!(judge(&since_long, 1, NOW_MS, HEARD), Verdict::Cloned);
        assert_eq!(judge(&since_long, 2, NOW_MS, HEARD), Verdict::Good);
        // Whoever held 2 is gone: a machine that was set back, not a second one.
        assert_eq!(judge(&since_long, 1, NOW_MS, LIVING), Verdict::SetBack);
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_clones() {
        let later = known(2, Some((2, NOW_MS + 3_600_000)), true);
        assert_eq!(judge(&later, 1, NOW_MS, HEARD), Verdict::Late);
    }

    /// H8 C1: for as long as the clock is set back an older certificate would be as good as late.
    #[test]
    fn a_clock_that_steps_back_lets_no_copy_go_on() {
        let later = known(2, Some((2, NOW_MS + 3_600_000)), true);
        for first_use in [FirstUse::Seen(GRACE), FirstUse::Before(GRACE)] {
            let verdict = super::judge(&later, 1, NOW_MS, first_use, HEARD);
            assert_eq!(verdict, Verdict::Cloned, "{first_use:?}");
        }
    }

    /// H8 C1: whatever the wall clock does, the grace is as long as it is.
    #[test]
    fn no_steps_of_a_clock_change_who_is_a_copy() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let used_at_ms = NOW_MS.saturating_add_signed(rng.i64(-9_000_000..90_000_000));
            let known = known(2, Some((2, used_at_ms)), true);
            let mut passed = Duration::ZERO;
            while passed < 3 * GRACE {
                passed += Duration::from_secs(rng.u64(0..20));
                let now_ms = NOW_MS.saturating_add_signed(rng.i64(-9_000_000..90_000_000));
                let verdict = super::judge(&known, 1, now_ms, FirstUse::Seen(passed), HEARD);
                let expected = if passed < GRACE { Verdict::Late } else { Verdict::Cloned };
                assert_eq!(verdict, expected, "seed {seed}, {passed:?}");
            }
        }
    }

    #[test]
    fn another_enrolment_and_a_revocation_end_all() {
        let again = Known { min: 3, ..known(3, Some((2, 0)), true) };
        assert_eq!(judge(&again, 2, NOW_MS, LIVING), Verdict::Over);
        let again = Known { shown: Some(Shown { is_used: false }), ..again };
        assert_eq!(judge(&again, 3, NOW_MS, HEARD), Verdict::First);
        let revoked = Known { is_revoked: true, ..again };
        assert_eq!(judge(&revoked, 3, NOW_MS, HEARD), Verdict::Revoked);
    }

    #[test]
    fn a_catalogue_that_was_set_back_learns_from_what_is_shown() {
        let behind = Known { shown: None, ..known(4, Some((4, 0)), true) };
        assert_eq!(judge(&behind, 6, NOW_MS, HEARD), Verdict::Newer);
        for generation in [0, 3, 4] {
            assert_eq!(judge(&behind, generation, NOW_MS, HEARD), Verdict::Unknown);
        }
    }
}
