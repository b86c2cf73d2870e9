//! What somebody reads beside the writers.

use super::Oracle;
use super::vault::difference;
use crate::control::volume_of;
use crate::reader::{Done, Read, Want, What};
use crate::store::at_once;
use crate::sweeper::is_kept;
use crate::world::World;
use farshore_proto::ErrorKind;
use farshore_vault::VaultError;
use farshore_vault::catalog::list_points;
use farshore_vault::view::Point;

impl World {
    /// The points of a server's volume that the vault holds at this moment, past every fault.
    pub fn points_held(&mut self, machine: usize) -> Vec<Point> {
        match at_once(list_points(&self.store.direct(), volume_of(machine))) {
            Ok(points) => points,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let what =
                    format!("volume {machine}: beside its writers no point is listed: {error}");
                self.oracle.violate("I2", what);
                Vec::new()
            }
        }
    }
}

impl Oracle {
    /// Somebody read beside the writers: a point that the vault held is still there, the newest is no older
    /// than what it held, the bytes are what the mark promised. An error is the store's absence and says so,
    /// and comes only if a request failed.
    pub fn judge_read(&mut self, want: &Want, done: &Done, has_failed: bool) {
        let at = format!("volume {}: read {:?} beside its writers", want.machine, want.what);
        let is_away = |error: &VaultError| has_failed && error.kind() == ErrorKind::Unavailable;
        match done {
            Err(error) if is_away(error) => self.counts.reads_away += 1,
            Err(error) if error.kind() == ErrorKind::NotFound && want.held.is_empty() => {}
            // History was let go all the time while it was read, or the point was not kept.
            Err(VaultError::Passed { .. }) => self.counts.reads_away += 1,
            Err(_) if matches!(want.what, What::Known(point) if !is_kept(point.id)) => {}
            Err(error) => self.violate("I2", format!("{at}: {error}")),
            Ok(Read::Points(points)) => self.judge_list(want, points),
            Ok(Read::Volume(point, read)) => {
                self.judge_opened(want, point);
                match read {
                    Ok(bytes) => self.judge_bytes(want.machine, point, bytes),
                    Err((error, waited)) if is_away(error) && *waited >= want.patience => {
                        self.counts.reads_away += 1;
                    }
                    // What was not kept may go while it is read.
                    Err(_) if !is_kept(point.id) => self.counts.reads_away += 1,
                    Err((error, waited)) => {
                        self.violate("I2", format!("{at}: after {waited:?}: {error}"));
                    }
                }
            }
        }
    }

    fn judge_list(&mut self, want: &Want, points: &[Point]) {
        if let Some(lost) = want.held.iter().find(|held| !points.contains(held) && is_kept(held.id))
        {
            let what = format!("volume {}: the list has no {lost:?}", want.machine);
            return self.violate("I2", what);
        }
        if points.windows(2).any(|pair| pair[0].seq >= pair[1].seq) {
            return self.violate("I6", format!("volume {}: points out of order", want.machine));
        }
        points.iter().for_each(|point| self.judge_place(want.machine, point));
        self.counts.reads += 1;
    }

    fn judge_opened(&mut self, want: &Want, point: &Point) {
        self.judge_place(want.machine, point);
        let machine = want.machine;
        match want.what {
            What::Known(known) if known.id != point.id => {
                self.violate(
                    "I2",
                    format!("volume {machine}: asked for {known:?}, opened {point:?}"),
                );
            }
            What::Latest if want.held.last().is_some_and(|held| held.seq > point.seq) => {
                let held = want.held.last().map(|held| held.seq);
                let what = format!(
                    "volume {machine}: the latest point is said to be at {}, the vault held {held:?}",
                    point.seq
                );
                self.violate("I2", what);
            }
            _ => {}
        }
    }

    /// A point is where its mark was set.
    fn judge_place(&mut self, machine: usize, point: &Point) {
        let promised = self.streams[machine].promise(point.id).map(|promise| promise.seq);
        if promised != Some(point.seq) {
            let what = format!("volume {machine}: {point:?} was set at {promised:?}");
            self.violate("I2", what);
        }
    }

    fn judge_bytes(&mut self, machine: usize, point: &Point, bytes: &[u8]) {
        self.counts.reads += 1;
        let Some(promise) = self.streams[machine].promise(point.id) else { return };
        if let Some(what) = difference(bytes, &promise.image) {
            let at = format!("volume {machine}: the point at {} beside its writers", point.seq);
            self.violate("I2", format!("{at}: {what}"));
        }
    }
}
