//! Runs one task per assigned volume, and everything that they share.

use crate::clock::Clock;
use crate::control::Assigned;
use crate::volume::{self, Env, Facts};
use farshore_api::agent::{AgentVolume, AgentVolumeReport};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Most volumes of one agent; more are not begun.
pub const VOLUMES_MAX: usize = 256;
/// Pause before a volume's task that ended by a bug is begun again.
const AGAIN_PAUSE: Duration = Duration::from_secs(2);

struct Running {
    assigned: watch::Sender<AgentVolume>,
    facts: Arc<Facts>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// All volumes of the agent.
pub struct Service {
    env: Arc<Env>,
    volumes: Mutex<BTreeMap<Uuid, Running>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Service").field("env", &self.env).finish_non_exhaustive()
    }
}

impl Service {
    /// A service without volumes.
    #[must_use]
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new(Self { env: Arc::new(env), volumes: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Running>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.env.clock
    }

    /// Does what was assigned: begins new volumes, tells the others, stops those that are gone.
    pub async fn follow(self: Arc<Self>, mut assigned: watch::Receiver<Option<Assigned>>) {
        loop {
            let now = assigned.borrow_and_update().clone();
            if let Some(now) = now {
                self.apply(&now.volumes).await;
            }
            if assigned.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes the running volumes those of the list.
    pub async fn apply(&self, listed: &[AgentVolume]) {
        let gone: Vec<Uuid> = {
            let volumes = self.lock();
            let is_listed = |id: &Uuid| listed.iter().any(|volume| volume.volume == *id);
            volumes.keys().filter(|id| !is_listed(id)).copied().collect()
        };
        for id in gone {
            let running = self.lock().remove(&id);
            if let Some(running) = running {
                tracing::info!(volume = %id, "not assigned any more: stopped");
                halt(running).await;
            }
        }
        for volume in listed {
            let mut again = None;
            {
                let mut volumes = self.lock();
                match volumes.get(&volume.volume) {
                    // Another disk or another capture is another volume's life.
                    Some(running) if is_other(&running.assigned.borrow(), volume) => {
                        again = volumes.remove(&volume.volume);
                    }
                    Some(running) => {
                        running.assigned.send_if_modified(|old| {
                            let is_new = old != volume;
                            old.clone_from(volume);
                            is_new
                        });
                        continue;
                    }
                    None => {}
                }
            }
            if let Some(running) = again {
                halt(running).await;
            }
            self.begin(volume);
        }
    }

    fn begin(&self, volume: &AgentVolume) {
        let mut volumes = self.lock();
        if volumes.len() >= VOLUMES_MAX {
            tracing::error!(volume = %volume.volume, VOLUMES_MAX, "too many volumes: not begun");
            return;
        }
        let (assigned, receiver) = watch::channel(volume.clone());
        let (stop, stopped) = watch::channel(false);
        let facts = Arc::new(Facts::default());
        let task = tokio::spawn(keep_running(
            Arc::clone(&self.env),
            receiver,
            Arc::clone(&facts),
            stopped,
        ));
        tracing::info!(volume = %volume.volume, disk = volume.disk, "begun");
        volumes.insert(volume.volume, Running { assigned, facts, stop, task });
    }

    /// The reports of all volumes.
    #[must_use]
    pub fn reports(&self) -> Vec<AgentVolumeReport> {
        let volumes = self.lock();
        let report =
            |running: &Running| running.facts.report(&running.assigned.borrow(), self.env.clock);
        volumes.values().map(report).collect()
    }

    /// Stops every volume in order.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut *self.lock());
        for running in all.values() {
            running.stop.send_replace(true);
        }
        for running in all.into_values() {
            halt(running).await;
        }
    }
}

fn is_other(old: &AgentVolume, new: &AgentVolume) -> bool {
    old.disk != new.disk || old.capture != new.capture
}

async fn halt(running: Running) {
    running.stop.send_replace(true);
    if let Err(error) = running.task.await {
        tracing::error!(%error, "a volume's task ended by a bug");
    }
}

/// Runs a volume; if its task ends by a bug, begins it again.
async fn keep_running(
    env: Arc<Env>,
    assigned: watch::Receiver<AgentVolume>,
    facts: Arc<Facts>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let id = assigned.borrow().volume;
        let run = volume::run(Arc::clone(&env), assigned.clone(), Arc::clone(&facts), stop.clone());
        let Err(error) = tokio::spawn(run).await else { return };
        tracing::error!(volume = %id, %error, "a volume's task ended by a bug: begun again");
        tokio::select! {
            () = tokio::time::sleep(AGAIN_PAUSE) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
