//! How much a vault holds.

use crate::base;
use crate::catalog::{list_volumes, log_ids};
use crate::error::VaultError;
use crate::layout::Folder;
use crate::log::LogScan;
use crate::vault::Vault;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::segment::{ChunkPlace, ExtentSource, Table};
use farshore_proto::{Seq, Slot};
use futures::TryStreamExt;
use std::collections::BTreeMap;

/// Sizes and counts of a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes that the volumes wrote, repetitions included, zeros not.
    pub raw_bytes: u64,
    /// Bytes of zeros that they wrote.
    pub zero_bytes: u64,
    /// Bytes of the chunks that are held, before compression.
    pub unique_bytes: u64,
    /// Bytes of all objects.
    pub stored_bytes: u64,
    /// Chunks that are held.
    pub chunks: u64,
    /// Segments; void ones are not counted.
    pub segments: u64,
    /// Volumes.
    pub volumes: u64,
    /// Recovery points.
    pub points: u64,
}

impl Stats {
    fn take(&mut self, table: &Table) {
        let block_bytes = BLOCK_BYTES as u64;
        self.segments += 1;
        for chunk in &table.chunks {
            if matches!(chunk.place, ChunkPlace::Here { .. }) {
                self.chunks += 1;
                self.unique_bytes += u64::from(chunk.blocks) * block_bytes;
            }
        }
        for extent in table.spans.iter().flat_map(|span| &span.extents) {
            match extent.source {
                ExtentSource::Zero => self.zero_bytes += extent.range.bytes(),
                ExtentSource::Chunk { .. } => self.raw_bytes += extent.range.bytes(),
            }
        }
    }
}

/// Reads all tables of a vault and adds up.
///
/// # Errors
/// `Corrupt` if an object does not open: `verify` says what else is wrong; `Unavailable`; `Limit`.
pub async fn stats(vault: &Vault) -> Result<Stats, VaultError> {
    let mut stats = Stats::default();
    let mut limits = BTreeMap::new();
    for volume in list_volumes(vault).await? {
        stats.volumes += 1;
        let base = base::newest(vault, volume.volume).await?;
        // Of the points that a base covers those are there that it lists.
        stats.points += base.as_ref().map_or(0, |base| base.body.points.len() as u64);
        let covered = |ordinal: u64| {
            let base = base.as_ref().filter(|base| ordinal <= base.body.at.ordinal)?;
            Some(if ordinal < base.body.at.ordinal { Seq(u64::MAX) } else { base.body.at.seq })
        };
        let next = volume.epochs.iter().skip(1).map(|next| next.first_seq).chain([Seq(u64::MAX)]);
        for ((epoch, limit), ordinal) in volume.epochs.iter().zip(next).zip(1..) {
            let home = (epoch.log, covered(ordinal), limit);
            limits.insert((volume.volume, epoch.epoch), home);
        }
    }
    for log in log_ids(vault).await? {
        let mut scan = LogScan::new(vault, log, Slot(0));
        while let Some((_, segment)) = scan.next().await? {
            stats.take(&segment.table);
            let marks = segment.table.spans.iter().filter(|span| span.mark.is_some());
            let points = marks.filter(|span| {
                let limit = limits.get(&(span.volume, span.epoch));
                limit.is_some_and(|(home, covered, limit)| {
                    *home == log && Some(span.last_seq) > *covered && span.last_seq < *limit
                })
            });
            stats.points += points.count() as u64;
        }
    }
    let mut listing = vault.store().list(Folder::Whole);
    while let Some(object) = listing.try_next().await? {
        stats.stored_bytes += object.bytes;
    }
    Ok(stats)
}

#[cfg(test)]
mod tests;
