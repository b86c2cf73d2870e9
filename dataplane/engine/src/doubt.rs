//! The intent set of one volume: which regions of its disk may hold what the log does not.
//!
//! Before the first write into a region its *intent* is made durable; it is cleared, lazily, once a
//! flush has made both the disk and the log durable. After a crash the regions with an intent are
//! *in doubt*: they are read again and sent, whatever they hold. A region whose write did not fit
//! the log goes into doubt at once and stays there until it has been read again.
//!
//! Where intents cannot be made durable, the driver makes it durable that they are *void*: a start would
//! read the whole disk. So every region counts as one with an intent, no write waits and nothing is
//! cleared, until the intents of all regions are durable.
//!
//! Invariants:
//!   - D1: no write goes ahead into a region whose intent is not durable (checked when it is let go).
//!   - D2: a region in doubt has its intent (checked after every step).
//!   - D3: no intent is cleared while a write into its region is under way, or before a flush that
//!     began after the last such write has ended (checked when it is cleared).
//!   - D4: one intent is made durable at a time; writes that come meanwhile share the next.

use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Unit of intent and doubt.
pub const REGION_BYTES: u64 = 256 << 10;
/// Blocks of one region.
pub const REGION_BLOCKS: u64 = REGION_BYTES / BLOCK_BYTES as u64;

/// A run of regions; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regions {
    /// First region.
    pub first: u64,
    /// Number of regions.
    pub count: u64,
}

impl Regions {
    /// The regions that a range of blocks touches.
    ///
    /// # Panics
    /// If the range is empty.
    #[must_use]
    pub fn of(range: BlockRange) -> Self {
        assert!(range.count > 0, "an empty range touches nothing");
        let first = range.block / REGION_BLOCKS;
        Self { first, count: (range.end() - 1) / REGION_BLOCKS - first + 1 }
    }

    /// Number of regions of a disk of so many blocks; the last may be short.
    #[must_use]
    pub fn in_blocks(blocks: u64) -> u64 {
        blocks.div_ceil(REGION_BLOCKS)
    }

    /// The first region after the run.
    #[must_use]
    pub fn end(self) -> u64 {
        self.first + self.count
    }

    /// Every region of the run.
    #[must_use]
    pub fn iter(self) -> std::ops::Range<u64> {
        self.first..self.end()
    }
}

/// A set of regions, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionSet {
    words: Vec<u64>,
    regions: u64,
    count: u64,
}

impl RegionSet {
    /// The empty set over a disk of so many regions.
    ///
    /// # Panics
    /// If the number does not fit memory: no legal volume has so many.
    #[must_use]
    pub fn empty(regions: u64) -> Self {
        let words = usize::try_from(regions.div_ceil(64)).expect("a volume has a limit");
        Self { words: vec![0; words], regions, count: 0 }
    }

    /// Makes it a set over a disk of so many regions, none of the new ones in it.
    ///
    /// # Panics
    /// If the disk shrank.
    pub fn grow(&mut self, regions: u64) {
        assert!(regions >= self.regions, "a disk only grows");
        let words = usize::try_from(regions.div_ceil(64)).expect("a volume has a limit");
        self.words.resize(words, 0);
        self.regions = regions;
    }

    /// The set of all regions of a disk of so many.
    ///
    /// # Panics
    /// As [`RegionSet::empty`].
    #[must_use]
    pub fn full(regions: u64) -> Self {
        let mut set = Self::empty(regions);
        set.words.fill(u64::MAX);
        if let Some(last) = set.words.last_mut()
            && !regions.is_multiple_of(64)
        {
            *last = (1 << (regions % 64)) - 1;
        }
        set.count = regions;
        set
    }

    fn place(&self, region: u64) -> (usize, u64) {
        assert!(region < self.regions, "the region lies on the disk");
        let word = usize::try_from(region / 64).expect("checked when made");
        (word, 1 << (region % 64))
    }

    /// Whether the region is in the set.
    #[must_use]
    pub fn has(&self, region: u64) -> bool {
        let (word, bit) = self.place(region);
        self.words[word] & bit != 0
    }

    /// Adds a region.
    pub fn add(&mut self, region: u64) {
        let (word, bit) = self.place(region);
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Removes a region.
    pub fn remove(&mut self, region: u64) {
        let (word, bit) = self.place(region);
        self.count -= u64::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    /// Adds every region of `other`.
    pub fn add_all(&mut self, other: &Self) {
        for region in other.iter() {
            self.add(region);
        }
    }

    /// Number of regions in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no region is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The lowest region in the set.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.iter().next()
    }

    /// Every region in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0_u64..).flat_map(|(word, index)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(index * 64 + u64::from(bit))
            })
        })
    }
}

/// When intents are cleared, and how many are taken at once.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Least time between two clearings. A region written in between keeps its intent, so that a
    /// hot region costs no intent write.
    pub clear_ms: u64,
    /// Intents above which a flush is asked for, however recent the last one.
    pub regions_max: u64,
    /// Regions taken ahead of a write that goes on behind one with an intent: a sequential stream
    /// waits for its intents once per so many regions.
    pub ahead: u64,
}

impl Default for Settings {
    /// Values picked by eye: a crash re-reads what was written in some ten seconds, at most about
    /// 1 GiB; a stream waits once in 2 MiB.
    fn default() -> Self {
        Self { clear_ms: 5_000, regions_max: 4_096, ahead: 8 }
    }
}

/// Intents that are cleared at once: all regions of a large disk may have one.
const CLEAR_MAX: usize = 1 << 16;

/// Names a write under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happens to an intent set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A write into these regions wants to begin; it waits for `Go`.
    Writing {
        /// Its name, not in use.
        ticket: Ticket,
        /// Where it goes.
        regions: Regions,
    },
    /// A write that was let go has ended: it is on the disk and in the log, or its regions are in
    /// doubt.
    Written {
        /// Its name.
        ticket: Ticket,
    },
    /// The intents of the last `PersistIntent` are durable.
    IntentDurable,
    /// Intents cannot be made durable, and whoever finds them later takes them for void: every region
    /// counts as one with an intent.
    Voided,
    /// The intents of all regions are durable.
    Mended,
    /// The disk may hold what the log does not, in these regions; their intents are durable.
    Overflow {
        /// Where.
        regions: Regions,
    },
    /// Everything that has an intent is in doubt: the log's end was lost.
    DoubtAll,
    /// The region's bytes are in the log, read while no write into it was under way.
    ReRead {
        /// The region.
        region: u64,
    },
    /// A flush of disk and log begins.
    FlushBegun,
    /// The flush that began last has made disk and log durable.
    Flushed,
    /// The flush that began last did not.
    FlushFailed,
    /// The log joins what the node has: intents may be cleared from now on.
    Joined,
    /// No write will come: the orderly stop. Intents go if a flush that began after the last write went well.
    Stopped,
    /// The disk has so many regions from now on, at least as many as before.
    Grown {
        /// How many.
        regions: u64,
    },
    /// Time passed.
    Tick,
}

/// What an intent set asks of its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make the intents of these regions durable; answer with `IntentDurable` or `Voided`.
    PersistIntent {
        /// Regions without an intent so far.
        regions: Vec<u64>,
    },
    /// These regions need no intent any more. Making that durable is not urgent.
    ClearIntent {
        /// Regions that had one.
        regions: Vec<u64>,
    },
    /// The write may change the disk.
    Go {
        /// Its name.
        ticket: Ticket,
    },
    /// Flush disk and log soon, though nobody asked.
    Flush,
}

/// Whether all that was logged is durable on the disk and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Covered {
    /// Something was logged since the last flush began, or that flush failed. The system may have dropped
    /// what it could not write, and calls a later flush of the same a success.
    No,
    /// A flush runs that began after it.
    Flushing,
    /// That flush went well.
    Yes,
}

/// The intent set of one volume.
#[derive(Debug)]
pub struct Doubt {
    settings: Settings,
    regions: u64,
    /// Intents that are durable.
    intents: RegionSet,
    /// Regions to be read again.
    doubt: RegionSet,
    /// Regions written since the last clearing's flush began.
    touched: RegionSet,
    /// Being made durable.
    persisting: BTreeSet<u64>,
    /// Writes that wait for an intent, in order of arrival.
    waiting: VecDeque<(Ticket, Regions)>,
    /// Writes let go and not ended.
    under_way: BTreeMap<Ticket, Regions>,
    /// What the flush that began last will clear, unless it is written meanwhile.
    clearing: Option<BTreeSet<u64>>,
    covered: Covered,
    has_joined: bool,
    /// Whoever finds the intents takes them for void.
    is_void: bool,
    cleared_at: Timestamp,
    flush_asked_at: Timestamp,
}

impl Doubt {
    /// The set over a disk of so many regions, all of `recovered` in doubt.
    ///
    /// # Panics
    /// If `recovered` is over another number of regions.
    #[must_use]
    pub fn new(settings: Settings, regions: u64, recovered: RegionSet) -> Self {
        assert_eq!(recovered.regions, regions, "the sets are over one disk");
        Self {
            settings,
            regions,
            intents: recovered.clone(),
            doubt: match is_on(Bug::RestartWithoutDoubt) {
                true => RegionSet::empty(regions),
                false => recovered,
            },
            touched: RegionSet::empty(regions),
            persisting: BTreeSet::new(),
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            clearing: None,
            covered: Covered::No,
            has_joined: false,
            is_void: false,
            cleared_at: Timestamp(0),
            flush_asked_at: Timestamp(0),
        }
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If an input does not fit: a bug in the driver.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Writing { ticket, regions } => {
                assert!(regions.count > 0 && regions.end() <= self.regions, "on the disk");
                self.waiting.push_back((ticket, regions));
            }
            Input::Written { ticket } => {
                self.under_way.remove(&ticket).expect("a write ends once");
                self.covered = Covered::No;
            }
            Input::IntentDurable => {
                for region in std::mem::take(&mut self.persisting) {
                    self.intents.add(region);
                    self.touched.add(region);
                }
            }
            Input::Voided => {
                self.persisting.clear();
                self.clearing = None;
                self.intents = RegionSet::full(self.regions);
                self.is_void = true;
            }
            Input::Mended => {
                assert!(self.is_void, "only what is void is mended");
                self.is_void = false;
            }
            Input::Overflow { .. } if is_on(Bug::DoubtForgottenOnOverflow) => {}
            Input::Overflow { regions } => {
                for region in regions.iter() {
                    assert!(self.intents.has(region), "D2: doubt without intent");
                    self.doubt.add(region);
                    self.touch(region);
                }
            }
            Input::DoubtAll => {
                self.doubt = self.intents.clone();
                self.clearing = None;
            }
            Input::ReRead { region } => {
                assert!(self.doubt.has(region), "only what is in doubt is read again");
                self.doubt.remove(region);
                self.touch(region);
                self.covered = Covered::No;
            }
            Input::FlushBegun => {
                self.covered = Covered::Flushing;
                self.flush_begun(now);
            }
            Input::Flushed => {
                if self.covered == Covered::Flushing {
                    self.covered = Covered::Yes;
                }
                self.flushed(now, out);
            }
            Input::FlushFailed => {
                self.covered = Covered::No;
                self.clearing = None;
            }
            Input::Joined => self.has_joined = true,
            Input::Stopped => self.stopped(out),
            Input::Grown { regions } => self.grown(regions),
            Input::Tick => self.tick(now, out),
        }
        self.let_go(out);
        self.persist(out);
        self.check();
    }

    fn grown(&mut self, regions: u64) {
        self.regions = regions;
        for set in [&mut self.intents, &mut self.doubt, &mut self.touched] {
            set.grow(regions);
        }
        if self.is_void {
            self.intents = RegionSet::full(regions);
        }
    }

    fn touch(&mut self, region: u64) {
        self.touched.add(region);
        if let Some(clearing) = &mut self.clearing {
            clearing.remove(&region);
        }
    }

    /// Lets go every waiting write whose intents are durable.
    fn let_go(&mut self, out: &mut Vec<Output>) {
        for _ in 0..self.waiting.len() {
            let (ticket, regions) = self.waiting.pop_front().expect("counted above");
            if regions.iter().all(|region| self.intents.has(region)) {
                regions.iter().for_each(|region| self.touch(region));
                let before = self.under_way.insert(ticket, regions);
                assert!(before.is_none(), "a ticket names one write");
                out.push(Output::Go { ticket });
            } else {
                self.waiting.push_back((ticket, regions));
            }
        }
    }

    /// Begins to make durable what the waiting writes need, if nothing is on its way.
    fn persist(&mut self, out: &mut Vec<Output>) {
        if !self.persisting.is_empty() || self.waiting.is_empty() {
            return;
        }
        let mut wanted = BTreeSet::new();
        for (_, regions) in &self.waiting {
            wanted.extend(regions.iter().filter(|region| !self.intents.has(*region)));
            let goes_on = regions.first > 0 && self.intents.has(regions.first - 1);
            if goes_on {
                let ahead = regions.end()..(regions.end() + self.settings.ahead).min(self.regions);
                wanted.extend(ahead.filter(|region| !self.intents.has(*region)));
            }
        }
        assert!(!wanted.is_empty(), "a write waits for something");
        out.push(Output::PersistIntent { regions: wanted.iter().copied().collect() });
        if is_on(Bug::WriteBeforeIntent) {
            wanted.iter().for_each(|region| self.intents.add(*region));
        }
        self.persisting = wanted;
    }

    fn flush_begun(&mut self, now: Timestamp) {
        // Until the log joins the node's stream, its end may turn out to be lost to the node.
        let is_due = now.since_ms(self.cleared_at) >= self.settings.clear_ms
            || self.intents.count() > self.settings.regions_max;
        if !self.has_joined || !is_due || self.is_void {
            self.clearing = None;
            return;
        }
        self.cleared_at = now;
        let crowded = self.intents.count() > self.settings.regions_max;
        let mut clearing = BTreeSet::new();
        // Ended writes are covered by this flush; what is hot keeps its intent all the same.
        let is_clear =
            |region: &u64| !self.doubt.has(*region) && (crowded || !self.touched.has(*region));
        clearing.extend(self.intents.iter().filter(is_clear).take(CLEAR_MAX));
        self.touched = RegionSet::empty(self.regions);
        for regions in self.under_way.values() {
            if is_on(Bug::IntentClearedUnderWrite) {
                break;
            }
            for region in regions.iter() {
                clearing.remove(&region);
                self.touched.add(region);
            }
        }
        self.clearing = Some(clearing);
    }

    fn flushed(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let Some(clearing) = self.clearing.take() else { return };
        self.flush_asked_at = now;
        if clearing.is_empty() {
            return;
        }
        for region in &clearing {
            assert!(!self.doubt.has(*region) && !self.touched.has(*region), "D3: cleared too soon");
            self.intents.remove(*region);
        }
        out.push(Output::ClearIntent { regions: clearing.into_iter().collect() });
    }

    fn stopped(&mut self, out: &mut Vec<Output>) {
        assert!(self.under_way.is_empty() && self.waiting.is_empty(), "a write is under way");
        self.clearing = None;
        if !self.has_joined || self.is_void || self.covered != Covered::Yes {
            return;
        }
        let regions: Vec<u64> =
            self.intents.iter().filter(|region| !self.doubt.has(*region)).collect();
        regions.iter().for_each(|region| self.intents.remove(*region));
        if !regions.is_empty() {
            out.push(Output::ClearIntent { regions });
        }
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let clearable = self.intents.count() - self.doubt.count();
        let crowded = self.intents.count() > self.settings.regions_max;
        let patience = if crowded { self.settings.clear_ms / 10 } else { self.settings.clear_ms };
        let is_due = now.since_ms(self.flush_asked_at) >= patience
            && (crowded || now.since_ms(self.cleared_at) >= self.settings.clear_ms);
        if self.has_joined && !self.is_void && clearable > 0 && is_due {
            self.flush_asked_at = now;
            out.push(Output::Flush);
        }
    }

    fn check(&self) {
        assert!(self.doubt.count() <= self.intents.count(), "D2: doubt without intent");
        let durable = |regions: &Regions| regions.iter().all(|region| self.intents.has(region));
        debug_assert!(self.under_way.values().all(durable), "D1: a write without intent");
        // Small disks only: this runs at every write.
        debug_assert!(
            self.regions > 1 << 12 || self.doubt.iter().all(|region| self.intents.has(region)),
            "D2: doubt without intent"
        );
    }

    /// Regions to be read again.
    #[must_use]
    pub fn in_doubt(&self) -> u64 {
        self.doubt.count()
    }

    /// The lowest region to be read again.
    #[must_use]
    pub fn next_in_doubt(&self) -> Option<u64> {
        self.doubt.first()
    }

    /// Whether a region is to be read again.
    #[must_use]
    pub fn is_in_doubt(&self, region: u64) -> bool {
        self.doubt.has(region)
    }

    /// Whether a region has an intent, or one is being made durable: its clearing must not be
    /// written any more.
    #[must_use]
    pub fn has_intent(&self, region: u64) -> bool {
        self.intents.has(region) || self.persisting.contains(&region)
    }

    /// Whether whoever finds the intents takes them for void.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.is_void
    }

    /// Regions with a durable intent.
    #[must_use]
    pub fn intents(&self) -> u64 {
        self.intents.count()
    }
}

#[cfg(test)]
mod tests;
