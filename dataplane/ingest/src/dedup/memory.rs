//! An index in memory: for small vaults, tests and the simulator.

use super::ChunkIndex;
use crate::index::{IndexError, Synced};
use farshore_proto::ChunkId;
use farshore_vault::Location;
use farshore_vault::register::{At, Condemned};
use std::collections::HashMap;
use std::sync::Arc;

/// Chunks, and up to where they were cleared.
#[derive(Debug, Clone, Default)]
pub struct MemoryIndex {
    chunks: HashMap<ChunkId, Location>,
    cleared: Option<At>,
    clearing: Option<Arc<Condemned>>,
}

impl<const N: usize> From<[(ChunkId, Location); N]> for MemoryIndex {
    fn from(chunks: [(ChunkId, Location); N]) -> Self {
        Self { chunks: chunks.into(), ..Self::default() }
    }
}

impl ChunkIndex for MemoryIndex {
    fn lookup(&mut self, ids: &[ChunkId], refused: &Condemned) -> Vec<Option<Location>> {
        let known = |id: &ChunkId| self.chunks.get(id).copied();
        let found = ids.iter().map(known);
        found.map(|found| found.filter(|location| !refused.contains(&location.target))).collect()
    }

    fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        self.chunks.extend(chunks.iter().copied());
        Ok(())
    }

    fn count(&self) -> u64 {
        self.chunks.len() as u64
    }

    fn cleared(&self) -> Option<At> {
        self.cleared
    }

    fn begin_clearing(&mut self, condemned: Arc<Condemned>) {
        self.clearing = Some(condemned);
    }

    fn clear_some(&mut self) -> Result<Option<Synced>, IndexError> {
        let Some(condemned) = self.clearing.take() else { return Ok(None) };
        self.chunks.retain(|_, location| !condemned.judged.contains(&location.target));
        Ok(Some(Box::new(move || Ok(condemned.at))))
    }

    fn synced(&mut self, cleared: At) {
        self.cleared = Some(cleared);
    }
}
