//! What is held by work on another thread until the log has what it brings, or nobody waits for that any more.
//!
//! The log may lie on a file system that hangs. What holds up a guest is let go then: whoever does that puts in
//! doubt what was to be logged, and the work, when it goes on, finds that it holds nothing any more. What it
//! appended by then lies in the log in front of all that came later, and is read again.

use crate::hrl::HANG_TIME;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What is held, while it is.
#[derive(Debug)]
pub(super) struct Underway<T> {
    held: Mutex<Option<T>>,
    logging: Notify,
}

impl<T> Underway<T> {
    pub(super) fn new(held: T) -> Self {
        Self { held: Mutex::new(Some(held)), logging: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes from here on waits for the log only.
    pub(super) fn begin_logging(&self) {
        self.logging.notify_one();
    }

    /// Ready when the log has taken too long.
    pub(super) async fn takes_too_long(&self) {
        self.logging.notified().await;
        tokio::time::sleep(HANG_TIME).await;
    }

    /// Ends it; none if somebody did before.
    pub(super) fn end(&self) -> Option<T> {
        self.lock().take()
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_none()
    }

    /// Does what counts only while it is held; none if it is not. Nothing that waits.
    pub(super) fn while_held<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let held = self.lock();
        held.is_some().then(work)
    }
}
