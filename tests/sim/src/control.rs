//! The control plane as far as the data plane sees it: who owns a volume, under which epoch, and
//! who has heard of it by now.

use crate::world::{self, Process, Size, World};
use crate::{agent, node};
use farshore_proto::{Epoch, Timestamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
}

/// What a node says that only the control plane can mend.
#[derive(Debug, Clone)]
pub struct Report {
    /// The node.
    pub node: usize,
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
    up: BTreeSet<usize>,
    heard: BTreeMap<usize, Timestamp>,
    nodes: usize,
    is_away: bool,
}

/// A node that was not heard of for this long loses its volumes.
const SILENCE_MS: u64 = 6_000;
const LOOK: Duration = Duration::from_secs(1);

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
            up: BTreeSet::new(),
            heard: BTreeMap::new(),
            nodes: size.nodes,
            is_away: false,
        }
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
            Process::Agent(_) | Process::Reader => 0,
        };
        Assignment { generation_min, ..owner }
    }

    /// Whether a node's process runs.
    #[must_use]
    pub fn is_up(&self, node: usize) -> bool {
        self.up.contains(&node)
    }

    /// Notes that a node's process runs, or not.
    pub fn set_up(&mut self, node: usize, is_up: bool) {
        if is_up {
            self.up.insert(node);
        } else {
            self.up.remove(&node);
        }
    }
}

impl World {
    /// The control plane goes away or comes back.
    pub fn set_control_away(&mut self, is_away: bool) {
        self.control.is_away = is_away;
        if !is_away {
            self.tell_everybody();
        }
    }

    /// The catalogue is backed up, or put back from the backup that there is.
    pub fn back_up_or_restore(&mut self) {
        let is_taken = self.control.backup.is_none() || self.rng.u32(0..3) == 0;
        if is_taken {
            self.control.backup = Some(self.control.owners.clone());
        } else if let Some(backup) = &self.control.backup {
            self.control.owners.clone_from(backup);
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

    /// Gives a volume to a node under a new epoch.
    pub fn assign(&mut self, machine: usize, to: usize) {
        let epoch = self.control.owner(machine).epoch.next();
        self.assign_under(machine, to, epoch);
    }

    fn assign_under(&mut self, machine: usize, to: usize, epoch: Epoch) {
        self.control.owners.insert(machine, Assignment { node: to, epoch, generation_min: 0 });
        self.tell("control", || format!("volume {machine} goes to node {to} under epoch {epoch}"));
        self.tell_everybody();
    }

    fn tell_everybody(&mut self) {
        let agents = (0..self.size.machines).map(Process::Agent);
        for process in agents.chain((0..self.size.nodes).map(Process::Node)) {
            self.tell_soon(process);
        }
    }

    /// A process asks the control plane, or is due to be told.
    pub fn tell_soon(&mut self, process: Process) {
        let wait = self.us(5_000..1_500_000);
        self.after(wait, world::Event::Control(Event::Tell(process)));
    }

    /// A node sends a report.
    pub fn report(&mut self, report: Report) {
        let wait = self.us(5_000..1_000_000);
        self.after(wait, world::Event::Control(Event::Reported(report)));
    }

    fn reported(&mut self, report: &Report) {
        let Report { node, needed, newer } = report;
        if self.control.is_away {
            let unheard = node::Event::Unheard(needed.clone());
            return self.after(Duration::ZERO, world::Event::Node(*node, unheard));
        }
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
    pub fn handle_control(&mut self, event: &Event) {
        match event {
            Event::Look => {
                self.look();
                self.after(LOOK, world::Event::Control(Event::Look));
            }
            Event::Tell(process) => self.tell_process(*process),
            Event::Reported(report) => self.reported(report),
        }
    }

    fn look(&mut self) {
        let now = self.now();
        for node in 0..self.control.nodes {
            let is_heard = self.control.is_up(node) && !self.is_paused(Process::Node(node));
            if is_heard || self.control.is_away {
                self.control.heard.insert(node, now);
            }
        }
        if self.control.is_away {
            return;
        }
        let silent = |node: &usize| {
            let heard = self.control.heard.get(node).copied().unwrap_or_default();
            now.since_ms(heard) > SILENCE_MS
        };
        let (lost, alive): (Vec<usize>, Vec<usize>) = (0..self.control.nodes).partition(silent);
        let moved: Vec<usize> = (0..self.size.machines)
            .filter(|machine| lost.contains(&self.control.owner(*machine).node))
            .collect();
        for machine in moved {
            if let Some(to) = self.rng.choice(&alive).copied() {
                self.assign(machine, to);
            }
        }
    }

    fn tell_process(&mut self, process: Process) {
        if self.control.is_away {
            return;
        }
        let wanted = |(machine, owner): (&usize, &Assignment)| match process {
            Process::Agent(number) => *machine == number,
            Process::Node(number) => owner.node == number,
            Process::Reader => false,
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
                if let Some(owner) = owners.get(&number).copied() {
                    let event = agent::Event::Assigned(owner);
                    self.after(Duration::ZERO, world::Event::Agent(number, event));
                }
            }
            Process::Node(number) => {
                let event = node::Event::Assignments(owners);
                self.after(Duration::ZERO, world::Event::Node(number, event));
            }
            Process::Reader => {}
        }
    }
}
