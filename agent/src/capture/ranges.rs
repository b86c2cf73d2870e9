//! Locks on ranges of blocks: what overlaps waits, in order of arrival.
//!
//! Held from the write of the disk until the frame is in the log, so that overlapping changes get
//! their seqs in the order in which the disk took them, and copies never read half a write.

use farshore_proto::BlockRange;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Who has which range, and who waits: the rule, without any waiting.
#[derive(Debug, Default)]
pub struct LockTable {
    next_id: u64,
    held: Vec<(u64, BlockRange)>,
    waiting: VecDeque<(u64, BlockRange)>,
}

impl LockTable {
    /// Asks for a range: the number of the lock, and whether it is held at once. Otherwise it is
    /// among those that a later [`LockTable::release`] returns.
    pub fn ask(&mut self, range: BlockRange) -> (u64, bool) {
        let id = self.next_id;
        self.next_id += 1;
        let others = self.held.iter().chain(&self.waiting);
        let is_free = !others.map(|(_, other)| *other).any(|other| other.overlaps(range));
        if is_free {
            self.held.push((id, range));
        } else {
            self.waiting.push_back((id, range));
        }
        (id, is_free)
    }

    /// Gives up a lock, or a place in the queue; returns the locks that are held from now on: those
    /// that nobody before them stands against.
    #[must_use]
    pub fn release(&mut self, id: u64) -> Vec<u64> {
        self.held.retain(|(held, _)| *held != id);
        self.waiting.retain(|(waiting, _)| *waiting != id);
        let mut admitted = Vec::new();
        let mut index = 0;
        while index < self.waiting.len() {
            let (id, range) = self.waiting[index];
            let earlier = self.waiting.iter().take(index);
            if self.held.iter().chain(earlier).any(|(_, other)| other.overlaps(range)) {
                index += 1;
                continue;
            }
            self.waiting.remove(index);
            self.held.push((id, range));
            admitted.push(id);
        }
        admitted
    }
}

#[derive(Debug, Default)]
struct Inner {
    table: LockTable,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Inner {
    fn release(&mut self, id: u64) {
        self.waiting.remove(&id);
        // A waiter that went away meanwhile gives its lock back when its guard is dropped.
        for id in self.table.release(id) {
            if let Some(ready) = self.waiting.remove(&id) {
                let _ = ready.send(());
            }
        }
    }
}

/// The locks of one disk.
#[derive(Debug, Clone, Default)]
pub struct RangeLocks {
    inner: Arc<Mutex<Inner>>,
}

/// A range that is locked until this is dropped.
#[derive(Debug)]
pub struct RangeGuard {
    id: u64,
    inner: Arc<Mutex<Inner>>,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
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
            let mut inner = lock(&self.inner);
            let (id, is_held) = inner.table.ask(range);
            let guard = RangeGuard { id, inner: Arc::clone(&self.inner) };
            if is_held {
                return guard;
            }
            let (sender, ready) = oneshot::channel();
            inner.waiting.insert(id, sender);
            (guard, ready)
        };
        ready.await.expect("the sender is kept until it gives the lock");
        guard
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        lock(&self.inner).release(self.id);
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
        assert!(lock(&locks.inner).waiting.is_empty());
    }
}
