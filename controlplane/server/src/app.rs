//! What every request shares: the catalogue, the CA, and who to wake when something changes.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farshore_api::limits;
use farshore_api::node::NodeLife;
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::admission::Holders;
use crate::ca::Ca;
use crate::db::{Actor, Db};
use crate::domain::liveness::{self, Liveness, Output, StillHeard};
use crate::error::ControlError;
use crate::limits::{Buckets, Failures};
use crate::providers::confine::Confinement;
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
    /// The same in monotonic time, which leases are counted in.
    pub started: std::time::Instant,
    /// Which nodes live.
    pub liveness: Mutex<Liveness>,
    /// What became of nodes and is not written down yet; each node is in it once at most.
    pub lives_to_note: Mutex<Vec<Output>>,
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
    /// How they are confined.
    pub confinement: Confinement,
}

impl App {
    /// What failed-over machines run on; the first call finds it out, which may take seconds.
    ///
    /// # Cancel safety
    /// Safe: the next call begins anew.
    pub async fn accelerator(&self) -> Accelerator {
        let choose = || accelerator::choose(&self.settings, &self.confinement);
        *self.accelerator.get_or_init(choose).await
    }

    /// Takes in what says whether a node lives.
    ///
    /// # Errors
    /// `StillHeard` if a person gives up a node that speaks for itself.
    pub fn tell_liveness(&self, input: &liveness::Input<'_>) -> Result<Vec<Output>, StillHeard> {
        let mut liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::new();
        liveness.step(self.started.elapsed(), input, &mut out)?;
        Ok(out)
    }

    /// A node proved that it is itself, with whatever call.
    pub fn hear(&self, node: Uuid) {
        self.tell_or_keep(&liveness::Input::Heard(node));
    }

    /// An agent said how far its volumes are under their nodes.
    pub fn vouch(&self, told: &[liveness::Told]) {
        for told in told {
            self.tell_or_keep(&liveness::Input::Told(*told));
        }
    }

    /// What comes of a word is written down by the loop that places, so that words wait for nothing.
    fn tell_or_keep(&self, input: &liveness::Input<'_>) {
        // Only a person's word can be refused.
        let out = self.tell_liveness(input).unwrap_or_default();
        if !out.is_empty() {
            let mut kept = self.lives_to_note.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(out);
        }
    }

    /// What became of nodes since the last call, to be written down.
    #[must_use]
    pub fn take_lives_to_note(&self) -> Vec<Output> {
        let mut kept = self.lives_to_note.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *kept)
    }

    /// Whether a node lives.
    #[must_use]
    pub fn life(&self, node: Uuid) -> NodeLife {
        let liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        liveness.life(self.started.elapsed(), node)
    }

    /// How long a node has not spoken for itself.
    #[must_use]
    pub fn own_silence(&self, node: Uuid) -> Duration {
        let liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        liveness.own_silence(self.started.elapsed(), node)
    }

    /// Writes down what became of nodes.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn note_liveness(&self, outputs: &[Output]) -> Result<(), ControlError> {
        for output in outputs {
            let silence = |silent: &Duration| format!("not heard for {} s", silent.as_secs());
            let (node, action, detail) = match output {
                Output::Void { gap } => {
                    warn!(gap_s = gap.as_secs_f64(), "did not run; nobody's silence counts");
                    continue;
                }
                // Written down with whoever said so.
                Output::Lost { by_person: true, .. } => continue,
                Output::Lost { node, silent, by_person: false } => {
                    (node, "node.lost", format!("{}; its volumes move", silence(silent)))
                }
                Output::Asked { node, silent, is_vouched_for: true } => (
                    node,
                    "node.asked",
                    format!(
                        "{} itself, though agents say that they get on under it: its volumes stay \
                         until it is heard or `farshore node lost {node} --yes` says that it is gone; \
                         see why it does not reach the control plane",
                        silence(silent)
                    ),
                ),
                Output::Asked { node, silent, is_vouched_for: false } => (
                    node,
                    "node.asked",
                    format!(
                        "{}, as others are: its volumes stay until it is heard or `farshore node \
                         lost {node} --yes` says that it is gone",
                        silence(silent)
                    ),
                ),
                Output::Back { node } => (node, "node.back", "heard again".into()),
            };
            warn!(%node, action, detail, "node");
            self.db.note(Actor::Control, action, format!("node/{node}"), &detail).await?;
        }
        Ok(())
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

/// How long a wake-up waits for others like it.
const GATHER: Duration = Duration::from_millis(500);

/// Wakes those who wait. The numbers only say that something happened; what happened is read from
/// the catalogue, so that a missed wake-up costs a wait and never a change.
#[derive(Debug)]
pub struct Changes {
    assignments: watch::Sender<u64>,
    points: watch::Sender<u64>,
    failovers: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    /// A wake-up of those who wait for assignments is on its way.
    is_gathering: Arc<AtomicBool>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            assignments: watch::Sender::new(0),
            points: watch::Sender::new(0),
            failovers: watch::Sender::new(0),
            stop: watch::Sender::new(false),
            is_gathering: Arc::default(),
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

    /// Wakes everybody who waits for assignments within [`GATHER`], once for all that is told in that time: a
    /// wake-up for each of many that change at once would cost the square of their number. Needs a runtime.
    pub fn wake_soon(&self) {
        if self.is_gathering.swap(true, Ordering::AcqRel) {
            return;
        }
        let (is_gathering, sender) = (Arc::clone(&self.is_gathering), self.assignments.clone());
        tokio::spawn(async move {
            tokio::time::sleep(GATHER).await;
            // First: whoever is woken does not see what is told from now on.
            is_gathering.store(false, Ordering::Release);
            sender.send_modify(|number| *number = number.wrapping_add(1));
        });
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

    #[tokio::test(start_paused = true)]
    async fn what_is_told_at_once_wakes_once_and_what_comes_later_again() {
        let changes = Changes::default();
        let mut waits = changes.listen(Topic::Assignments);
        for _round in 0..2 {
            let before = *waits.borrow_and_update();
            for _renewal in 0..1_000 {
                changes.wake_soon();
            }
            assert!(!waits.has_changed().unwrap(), "it waits for more");
            tokio::time::timeout(GATHER * 2, waits.changed()).await.unwrap().unwrap();
            tokio::time::sleep(GATHER * 4).await;
            assert_eq!(*waits.borrow_and_update(), before + 1);
        }
    }

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
