//! The time by which old points go.
//!
//! It follows the wall clock down at once, and up only as far as time has passed without doubt: so
//! long as the system ran since the last look. A clock that is set forward deletes nothing that is
//! not old in truth; what it deletes then is as old as the time that has passed.
//!
//! Forward of that, the clock is believed when as much time has passed since the last jump as the longest
//! retention asks for, when it is set back, or when a person says that it is right. Many small steps are
//! one large one: what is gained without a doubt is counted, and forgotten slowly.

use farshore_proto::bugs::{Bug, is_on};
use serde::{Deserialize, Serialize};

/// The wall clock may gain so much between two looks without a doubt.
const SLACK_MS: u64 = 60_000;

/// What the wall clock has gained is forgotten at this part of the time that passes: a minute an hour.
const GAINED_SHARE: u64 = 60;

/// A system may have been off for so long without a doubt: nothing says how long it was.
const OFF_MS_MAX: u64 = 3_600_000;

/// What is kept from look to look, over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionClock {
    /// The time by which points go.
    pub time_ms: u64,
    /// While the wall clock is not believed: how much time has to pass until it is.
    pub doubt_ms: u64,
    /// While the wall clock is not believed: by how much it was ahead at least, since that began.
    #[serde(default)]
    pub ahead_ms: u64,
    /// How much the wall clock has gained without a doubt, as far as that is not forgotten.
    #[serde(default)]
    pub gained_ms: u64,
    /// The run of the system in which it was looked last.
    pub boot: String,
    /// For how long that run had lasted.
    pub up_ms: u64,
    /// The host of that run; empty where it was not known.
    #[serde(default)]
    pub host: String,
    /// The wall clock when it was looked last.
    #[serde(default)]
    pub wall_ms: u64,
}

/// What a look sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look<'a> {
    /// The wall clock.
    pub wall_ms: u64,
    /// The run of the system.
    pub boot: &'a str,
    /// How long it has lasted, with the time that it slept.
    pub up_ms: u64,
    /// The host; empty where it is not known.
    pub host: &'a str,
    /// The longest retention of all policies.
    pub retention_ms: u64,
}

/// What to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The wall clock is so much further than can be explained.
    Jumped {
        /// How much, in milliseconds.
        ahead_ms: u64,
    },
    /// The wall clock is believed again.
    Believed,
}

impl RetentionClock {
    /// Begins with the first look.
    #[must_use]
    pub fn begin(look: &Look<'_>) -> Self {
        let (boot, host) = (look.boot.to_owned(), look.host.to_owned());
        let (time_ms, up_ms) = (look.wall_ms, look.up_ms);
        let (doubt_ms, ahead_ms, gained_ms) = (0, 0, 0);
        let wall_ms = look.wall_ms;
        Self { time_ms, doubt_ms, ahead_ms, gained_ms, boot, up_ms, host, wall_ms }
    }

    /// Whether the wall clock is not believed.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.doubt_ms > 0
    }

    /// Since when a point counts as known that is heard of now: by the wall clock, but not before the last
    /// look and the time that has passed since. A clock that is set back and right again between two looks
    /// leaves no trace in this one, and what was heard of meanwhile must not be old for it.
    #[must_use]
    pub fn heard_ms(&self, look: &Look<'_>) -> u64 {
        if is_on(Bug::HeardByWall) {
            return look.wall_ms;
        }
        look.wall_ms.max(self.wall_ms.saturating_add(self.passed_ms(look)))
    }

    /// How much time has passed without doubt since the last look.
    fn passed_ms(&self, look: &Look<'_>) -> u64 {
        // Another run of the same host began after the last look, and has lasted for as long as it says;
        // before it anything may be. Another host may have run all the while: its run says nothing of the
        // time since that look.
        let is_same_host = !look.host.is_empty() && self.host == look.host;
        match (self.boot == look.boot, is_same_host) {
            (true, _) => look.up_ms.saturating_sub(self.up_ms),
            (false, true) => look.up_ms,
            (false, false) => 0,
        }
    }

    /// Takes in a look. Points go by `time_ms` from then on.
    pub fn step(&mut self, look: &Look<'_>) -> Option<Note> {
        let is_same_run = self.boot == look.boot;
        let passed = self.passed_ms(look);
        (self.boot, self.up_ms) = (look.boot.to_owned(), look.up_ms);
        (self.host, self.wall_ms) = (look.host.to_owned(), look.wall_ms);
        if is_on(Bug::PruneByWall) {
            self.time_ms = look.wall_ms;
            return None;
        }
        self.gained_ms = self.gained_ms.saturating_sub(passed / GAINED_SHARE);
        let (slack, room) = match is_same_run {
            true => (SLACK_MS, SLACK_MS.saturating_sub(self.gained_ms)),
            false => (OFF_MS_MAX, OFF_MS_MAX),
        };
        let explained = self.time_ms.saturating_add(passed);
        let ahead_ms = look.wall_ms.saturating_sub(explained);
        let was_in_doubt = self.is_in_doubt();
        self.doubt_ms = self.doubt_ms.saturating_sub(passed);
        // Points that were heard of since the jump before this one have the time of the clock of then.
        let is_another = was_in_doubt && ahead_ms > self.ahead_ms.saturating_add(slack);
        let is_passed = was_in_doubt && !self.is_in_doubt() && !is_another;
        if is_passed || ahead_ms <= room {
            self.gained_ms = match is_same_run && !is_passed {
                true => (self.gained_ms + ahead_ms)
                    .saturating_sub(explained.saturating_sub(look.wall_ms)),
                false => self.gained_ms,
            };
            (self.time_ms, self.doubt_ms) = (look.wall_ms, 0);
            return was_in_doubt.then_some(Note::Believed);
        }
        self.time_ms = explained;
        if was_in_doubt && !is_another {
            self.ahead_ms = self.ahead_ms.min(ahead_ms);
            return None;
        }
        (self.ahead_ms, self.doubt_ms) = (ahead_ms, look.retention_ms.max(1));
        Some(Note::Jumped { ahead_ms })
    }

    /// A person says that the wall clock is right.
    pub fn believe(&mut self, look: &Look<'_>) {
        *self = Self::begin(look);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_769_860_800_000;
    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;

    /// A system with a wall clock that may be off.
    struct World {
        clock: RetentionClock,
        boot: &'static str,
        host: &'static str,
        up_ms: u64,
        true_ms: u64,
        off_ms: i64,
    }

    impl World {
        fn begin() -> Self {
            let look = Look { wall_ms: NOON, boot: "a", host: "h", up_ms: HOUR, retention_ms: DAY };
            let clock = RetentionClock::begin(&look);
            Self { clock, boot: "a", host: "h", up_ms: HOUR, true_ms: NOON, off_ms: 0 }
        }

        fn look(&mut self) -> Option<Note> {
            let look = Look {
                wall_ms: self.true_ms.saturating_add_signed(self.off_ms),
                boot: self.boot,
                host: self.host,
                up_ms: self.up_ms,
                retention_ms: DAY,
            };
            self.clock.step(&look)
        }

        fn minute(&mut self) -> Option<Note> {
            self.up_ms += 60_000;
            self.true_ms += 60_000;
            self.look()
        }

        fn pass(&mut self, ms: u64) -> Vec<Note> {
            let mut notes = Vec::new();
            for _ in 0..ms / 60_000 {
                notes.extend(self.minute());
                assert!(self.clock.time_ms <= self.true_ms + SLACK_MS, "it never runs ahead");
            }
            notes
        }
    }

    #[test]
    fn it_is_the_wall_clock_while_that_goes_as_time_does() {
        let mut world = World::begin();
        assert_eq!(world.pass(3 * DAY), []);
        assert_eq!(world.clock.time_ms, NOON + 3 * DAY);
        // Asleep or stopped for days: the run of the system has lasted on.
        world.up_ms += 5 * DAY;
        world.true_ms += 5 * DAY;
        assert_eq!(world.look(), None);
        assert_eq!(world.clock.time_ms, world.true_ms);
    }

    #[test]
    fn a_jump_forward_is_no_time_that_has_passed() {
        for off_ms in [HOUR, DAY, 365 * DAY] {
            let mut world = World::begin();
            world.off_ms = i64::try_from(off_ms).unwrap();
            let notes = world.pass(10 * HOUR);
            assert_eq!(notes, [Note::Jumped { ahead_ms: off_ms }]);
            assert_eq!(world.clock.time_ms, NOON + 10 * HOUR, "so much has really passed");
            world.off_ms = 0;
            assert_eq!(world.pass(60_000), [Note::Believed], "it was set right");
            assert_eq!(world.clock.time_ms, world.true_ms);
        }
    }

    #[test]
    fn a_clock_is_believed_when_all_points_from_before_are_old_in_truth() {
        let mut world = World::begin();
        world.off_ms = 86_400_000 * 30;
        assert_eq!(world.pass(DAY).len(), 1);
        assert!(world.clock.is_in_doubt());
        let look = Look {
            wall_ms: world.true_ms + 30 * DAY + 120_000,
            boot: "a",
            host: "h",
            up_ms: world.up_ms + 120_000,
            retention_ms: DAY,
        };
        assert_eq!(world.clock.step(&look), Some(Note::Believed));
        assert_eq!(world.clock.time_ms, look.wall_ms);
    }

    #[test]
    fn a_person_can_say_that_the_clock_is_right() {
        let mut world = World::begin();
        (world.boot, world.up_ms) = ("b", 60_000);
        world.true_ms += 3 * DAY;
        assert!(matches!(world.look(), Some(Note::Jumped { .. })), "it was off for days");
        let look =
            Look { wall_ms: world.true_ms, boot: "b", host: "h", up_ms: 60_000, retention_ms: DAY };
        world.clock.believe(&look);
        assert!(!world.clock.is_in_doubt());
        assert_eq!((world.pass(HOUR), world.clock.time_ms), (vec![], world.true_ms));
    }

    /// C7: the catalogue moves to a host whose clock is ahead, and that has run for a year.
    #[test]
    fn the_uptime_of_another_host_is_no_time_that_has_passed() {
        for host in ["other", ""] {
            let mut world = World::begin();
            (world.boot, world.host, world.up_ms) = ("b", host, 365 * DAY);
            world.off_ms = i64::try_from(300 * DAY).unwrap();
            world.true_ms += HOUR;
            assert!(matches!(world.look(), Some(Note::Jumped { .. })), "{host:?}");
            assert_eq!(world.clock.time_ms, NOON, "nothing is known to have passed");
            assert!(world.pass(HOUR).is_empty() && world.clock.is_in_doubt());
            assert_eq!(world.clock.time_ms, NOON + HOUR, "from here on it is");
        }
        // The same host after a reboot: its run began after the last look.
        let mut world = World::begin();
        (world.boot, world.up_ms) = ("b", 5 * HOUR);
        world.true_ms += 5 * HOUR + 600_000;
        assert_eq!(world.look(), None);
        assert_eq!(world.clock.time_ms, world.true_ms);
    }

    /// A catalogue whose points are heard of each minute and go when they are a day old by the clock.
    struct Catalogue {
        world: World,
        /// When each was heard of, by the wall clock and in truth.
        points: Vec<(u64, u64)>,
    }

    impl Catalogue {
        fn minute(&mut self) {
            self.world.minute();
            let (true_ms, time_ms) = (self.world.true_ms, self.world.clock.time_ms);
            self.points.retain(|(heard_ms, heard_true_ms)| {
                let is_old = heard_ms + DAY < time_ms;
                // An hour for what the clock may gain in a day.
                let age_ms = true_ms - heard_true_ms;
                assert!(!is_old || age_ms + HOUR >= DAY, "one of {age_ms} ms goes");
                !is_old
            });
            self.hear(self.world.off_ms);
        }

        /// A point is heard of while the clock is so far off, perhaps for that moment only.
        fn hear(&mut self, off_ms: i64) {
            let true_ms = self.world.true_ms;
            let wall_ms = true_ms.saturating_add_signed(off_ms);
            let (boot, host, up_ms) = (self.world.boot, self.world.host, self.world.up_ms);
            let look = Look { wall_ms, boot, host, up_ms, retention_ms: DAY };
            self.points.push((self.world.clock.heard_ms(&look), true_ms));
        }
    }

    fn days(number: u64) -> i64 {
        i64::try_from(number * DAY).unwrap()
    }

    /// C7: points that were heard of under a clock that was wrong already are not older for that it jumps
    /// again.
    #[test]
    fn a_clock_that_jumps_again_while_it_is_not_believed_deletes_nothing() {
        let mut catalogue = Catalogue { world: World::begin(), points: Vec::new() };
        for off_ms in [0, days(1), days(40), days(5), days(40)] {
            catalogue.world.off_ms = off_ms;
            (0..20 * 60).for_each(|_| catalogue.minute());
        }
        (0..30 * 60).for_each(|_| catalogue.minute());
        assert!(!catalogue.world.clock.is_in_doubt(), "it has been the same for a day");
        assert!(catalogue.points.len() < 30 * 60, "what is old goes then");
    }

    /// C7: steps that are each too small for a doubt.
    #[test]
    fn a_clock_that_gains_a_little_again_and_again_is_not_believed() {
        let mut catalogue = Catalogue { world: World::begin(), points: Vec::new() };
        for _ in 0..48 * 60 {
            catalogue.world.off_ms += 59_000;
            catalogue.minute();
        }
    }

    /// C7: whatever the clock does, no point goes that is not old.
    #[test]
    fn no_steps_of_a_clock_delete_what_is_not_old() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut catalogue = Catalogue { world: World::begin(), points: Vec::new() };
            for _ in 0..4 * 24 * 60 {
                let off_ms = &mut catalogue.world.off_ms;
                *off_ms += match rng.u32(0..300) {
                    0 => rng.i64(-days(3)..days(3)),
                    1 => -*off_ms,
                    2..=20 => rng.i64(-90_000..90_000),
                    _ => 0,
                };
                catalogue.minute();
                if rng.u32(0..20) == 0 {
                    catalogue.hear(rng.i64(-days(3)..days(3)));
                }
            }
        }
    }

    /// C7: the clock is set back and right again before anybody looks at it.
    #[test]
    fn a_moment_in_the_past_makes_no_point_old() {
        for off_ms in [-days(2), -days(400)] {
            let mut catalogue = Catalogue { world: World::begin(), points: Vec::new() };
            (0..10).for_each(|_| catalogue.minute());
            catalogue.hear(off_ms);
            (0..60).for_each(|_| catalogue.minute());
            assert_eq!(catalogue.points.len(), 71);
        }
    }

    #[test]
    fn a_short_time_off_is_no_doubt() {
        let mut world = World::begin();
        (world.boot, world.up_ms) = ("b", 30_000);
        world.true_ms += HOUR;
        assert_eq!(world.look(), None);
        assert_eq!(world.clock.time_ms, world.true_ms);
    }

    #[test]
    fn a_clock_set_back_keeps_longer_and_coming_back_is_a_jump() {
        let mut world = World::begin();
        world.off_ms = -7_200_000;
        assert_eq!(world.pass(HOUR), []);
        assert_eq!(world.clock.time_ms, world.true_ms - 2 * HOUR);
        world.off_ms = 0;
        assert_eq!(world.pass(60_000), [Note::Jumped { ahead_ms: 2 * HOUR }]);
    }
}
