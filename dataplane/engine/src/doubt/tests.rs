use super::*;

const REGIONS: u64 = 64;

fn fresh() -> Doubt {
    Doubt::new(Settings::default(), REGIONS, RegionSet::empty(REGIONS))
}

fn step(doubt: &mut Doubt, now: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    doubt.step(Timestamp(now), input, &mut out);
    out
}

fn writing(ticket: u64, first: u64, count: u64) -> Input {
    Input::Writing { ticket: Ticket(ticket), regions: Regions { first, count } }
}

fn written(ticket: u64) -> Input {
    Input::Written { ticket: Ticket(ticket) }
}

fn go(ticket: u64) -> Output {
    Output::Go { ticket: Ticket(ticket) }
}

#[test]
fn regions_of_a_range_are_those_it_touches() {
    let of = |block, count| Regions::of(BlockRange { block, count });
    assert_eq!(of(0, 1), Regions { first: 0, count: 1 });
    assert_eq!(of(63, 1), Regions { first: 0, count: 1 });
    assert_eq!(of(63, 2), Regions { first: 0, count: 2 });
    assert_eq!(of(64, 64), Regions { first: 1, count: 1 });
    assert_eq!(Regions::in_blocks(1), 1);
    assert_eq!(Regions::in_blocks(65), 2);
}

#[test]
fn a_set_counts_and_lists_its_regions() {
    let mut set = RegionSet::empty(130);
    for region in [129, 0, 64, 64, 63] {
        set.add(region);
    }
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
    set.remove(64);
    set.remove(65);
    assert_eq!((set.count(), set.first()), (3, Some(0)));
}

#[test]
fn a_write_waits_until_its_intent_is_durable_and_the_next_goes_at_once() {
    let mut doubt = fresh();
    let out = step(&mut doubt, 0, writing(1, 5, 2));
    assert_eq!(out, [Output::PersistIntent { regions: vec![5, 6] }]);
    assert!(step(&mut doubt, 0, writing(2, 6, 1)).is_empty());
    assert!(step(&mut doubt, 0, writing(3, 9, 1)).is_empty(), "D4: one at a time");
    let out = step(&mut doubt, 1, Input::IntentDurable);
    assert_eq!(out, [go(1), go(2), Output::PersistIntent { regions: vec![9] }]);
    assert_eq!(step(&mut doubt, 1, Input::IntentDurable), [go(3)]);
    assert_eq!(step(&mut doubt, 2, writing(4, 5, 1)), [go(4)]);
}

#[test]
fn a_sequential_stream_takes_intents_ahead() {
    let mut doubt = fresh();
    step(&mut doubt, 0, writing(1, 5, 1));
    step(&mut doubt, 0, Input::IntentDurable);
    let out = step(&mut doubt, 0, writing(2, 6, 1));
    assert_eq!(out, [Output::PersistIntent { regions: (6..15).collect() }]);
    step(&mut doubt, 0, Input::IntentDurable);
    assert_eq!(step(&mut doubt, 0, writing(3, 14, 1)), [go(3)]);
    let mut at_end = fresh();
    step(&mut at_end, 0, writing(1, 62, 1));
    step(&mut at_end, 0, Input::IntentDurable);
    let out = step(&mut at_end, 0, writing(2, 63, 1));
    assert_eq!(out, [Output::PersistIntent { regions: vec![63] }]);
}

#[test]
fn intents_are_cleared_by_a_flush_that_began_after_the_write() {
    let mut doubt = fresh();
    step(&mut doubt, 0, Input::Joined);
    step(&mut doubt, 0, writing(1, 5, 1));
    step(&mut doubt, 0, Input::IntentDurable);
    step(&mut doubt, 0, written(1));
    step(&mut doubt, 6_000, Input::FlushBegun);
    assert!(step(&mut doubt, 6_000, Input::Flushed).is_empty(), "touched since the last clearing");
    step(&mut doubt, 12_000, Input::FlushBegun);
    let out = step(&mut doubt, 12_000, Input::Flushed);
    assert_eq!(out, [Output::ClearIntent { regions: vec![5] }]);
    let out = step(&mut doubt, 12_000, writing(2, 5, 1));
    assert_eq!(out, [Output::PersistIntent { regions: vec![5] }]);
}

#[test]
fn a_write_during_the_flush_keeps_its_intent() {
    let mut doubt = fresh();
    step(&mut doubt, 0, Input::Joined);
    step(&mut doubt, 0, writing(1, 5, 2));
    step(&mut doubt, 0, Input::IntentDurable);
    step(&mut doubt, 0, written(1));
    step(&mut doubt, 6_000, Input::FlushBegun);
    step(&mut doubt, 6_000, Input::Flushed);
    step(&mut doubt, 12_000, Input::FlushBegun);
    assert_eq!(step(&mut doubt, 12_000, writing(2, 5, 1)), [go(2)]);
    let out = step(&mut doubt, 12_000, Input::Flushed);
    assert_eq!(out, [Output::ClearIntent { regions: vec![6] }]);
}

#[test]
fn nothing_is_cleared_before_the_log_joins_or_after_a_failed_flush() {
    let mut doubt = fresh();
    step(&mut doubt, 0, writing(1, 5, 1));
    step(&mut doubt, 0, Input::IntentDurable);
    step(&mut doubt, 0, written(1));
    for now in [6_000, 12_000, 18_000] {
        step(&mut doubt, now, Input::FlushBegun);
        assert!(step(&mut doubt, now, Input::Flushed).is_empty());
    }
    assert!(step(&mut doubt, 18_000, Input::Stopped).is_empty());
    step(&mut doubt, 18_000, Input::Joined);
    step(&mut doubt, 24_000, Input::FlushBegun);
    step(&mut doubt, 24_000, Input::FlushFailed);
    assert!(step(&mut doubt, 24_000, Input::Flushed).is_empty());
    assert_eq!(doubt.intents(), 1);
}

/// D30: what a log could not make durable is not made so by a later flush, and an orderly stop knows.
#[test]
fn a_stop_clears_only_what_its_own_flush_made_durable() {
    let stop = |inputs: &[Input]| {
        let mut doubt = fresh();
        step(&mut doubt, 0, Input::Joined);
        step(&mut doubt, 0, writing(1, 5, 1));
        step(&mut doubt, 0, Input::IntentDurable);
        inputs.iter().for_each(|input| drop(step(&mut doubt, 10, *input)));
        step(&mut doubt, 20, Input::Stopped)
    };
    let cleared = [Output::ClearIntent { regions: vec![5] }];
    assert_eq!(stop(&[written(1), Input::FlushBegun, Input::Flushed]), cleared);
    assert!(stop(&[written(1), Input::FlushBegun, Input::FlushFailed]).is_empty());
    assert!(stop(&[written(1)]).is_empty());
    assert!(stop(&[Input::FlushBegun, written(1), Input::Flushed]).is_empty());
    assert!(stop(&[Input::FlushBegun, Input::Flushed, written(1)]).is_empty());
}

#[test]
fn what_was_recovered_is_in_doubt_until_it_is_read_again() {
    let mut recovered = RegionSet::empty(REGIONS);
    recovered.add(3);
    recovered.add(40);
    let mut doubt = Doubt::new(Settings::default(), REGIONS, recovered);
    assert_eq!((doubt.in_doubt(), doubt.next_in_doubt()), (2, Some(3)));
    step(&mut doubt, 0, Input::Joined);
    step(&mut doubt, 0, Input::ReRead { region: 3 });
    assert_eq!(doubt.next_in_doubt(), Some(40));
    step(&mut doubt, 6_000, Input::FlushBegun);
    step(&mut doubt, 6_000, Input::Flushed);
    step(&mut doubt, 12_000, Input::FlushBegun);
    let out = step(&mut doubt, 12_000, Input::Flushed);
    assert_eq!(out, [Output::ClearIntent { regions: vec![3] }], "40 is still in doubt");
    assert!(step(&mut doubt, 12_000, Input::Stopped).is_empty());
}

#[test]
fn an_overflowed_region_stays_until_it_is_read_again() {
    let mut doubt = fresh();
    step(&mut doubt, 0, Input::Joined);
    step(&mut doubt, 0, writing(1, 7, 1));
    step(&mut doubt, 0, Input::IntentDurable);
    step(&mut doubt, 0, Input::Overflow { regions: Regions { first: 7, count: 1 } });
    step(&mut doubt, 0, written(1));
    for now in [6_000, 12_000, 18_000] {
        step(&mut doubt, now, Input::FlushBegun);
        assert!(step(&mut doubt, now, Input::Flushed).is_empty());
    }
    assert!(doubt.is_in_doubt(7));
}

/// D30: no write waits for intents that cannot be had, and none of them is cleared before all are durable.
#[test]
fn where_intents_cannot_be_had_every_region_counts_as_one_with_intent() {
    let mut doubt = fresh();
    step(&mut doubt, 0, Input::Joined);
    step(&mut doubt, 0, writing(1, 5, 1));
    assert!(step(&mut doubt, 0, writing(2, 6, 1)).is_empty());
    assert_eq!(step(&mut doubt, 0, Input::Voided), [go(1), go(2)]);
    assert_eq!(step(&mut doubt, 0, writing(3, 63, 1)), [go(3)]);
    assert_eq!((doubt.intents(), doubt.in_doubt()), (REGIONS, 0), "the log has them");
    step(&mut doubt, 0, Input::Overflow { regions: Regions { first: 63, count: 1 } });
    (1..=3).for_each(|ticket| assert!(step(&mut doubt, 0, written(ticket)).is_empty()));
    for now in [6_000, 12_000] {
        assert!(step(&mut doubt, now, Input::Tick).is_empty());
        step(&mut doubt, now, Input::FlushBegun);
        assert!(step(&mut doubt, now, Input::Flushed).is_empty(), "nothing of them counts");
    }
    assert!(step(&mut doubt, 12_000, Input::Stopped).is_empty());
    assert!(doubt.is_void());
    assert!(step(&mut doubt, 13_000, Input::Mended).is_empty());
    step(&mut doubt, 18_000, Input::FlushBegun);
    let out = step(&mut doubt, 18_000, Input::Flushed);
    // The last is in doubt, and what was written lately keeps its intent.
    let cleared = (0..63).filter(|region| ![5, 6].contains(region)).collect();
    assert_eq!(out, [Output::ClearIntent { regions: cleared }]);
}

#[test]
fn asks_for_a_flush_when_nobody_flushes() {
    let mut doubt = fresh();
    step(&mut doubt, 0, Input::Joined);
    assert!(step(&mut doubt, 60_000, Input::Tick).is_empty());
    step(&mut doubt, 60_000, writing(1, 5, 1));
    step(&mut doubt, 60_000, Input::IntentDurable);
    step(&mut doubt, 60_000, written(1));
    assert_eq!(step(&mut doubt, 60_001, Input::Tick), [Output::Flush]);
    assert!(step(&mut doubt, 60_002, Input::Tick).is_empty());
    assert_eq!(step(&mut doubt, 66_000, Input::Tick), [Output::Flush]);
}

/// A disk, a log and a durable intent file as sets of regions that differ; crash at every step.
#[test]
fn whatever_the_interleaving_a_crash_finds_every_difference() {
    for seed in 1..300 {
        Chaos::new(seed).run();
    }
}

/// What each region holds, as the number of the last write to it. Overlapping writes reach disk and
/// log in the same order: the driver locks their blocks.
struct Chaos {
    random: u64,
    doubt: Doubt,
    now: u64,
    ticket: u64,
    stamp: u64,
    wanted: BTreeMap<u64, Regions>,
    running: BTreeMap<u64, (u64, Regions)>,
    durable_intents: BTreeSet<u64>,
    persisting: Option<Vec<u64>>,
    /// Whoever finds the intents reads everything.
    is_void: bool,
    disk: Vec<u64>,
    log: Vec<u64>,
    durable_disk: Vec<u64>,
    durable_log: Vec<u64>,
    flushing: Option<(Vec<u64>, Vec<u64>)>,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let settings = Settings { clear_ms: 50, regions_max: 12, ahead: 2 };
        let empty = vec![0; 32];
        let mut doubt = Doubt::new(settings, 32, RegionSet::empty(32));
        doubt.step(Timestamp(0), Input::Joined, &mut Vec::new());
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            doubt,
            now: 0,
            ticket: 0,
            stamp: 0,
            wanted: BTreeMap::new(),
            running: BTreeMap::new(),
            durable_intents: BTreeSet::new(),
            persisting: None,
            is_void: false,
            disk: empty.clone(),
            log: empty.clone(),
            durable_disk: empty.clone(),
            durable_log: empty,
            flushing: None,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.doubt.step(Timestamp(self.now), input, &mut out);
        for output in out {
            match output {
                Output::PersistIntent { regions } => {
                    assert!(self.persisting.replace(regions).is_none(), "D4");
                }
                Output::ClearIntent { regions } => {
                    assert!(!self.is_void, "nothing is cleared in what is void");
                    for region in regions {
                        self.durable_intents.remove(&region);
                    }
                }
                Output::Go { ticket } => {
                    let regions = self.wanted.remove(&ticket.0).expect("waited");
                    self.stamp += 1;
                    self.running.insert(self.stamp, (ticket.0, regions));
                    for region in regions.iter() {
                        assert!(self.is_void || self.durable_intents.contains(&region), "D1");
                        self.disk[usize::try_from(region).unwrap()] = self.stamp;
                    }
                }
                Output::Flush => self.flush(),
            }
        }
    }

    fn flush(&mut self) {
        if self.flushing.is_none() {
            self.flushing = Some((self.disk.clone(), self.log.clone()));
            self.feed(Input::FlushBegun);
        }
    }

    /// The file of the intents takes something, or does not.
    fn errand(&mut self) {
        if self.is_void {
            self.durable_intents = (0..32).collect();
            self.is_void = false;
            return self.feed(Input::Mended);
        }
        let Some(regions) = self.persisting.take() else { return };
        if self.below(20) == 0 {
            self.is_void = true;
            return self.feed(Input::Voided);
        }
        self.durable_intents.extend(regions);
        self.feed(Input::IntentDurable);
    }

    fn turn(&mut self) {
        self.now += self.below(20);
        match self.below(8) {
            0..=2 => {
                self.ticket += 1;
                let first = self.below(30);
                let regions = Regions { first, count: 1 + self.below(2) };
                self.wanted.insert(self.ticket, regions);
                self.feed(Input::Writing { ticket: Ticket(self.ticket), regions });
            }
            3 => self.errand(),
            4 | 5 => {
                if let Some((stamp, (ticket, regions))) = self.running.pop_first() {
                    if self.below(10) == 0 {
                        self.feed(Input::Overflow { regions });
                    } else {
                        for region in regions.iter() {
                            let region = usize::try_from(region).unwrap();
                            self.log[region] = self.log[region].max(stamp);
                        }
                    }
                    self.feed(written(ticket));
                }
            }
            6 => match self.flushing.take() {
                Some((disk, log)) => {
                    (self.durable_disk, self.durable_log) = (disk, log);
                    self.feed(Input::Flushed);
                }
                None => self.flush(),
            },
            _ => {
                let idle = |chaos: &Self, region| {
                    !chaos.running.values().any(|(_, regions)| regions.iter().contains(&region))
                };
                match self.doubt.next_in_doubt() {
                    Some(region) if idle(self, region) => {
                        let place = usize::try_from(region).unwrap();
                        self.log[place] = self.disk[place];
                        self.feed(Input::ReRead { region });
                    }
                    _ => self.feed(Input::Tick),
                }
            }
        }
        self.crash();
    }

    /// After a kill the page cache is still there; after a power cut each region of disk and log
    /// holds something between what was flushed last and what was written. Wherever the two can
    /// differ, there is an intent.
    fn crash(&self) {
        for region in 0..32_u64 {
            let place = usize::try_from(region).unwrap();
            let is_settled = self.disk[place] == self.log[place]
                && self.durable_disk[place] == self.disk[place]
                && self.durable_log[place] == self.log[place];
            assert!(
                self.is_void || is_settled || self.durable_intents.contains(&region),
                "region {region} differs without an intent"
            );
        }
    }

    fn run(&mut self) {
        for _ in 0..400 {
            self.turn();
        }
    }
}

/// D35: what was known of the regions stays, and the new ones can be written.
#[test]
fn a_disk_grows_under_its_writes() {
    let mut doubt = fresh();
    step(&mut doubt, 0, writing(1, REGIONS - 1, 1));
    step(&mut doubt, 0, Input::IntentDurable);
    step(&mut doubt, 0, writing(2, 3, 1));
    assert!(step(&mut doubt, 1, Input::Grown { regions: 2 * REGIONS + 1 }).is_empty());
    let out = step(&mut doubt, 1, Input::IntentDurable);
    assert_eq!(out, [go(2)]);
    step(&mut doubt, 2, Input::Overflow { regions: Regions { first: 3, count: 1 } });
    let out = step(&mut doubt, 2, writing(3, 2 * REGIONS, 1));
    assert_eq!(out, [Output::PersistIntent { regions: vec![2 * REGIONS] }]);
    assert_eq!(step(&mut doubt, 3, Input::IntentDurable), [go(3)]);
    assert!(doubt.has_intent(REGIONS - 1) && doubt.is_in_doubt(3));
    assert!(!doubt.has_intent(REGIONS));
}
