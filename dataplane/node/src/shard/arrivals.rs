//! Memory of frames that have begun to arrive: so much for all sessions of a shard, first come, first
//! served.
//!
//! The cache counts frames that are whole. One that is on its way has its place here before its buffer is
//! made, and leaves it when it is whole or its session ends: a peer that sends a header and then lets
//! its time go by takes nothing that is not counted. Who holds a place for long while others wait is
//! ended by the sweep.

use farshore_proto::limits::{BLOCK_BYTES, FRAME_BODY_BYTES_MAX};
use std::cell::Cell;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Of the cache, so much beside it is for frames on their way.
const SHARE_OF_CACHE: usize = 4;

/// The places of one shard.
#[derive(Debug)]
pub(crate) struct Arrivals {
    blocks: Semaphore,
    waiting: Cell<usize>,
}

/// The place of one frame; none for the smallest, of which each session has one at most.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    _place: Option<SemaphorePermit<'a>>,
}

/// Counts who waits, until it is dropped.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Arrivals {
    /// For a shard with so much cache.
    pub(crate) fn beside(cache_bytes: usize) -> Self {
        let bytes = (cache_bytes / SHARE_OF_CACHE).max(FRAME_BODY_BYTES_MAX);
        Self { blocks: Semaphore::new(bytes / BLOCK_BYTES), waiting: Cell::new(0) }
    }

    /// A place for a body of so many bytes, once there is room. Cancel-safe.
    pub(crate) async fn begin(&self, bytes: usize) -> Arrival<'_> {
        if bytes <= BLOCK_BYTES {
            return Arrival { _place: None };
        }
        let blocks = u32::try_from(bytes.div_ceil(BLOCK_BYTES)).expect("a body has a limit");
        let _waiting = Waiting::new(&self.waiting);
        let place = self.blocks.acquire_many(blocks).await;
        Arrival { _place: Some(place.expect("it is never closed")) }
    }

    /// Whether somebody waits for a place.
    pub(crate) fn is_crowded(&self) -> bool {
        self.waiting.get() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const CACHE_BYTES: usize = 16 << 20;
    const PLACES: usize = CACHE_BYTES / SHARE_OF_CACHE / FRAME_BODY_BYTES_MAX;

    #[test]
    fn what_is_on_its_way_has_a_bound_and_who_comes_first_is_first() {
        let arrivals = Arrivals::beside(CACHE_BYTES);
        let begin = |bytes| Box::pin(arrivals.begin(bytes));
        let mut held: Vec<Arrival<'_>> = (0..PLACES)
            .map(|_| begin(FRAME_BODY_BYTES_MAX).now_or_never().expect("there is room"))
            .collect();
        assert!(!arrivals.is_crowded());
        let mut large = begin(FRAME_BODY_BYTES_MAX);
        let mut small = begin(2 * BLOCK_BYTES);
        assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
        assert!(arrivals.is_crowded());
        // A mark is never in the way, nor kept waiting.
        assert!(begin(32).now_or_never().is_some());
        held.pop();
        let large = large.now_or_never().expect("it came first");
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some() && !arrivals.is_crowded());
        // Who goes away waits no more.
        let _again = begin(FRAME_BODY_BYTES_MAX).now_or_never().expect("there is room");
        let mut gone = begin(FRAME_BODY_BYTES_MAX);
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        assert!(!arrivals.is_crowded());
    }

    #[test]
    fn the_smallest_cache_takes_the_largest_frame() {
        let arrivals = Arrivals::beside(1);
        assert!(arrivals.begin(FRAME_BODY_BYTES_MAX).now_or_never().is_some());
    }
}
