//! What the node counts: for its reports to the control plane.

use crate::points::Points;
use crate::troubles::Troubles;
use farshore_api::agent::PointReport;
use farshore_api::limits::REPORT_VOLUMES_MAX;
use farshore_api::machine::VolumeStats;
use farshore_api::node::{EpochSeen, NodeReport, NodeVolumeReport};
use farshore_api::point::PointKind;
use farshore_engine::batch::Entry;
use farshore_engine::claims::{Cause, Wishes};
use farshore_engine::log::CommittedPoint;
use farshore_proto::{Epoch, Seq, VolumeId};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Counters of the whole node. Shards add once per frame, group or segment; nobody waits on them.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    received_bytes: AtomicU64,
    journal_bytes: AtomicU64,
    groups: AtomicU64,
    journal_damages: AtomicU64,
    segments: AtomicU64,
    segment_bytes: AtomicU64,
    sessions: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    volumes: Mutex<BTreeMap<VolumeId, VolumeState>>,
    points: Mutex<Points>,
    wishes: Mutex<Wishes>,
    troubles: Troubles,
    /// The next report begins behind this volume.
    turn: Mutex<Option<VolumeId>>,
    /// Volumes that two living agents claim, and how that is told.
    contested: Mutex<BTreeMap<VolumeId, String>>,
}

#[derive(Debug, Clone, Default)]
struct VolumeState {
    epoch: Epoch,
    journaled: Seq,
    committed: Seq,
    stats: VolumeStats,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while counting leaves numbers behind, not broken promises.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A group of these frames is durable.
    pub(crate) fn journaled(&self, bytes: usize, entries: &[Entry]) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.journal_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.replayed(entries);
    }

    /// The journal holds these frames, of this run or of one before.
    pub(crate) fn replayed(&self, entries: &[Entry]) {
        let mut volumes = lock(&self.volumes);
        for entry in entries {
            let state = volumes.entry(entry.volume).or_default();
            (state.epoch, state.journaled) = (entry.epoch, entry.seq);
        }
    }

    /// The start found so many damages in the journal.
    pub(crate) fn journal_damaged(&self, damages: u64) {
        self.journal_damages.fetch_add(damages, Ordering::Relaxed);
    }

    pub(crate) fn session_began(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        *lock(&self.refused).entry(reason).or_default() += 1;
    }

    pub(crate) fn put(&self, bytes: usize) {
        self.segments.fetch_add(1, Ordering::Relaxed);
        self.segment_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What building a segment did with one volume's bytes.
    pub(crate) fn built(&self, volume: VolumeId, epoch: Epoch, stats: &VolumeStats) {
        let mut volumes = lock(&self.volumes);
        let state = volumes.entry(volume).or_default();
        state.epoch = epoch;
        state.stats.bytes_in += stats.bytes_in;
        state.stats.zero_bytes += stats.zero_bytes;
        state.stats.duplicate_bytes += stats.duplicate_bytes;
        state.stats.unique_bytes += stats.unique_bytes;
        state.stats.stored_bytes += stats.stored_bytes;
    }

    /// New committed watermarks and recovery points.
    pub(crate) fn committed(&self, lasts: &BTreeMap<VolumeId, Seq>, points: &[CommittedPoint]) {
        let mut volumes = lock(&self.volumes);
        for (volume, last) in lasts {
            volumes.entry(*volume).or_default().committed = *last;
        }
        drop(volumes);
        let mut waiting = lock(&self.points);
        for CommittedPoint { volume, epoch, seq, mark } in points {
            waiting.push(PointReport {
                point: mark.point.into(),
                volume: (*volume).into(),
                epoch: epoch.0,
                seq: seq.0,
                kind: PointKind::of_word(mark.kind.word()),
                unknown_blocks: mark.unknown_blocks,
                time_unix_ms: mark.time_unix_ms,
            });
        }
    }

    /// The oldest recovery points of each volume that were not reported yet.
    pub(crate) fn points(&self) -> Vec<PointReport> {
        lock(&self.points).due()
    }

    fn points_reported(&self, reported: &[PointReport]) {
        lock(&self.points).reported(reported);
    }

    /// A claim ended with what only the control plane can mend.
    pub(crate) fn wish(&self, volume: VolumeId, cause: Cause) {
        lock(&self.wishes).learn(volume, cause);
    }

    /// Newer epochs than those that the volumes are assigned under, as many as a report takes.
    pub(crate) fn epochs_seen(
        &self,
        assigned: impl Fn(VolumeId) -> Option<Epoch>,
    ) -> Vec<EpochSeen> {
        let seen = lock(&self.wishes).newer(assigned, REPORT_VOLUMES_MAX).into_iter();
        seen.map(|(volume, epoch)| EpochSeen { volume: volume.into(), epoch: epoch.0 }).collect()
    }

    /// What keeps the node from its work, by what it keeps it from.
    pub(crate) fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Two living agents claim a volume, as the text says, or not any more.
    pub(crate) fn set_contested(&self, volume: VolumeId, text: Option<String>) {
        let mut contested = lock(&self.contested);
        match text {
            Some(text) => {
                let before = contested.insert(volume, text.clone());
                if before.is_none() {
                    tracing::error!(%volume, "{text}");
                }
            }
            None => {
                contested.remove(&volume);
                tracing::info!(%volume, "one agent is left that claims the volume");
            }
        }
    }

    /// Volumes that need a newer epoch, as many as a report takes; asked for again if their agents still
    /// cannot begin.
    pub(crate) fn take_epochs_wanted(&self) -> Vec<Uuid> {
        lock(&self.wishes).take_needed(REPORT_VOLUMES_MAX).into_iter().map(Uuid::from).collect()
    }

    /// A report with these was not delivered.
    pub(crate) fn want_epochs(&self, volumes: &[Uuid]) {
        lock(&self.wishes).need(volumes.iter().copied().map(VolumeId::from));
    }

    /// The volumes' part of a report: of more than it takes, those behind the last report's first.
    pub(crate) fn volumes(&self) -> Vec<NodeVolumeReport> {
        let contested = lock(&self.contested).clone();
        let turn = lock(&self.turn).unwrap_or(VolumeId([0; 16]));
        let volumes = lock(&self.volumes);
        let behind = volumes.range((Excluded(turn), Unbounded));
        behind
            .chain(volumes.range(..=turn))
            .filter(|(_, state)| state.epoch > Epoch(0))
            .take(REPORT_VOLUMES_MAX)
            .map(|(volume, state)| NodeVolumeReport {
                volume: (*volume).into(),
                epoch: state.epoch.0,
                // What was committed under an epoch before is not in this journal, and need not be.
                journaled_seq: state.journaled.max(state.committed).0,
                committed_seq: state.committed.0,
                contested: contested.get(volume).cloned(),
                stats: state.stats,
            })
            .collect()
    }

    /// The control plane has this report. Forgets the volumes in it that are not this node's any more and have
    /// told their last; returns them.
    pub(crate) fn reported(
        &self,
        report: &NodeReport,
        is_assigned: impl Fn(VolumeId) -> bool,
    ) -> Vec<VolumeId> {
        self.points_reported(&report.points);
        if let Some(last) = report.volumes.last() {
            *lock(&self.turn) = Some(last.volume.into());
        }
        let mut volumes = lock(&self.volumes);
        let is_over = |told: &&NodeVolumeReport| {
            let id = VolumeId::from(told.volume);
            let is_last = volumes.get(&id).is_some_and(|state| {
                state.journaled <= state.committed && state.committed.0 == told.committed_seq
            });
            is_last && !is_assigned(id)
        };
        let over = report.volumes.iter().filter(is_over);
        let over: Vec<VolumeId> = over.map(|told| told.volume.into()).collect();
        for volume in &over {
            volumes.remove(volume);
        }
        over
    }

    /// The counters' part of a report.
    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        let mut counters: BTreeMap<String, u64> = [
            ("received_bytes", &self.received_bytes),
            ("journal_bytes", &self.journal_bytes),
            ("journal_groups", &self.groups),
            ("journal_damages", &self.journal_damages),
            ("segments", &self.segments),
            ("segment_bytes", &self.segment_bytes),
            ("sessions", &self.sessions),
        ]
        .into_iter()
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .collect();
        let (waiting, dropped) = lock(&self.points).counts();
        counters.insert("points_waiting".to_owned(), waiting);
        counters.insert("points_dropped".to_owned(), dropped);
        for (reason, count) in lock(&self.refused).iter() {
            counters.insert(format!("refused.{reason}"), *count);
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_engine::batch::{Change, Handle};
    use farshore_proto::{BlockRange, MarkKind};
    use std::collections::BTreeSet;

    /// The API takes the vault's words: one that it lacks would make points of that kind unknown.
    #[test]
    fn every_kind_of_mark_is_a_kind_of_point() {
        for kind in MarkKind::ALL {
            let point = PointKind::of_word(kind.word());
            assert_eq!((point.as_str(), point == PointKind::Unknown), (kind.word(), false));
        }
        assert_eq!(PointKind::of_word("later"), PointKind::Unknown);
    }

    fn metrics(volumes: usize) -> Metrics {
        let metrics = Metrics::default();
        for volume in 0..volumes {
            let volume = VolumeId((volume as u128).to_be_bytes());
            metrics.built(volume, Epoch(1), &VolumeStats::default());
        }
        metrics
    }

    /// C8: said until it is heard, since the agent waits for the control plane and asks no more.
    #[test]
    fn a_newer_epoch_is_told_until_a_greater_one_is_given() {
        let (metrics, volume) = (Metrics::default(), VolumeId([1; 16]));
        metrics.wish(volume, Cause::Fenced(Epoch(40)));
        for _ in 0..2 {
            let seen = metrics.epochs_seen(|_| Some(Epoch(3)));
            assert_eq!(seen, [EpochSeen { volume: volume.into(), epoch: 40 }]);
        }
        assert!(metrics.epochs_seen(|_| Some(Epoch(41))).is_empty());
        metrics.wish(volume, Cause::Fenced(Epoch(50)));
        assert!(metrics.epochs_seen(|_| None).is_empty(), "the volume is another node's");
        assert!(metrics.epochs_seen(|_| Some(Epoch(3))).is_empty(), "and is forgotten here");
    }

    fn report(metrics: &Metrics) -> NodeReport {
        NodeReport {
            order: farshore_api::agent::ReportOrder::default(),
            uptime_seconds: 0.0,
            cpu_seconds: 0.0,
            epochs_seen: Vec::new(),
            volumes: metrics.volumes(),
            points: metrics.points(),
            trouble: None,
            counters: metrics.counters(),
            epochs_wanted: metrics.take_epochs_wanted(),
            let_go: Vec::new(),
        }
    }

    #[test]
    fn every_volume_is_reported_in_turn_and_none_is_passed_over_when_a_report_is_lost() {
        let count = 2 * REPORT_VOLUMES_MAX + 3;
        let metrics = metrics(count);
        let lost = report(&metrics);
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let sent = report(&metrics);
            assert_eq!(sent.volumes.len(), REPORT_VOLUMES_MAX);
            seen.extend(sent.volumes.iter().map(|volume| volume.volume));
            assert!(metrics.reported(&sent, |_| true).is_empty());
        }
        assert_eq!(seen.len(), count);
        assert!(lost.volumes.iter().all(|volume| seen.contains(&volume.volume)));
    }

    /// P33: a long-lived node sees many volumes come and go.
    #[test]
    fn a_volume_that_was_taken_away_is_forgotten_once_its_last_is_told() {
        let metrics = metrics(2);
        let ids = [0, 1].map(|n: u128| VolumeId(n.to_be_bytes()));
        let stays = |volume: VolumeId| volume == ids[0];
        let sent = report(&metrics);
        metrics.committed(&BTreeMap::from([(ids[0], Seq(4)), (ids[1], Seq(4))]), &[]);
        assert!(metrics.reported(&sent, stays).is_empty(), "its last was not in that report");
        let sent = report(&metrics);
        assert_eq!(sent.volumes.len(), 2);
        assert_eq!(metrics.reported(&sent, stays), [ids[1]]);
        let left: Vec<VolumeId> = metrics.volumes().iter().map(|told| told.volume.into()).collect();
        assert_eq!(left, [ids[0]]);
        // It comes back.
        metrics.committed(&BTreeMap::from([(ids[1], Seq(9))]), &[]);
        metrics.built(ids[1], Epoch(2), &VolumeStats::default());
        assert_eq!(metrics.volumes().len(), 2);
    }

    #[test]
    fn wishes_for_epochs_outlast_a_report_that_was_not_delivered_and_one_that_is_full() {
        let metrics = metrics(0);
        let count = REPORT_VOLUMES_MAX + 2;
        for volume in 0..count {
            metrics.wish(VolumeId((volume as u128).to_be_bytes()), Cause::NeedsEpoch);
        }
        let lost = report(&metrics);
        assert_eq!(lost.epochs_wanted.len(), REPORT_VOLUMES_MAX);
        metrics.want_epochs(&lost.epochs_wanted);
        let wanted = [metrics.take_epochs_wanted(), metrics.take_epochs_wanted()].concat();
        assert_eq!(wanted.iter().collect::<BTreeSet<_>>().len(), count);
        assert!(metrics.take_epochs_wanted().is_empty());
    }

    #[test]
    fn what_is_journaled_is_not_what_is_committed() {
        let metrics = metrics(1);
        let volume = VolumeId([0; 16]);
        metrics.committed(&BTreeMap::from([(volume, Seq(4))]), &[]);
        let seqs = |metrics: &Metrics| {
            let volumes = metrics.volumes();
            (volumes[0].journaled_seq, volumes[0].committed_seq)
        };
        assert_eq!(seqs(&metrics), (4, 4));
        let change = Change::Zero(BlockRange { block: 0, count: 1 });
        let entry = |seq| Entry {
            imprint: farshore_proto::Imprint::default(),
            volume,
            epoch: Epoch(1),
            seq: Seq(seq),
            stamp: farshore_proto::Stamp::default(),
            change,
            handle: Handle(seq),
            bytes: 0,
        };
        metrics.journaled(4096, &[entry(5), entry(6)]);
        assert_eq!(seqs(&metrics), (6, 4));
        metrics.committed(&BTreeMap::from([(volume, Seq(6))]), &[]);
        assert_eq!(seqs(&metrics), (6, 6));
    }
}
