//! The sampler of one disk: which unit is looked at next, and what is done about a difference.
//!
//! It goes through the disk in rounds. A round looks at every unit once, in steps that spread over the
//! whole disk: what differs in many places is met soon, and what differs in one is met within the
//! round. It rests after each look for a multiple of the time that the look took, so that a disk with
//! much to do is hardly asked.
//!
//! Invariants:
//!   - W1: a round looks at every unit exactly once.
//!   - W2: one look at a time; the next begins after its rest.
//!   - W3: every difference is mended; the whole disk is read again at most once for each round.

use farshore_proto::Timestamp;

/// How a disk is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A look that took so long is followed by a rest of so many times that.
    pub rest_share: u64,
    /// Differences in one round from which on the whole disk is read again: whoever wrote so much past
    /// the capture has written more.
    pub differences_max: u64,
}

impl Default for Settings {
    /// The disk is busy with looks for a twentieth of the time at most.
    fn default() -> Self {
        Self { rest_share: 19, differences_max: 16 }
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The unit holds what was sent.
    Same,
    /// It was not asked: nothing is known of it, or not now.
    Nothing,
    /// It holds something else.
    Difference,
}

/// What happens to a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The next look may begin.
    Tick,
    /// The look has ended.
    Looked(Found),
}

/// What a sampler asks of its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Look at this unit; answer with `Looked`.
    Look {
        /// The unit.
        unit: u64,
    },
    /// Read this unit again and send it.
    Mend {
        /// The unit.
        unit: u64,
    },
    /// Read the whole disk again and send it.
    MendAll,
}

/// The sampler of one disk.
#[derive(Debug)]
pub struct Sampler {
    settings: Settings,
    units: u64,
    /// Units from one look to the next; it has no divisor with `units` in common.
    step: u64,
    /// The next unit.
    next: u64,
    /// Looks of this round that have ended.
    done: u64,
    rounds: u64,
    differences: u64,
    is_mending_all: bool,
    looking: Option<(u64, Timestamp)>,
    due: Timestamp,
}

impl Sampler {
    /// A sampler of a disk of so many units, which begins somewhere: `draw` is drawn by chance.
    ///
    /// # Panics
    /// If the disk has no units.
    #[must_use]
    pub fn new(settings: Settings, units: u64, draw: u64) -> Self {
        assert!(units > 0, "a disk is not empty");
        Self {
            settings,
            units,
            step: step_of(units),
            next: draw % units,
            done: 0,
            rounds: 0,
            differences: 0,
            is_mending_all: false,
            looking: None,
            due: Timestamp(0),
        }
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If a look ends that was not asked for: a bug in the driver.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => self.tick(now, out),
            Input::Looked(found) => self.looked(now, found, out),
        }
        self.check();
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.looking.is_some() || now < self.due {
            return;
        }
        let unit = self.next;
        self.looking = Some((unit, now));
        out.push(Output::Look { unit });
    }

    fn looked(&mut self, now: Timestamp, found: Found, out: &mut Vec<Output>) {
        let (unit, since) = self.looking.take().expect("a look was asked for");
        let rest_ms = now.since_ms(since).saturating_mul(self.settings.rest_share);
        self.due = Timestamp(now.0.saturating_add(rest_ms));
        if found == Found::Difference {
            self.differences += 1;
            let is_much = self.differences >= self.settings.differences_max;
            if is_much && !std::mem::replace(&mut self.is_mending_all, true) {
                out.push(Output::MendAll);
            } else {
                out.push(Output::Mend { unit });
            }
        }
        self.next = (self.next + self.step) % self.units;
        self.done += 1;
        if self.done == self.units {
            self.done = 0;
            self.rounds += 1;
            self.differences = 0;
            self.is_mending_all = false;
        }
    }

    fn check(&self) {
        assert!(self.next < self.units && self.done < self.units, "W1: beside the disk");
    }

    /// When the next look may begin.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        self.due
    }

    /// Rounds that have ended.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds
    }
}

/// The step of a round: about 0.618 of the disk, which spreads the first looks evenly, and without a
/// common divisor, so that every unit comes up.
fn step_of(units: u64) -> u64 {
    // Units are at most 2^30 (a volume has a limit), so this does not overflow.
    let golden = units.saturating_mul(618) / 1000;
    (golden.max(1)..).find(|step| divisor(*step, units) == 1).unwrap_or(1)
}

fn divisor(mut one: u64, mut other: u64) -> u64 {
    while other > 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// What all the samplers of an agent may read: so many bytes a second, one after the other.
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: u64,
    /// Until when what was taken lasts, in microseconds.
    taken_until_us: u64,
}

impl Budget {
    /// A budget of so many bytes a second.
    ///
    /// # Panics
    /// If that is none.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a budget is not empty");
        Self { bytes_per_second, taken_until_us: 0 }
    }

    /// Takes so many bytes; when they may be read. What was not used is not kept for later.
    pub fn take(&mut self, now: Timestamp, bytes: u64) -> Timestamp {
        let from = self.taken_until_us.max(now.0.saturating_mul(1000));
        let lasts_us = bytes.saturating_mul(1_000_000) / self.bytes_per_second;
        self.taken_until_us = from.saturating_add(lasts_us);
        Timestamp(from.div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Looks once, which takes `took_ms`; the unit, and what is to be done.
    fn look(
        sampler: &mut Sampler,
        now: &mut u64,
        took_ms: u64,
        found: Found,
    ) -> (u64, Vec<Output>) {
        *now = (*now).max(sampler.due().0);
        let mut out = Vec::new();
        sampler.step(Timestamp(*now), Input::Tick, &mut out);
        let [Output::Look { unit }] = out[..] else { panic!("no look: {out:?}") };
        out.clear();
        *now += took_ms;
        sampler.step(Timestamp(*now), Input::Looked(found), &mut out);
        (unit, out)
    }

    #[test]
    fn every_round_looks_at_every_unit_once_and_spreads() {
        for units in [1, 2, 3, 16, 100, 997, 1000, 4096] {
            let mut sampler = Sampler::new(Settings::default(), units, 12_345);
            let mut now = 0;
            for round in 1..=2 {
                let seen: Vec<u64> =
                    (0..units).map(|_| look(&mut sampler, &mut now, 0, Found::Same).0).collect();
                assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{units}");
                assert_eq!(sampler.rounds(), round);
                if units >= 100 {
                    let eighths: BTreeSet<u64> =
                        seen.iter().take(24).map(|unit| unit * 8 / units).collect();
                    assert_eq!(eighths.len(), 8, "{units}: {seen:?}");
                }
            }
        }
    }

    #[test]
    fn rests_for_as_long_as_the_disk_was_kept_busy() {
        let mut sampler = Sampler::new(Settings::default(), 10, 0);
        let mut now = 1000;
        look(&mut sampler, &mut now, 7, Found::Nothing);
        assert_eq!(sampler.due(), Timestamp(1007 + 7 * 19));
        let mut out = Vec::new();
        sampler.step(Timestamp(1007 + 7 * 19 - 1), Input::Tick, &mut out);
        assert_eq!(out, [], "it rests");
        sampler.step(Timestamp(1007 + 7 * 19), Input::Tick, &mut out);
        sampler.step(Timestamp(9999), Input::Tick, &mut out);
        assert_eq!(out.len(), 1, "one look at a time");
    }

    #[test]
    fn many_differences_have_the_whole_disk_read_again_once_a_round() {
        let settings = Settings { differences_max: 3, ..Settings::default() };
        let mut sampler = Sampler::new(settings, 6, 0);
        let mut now = 0;
        for _ in 0..2 {
            for place in 0..6 {
                let (unit, out) = look(&mut sampler, &mut now, 1, Found::Difference);
                let expected = if place == 2 { Output::MendAll } else { Output::Mend { unit } };
                assert_eq!(out, [expected], "place {place}");
            }
        }
        assert_eq!(look(&mut sampler, &mut now, 1, Found::Same).1, []);
    }

    #[test]
    fn a_budget_is_kept_whoever_takes_and_not_saved_up() {
        let mut budget = Budget::new(1 << 20);
        let unit = 64 << 10;
        assert_eq!(budget.take(Timestamp(10_000), unit), Timestamp(10_000));
        let last = (0..160).map(|_| budget.take(Timestamp(10_000), unit)).last().unwrap();
        assert_eq!(last, Timestamp(10_000 + 10_000), "160 units of 16 a second");
        assert_eq!(budget.take(Timestamp(90_000), unit), Timestamp(90_000));
        assert_eq!(budget.take(Timestamp(90_000), unit), Timestamp(90_063));
    }
}
