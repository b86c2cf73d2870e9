//! What a start finds out before it serves: how far each log got, and what the journal still holds.

use crate::dedup::Dedup;
use crate::services::chain;
use crate::shard::{Journaled, Recovery, journaled_volumes, read_files};
use anyhow::Context;
use farshore_proto::LogId;
use farshore_vault::recover::recover as recover_log;
use farshore_vault::{Vault, runs};
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

/// Recovers one shard for run `incarnation` of the node; `None` if its log was sealed: others own its
/// volumes now.
///
/// # Errors
/// If the vault or the journal cannot be read.
pub(crate) async fn recover(
    vault: &Vault,
    log: LogId,
    incarnation: u64,
    journal: &Path,
    dedup: &Dedup,
) -> anyhow::Result<Option<Recovery>> {
    let unread = || format!("read the journal in {}", journal.display());
    let journaled = journaled_volumes(journal, vault, log).with_context(unread)?;
    let learn = |slot, table: &_| dedup.learn(log, slot, table);
    let found = recover_log(vault, log, incarnation, &journaled, learn).await;
    let Some(found) = found.context("read the log")? else { return Ok(None) };
    let Journaled { replayed, files, damages } =
        read_files(journal, vault, log, &found.volumes).with_context(unread)?;
    Ok(Some(Recovery { log: found, replayed, files, damages }))
}

#[cfg(test)]
mod tests;
