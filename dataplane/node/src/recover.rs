//! What a start finds out before it serves: how far each log got, and what the journal still holds.

use crate::register::Register;
use crate::shard::{Journaled, Recovery, journal_files, journaled_volumes, read_files};
use crate::state::Logs;
use anyhow::{Context, bail};
use farshore_engine::tenure::{Input, Output, Tenure};
use farshore_ingest::recover::recover as recover_log;
use farshore_proto::Slot;
use farshore_vault::Vault;
use farshore_vault::log::find_end;
use std::path::Path;

/// Where one shard of a starting node has what it goes on with.
pub(crate) struct Place<'a> {
    pub(crate) vault: &'a Vault,
    pub(crate) logs: &'a Logs,
    /// Where its log is to be, before anything is put.
    pub(crate) register: &'a Register,
    pub(crate) shard: usize,
    /// Its journal.
    pub(crate) journal: &'a Path,
}

/// Recovers one shard for run `incarnation` of the node, in a new log if its own was sealed.
///
/// # Errors
/// If the vault or the journal cannot be read, or a new log not be stored.
pub(crate) async fn recover(place: &Place<'_>, incarnation: u64) -> anyhow::Result<Recovery> {
    let Place { vault, logs, register, shard, journal } = *place;
    let unread = || format!("read the journal in {}", journal.display());
    let mut tenure = Tenure::default();
    let mut read = Journaled::default();
    let mut todo = Vec::new();
    tenure.step(Input::Start { log: logs.of(shard), incarnation }, &mut todo);
    loop {
        let input = match todo.pop() {
            Some(Output::SeeJournal { log }) => {
                let volumes = journaled_volumes(journal, vault, log).with_context(unread)?;
                Input::JournalSeen { volumes }
            }
            Some(Output::ReadLog { log, incarnation, journaled }) => {
                // One that is sealed is written no more. Most logs were born long ago.
                if !register.has(log).await
                    && !find_end(vault, log, Slot(0)).await.context("read the log")?.is_sealed
                {
                    register.bear(log).await?;
                }
                let learn = |target, table: &_| register.dedup().learn(target, table);
                let found = recover_log(vault, log, incarnation, &journaled, learn).await;
                Input::LogRead { found: found.context("read the log")? }
            }
            Some(Output::ReadJournal { log, volumes }) => {
                read = read_files(journal, vault, log, &volumes).with_context(unread)?;
                let volumes = read.replayed.iter().map(|frame| frame.volume).collect();
                Input::JournalRead { volumes, files: read.files.clone() }
            }
            Some(Output::Renew { sealed }) => {
                tracing::warn!(log = %sealed, "the log was sealed; this shard begins a new one");
                let files = journal_files(journal).with_context(unread)?;
                let log = logs.renew(shard)?;
                register.bear(log).await?;
                Input::Renewed { log, files }
            }
            Some(Output::Open(opening)) => {
                let Journaled { replayed, damages, .. } = read;
                return Ok(Recovery { tenure, opening, replayed, damages });
            }
            other => bail!("a shard that starts is told to open a log, not {other:?}"),
        };
        tenure.step(input, &mut todo);
    }
}

#[cfg(test)]
mod tests;
