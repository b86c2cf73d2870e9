//! Runs one task per assigned volume, and everything that they share.

use crate::clock::Clock;
use crate::control::{Assigned, KnownVolume, Word, port_holder};
use crate::volume::{self, Env, Facts};
use farshore_api::agent::{AgentVolume, AgentVolumeReport, VolumeState};
use farshore_api::machine::Capture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

/// Most volumes of one agent; more are not begun.
pub const VOLUMES_MAX: usize = 256;
/// Pause before a volume's task that ended by a bug is begun again.
const AGAIN_PAUSE: Duration = Duration::from_secs(2);
/// How long an orderly stop waits for all volumes: one whose disk hangs may never end.
#[cfg(not(test))]
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
#[cfg(test)]
const STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks at volumes that are to end.
const ENDED_PAUSE: Duration = Duration::from_millis(500);

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
    /// Volumes that ended on the control plane's word; they are not begun again.
    ended: Mutex<BTreeSet<Uuid>>,
    /// Volumes of which it was told that another has their port.
    held_back: Mutex<BTreeSet<Uuid>>,
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
        Arc::new(Self {
            env: Arc::new(env),
            volumes: Mutex::default(),
            ended: Mutex::default(),
            held_back: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Running>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.env.clock
    }

    /// Does what was assigned: begins new volumes, tells the others, ends those that are to end.
    pub async fn follow(self: Arc<Self>, mut assigned: watch::Receiver<Option<Assigned>>) {
        loop {
            let now = assigned.borrow_and_update().clone();
            if let Some(now) = now {
                self.apply(&now.volumes).await;
            }
            tokio::select! {
                changed = assigned.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                // What is to end does so when its last client leaves.
                () = tokio::time::sleep(ENDED_PAUSE) => {}
            }
        }
    }

    /// Makes the running volumes those of the list, as far as their clients let it.
    pub async fn apply(&self, known: &[KnownVolume]) {
        let told = |id: &Uuid| known.iter().find(|known| known.volume.volume == *id);
        let over: Vec<Uuid> = {
            let volumes = self.lock();
            for (id, running) in &*volumes {
                if running.hear(told(id)) {
                    running.stop.send_replace(true);
                }
            }
            // One that hangs on its way is looked at again: the others do not wait for it.
            let is_over = |running: &Running| running.task.is_finished();
            volumes.iter().filter(|(_, running)| is_over(running)).map(|(id, _)| *id).collect()
        };
        for id in over {
            let running = self.lock().remove(&id);
            if let Some(running) = running {
                halt(running).await;
                tracing::info!(volume = %id, "ended");
            }
            if told(&id).is_some_and(|known| known.word == Word::Detached) {
                self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            }
        }
        for wanted @ KnownVolume { volume, word } in known {
            let has_ended = {
                let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
                if *word != Word::Detached {
                    ended.remove(&volume.volume);
                }
                ended.contains(&volume.volume)
            };
            let is_running = self.lock().contains_key(&volume.volume);
            if is_running || has_ended {
                continue;
            }
            let holder = port_holder(known, wanted, |id| self.lock().contains_key(id));
            let mut held_back = self.held_back.lock().unwrap_or_else(PoisonError::into_inner);
            match holder {
                None => {
                    held_back.remove(&volume.volume);
                    self.begin(volume, *word);
                }
                Some(other) if held_back.insert(volume.volume) => tracing::warn!(
                    volume = %volume.volume, machine = volume.machine, port = volume.nbd_port,
                    "not served: the port is machine {}'s; unprotect one of both", other.machine
                ),
                Some(_) => {}
            }
        }
    }

    /// Of these volumes, which are to end, those that are not served (any more).
    #[must_use]
    pub fn ended(&self, detached: &[Uuid]) -> Vec<Uuid> {
        let volumes = self.lock();
        detached.iter().filter(|id| !volumes.contains_key(id)).copied().collect()
    }

    fn begin(&self, volume: &AgentVolume, word: Word) {
        let mut volumes = self.lock();
        if volumes.len() >= VOLUMES_MAX {
            tracing::error!(volume = %volume.volume, VOLUMES_MAX, "too many volumes: not begun");
            return;
        }
        let (assigned, receiver) = watch::channel(volume.clone());
        let (stop, stopped) = watch::channel(false);
        let facts = Arc::new(Facts::default());
        facts.hear(word);
        let task = tokio::spawn(keep_running(
            Arc::clone(&self.env),
            receiver,
            Arc::clone(&facts),
            stopped,
        ));
        tracing::info!(volume = %volume.volume, disk = volume.disk, "begun");
        volumes.insert(volume.volume, Running { assigned, facts, stop, task });
    }

    /// The reports of all volumes, with what is wrong with the agent for all of them.
    #[must_use]
    pub fn reports(&self, trouble: Option<&str>) -> Vec<AgentVolumeReport> {
        let volumes = self.lock();
        let report = |running: &Running| {
            let report = running.facts.report(&running.assigned.borrow(), self.env.clock);
            with_trouble(report, trouble)
        };
        volumes.values().map(report).collect()
    }

    /// Stops every volume in order, but for those that hang.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut *self.lock());
        for running in all.values() {
            running.stop.send_replace(true);
        }
        let until = Instant::now() + STOP_TIME_MAX;
        for (id, running) in all {
            if tokio::time::timeout_at(until, halt(running)).await.is_err() {
                tracing::error!(volume = %id, "it hangs: not stopped in order");
            }
        }
    }
}

impl Running {
    /// Takes in the last word; whether the volume ends at once. A served disk ends when its last client
    /// has left, and so does one that is to be another disk or captured in another way from now on.
    fn hear(&self, told: Option<&KnownVolume>) -> bool {
        let served = self.assigned.borrow().capture == Capture::Nbd;
        match told {
            Some(known) if known.word != Word::Detached && !self.is_other(&known.volume) => {
                self.facts.hear(known.word);
                self.assigned.send_if_modified(|old| {
                    let is_new = *old != known.volume;
                    old.clone_from(&known.volume);
                    is_new
                });
                false
            }
            _ => {
                self.facts.hear(Word::Detached);
                !served
            }
        }
    }

    fn is_other(&self, new: &AgentVolume) -> bool {
        let old = self.assigned.borrow();
        old.disk != new.disk || old.capture != new.capture
    }
}

/// A volume of an agent in trouble is not shown as protected.
fn with_trouble(mut report: AgentVolumeReport, trouble: Option<&str>) -> AgentVolumeReport {
    if let (Some(trouble), VolumeState::Protected) = (trouble, report.state) {
        report.state = VolumeState::Degraded;
        trouble.clone_into(&mut report.detail);
    }
    report
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
