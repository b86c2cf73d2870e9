//! Locks on ranges of blocks: what overlaps waits, in order of arrival.
//!
//! Held from the write of the disk until the frame is in the log, so that overlapping changes get
//! their seqs in the order in which the disk took them, and copies never read half a write.

use farshore_proto::BlockRange;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    held: Vec<(u64, BlockRange)>,
    waiting: VecDeque<(u64, BlockRange, oneshot::Sender<()>)>,
}

impl Table {
    /// Gives the lock to every waiter that nobody before it stands against.
    fn admit(&mut self) {
        let mut index = 0;
        while index < self.waiting.len() {
            let range = self.waiting[index].1;
            let earlier = self.waiting.iter().take(index).map(|(_, other, _)| *other);
            let held = self.held.iter().map(|(_, other)| *other);
            if held.chain(earlier).any(|other| other.overlaps(range)) {
                index += 1;
                continue;
            }
            let (id, range, ready) = self.waiting.remove(index).expect("in bounds");
            // A waiter that went away meanwhile gives the lock back when it notices, which is now.
            if ready.send(()).is_ok() {
                self.held.push((id, range));
            }
        }
    }
}

/// The locks of one disk.
#[derive(Debug, Clone, Default)]
pub struct RangeLocks {
    table: Arc<Mutex<Table>>,
}

/// A range that is locked until this is dropped.
#[derive(Debug)]
pub struct RangeGuard {
    id: u64,
    table: Arc<Mutex<Table>>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RangeLocks {
    /// Waits until no earlier lock overlaps the range, and locks it.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    ///
    /// # Panics
    /// Never: the other end of the wait lives as long as the locks.
    pub async fn lock(&self, range: BlockRange) -> RangeGuard {
        let (guard, ready) = {
            let mut table = lock(&self.table);
            let id = table.next_id;
            table.next_id += 1;
            let guard = RangeGuard { id, table: Arc::clone(&self.table) };
            let waiting = table.waiting.iter().map(|(_, other, _)| *other);
            let held = table.held.iter().map(|(_, other)| *other);
            if !waiting.chain(held).any(|other| other.overlaps(range)) {
                table.held.push((id, range));
                return guard;
            }
            let (sender, ready) = oneshot::channel();
            table.waiting.push_back((id, range, sender));
            (guard, ready)
        };
        ready.await.expect("the table keeps the sender until it gives the lock");
        guard
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        table.held.retain(|(id, _)| *id != self.id);
        table.waiting.retain(|(id, _, _)| *id != self.id);
        table.admit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn range(block: u64, count: u64) -> BlockRange {
        BlockRange { block, count }
    }

    #[tokio::test]
    async fn overlapping_ranges_wait_in_order() {
        let locks = RangeLocks::default();
        let first = locks.lock(range(0, 10)).await;
        let other = locks.lock(range(10, 5)).now_or_never().expect("apart");
        let mut second = Box::pin(locks.lock(range(5, 10)));
        assert!((&mut second).now_or_never().is_none());
        let mut third = Box::pin(locks.lock(range(14, 2)));
        assert!((&mut third).now_or_never().is_none(), "behind the second, which came first");
        drop(first);
        assert!((&mut second).now_or_never().is_none(), "the other still holds");
        drop(other);
        let second = (&mut second).now_or_never().expect("free");
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        let _third = third.now_or_never().expect("free");
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_lets_the_next_pass() {
        let locks = RangeLocks::default();
        let first = locks.lock(range(0, 4)).await;
        let mut second = Box::pin(locks.lock(range(2, 4)));
        assert!((&mut second).now_or_never().is_none());
        let mut third = Box::pin(locks.lock(range(4, 4)));
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        let _third = third.now_or_never().expect("free");
        drop(first);
        assert!(lock(&locks.table).waiting.is_empty());
    }
}
