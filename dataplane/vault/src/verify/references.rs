//! That what a segment refers to in others is there.

use super::Report;
use crate::chunks::ChunkReader;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::BULK_GETS_IN_FLIGHT_MAX;
use crate::log::OpenSegment;
use farshore_proto::segment::{ChunkPlace, SegmentChunk};
use farshore_proto::{LogId, Slot, Target};
use futures::StreamExt;
use std::collections::BTreeMap;

/// Checks every reference; of one target, the first that is wrong is named and the rest counted.
pub(super) async fn check(
    reader: &ChunkReader,
    log: LogId,
    slot: Slot,
    segment: &OpenSegment,
    report: &mut Report,
) -> Result<(), VaultError> {
    let name = ObjectName::slot(log, slot);
    let mut targets: BTreeMap<Target, Vec<(u32, SegmentChunk)>> = BTreeMap::new();
    for chunk in &segment.table.chunks {
        if let ChunkPlace::There { target, chunk: number } = chunk.place {
            targets.entry(target).or_default().push((number, *chunk));
        }
    }
    let checks = targets.into_iter().map(|(to, chunks)| {
        let (name, Target { log: there, slot: at, .. }) = (&name, to);
        async move {
            if there == log && at >= slot {
                return Ok(Some((name.clone(), format!("refers to slot {at}, which is not earlier"))));
            }
            let target = match reader.segment(to, name).await {
                Ok(target) => target,
                Err(error) if error.is_unavailable() => return Err(error),
                Err(VaultError::Lost { object, .. }) => {
                    return Ok(Some((object, format!("is missing; {name} refers to it"))));
                }
                Err(VaultError::Replaced { object, .. }) => {
                    return Ok(Some((object, format!("is not the segment that {name} refers to: that one is lost"))));
                }
                Err(error) => return Ok(Some((name.clone(), format!("refers to what does not open: {error}")))),
            };
            let wrong: Vec<u32> = chunks
                .iter()
                .filter(|(number, chunk)| !is_at(&target, *number, chunk))
                .map(|(number, _)| *number)
                .collect();
            Ok(wrong.first().map(|first| {
                let target = ObjectName::slot(there, at);
                let count = wrong.len();
                let what = format!("{count} references to {target} are not to the chunks there, the first to chunk {first}");
                (name.clone(), what)
            }))
        }
    });
    let mut found = std::pin::pin!(futures::stream::iter(checks).buffered(BULK_GETS_IN_FLIGHT_MAX));
    while let Some(problem) = found.next().await {
        if let Some((object, what)) = problem? {
            report.add(object, 0, what);
        }
    }
    Ok(())
}

/// Whether a segment holds a chunk, as its number `number`.
fn is_at(segment: &OpenSegment, number: u32, chunk: &SegmentChunk) -> bool {
    let held = segment.table.chunks.get(number as usize);
    held.is_some_and(|held| {
        let is_here = matches!(held.place, ChunkPlace::Here { .. });
        is_here && (held.id, held.blocks) == (chunk.id, chunk.blocks)
    })
}
