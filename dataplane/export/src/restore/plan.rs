//! The order of a restore: by where the bytes are stored.

use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::{BlockRange, Target};
use farshore_vault::fetch::{self, Fetch};
use farshore_vault::limits::BULK_GETS_IN_FLIGHT_MAX;
use farshore_vault::log::OpenSegment;
use farshore_vault::view::{Home, Source};
use farshore_vault::{VaultError, VolumeView};
use futures::{StreamExt, TryStreamExt};
use std::ops::Range;
use std::sync::Arc;

/// A run of blocks and where its bytes are stored. Ordered by the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) frame: u32,
    /// Number of the chunk in the table of the slot.
    pub(super) number: u32,
    /// Byte offset in the opened frame.
    offset: u32,
    /// First block of the run in the volume.
    block: u64,
    count: u32,
}

/// Frames to be fetched at once, and what is wanted of them.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) segment: Arc<OpenSegment>,
    pub(super) fetch: Fetch,
    pub(super) places: Vec<Place>,
}

/// Finds where every run of the view is stored, in the order of storage.
pub(super) async fn resolve(view: &VolumeView) -> Result<Vec<Place>, VaultError> {
    let blocks = blocks_of(view.size_bytes());
    let whole = BlockRange { block: 0, count: blocks };
    let mut runs: Vec<(BlockRange, Source)> = view.sources(whole).collect();
    // Tables are then read in order, each once.
    runs.sort_unstable_by_key(|(run, source)| (source.target, source.chunk, run.block));
    let slots = ranges(&runs, |(_, a), (_, b)| a.target == b.target);
    let slots = slots.into_iter().map(|range| resolve_slot(view, &runs[range]));
    let groups: Vec<Vec<Place>> =
        futures::stream::iter(slots).buffered(BULK_GETS_IN_FLIGHT_MAX).try_collect().await?;
    let mut places: Vec<Place> = groups.into_iter().flatten().collect();
    places.sort_unstable();
    Ok(places)
}

/// Where the groups of items that are the same by `is_same` lie.
pub(super) fn ranges<T>(items: &[T], is_same: impl Fn(&T, &T) -> bool) -> Vec<Range<usize>> {
    let mut at = 0;
    let group = |group: &[T]| {
        at += group.len();
        at - group.len()..at
    };
    items.chunk_by(is_same).map(group).collect()
}

async fn resolve_slot(
    view: &VolumeView,
    runs: &[(BlockRange, Source)],
) -> Result<Vec<Place>, VaultError> {
    let mut places = Vec::with_capacity(runs.len());
    for (run, source) in runs {
        let Home { segment, number, frame, offset } = view.home(source, run.count).await?;
        let block_bytes = u32::try_from(BLOCK_BYTES).expect("a small constant");
        let offset = offset + source.first * block_bytes;
        let count = u32::try_from(run.count).expect("a run of a chunk is short");
        let target = segment.target();
        places.push(Place { target, frame, number, offset, block: run.block, count });
    }
    Ok(places)
}

/// The jobs for what is wanted of one slot; `places` are all of it, in order.
pub(super) fn jobs(segment: &Arc<OpenSegment>, places: &[Place]) -> Vec<Job> {
    let wanted = places.chunk_by(|a, b| a.frame == b.frame).map(|places| places[0].frame);
    let mut rest = places;
    let jobs = fetch::plan(&segment.frames, wanted).into_iter().map(|fetch| {
        let last = fetch.frames.last().copied().unwrap_or_default();
        let (mine, after) = rest.split_at(rest.partition_point(|place| place.frame <= last));
        rest = after;
        Job { segment: Arc::clone(segment), fetch, places: mine.to_vec() }
    });
    jobs.collect()
}

/// The writes of what is wanted of one frame: first block, and bytes of the frame. Runs that lie
/// side by side in both are one write.
pub(super) fn writes(places: &[Place]) -> Vec<(u64, Range<usize>)> {
    let mut writes: Vec<(u64, Range<usize>)> = Vec::new();
    for place in places {
        let start = place.offset as usize;
        let end = start + place.count as usize * BLOCK_BYTES;
        match writes.last_mut() {
            Some((block, bytes))
                if bytes.end == start
                    && *block + (bytes.len() / BLOCK_BYTES) as u64 == place.block =>
            {
                bytes.end = end;
            }
            _ => writes.push((place.block, start..end)),
        }
    }
    writes
}
