//! What must not be deleted: the segments that the maps of bases name, and all that slots behind horizons refer to.
//!
//! Everything that a reader begins with is one of these. A point above its volume's base is read by way of the base's map, or of one that
//! holds nothing that neither that map nor a slot behind a horizon refers to; a kept point by its own map, which the base names.
//!
//! The slots are read first, the bases afterwards: a horizon passes only what a base covers already, so the bases that are read later cover all
//! that is in front of the horizons that the slots were read from.

use crate::base::{BaseMaps, VolumeBase, read_whole};
use crate::checkpoint::read_ledger;
use crate::error::VaultError;
use crate::horizon;
use crate::layout::ObjectName;
use crate::limits::GC_NEEDED_MAX;
use crate::log::{LogScan, find_end};
use crate::register::{Confirmed, Entry};
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::checkpoint::VolumeTail;
use farshore_proto::epoch::EpochBody;
use farshore_proto::register::{At, State};
use farshore_proto::segment::ChunkPlace;
use farshore_proto::{LogId, Slot, Target, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// What must not be deleted.
#[derive(Debug, Default)]
pub struct Needed {
    /// Segments that something refers to.
    pub targets: BTreeSet<Target>,
    /// The volumes that logs have spans of.
    pub volumes: BTreeSet<VolumeId>,
    /// The horizons behind which logs were read.
    pub(super) horizons: BTreeMap<LogId, Slot>,
    /// Where volumes stood at horizons: a base has to cover it.
    tails: Vec<(VolumeId, VolumeTail)>,
    confirmed: Confirmed,
}

/// Reads what is needed of what lies in front of the horizons of logs: of those in the register, and of those that are listed. One that is
/// in no register is sealed, and refers to what it refers to.
///
/// # Errors
/// `Conflict` if history was let go meanwhile: begin again; `Corrupt` if something that says what is needed cannot be read; `Unavailable`;
/// `Limit`.
pub async fn needed(vault: &Vault, entry: &Entry, listed: &[LogId]) -> Result<Needed, VaultError> {
    let mut needed = Needed::default();
    if is_on(Bug::BasesReadBeforeSlots) {
        needed.volumes.extend(crate::catalog::volume_ids(vault).await?);
        needed.bases(vault).await?;
    }
    let listed = if is_on(Bug::UnbornOverlooked) { &[] } else { listed };
    let logs: BTreeSet<LogId> = entry.state.logs.keys().chain(listed).copied().collect();
    for log in logs {
        needed.log(vault, log, &entry.state.floors).await?;
    }
    if !is_on(Bug::BasesReadBeforeSlots) {
        needed.bases(vault).await?;
    }
    Ok(needed)
}

/// The logs that have not said in a committed slot that they refer to nothing of condemnation `of`.
///
/// # Errors
/// As [`needed`].
pub(super) async fn silent(
    vault: &Vault,
    state: &State,
    of: u64,
) -> Result<Vec<LogId>, VaultError> {
    let (mut silent, mut confirmed) = (Vec::new(), Confirmed::default());
    // Who was born behind it applied it before its first slot.
    for (log, _) in state.logs.iter().filter(|(_, born)| **born < of) {
        let end = find_end(vault, *log, Slot(0)).await?;
        if end.is_sealed {
            continue;
        }
        let ledger = read_ledger(vault, *log, &end, |_| {}).await?;
        let stated = ledger.register();
        if stated.number < of {
            silent.push(*log);
        } else {
            check_stated(vault, &mut confirmed, *log, stated).await?;
        }
    }
    Ok(silent)
}

/// What a log that is written states to have applied has to be there: it is the answer to whatever has its number.
async fn check_stated(
    vault: &Vault,
    confirmed: &mut Confirmed,
    log: LogId,
    stated: At,
) -> Result<(), VaultError> {
    if confirmed.has(vault, stated).await? {
        return Ok(());
    }
    let (url, object) = (vault.url().to_owned(), ObjectName::register(stated.number));
    Err(VaultError::Answer { url, log, object })
}

impl Needed {
    fn check(&self, vault: &Vault) -> Result<(), VaultError> {
        if self.targets.len() <= GC_NEEDED_MAX {
            return Ok(());
        }
        let (url, max) = (vault.url().to_owned(), GC_NEEDED_MAX as u64);
        Err(VaultError::Limit { url, what: "segments that something refers to", max })
    }

    /// Adds what the slots of a log behind its horizon refer to.
    async fn log(
        &mut self,
        vault: &Vault,
        log: LogId,
        floors: &BTreeMap<LogId, Slot>,
    ) -> Result<(), VaultError> {
        let end = find_end(vault, log, Slot(0)).await?;
        horizon::reaches(vault, log, &end.horizon, floors)?;
        self.horizons.insert(log, end.horizon.slot());
        self.tails.extend(end.horizon.tails().map(|(volume, tail)| (volume, *tail)));
        self.volumes.extend(end.horizon.tails().map(|(volume, _)| volume));
        // A slot that is missing in front of the end is lost, and with it what it refers to.
        let scan = LogScan::new(vault, log, Slot(0)).above(end.horizon);
        let mut scan = scan.filled_to(end.next);
        let mut stated = At::NONE;
        while let Some((_, segment)) = scan.next().await? {
            stated = stated.later(segment.header().writer.register);
            self.volumes.extend(segment.table.spans.iter().map(|span| span.volume));
            let there = segment.table.chunks.iter().filter_map(|chunk| match chunk.place {
                ChunkPlace::There { target, .. } => Some(target),
                ChunkPlace::Here { .. } => None,
            });
            self.targets.extend(there);
            self.check(vault)?;
        }
        scan.check_end(end.next)?;
        // What is sealed refers to what it refers to.
        match end.is_sealed {
            true => Ok(()),
            false => check_stated(vault, &mut self.confirmed, log, stated).await,
        }
    }

    /// A horizon was moved over what a base covers: if none does, a newer one was there.
    fn check_base(
        &self,
        vault: &Vault,
        volume: VolumeId,
        epochs: &[EpochBody],
        base: Option<&VolumeBase>,
    ) -> Result<(), VaultError> {
        let own = self.tails.iter().filter(|(of, _)| *of == volume);
        let covers = |tail| base.is_some_and(|base| base.covers_tail(epochs, tail));
        if own.map(|(_, tail)| tail).all(covers) {
            return Ok(());
        }
        let number = base.map_or(1, |base| base.number + 1);
        let (url, object) = (vault.url().to_owned(), ObjectName::base(volume, number));
        Err(VaultError::LostEnd { url, object })
    }

    /// Adds what the maps refer to that the volumes' bases name.
    async fn bases(&mut self, vault: &Vault) -> Result<(), VaultError> {
        for volume in self.volumes.clone() {
            let (epochs, base) = read_whole(vault, volume).await?;
            self.check_base(vault, volume, &epochs, base.as_ref())?;
            let Some(base) = base else { continue };
            // What it leaves out may go, so it must not be gone later.
            vault.store().settle(&base.object()).await?;
            let mut maps = BaseMaps::new(vault, &epochs, &base);
            let kept = base.body.points.iter().map(|point| (point.at, point.map));
            let kept = kept.filter(|_| !is_on(Bug::KeptPointsForgotten));
            for name in kept.chain([base.map()]) {
                maps.read(name, &mut self.targets).await?;
                self.check(vault)?;
            }
        }
        Ok(())
    }
}
