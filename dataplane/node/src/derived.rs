//! Maps and index runs: written beside the work, on tokio threads, one at a time.
//!
//! Both are derived. Whatever goes wrong here is a warning, and shards never wait for it.

use crate::dedup::Dedup;
use crate::services::chain;
use farshore_proto::VolumeId;
use farshore_vault::{Vault, map, runs};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A volume is mapped again when so many extents were committed since its last map …
const MAP_EXTENTS_MIN: u64 = 16_384;
/// … or one for so many runs of that map, if that is more: a map costs what it is long …
const MAP_RUNS_PER_EXTENT: u64 = 4;
/// … or when so many segments hold spans of it: that many a reader may have to look at …
const MAP_SEGMENTS_MIN: u64 = 512;
/// … or one for so many runs, if that is more: then the map is read as fast as they are.
const MAP_RUNS_PER_SEGMENT: u64 = 4096;

/// New chunks that make an index run.
const RUN_CHUNKS: usize = 65_536;
/// Fewer new chunks than this are not worth a run when the node stops.
const LAST_RUN_CHUNKS_MIN: usize = 1024;
/// The last run of an orderly stop may take so long.
const LAST_RUN_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to write a run.
const RETRY: Duration = Duration::from_secs(5);

/// What a volume got since its last map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Since {
    extents: u64,
    segments: u64,
    /// Runs of the last map that this node wrote; 0 before the first.
    runs: u64,
}

impl Since {
    fn is_due(self) -> bool {
        self.extents > MAP_EXTENTS_MIN.max(self.runs / MAP_RUNS_PER_EXTENT)
            || self.segments >= MAP_SEGMENTS_MIN.max(self.runs / MAP_RUNS_PER_SEGMENT)
    }
}

/// Decides when which volume is mapped, and does it.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    volumes: Mutex<BTreeMap<VolumeId, Since>>,
    moved: Notify,
}

impl Maps {
    fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Since>> {
        // Counters only decide when a map is written.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment is committed; `spans` are its volumes with their extents, perhaps several of one.
    pub(crate) fn committed(&self, spans: &[(VolumeId, usize)]) {
        let mut extents: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for (volume, count) in spans {
            *extents.entry(*volume).or_default() += *count as u64;
        }
        let mut volumes = self.volumes();
        let mut is_due = false;
        for (volume, count) in extents {
            let since = volumes.entry(volume).or_default();
            since.extents += count;
            since.segments += 1;
            is_due |= since.is_due();
        }
        drop(volumes);
        if is_due {
            self.moved.notify_one();
        }
    }

    /// A volume to be mapped now; its counters begin again.
    fn take_due(&self) -> Option<VolumeId> {
        let mut volumes = self.volumes();
        let (volume, since) = volumes.iter_mut().find(|(_, since)| since.is_due())?;
        *since = Since { runs: since.runs, ..Since::default() };
        Some(*volume)
    }

    /// Maps volumes as they become due, for as long as the node runs.
    pub(crate) async fn run(self: Arc<Self>, vault: Vault) {
        loop {
            let Some(volume) = self.take_due() else {
                self.moved.notified().await;
                continue;
            };
            match map::write(&vault, volume).await {
                Ok(Some(written)) => {
                    let map::Written { seq, runs, parts, bytes } = written;
                    self.volumes().entry(volume).or_default().runs = runs;
                    tracing::info!(%volume, %seq, runs, parts, bytes, "mapped a volume");
                }
                Ok(None) => tracing::debug!(%volume, "there is nothing new to map"),
                Err(error) => {
                    tracing::warn!(%volume, error = %chain(&error), "cannot map a volume; its views take longer to open");
                }
            }
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
