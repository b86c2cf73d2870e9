//! Logs that were sealed to take their volumes over: each is sealed and read once for all of its volumes.
//!
//! A sealed log does not change any more, so what was read of it stays true.

use crate::limits::SEALED_LOGS_MAX;
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::segment::Span;
use farshore_proto::{Epoch, LogId, Seq, Slot, Stamp, VolumeId};
use farshore_vault::chain::{Join, join};
use farshore_vault::log::{LogScan, ScanEnd, seal};
use farshore_vault::{Vault, VaultError};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

/// What a node has read of the logs that it took volumes over from; whoever claims shares it.
#[derive(Debug, Default)]
pub struct SealedLogs(std::sync::Mutex<BTreeMap<LogId, Entry>>);

/// One log: the first that needs it reads it, the others wait.
type Entry = Arc<Mutex<Option<Arc<SealedLog>>>>;

/// A log up to its seal.
#[derive(Debug)]
pub(super) struct SealedLog {
    /// The slot of the seal.
    pub(super) slot: Slot,
    /// Where reading began.
    from: Slot,
    /// The streams in it; none if a part of the log cannot be read.
    streams: Option<BTreeMap<(VolumeId, Epoch), Stream>>,
}

/// The spans of a volume under an epoch, as far as they join.
#[derive(Debug, Clone, Copy)]
struct Stream {
    first: Seq,
    last: Seq,
    /// Of the frame at `last`.
    stamp: Stamp,
    is_whole: bool,
}

impl SealedLogs {
    /// Seals the log of an epoch and reads it, unless both were done before.
    pub(super) async fn read(
        &self,
        vault: &Vault,
        epoch: &EpochBody,
    ) -> Result<Arc<SealedLog>, VaultError> {
        let entry = self.entry(epoch.log);
        let mut known = entry.lock().await;
        // Slots in front of the epoch's first may have been on their way when it began, and may be missing.
        let from = Slot(epoch.first_slot.0.saturating_sub(PUTS_IN_FLIGHT_MAX as u64));
        if let Some(known) = known.as_ref().filter(|known| known.from <= from) {
            return Ok(Arc::clone(known));
        }
        let slot = seal(vault, epoch.log, from).await?;
        let streams = read_streams(vault, epoch.log, from, slot).await?;
        let read = Arc::new(SealedLog { slot, from, streams });
        *known = Some(Arc::clone(&read));
        Ok(read)
    }

    fn entry(&self, log: LogId) -> Entry {
        // What a panic left is a map of whole entries.
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logs.len() >= SEALED_LOGS_MAX && !logs.contains_key(&log) {
            logs.pop_first();
        }
        Arc::clone(logs.entry(log).or_default())
    }
}

impl SealedLog {
    /// The last seq of a volume whose newest epoch is in the log, and the stamp of the frame there; none if
    /// only reading its whole stream can tell.
    pub(super) fn end_of(&self, volume: VolumeId, epoch: &EpochBody) -> Option<(Seq, Stamp)> {
        match self.streams.as_ref()?.get(&(volume, epoch.epoch)) {
            None => Some((Seq(epoch.first_seq.0 - 1), epoch.stamp)),
            Some(stream) if stream.is_whole && stream.first == epoch.first_seq => {
                Some((stream.last, stream.stamp))
            }
            Some(_) => None,
        }
    }
}

async fn read_streams(
    vault: &Vault,
    log: LogId,
    from: Slot,
    sealed: Slot,
) -> Result<Option<BTreeMap<(VolumeId, Epoch), Stream>>, VaultError> {
    let mut streams: BTreeMap<(VolumeId, Epoch), Stream> = BTreeMap::new();
    let mut scan = LogScan::new(vault, log, from).filled_to(sealed.next());
    loop {
        match scan.next().await {
            Ok(Some((_, segment))) => {
                segment.table.spans.iter().for_each(|span| take(&mut streams, span));
            }
            Ok(None) => break,
            Err(error) if error.is_unavailable() => return Err(error),
            // Whether a volume misses what does not open is for its own stream to say.
            Err(_) => return Ok(None),
        }
    }
    Ok((scan.end() == Some(ScanEnd::Sealed(sealed))).then_some(streams))
}

fn take(streams: &mut BTreeMap<(VolumeId, Epoch), Stream>, span: &Span) {
    let first = span.first_seq;
    let fresh = Stream { first, last: Seq(first.0 - 1), stamp: Stamp::default(), is_whole: true };
    let stream = streams.entry((span.volume, span.epoch)).or_insert(fresh);
    match join(span, stream.last, None) {
        Join::Next => (stream.last, stream.stamp) = (span.last_seq, span.stamp),
        Join::Skip => {}
        Join::Broken => stream.is_whole = false,
    }
}
