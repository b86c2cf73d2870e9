//! What every request shares: the catalogue, the CA, and who to wake when something changes.

use std::future::Future;
use std::time::Duration;

use farshore_api::limits;
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use crate::admission::Holders;
use crate::ca::Ca;
use crate::clock;
use crate::db::Db;
use crate::error::ControlError;
use crate::limits::{Buckets, Failures};
use crate::providers::qemu::accelerator::{self, Accelerator};
use crate::settings::Settings;

/// The control plane's shared state.
#[derive(Debug)]
pub struct App {
    /// The catalogue.
    pub db: Db,
    /// The certificate authority.
    pub ca: Ca,
    /// What the operator tuned.
    pub settings: Settings,
    /// Hash of the operator's token.
    pub operator_token: blake3::Hash,
    /// When this process began to listen.
    pub started_ms: u64,
    /// Wakes whoever waits for a change.
    pub changes: Changes,
    /// Who was heard with which certificate.
    pub holders: Holders,
    /// Failed enrolments, by host.
    pub enrolments: Failures,
    /// What each agent and node may still ask for.
    pub buckets: Buckets,
    /// What failed-over machines run on, once that is known.
    pub accelerator: OnceCell<Accelerator>,
}

impl App {
    /// What failed-over machines run on; the first call finds it out, which may take seconds.
    ///
    /// # Cancel safety
    /// Safe: the next call begins anew.
    pub async fn accelerator(&self) -> Accelerator {
        *self.accelerator.get_or_init(|| accelerator::choose(&self.settings)).await
    }

    /// Agents and nodes heard since this time count as healthy.
    #[must_use]
    pub fn healthy_since_ms(&self) -> u64 {
        clock::now_ms().saturating_sub(limits::SILENT_AFTER_SECONDS * 1000)
    }
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The assignments of agents and nodes.
    Assignments,
    /// Recovery points.
    Points,
    /// Failovers.
    Failovers,
}

/// Wakes those who wait. The numbers only say that something happened; what happened is read from
/// the catalogue, so that a missed wake-up costs a wait and never a change.
#[derive(Debug)]
pub struct Changes {
    assignments: watch::Sender<u64>,
    points: watch::Sender<u64>,
    failovers: watch::Sender<u64>,
    stop: watch::Sender<bool>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            assignments: watch::Sender::new(0),
            points: watch::Sender::new(0),
            failovers: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        }
    }
}

impl Changes {
    fn sender(&self, topic: Topic) -> &watch::Sender<u64> {
        match topic {
            Topic::Assignments => &self.assignments,
            Topic::Points => &self.points,
            Topic::Failovers => &self.failovers,
        }
    }

    /// Wakes everybody who waits for `topic`.
    pub fn wake(&self, topic: Topic) {
        self.sender(topic).send_modify(|number| *number = number.wrapping_add(1));
    }

    /// A receiver that is told of every later wake-up of `topic`.
    #[must_use]
    pub fn listen(&self, topic: Topic) -> watch::Receiver<u64> {
        self.sender(topic).subscribe()
    }

    /// Ends all waits and everything else that runs.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Becomes true when everything is to end.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Looks again at every wake-up of `topic` until `look` is content, `wait` is over or the
    /// process stops. The answer is what was seen last.
    ///
    /// # Errors
    /// Those of `look`.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn wait<T, Look, Seen>(
        &self,
        topic: Topic,
        wait: Duration,
        mut look: Look,
    ) -> Result<T, ControlError>
    where
        Look: FnMut() -> Seen,
        Seen: Future<Output = Result<(T, bool), ControlError>>,
    {
        let deadline = Instant::now() + wait.min(Duration::from_millis(limits::WAIT_MS_MAX));
        let mut stop = self.stopping();
        // Listening begins before the first look, so nothing falls between the two.
        let mut changes = self.listen(topic);
        loop {
            let (seen, is_content) = look().await?;
            if is_content || *stop.borrow() {
                return Ok(seen);
            }
            let is_over = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                _ = stop.wait_for(|stop| *stop) => true,
                () = tokio::time::sleep_until(deadline) => true,
            };
            if is_over {
                return look().await.map(|(seen, _)| seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_the_change_or_the_deadline() {
        let changes = Changes::default();
        let looks = AtomicU64::new(0);
        let look = || async {
            let count = looks.fetch_add(1, Ordering::Relaxed);
            if count == 0 {
                changes.wake(Topic::Points);
            }
            Ok((count, count == 1))
        };
        let wait = Duration::from_secs(60);
        assert_eq!(changes.wait(Topic::Points, wait, look).await.unwrap(), 1);
        let never = || async { Ok(((), false)) };
        changes.wait(Topic::Points, Duration::from_millis(10), never).await.unwrap();
        changes.stop();
        changes.wait(Topic::Points, wait, never).await.unwrap();
    }
}
