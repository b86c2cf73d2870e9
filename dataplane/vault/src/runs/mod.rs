//! Index runs: what is known of chunks, left in the vault for nodes that know nothing yet.
//!
//! Derived, and a hint: a run that is missing or damaged costs space. Runs hold chunks of committed
//! segments only. Layout: `docs/formats/index-run.md`.
//!
//! The name of a run begins with a number above those of all runs that its writer saw: who lists runs again asks for those
//! behind a number only. No clock has a part in it.

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
use farshore_proto::register::At;
use farshore_proto::targets::StoredChunk;
use farshore_proto::{ChunkId, RunId};
use futures::{Stream, StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use uuid::{Builder, Uuid};

/// zstd level of runs: ids do not compress, the rest compresses at once.
const LEVEL: i32 = 1;

/// The largest number of a run.
const NUMBER_MAX: u64 = (1 << 48) - 1;

/// What a run says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    /// No verdict of the vault's register up to this entry names a segment of it: its writer had applied that.
    pub applied: At,
    /// Chunks of committed segments.
    pub chunks: Vec<(ChunkId, Location)>,
}

/// A run that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Which.
    pub run: RunId,
    /// What it says; nothing if it does not open.
    pub said: Option<Run>,
}

/// Writes what is known of chunks as one or more runs with number `number`; returns how many.
///
/// Of two equal ids the first counts.
///
/// # Errors
/// `Unavailable` (also when full: `is_no_space`). Runs written before stay: writing the chunks
/// again does no harm.
pub async fn write(vault: &Vault, number: u64, known: &Run) -> Result<usize, VaultError> {
    let Run { applied, chunks } = known;
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
        put(vault, number, IndexRun { applied: *applied, chunks: part.to_vec() }).await?;
    }
    Ok(runs)
}

async fn put(vault: &Vault, number: u64, body: IndexRun) -> Result<(), VaultError> {
    let run = numbered(number, Uuid::new_v4().into_bytes());
    let name = ObjectName::index_run(run);
    let sealing = vault
        .seal_aside(&name, move |vault, keys| seal_index_run(vault.id(), run, keys, &body, LEVEL));
    let object = sealing.await?;
    match vault.store().create(&name, object).await? {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// A name with a number, at most the largest that there is.
fn numbered(number: u64, mut bytes: [u8; 16]) -> RunId {
    bytes[..6].copy_from_slice(&number.min(NUMBER_MAX).to_be_bytes()[2..]);
    RunId::from(Builder::from_custom_bytes(bytes).into_uuid())
}

/// The number of a run; none if its name has none.
#[must_use]
pub fn number_of(run: RunId) -> Option<u64> {
    let is_numbered = Uuid::from_bytes(run.0).get_version_num() == 8;
    let [a, b, c, d, e, f, ..] = run.0;
    is_numbered.then_some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

/// The runs with numbers from `from` on, and all others too if there is none: at most [`RUNS_LISTED_MAX`], the greatest.
///
/// # Errors
/// `Unavailable` if the store cannot be listed.
pub async fn list(vault: &Vault, from: Option<u64>) -> Result<BTreeSet<RunId>, VaultError> {
    let mut runs = BTreeSet::new();
    let from = from.map(|from| numbered(from, [0; 16]));
    let mut listing = match from {
        Some(from) => vault.store().list_behind(Folder::Index, &ObjectName::index_run(from)),
        None => vault.store().list(Folder::Index),
    };
    while let Some(object) = listing.try_next().await? {
        let Some(run) = run_of(&object.name) else { continue };
        if from.is_none() || number_of(run).is_some() {
            runs.insert((number_of(run), run));
        }
        if runs.len() > RUNS_LISTED_MAX {
            // What is older is of the least use.
            runs.pop_first();
        }
    }
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// Reads runs, a few at a time and in order; those that do not open are passed over with a warning.
pub fn read(
    vault: &Vault,
    runs: impl IntoIterator<Item = RunId>,
) -> impl Stream<Item = Result<Read, VaultError>> {
    let reads = runs.into_iter().map(move |run| async move {
        match open(vault, run).await {
            Ok(IndexRun { applied, chunks }) => {
                let chunks = chunks.iter().map(located).collect();
                Ok(Read { run, said: Some(Run { applied, chunks }) })
            }
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => {
                let object = ObjectName::index_run(run);
                tracing::warn!(%object, %error, "an index run cannot be used; its chunks may be stored again");
                Ok(Read { run, said: None })
            }
        }
    });
    futures::stream::iter(reads).buffered(RUNS_AHEAD_MAX)
}

fn located(chunk: &StoredChunk) -> (ChunkId, Location) {
    let StoredChunk { id, blocks, target, chunk } = *chunk;
    (id, Location { target, chunk, blocks })
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
