//! Which fault comes when.

use anyhow::{Context, Result};

use crate::random::Random;

/// The longest name of a fault.
pub(super) const NAME_CHARS: usize = 23;

/// What is done to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// SIGKILL of the agent.
    AgentKilled,
    /// SIGKILL of the node of `farshore up`.
    FirstNodeKilled,
    /// SIGKILL of the other node.
    SecondNodeKilled,
    /// SIGKILL of the control plane, which comes back at once.
    ControlKilled,
    /// SIGKILL of the control plane, which stays away for a while.
    ControlAway,
    /// The control plane stops for longer than a node may be silent, then goes on.
    ControlPaused,
    /// SIGKILL of everything at once, `farshore up` included.
    AllKilled,
    /// SIGKILL of `farshore up` alone; its children are told by the kernel.
    SupervisorKilled,
    /// A node stops for less than it takes to lose its volumes.
    NodePaused,
    /// A node stops until its volumes are elsewhere, then goes on.
    NodeFrozen,
    /// A node is killed and stays away until its volumes are elsewhere, then comes back.
    NodeLost,
    /// The file system with the node's journal is full for a while.
    NodeFull,
    /// The file system with the agent's log is full for a while.
    AgentFull,
    /// The vault's folder is away for a while.
    VaultAway,
    /// The vault's folder is away, and the node is killed meanwhile.
    VaultAwayNodeKilled,
    /// The agent's file system is full, and the agent is killed meanwhile.
    AgentFullKilled,
    /// The control plane's catalogue is put back from a copy of earlier in the run.
    CatalogueOld,
    /// The disks and the agent's folder are put back to a snapshot: a server rolled back.
    AgentReverted,
    /// The control plane is started again with a clock that is hours ahead, then hours behind.
    ClockStepped,
    /// The vault's folder is away while a drill of a recovery point is read.
    StoreAwayWhileRead,
    /// The agent stops for a while, then goes on.
    AgentPaused,
    /// A second agent runs on a copy of the agent's folder.
    AgentCloned,
    /// A second node runs on a copy of a node's folder.
    NodeCloned,
    /// The agent is started again with a clock that is hours ahead, then hours behind.
    AgentClockStepped,
    /// A node is started again with a clock that is hours ahead, then hours behind.
    NodeClockStepped,
    /// A request of the agent, then one of a node, hangs on its way to the control plane.
    ReportHung,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 26] = [
        Self::AgentKilled,
        Self::FirstNodeKilled,
        Self::SecondNodeKilled,
        Self::ControlKilled,
        Self::ControlAway,
        Self::ControlPaused,
        Self::AllKilled,
        Self::SupervisorKilled,
        Self::NodePaused,
        Self::NodeFrozen,
        Self::NodeLost,
        Self::NodeFull,
        Self::AgentFull,
        Self::VaultAway,
        Self::VaultAwayNodeKilled,
        Self::AgentFullKilled,
        Self::CatalogueOld,
        Self::AgentReverted,
        Self::ClockStepped,
        Self::StoreAwayWhileRead,
        Self::AgentPaused,
        Self::AgentCloned,
        Self::NodeCloned,
        Self::AgentClockStepped,
        Self::NodeClockStepped,
        Self::ReportHung,
    ];

    /// Its name in tables and in the environment.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent-killed",
            Self::FirstNodeKilled => "node-a-killed",
            Self::SecondNodeKilled => "node-b-killed",
            Self::ControlKilled => "control-killed",
            Self::ControlAway => "control-away",
            Self::ControlPaused => "control-paused",
            Self::AllKilled => "all-killed",
            Self::SupervisorKilled => "up-killed",
            Self::NodePaused => "node-paused",
            Self::NodeFrozen => "node-frozen",
            Self::NodeLost => "node-lost",
            Self::NodeFull => "node-full",
            Self::AgentFull => "agent-full",
            Self::VaultAway => "vault-away",
            Self::VaultAwayNodeKilled => "vault-away-node-killed",
            Self::AgentFullKilled => "agent-full-killed",
            Self::CatalogueOld => "catalogue-old",
            Self::AgentReverted => "agent-reverted",
            Self::ClockStepped => "clock-stepped",
            Self::StoreAwayWhileRead => "store-away-while-read",
            Self::AgentPaused => "agent-paused",
            Self::AgentCloned => "agent-cloned",
            Self::NodeCloned => "node-cloned",
            Self::AgentClockStepped => "agent-clock-stepped",
            Self::NodeClockStepped => "node-clock-stepped",
            Self::ReportHung => "report-hung",
        }
    }

    /// The fault of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name);
        found.with_context(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no fault {name:?}; there are {names}")
        })
    }
}

/// The order of the faults: every kind once, shuffled, then again.
#[derive(Debug)]
pub(super) struct Plan {
    random: Random,
    fixed: Vec<Fault>,
    left: Vec<Fault>,
}

impl Plan {
    pub(super) fn new(seed: u64, fixed: &[Fault]) -> Self {
        Self { random: Random::new(seed), fixed: fixed.to_vec(), left: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Fault {
        if self.left.is_empty() {
            self.left =
                if self.fixed.is_empty() { Fault::ALL.to_vec() } else { self.fixed.clone() };
            self.left.reverse();
            if self.fixed.is_empty() {
                shuffle(&mut self.left, &mut self.random);
            }
        }
        self.left.pop().expect("there is a fault")
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for at in (1..items.len()).rev() {
        let other = random.below(at as u64 + 1);
        items.swap(at, usize::try_from(other).expect("an index"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_once_before_any_comes_again_and_a_seed_brings_the_order_back() {
        let order = |seed| {
            let mut plan = Plan::new(seed, &[]);
            (0..2 * Fault::ALL.len()).map(|_| plan.next()).collect::<Vec<_>>()
        };
        let first = order(5);
        assert_eq!(first, order(5));
        assert_ne!(first, order(6));
        for half in first.chunks(Fault::ALL.len()) {
            let mut sorted = half.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, Fault::ALL);
        }
        for fault in Fault::ALL {
            assert_eq!(Fault::parse(fault.name()).unwrap(), fault);
            assert!(fault.name().len() <= NAME_CHARS, "{} is wider than its column", fault.name());
        }
    }

    #[test]
    fn a_fixed_order_is_kept() {
        let wanted = [Fault::NodeLost, Fault::AgentReverted, Fault::CatalogueOld];
        let mut plan = Plan::new(1, &wanted);
        let order: Vec<_> = (0..4).map(|_| plan.next()).collect();
        assert_eq!(order[..3], wanted);
        assert_eq!(order[3], Fault::NodeLost);
    }
}
