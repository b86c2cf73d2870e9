//! Reading slots: the table of one, and all of a log in order, read ahead.

use super::end::{Behind, goes_on_behind, lost};
use super::header_at;
use crate::chain::Trail;
use crate::error::VaultError;
use crate::horizon::{self, Horizon};
use crate::layout::ObjectName;
use crate::limits::{SLOTS_AHEAD_MAX, TABLE_READ_BYTES, VOID_REACH_SLOTS};
use crate::store::Part;
use crate::vault::Vault;
use farshore_codec::{CodecError, Opener};
use farshore_engine::ledger::Ledger;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::map::FrameAt;
use farshore_proto::segment::{SegmentHeader, SlotKind, Table};
use farshore_proto::{LogId, Slot, Target};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use std::collections::VecDeque;
use std::ops::Range;

/// A segment or seal with its table open.
#[derive(Debug)]
pub struct OpenSegment {
    /// Opens its frames.
    pub opener: Opener,
    /// Its table.
    pub table: Table,
    /// Where each sealed frame is in the object.
    pub frames: Vec<Range<u64>>,
}

impl OpenSegment {
    /// Its header.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        self.opener.header()
    }

    /// What a reference to it says: its place, and which attempt at it.
    #[must_use]
    pub fn target(&self) -> Target {
        let header = self.header();
        Target { log: header.log(), slot: header.slot(), attempt: header.attempt() }
    }

    /// Where one of its frames lies.
    ///
    /// # Panics
    /// If there is no such frame: a bug in the caller.
    #[must_use]
    pub fn frame_at(&self, number: u32) -> FrameAt {
        let start = self.frames[number as usize].start;
        FrameAt {
            target: self.target(),
            number,
            offset: u32::try_from(start).expect("a segment has a limit"),
            key: self.header().object.key,
            frame: self.table.frames[number as usize],
        }
    }

    /// Bytes of memory it takes, about.
    pub(crate) fn memory_bytes(&self) -> u64 {
        fn bytes_of<T>(items: &[T]) -> u64 {
            size_of_val(items) as u64
        }
        let Table { frames, chunks, spans } = &self.table;
        let extents = spans.iter().map(|span| bytes_of(&span.extents)).sum::<u64>();
        1024 + bytes_of(frames)
            + bytes_of(chunks)
            + bytes_of(spans)
            + extents
            + bytes_of(&self.frames)
    }
}

/// Opens the table of a slot by ranged GETs: one for nearly all segments, two for large tables.
///
/// # Errors
/// `NotFound` if the slot is empty; `Corrupt` if the object does not open, is that of another
/// place, or is not as long as it says; `Unavailable`.
pub async fn read_segment(
    vault: &Vault,
    log: LogId,
    slot: Slot,
) -> Result<OpenSegment, VaultError> {
    let (_, segment) = read_parts(vault, log, slot).await?;
    segment
}

/// The header of a slot, and the rest if that opens.
async fn read_parts(
    vault: &Vault,
    log: LogId,
    slot: Slot,
) -> Result<(SegmentHeader, Result<OpenSegment, VaultError>), VaultError> {
    let name = ObjectName::slot(log, slot);
    let first = vault.store().get_range(&name, 0..TABLE_READ_BYTES as u64).await?;
    let opener = Opener::open_header(&first.bytes, vault.id(), log, slot, vault.ring())
        .map_err(|source| vault.damaged(name.clone(), 0, source))?;
    let header = *opener.header();
    Ok((header, read_rest(vault, name, opener, &first).await))
}

async fn read_rest(
    vault: &Vault,
    name: ObjectName,
    opener: Opener,
    first: &Part,
) -> Result<OpenSegment, VaultError> {
    let expected = opener.header().object_bytes();
    if first.object_bytes != expected {
        let found = first.object_bytes;
        let source = CodecError::Length { what: "segment", expected, found };
        return Err(vault.damaged(name, expected.min(found), source));
    }
    let range = opener.table_range();
    let have = first.bytes.len() as u64;
    let table = if range.end <= have {
        open_table(&opener, &first.bytes, &range)
    } else {
        let rest = vault.store().get_range(&name, have..range.end).await?;
        let mut head = first.bytes.to_vec();
        head.extend_from_slice(&rest.bytes);
        open_table(&opener, &head, &range)
    };
    let table = table.map_err(|source| vault.damaged(name, range.start, source))?;
    let frames = opener.frame_ranges(&table);
    Ok(OpenSegment { opener, table, frames })
}

fn open_table(opener: &Opener, head: &[u8], range: &Range<u64>) -> Result<Table, CodecError> {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(head.len());
    opener.open_table(&head[at(range.start)..at(range.end)])
}

/// Why a scan of a log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanEnd {
    /// The log was sealed in that slot.
    Sealed(Slot),
    /// That slot holds nothing.
    Missing(Slot),
}

type Parts = Result<(SegmentHeader, Result<OpenSegment, VaultError>), VaultError>;

/// Reads a log slot by slot, some ahead, until its end. Void slots are read over.
pub struct LogScan<'a> {
    vault: &'a Vault,
    log: LogId,
    from: Slot,
    /// Slots below are known to be filled.
    filled: Slot,
    /// Slots to be read before `next`.
    listed: VecDeque<Slot>,
    next: Slot,
    /// From this slot on there is a higher incarnation in front.
    floor: Option<(Slot, u64)>,
    /// Behind the last slot that was read.
    reached: Slot,
    ahead: FuturesOrdered<BoxFuture<'a, (Slot, Parts)>>,
    /// The slots that are read ahead, in order.
    asked: VecDeque<Slot>,
    /// Highest incarnation so far; none before the slots in front of `from` were asked.
    incarnation: Option<u64>,
    /// Whether damage behind the header of a seal or a void slot is an error too, though it hides nothing.
    names_all: bool,
    /// Whether it is known which of the slots so far are void: not where the header of one that may tell cannot be read.
    is_sure: bool,
    end: Option<ScanEnd>,
    /// The horizon of the log; none before it was asked for.
    horizon: Option<Horizon>,
    /// Whether the scan begins at the horizon instead of where it was to begin.
    has_jumped: bool,
}

impl std::fmt::Debug for LogScan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { log, next, end, .. } = self;
        f.debug_struct("LogScan")
            .field("log", log)
            .field("next", next)
            .field("end", end)
            .finish_non_exhaustive()
    }
}

impl<'a> LogScan<'a> {
    /// A scan of `log` from slot `from` on.
    #[must_use]
    pub fn new(vault: &'a Vault, log: LogId, from: Slot) -> Self {
        Self {
            vault,
            log,
            from,
            filled: Slot(0),
            listed: VecDeque::new(),
            next: from,
            floor: None,
            reached: from,
            ahead: FuturesOrdered::new(),
            asked: VecDeque::new(),
            incarnation: None,
            names_all: false,
            is_sure: true,
            end: None,
            horizon: None,
            has_jumped: false,
        }
    }

    /// A scan of `log` that goes on at slot `from`, which a scan before returned: it is not void, and
    /// no slot before it has a higher incarnation.
    #[must_use]
    pub(crate) fn resume(vault: &'a Vault, log: LogId, from: Slot) -> Self {
        Self { incarnation: Some(0), ..Self::new(vault, log, from) }
    }

    /// A scan of what lies behind a ledger of `log`.
    #[must_use]
    pub fn behind(vault: &'a Vault, log: LogId, ledger: &Ledger) -> Self {
        let incarnation = Some(ledger.incarnation());
        Self { incarnation, ..Self::new(vault, log, ledger.next()) }
    }

    /// The same for a log whose slots below `filled` are known to be filled: it does not end in front of
    /// that, whatever a store says that was asked too early.
    #[must_use]
    pub fn filled_to(self, filled: Slot) -> Self {
        Self { filled, ..self }
    }

    /// The same where the newest horizon of the log is known.
    #[must_use]
    pub(crate) fn above(self, horizon: Horizon) -> Self {
        Self { horizon: Some(horizon), ..self }
    }

    /// The log's horizon, once that the first slot was asked for.
    #[must_use]
    pub(crate) fn horizon(&self) -> Option<&Horizon> {
        self.horizon.as_ref()
    }

    /// The horizon that it began at, because the slots where it was to begin may be gone; says so once.
    pub(crate) fn take_jump(&mut self) -> Option<Horizon> {
        std::mem::take(&mut self.has_jumped).then(|| self.horizon.clone()).flatten()
    }

    /// The next slot to be read.
    #[must_use]
    pub(crate) fn reached(&self) -> Slot {
        self.reached
    }

    /// Forgets what is read ahead, and asks again when it is wanted: a request that nobody waited for runs out of time.
    pub(crate) fn rest(&mut self) {
        self.ahead.clear();
        while let Some(slot) = self.asked.pop_back() {
            self.listed.push_front(slot);
        }
    }

    /// Goes on by a trail from [`LogScan::reached`] on: none of the slots that it passes over is of interest, and all in front of its checkpoint
    /// are known to be filled.
    pub(crate) fn follow(&mut self, trail: Trail) {
        let Trail { slots, checkpoint, incarnation } = trail;
        self.rest();
        (self.listed, self.next) = (slots.into(), checkpoint);
        self.filled = self.filled.max(checkpoint);
        self.floor = Some((checkpoint, incarnation));
    }

    /// The same, to name all that is damaged: seals and void slots are opened too.
    #[must_use]
    pub(crate) fn naming_all(self) -> Self {
        Self { names_all: true, ..self }
    }

    /// The next segment; none at the end, and then `end` says which end.
    ///
    /// After an error the scan goes on with the slot behind the one that cannot be read; if that is a
    /// seal, the log has ended.
    ///
    /// # Errors
    /// As `read_segment`, except that an empty slot is the end; `Passed` if the log's horizon moved meanwhile: what was read
    /// to the end does not count then.
    ///
    /// # Panics
    /// Never: slots do not run out.
    ///
    /// # Cancel safety
    /// Dropped, it loses the slot that it was about to return: start a new scan.
    pub async fn next(&mut self) -> Result<Option<(Slot, OpenSegment)>, VaultError> {
        // What is known of no slot cannot be gone on from.
        if let Err(error) = self.begin().await {
            self.is_sure &= error.is_unavailable();
            return Err(error);
        }
        match self.read_on().await {
            Ok(Some(found)) => Ok(Some(found)),
            Err(error) if error.is_unavailable() => Err(error),
            // What ends it, or what is wrong, may be what was left of a slot that was deleted.
            found => {
                let number = self.horizon.as_ref().map_or(0, |horizon| horizon.number);
                if !is_on(Bug::HorizonNotReadAgain) {
                    horizon::still(self.vault, self.log, number).await?;
                }
                found
            }
        }
    }

    async fn read_on(&mut self) -> Result<Option<(Slot, OpenSegment)>, VaultError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut highest = match self.incarnation {
            Some(highest) => highest,
            None => self.look_before().await?,
        };
        while self.end.is_none() {
            self.read_ahead();
            let (slot, found) = self.ahead.next().await.expect("something was read ahead");
            self.asked.pop_front();
            self.reached = slot.next();
            if let Some((_, incarnation)) = self.floor.take_if(|(from, _)| slot >= *from) {
                highest = highest.max(incarnation);
            }
            let found = match found {
                Err(error) if error.is_not_found() && slot < self.filled => {
                    self.read_again(slot).await
                }
                found => found,
            };
            let (header, segment) = match found {
                Ok(parts) => parts,
                Err(error) if error.is_not_found() => {
                    self.end = Some(ScanEnd::Missing(slot));
                    break;
                }
                Err(error) => {
                    self.incarnation = Some(highest);
                    let (vault, log) = (self.vault, self.log);
                    let may_go_on = !error.is_unavailable() && !error.is_newer();
                    self.is_sure &= may_go_on && goes_on_behind(vault, log, slot, highest).await?;
                    return Err(error);
                }
            };
            let is_seal = header.kind == SlotKind::Seal;
            let is_void =
                !is_seal && header.incarnation() < highest && !is_on(Bug::VoidSlotCounted);
            // What a later program put there may say something of all that follows.
            let is_newer = segment.as_ref().is_err_and(VaultError::is_newer);
            self.is_sure &= is_void || !is_newer;
            if is_seal {
                self.end = Some(ScanEnd::Sealed(slot));
                if self.names_all || is_newer {
                    segment?;
                }
                break;
            }
            highest = highest.max(header.incarnation());
            self.incarnation = Some(highest);
            if !is_void || self.names_all && segment.is_err() {
                return segment.map(|segment| Some((slot, segment)));
            }
        }
        self.rest();
        Ok(None)
    }

    /// Reads a slot that was missing when it was read ahead, though it is known to be filled.
    async fn read_again(&mut self, slot: Slot) -> Parts {
        match read_parts(self.vault, self.log, slot).await {
            Err(error) if error.is_not_found() => {
                let later = Slot(self.filled.0 - 1);
                Err(match later > slot {
                    true => lost(self.vault, self.log, slot, later),
                    false => VaultError::LostEnd {
                        url: self.vault.url().to_owned(),
                        object: ObjectName::slot(self.log, slot),
                    },
                })
            }
            found => found,
        }
    }

    /// Whether it is known which of the slots returned so far count: not after an error that left
    /// the header of one unread where a run may have begun or the log ended, a seal unopened, or one that a newer version put.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.is_sure
    }

    /// How the log ended, once `next` has returned none.
    #[must_use]
    pub fn end(&self) -> Option<ScanEnd> {
        self.end
    }

    /// That the log did not end in front of a slot that is known to be filled: a seal that came into the place of a lost slot ends nothing there.
    ///
    /// # Errors
    /// `Corrupt` if it did.
    pub(crate) fn check_end(&self, filled: Slot) -> Result<(), VaultError> {
        match self.end {
            Some(ScanEnd::Sealed(slot)) if slot < filled => {
                let (url, log) = (self.vault.url().to_owned(), self.log);
                Err(VaultError::LostSlot { url, log, slot, later: filled })
            }
            _ => Ok(()),
        }
    }

    fn read_ahead(&mut self) {
        while self.ahead.len() < SLOTS_AHEAD_MAX {
            let (vault, log) = (self.vault, self.log);
            let slot = self.listed.pop_front().unwrap_or_else(|| {
                let slot = self.next;
                self.next = slot.next();
                slot
            });
            self.asked.push_back(slot);
            self.ahead
                .push_back(Box::pin(async move { (slot, read_parts(vault, log, slot).await) }));
        }
    }

    /// Asks for the log's horizon, and begins there if that is behind the scan's first slot.
    async fn begin(&mut self) -> Result<(), VaultError> {
        if self.horizon.is_none() {
            self.horizon = Some(horizon::newest(self.vault, self.log, 0).await?);
        }
        let Some(horizon) = &self.horizon else { return Ok(()) };
        if self.from < horizon.slot() && self.reached == self.from && !self.has_jumped {
            self.from = horizon.slot();
            (self.next, self.reached) = (self.from, self.from);
            self.incarnation = Some(horizon.incarnation());
            self.has_jumped = true;
        }
        Ok(())
    }

    /// Looks at the slots in front of the scan: the highest incarnation, as far back as a void slot's
    /// filler can be, and whether the log ends there already. A volume may have begun while puts into
    /// slots in front of its first were under way: if one of them never came, or a seal did, nothing
    /// behind it counts. Slots that are damaged there are not this scan's business, nor are those
    /// that were there once and are lost.
    async fn look_before(&mut self) -> Result<u64, VaultError> {
        let (vault, log) = (self.vault, self.log);
        let (floor, below) =
            self.horizon.as_ref().map_or((Slot(0), 0), |known| (known.slot(), known.incarnation()));
        let slots = self.from.0.saturating_sub(VOID_REACH_SLOTS).max(floor.0)..self.from.0;
        let slots = futures::stream::iter(slots).map(|slot| header_at(vault, log, Slot(slot)));
        let mut slots = slots.buffered(SLOTS_AHEAD_MAX);
        let (mut highest, mut missing, mut seal, mut newer) = (below, None, None, None);
        while let Some((slot, found)) = slots.next().await {
            match found {
                Ok(Some(header)) if header.kind == SlotKind::Seal => seal = seal.or(Some(slot)),
                Ok(Some(header)) => highest = highest.max(header.incarnation()),
                Ok(None)
                    if slot >= self.filled && slot.0 + PUTS_IN_FLIGHT_MAX as u64 >= self.from.0 =>
                {
                    missing = missing.or(Some(slot));
                }
                Ok(None) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                // Further down nobody needs to look.
                Err(error)
                    if error.is_newer() && slot.0 + PUTS_IN_FLIGHT_MAX as u64 >= self.from.0 =>
                {
                    newer = newer.or(Some(error));
                }
                Err(_) => {}
            }
        }
        if let Some(error) = newer {
            // Whoever asks again is not told the same for ever.
            (self.is_sure, self.incarnation) = (false, Some(highest));
            return Err(error);
        }
        if let Some(slot) = seal {
            // It ends the scan either way, and with it what was to be read.
            self.end = Some(ScanEnd::Sealed(slot));
        } else if let Some(slot) = missing
            && let Behind::End { .. } = Behind::look(vault, log, slot).await?
        {
            self.end = Some(ScanEnd::Missing(slot));
        }
        self.incarnation = Some(highest);
        Ok(highest)
    }
}
