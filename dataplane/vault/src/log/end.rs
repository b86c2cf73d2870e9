//! Where a log ends, found without reading what lies in front of it.
//!
//! Committed slots have none missing between them, and a run of the writer leaves at most three behind a missing
//! one. So a slot that exists says that the log reaches to three in front of it at least, and the end is searched: in
//! steps that grow until nothing is there, then in parts of what is left. From there on slots are walked one by one,
//! and what lies behind the first missing one says whether it is the end, or lost.
//!
//! A slot that was lost far in front of the end is met only by chance: whoever reads the stream misses it.
//!
//! Slots in front of the log's horizon are not looked at: they may be gone, or what a put that hung left there since.

use super::{header_at, is_filled};
use crate::error::VaultError;
use crate::horizon::{self, Horizon};
use crate::layout::ObjectName;
use crate::limits::{
    END_GROWTH, END_PROBES, HOLE_SLOTS_MAX, HORIZON_TRIES_MAX, SEAL_STEPS_MAX, SLOTS_AHEAD_MAX,
};
use crate::register;
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::{PUTS_IN_FLIGHT_MAX, SLOT_MAX};
use farshore_proto::segment::{SegmentHeader, SlotKind};
use farshore_proto::{LogId, Slot};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Slots behind a missing one that a run may have left there.
const LEFT_BEHIND: u64 = PUTS_IN_FLIGHT_MAX as u64 - 1;
/// Slots in front of the walk whose headers are asked what they know. The highest incarnation that counts and the
/// newest checkpoint are in the last four in front of any end.
const ASKED_BEFORE: u64 = 2 * PUTS_IN_FLIGHT_MAX as u64;
/// What is left of a search when it is walked.
const WALKED: u64 = 2 * SLOTS_AHEAD_MAX as u64;

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// The first slot that holds nothing, or the slot of the seal.
    pub next: Slot,
    /// Whether `next` holds a seal.
    pub is_sealed: bool,
    /// Slots behind `next` that crashed runs of the writer filled: void once `next` is filled by a
    /// run with a greater incarnation.
    pub void: BTreeSet<Slot>,
    /// The highest incarnation of the slots that count; 0 if there are none. Those behind the end count for this.
    pub incarnation: u64,
    /// Slot of the newest checkpoint that the last slots name, behind the horizon.
    pub checkpoint: Option<Slot>,
    /// The newest horizon: nobody looks at slots in front of it.
    pub horizon: Horizon,
}

/// Finds the end of a log, knowing that all slots before `from` are filled. The log may be written
/// meanwhile.
///
/// What was found is durable when this returns, whoever put it.
///
/// # Errors
/// `Unavailable`; `Corrupt` if a slot holds something that is not of this log, or segments are lost:
/// going on would make void what was committed behind the gap; `Limit` if the writer is faster than
/// this, slot after slot.
pub async fn find_end(vault: &Vault, log: LogId, from: Slot) -> Result<LogEnd, VaultError> {
    let mut known = 0;
    for _ in 0..HORIZON_TRIES_MAX {
        let horizon = horizon::newest(vault, log, known).await?;
        known = horizon.number;
        let found = end_above(vault, log, from, horizon).await;
        if found.as_ref().is_err_and(VaultError::is_unavailable) {
            return found;
        }
        // Of what was found some may have been deleted since, and filled by a put that hung.
        if is_on(Bug::HorizonNotReadAgain) || !horizon::has_passed(vault, log, known).await? {
            return found;
        }
    }
    Err(VaultError::Passed { url: vault.url().to_owned(), log, number: known + 1 })
}

/// Finds the end of a log behind which something is to be put: as [`find_end`], and its newest horizon is not in front of what was
/// deleted. Where it is, what was deleted looks like the end.
///
/// # Errors
/// As [`find_end`]; `Corrupt` if horizons of the log are lost.
pub async fn find_whole_end(vault: &Vault, log: LogId, from: Slot) -> Result<LogEnd, VaultError> {
    // First: of what was deleted by then the horizon is there.
    let floors = register::floors(vault).await?;
    let end = find_end(vault, log, from).await?;
    horizon::reaches(vault, log, &end.horizon, &floors)?;
    Ok(end)
}

/// Finds the end of a log behind a horizon, which may have been passed since.
async fn end_above(
    vault: &Vault,
    log: LogId,
    from: Slot,
    horizon: Horizon,
) -> Result<LogEnd, VaultError> {
    // Of a slot in front of the horizon nothing is known.
    let known = Some(from).filter(|from| *from > horizon.slot());
    let from = from.max(horizon.slot());
    let mut at = search(vault, log, from).await?;
    let mut walk = Walk { incarnation: horizon.incarnation(), ..Walk::default() };
    let before = asked_before(at, &horizon);
    // The log does not end in front of what was found; but then something of it is lost, and is named.
    if let Some(earlier) = walk.ask(vault, log, before, from).await?
        && !is_on(Bug::EndWhereNothingIs)
    {
        at = earlier;
    }
    for _ in 0..SEAL_STEPS_MAX {
        let (next, is_sealed) = walk.on(vault, log, at).await?;
        let mut void = BTreeSet::new();
        if !is_sealed {
            match Behind::look(vault, log, next).await? {
                Behind::Moved => {
                    at = next;
                    continue;
                }
                Behind::Lost { later } => return Err(lost(vault, log, next, later)),
                Behind::End { filled } => {
                    filled.values().for_each(|header| walk.saw(header));
                    void = filled.into_keys().collect();
                }
            }
        }
        if known == Some(next) && walk.last.is_none_or(|last| last.next() < next) {
            let object = ObjectName::slot(log, Slot(next.0 - 1));
            if !vault.store().exists(&object).await? {
                return Err(VaultError::LostEnd { url: vault.url().to_owned(), object });
            }
        }
        if horizon.number > 0 {
            vault.store().settle(&ObjectName::horizon(log, horizon.number)).await?;
        }
        if let Some(last) = walk.last {
            vault.store().settle(&ObjectName::slot(log, last)).await?;
        }
        let Walk { incarnation, checkpoint, .. } = walk;
        let checkpoint = checkpoint.filter(|known| horizon.is_before(*known));
        if let Some(known) = checkpoint.filter(|known| *known > next) {
            // What a checkpoint speaks of was committed.
            return Err(lost(vault, log, next, Slot(known.0 - 1)));
        }
        return Ok(LogEnd { next, is_sealed, void, incarnation, checkpoint, horizon });
    }
    let url = vault.url().to_owned();
    let what = "slots filled while the end of their log was looked for";
    Err(VaultError::Limit { url, what, max: SEAL_STEPS_MAX })
}

/// The slots right in front of one that are asked what they know.
fn asked_before(slot: Slot, horizon: &Horizon) -> Range<u64> {
    slot.0.saturating_sub(ASKED_BEFORE).max(horizon.slot().0)..slot.0
}

/// The newest checkpoint that was known when the slots right in front of one were built; none if they cannot say.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn named_before(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    horizon: &Horizon,
) -> Result<Option<Slot>, VaultError> {
    let mut walk = Walk::default();
    match walk.ask(vault, log, asked_before(slot, horizon), slot).await {
        Err(error) if error.is_unavailable() => Err(error),
        _ => Ok(walk.checkpoint),
    }
}

/// The highest incarnation of the four slots right in front of one, as far as they can be read, and of what is below
/// the horizon.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn highest_before(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    horizon: &Horizon,
) -> Result<u64, VaultError> {
    let mut highest = horizon.incarnation();
    let first = slot.0.saturating_sub(PUTS_IN_FLIGHT_MAX as u64).max(horizon.slot().0);
    let slots = (first..slot.0).map(|slot| header_at(vault, log, Slot(slot)));
    for (_, found) in futures::future::join_all(slots).await {
        match found {
            Ok(Some(header)) => highest = highest.max(header.incarnation()),
            Err(error) if error.is_unavailable() => return Err(error),
            _ => {}
        }
    }
    Ok(highest)
}

/// The newest checkpoint that the slots near the end of a log name, or one a few slots older, knowing that all slots before `from`
/// are filled; none if they cannot say.
///
/// # Errors
/// As [`find_end`].
pub(crate) async fn newest_named(
    vault: &Vault,
    log: LogId,
    from: Slot,
    horizon: &Horizon,
) -> Result<Option<Slot>, VaultError> {
    let near = search(vault, log, from).await?;
    named_before(vault, log, near, horizon).await
}

/// A slot in front of which the log does not end, and near which it does, knowing that all slots before `from` are
/// filled.
async fn search(vault: &Vault, log: LogId, from: Slot) -> Result<Slot, VaultError> {
    // Filled, or in front of `from`; and the first of those that were found missing behind it.
    let (mut filled, mut missing) = (None, None);
    let mut step = WALKED;
    while missing.is_none() {
        let probes = (0..END_PROBES).map(|n| step.saturating_mul(END_GROWTH.pow(n)));
        let probes: Vec<u64> = probes.map(|step| from.0.saturating_add(step)).collect();
        let found = probe(vault, log, &probes).await?;
        (filled, missing) = (found.filled.or(filled), found.missing);
        step = step.saturating_mul(END_GROWTH.pow(END_PROBES));
        if filled.is_some_and(|slot| slot > SLOT_MAX.0) {
            let url = vault.url().to_owned();
            return Err(VaultError::Limit { url, what: "slots of a log", max: SLOT_MAX.0 });
        }
    }
    let mut end = missing.unwrap_or(u64::MAX);
    loop {
        let start = filled.map_or(from.0, |slot| slot + 1);
        let left = end.saturating_sub(start);
        if left <= WALKED {
            break;
        }
        let part = left.div_ceil(u64::from(END_PROBES) + 1);
        let probes =
            (1..=u64::from(END_PROBES)).map(|n| start + n * part).filter(|slot| *slot < end);
        let found = probe(vault, log, &probes.collect::<Vec<_>>()).await?;
        filled = found.filled.or(filled);
        end = found.missing.unwrap_or(end);
    }
    let reach = if is_on(Bug::EndWhereNothingIs) { 0 } else { LEFT_BEHIND };
    Ok(Slot(filled.map_or(from.0, |slot| slot.saturating_sub(reach).max(from.0))))
}

/// What some slots were asked for.
struct Probed {
    /// The last one that is filled.
    filled: Option<u64>,
    /// The first one behind that, which is missing.
    missing: Option<u64>,
}

/// Asks for slots in ascending order, at the same time. What lies in front of a filled one is filled too, or lost.
async fn probe(vault: &Vault, log: LogId, slots: &[u64]) -> Result<Probed, VaultError> {
    let asked = slots.iter().map(|slot| is_filled(vault, log, Slot(*slot)));
    let found = futures::future::try_join_all(asked).await?;
    let last = found.iter().rposition(|is_filled| *is_filled);
    Ok(Probed {
        filled: last.map(|at| slots[at]),
        missing: slots.get(last.map_or(0, |at| at + 1)).copied(),
    })
}

/// Whether a slot whose header cannot be read is known to be no seal, and of no greater incarnation than `highest`:
/// whatever it held, it makes none of those behind it void. A greater one makes void the three behind it at most, and who put a
/// segment four or more behind knew the slot to exist, so it would not have gone on behind a seal. Fills say nothing: a start
/// that hung puts them behind whatever came meanwhile.
pub(super) async fn goes_on_behind(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    highest: u64,
) -> Result<bool, VaultError> {
    let near = PUTS_IN_FLIGHT_MAX as u64..2 * PUTS_IN_FLIGHT_MAX as u64;
    let near = near.map(|step| header_at(vault, log, Slot(slot.0.saturating_add(step))));
    for (_, found) in futures::future::join_all(near).await {
        match found {
            Ok(Some(header))
                if header.kind == SlotKind::Segment && header.incarnation() <= highest =>
            {
                return Ok(true);
            }
            Err(error) if error.is_unavailable() => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}

/// What was seen on the way to the end of a log.
#[derive(Default)]
struct Walk {
    incarnation: u64,
    checkpoint: Option<Slot>,
    last: Option<Slot>,
}

impl Walk {
    fn saw(&mut self, header: &SegmentHeader) {
        self.incarnation = self.incarnation.max(header.incarnation());
        self.checkpoint = self.checkpoint.max(header.writer.known_checkpoint(header.slot()));
    }

    /// Passes over a slot whose header cannot be read, if those behind it tell that the log goes on.
    async fn pass(
        &mut self,
        vault: &Vault,
        log: LogId,
        slot: Slot,
        error: VaultError,
    ) -> Result<(), VaultError> {
        let is_damaged = !error.is_unavailable() && !error.is_newer();
        if is_damaged && goes_on_behind(vault, log, slot, self.incarnation).await? {
            self.last = Some(slot);
            return Ok(());
        }
        Err(error)
    }

    /// Asks slots that were filled what they know; gives the first that is a seal, or is missing at `from` or behind.
    /// What is lost or damaged in front of that is not what is looked for.
    async fn ask(
        &mut self,
        vault: &Vault,
        log: LogId,
        slots: Range<u64>,
        from: Slot,
    ) -> Result<Option<Slot>, VaultError> {
        let slots = futures::stream::iter(slots).map(|slot| header_at(vault, log, Slot(slot)));
        let mut slots = std::pin::pin!(slots.buffered(SLOTS_AHEAD_MAX));
        while let Some((slot, found)) = slots.next().await {
            match found {
                Ok(Some(header)) if header.kind == SlotKind::Seal => return Ok(Some(slot)),
                Ok(Some(header)) => {
                    self.saw(&header);
                    self.last = Some(slot);
                }
                Ok(None) if slot >= from => return Ok(Some(slot)),
                Ok(None) => {}
                Err(error) if slot >= from || error.is_unavailable() || error.is_newer() => {
                    self.pass(vault, log, slot, error).await?;
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Goes on from a slot to the first that holds nothing, or a seal; says which.
    async fn on(
        &mut self,
        vault: &Vault,
        log: LogId,
        from: Slot,
    ) -> Result<(Slot, bool), VaultError> {
        let slots = futures::stream::iter(from.0..=u64::MAX);
        let slots = slots.map(|slot| header_at(vault, log, Slot(slot)));
        let mut slots = std::pin::pin!(slots.buffered(SLOTS_AHEAD_MAX));
        while let Some((slot, found)) = slots.next().await {
            let header = match found {
                Ok(Some(header)) => header,
                Ok(None) => return Ok((slot, false)),
                Err(error) => {
                    self.pass(vault, log, slot, error).await?;
                    continue;
                }
            };
            self.saw(&header);
            self.last = Some(slot);
            if header.kind == SlotKind::Seal {
                return Ok((slot, true));
            }
        }
        let url = vault.url().to_owned();
        Err(VaultError::Limit { url, what: "slots of a log", max: u64::MAX })
    }
}

pub(super) fn lost(vault: &Vault, log: LogId, slot: Slot, later: Slot) -> VaultError {
    VaultError::LostSlot { url: vault.url().to_owned(), log, slot, later }
}

/// What lies behind a slot that was missing when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Behind {
    /// The slot is filled by now: the log was read while it was written, and does not end here.
    Moved,
    /// The log ends here, for now.
    End {
        /// Slots that crashed runs of the writer left behind.
        filled: BTreeMap<Slot, SegmentHeader>,
    },
    /// No crash of a writer explains what is there: the missing slot was committed, and is lost.
    Lost {
        /// The first filled slot behind it.
        later: Slot,
    },
}

impl Behind {
    /// Looks behind the missing `slot`.
    ///
    /// The slot was read before those behind it, and the writer may have gone on in between: nothing that
    /// lies there means anything unless the slot is still missing afterwards.
    pub(crate) async fn look(vault: &Vault, log: LogId, slot: Slot) -> Result<Self, VaultError> {
        let (filled, is_lost) = Self::gather(vault, log, slot).await?;
        let Some(later) = filled.keys().next().copied() else { return Ok(Self::End { filled }) };
        if is_filled(vault, log, slot).await? {
            return Ok(Self::Moved);
        }
        Ok(if is_lost { Self::Lost { later } } else { Self::End { filled } })
    }

    /// The filled slots behind `slot`, and whether no crash of a writer explains them.
    ///
    /// A run has puts under way into `PUTS_IN_FLIGHT_MAX` slots at most, from the first one that it does not know to
    /// exist; and a start fills the first missing one before it puts anything else. So what lies as far behind as that,
    /// or ends the log, was put by somebody who knew the missing one.
    async fn gather(
        vault: &Vault,
        log: LogId,
        slot: Slot,
    ) -> Result<(BTreeMap<Slot, SegmentHeader>, bool), VaultError> {
        let near = (1..=HOLE_SLOTS_MAX as u64).chain([16, 32, 64, 256, 1024]);
        let near = near.map(|step| Slot(slot.0.saturating_add(step)));
        let slots = futures::stream::iter(near).map(|behind| header_at(vault, log, behind));
        let mut slots = std::pin::pin!(slots.buffered(HOLE_SLOTS_MAX));
        let mut filled = BTreeMap::new();
        let mut is_lost = false;
        while let Some((behind, found)) = slots.next().await {
            let Some(header) = found? else { continue };
            let is_in_reach = behind.0 - slot.0 < PUTS_IN_FLIGHT_MAX as u64;
            is_lost |= !is_in_reach || header.kind == SlotKind::Seal;
            is_lost &= !is_on(Bug::LossTakenForEnd);
            filled.insert(behind, header);
        }
        Ok((filled, is_lost))
    }

    /// The first filled slot of a log that ends in front of it; none if nothing is there, or the slot is
    /// filled by now.
    ///
    /// # Errors
    /// `Corrupt` if slots are lost.
    pub(crate) fn later(
        self,
        vault: &Vault,
        log: LogId,
        slot: Slot,
    ) -> Result<Option<Slot>, VaultError> {
        match self {
            Self::Moved => Ok(None),
            Self::End { filled } => Ok(filled.into_keys().next()),
            Self::Lost { later } => Err(lost(vault, log, slot, later)),
        }
    }
}
