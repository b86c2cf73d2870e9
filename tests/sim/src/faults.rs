//! What breaks, when, and for how long. Each run draws its own few kinds of faults and how often they
//! strike: a run with every fault at once seldom gets anywhere.

use crate::net::NetFaults;
use crate::store::StoreFaults;
use crate::world::Process;
use farshore_proto::bugs::Bug;
use std::ops::Range;
use std::time::Duration;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of an agent, in half of the cases in the middle of what it does to its files.
    KillAgent,
    /// An agent is stopped in order, and started again.
    StopAgent,
    /// `kill -9` of a node; its puts may reach the store seconds later, or never.
    KillNode,
    /// A protected server loses its power, in half of the cases in the middle of a write to its files.
    CutServer,
    /// A node's machine loses its power.
    CutNode,
    /// A node's disk is lost.
    LoseNodeDisk,
    /// A node hangs, perhaps for long enough to lose its volumes, and goes on.
    PauseNode,
    /// An agent hangs with its connections open, perhaps for so long that its sessions end, and goes on.
    PauseAgent,
    /// Frames are lost, doubled, late, out of order, damaged; connections are reset.
    Frames,
    /// All connections are reset.
    ResetAll,
    /// An agent and a node cannot reach each other.
    Partition,
    /// Requests to the store fail, are slow, or are carried out unheard or late.
    StoreErrors,
    /// The store is away.
    StoreDown,
    /// The control plane is down, or nobody reaches it.
    ControlAway,
    /// The control plane hangs, and goes on with what was said to it meanwhile.
    PauseControl,
    /// A node's report arrives many seconds late, after newer ones.
    HungReport,
    /// Wall clocks jump.
    ClockJump,
    /// A volume is given to another node while its own works, or changes places with another volume.
    Move,
    /// A write of a node's journal fails.
    JournalWrite,
    /// A sync of a node's journal fails.
    JournalSync,
    /// An agent's disk is full for its log.
    AgentDiskFull,
    /// A write or a sync of an agent's files fails.
    AgentDiskFails,
    /// A bit of a node's journal flips while the node is down.
    JournalRot,
    /// A bit of an agent's files flips while the agent is down.
    AgentRot,
    /// A snapshot is taken of a protected server, or it goes back to the one that was taken.
    SnapshotRevert,
    /// A server is copied with its agent's directory, and both run, until one of them ends for good.
    AgentCopy,
    /// An agent is revoked while its session is open, and enrolled again later.
    Revoke,
    /// An agent's certificate is renewed.
    Renew,
    /// A snapshot is taken of a node's machine, or it goes back to the one that was taken.
    NodeRevert,
    /// A copy of a node's machine, its journal and identity included, starts while the node lives.
    NodeCopy,
    /// The catalogue is backed up, or put back from the backup: epochs that were given since are forgotten.
    OldCatalog,
    /// A volume is failed over without asking its node, and goes back later.
    Failover,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 32] = [
        Self::KillAgent,
        Self::StopAgent,
        Self::KillNode,
        Self::CutServer,
        Self::CutNode,
        Self::LoseNodeDisk,
        Self::PauseNode,
        Self::PauseAgent,
        Self::Frames,
        Self::ResetAll,
        Self::Partition,
        Self::StoreErrors,
        Self::StoreDown,
        Self::ControlAway,
        Self::PauseControl,
        Self::HungReport,
        Self::ClockJump,
        Self::Move,
        Self::JournalWrite,
        Self::JournalSync,
        Self::AgentDiskFull,
        Self::AgentDiskFails,
        Self::JournalRot,
        Self::AgentRot,
        Self::SnapshotRevert,
        Self::AgentCopy,
        Self::Revoke,
        Self::Renew,
        Self::NodeRevert,
        Self::NodeCopy,
        Self::OldCatalog,
        Self::Failover,
    ];
}

/// What happens to the faults.
#[derive(Debug)]
pub enum Event {
    /// Something breaks.
    Strike,
    /// A process that was killed is started again.
    Start(Process),
    /// A hanging process goes on.
    Resume(Process),
    /// Frames pass again.
    FramesPass,
    /// A partition heals.
    Heal(usize, usize),
    /// The store works again.
    StoreBack,
    /// The control plane is back.
    ControlBack,
    /// An agent that was revoked is enrolled again.
    Enrol(usize),
    /// There is room on an agent's disk.
    Room(usize),
    /// A server goes back to its snapshot.
    GoBack(usize),
    /// Of a server and its copy one ends for good.
    OneIsLeft(usize),
}

/// The faults of one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The kinds that may strike.
    pub kinds: Vec<Fault>,
    /// Longest wait between two strikes.
    pub wait_max: Duration,
    /// How long they strike.
    pub time: Duration,
}

impl Plan {
    /// Draws the plan of a run.
    pub fn draw(rng: &mut fastrand::Rng) -> Self {
        Self::with(&[], 2..9, rng)
    }

    /// Draws the plan of a run that looks for a bug that shows under certain faults only: those, and few others.
    pub fn hunting(bug: Bug, rng: &mut fastrand::Rng) -> Option<Self> {
        let needed = shows_under(bug);
        (!needed.is_empty()).then(|| Self::with(needed, 0..4, rng))
    }

    /// These kinds, and some others.
    fn with(needed: &[Fault], others: Range<usize>, rng: &mut fastrand::Rng) -> Self {
        let mut kinds = Fault::ALL.to_vec();
        kinds.retain(|kind| !needed.contains(kind));
        rng.shuffle(&mut kinds);
        kinds.truncate(rng.usize(others));
        kinds.extend_from_slice(needed);
        kinds.sort();
        Self {
            kinds,
            wait_max: Duration::from_millis(rng.u64(800..6_000)),
            time: Duration::from_secs(rng.u64(15..45)),
        }
    }
}

/// Without which faults a seeded bug hardly ever shows.
fn shows_under(bug: Bug) -> &'static [Fault] {
    match bug {
        Bug::LatePutsNotFenced | Bug::VoidSlotCounted => &[Fault::KillNode, Fault::StoreErrors],
        Bug::LeftLogAnswers | Bug::ClaimWithoutSeal => &[Fault::PauseNode, Fault::Move],
        Bug::RollbackTakenForCrash => &[Fault::SnapshotRevert, Fault::KillNode],
        Bug::EndBeforeSeal => &[Fault::Failover],
        Bug::VerdictSparesNothing => &[Fault::ControlAway],
        _ => &[],
    }
}

/// Draws what happens to frames.
pub fn frame_faults(rng: &mut fastrand::Rng) -> NetFaults {
    let mut some = |most: u32| if rng.bool() { rng.u32(0..most) } else { 0 };
    NetFaults {
        lost: some(20),
        twice: some(20),
        early: some(30),
        flipped: some(10),
        reset: some(10),
        late_us_max: u64::from(some(400)) * 1000,
    }
}

/// Draws what happens to requests.
pub fn store_faults(rng: &mut fastrand::Rng) -> StoreFaults {
    let mut some = |most: u32| if rng.bool() { rng.u32(0..most) } else { 0 };
    StoreFaults {
        is_down: false,
        failed: some(400),
        unanswered: some(200),
        belated: some(150),
        unlisted: some(300),
        slow_us_max: u64::from(some(1_500)) * 1000,
    }
}
