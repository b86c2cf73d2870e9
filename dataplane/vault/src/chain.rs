//! A volume's stream: the spans of all its epochs, in seq order, checked to join.
//!
//! Rules:
//!   - The epochs are read in order; each names the log that holds its spans.
//!   - Spans at or above the first seq of the next epoch do not count: a fenced writer put them.
//!   - A span that is wholly at or below what was read is a repetition, and is skipped.
//!   - Every other span begins right behind the one before; the stream begins at seq 1.
//!   - A segment whose table does not open holds nothing of the volume if the spans around it join.
//!   - All slots of an epoch's log in front of the end that the next epoch names are filled: one that is not is lost.
//!   - Behind a volume's base the stream goes on from where its map ends; what lies in front may be gone.
//!   - Slots that a checkpoint says to hold nothing of the volume need not be read (`trail`).

mod trail;

use crate::base::{VolumeBase, read_whole};
use crate::error::VaultError;
use crate::horizon::{self, Horizon};
use crate::layout::ObjectName;
use crate::limits::WALK_TRIED;
use crate::log::{Behind, LogScan, OpenSegment, ScanEnd, read_segment};
use crate::revision;
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::{Ended, EpochBody};
use farshore_proto::segment::Span;
use farshore_proto::{LogId, PointId, Seq, Slot, Stamp, VolumeId};
use std::collections::VecDeque;
use std::sync::Arc;

pub(crate) use trail::Trail;
use trail::{Quiet, Wanted};

/// What a span is to a reader that holds everything up to some seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// The next piece.
    Next,
    /// Known already, or beyond the epoch: does not count.
    Skip,
    /// It does not join.
    Broken,
}

/// Judges a span: `last` is the last seq read, `limit` the first seq that the epoch does not own.
#[must_use]
pub fn join(span: &Span, last: Seq, limit: Option<Seq>) -> Join {
    if limit.is_some_and(|limit| span.first_seq >= limit) || span.last_seq <= last {
        return Join::Skip;
    }
    let is_inside = limit.is_none_or(|limit| span.last_seq < limit);
    if span.first_seq == last.next() && is_inside { Join::Next } else { Join::Broken }
}

/// A span and where it was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Index of its epoch.
    pub(crate) epoch: usize,
    pub(crate) slot: Slot,
    pub(crate) span: Span,
    /// The segment that holds it, without its spans.
    pub(crate) segment: Arc<OpenSegment>,
}

/// A slot that is missing at the end of the newest log while a later one exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The log.
    pub log: LogId,
    /// The missing slot.
    pub slot: Slot,
    /// A later slot that exists.
    pub later: Slot,
}

/// A place in a volume's stream to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// Index of the epoch.
    pub(crate) epoch: usize,
    /// Slot of the segment that holds the last span that was read.
    pub(crate) slot: Slot,
    /// Last seq that was read.
    pub(crate) last: Seq,
}

/// A map to go on from.
#[derive(Debug, Clone)]
pub(crate) struct Resumed {
    /// Where it ends.
    pub(crate) start: Start,
    /// The point there, if it is at one.
    pub(crate) point: Option<PointId>,
    /// The map.
    pub(crate) map: ObjectName,
}

impl Resumed {
    /// That one of the volume's spans in the segment there is the one that the map ends with. Slots may have been lost since
    /// it was made, and others come in their place.
    fn check<'s>(
        self,
        vault: &Vault,
        mut spans: impl Iterator<Item = &'s Span>,
    ) -> Result<(), VaultError> {
        let ends_with = |span: &Span| {
            let point = span.mark.map(|mark| mark.point);
            span.last_seq == self.start.last && (self.point.is_none() || self.point == point)
        };
        if spans.any(ends_with) {
            return Ok(());
        }
        Err(VaultError::Map { url: vault.url().to_owned(), object: self.map })
    }
}

/// Reads the stream of a volume.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: Vec<EpochBody>,
    /// Index of the epoch being read.
    epoch: usize,
    /// A log that is known to be filled below a slot, or behind its horizon.
    filled: Option<(LogId, Slot)>,
    scan: LogScan<'a>,
    spans: VecDeque<Span>,
    segment: Option<(Slot, Arc<OpenSegment>)>,
    last: Seq,
    /// Of the frame at `last`.
    stamp: Stamp,
    end: Option<ScanEnd>,
    /// What it goes on from, until the segment there was read.
    resumed: Option<Resumed>,
    /// Why a segment was not read, until what follows shows that it holds nothing of the volume.
    unread: Option<VaultError>,
    /// How quiet the volume is in the log that is read.
    quiet: Quiet,
}

impl<'a> Chain<'a> {
    /// Begins at the volume's base, or at the first epoch.
    pub(crate) async fn open(vault: &'a Vault, volume: VolumeId) -> Result<Self, VaultError> {
        let (epochs, base) = read_whole(vault, volume).await?;
        Self::whole(vault, volume, epochs, base.as_ref()).await
    }

    /// The same, where both are known.
    pub(crate) async fn whole(
        vault: &'a Vault,
        volume: VolumeId,
        epochs: Vec<EpochBody>,
        base: Option<&VolumeBase>,
    ) -> Result<Self, VaultError> {
        match base {
            Some(base) => Self::behind(vault, epochs, base).await,
            None => Self::begin(vault, volume, epochs, 0),
        }
    }

    /// Goes on where the map of a base ends. That it is the right map is said by the base; nothing is compared with the segment
    /// there, which may be gone.
    pub(crate) async fn behind(
        vault: &'a Vault,
        epochs: Vec<EpochBody>,
        base: &VolumeBase,
    ) -> Result<Self, VaultError> {
        let start = base.start(vault, &epochs)?;
        let log = epochs[start.epoch].log;
        // If that slot is in front of the log's horizon it begins there.
        let scan = LogScan::resume(vault, log, start.slot);
        let chain = Self::at(vault, base.volume, epochs, start.epoch, scan, start.last);
        // Or else it is there: where it is not, horizons are lost, or what comes behind.
        Ok(chain.filled_to(log, start.slot.next()))
    }

    /// Begins at one of the volume's epochs, of which the ones before are not read.
    pub(crate) fn begin(
        vault: &'a Vault,
        volume: VolumeId,
        epochs: Vec<EpochBody>,
        epoch: usize,
    ) -> Result<Self, VaultError> {
        let Some(first) = epochs.get(epoch) else {
            return Err(VaultError::NoVolume { url: vault.url().to_owned(), volume });
        };
        let scan = LogScan::new(vault, first.log, first.first_slot);
        let (last, stamp) = match epoch {
            0 => (Seq(0), Stamp::default()),
            _ => (Seq(first.first_seq.0 - 1), first.stamp),
        };
        let chain = Self { stamp, ..Self::at(vault, volume, epochs, epoch, scan, last) };
        chain.check_epoch()?;
        Ok(chain)
    }

    /// Goes on where a map of the volume ends, in one of its epochs.
    pub(crate) fn resume(
        vault: &'a Vault,
        volume: VolumeId,
        epochs: Vec<EpochBody>,
        map: Resumed,
    ) -> Self {
        let Start { epoch, slot, last } = map.start;
        let scan = LogScan::resume(vault, epochs[epoch].log, slot);
        Self { resumed: Some(map), ..Self::at(vault, volume, epochs, epoch, scan, last) }
    }

    /// In an epoch, with everything up to `last` read.
    fn at(
        vault: &'a Vault,
        volume: VolumeId,
        epochs: Vec<EpochBody>,
        epoch: usize,
        scan: LogScan<'a>,
        last: Seq,
    ) -> Self {
        let chain = Self {
            vault,
            volume,
            epochs,
            epoch,
            filled: None,
            scan,
            spans: VecDeque::new(),
            segment: None,
            last,
            stamp: Stamp::default(),
            end: None,
            resumed: None,
            unread: None,
            quiet: Quiet::new(vault),
        };
        let filled = chain.filled();
        Self { scan: chain.scan.filled_to(filled), ..chain }
    }

    /// The slots of `log` below `filled` are known to be filled: the log does not end in front of that,
    /// and what is missing there is asked for again, or lost. Before the first span is read.
    pub(crate) fn filled_to(mut self, log: LogId, filled: Slot) -> Self {
        let known = self.filled.filter(|(known, _)| *known == log).map(|(_, filled)| filled);
        self.filled = Some((log, known.map_or(filled, |known| known.max(filled))));
        let filled = self.filled();
        self.scan = self.scan.filled_to(filled);
        self
    }

    /// Slots of the log that is read are known to be filled below this one.
    fn filled(&self) -> Slot {
        let log = self.epochs[self.epoch].log;
        let told = self.filled.filter(|(known, _)| *known == log).map(|(_, filled)| filled);
        let ended = self.epochs.get(self.epoch + 1).and_then(|next| next.ended);
        told.max(ended.map(Ended::filled)).unwrap_or(Slot(0))
    }

    pub(crate) fn vault(&self) -> &Vault {
        self.vault
    }

    pub(crate) fn epochs(&self) -> &[EpochBody] {
        &self.epochs
    }

    /// Last seq read.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// Of the last frame read: whose it is. Nothing if that is not known.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The next span that counts; none at the end of what the vault holds.
    pub(crate) async fn next(&mut self) -> Result<Option<Found>, VaultError> {
        loop {
            while let Some(span) = self.spans.pop_front() {
                if let Some(found) = self.take(span)? {
                    return Ok(Some(found));
                }
            }
            let is_complete = self.limit().is_some_and(|limit| self.last.next() == limit);
            if is_complete {
                self.check_resumed().await?;
            }
            if !is_complete && self.next_segment().await? {
                continue;
            }
            if let Some(error) = self.unread.take().filter(|_| !is_complete) {
                return Err(error);
            }
            if self.epoch + 1 == self.epochs.len() {
                return Ok(None);
            }
            self.epoch += 1;
            self.check_epoch()?;
            self.end = None;
            self.resumed = None;
            let epoch = &self.epochs[self.epoch];
            // Of an epoch that ends with a map nothing was read; and on a base lies another content.
            if self.stamp == Stamp::default() || epoch.base.is_some() {
                self.stamp = epoch.stamp;
            }
            let scan = LogScan::new(self.vault, epoch.log, epoch.first_slot);
            self.scan = scan.filled_to(self.filled());
            self.quiet = Quiet::new(self.vault);
        }
    }

    /// Compares the map that it goes on from with the segment where that ends, unless it was read. One that is not there, or
    /// does not open, says nothing of the map.
    ///
    /// # Errors
    /// `Corrupt` if the segment is another than the map was made of; `Unavailable`.
    pub(crate) async fn check_resumed(&mut self) -> Result<(), VaultError> {
        let Some(resumed) = self.resumed.take() else { return Ok(()) };
        let EpochBody { log, epoch, .. } = self.epochs[self.epoch];
        let segment = match read_segment(self.vault, log, resumed.start.slot).await {
            Err(error) if error.is_unavailable() => return Err(error),
            Err(_) => return Ok(()),
            Ok(segment) => segment,
        };
        let spans = segment.table.spans.iter();
        let own = spans.filter(|span| (span.volume, span.epoch) == (self.volume, epoch));
        resumed.check(self.vault, own)
    }

    /// The hole at the end of the newest log, if there is one. After the end.
    ///
    /// # Errors
    /// `Corrupt` if no crash of a writer explains it: segments are lost.
    pub(crate) async fn hole(&mut self) -> Result<Option<Hole>, VaultError> {
        let Some(ScanEnd::Missing(slot)) = self.end else { return Ok(None) };
        let log = self.epochs[self.epoch].log;
        let behind = Behind::look(self.vault, log, slot).await;
        let later = behind.and_then(|behind| behind.later(self.vault, log, slot));
        let is_unsaid = later.as_ref().is_err_and(VaultError::is_unavailable);
        if !is_unsaid && !matches!(later, Ok(None)) {
            let number = self.scan.horizon().map_or(0, |horizon| horizon.number);
            horizon::still(self.vault, log, number).await?;
        }
        let later = later?;
        Ok(later.map(|later| Hole { log, slot, later }))
    }

    fn limit(&self) -> Option<Seq> {
        self.epochs.get(self.epoch + 1).map(|next| next.first_seq)
    }

    fn check_epoch(&self) -> Result<(), VaultError> {
        let first_seq = self.epochs[self.epoch].first_seq;
        if first_seq == self.last.next() {
            return Ok(());
        }
        let end = match self.end {
            Some(ScanEnd::Missing(slot)) => {
                Some(ObjectName::slot(self.epochs[self.epoch - 1].log, slot))
            }
            _ => None,
        };
        Err(VaultError::EpochGap {
            url: self.vault.url().to_owned(),
            object: ObjectName::epoch(self.volume, self.epoch as u64 + 1),
            first_seq,
            last_seq: self.last,
            end,
        })
    }

    fn wanted(&self) -> Wanted<'a> {
        let Self { vault, volume, last, .. } = *self;
        let EpochBody { log, epoch, .. } = self.epochs[self.epoch];
        let is_last = self.epoch + 1 == self.epochs.len();
        Wanted { vault, volume, log, epoch, is_last, last, steps: 0 }
    }

    /// Reads the next segment of the log; false at its end.
    async fn next_segment(&mut self) -> Result<bool, VaultError> {
        if self.quiet.look() && self.scan.is_sure() {
            let mut wanted = self.wanted();
            let horizon = self.scan.horizon().cloned().unwrap_or_default();
            let trail = wanted.trail(self.scan.reached(), &horizon).await?;
            if wanted.steps >= WALK_TRIED {
                self.scan.rest();
            }
            if let Some(trail) = trail {
                if trail.slots.is_empty() {
                    // What was not read holds nothing of the volume.
                    self.unread = None;
                }
                self.scan.follow(trail);
            }
        }
        let next = self.scan.next().await;
        if let Some(horizon) = self.scan.take_jump() {
            self.jumped(&horizon).await?;
        }
        let next = match next {
            Err(error @ VaultError::Passed { .. }) => return Err(error),
            Err(error) if self.scan.is_sure() && !error.is_unavailable() => {
                self.resumed = None;
                self.unread = self.unread.take().or(Some(error));
                return Ok(true);
            }
            next => next?,
        };
        let Some((slot, mut segment)) = next else {
            self.end = self.scan.end();
            return match self.resumed.take() {
                None => Ok(false),
                Some(Resumed { start: Start { epoch, slot, .. }, map, .. }) => {
                    revision::check(self.vault).await?;
                    Err(VaultError::Lost {
                        url: self.vault.url().to_owned(),
                        object: ObjectName::slot(self.epochs[epoch].log, slot),
                        user: map,
                    })
                }
            };
        };
        let wanted = (self.volume, self.epochs[self.epoch].epoch);
        let spans = std::mem::take(&mut segment.table.spans);
        self.spans.extend(spans.into_iter().filter(|span| (span.volume, span.epoch) == wanted));
        if let Some(resumed) = self.resumed.take() {
            resumed.check(self.vault, self.spans.iter())?;
        }
        self.quiet.read(!self.spans.is_empty());
        self.segment = Some((slot, Arc::new(segment)));
        Ok(true)
    }

    /// The slots where it was to begin may be gone: all that they held of the volume has to be known.
    ///
    /// # Errors
    /// `Passed` if a base that is newer than what was begun with says it; `Corrupt` if none does; `Unavailable`.
    async fn jumped(&mut self, horizon: &Horizon) -> Result<(), VaultError> {
        self.resumed = None;
        let EpochBody { log, epoch, .. } = self.epochs[self.epoch];
        let Some(tail) = horizon.tail(self.volume) else { return Ok(()) };
        let is_known = match tail.epoch == epoch {
            true => !tail.is_broken && tail.last_seq <= self.last,
            // How far the epoch came is not said.
            false => tail.epoch < epoch,
        };
        if is_known || is_on(Bug::HorizonPassedOver) {
            return Ok(());
        }
        // Whoever moved a horizon had a base of all in front of it.
        let (epochs, base) = read_whole(self.vault, self.volume).await?;
        let url = self.vault.url().to_owned();
        if base.as_ref().is_some_and(|base| base.covers_tail(&epochs, tail)) {
            return Err(VaultError::Passed { url, log, number: horizon.number });
        }
        let number = base.map_or(0, |base| base.number) + 1;
        revision::check(self.vault).await?;
        Err(VaultError::Lost {
            url,
            object: ObjectName::base(self.volume, number),
            user: ObjectName::horizon(log, horizon.number),
        })
    }

    fn take(&mut self, span: Span) -> Result<Option<Found>, VaultError> {
        let (slot, segment) = self.segment.as_ref().expect("spans come from a segment");
        let (slot, segment) = (*slot, Arc::clone(segment));
        let epoch = &self.epochs[self.epoch];
        let (volume, log) = (self.volume, epoch.log);
        let url = || self.vault.url().to_owned();
        match join(&span, self.last, self.limit()) {
            Join::Skip => {
                // Where a map ends it has been read, but not whose it is.
                if span.last_seq == self.last && self.stamp == Stamp::default() {
                    self.stamp = span.stamp;
                }
                return Ok(None);
            }
            Join::Broken => {
                if let Some(error) = self.unread.take() {
                    return Err(error);
                }
                let (first_seq, last_seq, expected) =
                    (span.first_seq, span.last_seq, self.last.next());
                let url = url();
                return Err(VaultError::Gap {
                    url,
                    volume,
                    log,
                    slot,
                    first_seq,
                    last_seq,
                    expected,
                });
            }
            Join::Next => {}
        }
        let blocks = farshore_proto::limits::blocks_of(epoch.size_bytes);
        if span.extents.iter().any(|extent| extent.range.end() > blocks) {
            return Err(VaultError::BeyondVolume { url: url(), volume, log, slot });
        }
        (self.last, self.stamp) = (span.last_seq, span.stamp);
        self.unread = None;
        Ok(Some(Found { epoch: self.epoch, slot, span, segment }))
    }
}

#[cfg(test)]
mod tests;
