//! Maps and index runs: written beside the work, on tokio threads, few at a time.
//!
//! Both are derived. Whatever goes wrong here is a warning, and shards never wait for it. When a volume is
//! mapped is decided by [`farshore_engine::maps`].

use crate::dedup::Dedup;
use crate::services::chain;
use farshore_engine::maps;
use farshore_proto::VolumeId;
use farshore_vault::{Vault, map, runs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// New chunks that make an index run.
const RUN_CHUNKS: usize = 65_536;
/// Fewer new chunks than this are not worth a run when the node stops.
const LAST_RUN_CHUNKS_MIN: usize = 1024;
/// The last run of an orderly stop may take so long.
const LAST_RUN_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to write a run.
const RETRY: Duration = Duration::from_secs(5);

/// Maps volumes when they are due, for as long as the node runs.
#[derive(Debug)]
pub(crate) struct Maps {
    vault: Vault,
    due: Mutex<maps::Maps>,
}

impl Maps {
    /// Of a node that has just started.
    pub(crate) fn new(vault: Vault) -> Arc<Self> {
        let due = Mutex::new(maps::Maps::new(maps::Settings::default()));
        Arc::new(Self { vault, due })
    }

    /// A segment is in the vault; `spans` are its volumes with their extents, perhaps several of one.
    pub(crate) fn committed(self: &Arc<Self>, spans: &[(VolumeId, usize)]) {
        let spans = spans.iter().map(|(volume, extents)| (*volume, *extents as u64)).collect();
        self.step(maps::Input::Committed { spans });
    }

    fn step(self: &Arc<Self>, input: maps::Input) {
        let mut out = Vec::new();
        self.due.lock().unwrap_or_else(PoisonError::into_inner).step(input, &mut out);
        for maps::Output::Map { volume } in out {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                let runs = map_one(&this.vault, volume).await;
                this.step(maps::Input::Ended { volume, runs });
            });
        }
    }
}

/// Maps a volume; says in how many runs, if there was anything to map.
async fn map_one(vault: &Vault, volume: VolumeId) -> Option<u64> {
    match map::write(vault, volume).await {
        Ok(Some(written)) => {
            let map::Written { seq, runs, parts, bytes } = written;
            tracing::info!(%volume, %seq, runs, parts, bytes, "mapped a volume");
            Some(runs)
        }
        Ok(None) => {
            tracing::debug!(%volume, "there is nothing new to map");
            None
        }
        Err(error) => {
            tracing::warn!(%volume, error = %chain(&error), "cannot map a volume; its views take longer to open");
            None
        }
    }
}

/// Writes an index run whenever enough chunks are new, for as long as the node runs.
pub(crate) async fn write_runs(vault: Vault, dedup: Dedup) {
    loop {
        dedup.wait_fresh(RUN_CHUNKS).await;
        let chunks = dedup.take_fresh();
        let mut is_told = false;
        while let Err(error) = runs::write(&vault, &chunks).await {
            if !is_told {
                tracing::warn!(error = %chain(&error), "cannot write an index run; trying again");
                is_told = true;
            }
            tokio::time::sleep(RETRY).await;
        }
        tracing::info!(chunks = chunks.len(), "wrote an index run");
    }
}

/// Writes what is new when the node stops in order.
pub(crate) async fn write_last_run(vault: &Vault, dedup: &Dedup) {
    let chunks = dedup.take_fresh();
    if chunks.len() < LAST_RUN_CHUNKS_MIN {
        return;
    }
    match tokio::time::timeout(LAST_RUN_MAX, runs::write(vault, &chunks)).await {
        Ok(Ok(_)) => tracing::info!(chunks = chunks.len(), "wrote the last index run"),
        Ok(Err(error)) => {
            tracing::warn!(error = %chain(&error), "cannot write the last index run");
        }
        Err(_) => tracing::warn!("the last index run takes too long and is left out"),
    }
}

#[cfg(test)]
mod tests;
