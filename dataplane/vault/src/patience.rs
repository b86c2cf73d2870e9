//! Waiting for a store that is away: a disk that is served from a vault must not break because the store
//! does not answer for a while.

use crate::error::VaultError;
use crate::limits::{PATIENCE_BACKOFF_MAX, PATIENCE_BACKOFF_MIN};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How the reads of a view fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supply {
    /// The store answers, as far as it was asked.
    Well,
    /// Reads wait for the store.
    Waiting {
        /// Since when.
        since: SystemTime,
        /// What the last attempt said.
        reason: String,
    },
    /// A read was given up, and none has succeeded since.
    Failed {
        /// Since when reads had waited.
        since: SystemTime,
        /// What the last attempt said.
        reason: String,
    },
}

/// How time passes for who waits.
pub trait Timer: fmt::Debug + Send + Sync {
    /// Time since some moment; it only grows.
    fn now(&self) -> Duration;

    /// Ready after so long.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The runtime's own time.
#[derive(Debug)]
struct RuntimeTimer {
    begun: Instant,
}

impl Timer for RuntimeTimer {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(wait).boxed()
    }
}

/// Tries again while the store is away, up to a limit, and tells how it stands.
///
/// Only what trying again can mend is waited for: what is damaged or missing is an error at once.
#[derive(Debug, Clone)]
pub struct Patience(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: Duration,
    timer: Box<dyn Timer>,
    state: Mutex<State>,
    supply: watch::Sender<Supply>,
    is_over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Reads that wait now.
    waiting: usize,
    since: Option<SystemTime>,
    has_failed: bool,
    reason: String,
}

impl Patience {
    /// Each read waits up to `max`.
    #[must_use]
    pub fn new(max: Duration) -> Self {
        Self::timed_by(max, RuntimeTimer { begun: Instant::now() })
    }

    /// The same, by a clock of the caller's own.
    #[must_use]
    pub fn timed_by(max: Duration, timer: impl Timer + 'static) -> Self {
        let (supply, is_over) = (watch::Sender::new(Supply::Well), watch::Sender::new(false));
        let (timer, state) = (Box::new(timer), Mutex::default());
        Self(Arc::new(Inner { max, timer, state, supply, is_over }))
    }

    /// How long a read waits at most.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.0.max
    }

    /// How reads fare, and each change of it.
    #[must_use]
    pub fn supply(&self) -> watch::Receiver<Supply> {
        self.0.supply.subscribe()
    }

    /// From now on nothing is waited for; what waits fails with what kept it waiting.
    pub fn end(&self) {
        self.0.is_over.send_replace(true);
    }

    /// Does `attempt` until it succeeds, fails for good, or the limit is reached.
    ///
    /// # Cancel safety
    /// As the attempt's.
    pub(crate) async fn outlast<T, F>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, VaultError>
    where
        F: Future<Output = Result<T, VaultError>>,
    {
        let mut waiting: Option<Waiting<'_>> = None;
        let mut is_over = self.0.is_over.subscribe();
        let mut pause = PATIENCE_BACKOFF_MIN;
        loop {
            let error = match attempt().await {
                Ok(found) => {
                    self.0.succeeded();
                    return Ok(found);
                }
                Err(error) if error.is_unavailable() => error,
                Err(error) => return Err(error),
            };
            let waited = waiting.get_or_insert_with(|| Waiting::new(&self.0));
            waited.say(&error);
            let waited_for = self.0.timer.now().saturating_sub(waited.begun);
            let left = self.0.max.saturating_sub(waited_for);
            if left.is_zero() || *is_over.borrow() {
                waited.give_up();
                return Err(error);
            }
            tokio::select! {
                () = self.0.timer.sleep(pause.min(left)) => {}
                // The sender lives as long as this borrows from it.
                _ = is_over.changed() => {}
            }
            pause = (pause * 2).min(PATIENCE_BACKOFF_MAX);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counts and texts for people.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self) {
        let mut state = self.state();
        if state.has_failed {
            state.has_failed = false;
            self.tell(&mut state);
        }
    }

    fn tell(&self, state: &mut State) {
        let reason = || state.reason.clone();
        let since = state.since.unwrap_or(SystemTime::UNIX_EPOCH);
        let supply = match (state.waiting, state.has_failed) {
            (1.., _) => Supply::Waiting { since, reason: reason() },
            (0, true) => Supply::Failed { since, reason: reason() },
            (0, false) => Supply::Well,
        };
        if supply == Supply::Well {
            state.since = None;
        }
        self.supply.send_if_modified(|known| {
            let is_new = *known != supply;
            *known = supply;
            is_new
        });
    }
}

/// One read that waits, until it is dropped.
struct Waiting<'p> {
    patience: &'p Inner,
    begun: Duration,
}

impl<'p> Waiting<'p> {
    fn new(patience: &'p Inner) -> Self {
        let mut state = patience.state();
        state.waiting += 1;
        state.since.get_or_insert_with(SystemTime::now);
        drop(state);
        Self { patience, begun: patience.timer.now() }
    }

    fn say(&self, error: &VaultError) {
        let mut state = self.patience.state();
        state.reason = error.to_string();
        self.patience.tell(&mut state);
    }

    fn give_up(&self) {
        self.patience.state().has_failed = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.patience.state();
        state.waiting -= 1;
        self.patience.tell(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ObjectName;
    use crate::store::StoreError;
    use std::cell::Cell;

    fn away() -> VaultError {
        StoreError::DirectoryGone { url: "file:///mnt/vault".to_owned(), path: "/mnt/vault".into() }
            .into()
    }

    fn gone() -> VaultError {
        let (url, object) = ("file:///v".to_owned(), ObjectName::vault().to_string());
        StoreError::NotFound { url, object }.into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_waited_for_and_told() {
        let patience = Patience::new(Duration::from_secs(600));
        let supply = patience.supply();
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let read = patience.outlast(|| {
            attempts.set(attempts.get() + 1);
            let is_away = begun.elapsed() < Duration::from_secs(300);
            if attempts.get() > 1 {
                assert!(matches!(*supply.borrow(), Supply::Waiting { .. }));
            }
            async move { if is_away { Err(away()) } else { Ok(7) } }
        });
        assert_eq!(read.await.unwrap(), 7);
        assert!(begun.elapsed() < Duration::from_secs(310), "{:?}", begun.elapsed());
        assert!(attempts.get() > 50, "it is asked for often: {}", attempts.get());
        assert_eq!(*supply.borrow(), Supply::Well);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_the_next_success_is_told() {
        let patience = Patience::new(Duration::from_secs(60));
        let begun = Instant::now();
        let error = patience.outlast(|| async { Err::<(), _>(away()) }).await.unwrap_err();
        assert!(error.is_unavailable());
        let waited = begun.elapsed();
        assert!(
            waited >= Duration::from_secs(60) && waited < Duration::from_secs(61),
            "{waited:?}"
        );
        let supply = patience.supply();
        let Supply::Failed { reason, .. } = supply.borrow().clone() else { panic!("it failed") };
        assert_eq!(reason, away().to_string());
        patience.outlast(|| async { Ok(()) }).await.unwrap();
        assert_eq!(*supply.borrow(), Supply::Well);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_cannot_mend_fails_at_once_and_an_end_is_an_end() {
        let patience = Patience::new(Duration::from_secs(60));
        let begun = Instant::now();
        patience.outlast(|| async { Err::<(), _>(gone()) }).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(*patience.supply().borrow(), Supply::Well, "the store answers");
        let waiting = tokio::spawn({
            let patience = patience.clone();
            async move { patience.outlast(|| async { Err::<(), _>(away()) }).await }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        patience.end();
        waiting.await.unwrap().unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(11));
        // A read that is dropped waits no more.
        let patience = Patience::new(Duration::from_secs(60));
        let read = patience.outlast(|| async { Err::<(), _>(away()) });
        assert!(tokio::time::timeout(Duration::from_secs(5), read).await.is_err());
        assert_eq!(*patience.supply().borrow(), Supply::Well);
    }
}
