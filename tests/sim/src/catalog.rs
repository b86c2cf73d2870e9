//! What the control plane's catalogue keeps of recovery points, by a wall clock that steps either way, a
//! little or by weeks, back and forth between two looks, while its host starts anew or is another one.
//!
//! By which time points go, and since when one is heard of, is the control plane's own code
//! ([`farshore_control::domain::retention`]). Which one is the newest and which rows go is SQL there
//! (`db/points.rs`, `db/retention.rs`): the functions here say the same. That the SQL does is judged, with the
//! same seeded bugs, by `controlplane/server/src/db/tests/kept.rs`.
//!
//! Points have to grow old in a run of a minute, so a second of the run is an hour of this clock. Chance is
//! its own, so that a seed tells the same story of the writers with it and without.

use crate::world::{self, World};
use farshore_control::domain::retention::{Look, RetentionClock};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::{PointId, Seq};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// What happens to the catalogue.
#[derive(Debug)]
pub enum Event {
    /// A node or an agent tells of a point that is in the vault.
    Told(Told),
    /// The clocks are looked at, and what is old goes.
    Look,
    /// Something happens to the clocks.
    Trouble,
    /// The wall clock steps by so many milliseconds.
    Step(i64),
}

/// A point that is in the vault, as a node or an agent says.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Whose.
    pub machine: usize,
    /// The point.
    pub point: PointId,
    /// Its place in the stream.
    pub seq: Seq,
    /// The agent's wall clock when it set it.
    pub time_ms: u64,
}

/// A point of the catalogue.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// What points go by: their rank.
    seq: Seq,
    /// What the agent said, for people.
    time_ms: u64,
    /// Since when it counts as known.
    heard_ms: u64,
}

/// What a backup of the catalogue has.
#[derive(Debug, Clone, Default)]
struct Rows {
    /// By server.
    points: BTreeMap<usize, BTreeMap<PointId, Kept>>,
    clock: Option<RetentionClock>,
}

/// The host that the control plane runs on.
#[derive(Debug)]
struct Host {
    number: u64,
    boot: u64,
    /// How long it had been running at `since_ms`.
    up_ms: u64,
    /// In true time.
    since_ms: u64,
    /// How far the wall clock is off.
    skew_ms: i64,
}

/// The points that the control plane knows.
#[derive(Debug)]
pub struct Catalog {
    rng: fastrand::Rng,
    rows: Rows,
    backup: Option<Rows>,
    host: Host,
    /// How long each server's policy keeps points.
    retention_ms: BTreeMap<usize, u64>,
    /// Longest wait between two troubles of the clocks, in microseconds.
    wait_max_us: u64,
    is_calm: bool,
}

const HOUR_MS: u64 = 3_600_000;
/// How much faster than the run its clocks go: an hour a second.
const PACE: u64 = 3_600;
/// Its wall clock at the start of every run: 2026-01-01.
const WALL_START_MS: u64 = 1_767_225_600_000;
/// How long policies keep points, in hours.
const RETENTION_HOURS: Range<u64> = 4..16;
/// Most that the wall clock steps at once.
const STEP_MS: i64 = 40 * 24 * 3_600_000;
/// A step that may be taken for the clock's own drift.
const DRIFT_MS: i64 = 90_000;
/// Between two looks, in microseconds: for the clocks, minutes.
const LOOK_US: Range<u64> = 50_000..500_000;
/// How soon after a step the clock is set right again, in microseconds: often before it was looked at.
const BLIP_US: Range<u64> = 20_000..600_000;
/// How long a word of a point takes, in microseconds.
const WORD_US: Range<u64> = 5_000..2_000_000;
/// How long one takes that hangs on its way, in microseconds.
const HUNG_US: Range<u64> = 2_000_000..20_000_000;
/// After how long it is said again that nobody heard, in microseconds.
const AGAIN_US: Range<u64> = 200_000..1_500_000;

impl Host {
    /// How its run and it itself are called.
    fn names(&self) -> (String, String) {
        (self.boot.to_string(), format!("host {}", self.number))
    }
}

impl Catalog {
    /// One that knows no points.
    #[must_use]
    pub fn new(seed: u64, machines: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let retention_ms =
            (0..machines).map(|machine| (machine, rng.u64(RETENTION_HOURS) * HOUR_MS)).collect();
        let wait_max_us = rng.u64(1_000_000..30_000_000);
        let host = Host { number: 0, boot: 0, up_ms: 5 * HOUR_MS, since_ms: 0, skew_ms: 0 };
        let (rows, backup) = (Rows::default(), None);
        Self { rng, rows, backup, host, retention_ms, wait_max_us, is_calm: false }
    }

    /// The clocks go right from now on; they stay as far off as they are.
    pub fn calm(&mut self) {
        self.is_calm = true;
    }

    fn us(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range))
    }

    fn look<'a>(&self, boot: &'a str, host: &'a str, true_ms: u64) -> Look<'a> {
        Look {
            wall_ms: (WALL_START_MS + true_ms).saturating_add_signed(self.host.skew_ms),
            boot,
            up_ms: self.host.up_ms + (true_ms - self.host.since_ms),
            host,
            retention_ms: self.retention_ms.values().copied().max().unwrap_or(0),
        }
    }

    /// Which point of a server is *latest*, as `ORDER BY rank DESC, id DESC LIMIT 1` has it.
    #[must_use]
    pub fn latest(&self, machine: usize) -> Option<PointId> {
        let points = self.rows.points.get(&machine)?.iter();
        let rank = |(id, kept): &(&PointId, &Kept)| match is_on(Bug::LatestByTime) {
            true => (kept.time_ms, kept.seq, **id),
            false => (0, kept.seq, **id),
        };
        points.max_by_key(rank).map(|(id, _)| *id)
    }

    /// Whether a point is kept.
    #[must_use]
    pub fn has(&self, machine: usize, point: PointId) -> bool {
        self.rows.points.get(&machine).is_some_and(|points| points.contains_key(&point))
    }

    /// Takes a point in, unless it is known, as `commit` does.
    fn take(&mut self, told: Told, true_ms: u64) -> bool {
        let (boot, host) = self.host.names();
        let look = self.look(&boot, &host, true_ms);
        let heard_ms = self.rows.clock.as_ref().map_or(look.wall_ms, |clock| clock.heard_ms(&look));
        let points = self.rows.points.entry(told.machine).or_default();
        let Told { seq, time_ms, point, .. } = told;
        let is_new = !points.contains_key(&point);
        points.entry(point).or_insert(Kept { seq, time_ms, heard_ms });
        is_new
    }

    /// Looks at the clocks, and drops what is old by them, except each server's newest, as `drop_points`
    /// does. Returns the time that it goes by.
    fn prune(&mut self, true_ms: u64) -> u64 {
        let (boot, host) = self.host.names();
        let look = self.look(&boot, &host, true_ms);
        let clock = self.rows.clock.get_or_insert_with(|| RetentionClock::begin(&look));
        clock.step(&look);
        let time_ms = clock.time_ms;
        for (machine, retention_ms) in self.retention_ms.clone() {
            let newest = self.latest(machine);
            if let Some(points) = self.rows.points.get_mut(&machine) {
                let since_ms = time_ms.saturating_sub(retention_ms);
                points.retain(|id, kept| kept.heard_ms >= since_ms || Some(*id) == newest);
            }
        }
        time_ms
    }
}

impl World {
    /// Begins to look at the catalogue's clocks, and to trouble them.
    pub fn begin_catalog(&mut self) {
        self.catalog_soon(LOOK_US, Event::Look);
        self.catalog_soon(0..self.catalog.wait_max_us, Event::Trouble);
    }

    fn catalog_soon(&mut self, wait: Range<u64>, event: Event) {
        let wait = self.catalog.us(wait);
        self.after(wait, world::Event::Catalog(event));
    }

    /// The true time, as fast as the catalogue's clocks go.
    fn catalog_ms(&self) -> u64 {
        self.now_us() / 1000 * PACE
    }

    /// A node or an agent tells of a point; some words hang on their way, and some are lost.
    pub fn tell_of_point(&mut self, told: Told) {
        match self.catalog.rng.u32(0..10) {
            0 => {}
            1 => self.catalog_soon(HUNG_US, Event::Told(told)),
            _ => self.catalog_soon(WORD_US, Event::Told(told)),
        }
    }

    /// Carries out an event of the catalogue.
    pub fn handle_catalog(&mut self, event: Event) {
        match event {
            Event::Told(told) if self.control.is_away() => {
                self.catalog_soon(AGAIN_US, Event::Told(told));
            }
            Event::Told(told) => self.take_point(told),
            Event::Look => {
                if !self.control.is_away() {
                    self.prune_points();
                }
                self.catalog_soon(LOOK_US, Event::Look);
            }
            Event::Trouble => {
                if !self.catalog.is_calm {
                    self.trouble_clocks();
                    self.catalog_soon(0..self.catalog.wait_max_us, Event::Trouble);
                }
            }
            Event::Step(by_ms) => self.step_wall_clock(by_ms),
        }
    }

    fn take_point(&mut self, told: Told) {
        let true_ms = self.catalog_ms();
        if self.catalog.take(told, true_ms) {
            self.oracle.point_told(told.machine, told.point, told.seq, true_ms);
        }
        self.oracle.judge_latest(told.machine, self.catalog.latest(told.machine));
    }

    /// What is old goes.
    fn prune_points(&mut self) {
        let true_ms = self.catalog_ms();
        let time_ms = self.catalog.prune(true_ms);
        for (machine, retention_ms) in self.catalog.retention_ms.clone() {
            let catalog = &self.catalog;
            let is_kept = |point| catalog.has(machine, point);
            let dropped = self.oracle.judge_kept(machine, is_kept, (retention_ms, true_ms));
            self.oracle.judge_latest(machine, self.catalog.latest(machine));
            if dropped > 0 {
                self.tell("control", || {
                    format!("{dropped} points of volume {machine} go by {time_ms}")
                });
            }
        }
    }

    fn step_wall_clock(&mut self, by_ms: i64) {
        let host = &mut self.catalog.host;
        host.skew_ms = host.skew_ms.saturating_add(by_ms);
        let skew_ms = host.skew_ms;
        self.tell("control", || format!("its wall clock steps by {by_ms} ms, to {skew_ms} ms off"));
    }

    fn trouble_clocks(&mut self) {
        let rng = &mut self.catalog.rng;
        match rng.u32(0..10) {
            0..3 => {
                let by_ms = rng.i64(-STEP_MS..STEP_MS);
                self.step_wall_clock(by_ms);
            }
            3..5 => {
                let by_ms = rng.i64(-DRIFT_MS..DRIFT_MS);
                self.step_wall_clock(by_ms);
            }
            5 => self.step_wall_clock(-self.catalog.host.skew_ms),
            6..9 => {
                let by_ms = rng.i64(-STEP_MS..STEP_MS);
                self.step_wall_clock(by_ms);
                self.catalog_soon(BLIP_US, Event::Step(-by_ms));
            }
            _ => self.renew_host(),
        }
    }

    /// The control plane's host starts anew, or another one takes its place, that may have run for a year.
    fn renew_host(&mut self) {
        let since_ms = self.catalog_ms();
        let Catalog { rng, host, .. } = &mut self.catalog;
        let is_another = rng.bool();
        host.boot += 1;
        host.number += u64::from(is_another);
        host.up_ms = if is_another { rng.u64(0..365 * 24 * HOUR_MS) } else { 0 };
        host.since_ms = since_ms;
        self.oracle.host_renewed();
        let what = if is_another { "another one" } else { "started anew" };
        self.tell("control", || format!("its host is {what}"));
    }

    /// The points are in the catalogue's backup with all else.
    pub fn back_up_points(&mut self) {
        self.catalog.backup = Some(self.catalog.rows.clone());
        self.oracle.catalog_backed_up();
    }

    /// They are as they were then, and so is what is known of the clocks.
    pub fn restore_points(&mut self) {
        if let Some(rows) = &self.catalog.backup {
            self.catalog.rows = rows.clone();
            self.oracle.catalog_restored();
        }
    }
}
