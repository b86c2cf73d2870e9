//! Recovery points that wait to be reported, shared out by volume: an agent that sets marks without
//! end fills the catalogue with its own, and neither delays nor pushes out those of others.

use farshore_api::agent::PointReport;
use farshore_api::limits::REPORT_POINTS_MAX;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use uuid::Uuid;

/// Recovery points kept for a control plane that is away; the vault has them all.
const POINTS_MAX: usize = 64 * REPORT_POINTS_MAX;

/// The points, by volume, each volume's oldest first.
#[derive(Debug, Default)]
pub(crate) struct Points {
    waiting: BTreeMap<Uuid, VecDeque<PointReport>>,
    count: usize,
    dropped: u64,
    /// The next report begins behind this volume.
    turn: Uuid,
}

impl Points {
    /// Keeps a point; when there are too many the oldest of the volume that has most goes.
    pub(crate) fn push(&mut self, point: PointReport) {
        if self.count >= POINTS_MAX {
            let greediest = self.waiting.iter().max_by_key(|(_, points)| points.len());
            if let Some(volume) = greediest.map(|(volume, _)| *volume) {
                self.pop(volume);
                self.dropped += 1;
            }
        }
        self.waiting.entry(point.volume).or_default().push_back(point);
        self.count += 1;
    }

    fn pop(&mut self, volume: Uuid) {
        let Some(points) = self.waiting.get_mut(&volume) else { return };
        self.count -= usize::from(points.pop_front().is_some());
        if points.is_empty() {
            self.waiting.remove(&volume);
        }
    }

    /// How many wait, and how many were dropped since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.count as u64, self.dropped)
    }

    /// What the next report carries: of each volume in turn its oldest.
    pub(crate) fn due(&self) -> Vec<PointReport> {
        let behind = self.waiting.range((Excluded(self.turn), Unbounded));
        let volumes: Vec<&VecDeque<PointReport>> =
            behind.chain(self.waiting.range(..=self.turn)).map(|(_, points)| points).collect();
        let longest = volumes.iter().map(|points| points.len()).max().unwrap_or(0);
        let rounds = 0..longest;
        let in_turn = rounds.flat_map(|round| volumes.iter().filter_map(move |v| v.get(round)));
        in_turn.take(REPORT_POINTS_MAX).copied().collect()
    }

    /// The control plane has these.
    pub(crate) fn reported(&mut self, points: &[PointReport]) {
        for point in points {
            // It may have been pushed out meanwhile.
            let front = self.waiting.get(&point.volume).and_then(VecDeque::front);
            if front == Some(point) {
                self.pop(point.volume);
            }
            self.turn = point.volume;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_api::point::PointKind;

    fn point(volume: u128, seq: u64) -> PointReport {
        PointReport {
            point: Uuid::from_u128(seq.into()),
            volume: Uuid::from_u128(volume),
            epoch: 1,
            seq,
            kind: PointKind::Crash,
            unknown_blocks: 0,
            time_unix_ms: 0,
        }
    }

    fn seqs(points: &[PointReport], volume: u128) -> Vec<u64> {
        let of = points.iter().filter(|point| point.volume == Uuid::from_u128(volume));
        of.map(|point| point.seq).collect()
    }

    #[test]
    fn a_flood_of_one_volume_delays_and_drops_only_its_own() {
        let mut points = Points::default();
        points.push(point(2, 1));
        for seq in 1..=2 * POINTS_MAX as u64 {
            points.push(point(1, seq));
        }
        points.push(point(2, 2));
        points.push(point(3, 9));
        assert_eq!(points.count, POINTS_MAX);
        let report = points.due();
        assert_eq!(report.len(), REPORT_POINTS_MAX);
        assert_eq!((seqs(&report, 2), seqs(&report, 3)), (vec![1, 2], vec![9]));
        let flood = seqs(&report, 1);
        assert!(flood[0] > POINTS_MAX as u64, "its oldest went");
        assert!(flood.is_sorted());
    }

    #[test]
    fn everything_is_reported_once_in_the_order_of_its_volume() {
        let mut points = Points::default();
        for seq in 1..=5 {
            (0..700).for_each(|volume| points.push(point(volume, seq)));
        }
        let mut all = Vec::new();
        loop {
            let report = points.due();
            if report.is_empty() {
                break;
            }
            points.reported(&report);
            all.extend(report);
        }
        assert_eq!(all.len(), 5 * 700);
        (0..700).for_each(|volume| assert_eq!(seqs(&all, volume), [1, 2, 3, 4, 5]));
        assert_eq!(points.count, 0);
        assert!(points.waiting.is_empty());
    }

    #[test]
    fn a_report_without_an_answer_is_sent_again() {
        let mut points = Points::default();
        points.push(point(1, 1));
        let report = points.due();
        points.push(point(1, 2));
        assert_eq!(seqs(&points.due(), 1), [1, 2]);
        points.reported(&report);
        points.reported(&report);
        assert_eq!(seqs(&points.due(), 1), [2]);
    }
}
