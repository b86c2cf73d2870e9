//! Who changes the log's files: one at a time, and nobody waits long for one whose file system hangs.
//!
//! Whoever has the turn reads and writes files without holding the writer's lock: that is held for as long as
//! memory takes, so whoever only asks where the log stands waits for no disk.

use super::HANG_TIME;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
struct Inner {
    is_taken: bool,
    /// Whether somebody has waited in vain for the one who has it.
    hangs: bool,
}

/// The turns of one log.
#[derive(Debug, Default)]
pub(super) struct Lane {
    inner: Mutex<Inner>,
    free: Condvar,
}

/// The right to change the log's files, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn<'a>(&'a Lane);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.is_taken = false;
        inner.hangs = false;
        drop(inner);
        self.0.free.notify_one();
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn; none if whoever has it takes too long, and at once if that is known.
    pub(super) fn enter(&self) -> Option<Turn<'_>> {
        let begun = Instant::now();
        let mut inner = self.lock();
        while inner.is_taken {
            let left = HANG_TIME.saturating_sub(begun.elapsed());
            if left.is_zero() || inner.hangs {
                inner.hangs = true;
                return None;
            }
            (inner, _) =
                self.free.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner);
        }
        inner.is_taken = true;
        Some(Turn(self))
    }

    /// The turn, if nobody has it.
    pub(super) fn enter_at_once(&self) -> Option<Turn<'_>> {
        let mut inner = self.lock();
        let is_free = !std::mem::replace(&mut inner.is_taken, true);
        is_free.then(|| Turn(self))
    }

    /// Waits for the turn, however long that takes.
    pub(super) fn wait(&self) -> Turn<'_> {
        let inner = self.lock();
        let mut inner = self
            .free
            .wait_while(inner, |inner| inner.is_taken)
            .unwrap_or_else(PoisonError::into_inner);
        inner.is_taken = true;
        Turn(self)
    }

    /// Whoever has the turn, if anybody, takes too long: nobody waits for it any more.
    pub(super) fn hangs(&self) {
        let mut inner = self.lock();
        inner.hangs = inner.is_taken;
        drop(inner);
        self.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_what_hangs_and_the_next_one_has_the_turn_behind_it() {
        let lane = Lane::default();
        let turn = lane.enter().unwrap();
        assert!(lane.enter().is_none(), "it takes too long");
        let begun = Instant::now();
        (0..1000).for_each(|_| assert!(lane.enter().is_none()));
        assert!(begun.elapsed() < HANG_TIME * 100, "at once, by now");
        std::thread::scope(|scope| {
            let patient = scope.spawn(|| drop(lane.wait()));
            drop(turn);
            patient.join().unwrap();
        });
        drop(lane.enter().unwrap());
        // Told by who waited elsewhere.
        lane.hangs();
        let turn = lane.enter().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lane.enter().is_none());
            lane.hangs();
            assert!(waiting.join().unwrap());
        });
        drop(turn);
    }
}
