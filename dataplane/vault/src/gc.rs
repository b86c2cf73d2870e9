//! Deleting slots that nothing needs, without clocks and locks: segments in front of horizons are condemned, every log that is
//! written says in a slot of its own that it refers to them no more, what something still needs is spared by a final verdict, and what that
//! names is deleted.
//!
//! Any number of these may run at once, hang and be killed anywhere: what each step may do it reads from the vault, and a verdict alone
//! permits a delete. Rules and argument: `docs/adr/0014-history-may-go.md`.

mod needed;

use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, slot_of};
use crate::limits::GC_AT_ONCE;
use crate::log::{find_end, read_header};
use crate::register::{self, Entry};
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::TARGETS_MAX;
use farshore_proto::register::Statement;
use farshore_proto::segment::SlotKind;
use farshore_proto::{Attempt, LogId, Slot, Target};
use futures::{StreamExt, TryStreamExt, stream};
use needed::Needed;
use std::collections::BTreeSet;

pub use needed::needed;

/// What a step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing can be deleted now.
    Nothing,
    /// So many segments were condemned.
    Condemned {
        /// Number of the condemnation.
        number: u64,
        /// How many.
        segments: usize,
    },
    /// A condemnation waits for logs that have not said yet that they refer to it no more.
    Waiting {
        /// Number of the condemnation.
        number: u64,
        /// Those logs.
        logs: Vec<LogId>,
    },
    /// A verdict was made.
    Judged {
        /// Number of the condemnation.
        of: u64,
        /// How many segments it deletes.
        deleted: usize,
        /// How many it spares.
        spared: usize,
    },
    /// All that a verdict names is deleted.
    Swept {
        /// Number of the condemnation.
        of: u64,
        /// How many segments it named.
        segments: usize,
    },
}

/// Goes on with the oldest condemnation that is open, or makes one. Call it again and again, with time in between where it waits.
///
/// # Errors
/// `Conflict` if history was let go, or the register went on, meanwhile: call again; `Corrupt` if something that says what is needed cannot be
/// read, or a log is in no register: nothing is deleted then; `Unavailable`; `Limit`.
///
/// # Cancel safety
/// Dropped, it leaves what it did to whoever calls next.
pub async fn step(vault: &Vault) -> Result<Step, VaultError> {
    let entry = register::newest(vault, 0).await?;
    let listed = crate::catalog::log_ids(vault).await?;
    check_births(vault, &entry, &listed).await?;
    match entry.state.open.iter().next() {
        None => condemn(vault, &entry, &listed, TARGETS_MAX).await,
        Some((of, None)) => judge(vault, &entry, &listed, *of).await,
        Some((of, Some(verdict))) => sweep(vault, *of, *verdict).await,
    }
}

/// What no register knows of may refer to anything.
async fn check_births(vault: &Vault, entry: &Entry, listed: &[LogId]) -> Result<(), VaultError> {
    let is_unborn =
        |log: &&LogId| !entry.state.logs.contains_key(log) && !is_on(Bug::UnbornOverlooked);
    for log in listed.iter().filter(is_unborn) {
        if !find_end(vault, *log, Slot(0)).await?.is_sealed {
            return Err(VaultError::Unborn { url: vault.url().to_owned(), log: *log });
        }
    }
    Ok(())
}

/// Condemns the segments in front of horizons that nothing needs, at most so many.
async fn condemn(
    vault: &Vault,
    entry: &Entry,
    listed: &[LogId],
    max: usize,
) -> Result<Step, VaultError> {
    let Needed { targets: needed, horizons, .. } = needed(vault, entry, listed).await?;
    let mut condemned = BTreeSet::new();
    for log in entry.state.logs.keys() {
        let Some(horizon) = horizons.get(log).filter(|horizon| **horizon > Slot(0)) else {
            continue;
        };
        let left = max - condemned.len();
        if left == 0 {
            // The rest is for the next one.
            break;
        }
        condemned.extend(below(vault, *log, *horizon, &needed, left).await?);
    }
    if condemned.is_empty() {
        return Ok(Step::Nothing);
    }
    let segments = condemned.len();
    let entry = register::append(vault, entry.number, Statement::Condemnation(condemned)).await?;
    Ok(Step::Condemned { number: entry.number, segments })
}

/// The segments of a log in front of its horizon that nothing needs and that are still there, by a listing: what that leaves out stays.
async fn below(
    vault: &Vault,
    log: LogId,
    horizon: Slot,
    needed: &BTreeSet<Target>,
    max: usize,
) -> Result<Vec<Target>, VaultError> {
    let is_needed = |slot| {
        let at = |byte| Target { log, slot, attempt: Attempt([byte; 8]) };
        needed.range(at(0)..=at(0xff)).next().is_some()
    };
    let mut slots = Vec::new();
    let mut listing = vault.store().list(Folder::Log(log));
    while let Some(object) = listing.try_next().await? {
        let slot = slot_of(&object.name);
        slots.extend(slot.filter(|slot| *slot < horizon && !is_needed(*slot)));
        if slots.len() >= max {
            break;
        }
    }
    drop(listing);
    slots.truncate(max);
    let targets = stream::iter(slots).map(|slot| target_at(vault, log, slot));
    let targets: Vec<_> = targets.buffered(GC_AT_ONCE).try_collect().await?;
    Ok(targets.into_iter().flatten().collect())
}

/// The segment in a slot; none if nothing is there, or what fences.
async fn target_at(vault: &Vault, log: LogId, slot: Slot) -> Result<Option<Target>, VaultError> {
    match read_header(vault, log, slot).await {
        Ok(header) if header.kind == SlotKind::Segment || is_on(Bug::FencesSwept) => {
            Ok(Some(Target { log, slot, attempt: header.attempt() }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.is_unavailable() => Err(error),
        // What does not open is for people to look at.
        Err(_) => Ok(None),
    }
}

/// Makes the verdict on a condemnation, if all logs have answered.
async fn judge(
    vault: &Vault,
    entry: &Entry,
    listed: &[LogId],
    of: u64,
) -> Result<Step, VaultError> {
    let silent = needed::silent(vault, &entry.state, of).await?;
    if !silent.is_empty() && !is_on(Bug::VerdictWithoutAnswers) {
        return Ok(Step::Waiting { number: of, logs: silent });
    }
    let Some(Statement::Condemnation(condemned)) = register::read(vault, of).await?.statement
    else {
        let object = ObjectName::register(of);
        let what = "it is not the condemnation that later entries say";
        return Err(VaultError::Register { url: vault.url().to_owned(), object, what });
    };
    // Only now: what was referred to before the answers is read.
    let Needed { targets: needed, .. } = needed(vault, entry, listed).await?;
    let all = condemned.len();
    let targets: BTreeSet<Target> = match is_on(Bug::VerdictSparesNothing) {
        true => condemned,
        false => condemned.into_iter().filter(|target| !needed.contains(target)).collect(),
    };
    let deleted = targets.len();
    register::append(vault, entry.number, Statement::Verdict { of, targets }).await?;
    Ok(Step::Judged { of, deleted, spared: all - deleted })
}

/// Deletes what a verdict names.
async fn sweep(vault: &Vault, of: u64, verdict: u64) -> Result<Step, VaultError> {
    let Some(Statement::Verdict { targets, .. }) = register::read(vault, verdict).await?.statement
    else {
        let object = ObjectName::register(verdict);
        let what = "it is not the verdict that later entries say";
        return Err(VaultError::Register { url: vault.url().to_owned(), object, what });
    };
    let segments = targets.len();
    let deletes = stream::iter(targets).map(|target| delete(vault, target));
    deletes.buffered(GC_AT_ONCE).try_collect::<Vec<()>>().await?;
    register::append(vault, verdict, Statement::Swept { of }).await?;
    Ok(Step::Swept { of, segments })
}

/// Deletes a segment, if its slot holds that attempt.
async fn delete(vault: &Vault, target: Target) -> Result<(), VaultError> {
    if target_at(vault, target.log, target.slot).await? != Some(target) {
        return Ok(());
    }
    Ok(vault.store().delete(&ObjectName::slot(target.log, target.slot)).await?)
}

#[cfg(test)]
mod tests;
