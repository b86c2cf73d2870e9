//! One volume of the agent: opens what it left behind, captures, sends, reports.
//!
//! The stream (log and session) is opened once and goes on without its disk: what is in the log
//! reaches the vault even if the disk is gone. The capture is begun again whenever the disk comes back.

mod capture;
mod facts;
mod growth;
mod open;
mod others;
mod sampling;

pub use facts::Facts;
pub use open::{OpenError, Opening};

use crate::capture::Steps;
use crate::capture::sample::Pace;
use crate::clock::Clock;
use crate::disk::Allowed;
use crate::files::Files;
use crate::mark;
use crate::points::Points;
use crate::rt::Reads;
use crate::session::{Dial, Route, Session, Standing, Target};
use crate::stream::Stream;
use farshore_api::agent::{AgentVolume, PointReport};
use farshore_api::machine::Capture;
use farshore_api::point::PointKind;
use farshore_proto::mark::Mark;
use farshore_proto::{Epoch, Seq};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Between two attempts to open what could not be opened.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// So often it is tried to open a volume, or the intents of its disk, before the disk is served without.
const TRIES: u32 = 3;
/// Between two attempts to note what could not be noted.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);
/// How long an orderly stop waits for the node to have everything.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(3);

/// What all volumes of an agent share.
pub struct Env {
    /// The agent's directory.
    pub data: PathBuf,
    /// The disks that may be captured.
    pub allowed: Allowed,
    /// The file system of what is kept of volumes there.
    pub files: Arc<dyn Files>,
    /// Reads disks.
    pub reads: Reads,
    /// Opens transports to nodes.
    pub dial: Arc<dyn Dial>,
    /// Points for the control plane.
    pub points: Arc<Points>,
    /// The agent's clock.
    pub clock: Clock,
    /// Bytes that the log of one volume may have, if the file system has room for them.
    pub log_bytes_max: u64,
    /// What the samplers may read; none if disks are not sampled.
    pub pace: Option<Pace>,
    /// Told of every step of a write; for tests.
    pub steps: Steps,
}

impl std::fmt::Debug for Env {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Env").field("data", &self.data).finish_non_exhaustive()
    }
}

/// Runs a volume until `stop` turns true, then stops it in order.
pub async fn run(
    env: Arc<Env>,
    assigned: watch::Receiver<AgentVolume>,
    facts: Arc<Facts>,
    mut stop: watch::Receiver<bool>,
) {
    let mut tries = 0;
    let opening = loop {
        let (env, volume) = (Arc::clone(&env), assigned.borrow().clone());
        tries += 1;
        // A directory that takes nothing keeps no guest waiting; a volume without one has no need to begin.
        let is_forced = tries >= TRIES && volume.capture == Capture::Nbd;
        let opened = move || Opening::open(&env, &volume, is_forced);
        let opened = tokio::task::spawn_blocking(opened).await;
        match opened.map_err(|error| OpenError::Task { source: error }).flatten() {
            Ok(opening) => break opening,
            Err(error) => facts.fail(error.to_string()),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if facts.is_detached() {
            return;
        }
    };
    facts.opened(Arc::clone(&opening.stream));
    let settling = Tasks(vec![tokio::spawn(settle(Arc::clone(&opening.stream)))]);
    let sizes = watch::Sender::new(opening.stream.state.get().size_bytes);
    let restarts = opening.stream.log.restarts();
    let marks = opening.marks.iter().map(|(_, mark)| (mark.point.into(), restarts));
    let marks_set = mark::Set::new(Mutex::new(marks.collect()));
    let mut running =
        Running { env, assigned, facts, stop, opening, sizes, session: None, tries: 0, marks_set };
    running.start_session();
    running.capture_until_stopped().await;
    drop(settling);
    running.drain().await;
}

struct Running {
    env: Arc<Env>,
    assigned: watch::Receiver<AgentVolume>,
    facts: Arc<Facts>,
    stop: watch::Receiver<bool>,
    opening: Opening,
    /// The size of the disk that the node is told.
    sizes: watch::Sender<u64>,
    session: Option<Tasks>,
    /// Attempts to open the intents of the disk.
    tries: u32,
    /// The marks that were asked for and are in the log.
    marks_set: mark::Set,
}

/// Tries again what could not be noted when the volume was opened, until dropped.
async fn settle(stream: Arc<Stream>) {
    loop {
        tokio::time::sleep(SETTLE_PAUSE).await;
        let stream = Arc::clone(&stream);
        let settled = tokio::task::spawn_blocking(move || match stream.log.held() {
            Some(_) => stream.settle(),
            None => Ok(stream.progress.note()?),
        });
        if let Ok(Err(error)) = settled.await {
            tracing::debug!(%error, "the agent's directory still takes nothing");
        }
    }
}

/// Tasks that end with this.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Running {
    /// Starts the session, once the size of the disk is known and unless it runs already.
    fn start_session(&mut self) {
        let size_bytes = self.opening.stream.state.get().size_bytes;
        self.sizes.send_if_modified(|told| {
            let is_new = *told < size_bytes;
            *told = size_bytes.max(*told);
            is_new
        });
        if size_bytes == 0 || self.session.is_some() {
            return;
        }
        // A volume that was given another size waits until its disk is seen to have it.
        let followed = follow_route(self.assigned.clone(), self.sizes.subscribe());
        let Some((route, follow)) = followed else { return };
        let session = Session {
            stream: Arc::clone(&self.opening.stream),
            opened: self.opening.opened,
            marks: self.opening.marks.clone(),
            dial: Arc::clone(&self.env.dial),
            route,
            standing: self.facts.standing_sender(),
            clock: self.env.clock,
            on_point: on_point(&self.env.points, self.opening.stream.volume.into()),
        };
        self.session = Some(Tasks(vec![tokio::spawn(follow), tokio::spawn(session.run())]));
    }

    /// At an orderly stop: gives the node a moment to take what is in the log.
    async fn drain(&mut self) {
        let last = self.opening.stream.log.last();
        let mut standing = self.facts.standing();
        let is_done = |standing: &Option<Standing>| {
            standing.as_ref().is_some_and(|standing| {
                let is_up = matches!(standing.phase, farshore_engine::source::Phase::Streaming);
                !is_up || standing.journaled >= last
            })
        };
        let waiting = standing.wait_for(is_done);
        let _ = tokio::time::timeout(DRAIN_TIME_MAX, waiting).await;
        self.session = None;
    }
}

/// The route in an assignment, and the task that keeps it current. None while the assignment is for a
/// size that the disk is not known to have.
fn follow_route(
    mut assigned: watch::Receiver<AgentVolume>,
    mut sizes: watch::Receiver<u64>,
) -> Option<(watch::Receiver<Route>, impl Future<Output = ()> + Send)> {
    let first = route_of(&assigned.borrow_and_update(), *sizes.borrow_and_update())?;
    let (sender, receiver) = watch::channel(first);
    let follow = async move {
        loop {
            tokio::select! {
                Ok(()) = assigned.changed() => {}
                Ok(()) = sizes.changed() => {}
                else => break,
            }
            let size_bytes = *sizes.borrow_and_update();
            let Some(route) = route_of(&assigned.borrow_and_update(), size_bytes) else {
                // It goes on as it was told before until the disk is looked at.
                continue;
            };
            sender.send_if_modified(|old| {
                let is_new = *old != route;
                *old = route;
                is_new
            });
        }
        // Whoever assigns is gone; the session goes on where it was sent last.
        sender.closed().await;
    };
    Some((receiver, follow))
}

fn route_of(volume: &AgentVolume, size_bytes: u64) -> Option<Route> {
    if volume.size_bytes.is_some_and(|granted| granted > size_bytes) {
        return None;
    }
    let target = Target {
        address: volume.node.address.clone(),
        server_name: volume.node.server_name.clone(),
        generation_min: volume.node.generation_min,
        volume: volume.volume.into(),
    };
    let mark_interval_ms = u32::try_from(volume.mark_interval_ms).unwrap_or(u32::MAX);
    Some(Route { target, epoch: Epoch(volume.epoch), size_bytes, mark_interval_ms })
}

fn on_point(points: &Arc<Points>, volume: uuid::Uuid) -> crate::session::OnPoint {
    let points = Arc::clone(points);
    Box::new(move |epoch: Epoch, seq: Seq, mark: Mark| {
        let kind = PointKind::of_word(mark.kind.word());
        let (point, time_unix_ms) = (mark.point.into(), mark.time_unix_ms);
        let unknown_blocks = mark.unknown_blocks;
        let (epoch, seq) = (epoch.0, seq.0);
        points.push(PointReport { point, volume, epoch, seq, kind, unknown_blocks, time_unix_ms });
    })
}

#[cfg(test)]
mod tests;
