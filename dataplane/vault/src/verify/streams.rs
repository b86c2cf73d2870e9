//! That the streams of all volumes join, while the logs are read in any order.
//!
//! A log holds the spans of an epoch in seq order, so each epoch is checked on its own as its log goes
//! by; whether the epochs join is checked at the end.

use super::Report;
use crate::base::VolumeBase;
use crate::chain::{Join, join};
use crate::layout::ObjectName;
use crate::log::ScanEnd;
use farshore_proto::base::KeptPoint;
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::limits::blocks_of;
use farshore_proto::mark::Mark;
use farshore_proto::segment::Span;
use farshore_proto::{Epoch, LogId, MarkKind, Place, PointId, Seq, Slot, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Points that were found.
#[derive(Debug, Default, Clone, Copy)]
struct Points {
    all: u64,
    scan: u64,
    unknown: u64,
}

impl Points {
    fn add(&mut self, mark: &Mark) {
        self.all += 1;
        self.scan += u64::from(mark.kind == MarkKind::Scan);
        self.unknown += u64::from(mark.unknown_blocks > 0);
    }
}

/// The points of an epoch that a base lists.
fn kept_of(base: &VolumeBase, ordinal: u64) -> impl Iterator<Item = &KeptPoint> {
    base.body.points.iter().filter(move |kept| kept.at.ordinal == ordinal)
}

/// One epoch of a volume, and how far its spans join.
#[derive(Debug)]
struct Stream {
    body: EpochBody,
    ordinal: u64,
    /// First seq that belongs to the next epoch.
    limit: Option<Seq>,
    /// Last seq found.
    last: Seq,
    /// Points found while all of the stream before them joined.
    points: Points,
    is_whole: bool,
}

/// A span that no epoch object explained when the epochs were read.
#[derive(Debug)]
pub(super) struct Strange {
    pub(super) log: LogId,
    pub(super) slot: Slot,
}

/// All volumes.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: BTreeMap<(VolumeId, Epoch), Stream>,
    /// Volumes whose epochs do not open: their spans cannot be judged.
    unreadable: BTreeSet<VolumeId>,
    /// Spans that no epoch object explains, by volume and epoch: the first of each.
    strange: BTreeMap<(VolumeId, Epoch), Strange>,
    /// Points that epochs go on from and that were not found, or do not fit, with those epochs and their sizes.
    bases: BTreeMap<(VolumeId, Place, PointId), Vec<(ObjectName, u64)>>,
    /// Points that bases of volumes list, and the size of their epochs.
    kept: Vec<(VolumeId, Place, PointId, u64)>,
    /// The end of the epoch before that an epoch names, by the log of that.
    ends: BTreeMap<LogId, Vec<(Ended, ObjectName)>>,
}

impl Streams {
    pub(super) fn add(
        &mut self,
        volume: VolumeId,
        epochs: Vec<EpochBody>,
        base: Option<&VolumeBase>,
    ) {
        for (index, body) in epochs.iter().enumerate() {
            let object = ObjectName::epoch(volume, index as u64 + 1);
            if let Some(base) = body.base {
                let users = self.bases.entry((base.volume, base.at, base.point)).or_default();
                users.push((object.clone(), body.size_bytes));
            }
            if let Some((ended, before)) = body.ended.zip(epochs[..index].last()) {
                self.ends.entry(before.log).or_default().push((ended, object));
            }
        }
        let limits: Vec<Option<Seq>> =
            epochs.iter().skip(1).map(|next| Some(next.first_seq)).chain([None]).collect();
        for ((body, limit), ordinal) in epochs.into_iter().zip(limits).zip(1..) {
            let mut last = Seq(body.first_seq.0 - 1);
            let mut points = Points::default();
            if let Some(base) = base.filter(|base| ordinal <= base.body.at.ordinal) {
                // What the base covers is there, whatever slots are; of its points those that it lists.
                let is_whole = ordinal < base.body.at.ordinal;
                let end = limit.filter(|_| is_whole).map(|limit| Seq(limit.0 - 1));
                last = end.unwrap_or(base.body.at.seq);
                for kept in kept_of(base, ordinal) {
                    points.add(&kept.mark);
                    self.kept.push((volume, kept.at, kept.mark.point, body.size_bytes));
                }
            }
            let key = (volume, body.epoch);
            let stream = Stream { body, ordinal, limit, last, points, is_whole: true };
            self.streams.insert(key, stream);
        }
    }

    pub(super) fn add_unreadable(&mut self, volume: VolumeId) {
        self.unreadable.insert(volume);
    }

    /// The logs that epochs name.
    pub(super) fn logs(&self) -> impl Iterator<Item = LogId> + '_ {
        self.streams.values().map(|stream| stream.body.log)
    }

    /// Takes the next span of a log.
    pub(super) fn take(&mut self, log: LogId, slot: Slot, span: &Span, report: &mut Report) {
        let key = (span.volume, span.epoch);
        let name = ObjectName::slot(log, slot);
        if self.unreadable.contains(&span.volume) {
            return;
        }
        let at_home =
            |stream: &&mut Stream| log == stream.body.log && slot >= stream.body.first_slot;
        let Some(stream) = self.streams.get_mut(&key).filter(at_home) else {
            self.strange.entry(key).or_insert(Strange { log, slot });
            return;
        };
        match join(span, stream.last, stream.limit) {
            Join::Skip => return,
            Join::Next => {}
            Join::Broken => {
                let (volume, first, last) = (span.volume, span.first_seq, span.last_seq);
                let expected = stream.last.next();
                let what = format!(
                    "holds seqs {first} to {last} of volume {volume}, but {expected} comes next: later points of the volume do not restore"
                );
                report.add(name.clone(), 0, what);
                stream.is_whole = false;
            }
        }
        let blocks = blocks_of(stream.body.size_bytes);
        if span.extents.iter().any(|extent| extent.range.end() > blocks) {
            let what = format!("writes past the end of volume {}", span.volume);
            report.add(name, 0, what);
            stream.is_whole = false;
        }
        stream.last = span.last_seq;
        if let Some(mark) = span.mark
            && stream.is_whole
        {
            let at = Place { ordinal: stream.ordinal, seq: span.last_seq };
            if let Some(users) = self.bases.get_mut(&(span.volume, at, mark.point)) {
                users.retain(|(_, size_bytes)| *size_bytes < stream.body.size_bytes);
            }
            stream.points.add(&mark);
        }
    }

    /// Compares where a log ends with what epochs say of that.
    pub(super) fn log_ends(&mut self, log: LogId, end: ScanEnd, report: &mut Report) {
        for (ended, object) in self.ends.remove(&log).unwrap_or_default() {
            let what = match (ended.kind, end) {
                (EndKind::Seal, ScanEnd::Sealed(slot)) if slot == ended.slot => continue,
                (EndKind::Seal, _) => {
                    format!(
                        "is missing, the seal that {object} names: who was shut out by it may write again"
                    )
                }
                (_, ScanEnd::Sealed(slot) | ScanEnd::Missing(slot)) if slot >= ended.slot => {
                    continue;
                }
                (_, ScanEnd::Sealed(slot) | ScanEnd::Missing(slot)) => {
                    format!(
                        "comes behind slot {slot}, where the log ends, but {object} says that it was filled"
                    )
                }
            };
            let slot = match ended.kind {
                EndKind::Seal => ended.slot,
                _ => Slot(ended.slot.0.saturating_sub(1)),
            };
            report.add(ObjectName::slot(log, slot), 0, what);
        }
    }

    /// The spans that no epoch object explained.
    pub(super) fn take_strange(&mut self) -> BTreeMap<(VolumeId, Epoch), Strange> {
        std::mem::take(&mut self.strange)
    }

    /// Checks that the epochs of each volume join, and counts the points.
    pub(super) fn finish(mut self, report: &mut Report) {
        for (volume, at, point, size) in std::mem::take(&mut self.kept) {
            if let Some(users) = self.bases.get_mut(&(volume, at, point)) {
                users.retain(|(_, size_bytes)| *size_bytes < size);
            }
        }
        for ((volume, at, point), objects) in &self.bases {
            for (object, _) in objects {
                let what = format!(
                    "goes on from point {point} at place {at} of volume {volume}, which does not restore there or does not fit: nothing from here on does"
                );
                report.add(object.clone(), 0, what);
            }
        }
        let mut before: Option<(VolumeId, Seq, bool)> = None;
        // Of one volume the epochs come in order: their numbers grow.
        for ((volume, _), stream) in self.streams {
            let (last, is_whole) = match before {
                Some((same, last, is_whole)) if same == volume => (last, is_whole),
                _ => (Seq(0), true),
            };
            let first = stream.body.first_seq;
            let joins = last.next() == first;
            if !joins && is_whole {
                let name = ObjectName::epoch(volume, stream.ordinal);
                let what = format!(
                    "begins at seq {first}, but the logs hold the volume up to {last}: points from here on do not restore"
                );
                report.add(name, 0, what);
            }
            let is_whole = is_whole && joins;
            if is_whole {
                report.points += stream.points.all;
                report.scan_points += stream.points.scan;
                report.unknown_points += stream.points.unknown;
            }
            before = Some((volume, stream.last, is_whole && stream.is_whole));
        }
    }
}
