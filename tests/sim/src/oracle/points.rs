//! Which points the control plane keeps, and which it takes for the newest.
//!
//! By true time, whatever its clocks did: none goes before its policy lets it, but for what a clock may
//! gain without a doubt, and the newest by its place in the stream never goes.

use super::Oracle;
use crate::control::volume_of;
use crate::store::at_once;
use crate::sweeper::is_kept;
use crate::world::World;
use farshore_proto::{ErrorKind, PointId, Seq};
use farshore_vault::base;
use farshore_vault::catalog::list_points;
use std::collections::BTreeMap;

/// What the control plane's clock may gain without a doubt while a point grows old: a minute at once, and a
/// minute an hour; and an hour each time its host begins anew, since nothing says how long it was off.
const GAIN_MS: u64 = 3_600_000;

/// A point that the control plane was told of.
#[derive(Debug, Clone, Copy)]
struct Known {
    seq: Seq,
    /// When that was, in true time.
    heard_ms: u64,
    /// Starts of its host until then.
    starts: u64,
}

/// By server.
type Points = BTreeMap<usize, BTreeMap<PointId, Known>>;

/// What the control plane's catalogue must have.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    points: Points,
    backup: Points,
    starts: u64,
}

impl Oracle {
    /// The control plane was told of a point that it did not know.
    pub fn point_told(&mut self, machine: usize, point: PointId, seq: Seq, now_ms: u64) {
        self.counts.points_told += 1;
        let set = self.streams[machine].promise(point).map(|promise| promise.seq);
        if set != Some(seq) {
            let what = format!("volume {machine}: a point is told of at {seq}, set was {set:?}");
            self.violate("I2", what);
        }
        let known = Known { seq, heard_ms: now_ms, starts: self.catalogue.starts };
        self.catalogue.points.entry(machine).or_default().insert(point, known);
    }

    /// The control plane says which point is *latest*: of those that it knows, the last in the stream.
    pub fn judge_latest(&mut self, machine: usize, latest: Option<PointId>) {
        let Some(points) = self.catalogue.points.get(&machine) else { return };
        let newest = points.values().map(|known| known.seq).max();
        let taken = latest.and_then(|point| points.get(&point)).map(|known| known.seq);
        if taken != newest {
            let what =
                format!("volume {machine}: latest is {taken:?}, the newest known {newest:?}");
            self.violate("I6", what);
        }
    }

    /// The control plane dropped points; returns how many. The policy keeps them for so long, and that is the
    /// true time.
    pub fn judge_kept(
        &mut self,
        machine: usize,
        is_kept: impl Fn(PointId) -> bool,
        (retention_ms, now_ms): (u64, u64),
    ) -> u64 {
        let starts = self.catalogue.starts;
        let Some(points) = self.catalogue.points.get_mut(&machine) else { return 0 };
        let newest = points.values().map(|known| known.seq).max();
        let is_gone = |point: &PointId, _: &mut Known| !is_kept(*point);
        let gone: Vec<Known> = points.extract_if(.., is_gone).map(|(_, known)| known).collect();
        for Known { seq, heard_ms, starts: before } in &gone {
            let age_ms = now_ms - heard_ms;
            let gained_ms = GAIN_MS * (1 + starts - before);
            if Some(*seq) == newest || age_ms + gained_ms < retention_ms {
                let what = format!(
                    "volume {machine}: the point at {seq} goes {age_ms} ms after it was heard of, kept are \
                     {retention_ms} ms; the newest is {newest:?}"
                );
                self.violation.get_or_insert(super::Violation { rule: "I6", what });
            }
        }
        let dropped = gone.len() as u64;
        self.counts.points_dropped += dropped;
        dropped
    }

    /// The control plane's host starts anew, or is another one.
    pub fn host_renewed(&mut self) {
        self.catalogue.starts += 1;
    }

    /// The catalogue is backed up.
    pub fn catalog_backed_up(&mut self) {
        self.catalogue.backup.clone_from(&self.catalogue.points);
    }

    /// It is what it was when it was backed up.
    pub fn catalog_restored(&mut self) {
        self.catalogue.points.clone_from(&self.catalogue.backup);
    }
}

impl World {
    /// What the control plane knows is in the vault, at the same place.
    pub fn judge_known(&mut self) {
        let vault = self.store.direct();
        for (machine, known) in self.oracle.catalogue.points.clone() {
            let held = match at_once(list_points(&vault, volume_of(machine))) {
                Ok(held) => held,
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                Err(error) => {
                    let what = format!("volume {machine}: its points cannot be listed: {error}");
                    return self.oracle.violate("I1", what);
                }
            };
            let held: BTreeMap<PointId, Seq> =
                held.iter().map(|point| (point.id, point.seq)).collect();
            let base = at_once(base::newest(&vault, volume_of(machine)));
            // Above the newest base all is kept.
            let covered = base.ok().flatten().map(|base| base.body.at.seq);
            let is_held = |(id, it): &(&PointId, &Known)| {
                held.get(id) == Some(&it.seq) || !is_kept(**id) && Some(it.seq) <= covered
            };
            if let Some((_, missing)) = known.iter().find(|it| !is_held(it)) {
                let seq = missing.seq;
                let what =
                    format!("volume {machine}: the point told of at {seq} is not in the vault");
                self.oracle.violate("I1", what);
            }
        }
    }
}
