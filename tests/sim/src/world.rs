//! What all processes share: the clock, the queue of events, random numbers, network, store, oracle.

use crate::catalog::Catalog;
use crate::control::Control;
use crate::net::Net;
use crate::oracle::Oracle;
use crate::store::SimStore;
use crate::tasks::{Alarm, Alarms, Sleep, Tasks, VirtualTimer};
use crate::trace::Trace;
use crate::{agent, catalog, control, failover, faults, guest, node, reader, sweeper};
use farshore_proto::Timestamp;
use farshore_vault::{Patience, Timer};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

/// Something that can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// The agent of a protected server, by the server's number.
    Agent(usize),
    /// A node, by its number.
    Node(usize),
    /// Who reads the vault while others write.
    Reader,
    /// What takes volumes from their writers.
    Failover,
    /// Who lets history go.
    Sweeper,
}

impl fmt::Display for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(number) => write!(formatter, "agent {number}"),
            Self::Node(number) => write!(formatter, "node {number}"),
            Self::Reader => formatter.write_str("reader"),
            Self::Failover => formatter.write_str("failover"),
            Self::Sweeper => formatter.write_str("sweeper"),
        }
    }
}

/// Something that happens at a moment.
#[derive(Debug)]
pub enum Event {
    /// To an agent.
    Agent(usize, agent::Event),
    /// To a node.
    Node(usize, node::Event),
    /// To the reader.
    Reader(reader::Event),
    /// To the workload of a protected server.
    Guest(usize, guest::Event),
    /// To the control plane.
    Control(control::Event),
    /// To what the control plane knows of points.
    Catalog(catalog::Event),
    /// To the sweeper.
    Sweeper(sweeper::Event),
    /// To the failover of a volume.
    Failover(failover::Event),
    /// Something breaks, or stops being broken.
    Fault(faults::Event),
}

#[derive(Debug)]
enum Due {
    /// An event; dropped if its process has another life by then.
    Event(Option<(Process, u64)>, Event),
    Alarm(Alarm),
}

/// Sizes of a run; small on purpose, so that every limit is met.
#[derive(Debug, Clone)]
pub struct Size {
    /// Protected servers, one volume each.
    pub machines: usize,
    /// Nodes.
    pub nodes: usize,
    /// Shards of a node.
    pub shards: usize,
    /// Blocks of a volume.
    pub blocks: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { machines: 2, nodes: 2, shards: 1, blocks: 192 }
    }
}

/// The world of one run.
#[derive(Debug)]
pub struct World {
    now_us: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Due>,
    lives: BTreeMap<Process, u64>,
    paused: BTreeMap<Process, Vec<Event>>,
    exits: Vec<Process>,
    tasks: Tasks,
    alarms: Alarms,
    /// Wall clocks of the machines, in milliseconds off the true time; nothing may depend on them.
    pub wall_skew_ms: BTreeMap<Process, i64>,
    /// How much of everything there is.
    pub size: Size,
    /// The only source of chance.
    pub rng: fastrand::Rng,
    /// Connections.
    pub net: Net,
    /// The object store.
    pub store: SimStore,
    /// Who owns what.
    pub control: Control,
    /// What is known of points.
    pub catalog: Catalog,
    /// What must be true.
    pub oracle: Oracle,
    /// What happened.
    pub trace: Trace,
}

/// Wall time at the start of every run: 2026-01-01.
const WALL_START_MS: u64 = 1_767_225_600_000;

impl World {
    /// A world at moment 0.
    #[must_use]
    pub fn new(seed: u64, size: Size, trace: Trace) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let alarms = Alarms::default();
        let store = SimStore::new(rng.fork(), alarms.clone());
        Self {
            now_us: 0,
            order: 0,
            queue: BTreeMap::new(),
            lives: BTreeMap::new(),
            paused: BTreeMap::new(),
            exits: Vec::new(),
            tasks: Tasks::default(),
            alarms,
            wall_skew_ms: BTreeMap::new(),
            net: Net::default(),
            store,
            control: Control::new(&size),
            catalog: Catalog::new(!seed, size.machines),
            oracle: Oracle::new(&size),
            size,
            rng,
            trace,
        }
    }

    /// The monotonic clock, as engines see it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.now_us / 1000)
    }

    /// The moment in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// A machine's wall clock in Unix milliseconds: right, wrong, or jumping.
    #[must_use]
    pub fn wall_ms(&self, process: Process) -> u64 {
        let skew = self.wall_skew_ms.get(&process).copied().unwrap_or(0);
        (WALL_START_MS + self.now_us / 1000).saturating_add_signed(skew)
    }

    /// A random time between two numbers of microseconds.
    pub fn us(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range))
    }

    /// True with a chance in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.u32(0..1000) < per_mille
    }

    /// Puts an event into the queue. One for a process reaches only its life of now.
    pub fn after(&mut self, wait: Duration, event: Event) {
        let owner = match &event {
            Event::Agent(number, _) => Some(Process::Agent(*number)),
            Event::Node(number, _) => Some(Process::Node(*number)),
            // What it waits for comes back from a task, with its life.
            Event::Reader(_)
            | Event::Guest(..)
            | Event::Control(_)
            | Event::Catalog(_)
            | Event::Failover(_)
            | Event::Sweeper(_)
            | Event::Fault(_) => None,
        };
        let owner = owner.map(|process| (process, self.life(process)));
        self.push(wait, Due::Event(owner, event));
    }

    fn push(&mut self, wait: Duration, due: Due) {
        let wait_us = u64::try_from(wait.as_micros()).expect("a run takes minutes");
        self.order += 1;
        self.queue.insert((self.now_us + wait_us, self.order), due);
    }

    /// Runs a call of the vault for a process; its result comes back as the event it returns, unless
    /// the process has another life by then.
    pub fn spawn(&mut self, process: Process, work: impl Future<Output = Event> + Send + 'static) {
        let life = self.life(process);
        self.tasks.spawn((process, life), work);
        self.run_tasks();
    }

    /// A sleep for use inside [`World::spawn`].
    pub fn sleeper(&self) -> impl Fn(Duration) -> Sleep + Send + Sync + Clone + 'static + use<> {
        let alarms = self.alarms.clone();
        move |wait| Sleep::new(alarms.clone(), wait)
    }

    /// Patience that lasts so long of virtual time.
    #[must_use]
    pub fn patience(&self, max: Duration) -> Patience {
        Patience::timed_by(max, VirtualTimer(self.alarms.clone()))
    }

    /// The moment, for use inside [`World::spawn`].
    pub fn clock(&self) -> impl Fn() -> Duration + Send + 'static + use<> {
        let timer = VirtualTimer(self.alarms.clone());
        move || timer.now()
    }

    fn run_tasks(&mut self) {
        let paused = &self.paused;
        let done = self.tasks.poll(|process| paused.contains_key(&process));
        for bytes in self.store.take_attempts() {
            self.oracle.object_attempted(&bytes);
        }
        for (after, alarm) in self.alarms.take() {
            self.push(after, Due::Alarm(alarm));
        }
        for (owner, event) in done {
            self.push(Duration::ZERO, Due::Event(Some(owner), event));
        }
    }

    /// The number of a process's life; it grows at every start.
    #[must_use]
    pub fn life(&self, process: Process) -> u64 {
        self.lives.get(&process).copied().unwrap_or(0)
    }

    /// Ends a process's life: its events, tasks and connections are gone. What it asked of the store
    /// happens all the same.
    pub fn end_life(&mut self, process: Process) {
        *self.lives.entry(process).or_default() += 1;
        self.paused.remove(&process);
        self.tasks.abort(process);
        self.drop_connections(process);
    }

    /// A process ends by itself, as production does when it cannot go on; it is started again soon.
    pub fn exit(&mut self, process: Process, why: &str) {
        self.tell(process, || format!("exits: {why}"));
        self.exits.push(process);
    }

    /// The processes that ended by themselves since the last call.
    pub(crate) fn take_exits(&mut self) -> Vec<Process> {
        std::mem::take(&mut self.exits)
    }

    /// Stops a process as SIGSTOP does; what comes meanwhile waits.
    pub fn pause(&mut self, process: Process) {
        self.paused.entry(process).or_default();
    }

    /// Lets it go on.
    pub fn resume(&mut self, process: Process) {
        let Some(waiting) = self.paused.remove(&process) else { return };
        if let Process::Node(number) = process {
            self.control.speaks_again(number, self.now());
        }
        for event in waiting {
            self.after(Duration::ZERO, event);
        }
        self.tasks.resume();
        self.run_tasks();
    }

    /// Whether it is stopped.
    #[must_use]
    pub fn is_paused(&self, process: Process) -> bool {
        self.paused.contains_key(&process)
    }

    /// The next event, moving the clock there; none at `until`.
    pub fn next(&mut self, until: Timestamp) -> Option<Event> {
        loop {
            let (at, _) = *self.queue.first_key_value()?.0;
            if at > until.0 * 1000 {
                self.go_to(until.0 * 1000);
                return None;
            }
            let (_, due) = self.queue.pop_first()?;
            self.go_to(at);
            match due {
                Due::Alarm(alarm) => self.ring(alarm),
                Due::Event(owner, event) => {
                    if let Some((process, life)) = owner {
                        if life != self.life(process) {
                            continue;
                        }
                        if let Some(waiting) = self.paused.get_mut(&process) {
                            waiting.push(event);
                            continue;
                        }
                    }
                    return Some(event);
                }
            }
        }
    }

    fn go_to(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.alarms.tell_time(now_us);
    }

    fn ring(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Wake(waker) => waker.wake(),
            Alarm::Store(request) => self.store.carry_out(request),
        }
        self.run_tasks();
    }

    /// Adds a line to the story; `text` is made only if somebody reads it.
    pub fn tell(&mut self, who: impl fmt::Display, text: impl FnOnce() -> String) {
        if self.trace.is_on() {
            let text = text();
            self.trace.line(self.now_us, &who.to_string(), &text);
        }
    }
}
