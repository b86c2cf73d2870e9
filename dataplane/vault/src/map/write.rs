//! Writing a map: from the newest one and what the logs hold behind it.

use super::{Base, Ids, begin, find};
use crate::blocks::ChunkAt;
use crate::epoch::read_epochs;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::store::Put;
use crate::vault::Vault;
use crate::view::{Build, PointSelector};
use farshore_codec::map::{MapPlace, seal_map};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{MAP_PARTS_MAX, MAP_RUNS_MAX, VOLUME_BLOCKS_MAX};
use farshore_proto::map::{MapBody, MapFields, MapHead, MapRun};
use farshore_proto::targets::StoredChunk;
use farshore_proto::{BlockRange, Seq, VolumeId};
use std::collections::HashMap;
use uuid::Uuid;

/// zstd level of maps: written seldom, read whole.
const LEVEL: i32 = 3;

const WHOLE: BlockRange = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };

/// A map that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The recovery point it is at.
    pub seq: Seq,
    /// Its runs of blocks.
    pub runs: u64,
    /// Its parts.
    pub parts: u32,
    /// Bytes of all parts.
    pub bytes: u64,
}

/// Writes a map of a volume at its newest recovery point.
///
/// None if there is nothing to write: no point yet, a map of the newest is there, or somebody
/// else began one. Takes about 150 bytes of memory for each run of the volume.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable` (also when full: `is_no_space`); `Limit`.
pub async fn write(vault: &Vault, volume: VolumeId) -> Result<Option<Written>, VaultError> {
    write_parts(vault, volume, MAP_RUNS_MAX).await
}

/// `write`, with the most runs of one part chosen.
pub(super) async fn write_parts(
    vault: &Vault,
    volume: VolumeId,
    runs_max: usize,
) -> Result<Option<Written>, VaultError> {
    let epochs = read_epochs(vault, volume).await?;
    let selector = PointSelector::Latest;
    let base = find(vault, volume, &epochs, selector, Ids::Keep).await;
    let mapped = base.as_ref().map(|base| base.start.last);
    let is_based = base.is_some();
    let build = match read_all(vault, volume, &epochs, base).await {
        Err(error) if is_based && !error.is_unavailable() => {
            tracing::warn!(%volume, %error, "cannot go on from the newest map; reading the logs from the start");
            read_all(vault, volume, &epochs, None).await?
        }
        read => read?,
    };
    match build.point() {
        Some(point) if Some(point.seq) != mapped => {
            put(vault, volume, &epochs, &build, runs_max).await
        }
        _ => Ok(None),
    }
}

/// Reads the volume to its newest point, from a map on or from the start.
async fn read_all(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    base: Option<Base>,
) -> Result<Build, VaultError> {
    let (mut build, mut chain) = begin(vault, volume, epochs, base, Ids::Keep)?;
    while let Some(found) = chain.next().await? {
        build.take(&chain, &found)?;
    }
    chain.hole().await?;
    Ok(build)
}

async fn put(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    build: &Build,
    runs_max: usize,
) -> Result<Option<Written>, VaultError> {
    let (Some(point), Some(start)) = (build.point(), build.end()) else { return Ok(None) };
    let head = MapHead {
        ordinal: start.epoch as u64 + 1,
        log: epochs[start.epoch].log,
        slot: start.slot,
        size_bytes: point.size_bytes,
        time_unix_ms: point.time_unix_ms,
        kind: point.kind,
        unknown_blocks: point.unknown_blocks,
    };
    let limit =
        |what, max: usize| VaultError::Limit { url: vault.url().to_owned(), what, max: max as u64 };
    let runs = build.map.len();
    let parts = runs.div_ceil(runs_max).max(1);
    if parts > MAP_PARTS_MAX {
        return Err(limit("parts of a map", MAP_PARTS_MAX));
    }
    let fields = MapFields {
        point: point.id,
        attempt: Uuid::new_v4().into_bytes(),
        parts: u32::try_from(parts).expect("just compared with the limit"),
    };
    let mut written = Written { seq: point.seq, runs: runs as u64, parts: fields.parts, bytes: 0 };
    let starts = build.map.runs(WHOLE).step_by(runs_max).map(|(run, _)| run.block);
    let starts: Vec<u64> = starts.collect();
    // The first part last: whoever finds it finds them all.
    for part in (0..fields.parts).rev() {
        let from = starts.get(part as usize).copied().unwrap_or(0);
        let body = part_of(build, head, from, runs_max);
        let at = MapPlace { vault: vault.id(), volume, seq: point.seq, part };
        let name = ObjectName::map(volume, point.seq, part);
        let sealing = vault.seal_aside(&name, move |_, number, key| {
            seal_map(at, &fields, key, number, &body, LEVEL)
        });
        let object = sealing.await?;
        written.bytes += object.len() as u64;
        if vault.store().create(&name, object).await? == Put::Exists {
            tracing::debug!(object = %name, "another attempt wrote a map here");
            return Ok(None);
        }
    }
    Ok(Some(written))
}

fn part_of(build: &Build, head: MapHead, from: u64, runs_max: usize) -> MapBody {
    let mut numbers: HashMap<ChunkAt, u32> = HashMap::new();
    let mut body = MapBody { head, chunks: Vec::new(), runs: Vec::new() };
    let rest = BlockRange { block: from, count: VOLUME_BLOCKS_MAX - from };
    for (range, source) in build.map.runs(rest).take(runs_max) {
        let at = source.at();
        let chunk = *numbers.entry(at).or_insert_with(|| {
            let number = u32::try_from(body.chunks.len()).expect("a part has a limit");
            let (id, blocks) = build.chunk_id(at).expect("ids are kept when a map is written");
            let (target, chunk) = (build.targets()[at.target as usize], at.chunk);
            body.chunks.push(StoredChunk { id, blocks, target, chunk });
            number
        });
        body.runs.push(MapRun { range, chunk, first: source.first });
    }
    body
}
