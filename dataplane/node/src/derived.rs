//! Maps and index runs: written beside the work, on tokio threads, few at a time.
//!
//! Both are derived. Whatever goes wrong here is a warning, and shards never wait for it.

use crate::dedup::Dedup;
use crate::services::chain;
use farshore_proto::VolumeId;
use farshore_vault::{Vault, map, runs};
use std::collections::{BTreeMap, VecDeque};
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

/// Volumes that are mapped at the same time: a map takes memory, and reads what sessions' puts go to.
const MAPS_AT_ONCE: usize = 2;

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
    /// Whether it stands in line, or is being mapped.
    is_taken: bool,
}

impl Since {
    fn is_due(self) -> bool {
        self.extents > MAP_EXTENTS_MIN.max(self.runs / MAP_RUNS_PER_EXTENT)
            || self.segments >= MAP_SEGMENTS_MIN.max(self.runs / MAP_RUNS_PER_SEGMENT)
    }
}

/// Volumes, and those of them that wait for their map, the longest first.
#[derive(Debug, Default)]
struct Volumes {
    since: BTreeMap<VolumeId, Since>,
    line: VecDeque<VolumeId>,
}

impl Volumes {
    /// Puts a volume at the end of the line if it is due and not there, nor being mapped.
    fn line_up(&mut self, volume: VolumeId) -> bool {
        let Some(since) = self.since.get_mut(&volume) else { return false };
        let stands = since.is_due() && !since.is_taken;
        if stands {
            since.is_taken = true;
            self.line.push_back(volume);
        }
        stands
    }
}

/// Decides when which volume is mapped, and does it.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    volumes: Mutex<Volumes>,
    moved: Notify,
}

impl Maps {
    fn volumes(&self) -> MutexGuard<'_, Volumes> {
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
            let since = volumes.since.entry(volume).or_default();
            since.extents += count;
            since.segments += 1;
            is_due |= volumes.line_up(volume);
        }
        drop(volumes);
        if is_due {
            self.moved.notify_one();
        }
    }

    /// The volume that has waited longest; its counters begin again.
    fn take_due(&self) -> Option<VolumeId> {
        let mut volumes = self.volumes();
        let volume = volumes.line.pop_front()?;
        if let Some(since) = volumes.since.get_mut(&volume) {
            *since = Since { runs: since.runs, is_taken: true, ..Since::default() };
        }
        if !volumes.line.is_empty() {
            self.moved.notify_one();
        }
        Some(volume)
    }

    /// A volume was mapped, in so many runs if it was; it may be due again.
    fn mapped(&self, volume: VolumeId, runs: Option<u64>) {
        let mut volumes = self.volumes();
        if let Some(since) = volumes.since.get_mut(&volume) {
            since.runs = runs.unwrap_or(since.runs);
            since.is_taken = false;
        }
        if volumes.line_up(volume) {
            self.moved.notify_one();
        }
    }

    /// Maps volumes as they become due, a few at a time, for as long as the node runs.
    pub(crate) async fn run(self: Arc<Self>, vault: Vault) {
        self.work(|volume| map_one(vault.clone(), volume)).await;
    }

    async fn work<F: Future<Output = Option<u64>>>(&self, map: impl Fn(VolumeId) -> F) {
        let workers = (0..MAPS_AT_ONCE).map(|_| self.work_alone(&map));
        futures::future::join_all(workers).await;
    }

    async fn work_alone<F: Future<Output = Option<u64>>>(&self, map: &impl Fn(VolumeId) -> F) {
        loop {
            match self.take_due() {
                Some(volume) => self.mapped(volume, map(volume).await),
                None => self.moved.notified().await,
            }
        }
    }
}

/// Maps a volume; says in how many runs, if there was anything to map.
async fn map_one(vault: Vault, volume: VolumeId) -> Option<u64> {
    match map::write(&vault, volume).await {
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
