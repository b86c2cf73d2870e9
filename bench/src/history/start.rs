//! What a node does with the logs of its shards before it serves, and what checkpoints spare it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_engine::tenure::RecoveredLog;
use farshore_ingest::recover::recover;
use farshore_proto::{Epoch, Slot};
use farshore_vault::Vault;
use farshore_vault::layout::ObjectName;

use super::Options;
use super::delayed::Delayed;
use super::report::{Clock, Figure, Took};
use super::write::{EPOCHS, History, Log};

const SHARDS: usize = 2;
/// From a directory.
const TARGET_SECONDS: f64 = 5.0;
/// From a store that takes [`TARGET_DELAY_MS`] for each request.
const TARGET_DELAYED_SECONDS: f64 = 30.0;
/// The run that starts: the one before wrote the history.
const INCARNATION: u64 = 2;
/// Of the log with which a start without checkpoints is shown; it reads every slot.
const SHOWN_SLOTS: u64 = 3000;
/// In that log: their epochs are read all the same, and would hide what the slots cost.
const SHOWN_VOLUMES: usize = 20;

/// A start with the whole history, from a directory and from a slow store.
///
/// # Errors
/// If it cannot be written, or what is found is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<(Vec<Figure>, History)> {
    let (slots, volumes) = (options.slots, options.volumes);
    let history = History::write(folder.join("start"), SHARDS, slots, volumes).await?;
    let name = format!(
        "node ready ({SHARDS} logs × {slots} slots, {volumes} volumes in all), {{}}: until the logs are recovered"
    );
    let tail = history.logs[0].tail;
    let (took, _) = start(&history, &history.vault, true).await?;
    let local = Figure::timed(name.replace("{}", "directory"), took).held_to(TARGET_SECONDS);

    let (vault, store) =
        Delayed::over(&history.directory, options.delay())?.open(&history.key).await?;
    let (took, slots_read) = start(&history, &vault, true).await?;
    let delayed = Figure::timed(name.replace("{}", &options.delay_text()), took)
        .held_to(TARGET_DELAYED_SECONDS)
        .with_requests(store.take_requests())
        .with_remark(format!(
            "{slots_read} slots read, in each log {tail} behind its checkpoint and those that the start fills; then \
             {EPOCHS} epochs of each volume. Not in it: the process, its journal, index runs, what the dedup \
             index does with the tables"
        ));
    Ok((vec![local, delayed], history))
}

/// The requests of the same start of one small log with its checkpoints, and once they are lost.
///
/// # Errors
/// As [`measure`].
pub(super) async fn compare(options: &Options, folder: &Path) -> Result<(Vec<Figure>, History)> {
    let (slots, volumes) = (SHOWN_SLOTS.min(options.slots), SHOWN_VOLUMES.min(options.volumes));
    let history = History::write(folder.join("compare"), 1, slots, volumes).await?;
    let mut figures = Vec::new();
    let (vault, store) =
        Delayed::over(&history.directory, Duration::ZERO)?.open(&history.key).await?;
    for is_checkpointed in [true, false] {
        let what = if is_checkpointed { "with its checkpoints" } else { "once they are lost" };
        if !is_checkpointed {
            for log in &history.logs {
                for slot in log.checkpoints() {
                    history.remove(&ObjectName::checkpoint(log.id, slot))?;
                }
            }
        }
        let (took, slots_read) = start(&history, &vault, is_checkpointed).await?;
        let name =
            format!("for comparison: a log of {slots} slots, {volumes} volumes, {what}, directory");
        let figure = Figure::timed(name, took).with_requests(store.take_requests());
        figures.push(figure.with_remark(format!("{slots_read} slots read")));
    }
    Ok((figures, history))
}

/// Recovers all logs of a history at the same time, as a node does, and leaves them as they were; says how many
/// slots were read.
async fn start(history: &History, vault: &Vault, is_checkpointed: bool) -> Result<(Took, u64)> {
    let clock = Clock::start()?;
    let recoveries = history.logs.iter().map(|log| async {
        let mut slots_read = 0;
        let learn = |_, _: &_| slots_read += 1;
        let found = recover(vault, log.id, INCARNATION, &BTreeSet::new(), learn).await?;
        let found = found.with_context(|| format!("log {} was sealed", log.id))?;
        Ok::<_, anyhow::Error>((found, slots_read))
    });
    let found = futures::future::try_join_all(recoveries).await?;
    let took = clock.stop()?;
    let mut slots_read = 0;
    for (log, (found, learnt)) in history.logs.iter().zip(&found) {
        check(log, found, is_checkpointed)?;
        // Else the whole log was read beside the checkpoint, or a part of the tail was not.
        let behind = found.next_slot.0 - found.ledger.checkpoint().map_or(0, |slot| slot.0);
        ensure!(
            *learnt == behind,
            "{learnt} slots were read, not the {behind} behind the checkpoint"
        );
        slots_read += learnt;
        for slot in log.slots..found.next_slot.0 {
            history.remove(&ObjectName::slot(log.id, Slot(slot)))?;
        }
    }
    Ok((took, slots_read))
}

/// Refuses a figure for something else than what was written.
pub(super) fn check(log: &Log, found: &RecoveredLog, is_checkpointed: bool) -> Result<()> {
    let newest = is_checkpointed.then(|| log.checkpoints()[1]);
    let read = found.ledger.checkpoint();
    ensure!(read == newest, "the log was read from checkpoint {read:?}, not {newest:?}");
    ensure!(found.next_slot.0 > log.slots, "the log ends at slot {}", found.next_slot);
    ensure!(found.void.is_empty(), "slots are void: {:?}", found.void);
    let (volumes, wrote) = (found.volumes.len(), log.volumes.len());
    ensure!(volumes == wrote, "{volumes} volumes are found, {wrote} were written");
    for (volume, place) in &log.volumes {
        let found = found.volumes.get(volume).with_context(|| format!("no volume {volume}"))?;
        let is_same = found.epoch == Epoch(EPOCHS)
            && (found.committed, found.stamp) == (place.committed, place.stamp);
        ensure!(is_same, "volume {volume} is at {found:?}, written was {place:?}");
    }
    Ok(())
}
