//! When which volume is mapped.
//!
//! A map costs what changed; without one a reader looks at every segment since the last. So a volume is
//! due when enough of it was committed: of a long map more, so that large volumes do not have very many. Volumes stand in
//! line, longest first, and a few are mapped at the same time: a map takes memory, and reads what sessions'
//! puts go to. Maps are derived: one that was not written costs time only.
//!
//! Invariants: **V1** at most so many maps are written at the same time, and no volume waits while there is
//! room; **V2** a volume that is taken stands in line or is being mapped, once, and no other does.

use farshore_proto::{LogId, Slot, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// When a volume is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// More extents than these were committed since its last map …
    pub extents_min: u64,
    /// … and more than one for so many runs of that map …
    pub runs_per_extent: u64,
    /// … but never more than these: a reader keeps in memory what came behind the newest map;
    pub extents_max: u64,
    /// or so many segments hold spans of it, which a reader has to look at;
    pub segments_max: u64,
    /// or its log went on by so many slots since something came that is in no map: a reader looks for the few that are its.
    pub slots_max: u64,
    /// Volumes that are mapped at the same time.
    pub at_once: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            extents_min: 16_384,
            runs_per_extent: 1024,
            extents_max: 262_144,
            segments_max: 256,
            slots_max: 2048,
            at_once: 2,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A segment is in the vault: the volumes of its spans with their extents, perhaps several spans of one.
    Committed {
        /// Its log.
        log: LogId,
        /// Its slot; those of a log may come in another order.
        slot: Slot,
        /// Them.
        spans: Vec<(VolumeId, u64)>,
    },
    /// The volume is not this node's any more.
    Left {
        /// The volume.
        volume: VolumeId,
    },
    /// The end of an [`Output::Map`].
    Ended {
        /// The volume.
        volume: VolumeId,
        /// The runs of its map, all layers together; none if there was nothing to map, or it failed.
        runs: Option<u64>,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Write a map of this volume.
    Map {
        /// The volume.
        volume: VolumeId,
    },
}

/// What a volume got since its last map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Since {
    extents: u64,
    segments: u64,
    /// Runs of the last map that this node wrote; 0 before the first.
    runs: u64,
    /// Extents since the last map, those of attempts that gave none included.
    unmapped: u64,
    /// The first segment with extents since.
    first: Option<(LogId, Slot)>,
    /// Whether that is long ago.
    is_old: bool,
    /// Whether it stands in line, or is being mapped.
    is_taken: bool,
}

impl Since {
    fn is_due(self, settings: &Settings) -> bool {
        let Settings { extents_min, runs_per_extent, extents_max, segments_max, .. } = *settings;
        self.extents > (self.runs / runs_per_extent).clamp(extents_min, extents_max)
            || self.segments >= segments_max
            || self.is_old
    }
}

/// The state machine of a node's maps.
#[derive(Debug)]
pub struct Maps {
    settings: Settings,
    since: BTreeMap<VolumeId, Since>,
    /// The volumes of a log by the first segment with extents of theirs since their last maps, while that is not long ago.
    young: BTreeMap<LogId, BTreeSet<(Slot, VolumeId)>>,
    /// Those that wait for their map, the longest first.
    line: VecDeque<VolumeId>,
    under_way: BTreeSet<VolumeId>,
}

impl Maps {
    /// Of a node that has just started.
    ///
    /// # Panics
    /// If there is no room for any, or a length is measured by nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        assert!(settings.at_once > 0, "V1: maps end one by one");
        assert!(settings.runs_per_extent > 0, "a share of runs");
        assert!(settings.extents_min <= settings.extents_max, "from the least to the most");
        let (since, line, under_way) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        Self { settings, since, young: BTreeMap::new(), line, under_way }
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If a map ends that is not under way: a bug in the driver.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Committed { log, slot, spans } => self.committed(log, slot, spans),
            Input::Left { volume } => {
                // What is under way ends without it.
                let left = self.since.remove(&volume);
                self.forget(volume, left.and_then(|since| since.first));
                self.line.retain(|waiting| *waiting != volume);
            }
            Input::Ended { volume, runs } => {
                assert!(self.under_way.remove(&volume), "V2: a map ends once");
                if let Some(since) = self.since.get_mut(&volume) {
                    if runs.is_some() {
                        since.unmapped = since.extents;
                    }
                    since.runs = runs.unwrap_or(since.runs);
                    since.is_taken = false;
                }
                self.line_up(volume);
            }
        }
        while self.under_way.len() < self.settings.at_once
            && let Some(volume) = self.line.pop_front()
        {
            if let Some(since) = self.since.get_mut(&volume) {
                // What comes from now on may not be in the map.
                let Since { runs, unmapped, first, .. } = *since;
                *since = Since { runs, unmapped, is_taken: true, ..Since::default() };
                self.forget(volume, first);
            }
            self.under_way.insert(volume);
            out.push(Output::Map { volume });
        }
        self.check();
    }

    /// Extents of a volume that are in none of the maps that this node wrote.
    #[must_use]
    pub fn unmapped(&self, volume: VolumeId) -> u64 {
        self.since.get(&volume).map_or(0, |since| since.unmapped)
    }

    /// What a volume was waiting for from this segment on counts no more.
    fn forget(&mut self, volume: VolumeId, first: Option<(LogId, Slot)>) {
        if let Some((log, slot)) = first
            && let Some(young) = self.young.get_mut(&log)
        {
            young.remove(&(slot, volume));
            if young.is_empty() {
                self.young.remove(&log);
            }
        }
    }

    /// A log goes on to a slot: what came long before is old.
    fn grow_old(&mut self, log: LogId, slot: Slot) {
        let Some(young) = self.young.get_mut(&log) else { return };
        let Some(end) = slot.0.checked_sub(self.settings.slots_max) else { return };
        let still = young.split_off(&(Slot(end + 1), VolumeId([0; 16])));
        let old = std::mem::replace(young, still);
        if young.is_empty() {
            self.young.remove(&log);
        }
        for (_, volume) in old {
            if let Some(since) = self.since.get_mut(&volume) {
                since.is_old = true;
            }
            self.line_up(volume);
        }
    }

    fn committed(&mut self, log: LogId, slot: Slot, spans: Vec<(VolumeId, u64)>) {
        let mut extents: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for (volume, count) in spans {
            *extents.entry(volume).or_default() += count;
        }
        for (volume, count) in extents {
            let is_taken = self.under_way.contains(&volume);
            let new = || Since { is_taken, ..Since::default() };
            let since = self.since.entry(volume).or_insert_with(new);
            since.extents += count;
            since.unmapped += count;
            since.segments += 1;
            // In a log that it has left no slot comes any more.
            let left = since.first.filter(|(first, _)| *first != log);
            if count > 0 && (since.first.is_none() || left.is_some()) {
                since.first = Some((log, slot));
                self.young.entry(log).or_default().insert((slot, volume));
                self.forget(volume, left);
            }
            self.line_up(volume);
        }
        self.grow_old(log, slot);
    }

    /// Puts a volume at the end of the line if it is due and not there, nor being mapped.
    fn line_up(&mut self, volume: VolumeId) {
        let Some(since) = self.since.get_mut(&volume) else { return };
        if since.is_due(&self.settings) && !since.is_taken {
            since.is_taken = true;
            self.line.push_back(volume);
        }
    }

    fn check(&self) {
        let at_once = self.settings.at_once;
        assert!(self.under_way.len() <= at_once, "V1");
        assert!(self.line.is_empty() || self.under_way.len() == at_once, "V1: there is room");
        let is_known = |volume: &&VolumeId| self.since.contains_key(volume);
        debug_assert_eq!(
            self.since.values().filter(|since| since.is_taken).count(),
            self.line.len() + self.under_way.iter().filter(is_known).count(),
            "V2"
        );
        debug_assert!(
            self.young.iter().all(|(log, young)| {
                let first = |volume: &VolumeId| self.since.get(volume)?.first;
                young.iter().all(|(slot, volume)| first(volume) == Some((*log, *slot)))
            }),
            "V2: what waits is known"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const OTHER: VolumeId = VolumeId([2; 16]);
    const LOG: LogId = LogId([7; 16]);

    fn committed(maps: &mut Maps, spans: &[(VolumeId, u64)]) -> Vec<VolumeId> {
        committed_at(maps, 0, spans)
    }

    fn committed_at(maps: &mut Maps, slot: u64, spans: &[(VolumeId, u64)]) -> Vec<VolumeId> {
        step(maps, Input::Committed { log: LOG, slot: Slot(slot), spans: spans.to_vec() })
    }

    fn ended(maps: &mut Maps, volume: VolumeId, runs: Option<u64>) -> Vec<VolumeId> {
        step(maps, Input::Ended { volume, runs })
    }

    fn step(maps: &mut Maps, input: Input) -> Vec<VolumeId> {
        let mut out = Vec::new();
        maps.step(input, &mut out);
        out.into_iter().map(|Output::Map { volume }| volume).collect()
    }

    #[test]
    fn a_volume_is_due_by_extents_by_its_last_map_or_by_segments() {
        let maps = &mut Maps::new(Settings::default());
        let spans = [(VOLUME, 16_000), (VOLUME, 384), (OTHER, 5)];
        assert!(committed(maps, &spans).is_empty(), "as many extents as the limit");
        assert_eq!(committed(maps, &[(VOLUME, 1)]), [VOLUME]);
        assert!(ended(maps, VOLUME, Some(100_000 << 10)).is_empty(), "its counters began again");
        let long = committed(maps, &[(VOLUME, 100_000)]);
        assert!(long.is_empty(), "to a long map little is not added");
        assert_eq!(committed(maps, &[(VOLUME, 1)]), [VOLUME]);
        assert!(ended(maps, VOLUME, Some(1 << 34)).is_empty());
        assert!(committed(maps, &[(VOLUME, 262_144)]).is_empty());
        assert_eq!(
            committed(maps, &[(VOLUME, 1)]),
            [VOLUME],
            "of the longest too much is not left"
        );
        for segment in 1..=254 {
            let due = committed(maps, &[(OTHER, 0), (OTHER, 1)]);
            assert!(due.is_empty(), "segment {segment}");
        }
        assert_eq!(committed(maps, &[(OTHER, 0)]), [OTHER], "the first segment was the 256th");
    }

    /// I14: a quiet volume is mapped, so that a reader does not look for its few segments among those of all others.
    #[test]
    fn a_quiet_volume_is_due_when_its_log_went_on() {
        let maps = &mut Maps::new(Settings { slots_max: 100, ..Settings::default() });
        assert!(committed_at(maps, 7, &[(OTHER, 3)]).is_empty());
        assert!(committed_at(maps, 6, &[(VOLUME, 1)]).is_empty(), "puts end in any order");
        assert!(committed_at(maps, 50, &[(VOLUME, 1)]).is_empty());
        assert!(committed_at(maps, 105, &[]).is_empty());
        assert_eq!(committed_at(maps, 106, &[]), [VOLUME]);
        assert_eq!(committed_at(maps, 110, &[]), [OTHER]);
        assert!(ended(maps, VOLUME, Some(9)).is_empty());
        // Marks alone are worth no map, nor does another log say anything of this one.
        assert!(committed_at(maps, 200, &[(VOLUME, 0)]).is_empty());
        let elsewhere =
            Input::Committed { log: LogId([8; 16]), slot: Slot(900), spans: Vec::new() };
        assert!(step(maps, elsewhere).is_empty());
        assert!(committed_at(maps, 900, &[]).is_empty());
        // What came since is counted anew, and forgotten with its volume.
        assert!(committed_at(maps, 901, &[(VOLUME, 1), (OTHER, 1)]).is_empty());
        step(maps, Input::Left { volume: VOLUME });
        assert!(ended(maps, OTHER, None).is_empty());
        // It goes on in another log, and that one counts.
        let moved = |slot| {
            let spans = vec![(OTHER, 1)];
            Input::Committed { log: LogId([8; 16]), slot: Slot(slot), spans }
        };
        assert!(step(maps, moved(950)).is_empty());
        assert!(committed_at(maps, 1001, &[]).is_empty());
        assert_eq!(step(maps, moved(1050)), [OTHER]);
        assert!(maps.young.is_empty());
    }

    #[test]
    fn a_map_that_failed_leaves_the_length_of_the_one_before() {
        let maps = &mut Maps::new(Settings::default());
        assert_eq!(committed(maps, &[(VOLUME, 20_000)]), [VOLUME]);
        ended(maps, VOLUME, Some(100_000 << 10));
        assert_eq!(committed(maps, &[(VOLUME, 100_001)]), [VOLUME]);
        committed(maps, &[(VOLUME, 7)]);
        assert_eq!(maps.unmapped(VOLUME), 100_008);
        ended(maps, VOLUME, None);
        assert_eq!(maps.unmapped(VOLUME), 100_008, "it did not end with a map");
        assert!(committed(maps, &[(VOLUME, 99_993)]).is_empty());
        assert_eq!(committed(maps, &[(VOLUME, 1)]), [VOLUME]);
        committed(maps, &[(VOLUME, 5)]);
        ended(maps, VOLUME, Some(1));
        assert_eq!(maps.unmapped(VOLUME), 5, "what came while it was mapped");
    }

    #[test]
    fn what_comes_while_a_volume_is_mapped_counts_for_the_next_map() {
        let maps = &mut Maps::new(Settings { at_once: 1, ..Settings::default() });
        assert_eq!(committed(maps, &[(VOLUME, 20_000)]), [VOLUME]);
        assert!(committed(maps, &[(VOLUME, 20_000)]).is_empty(), "not twice at once");
        assert!(committed(maps, &[(OTHER, 20_000)]).is_empty(), "it waits");
        assert_eq!(ended(maps, VOLUME, Some(1)), [OTHER], "who waited comes first");
        assert_eq!(ended(maps, OTHER, Some(1)), [VOLUME]);
        assert!(ended(maps, VOLUME, Some(1)).is_empty());
    }

    /// P33: a long-lived node sees many volumes come and go.
    #[test]
    fn a_volume_that_left_is_forgotten_wherever_it_stood() {
        let maps = &mut Maps::new(Settings { at_once: 1, ..Settings::default() });
        let idle = VolumeId([3; 16]);
        assert_eq!(committed(maps, &[(VOLUME, 20_000)]), [VOLUME], "it is being mapped");
        assert!(committed(maps, &[(OTHER, 20_000), (idle, 1)]).is_empty(), "one waits");
        for volume in [VOLUME, OTHER, idle] {
            assert!(step(maps, Input::Left { volume }).is_empty());
        }
        assert!(maps.since.is_empty() && maps.line.is_empty());
        // It comes back before its map ends: once at a time all the same.
        assert!(committed(maps, &[(VOLUME, 20_000)]).is_empty());
        assert_eq!(ended(maps, VOLUME, Some(1)), [VOLUME]);
        step(maps, Input::Left { volume: VOLUME });
        assert!(ended(maps, VOLUME, Some(1)).is_empty());
        assert!(maps.since.is_empty());
    }

    proptest! {
        /// S15: volumes that are due again before the others had their turn hold nobody up.
        #[test]
        fn volumes_that_are_always_due_are_all_mapped_in_turn(
            count in 1_u8..9,
            at_once in 1_usize..4,
            picks in prop::collection::vec(0_usize..4, 1..200),
        ) {
            let maps = &mut Maps::new(Settings { at_once, ..Settings::default() });
            let all: Vec<(VolumeId, u64)> =
                (0..count).map(|n| (VolumeId([n; 16]), 20_000)).collect();
            let mut running = committed(maps, &all);
            let (mut mapped, mut ends) = (running.clone(), Vec::new());
            for pick in picks {
                prop_assert!(running.len() <= at_once);
                // As a busy node does: all of them are due again at once.
                let more = committed(maps, &all);
                let volume = running.swap_remove(pick % running.len());
                ends.push((volume, mapped.len() + more.len()));
                let next = ended(maps, volume, Some(1));
                for started in more.into_iter().chain(next) {
                    running.push(started);
                    mapped.push(started);
                }
            }
            for (volume, from) in ends {
                let turn = mapped.get(from..from + usize::from(count));
                prop_assert!(turn.is_none_or(|turn| turn.contains(&volume)), "{mapped:?}");
            }
        }
    }
}
