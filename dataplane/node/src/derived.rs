//! Maps and index runs: written beside the work, on threads of their own, few at a time.
//!
//! Both are derived. Whatever goes wrong here is a warning, and shards never wait for it. When a volume is
//! mapped is decided by [`farshore_engine::maps`].

use crate::dedup::Dedup;
use crate::metrics::Metrics;
use crate::services::chain;
use crate::troubles::{Troubles, Work};
use farshore_engine::maps;
use farshore_proto::{ErrorKind, LogId, Slot, VolumeId};
use farshore_vault::{Vault, VaultError, map, runs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// New chunks that make an index run …
const RUN_CHUNKS: usize = 65_536;
/// … and fewer, when so much time has passed since the last: others are to find them within a minute.
const RUN_AGE: Duration = Duration::from_secs(40);
/// Fewer new chunks than this are not worth a run.
const RUN_CHUNKS_MIN: usize = 1024;
/// The last run of an orderly stop may take so long.
const LAST_RUN_MAX: Duration = Duration::from_secs(10);
/// So many extents that are in no map are told: eight times what makes the largest volume due.
const UNMAPPED_TOLD: u64 = 1 << 21;
/// Between two attempts to write a run.
const RETRY: Duration = Duration::from_secs(5);

/// Maps volumes when they are due, for as long as the node runs.
#[derive(Debug)]
pub(crate) struct Maps {
    vault: Vault,
    metrics: Arc<Metrics>,
    /// The threads that they are written on.
    aside: Handle,
    due: Mutex<maps::Maps>,
}

impl Maps {
    /// Of a node that has just started.
    pub(crate) fn new(vault: Vault, metrics: Arc<Metrics>, aside: Handle) -> Arc<Self> {
        let due = Mutex::new(maps::Maps::new(maps::Settings::default()));
        Arc::new(Self { vault, metrics, aside, due })
    }

    /// A segment is in the vault; `spans` are its volumes with their extents, perhaps several of one.
    pub(crate) fn committed(self: &Arc<Self>, log: LogId, slot: Slot, spans: &[(VolumeId, usize)]) {
        let spans = spans.iter().map(|(volume, extents)| (*volume, *extents as u64)).collect();
        self.step(maps::Input::Committed { log, slot, spans });
    }

    /// The volume is not this node's any more.
    pub(crate) fn left(self: &Arc<Self>, volume: VolumeId) {
        self.step(maps::Input::Left { volume });
        self.metrics.troubles().clear(Work::Map(volume));
    }

    fn lock(&self) -> MutexGuard<'_, maps::Maps> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(self: &Arc<Self>, input: maps::Input) {
        let mut out = Vec::new();
        self.lock().step(input, &mut out);
        for maps::Output::Map { volume } in out {
            let this = Arc::clone(self);
            self.aside.spawn(async move {
                let written = map::write(&this.vault, volume).await;
                let unmapped = this.lock().unmapped(volume);
                tell(this.metrics.troubles(), volume, unmapped, &written);
                let runs = runs_of(volume, written);
                this.step(maps::Input::Ended { volume, runs });
            });
        }
    }
}

/// The runs of a map, if one was written.
fn runs_of(volume: VolumeId, written: Result<Option<map::Written>, VaultError>) -> Option<u64> {
    match written {
        Ok(Some(written)) => {
            let map::Written { at, runs, layers, new_runs, bytes } = written;
            tracing::info!(%volume, %at, runs, layers, new_runs, bytes, "mapped a volume");
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

/// Tells of a volume whose stream is damaged, whose map is too large, or that could not be mapped for so long that its views take
/// their time to open; `unmapped` extents are in no map.
fn tell(
    troubles: &Troubles,
    volume: VolumeId,
    unmapped: u64,
    written: &Result<Option<map::Written>, VaultError>,
) {
    match written {
        Ok(_) => troubles.clear(Work::Map(volume)),
        // Maps are read like points.
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let what = format!(
                "volume {volume} cannot be mapped, as what the vault holds of it is damaged; points behind the damage \
                 may not restore: {}; `farshore vault verify` names all that is damaged",
                chain(error)
            );
            troubles.set(Work::Map(volume), what);
        }
        Err(error) if error.kind() == ErrorKind::Limit || unmapped >= UNMAPPED_TOLD => {
            let what = format!(
                "volume {volume} has not been mapped since {unmapped} extents ago, so that its views and restores \
                 take long, and at last have no room: {}",
                chain(error)
            );
            troubles.set(Work::Map(volume), what);
        }
        Err(_) => {}
    }
}

/// Writes an index run whenever enough chunks are new, or some have been for long, for as long as the node runs.
pub(crate) async fn write_runs(vault: Vault, dedup: Dedup) {
    loop {
        // The age is that of the first of them, however few there are.
        dedup.wait_fresh(1).await;
        let _is_full = tokio::time::timeout(RUN_AGE, dedup.wait_fresh(RUN_CHUNKS)).await;
        dedup.wait_fresh(RUN_CHUNKS_MIN).await;
        let known = dedup.take_fresh().await;
        let mut is_told = false;
        while let Err(error) = runs::write(&vault, dedup.next_run(), &known).await {
            if !is_told {
                tracing::warn!(error = %chain(&error), "cannot write an index run; trying again");
                is_told = true;
            }
            tokio::time::sleep(RETRY).await;
        }
        tracing::info!(chunks = known.chunks.len(), "wrote an index run");
    }
}

/// Writes what is new when the node stops in order.
pub(crate) async fn write_last_run(vault: &Vault, dedup: &Dedup) {
    let known = dedup.take_fresh().await;
    if known.chunks.len() < RUN_CHUNKS_MIN {
        return;
    }
    match tokio::time::timeout(LAST_RUN_MAX, runs::write(vault, dedup.next_run(), &known)).await {
        Ok(Ok(_)) => tracing::info!(chunks = known.chunks.len(), "wrote the last index run"),
        Ok(Err(error)) => {
            tracing::warn!(error = %chain(&error), "cannot write the last index run");
        }
        Err(_) => tracing::warn!("the last index run takes too long and is left out"),
    }
}

#[cfg(test)]
mod tests;
