//! The control plane as far as the data plane sees it: who owns a volume, under which epoch, and
//! who has heard of it by now.
//!
//! Which nodes live and where volumes go is decided by the control plane's own rules
//! ([`farshore_control::domain`]). For more than a few nodes these ask a person, who is here too.

use crate::world::{self, Process, Size, World};
use crate::{agent, node};
use farshore_api::node::NodeLife;
use farshore_control::domain::liveness::{Input, Liveness, Output};
use farshore_control::domain::placement::{NodeSite, VolumeSite, place};
use farshore_proto::{Epoch, Timestamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use uuid::Uuid;

/// The volume of a protected server.
///
/// # Panics
/// With more than 200 servers.
#[must_use]
pub fn volume_of(machine: usize) -> VolumeId {
    VolumeId([u8::try_from(machine).expect("few servers") + 1; 16])
}

/// The server of a volume.
#[must_use]
pub fn machine_of(volume: VolumeId) -> usize {
    usize::from(volume.0[0]) - 1
}

/// Who owns a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The node.
    pub node: usize,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Certificates of its agent of lower generations are over. Only nodes are told.
    pub generation_min: u64,
}

/// The certificates of a server's agent.
#[derive(Debug, Clone, Copy)]
struct Certificates {
    /// The generation of the one that it has.
    newest: u64,
    /// The lowest that is taken.
    generation_min: u64,
}

/// What happens to the control plane.
#[derive(Debug)]
pub enum Event {
    /// It looks at its nodes.
    Look,
    /// It tells a process what it should know.
    Tell(Process),
    /// A node reports.
    Reported(Report),
    /// A node says that it lives.
    Alive(usize),
    /// A person looks after a node that was asked for.
    Person(usize),
}

/// Why the control plane does nothing.
#[derive(Debug)]
enum Away {
    /// It does not run, and begins anew.
    Down,
    /// It runs, and nobody's words reach it.
    Unreached,
    /// It is stopped, and goes on with what has come meanwhile.
    Paused(Vec<Event>),
}

/// What a node says that only the control plane can mend.
#[derive(Debug, Clone)]
pub struct Report {
    /// The node.
    pub node: usize,
    /// Its process: its own, or that of a copy.
    pub from: usize,
    /// Volumes that need a newer epoch.
    pub needed: Vec<VolumeId>,
    /// Newer epochs than those that volumes are assigned under.
    pub newer: Vec<(VolumeId, Epoch)>,
}

/// The control plane.
#[derive(Debug)]
pub struct Control {
    owners: BTreeMap<usize, Assignment>,
    certificates: BTreeMap<usize, Certificates>,
    backup: Option<BTreeMap<usize, Assignment>>,
    /// What each process was told last; it keeps that over a restart.
    told: BTreeMap<Process, BTreeMap<usize, Assignment>>,
    /// Nodes that run, and since when they have been speaking without a pause.
    up: BTreeMap<usize, Timestamp>,
    /// Copies of nodes: the process of each, and whose copy it is.
    copies: BTreeMap<usize, usize>,
    /// Copies of servers: the process of each copy's agent, and whose copy it is.
    servers: BTreeMap<usize, usize>,
    /// Nodes whose next report is held up on its way.
    held_up: BTreeSet<usize>,
    /// Volumes that are failed over, and the epochs of their fences: they have no node.
    fenced: BTreeMap<usize, Epoch>,
    liveness: Liveness,
    nodes: Vec<Uuid>,
    away: Option<Away>,
}

/// A node that was not heard of for this long loses its volumes.
const LIMIT: Duration = Duration::from_secs(6);
/// Longest that a word of a node takes, and between two of them.
const WORD_MS_MAX: u64 = 2_000;
const LOOK: Duration = Duration::from_secs(1);
/// How long a report that is held up takes, in microseconds.
const HELD_UP_US: std::ops::Range<u64> = 4_000_000..25_000_000;
/// How long a person takes to look after a node, in microseconds.
const PERSON_US: std::ops::Range<u64> = 300_000..4_000_000;

/// How the control plane names a node.
fn name_of(node: usize) -> Uuid {
    Uuid::from_u128(node as u128 + 1)
}

impl Control {
    pub(crate) fn new(size: &Size) -> Self {
        let owners = (0..size.machines).map(|machine| {
            (machine, Assignment { node: machine % size.nodes, epoch: Epoch(1), generation_min: 0 })
        });
        let certificates = (0..size.machines)
            .map(|machine| (machine, Certificates { newest: 1, generation_min: 1 }));
        Self {
            certificates: certificates.collect(),
            owners: owners.collect(),
            backup: None,
            told: BTreeMap::new(),
            up: BTreeMap::new(),
            copies: BTreeMap::new(),
            servers: BTreeMap::new(),
            held_up: BTreeSet::new(),
            fenced: BTreeMap::new(),
            liveness: Liveness::new(LIMIT),
            nodes: (0..size.nodes).map(name_of).collect(),
            away: None,
        }
    }

    /// The node that a process says it is.
    #[must_use]
    pub fn identity(&self, process: usize) -> usize {
        self.copies.get(&process).copied().unwrap_or(process)
    }

    /// A node's machine was copied, with what it was told.
    pub fn copied(&mut self, node: usize, copy: usize) {
        self.copies.insert(copy, node);
        let told = self.told(Process::Node(node));
        self.told.insert(Process::Node(copy), told);
    }

    /// The server that an agent's process says it is of.
    #[must_use]
    pub fn server(&self, agent: usize) -> usize {
        self.servers.get(&agent).copied().unwrap_or(agent)
    }

    /// A server was copied, with what its agent was told.
    pub fn server_copied(&mut self, agent: usize, copy: usize) {
        self.servers.insert(copy, self.server(agent));
        let told = self.told(Process::Agent(agent));
        self.told.insert(Process::Agent(copy), told);
    }

    /// All copies are gone.
    pub fn forget_copies(&mut self) {
        self.copies.clear();
    }

    /// The epoch under which a server's volume is taken from its writers, if it is.
    #[must_use]
    pub fn fence(&self, machine: usize) -> Option<Epoch> {
        self.fenced.get(&machine).copied()
    }

    /// Whether a volume is taken from its writers.
    #[must_use]
    pub fn is_anything_fenced(&self) -> bool {
        !self.fenced.is_empty()
    }

    /// A fence is to have a greater epoch.
    pub fn raise_fence(&mut self, machine: usize, epoch: Epoch) {
        if let Some(fence) = self.fenced.get_mut(&machine) {
            *fence = epoch.max(*fence);
        }
    }

    /// A failover is over: the volume may go to a node again, under an epoch above the fence. Returns whether
    /// there was one.
    pub fn end_fence(&mut self, machine: usize) -> bool {
        let Some(fence) = self.fenced.remove(&machine) else { return false };
        if let Some(owner) = self.owners.get_mut(&machine) {
            owner.epoch = owner.epoch.max(fence);
        }
        true
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    fn number_of(&self, name: Uuid) -> usize {
        self.nodes.iter().position(|node| *node == name).expect("one of its nodes")
    }

    /// Who owns the volume of a server.
    ///
    /// # Panics
    /// If there is no such server.
    #[must_use]
    pub fn owner(&self, machine: usize) -> Assignment {
        self.owners[&machine]
    }

    /// The generation of the certificate that a server's agent has.
    ///
    /// # Panics
    /// If there is no such server.
    #[must_use]
    pub fn certificate(&self, machine: usize) -> u64 {
        self.certificates[&machine].newest
    }

    /// What a process was told last, by server.
    #[must_use]
    pub fn told(&self, process: Process) -> BTreeMap<usize, Assignment> {
        self.told.get(&process).cloned().unwrap_or_default()
    }

    /// What a process is told of a volume.
    fn worded(&self, process: Process, machine: usize, owner: Assignment) -> Assignment {
        let generation_min = match process {
            Process::Node(_) => self.certificates[&machine].generation_min,
            Process::Agent(_) | Process::Reader | Process::Failover | Process::Sweeper => 0,
        };
        Assignment { generation_min, ..owner }
    }

    /// Whether a node's process runs.
    #[must_use]
    pub fn is_up(&self, node: usize) -> bool {
        self.up.contains_key(&node)
    }

    /// Notes that a node's process runs, or not.
    pub fn set_up(&mut self, node: usize, since: Option<Timestamp>) {
        match since {
            Some(since) => self.up.insert(node, since),
            None => self.up.remove(&node),
        };
    }

    /// A node that was stopped speaks again.
    pub(crate) fn speaks_again(&mut self, node: usize, now: Timestamp) {
        if let Some(since) = self.up.get_mut(&node) {
            *since = now;
        }
    }
}

impl World {
    /// The control plane ends, or nobody reaches it any more.
    pub fn take_control_away(&mut self) {
        self.control_back();
        let is_down = self.rng.bool();
        self.tell("control", || if is_down { "ends" } else { "is not reached" }.to_owned());
        self.control.away = Some(if is_down { Away::Down } else { Away::Unreached });
    }

    /// The control plane is stopped; its timers, and what is said to it, wait.
    pub fn pause_control(&mut self) {
        self.control_back();
        self.control.away = Some(Away::Paused(Vec::new()));
    }

    /// The control plane is back, or goes on.
    pub fn control_back(&mut self) {
        match self.control.away.take() {
            None => {}
            Some(Away::Paused(mut waiting)) => {
                self.tell("control", || "goes on".to_owned());
                // Its timers and its sockets wake up in any order.
                self.rng.shuffle(&mut waiting);
                for event in waiting {
                    self.after(Duration::ZERO, world::Event::Control(event));
                }
            }
            Some(away) => {
                self.tell("control", || "is back".to_owned());
                if matches!(away, Away::Down) {
                    self.control.liveness = Liveness::new(LIMIT);
                }
                self.tell_everybody();
            }
        }
    }

    /// The next report of a node hangs on its way, and arrives after newer ones.
    pub fn hold_up_report(&mut self, node: usize) {
        self.control.held_up.insert(node);
    }

    /// The catalogue is backed up, or put back from the backup that there is.
    pub fn back_up_or_restore(&mut self) {
        let is_taken = self.control.backup.is_none() || self.rng.u32(0..3) == 0;
        if is_taken {
            self.control.backup = Some(self.control.owners.clone());
            self.back_up_points();
        } else if let Some(backup) = &self.control.backup {
            self.control.owners.clone_from(backup);
            self.restore_points();
        }
        let what = if is_taken { "is backed up" } else { "is put back from its backup" };
        self.tell("control", || format!("the catalogue {what}"));
        self.tell_everybody();
    }

    /// Revokes a server's agent: no certificate of its is taken until it is enrolled again.
    pub fn revoke(&mut self, machine: usize) {
        if let Some(certificates) = self.control.certificates.get_mut(&machine) {
            certificates.generation_min = u64::MAX;
        }
        self.tell("control", || format!("the agent of server {machine} is revoked"));
        self.tell_everybody();
    }

    /// A server's agent has a new certificate, renewed or enrolled again; it shows it at its next
    /// connection, and the ones before are over.
    pub fn enrol(&mut self, machine: usize) {
        if let Some(certificates) = self.control.certificates.get_mut(&machine) {
            certificates.newest += 1;
            certificates.generation_min = certificates.newest;
        }
        self.tell("control", || format!("the agent of server {machine} has a new certificate"));
        self.tell_everybody();
    }

    /// Enrols every agent again that is revoked.
    pub fn enrol_revoked(&mut self) {
        let revoked = |(machine, certificates): (&usize, &Certificates)| {
            (certificates.generation_min > certificates.newest).then_some(*machine)
        };
        let machines: Vec<usize> = self.control.certificates.iter().filter_map(revoked).collect();
        machines.into_iter().for_each(|machine| self.enrol(machine));
    }

    /// Takes a volume from its node in the catalogue, and returns the epoch of that; none if it is taken
    /// already, or the control plane is not there.
    pub fn fence_in_catalogue(&mut self, machine: usize) -> Option<Epoch> {
        if self.control.is_away() || self.control.fence(machine).is_some() {
            return None;
        }
        let epoch = self.control.owner(machine).epoch.next();
        self.control.fenced.insert(machine, epoch);
        self.tell_everybody();
        Some(epoch)
    }

    /// Gives a volume to a node under a new epoch, unless it is failed over.
    pub fn assign(&mut self, machine: usize, to: usize) {
        let epoch = self.control.owner(machine).epoch.next();
        self.assign_under(machine, to, epoch);
    }

    fn assign_under(&mut self, machine: usize, to: usize, epoch: Epoch) {
        if self.control.fence(machine).is_some() {
            return;
        }
        self.control.owners.insert(machine, Assignment { node: to, epoch, generation_min: 0 });
        self.tell("control", || format!("volume {machine} goes to node {to} under epoch {epoch}"));
        self.tell_everybody();
    }

    fn tell_everybody(&mut self) {
        let agents = (0..self.size.machines).chain(self.control.servers.keys().copied());
        let nodes = (0..self.size.nodes).chain(self.control.copies.keys().copied());
        let all: Vec<Process> =
            agents.map(Process::Agent).chain(nodes.map(Process::Node)).collect();
        for process in all {
            self.tell_soon(process);
        }
    }

    /// A process asks the control plane, or is due to be told.
    pub fn tell_soon(&mut self, process: Process) {
        let wait = self.us(5_000..1_500_000);
        self.after(wait, world::Event::Control(Event::Tell(process)));
    }

    /// A node says that it lives, and reports if it has something to say.
    pub fn report(&mut self, report: Report) {
        let wait = self.us(5_000..1_000_000);
        self.after(wait, world::Event::Control(Event::Alive(report.node)));
        if self.control.held_up.remove(&report.node) {
            let wait = self.us(HELD_UP_US);
            let node = report.node;
            self.tell("control", || format!("a report of node {node} takes {wait:?}"));
            return self.after(wait, world::Event::Control(Event::Reported(report)));
        }
        if report.needed.is_empty() && report.newer.is_empty() {
            return;
        }
        let wait = self.us(5_000..1_000_000);
        self.after(wait, world::Event::Control(Event::Reported(report)));
    }

    fn reported(&mut self, report: &Report) {
        let Report { node, from, needed, newer } = report;
        if self.control.is_away() {
            let unheard = node::Event::Unheard(needed.clone());
            return self.after(Duration::ZERO, world::Event::Node(*from, unheard));
        }
        self.heard(*node);
        for machine in needed.iter().copied().map(machine_of) {
            if self.control.owner(machine).node == *node {
                self.assign(machine, *node);
            }
        }
        for (volume, epoch) in newer {
            let machine = machine_of(*volume);
            let owner = self.control.owner(machine);
            if owner.node == *node && owner.epoch <= *epoch {
                self.assign_under(machine, *node, epoch.next());
            }
        }
    }

    /// Carries out an event of the control plane.
    pub fn handle_control(&mut self, event: Event) {
        if let Some(Away::Paused(waiting)) = &mut self.control.away {
            return waiting.push(event);
        }
        match event {
            Event::Look => {
                self.look();
                self.after(LOOK, world::Event::Control(Event::Look));
            }
            Event::Tell(process) => self.tell_process(process),
            Event::Reported(report) => self.reported(&report),
            Event::Alive(node) => {
                if !self.control.is_away() {
                    self.heard(node);
                }
            }
            Event::Person(node) => self.look_after(node),
        }
    }

    fn control_clock(&self) -> Duration {
        Duration::from_millis(self.now().0)
    }

    fn heard(&mut self, node: usize) {
        self.step_liveness(&Input::Heard(name_of(node)));
    }

    fn step_liveness(&mut self, input: &Input<'_>) {
        let (now, mut out) = (self.control_clock(), Vec::new());
        if let Err(still) = self.control.liveness.step(now, input, &mut out) {
            self.tell("control", || format!("{input:?}: {still:?}"));
        }
        for output in out {
            self.tell("control", || format!("{output:?}"));
            match output {
                Output::Lost { node, by_person: false, .. } => {
                    self.judge_lost(self.control.number_of(node));
                }
                Output::Asked { node, .. } => {
                    let wait = self.us(PERSON_US);
                    let node = self.control.number_of(node);
                    self.after(wait, world::Event::Control(Event::Person(node)));
                }
                Output::Lost { .. } | Output::Back { .. } | Output::Void { .. } => {}
            }
        }
    }

    /// A node was taken for lost by the rule: then it did not speak.
    fn judge_lost(&mut self, node: usize) {
        let since = self.control.up.get(&node).copied();
        let speaks = since.filter(|_| !self.is_paused(Process::Node(node)));
        let limit_ms = u64::try_from(LIMIT.as_millis()).expect("seconds");
        if speaks.is_some_and(|since| self.now().since_ms(since) > limit_ms + WORD_MS_MAX) {
            let what = format!("node {node} is taken for lost, and has been speaking all the time");
            self.oracle.violate("lease", what);
        }
    }

    /// A person gives up a node that was asked for, most often one that is dead or hangs in truth.
    fn look_after(&mut self, node: usize) {
        let life = self.control.liveness.life(self.control_clock(), name_of(node));
        if self.control.is_away() || life != NodeLife::Asked {
            return;
        }
        let is_gone = !self.control.is_up(node) || self.is_paused(Process::Node(node));
        if is_gone || self.rng.u32(0..4) == 0 {
            self.step_liveness(&Input::Confirmed(name_of(node)));
        }
    }

    fn look(&mut self) {
        if matches!(self.control.away, Some(Away::Down)) {
            return;
        }
        let nodes = self.control.nodes.clone();
        let mut sites: Vec<VolumeSite> = self.control.owners.iter().map(site).collect();
        let owners: BTreeSet<Uuid> = sites.iter().filter_map(|site| site.node).collect();
        let fenced = self.control.fenced.keys().map(|machine| uuid_of(*machine));
        let fenced: BTreeSet<Uuid> = fenced.collect();
        sites.retain(|site| !fenced.contains(&site.volume));
        let owners: Vec<Uuid> = owners.into_iter().collect();
        self.step_liveness(&Input::Tick { nodes: &nodes, owners: &owners });
        let now = self.control_clock();
        let node_site = |node: &Uuid| NodeSite {
            node: *node,
            life: self.control.liveness.life(now, *node),
            has_trouble: false,
        };
        let nodes: Vec<NodeSite> = nodes.iter().map(node_site).collect();
        for moved in place(&sites, &nodes) {
            let to = self.control.number_of(moved.to);
            self.assign(machine_of(VolumeId(moved.volume.into_bytes())), to);
        }
    }

    fn tell_process(&mut self, process: Process) {
        if self.control.is_away() {
            return;
        }
        let wanted = |(machine, owner): (&usize, &Assignment)| match process {
            Process::Agent(number) => *machine == self.control.server(number),
            Process::Node(number) => {
                owner.node == self.control.identity(number)
                    && self.control.fence(*machine).is_none()
            }
            Process::Reader | Process::Failover | Process::Sweeper => false,
        };
        let all = self.control.owners.iter().filter(|(machine, owner)| wanted((machine, owner)));
        let owners: BTreeMap<usize, Assignment> = all
            .map(|(machine, owner)| (*machine, self.control.worded(process, *machine, *owner)))
            .collect();
        let told = self.control.told.entry(process).or_default();
        if *told == owners {
            return;
        }
        told.clone_from(&owners);
        match process {
            Process::Agent(number) => {
                if let Some(owner) = owners.values().next().copied() {
                    let event = agent::Event::Assigned(owner);
                    self.after(Duration::ZERO, world::Event::Agent(number, event));
                }
            }
            Process::Node(number) => {
                let event = node::Event::Assignments(owners);
                self.after(Duration::ZERO, world::Event::Node(number, event));
            }
            Process::Reader | Process::Failover | Process::Sweeper => {}
        }
    }
}

/// How the control plane names the volume of a server.
fn uuid_of(machine: usize) -> Uuid {
    Uuid::from_bytes(volume_of(machine).0)
}

/// A volume as placement sees it.
fn site((machine, owner): (&usize, &Assignment)) -> VolumeSite {
    VolumeSite { volume: uuid_of(*machine), node: Some(name_of(owner.node)), last_node: None }
}
