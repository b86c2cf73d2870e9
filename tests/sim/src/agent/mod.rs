//! A protected server: its disk, its agent, and what of both survives.
//!
//! The log, the intents, the state and the copy's progress are the agent's own code over simulated
//! files, the decisions are the engines'. What is driven here is what tokio tasks drive in production
//! (`agent/src/{volume,session,capture,mark}`), in the same order, each step an event of its own:
//! a kill or a power cut can come between any two, and, by a [`Doom`], inside one.
//!
//! What [`crate::run`] asks of it:
//!
//! ```text
//! Agent::new(machine: usize, disk: GuestDisk) -> Agent            // not running
//! agent.start(&mut World)         // reads its files, connects, copies, marks; is_running() from now on
//! agent.end()                     // killed: what is in memory is gone (the world has ended its life)
//! agent.cut_power(&mut rng)       // ended before: unsynced files and blocks are lost or torn
//! agent.handle(&mut World, Event)
//! agent.is_running() -> bool
//! agent.is_serving() -> bool      // the guest may send requests
//! agent.disk() -> &GuestDisk      agent.files() -> &Disk
//! agent.is_settled() -> bool      // joined, copied, nothing in doubt, all of the log committed
//! agent.last() -> Seq             agent.newest_mark() -> Option<Seq>   // of the log
//! agent.standing() -> String      // one line for the story and for "it did not converge"
//! agent.copied(number, &mut rng)  // another server with its disk and directory, and its name
//! agent.set_doom(Option<Doom>)    // it will end in the middle of something, now or at its next start
//! agent.was_cut() -> bool         // once: its last end was a doom with a power cut
//! agent.stop(&mut World)          // the orderly stop: it exits when it is done
//! ```
//!
//! It starts with `world.control.told(Process::Agent(number))` (what it was told last it keeps over
//! a restart), asks for news with `world.tell_soon(process)`, and tells the oracle: `log_opened`,
//! `appended`, `sent`, `restarted`, `marked`, `trimmed`, and `held` for the length of its log. An agent
//! that ends by itself calls `world.exit(process, why)` and does nothing any more.

mod capture;
mod copy;
mod files;
mod gate;
mod marks;
mod session;
#[cfg(test)]
mod tests;
mod volume;

pub use files::Doom;
pub(crate) use session::MARK_INTERVAL_MS;

use crate::control::Assignment;
use crate::disk::{Disk, GuestDisk, Snapshot};
use crate::guest::Request;
use crate::net::Arrival;
use crate::world::{self, Process, World};
use farshore_agent::stream::{Place, Stream};
use farshore_proto::Seq;
use files::{SimFiles, SimTime};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use volume::Volume;

/// What happens to an agent.
#[derive(Debug)]
pub enum Event {
    /// The control plane says who owns the volume.
    Assigned(Assignment),
    /// From the network.
    Net(Arrival),
    /// The guest sends a request; [`crate::world::World::answer_guest`] answers it.
    Guest {
        /// Its number.
        id: u64,
        /// What it asks.
        request: Request,
    },
    /// Its own next step.
    Own(Step),
}

/// A step of the agent's own: what one of its tasks does next.
#[derive(Debug)]
pub struct Step(Own);

#[derive(Debug)]
enum Own {
    /// Open log and state.
    Open,
    /// Open the intents and serve the disk.
    Serve,
    /// Time passes for whoever looks now and then.
    Look,
    Session(session::Own),
    Capture(capture::Own),
    Copy(copy::Own),
    Mark(marks::Own),
}

/// Directory of the volume on the agent's disk.
const DIR: &str = "/agent";
/// Between two attempts to open what could not be opened.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what nobody tells of.
const LOOK: Duration = Duration::from_millis(300);
/// What a step takes, in microseconds.
const STEP_US: Range<u64> = 5..400;
/// Bytes that a log may have: some hold less than the disk.
const LOG_BYTES: [u64; 4] = [400 << 10, 600 << 10, 1 << 20, 2 << 20];

/// A protected server.
#[derive(Debug)]
pub struct Agent {
    /// Its process, and whose log the oracle knows.
    number: usize,
    /// The server that it is, or was copied from.
    machine: usize,
    disk: GuestDisk,
    files: SimFiles,
    time: SimTime,
    /// Drawn at the first start.
    log_bytes_max: u64,
    /// Where the log went on when a doom came before anybody could tell; opening finds out.
    untold_restart: Option<Seq>,
    was_cut: bool,
    /// Its disks as they were when somebody took a snapshot of the server, and what nobody had told of them.
    snapshot: Option<(GuestDisk, Snapshot, Option<Seq>)>,
    assigned: Option<Assignment>,
    is_running: bool,
    volume: Option<Volume>,
}

/// What a step works with besides the volume.
struct Ctx<'w> {
    world: &'w mut World,
    disk: &'w mut GuestDisk,
    untold_restart: &'w mut Option<Seq>,
    number: usize,
    machine: usize,
}

impl Ctx<'_> {
    fn process(&self) -> Process {
        Process::Agent(self.number)
    }

    fn after(&mut self, wait: Duration, own: Own) {
        let event = world::Event::Agent(self.number, Event::Own(Step(own)));
        self.world.after(wait, event);
    }

    /// The next step of something under way.
    fn soon(&mut self, own: Own) {
        let wait = self.world.us(STEP_US);
        self.after(wait, own);
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        let process = self.process();
        self.world.tell(process, text);
    }
}

impl Agent {
    /// A server that has not run its agent yet.
    #[must_use]
    pub fn new(machine: usize, disk: GuestDisk) -> Self {
        Self {
            number: machine,
            machine,
            disk,
            files: SimFiles::default(),
            time: SimTime::default(),
            log_bytes_max: 0,
            untold_restart: None,
            was_cut: false,
            snapshot: None,
            assigned: None,
            is_running: false,
            volume: None,
        }
    }

    /// A copy of the server as after a power cut now, its agent's directory included, whose agent has not
    /// started; none while the process is ending, or before there is anything to copy.
    #[must_use]
    pub fn copied(&self, number: usize, rng: &mut fastrand::Rng) -> Option<Self> {
        if self.assigned.is_none() || self.files.blown().is_some() {
            return None;
        }
        let mut copy = Self {
            number,
            machine: self.machine,
            log_bytes_max: self.log_bytes_max,
            untold_restart: self.untold_restart,
            assigned: self.assigned,
            ..Self::new(self.machine, self.disk.clone())
        };
        copy.files.disk.go_back(&self.files.disk.snapshot());
        copy.cut_power(rng);
        Some(copy)
    }

    /// The server that it is, or was copied from.
    #[must_use]
    pub fn machine(&self) -> usize {
        self.machine
    }

    fn process(&self) -> Process {
        Process::Agent(self.number)
    }

    /// Starts the agent.
    pub fn start(&mut self, world: &mut World) {
        self.time.set(world.now());
        if self.log_bytes_max == 0 {
            self.log_bytes_max = LOG_BYTES[world.rng.usize(0..LOG_BYTES.len())];
        }
        self.is_running = true;
        let told = world.control.told(self.process());
        if let Some(assigned) = told.get(&self.machine).copied() {
            self.assigned = Some(assigned);
        }
        if self.assigned.is_some() {
            self.ctx(world).soon(Own::Open);
        }
    }

    fn ctx<'w>(&'w mut self, world: &'w mut World) -> Ctx<'w> {
        Ctx {
            world,
            disk: &mut self.disk,
            untold_restart: &mut self.untold_restart,
            number: self.number,
            machine: self.machine,
        }
    }

    /// The process has ended: what is in memory is gone.
    pub fn end(&mut self) {
        self.is_running = false;
        self.volume = None;
        if let Some(doom) = self.files.blown() {
            self.was_cut = doom.is_cut;
            self.files.set_doom(None);
        }
    }

    /// The power goes; the process has ended before.
    pub fn cut_power(&mut self, rng: &mut fastrand::Rng) {
        self.disk.cut_power(rng);
        self.files.disk.cut_power(rng);
    }

    /// Somebody takes a snapshot of the whole server; false while its process is ending.
    pub fn take_snapshot(&mut self) -> bool {
        let is_ending = self.files.blown().is_some();
        if !is_ending {
            let files = self.files.disk.snapshot();
            self.snapshot = Some((self.disk.clone(), files, self.untold_restart));
        }
        !is_ending
    }

    /// Whether there is a snapshot to go back to.
    #[must_use]
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The whole server goes back to its snapshot, as after a power cut then; its process has ended.
    pub fn go_back(&mut self, rng: &mut fastrand::Rng) {
        let Some((disk, files, untold_restart)) = &self.snapshot else { return };
        self.disk = disk.clone();
        self.files.disk.go_back(files);
        self.untold_restart = *untold_restart;
        self.was_cut = false;
        self.cut_power(rng);
    }

    /// It will end in the middle of something, now or at its next start; or it will not.
    pub fn set_doom(&mut self, doom: Option<Doom>) {
        self.files.set_doom(doom);
    }

    /// Whether its last end was a doom with a power cut; asked once.
    pub fn was_cut(&mut self) -> bool {
        std::mem::take(&mut self.was_cut)
    }

    /// Carries out an event.
    pub fn handle(&mut self, world: &mut World, event: Event) {
        if !self.is_running || self.files.blown().is_some() {
            return;
        }
        self.time.set(world.now());
        match event {
            Event::Assigned(assigned) => self.assigned_to(world, assigned),
            Event::Own(Step(Own::Open)) => self.open(world),
            event => {
                let mut volume = self.volume.take();
                if let Some(volume) = &mut volume {
                    volume.handle(&mut self.ctx(world), event);
                }
                self.volume = volume;
            }
        }
        if self.files.blown().is_some() {
            world.exit(self.process(), "ended in the middle of a file operation");
        }
    }

    fn assigned_to(&mut self, world: &mut World, assigned: Assignment) {
        let is_first = self.assigned.replace(assigned).is_none();
        if is_first {
            return self.ctx(world).soon(Own::Open);
        }
        let mut volume = self.volume.take();
        if let Some(volume) = &mut volume {
            volume.route(&mut self.ctx(world), assigned);
        }
        self.volume = volume;
    }

    /// Opens what the volume left behind; whatever is wrong is tried again.
    fn open(&mut self, world: &mut World) {
        let Some(assigned) = self.assigned else { return };
        let place = Place {
            files: Arc::new(self.files.clone()),
            time: Arc::new(self.time.clone()),
            dir: PathBuf::from(DIR),
            log_bytes_max: self.log_bytes_max,
            life: world.rng.u32(1..),
            is_forced: world.chance(300),
        };
        let opened = Stream::open(&place, crate::control::volume_of(self.machine), true);
        if self.files.blown().is_some() {
            // A volume that is opened whatever its directory says is none of a process that has ended.
            return;
        }
        let mut ctx = self.ctx(world);
        match opened {
            Ok((stream, found)) => {
                let volume = Volume::opened(&mut ctx, stream, found, assigned);
                self.volume = Some(volume);
            }
            Err(error) => {
                ctx.tell(|| format!("cannot open the volume: {error}"));
                ctx.after(RETRY, Own::Open);
            }
        }
    }

    /// Begins the orderly stop: the guest sends nothing from now on. The process exits when it is done.
    pub fn stop(&mut self, world: &mut World) {
        let mut volume = self.volume.take();
        if let Some(volume) = &mut volume {
            volume.stop(&mut self.ctx(world));
        }
        self.volume = volume;
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Whether the guest may send requests.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.is_running && self.volume.as_ref().is_some_and(Volume::is_serving)
    }

    /// Whether everything is in the vault and the log is the disk.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.volume.as_ref().is_some_and(Volume::is_settled)
    }

    /// Highest seq of the log; 0 while it is not open.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.volume.as_ref().map_or(Seq(0), Volume::last)
    }

    /// Seq of the newest mark in the log.
    #[must_use]
    pub fn newest_mark(&self) -> Option<Seq> {
        self.volume.as_ref()?.newest_mark()
    }

    /// The server's disk.
    #[must_use]
    pub fn disk(&self) -> &GuestDisk {
        &self.disk
    }

    /// The agent's files.
    #[must_use]
    pub fn files(&self) -> &Disk {
        &self.files.disk
    }

    /// Where it stands, in a line.
    #[must_use]
    pub fn standing(&self) -> String {
        let number = self.number;
        match &self.volume {
            _ if !self.is_running => format!("agent {number} is not running"),
            None => format!("agent {number} has not opened its volume"),
            Some(volume) => format!("agent {number}: {}", volume.standing()),
        }
    }
}
