//! Faults strike, and heal.

use super::Sim;
use crate::agent;
use crate::disk::Trouble;
use crate::faults::{Event as FaultEvent, Fault, frame_faults, store_faults};
use crate::guest::{self, Guest};
use crate::net::NetFaults;
use crate::node::Doom;
use crate::store::StoreFaults;
use crate::world::{Event, Process};
use std::ops::Range;

/// How long a process stays dead, in microseconds.
const DEAD_US: Range<u64> = 100_000..9_000_000;
/// How long a fault that has an end lasts, in microseconds.
const LASTING_US: Range<u64> = 300_000..9_000_000;
/// How long a process hangs: some lose their volumes or sessions meanwhile, in microseconds.
const HANGING_US: Range<u64> = 200_000..16_000_000;
/// How long after its snapshot a server goes back to it, in microseconds.
const TRYING_US: Range<u64> = 300_000..6_000_000;
/// How long a node is away that lost its disk with a server, in microseconds.
const REPLACING_US: Range<u64> = 2_000_000..20_000_000;
/// How long a copy of a machine takes to start, in microseconds.
const COPYING_US: Range<u64> = 0..400_000;
/// How long a server and its copy both run, in microseconds.
const CONTESTED_US: Range<u64> = 1_000_000..20_000_000;
/// Copies of nodes at a time.
const COPIES_MAX: usize = 2;
/// Most that a wall clock is off, in milliseconds.
const SKEW_MS: i64 = 3 * 24 * 3600 * 1000;

impl Sim {
    pub(super) fn handle_fault(&mut self, event: &FaultEvent) {
        match *event {
            FaultEvent::Strike => {
                if !self.is_calm {
                    self.strike();
                    let most = u64::try_from(self.plan.wait_max.as_micros()).expect("seconds");
                    let wait = self.world.us(50_000..most);
                    self.world.after(wait, Event::Fault(FaultEvent::Strike));
                }
            }
            FaultEvent::Start(process) => self.start_process(process),
            FaultEvent::Resume(process) => self.world.resume(process),
            FaultEvent::FramesPass => self.world.net.faults = NetFaults::default(),
            FaultEvent::Heal(machine, node) => {
                self.world.net.cut.remove(&(machine, node));
            }
            FaultEvent::StoreBack => self.world.store.set_faults(StoreFaults::default()),
            FaultEvent::ControlBack => self.world.control_back(),
            FaultEvent::Enrol(machine) => self.world.enrol(machine),
            FaultEvent::GoBack(agent) => self.go_back(agent),
            FaultEvent::OneIsLeft(machine) => self.end_a_holder(machine),
            FaultEvent::Room(agent) => {
                self.agents[agent].files().set_trouble(Trouble::None);
            }
        }
    }

    fn strike(&mut self) {
        let Some(fault) = self.world.rng.choice(&self.plan.kinds).copied() else { return };
        *self.strikes.entry(fault).or_default() += 1;
        let machine = self.world.rng.usize(0..self.world.size.machines);
        let node = self.world.rng.usize(0..self.world.size.nodes);
        let agent = self.an_agent(machine);
        self.world.tell("FAULT", || format!("{fault:?} (agent {agent}, node {node})"));
        match fault {
            Fault::KillAgent | Fault::CutServer if self.world.rng.bool() => {
                self.doom_server(fault, agent);
            }
            Fault::KillAgent | Fault::CutServer | Fault::AgentRot => {
                self.strike_server(fault, agent);
            }
            Fault::SnapshotRevert => self.snapshot_or_revert(agent),
            Fault::AgentCopy => self.copy_server(machine),
            Fault::NodeRevert => self.node_snapshot_or_revert(node),
            Fault::NodeCopy => self.copy_node(node),
            Fault::StopAgent => self.agents[agent].stop(&mut self.world),
            Fault::KillNode if self.world.rng.bool() => self.doom_node(machine, node),
            Fault::KillNode | Fault::CutNode | Fault::LoseNodeDisk | Fault::JournalRot => {
                self.strike_node(fault, node);
            }
            Fault::PauseNode => self.hang(Process::Node(node)),
            Fault::PauseAgent => self.hang(Process::Agent(agent)),
            Fault::Frames => {
                let mut rng = self.world.rng.fork();
                self.world.net.faults = frame_faults(&mut rng);
                self.lasting(LASTING_US, FaultEvent::FramesPass);
            }
            Fault::ResetAll => self.world.reset_all(),
            Fault::Partition => {
                self.world.net.cut.insert((machine, node));
                self.lasting(LASTING_US, FaultEvent::Heal(machine, node));
            }
            Fault::StoreErrors | Fault::StoreDown => self.strike_store(fault),
            Fault::ControlAway | Fault::PauseControl => self.strike_control(fault),
            Fault::HungReport => self.world.hold_up_report(node),
            Fault::ClockJump => {
                let process =
                    if self.world.rng.bool() { Process::Agent(agent) } else { Process::Node(node) };
                let skew = self.world.rng.i64(-SKEW_MS..SKEW_MS);
                self.world.wall_skew_ms.insert(process, skew);
            }
            Fault::Move => self.move_or_swap(machine, node),
            Fault::Renew => self.world.enrol(machine),
            Fault::Revoke => self.revoke(machine),
            Fault::OldCatalog => self.world.back_up_or_restore(),
            Fault::Failover => self.world.fail_over(machine),
            Fault::JournalWrite => self.nodes[node].files().set_trouble(Trouble::NextWrite),
            Fault::JournalSync => self.nodes[node].files().set_trouble(Trouble::NextSync),
            Fault::AgentDiskFails => {
                let is_write = self.world.rng.bool();
                let trouble = if is_write { Trouble::NextWrite } else { Trouble::NextSync };
                self.agents[agent].files().set_trouble(trouble);
            }
            Fault::AgentDiskFull => {
                self.agents[agent].files().set_trouble(Trouble::Full);
                self.lasting(LASTING_US, FaultEvent::Room(agent));
            }
        }
    }

    fn strike_store(&mut self, fault: Fault) {
        let faults = match fault {
            Fault::StoreDown => StoreFaults { is_down: true, ..StoreFaults::default() },
            _ => store_faults(&mut self.world.rng.fork()),
        };
        self.world.store.set_faults(faults);
        self.lasting(LASTING_US, FaultEvent::StoreBack);
    }

    fn strike_control(&mut self, fault: Fault) {
        match fault {
            Fault::PauseControl => self.world.pause_control(),
            _ => self.world.take_control_away(),
        }
        self.lasting(HANGING_US, FaultEvent::ControlBack);
    }

    /// Gives a volume to another node; or has it change places with another one, so that both nodes claim
    /// for logs that are being sealed.
    fn move_or_swap(&mut self, machine: usize, node: usize) {
        let other = self.world.rng.usize(0..self.world.size.machines);
        let owner = |sim: &Self, machine| sim.world.control.owner(machine).node;
        let (here, there) = (owner(self, machine), owner(self, other));
        if here == there {
            return self.world.assign(machine, node);
        }
        self.world.assign(machine, there);
        self.world.assign(other, here);
    }

    fn revoke(&mut self, machine: usize) {
        self.world.revoke(machine);
        self.lasting(LASTING_US, FaultEvent::Enrol(machine));
    }

    fn hang(&mut self, process: Process) {
        self.world.pause(process);
        self.lasting(HANGING_US, FaultEvent::Resume(process));
    }

    fn lasting(&mut self, time: Range<u64>, end: FaultEvent) {
        let wait = self.world.us(time);
        self.world.after(wait, Event::Fault(end));
    }

    /// It dies a few changes of its files from now; the next start may be cut short as well.
    fn doom_server(&mut self, fault: Fault, machine: usize) {
        let doom = agent::Doom {
            changes: self.world.rng.u64(0..40),
            tear_per_mille: self.world.rng.u32(0..1000),
            is_cut: fault == Fault::CutServer,
        };
        self.world.tell(Process::Agent(machine), || format!("is doomed: {doom:?}"));
        self.agents[machine].set_doom(Some(doom));
    }

    /// It dies when some of its puts are on their way, or when its journal has the first frames of a volume
    /// that it is given now.
    fn doom_node(&mut self, machine: usize, node: usize) {
        let doom = if self.world.rng.bool() {
            Doom::Puts(self.world.rng.usize(1..5))
        } else {
            self.world.assign(machine, node);
            Doom::Claim
        };
        self.world.tell(Process::Node(node), || format!("is doomed to die at {doom:?}"));
        self.nodes[node].set_doom(Some(doom));
    }

    fn strike_server(&mut self, fault: Fault, machine: usize) {
        let process = Process::Agent(machine);
        self.end_process(process);
        let mut rng = self.world.rng.fork();
        match fault {
            Fault::CutServer => self.cut_server(machine),
            Fault::AgentRot => {
                if let Some(path) = self.agents[machine].files().flip(&mut rng) {
                    self.world.tell(process, || format!("a bit of {} flips", path.display()));
                }
            }
            _ => {}
        }
        self.lasting(DEAD_US, FaultEvent::Start(process));
    }

    /// Takes a snapshot of a server, or has it go back to the one that it has, once or more often.
    fn snapshot_or_revert(&mut self, machine: usize) {
        let process = Process::Agent(machine);
        if !self.agents[machine].has_snapshot() || self.world.rng.u32(0..3) == 0 {
            if self.agents[machine].take_snapshot() {
                self.world.tell(process, || "a snapshot is taken of its server".to_owned());
                self.world.oracle.snapshot_taken(machine);
                if self.world.rng.bool() {
                    // Something is tried, and undone: the server's new branch soon is as long as the old one.
                    self.lasting(TRYING_US, FaultEvent::GoBack(machine));
                }
            }
            return;
        }
        self.go_back(machine);
    }

    fn go_back(&mut self, machine: usize) {
        if self.gone.contains(&machine) {
            return;
        }
        let process = Process::Agent(machine);
        self.end_process(process);
        let mut rng = self.world.rng.fork();
        self.world.tell(process, || "its server goes back to its snapshot".to_owned());
        self.agents[machine].go_back(&mut rng);
        self.world.oracle.went_back(machine);
        self.guests[machine].went_back();
        self.lasting(DEAD_US, FaultEvent::Start(process));
        self.lose_its_node(machine);
    }

    /// Sometimes what put the server back took its node with it: only the vault knows the volume then.
    fn lose_its_node(&mut self, agent: usize) {
        if self.world.rng.bool() {
            let machine = self.agents[agent].machine();
            let node = self.world.control.owner(machine).node;
            self.end_process(Process::Node(node));
            self.nodes[node].lose_disk(&mut self.world);
            // The server is back first, most often.
            self.lasting(REPLACING_US, FaultEvent::Start(Process::Node(node)));
        }
    }

    /// The agents that run under a server's name: its own, and that of a copy.
    fn agents_of(&self, machine: usize) -> Vec<usize> {
        let is_of = |agent: &usize| self.agents[*agent].machine() == machine;
        (0..self.agents.len()).filter(|agent| !self.gone.contains(agent)).filter(is_of).collect()
    }

    fn an_agent(&mut self, machine: usize) -> usize {
        match self.agents_of(machine)[..] {
            [agent] => agent,
            ref agents => agents[self.world.rng.usize(0..agents.len())],
        }
    }

    /// A server is copied with its agent's directory, and the copy starts, while the server goes on or is
    /// stopped for it, as for a copy of a disk.
    fn copy_server(&mut self, machine: usize) {
        let [agent] = self.agents_of(machine)[..] else { return };
        let copy = self.agents.len();
        let mut rng = self.world.rng.fork();
        let Some(copied) = self.agents[agent].copied(copy, &mut rng) else { return };
        if self.world.rng.bool() {
            self.end_process(Process::Agent(agent));
            self.lasting(COPYING_US, FaultEvent::Start(Process::Agent(agent)));
        }
        self.world.tell(Process::Agent(agent), || format!("its server is copied: agent {copy}"));
        self.agents.push(copied);
        self.guests.push(Guest::new(copy));
        self.world.control.server_copied(agent, copy);
        self.world.oracle.server_copied(agent, copy);
        self.lasting(COPYING_US, FaultEvent::Start(Process::Agent(copy)));
        let wait = self.world.us(0..500_000);
        self.world.after(wait, Event::Guest(copy, guest::Event::Go));
        self.lasting(CONTESTED_US, FaultEvent::OneIsLeft(machine));
    }

    /// One of those that run under a server's name ends for good; the other is the server.
    fn end_a_holder(&mut self, machine: usize) {
        let agents = self.agents_of(machine);
        if agents.len() < 2 {
            return;
        }
        let agent = agents[self.world.rng.usize(0..agents.len())];
        self.world.tell(Process::Agent(agent), || "its server ends for good".to_owned());
        self.end_process(Process::Agent(agent));
        self.guests[agent].stop();
        self.gone.insert(agent);
        self.lose_its_node(agent);
    }

    /// The same with a node's machine.
    fn node_snapshot_or_revert(&mut self, node: usize) {
        let process = Process::Node(node);
        if !self.nodes[node].has_snapshot() || self.world.rng.u32(0..3) == 0 {
            self.world.tell(process, || "a snapshot is taken of its machine".to_owned());
            return self.nodes[node].take_snapshot();
        }
        self.end_process(process);
        self.world.tell(process, || "its machine goes back to its snapshot".to_owned());
        self.nodes[node].go_back(&mut self.world);
        self.lasting(DEAD_US, FaultEvent::Start(process));
    }

    /// A copy of a node's machine starts while the node lives. Most often both are stopped for it, as for a
    /// copy of a disk, and start at about the same time.
    fn copy_node(&mut self, node: usize) {
        if self.nodes.len() >= self.world.size.nodes + COPIES_MAX {
            return;
        }
        let copy = self.nodes.len();
        if self.world.rng.u32(0..3) > 0 {
            self.end_process(Process::Node(node));
            self.lasting(COPYING_US, FaultEvent::Start(Process::Node(node)));
        }
        self.world.tell(Process::Node(node), || format!("is copied: node {copy}"));
        let copied = self.nodes[node].copied(copy, &mut self.world);
        self.nodes.push(copied);
        self.world.control.copied(node, copy);
        self.lasting(COPYING_US, FaultEvent::Start(Process::Node(copy)));
    }

    /// Copies of nodes end, and what they had not put into the vault with them.
    fn end_copies(&mut self) {
        for copy in self.world.size.nodes..self.nodes.len() {
            self.end_process(Process::Node(copy));
        }
        self.nodes.truncate(self.world.size.nodes);
        self.world.control.forget_copies();
    }

    /// The power of a protected server goes; its agent has ended.
    pub(super) fn cut_server(&mut self, machine: usize) {
        let mut rng = self.world.rng.fork();
        self.agents[machine].cut_power(&mut rng);
        self.judge_flushed(machine);
        self.guests[machine].power_back();
    }

    fn strike_node(&mut self, fault: Fault, node: usize) {
        let process = Process::Node(node);
        self.end_process(process);
        let mut rng = self.world.rng.fork();
        match fault {
            Fault::CutNode => self.nodes[node].cut_power(&mut rng),
            Fault::LoseNodeDisk => self.nodes[node].lose_disk(&mut self.world),
            Fault::JournalRot => {
                for log in self.nodes[node].logs() {
                    self.world.oracle.journal_lost(log);
                }
                if let Some(path) = self.nodes[node].files().flip(&mut rng) {
                    self.world.tell(process, || format!("a bit of {} flips", path.display()));
                }
            }
            _ => {}
        }
        self.lasting(DEAD_US, FaultEvent::Start(process));
    }

    /// What a guest was told to be durable is there after a power cut.
    fn judge_flushed(&mut self, machine: usize) {
        let disk = self.agents[machine].disk();
        for (block, tag) in self.guests[machine].flushed() {
            let found = disk.seen[crate::disk::index(*block)];
            if found != *tag {
                let what = format!(
                    "server {machine}: block {block} was flushed with {tag:#x}, after the power cut \
                     it holds {found:#x}"
                );
                return self.world.oracle.violate("flush", what);
            }
        }
    }

    /// Ends every fault and starts what is dead.
    pub(super) fn heal(&mut self) {
        self.is_calm = true;
        self.world.tell("run", || "all faults end".to_owned());
        self.world.net.faults = NetFaults::default();
        self.world.net.cut.clear();
        self.world.store.set_faults(StoreFaults::default());
        self.world.enrol_revoked();
        self.world.control_back();
        self.world.catalog.calm();
        self.end_copies();
        (0..self.world.size.machines).for_each(|machine| self.end_a_holder(machine));
        for node in 0..self.nodes.len() {
            self.nodes[node].files().set_trouble(Trouble::None);
            self.nodes[node].set_doom(None);
            self.world.resume(Process::Node(node));
            self.start_process(Process::Node(node));
        }
        for machine in 0..self.agents.len() {
            self.agents[machine].files().set_trouble(Trouble::None);
            self.agents[machine].set_doom(None);
            self.world.resume(Process::Agent(machine));
            self.start_process(Process::Agent(machine));
        }
    }
}
