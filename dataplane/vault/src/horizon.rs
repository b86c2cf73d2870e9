//! Horizons of logs: what says that slots are absent on purpose.
//!
//! Nothing at or above the newest horizon of a log is ever deleted before there is a newer one. So whoever reads slots
//! from a horizon on, and finds at the end that there is no newer one, has seen what was first put there: neither a slot that was
//! deleted nor one that a put of a run that hung came to fill afterwards. Whoever finds a newer one begins again.

use crate::base::{VolumeBase, read_whole};
use crate::checkpoint;
use crate::error::VaultError;
use crate::gapless;
use crate::layout::ObjectName;
use crate::limits::{HORIZON_TRIES_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::log::{LogScan, find_end, named_before};
use crate::store::Put;
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::digest::digest;
use farshore_codec::horizon::{open_horizon_wholly, seal_horizon};
use farshore_engine::ledger::{Ledger, SpanEnd};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::checkpoint::VolumeTail;
use farshore_proto::epoch::EpochBody;
use farshore_proto::horizon::HorizonBody;
use farshore_proto::limits::{CHECKPOINT_VOLUMES_MAX, HORIZON_MAX};
use farshore_proto::object::ObjectKind;
use farshore_proto::{LogId, Slot, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The newest horizon of a log, as far as its reader knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Horizon {
    /// Its number; 0: the log has none.
    pub number: u64,
    /// What it says.
    body: Option<Arc<HorizonBody>>,
}

impl Horizon {
    /// Slots below may be gone.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.body.as_ref().map_or(Slot(0), |body| body.slot)
    }

    /// Whether a checkpoint at a slot says more than it does.
    pub(crate) fn is_before(&self, checkpoint: Slot) -> bool {
        self.number == 0 || self.slot() < checkpoint
    }

    /// The highest incarnation in front of it that counts; 0 without one.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.below.incarnation)
    }

    /// Where a volume stood there.
    #[must_use]
    pub fn tail(&self, volume: VolumeId) -> Option<&VolumeTail> {
        self.body.as_ref()?.below.tails.get(&volume)
    }

    /// Where all volumes stood there.
    pub(crate) fn tails(&self) -> impl Iterator<Item = (VolumeId, &VolumeTail)> {
        let body = self.body.iter();
        body.flat_map(|body| body.below.tails.iter().map(|(volume, tail)| (*volume, tail)))
    }

    /// What the slots below say.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        match &self.body {
            None => Ledger::default(),
            Some(body) => Ledger::of_horizon(self.number, body.slot, body.below.clone()),
        }
    }
}

/// The newest horizon of a log, knowing that the one with number `known` is there, or is 0.
///
/// # Errors
/// `Corrupt` if it does not open, or one is lost; `Unavailable`.
pub async fn newest(vault: &Vault, log: LogId, known: u64) -> Result<Horizon, VaultError> {
    let name = |number| ObjectName::horizon(log, number);
    match gapless::newest(vault.store(), known, HORIZON_MAX, name).await? {
        0 => Ok(Horizon::default()),
        number => {
            let Found { body, .. } = read(vault, log, number).await?;
            Ok(Horizon { number, body: Some(Arc::new(body)) })
        }
    }
}

/// Whether a log has a newer horizon than one with a number: whoever read slots under that one begins again.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn has_passed(vault: &Vault, log: LogId, number: u64) -> Result<bool, VaultError> {
    Ok(vault.store().exists(&ObjectName::horizon(log, number + 1)).await?)
}

/// That a log has no newer horizon than one with a number.
///
/// # Errors
/// [`VaultError::Passed`]; `Unavailable`.
pub(crate) async fn still(vault: &Vault, log: LogId, number: u64) -> Result<(), VaultError> {
    match has_passed(vault, log, number).await? {
        false => Ok(()),
        true => Err(VaultError::Passed { url: vault.url().to_owned(), log, number: number + 1 }),
    }
}

/// That the newest horizon that was found of a log is not in front of what was deleted. The floors of logs are read before the horizon.
///
/// # Errors
/// `Corrupt` if newer ones are lost: the log does not end where a search from this one says.
pub(crate) fn reaches(
    vault: &Vault,
    log: LogId,
    horizon: &Horizon,
    floors: &BTreeMap<LogId, Slot>,
) -> Result<(), VaultError> {
    let floor = floors.get(&log).copied().unwrap_or_default();
    if horizon.slot() >= floor {
        return Ok(());
    }
    let (url, object) = (vault.url().to_owned(), ObjectName::horizon(log, horizon.number + 1));
    Err(VaultError::LostHorizon { url, log, object, floor })
}

/// A horizon that opened.
pub(crate) struct Found {
    /// What it says.
    pub(crate) body: HorizonBody,
    /// As it is stored.
    pub(crate) object: Bytes,
    /// Whether it has more than this program knows: that would be lost in the next.
    is_outgrown: bool,
}

/// Reads a horizon of a log.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if it does not open; `Unavailable`.
pub(crate) async fn read(vault: &Vault, log: LogId, number: u64) -> Result<Found, VaultError> {
    let name = ObjectName::horizon(log, number);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    let bytes = object.clone();
    let open =
        move |vault: &Vault| open_horizon_wholly(&bytes, vault.id(), log, number, vault.ring());
    let (body, is_all) = vault.open_aside(name, ObjectKind::Horizon, open).await?;
    Ok(Found { body, object, is_outgrown: !is_all })
}

/// What came of moving a horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// There is a new one.
    To(Horizon),
    /// It is there already, or further.
    Already(Horizon),
    /// A volume has spans below that no base of it covers.
    Held(VolumeId),
}

/// Moves the horizon of a log to a slot, once: what lies below is still there, and may be deleted from then on.
///
/// `covers` says whether a base of a volume has all that a tail speaks of.
///
/// # Errors
/// `Corrupt` if a slot below cannot be read; `Limit` if the log does not reach so far, or has more volumes than a
/// checkpoint holds; `Unavailable`.
///
/// # Cancel safety
/// Dropped, it leaves open whether the horizon was moved: call again.
pub async fn advance(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    covers: impl Fn(VolumeId, &VolumeTail) -> bool + Sync,
) -> Result<Moved, VaultError> {
    for _ in 0..HORIZON_TRIES_MAX {
        let end = find_end(vault, log, Slot(0)).await?;
        if end.horizon.slot() >= slot {
            return Ok(Moved::Already(end.horizon));
        }
        if slot > end.next {
            let (url, what) = (vault.url().to_owned(), "slots of the log");
            return Err(VaultError::Limit { url, what, max: end.next.0 });
        }
        let below = match ledger_at(vault, log, &end.horizon, slot).await {
            Err(VaultError::Passed { .. }) => continue,
            read => read?,
        };
        let held = below.tails().find(|(volume, tail)| !covers(*volume, tail));
        if let Some((volume, _)) = held {
            return Ok(Moved::Held(volume));
        }
        if let Some(horizon) = create(vault, log, slot, &end.horizon, below).await? {
            return Ok(Moved::To(horizon));
        }
    }
    let (url, what) = (vault.url().to_owned(), "horizons made while one was");
    Err(VaultError::Limit { url, what, max: HORIZON_TRIES_MAX as u64 })
}

/// Moves the horizon of a log as far as the bases of its volumes cover what is below, and not behind `to`.
///
/// # Errors
/// As [`advance`].
///
/// # Cancel safety
/// As [`advance`].
pub async fn let_go(vault: &Vault, log: LogId, to: Slot) -> Result<Moved, VaultError> {
    let end = find_end(vault, log, Slot(0)).await?;
    let to = to.min(end.next);
    let mut bases = Bases { vault, known: BTreeMap::new() };
    let mut ledger = end.horizon.ledger();
    let (mut scan, mut reach) = (LogScan::behind(vault, log, &ledger), to);
    scan = scan.above(end.horizon.clone()).filled_to(end.next);
    while ledger.next() < to {
        let Some((slot, segment)) = scan.next().await? else { break };
        if slot >= to {
            break;
        }
        let spans = segment.table.spans.iter().map(SpanEnd::from);
        ledger.take(slot, &segment.header().writer, spans);
        let volumes: BTreeSet<_> = segment.table.spans.iter().map(|span| span.volume).collect();
        let mut is_covered = true;
        for volume in volumes {
            let Some(tail) = ledger.tail(volume) else { continue };
            is_covered &= bases.cover(volume, tail).await?;
        }
        if !is_covered {
            reach = slot;
            break;
        }
    }
    scan.check_end(to)?;
    if reach <= end.horizon.slot() {
        return Ok(Moved::Already(end.horizon));
    }
    // Those too that only the horizon before speaks of.
    for (volume, tail) in ledger.tails() {
        bases.cover(volume, tail).await?;
    }
    let known = bases.known;
    advance(vault, log, reach, |volume, tail| is_covered(&known, volume, tail)).await
}

/// A volume's epochs and its newest base.
type Known = BTreeMap<VolumeId, (Vec<EpochBody>, Option<VolumeBase>)>;

fn is_covered(known: &Known, volume: VolumeId, tail: &VolumeTail) -> bool {
    if is_on(Bug::HorizonOverUncovered) {
        return true;
    }
    known.get(&volume).is_some_and(|(epochs, base)| {
        base.as_ref().is_some_and(|base| base.covers_tail(epochs, tail))
    })
}

/// Bases of volumes, each read once.
struct Bases<'a> {
    vault: &'a Vault,
    known: Known,
}

impl Bases<'_> {
    async fn cover(&mut self, volume: VolumeId, tail: &VolumeTail) -> Result<bool, VaultError> {
        if !self.known.contains_key(&volume) {
            let found = read_whole(self.vault, volume).await?;
            self.known.insert(volume, found);
        }
        Ok(is_covered(&self.known, volume, tail))
    }
}

/// Makes the next horizon; none if another one was first.
async fn create(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    known: &Horizon,
    below: Ledger,
) -> Result<Option<Horizon>, VaultError> {
    let before = match known.number {
        0 => [0; 32],
        number => {
            let before = read(vault, log, number).await?;
            if before.is_outgrown {
                let (url, object) = (vault.url().to_owned(), ObjectName::horizon(log, number));
                return Err(VaultError::Outgrown { url, object });
            }
            digest(&before.object)
        }
    };
    let number = known.number + 1;
    let Some(below) = below.body().cloned() else {
        let (url, what) = (vault.url().to_owned(), "volumes of a log that has a horizon");
        return Err(VaultError::Limit { url, what, max: CHECKPOINT_VOLUMES_MAX as u64 });
    };
    let body = Arc::new(HorizonBody { slot, before, below });
    let (name, sealed) = (ObjectName::horizon(log, number), Arc::clone(&body));
    let object = vault
        .seal_aside(&name, move |vault, keys| seal_horizon(vault.id(), log, number, keys, &sealed));
    let object = object.await?;
    if vault.store().create(&name, object.clone()).await? == Put::Exists {
        if read(vault, log, number).await?.object != object {
            // Of another maker; it counts, and says where to go on.
            return Ok(None);
        }
        vault.store().settle(&name).await?;
    }
    Ok(Some(Horizon { number, body: Some(body) }))
}

/// What a log says of the slots below one, which is not in front of its horizon nor behind its end.
async fn ledger_at(
    vault: &Vault,
    log: LogId,
    horizon: &Horizon,
    slot: Slot,
) -> Result<Ledger, VaultError> {
    let named = named_before(vault, log, slot, horizon).await?.filter(|named| *named <= slot);
    let mut ledger = checkpoint::newest(vault, log, named, horizon).await?;
    let mut scan = LogScan::behind(vault, log, &ledger).above(horizon.clone()).filled_to(slot);
    while ledger.next() < slot {
        let Some((at, segment)) = scan.next().await? else { break };
        if at >= slot {
            break;
        }
        let spans = segment.table.spans.iter().map(SpanEnd::from);
        ledger.take(at, &segment.header().writer, spans);
    }
    scan.check_end(slot)?;
    ledger.reached(slot);
    still(vault, log, horizon.number).await?;
    Ok(ledger)
}

#[cfg(test)]
pub(crate) mod tests;
