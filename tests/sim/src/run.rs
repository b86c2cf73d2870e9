//! One run: set up, break things for a while, heal, wait until all has converged, judge.

mod strike;

use crate::agent::Agent;
use crate::control;
use crate::disk::GuestDisk;
use crate::faults::{self, Plan};
use crate::guest::{self, Guest};
use crate::node::Node;
use crate::oracle::{Counts, Violation};
use crate::reader::{self, Reader};
use crate::sweeper::{self, Sweeper};
use crate::trace::Trace;
use crate::world::{Event, Process, Size, World};
use farshore_proto::Timestamp;
use farshore_proto::bugs::Bug;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Time that guests go on after the last fault.
const CALM: Duration = Duration::from_secs(4);
/// How long history goes on to go when all has converged.
const SWEEPING: Duration = Duration::from_secs(12);
/// Everything must have converged this long after the last fault.
const PATIENCE_MS: u64 = 240_000;
/// Between two looks whether it has.
const LOOK_MS: u64 = 500;
/// Points of each volume that are read back in the end.
const POINTS_READ: usize = 12;
/// Objects damaged in the end, one after the other.
const DAMAGES: usize = 3;

/// What a run is about.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// How much of everything there is; drawn from the seed if absent.
    pub size: Option<Size>,
    /// What breaks; drawn from the seed if absent.
    pub plan: Option<Plan>,
}

impl Setup {
    /// Everything from a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, size: None, plan: None }
    }

    /// A run with these bugs, under faults that show them.
    #[must_use]
    pub fn hunting(bugs: &[Bug], seed: u64) -> Self {
        let plan = |bug: &Bug| Plan::hunting(*bug, &mut fastrand::Rng::with_seed(!seed));
        Self { plan: bugs.first().and_then(plan), ..Self::of(seed) }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// The story, if it was kept.
    pub story: Vec<String>,
    /// Faults that struck, by kind.
    pub strikes: BTreeMap<faults::Fault, u64>,
    /// What was judged.
    pub counts: Counts,
    /// Requests that guests had answered.
    pub requests: u64,
    /// Frames that the network delivered.
    pub frames: u64,
    /// Puts and gets of the store.
    pub store: (u64, u64),
    /// Virtual time.
    pub time: Duration,
}

/// Everything in one run.
struct Sim {
    world: World,
    agents: Vec<Agent>,
    nodes: Vec<Node>,
    guests: Vec<Guest>,
    reader: Reader,
    sweeper: Sweeper,
    plan: Plan,
    strikes: BTreeMap<faults::Fault, u64>,
    is_calm: bool,
    settled: BTreeSet<usize>,
    /// Agents whose server has ended for good: it was copied, and the other one is left.
    gone: BTreeSet<usize>,
}

/// Runs a seed to its end. The same setup ends the same way, step by step.
#[must_use]
pub fn run(setup: &Setup, trace: Trace) -> Outcome {
    let mut sim = Sim::new(setup, trace);
    sim.start();
    sim.go_on(sim.plan.time);
    sim.heal();
    sim.go_on(CALM);
    sim.guests.iter_mut().for_each(Guest::stop);
    sim.reader.stop();
    if sim.converge() {
        // Nodes answer to what is condemned now.
        sim.go_on(SWEEPING);
        sim.sweeper.stop();
        sim.judge();
    }
    sim.outcome()
}

fn draw_size(rng: &mut fastrand::Rng) -> Size {
    Size {
        machines: rng.usize(1..4),
        nodes: rng.usize(2..4),
        shards: rng.usize(1..3),
        blocks: rng.u64(130..260),
    }
}

fn tell_plan(seed: u64, size: &Size, plan: &Plan) -> String {
    let Size { machines, nodes, shards, blocks } = size;
    let Plan { kinds, wait_max, time } = plan;
    format!(
        "seed {seed}: {machines} servers with {blocks} blocks each, {nodes} nodes with {shards} shards \
         each; for {time:?} one of {kinds:?} strikes, at most {wait_max:?} after the one before"
    )
}

impl Sim {
    fn new(setup: &Setup, trace: Trace) -> Self {
        let mut rng = fastrand::Rng::with_seed(setup.seed);
        let size = setup.size.clone().unwrap_or_else(|| draw_size(&mut rng));
        let plan = setup.plan.clone().unwrap_or_else(|| Plan::draw(&mut rng));
        let mut world = World::new(rng.u64(..), size, trace);
        let world_size = world.size.clone();
        let blocks = world_size.blocks;
        let agents = (0..world.size.machines).map(|machine| {
            // A third of a new disk is zeros, some of the rest is on other disks too.
            let tags = (0..blocks).map(|block| match rng.u32(0..6) {
                0 | 1 => 0,
                2 => rng.u64(1..40),
                _ => 1 << 50 | (machine as u64) << 32 | block << 8 | 1,
            });
            Agent::new(machine, GuestDisk::new(tags.collect()))
        });
        let agents = agents.collect();
        let nodes = (0..world.size.nodes).map(Node::new).collect();
        let guests = (0..world.size.machines).map(Guest::new).collect();
        world.tell("run", || tell_plan(setup.seed, &world_size, &plan));
        Self {
            world,
            agents,
            nodes,
            guests,
            reader: Reader::new(!setup.seed),
            sweeper: Sweeper::new(setup.seed ^ 0x5eed),
            plan,
            strikes: BTreeMap::new(),
            is_calm: false,
            settled: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    fn start(&mut self) {
        for node in 0..self.nodes.len() {
            self.start_process(Process::Node(node));
        }
        for machine in 0..self.agents.len() {
            self.start_process(Process::Agent(machine));
            let wait = self.world.us(0..500_000);
            self.world.after(wait, Event::Guest(machine, guest::Event::Go));
        }
        self.world.after(Duration::ZERO, Event::Control(control::Event::Look));
        self.world.after(Duration::ZERO, Event::Reader(reader::Event::Go));
        self.world.after(Duration::ZERO, Event::Sweeper(sweeper::Event::Go));
        self.world.begin_catalog();
        let wait = self.world.us(1_000_000..4_000_000);
        self.world.after(wait, Event::Fault(faults::Event::Strike));
    }

    fn start_process(&mut self, process: Process) {
        self.world.tell(process, || "starts".to_owned());
        match process {
            Process::Agent(number) => {
                if !self.agents[number].is_running() && !self.gone.contains(&number) {
                    self.agents[number].start(&mut self.world);
                }
            }
            Process::Node(number) => {
                // A copy may be gone by then.
                if let Some(node) = self.nodes.get_mut(number).filter(|node| !node.is_running()) {
                    node.start(&mut self.world);
                }
            }
            // It begins by itself.
            Process::Reader | Process::Failover | Process::Sweeper => return,
        }
        self.world.tell_soon(process);
    }

    /// Ends a process as `kill -9` does.
    fn end_process(&mut self, process: Process) {
        self.world.end_life(process);
        match process {
            Process::Agent(number) => {
                self.agents[number].end();
                self.guests[number].cut_off();
            }
            Process::Node(number) => {
                self.world.control.set_up(number, None);
                self.nodes[number].end();
                let mut rng = self.world.rng.fork();
                for log in self.nodes[number].logs() {
                    self.world.store.writer_died(log, &mut rng);
                }
            }
            Process::Reader | Process::Failover | Process::Sweeper => {}
        }
    }

    fn go_on(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).expect("a run takes minutes");
        let until = self.world.now().plus_ms(ms);
        self.go_on_until(until);
    }

    fn go_on_until(&mut self, until: Timestamp) {
        while self.world.oracle.violation().is_none()
            && let Some(event) = self.world.next(until)
        {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        let world = &mut self.world;
        match event {
            Event::Agent(number, event) => self.agents[number].handle(world, event),
            Event::Node(number, event) => {
                // What was said to a copy may come when it is gone.
                if let Some(node) = self.nodes.get_mut(number) {
                    node.handle(world, event);
                }
            }
            Event::Guest(number, event) => {
                let is_served = self.agents[number].is_serving();
                self.guests[number].handle(world, event, is_served);
            }
            Event::Reader(event) => self.reader.handle(world, event),
            Event::Sweeper(event) => self.sweeper.handle(world, event),
            Event::Control(event) => world.handle_control(event),
            Event::Catalog(event) => world.handle_catalog(event),
            Event::Failover(event) => world.handle_failover(event),
            Event::Fault(event) => self.handle_fault(&event),
        }
        for process in self.world.take_exits() {
            self.end_process(process);
            if let Process::Agent(machine) = process
                && self.agents[machine].was_cut()
            {
                self.cut_server(machine);
            }
            let wait = self.world.us(300_000..3_000_000);
            self.world.after(wait, Event::Fault(faults::Event::Start(process)));
        }
    }

    /// Waits until everything written is in the vault and marked.
    fn converge(&mut self) -> bool {
        let until = self.world.now().plus_ms(PATIENCE_MS);
        while self.world.oracle.violation().is_none() {
            if self.is_settled() {
                return true;
            }
            if self.world.now() >= until {
                let standing = self.standing();
                let what = format!("it did not converge in {PATIENCE_MS} ms: {standing}");
                self.world.oracle.violate("liveness", what);
                return false;
            }
            self.go_on_until(self.world.now().plus_ms(LOOK_MS));
        }
        false
    }

    /// Whether every disk is in the vault, under a mark. Marks go on for ever, so what has settled once
    /// counts for good: nothing is written any more.
    fn is_settled(&mut self) -> bool {
        for (machine, agent) in self.agents.iter().enumerate() {
            if agent.is_running() && agent.is_settled() {
                self.settled.insert(machine);
            }
        }
        let is_safe = |agent: usize| {
            let machine = self.agents[agent].machine();
            self.gone.contains(&agent) || self.world.oracle.stream(machine).is_safe(agent)
        };
        (0..self.agents.len()).all(is_safe)
            && self.guests.iter().all(Guest::is_quiet)
            && self.settled.len() == self.world.size.machines
            && self.nodes.iter().all(Node::is_running)
            && self.reader.is_idle()
            && !self.world.control.is_anything_fenced()
    }

    fn standing(&self) -> String {
        let agents = self.agents.iter().map(Agent::standing);
        let nodes = self.nodes.iter().map(Node::standing);
        let reader = std::iter::once(self.reader.standing());
        agents.chain(nodes).chain(reader).collect::<Vec<_>>().join("; ")
    }

    fn judge(&mut self) {
        let world = &mut self.world;
        for (number, agent) in self.agents.iter().enumerate() {
            if !self.gone.contains(&number) {
                world.judge_newest(agent.machine(), &agent.disk().seen);
            }
        }
        world.judge_epochs();
        world.judge_points(POINTS_READ / 2, false);
        world.sweep();
        for (number, agent) in self.agents.iter().enumerate() {
            if !self.gone.contains(&number) {
                world.judge_newest(agent.machine(), &agent.disk().seen);
            }
        }
        world.judge_points(usize::MAX, false);
        world.judge_known();
        world.judge_verify();
        for _ in 0..DAMAGES {
            if world.oracle.violation().is_some() {
                return;
            }
            let names = world.store.names();
            let name = names[world.rng.usize(0..names.len())].clone();
            world.tell("run", || format!("a bit of {name} flips"));
            let before = world.store.object(&name);
            let mut rng = world.rng.fork();
            world.store.flip(&name, &mut rng);
            world.judge_points(POINTS_READ / 4, true);
            if let Some(before) = before {
                world.store.replace(&name, before);
            }
        }
    }

    fn outcome(self) -> Outcome {
        let world = self.world;
        Outcome {
            violation: world.oracle.violation().cloned(),
            strikes: self.strikes,
            counts: world.oracle.counts,
            requests: self.guests.iter().map(|guest| guest.done).sum(),
            frames: world.net.frames,
            store: world.store.requests(),
            time: Duration::from_micros(world.now_us()),
            story: world.trace.into_lines(),
        }
    }
}
