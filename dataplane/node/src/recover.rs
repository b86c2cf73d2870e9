//! What a start finds out before it serves: how far each log got, and what the journal still holds.

use crate::dedup::Dedup;
use crate::services::chain;
use crate::shard::{RecoveredVolume, Recovery, read_files};
use anyhow::Context;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{LogId, Seq, Slot, VolumeId};
use farshore_vault::Vault;
use farshore_vault::epoch::read_epochs;
use farshore_vault::log::{LogScan, find_end};
use farshore_vault::runs;
use std::collections::BTreeMap;
use std::path::Path;

/// Fills an index that knows nothing from the index runs of the vault, as far as they can be read.
pub(crate) async fn learn_runs(vault: &Vault, dedup: &Dedup) {
    match runs::load(vault, |chunks| dedup.learn_run(chunks)).await {
        Ok(runs::Loaded { runs, chunks, skipped }) => {
            tracing::info!(runs, chunks, skipped, "read the index runs of the vault");
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "cannot read the index runs; some chunks will be stored again");
        }
    }
}

/// Recovers one shard; `None` if its log was sealed: others own its volumes now.
///
/// # Errors
/// If the vault cannot be read or the journal's directory cannot be listed.
pub(crate) async fn recover(
    vault: &Vault,
    log: LogId,
    journal: &Path,
    dedup: &Dedup,
) -> anyhow::Result<Option<Recovery>> {
    let end = find_end(vault, log, Slot(0)).await.context("find the end of the log")?;
    if end.is_sealed {
        return Ok(None);
    }
    let lasts = scan(vault, log, dedup).await?;
    let mut volumes = BTreeMap::new();
    for (volume, last) in lasts {
        let epochs = read_epochs(vault, volume).await.context("read the epochs of a volume")?;
        // A volume whose newest epoch is in another log is somebody else's.
        if let Some(epoch) = epochs.last().filter(|epoch| epoch.log == log) {
            let committed = last.max(Seq(epoch.first_seq.0 - 1));
            let size_blocks = epoch.size_bytes / BLOCK_BYTES as u64;
            let known = RecoveredVolume { epoch: epoch.epoch, size_blocks, committed };
            volumes.insert(volume, known);
        }
    }
    let (replayed, files) = read_files(journal, vault.id(), log, vault.ring(), &volumes)
        .with_context(|| format!("read the journal in {}", journal.display()))?;
    Ok(Some(Recovery { next_slot: end.next, void: end.void, volumes, replayed, files }))
}

/// Reads all tables of the log: last seq of each volume, and chunks that the index may have lost.
async fn scan(vault: &Vault, log: LogId, dedup: &Dedup) -> anyhow::Result<BTreeMap<VolumeId, Seq>> {
    let mut lasts: BTreeMap<VolumeId, Seq> = BTreeMap::new();
    let mut scan = LogScan::new(vault, log, Slot(0));
    while let Some((slot, segment)) = scan.next().await.context("read the log")? {
        dedup.learn(log, slot, &segment.table);
        for span in &segment.table.spans {
            let last = lasts.entry(span.volume).or_default();
            *last = span.last_seq.max(*last);
        }
    }
    Ok(lasts)
}

#[cfg(test)]
mod tests;
