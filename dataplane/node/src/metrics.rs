//! What the node counts: for its reports to the control plane.

use crate::points::Points;
use farshore_api::agent::PointReport;
use farshore_api::limits::REPORT_VOLUMES_MAX;
use farshore_api::machine::VolumeStats;
use farshore_api::node::NodeVolumeReport;
use farshore_api::point::PointKind;
use farshore_engine::log::CommittedPoint;
use farshore_proto::{Epoch, MarkKind, Seq, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
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
    epochs_wanted: Mutex<BTreeSet<VolumeId>>,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Clone, Default)]
struct VolumeState {
    epoch: Epoch,
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

    pub(crate) fn journaled(&self, bytes: usize) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.journal_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
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
        for CommittedPoint { volume, seq, mark } in points {
            waiting.push(PointReport {
                point: mark.point.into(),
                volume: (*volume).into(),
                seq: seq.0,
                kind: match mark.kind {
                    MarkKind::Crash => PointKind::Crash,
                    MarkKind::App => PointKind::App,
                    MarkKind::Scan => PointKind::Scan,
                },
                unknown_blocks: mark.unknown_blocks,
                time_unix_ms: mark.time_unix_ms,
            });
        }
    }

    /// The oldest recovery points of each volume that were not reported yet.
    pub(crate) fn points(&self) -> Vec<PointReport> {
        lock(&self.points).due()
    }

    /// The control plane has these.
    pub(crate) fn points_reported(&self, reported: &[PointReport]) {
        lock(&self.points).reported(reported);
    }

    /// The volume's epoch is in a log that is not this node's: only a newer one can be written here.
    pub(crate) fn want_epoch(&self, volume: VolumeId) {
        lock(&self.epochs_wanted).insert(volume);
    }

    /// What keeps the node from its work, or nothing any more.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *lock(&self.trouble) = trouble;
    }

    /// What keeps the node from its work.
    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Volumes that need a newer epoch; asked for again if their agents still cannot begin.
    pub(crate) fn take_epochs_wanted(&self) -> Vec<Uuid> {
        let wanted = std::mem::take(&mut *lock(&self.epochs_wanted));
        wanted.into_iter().take(REPORT_VOLUMES_MAX).map(Uuid::from).collect()
    }

    /// The volumes' part of a report.
    pub(crate) fn volumes(&self) -> Vec<NodeVolumeReport> {
        lock(&self.volumes)
            .iter()
            .filter(|(_, state)| state.epoch > Epoch(0))
            .take(REPORT_VOLUMES_MAX)
            .map(|(volume, state)| NodeVolumeReport {
                volume: (*volume).into(),
                epoch: state.epoch.0,
                journaled_seq: state.committed.0,
                committed_seq: state.committed.0,
                stats: state.stats,
            })
            .collect()
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
        for (reason, count) in lock(&self.refused).iter() {
            counters.insert(format!("refused.{reason}"), *count);
        }
        counters
    }
}
