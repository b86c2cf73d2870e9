//! Index runs: what is known of chunks, left in the vault for nodes that know nothing yet.
//!
//! Derived, and a hint: a run that is missing or damaged costs space. Runs hold chunks of committed
//! segments only. Layout: `docs/formats/index-run.md`.

use crate::chunks::Location;
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, run_of};
use crate::limits::{RUNS_AHEAD_MAX, RUNS_LISTED_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::store::Put;
use crate::vault::Vault;
use farshore_codec::index_run::{open_index_run, seal_index_run};
use farshore_proto::index_run::IndexRun;
use farshore_proto::limits::INDEX_RUN_CHUNKS_MAX;
use farshore_proto::object::ObjectKind;
use farshore_proto::targets::StoredChunk;
use farshore_proto::{ChunkId, RunId};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use uuid::Uuid;

/// zstd level of runs: ids do not compress, the rest compresses at once.
const LEVEL: i32 = 1;

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// Runs that opened.
    pub runs: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Runs that were passed over.
    pub skipped: Vec<RunId>,
}

/// Writes chunks of committed segments as one or more runs; returns how many.
///
/// Of two equal ids the first counts.
///
/// # Errors
/// `Unavailable` (also when full: `is_no_space`). Runs written before stay: writing the chunks
/// again does no harm.
pub async fn write(vault: &Vault, chunks: &[(ChunkId, Location)]) -> Result<usize, VaultError> {
    let mut all: Vec<StoredChunk> = chunks
        .iter()
        .map(|(id, Location { target, chunk, blocks })| StoredChunk {
            id: *id,
            blocks: *blocks,
            target: *target,
            chunk: *chunk,
        })
        .collect();
    all.sort_by_key(|chunk| chunk.id);
    all.dedup_by_key(|chunk| chunk.id);
    let parts = all.chunks(INDEX_RUN_CHUNKS_MAX);
    let runs = parts.len();
    for part in parts {
        put(vault, IndexRun { chunks: part.to_vec() }).await?;
    }
    Ok(runs)
}

async fn put(vault: &Vault, body: IndexRun) -> Result<(), VaultError> {
    let run = RunId::from(Uuid::new_v4());
    let name = ObjectName::index_run(run);
    let sealing = vault.seal_aside(&name, move |vault, number, key| {
        seal_index_run(vault.id(), run, key, number, &body, LEVEL)
    });
    let object = sealing.await?;
    match vault.store().create(&name, object).await? {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// Reads the runs of a vault that are not `known`, a few at a time; `each` gets them and their chunks, one after the
/// other.
///
/// Runs that do not open are passed over with a warning.
///
/// # Errors
/// `Unavailable` if the store cannot be listed or read.
pub async fn load(
    vault: &Vault,
    known: &BTreeSet<RunId>,
    mut each: impl FnMut(RunId, &[(ChunkId, Location)]) + Send,
) -> Result<Loaded, VaultError> {
    let mut runs = list(vault).await?;
    runs.retain(|run| !known.contains(run));
    let opened =
        futures::stream::iter(runs).map(|run| async move { (run, open(vault, run).await) });
    let mut opened = std::pin::pin!(opened.buffered(RUNS_AHEAD_MAX));
    let mut loaded = Loaded::default();
    while let Some((run, found)) = opened.next().await {
        match found {
            Ok(body) => {
                loaded.runs += 1;
                loaded.chunks += body.chunks.len() as u64;
                let chunks: Vec<(ChunkId, Location)> = body.chunks.iter().map(located).collect();
                each(run, &chunks);
            }
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                loaded.skipped.push(run);
                let object = ObjectName::index_run(run);
                tracing::warn!(%object, %error, "an index run cannot be used; its chunks may be stored again");
            }
        }
    }
    Ok(loaded)
}

fn located(chunk: &StoredChunk) -> (ChunkId, Location) {
    let StoredChunk { id, blocks, target, chunk } = *chunk;
    (id, Location { target, chunk, blocks })
}

/// The runs of a vault, at most `RUNS_LISTED_MAX`. Names that are not ids are passed over.
pub(crate) async fn list(vault: &Vault) -> Result<Vec<RunId>, VaultError> {
    let mut runs = Vec::new();
    let mut listing = vault.store().list(Folder::Index);
    while let Some(object) = listing.try_next().await? {
        let Some(run) = run_of(&object.name) else { continue };
        if runs.len() == RUNS_LISTED_MAX {
            tracing::warn!(max = RUNS_LISTED_MAX, "there are more index runs than are read");
            break;
        }
        runs.push(run);
    }
    Ok(runs)
}

/// Opens a run.
pub(crate) async fn open(vault: &Vault, run: RunId) -> Result<IndexRun, VaultError> {
    let name = ObjectName::index_run(run);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    let open = move |vault: &Vault| open_index_run(&object, vault.id(), run, vault.ring());
    vault.open_aside(name, ObjectKind::IndexRun, open).await
}

#[cfg(test)]
mod tests;
