//! That the frames of a segment open and hold the chunks that the table says.

use super::Report;
use crate::blocking;
use crate::error::VaultError;
use crate::fetch;
use crate::layout::ObjectName;
use crate::limits::BULK_GETS_IN_FLIGHT_MAX;
use crate::log::OpenSegment;
use crate::vault::Vault;
use farshore_codec::segment::chunk_of;
use farshore_codec::{ChunkHasher, CodecError};
use farshore_proto::segment::ChunkPlace;
use farshore_proto::{LogId, Slot};
use futures::StreamExt;
use std::ops::Range;
use std::sync::Arc;

/// What was found in the frames of one GET.
#[derive(Default)]
struct Found {
    frames: u64,
    chunks: u64,
    read_bytes: u64,
    damages: Vec<(u64, CodecError)>,
}

/// Opens all frames of a segment and compares all its chunks with their ids.
pub(super) async fn check(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    segment: &Arc<OpenSegment>,
    report: &mut Report,
) -> Result<(), VaultError> {
    let name = ObjectName::slot(log, slot);
    let numbers = 0..u32::try_from(segment.frames.len()).expect("a segment has a limit");
    let fetches = fetch::plan(&segment.frames, numbers);
    let checks = fetches.into_iter().map(|fetch| check_fetch(vault, &name, segment, fetch));
    let mut found = std::pin::pin!(futures::stream::iter(checks).buffered(BULK_GETS_IN_FLIGHT_MAX));
    report.read_bytes += segment.header().frames_offset();
    while let Some(part) = found.next().await {
        let part = match part {
            Ok(part) => part,
            Err(error) => {
                report.add_error(name.clone(), error)?;
                continue;
            }
        };
        report.frames += part.frames;
        report.chunks += part.chunks;
        report.read_bytes += part.read_bytes;
        for (offset, damage) in part.damages {
            report.add(name.clone(), offset, damage.to_string());
        }
    }
    Ok(())
}

async fn check_fetch(
    vault: &Vault,
    name: &ObjectName,
    segment: &Arc<OpenSegment>,
    (wanted, frames): (Range<u64>, Vec<u32>),
) -> Result<Found, VaultError> {
    let sealed = vault.store().get_range(name, wanted.clone()).await?.bytes;
    let (segment, hasher) = (Arc::clone(segment), vault.hasher().clone());
    let work = move || {
        let mut found = Found { read_bytes: sealed.len() as u64, ..Found::default() };
        let mut raw = Vec::new();
        for number in &frames {
            let range = segment.frames[*number as usize].clone();
            let at = |offset: u64| {
                let offset = usize::try_from(offset - wanted.start);
                offset.unwrap_or(usize::MAX).min(sealed.len())
            };
            raw.clear();
            let bytes = &sealed[at(range.start)..at(range.end)];
            match segment.opener.open_frame(&segment.table, *number, bytes, &mut raw) {
                Ok(()) => {
                    found.frames += 1;
                    check_chunks(&segment, *number, &raw, &hasher, &mut found);
                }
                Err(damage) => found.damages.push((range.start, damage)),
            }
        }
        found
    };
    blocking::run(work).await.map_err(|source| VaultError::Task { source })
}

fn check_chunks(
    segment: &OpenSegment,
    number: u32,
    raw: &[u8],
    hasher: &ChunkHasher,
    found: &mut Found,
) {
    let offset = segment.frames[number as usize].start;
    for (chunk, held) in (0..).zip(&segment.table.chunks) {
        if !matches!(held.place, ChunkPlace::Here { frame, .. } if frame == number) {
            continue;
        }
        match chunk_of(&segment.table, chunk, raw, hasher) {
            Ok(_) => found.chunks += 1,
            Err(damage) => found.damages.push((offset, damage)),
        }
    }
}
