//! A node: its shards, its journal, and its part in the vault.
//!
//! A driver around the same engine, journal order, segment building, claims and recovery as
//! `farshore-node`; what differs is that sockets, files, threads and time are the world's.
//!
//! - [`start`] counts the start, reads the journal and recovers each shard's log.
//! - [`shard`] carries out what one shard's engine says.
//! - [`session`] takes frames from connections and gives the engine what they hold.
//! - [`register`] reads the vault's register and has logs born.
//! - [`journal`] is the disk under [`farshore_ingest::journal`].

mod journal;
mod register;
mod session;
mod shard;
mod start;

use crate::control::{Assignment, Report, machine_of, volume_of};
use crate::disk::{Disk, Snapshot};
use crate::net::Arrival;
use crate::world::{self, Process, World};
use farshore_codec::{ChunkHasher, Chunker};
use farshore_engine::assignments::{Changes, Given, changes};
use farshore_engine::batch::Limits;
use farshore_engine::claims::{self, Claims, NotOurs, Wishes};
use farshore_engine::maps::{self, Maps};
use farshore_engine::shard::{Input, Settings};
use farshore_engine::silence::Patience;
use farshore_engine::tenure::{self, PutEnd};
use farshore_ingest::claim::SealedLogs;
use farshore_ingest::dedup::MemoryIndex;
use farshore_ingest::journal::{JournalWriter, Written};
use farshore_ingest::sight::{Sighting, look};
use farshore_proto::{LogId, Seq, Slot, Stamp, VolumeId};
use farshore_vault::map;
use journal::SimJournal;
use register::{Born, Register};
use session::Sessions;
use shard::Shard;
use start::Starting;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const REPORT: Duration = Duration::from_secs(1);
/// Volumes of each kind in a report: few, so that some wait for the next.
const REPORT_VOLUMES_MAX: usize = 2;

/// What the shards know of the vault's chunks.
type Known = farshore_ingest::dedup::Known<MemoryIndex>;

/// What happens to a node.
#[derive(Debug)]
pub enum Event {
    /// The control plane says which volumes are this node's, by server.
    Assignments(BTreeMap<usize, Assignment>),
    /// From the network.
    Net(Arrival),
    /// A log was read at the start.
    LogRead(start::LogRead),
    /// A new log was born, or not.
    Born(Born),
    /// A start has read the vault's register, or not.
    Opened(register::Opened),
    /// The vault's register was read; nothing: it is to be.
    Register(Option<register::Read>),
    /// A claim ended.
    Claimed {
        /// Its number.
        number: u64,
        /// What the vault holds of the volume; or why it is not ours.
        end: Result<(Seq, Stamp), NotOurs>,
    },
    /// A journal group was written, or not.
    Grouped {
        /// The shard.
        shard: usize,
        /// The group.
        group: u64,
        /// The writer, back from its work.
        journal: Box<JournalWriter<SimJournal>>,
        /// How it ended.
        written: io::Result<Written>,
    },
    /// Segments that the index knows were looked at.
    Seen {
        /// Which round of looks it was.
        round: u64,
        /// What was found.
        sightings: Vec<Sighting>,
    },
    /// A shard's thread comes to building its next segment.
    Build {
        /// The shard.
        shard: usize,
    },
    /// A put ended.
    Put {
        /// The shard.
        shard: usize,
        /// The log it was for.
        log: LogId,
        /// The slot.
        slot: Slot,
        /// How.
        end: PutEnd,
        /// The volumes of its spans, with their extents.
        spans: Vec<(VolumeId, u64)>,
    },
    /// A put of a checkpoint ended.
    Checkpointed {
        /// The shard.
        shard: usize,
        /// The log it is of.
        log: LogId,
        /// The slot it is at.
        slot: Slot,
        /// Whether it is there.
        is_there: bool,
    },
    /// A shard's engine wanted to be told the time.
    Tick {
        /// The shard.
        shard: usize,
    },
    /// Sessions whose peers say too little are looked for.
    Sweep,
    /// Sessions are looked at: may their holders still have them?
    Look,
    /// A report to the control plane is due.
    Report,
    /// A report that said these volumes to need an epoch was not heard.
    Unheard(Vec<VolumeId>),
    /// A map was written, or not: nothing depends on it.
    Mapped {
        /// The volume.
        volume: VolumeId,
        /// The runs of its map.
        runs: Option<u64>,
    },
}

/// What a node keeps over a restart besides its journal.
#[derive(Debug, Default, Clone)]
struct Kept {
    incarnation: u64,
    logs: Vec<LogId>,
    /// The chunk index: never synced, so a power cut may take it.
    index: MemoryIndex,
}

/// The worst of moments to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doom {
    /// So many puts of one shard are on their way.
    Puts(usize),
    /// The next claim.
    Claim,
    /// The next group of this shard is durable: its journal knows a volume that its log does not.
    Group(usize),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Down,
    Starting(Box<Starting>),
    Running(Box<Running>),
    /// It told the world that it exits.
    Exiting,
}

/// A node that serves.
#[derive(Debug)]
struct Running {
    incarnation: u64,
    tools: Tools,
    known: Known,
    assignments: BTreeMap<usize, Assignment>,
    shards: Vec<Shard>,
    sessions: Sessions,
    patience: Patience,
    claims: Claims,
    sealed: Arc<SealedLogs>,
    wishes: Wishes,
    maps: Maps,
    shape: map::Shape,
    /// How often all sessions were looked at.
    looks: u64,
    /// Since which look which generations of an agent's certificates are over: for the oracle.
    over: BTreeMap<usize, (u64, u64)>,
    doom: Option<Doom>,
    register: Register,
}

/// The tools of every build.
#[derive(Debug)]
struct Tools {
    chunker: Chunker,
    hasher: ChunkHasher,
}

/// One node's machine: its disk, and its process while that runs.
#[derive(Debug)]
pub struct Node {
    number: usize,
    files: Disk,
    kept: Kept,
    /// Its disk as it was when somebody took a snapshot of its machine.
    snapshot: Option<(Kept, Snapshot)>,
    state: State,
}

/// Limits of a node, small so that each is met.
fn draw_settings(rng: &mut fastrand::Rng) -> Settings {
    Settings {
        cache_bytes: rng.usize(96..512) << 10,
        window_bytes: rng.usize(32..160) << 10,
        group_bytes: rng.usize(8..96) << 10,
        batch: Limits {
            bytes: rng.usize(24..192) << 10,
            pieces: rng.usize(6..40),
            spans: rng.usize(5..12),
        },
        batch_age_ms: rng.u64(100..900),
        linger_ms: rng.u64(50..400),
        spacing_ms: rng.u64(0..2) * rng.u64(0..2000),
        checkpoint_slots: rng.u64(1..24),
        ..Settings::default()
    }
}

/// When volumes are mapped: soon, so that readers meet maps and what is behind them.
fn draw_maps(rng: &mut fastrand::Rng) -> maps::Settings {
    maps::Settings {
        extents_min: rng.u64(20..300),
        runs_per_extent: rng.u64(1..8),
        extents_max: 300,
        segments_max: rng.u64(2..12),
        slots_max: rng.u64(1..20),
        at_once: rng.usize(1..3),
    }
}

/// How maps are divided: so that there are many layers, parts and pages, and maps where there is no mark.
fn draw_shape(rng: &mut fastrand::Rng) -> map::Shape {
    map::Shape {
        page_runs: rng.usize(1..20),
        part_bytes: rng.usize(1..4000),
        layer_runs: rng.usize(10..400),
        unmarked: rng.usize(1..200),
        smallest: rng.u64(1..40),
    }
}

/// How silent agents may be: for less time than some hang, and for more than they need to say that they
/// live.
fn draw_patience(rng: &mut fastrand::Rng) -> Patience {
    let (hello_ms, idle_ms) = (rng.u64(3_000..8_000), rng.u64(6_000..12_000));
    Patience { hello_ms, arrival_ms: 5_000, idle_ms }
}

impl Node {
    /// A node that does not run and has an empty disk.
    #[must_use]
    pub fn new(number: usize) -> Self {
        let (files, kept, state) = (Disk::default(), Kept::default(), State::Down);
        Self { number, files, kept, snapshot: None, state }
    }

    /// A copy of its machine, as after a power cut now, that has not started. Both write the same logs, and
    /// say to the control plane that they are the same node.
    #[must_use]
    pub fn copied(&self, number: usize, world: &mut World) -> Self {
        for log in &self.kept.logs {
            world.oracle.log_copied(*log);
        }
        let mut copy = Self { number, kept: self.kept.clone(), ..Self::new(number) };
        copy.files.go_back(&self.files.snapshot());
        let mut rng = world.rng.fork();
        copy.cut_power(&mut rng);
        copy
    }

    fn process(&self) -> Process {
        Process::Node(self.number)
    }

    /// Whether its process was started and has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !matches!(self.state, State::Down)
    }

    /// Its disk.
    #[must_use]
    pub fn files(&self) -> &Disk {
        &self.files
    }

    /// When it dies; a process that does not run has no doom.
    pub fn set_doom(&mut self, doom: Option<Doom>) {
        if let State::Running(running) = &mut self.state {
            running.doom = doom;
        }
    }

    /// The logs of its shards.
    #[must_use]
    pub fn logs(&self) -> Vec<LogId> {
        self.kept.logs.clone()
    }

    /// Whether it serves and holds nothing that is not committed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match &self.state {
            State::Running(running) => running.shards.iter().all(Shard::is_settled),
            State::Down | State::Starting(_) | State::Exiting => false,
        }
    }

    /// One line about where it stands.
    #[must_use]
    pub fn standing(&self) -> String {
        let number = self.number;
        match &self.state {
            State::Down => format!("node {number} is down"),
            State::Starting(_) => format!("node {number} is starting"),
            State::Exiting => format!("node {number} exits"),
            State::Running(running) => {
                let shards: Vec<String> = running.shards.iter().map(Shard::standing).collect();
                format!("node {number}: {}", shards.join(", "))
            }
        }
    }

    /// Its process is killed: what is in memory is gone.
    pub fn end(&mut self) {
        match std::mem::take(&mut self.state) {
            State::Running(running) => self.kept.index = running.known.into_index(),
            State::Starting(starting) => self.kept.index = starting.known.into_index(),
            State::Down | State::Exiting => {}
        }
    }

    /// Its machine loses its power. The process was ended before.
    pub fn cut_power(&mut self, rng: &mut fastrand::Rng) {
        self.files.cut_power(rng);
        if rng.bool() {
            self.kept.index = MemoryIndex::default();
        }
    }

    /// Somebody takes a snapshot of its machine.
    pub fn take_snapshot(&mut self) {
        self.snapshot = Some((self.kept.clone(), self.files.snapshot()));
    }

    /// Whether there is a snapshot to go back to.
    #[must_use]
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Its machine goes back to its snapshot, as after a power cut then. The process was ended before.
    pub fn go_back(&mut self, world: &mut World) {
        let Some((kept, files)) = &self.snapshot else { return };
        // What it acked since is as lost as with the disk, and so are logs that it began.
        for log in self.kept.logs.iter().chain(&kept.logs) {
            world.oracle.journal_lost(*log);
        }
        self.kept = kept.clone();
        self.files.go_back(files);
        let mut rng = world.rng.fork();
        self.cut_power(&mut rng);
    }

    /// Its disk is replaced by an empty one. The process was ended before.
    pub fn lose_disk(&mut self, world: &mut World) {
        for log in &self.kept.logs {
            world.oracle.journal_lost(*log);
        }
        self.files.wipe();
        self.kept = Kept::default();
    }

    /// Something happens to it.
    pub fn handle(&mut self, world: &mut World, event: Event) {
        let event = match event {
            Event::Born(born) if self.is_starting() => return self.log_born(world, born),
            Event::Opened(opened) => return self.register_opened(world, opened),
            event => event,
        };
        if let Event::LogRead(read) = event {
            return self.log_read(world, read);
        }
        if let State::Starting(starting) = &mut self.state {
            // Sockets are not listened on yet, and the table of assignments is read at the end.
            if let Event::Assignments(told) = event {
                starting.assignments = told;
            }
            return;
        }
        let number = self.number;
        let State::Running(running) = &mut self.state else { return };
        let (files, logs) = (&self.files, &mut self.kept.logs);
        let mut turn = Turn { number, files, logs, running, world };
        if let Err(why) = turn.handle(event) {
            let process = self.process();
            world.exit(process, &why);
            self.end();
            self.state = State::Exiting;
        }
    }
}

/// A cause that ends the node; nothing more is done then.
type Fatal = String;

/// One event's worth of work.
struct Turn<'a> {
    number: usize,
    files: &'a Disk,
    /// The logs of its shards, durably.
    logs: &'a mut [LogId],
    running: &'a mut Running,
    world: &'a mut World,
}

impl Turn<'_> {
    fn process(&self) -> Process {
        Process::Node(self.number)
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.world.after(wait, world::Event::Node(self.number, event));
    }

    fn handle(&mut self, event: Event) -> Result<(), Fatal> {
        match event {
            Event::Assignments(told) => self.assigned(told)?,
            Event::Net(arrival) => self.arrived(arrival)?,
            Event::LogRead(_) => {}
            Event::Born(born) => self.born(&born)?,
            Event::Opened(_) => {}
            Event::Register(Some(read)) => self.register_read(&read)?,
            Event::Register(None) => self.read_register(),
            Event::Claimed { number, end } => {
                self.step_claims(claims::Input::Ended { number, end })?;
            }
            Event::Grouped { shard, group, journal, written } => {
                self.grouped(shard, group, journal, written)?;
            }
            Event::Build { shard } => self.build(shard)?,
            Event::Put { shard, log, slot, end, spans } => {
                if end == PutEnd::There {
                    self.step_maps(maps::Input::Committed { log, slot, spans });
                }
                self.hold(shard, tenure::Input::PutEnded { log, slot, end })?;
            }
            Event::Checkpointed { shard, log, slot, is_there } => {
                self.world.oracle.counts.checkpoints += u64::from(is_there);
                self.hold(shard, tenure::Input::CheckpointEnded { log, slot, is_there })?;
            }
            Event::Seen { round, sightings } => {
                sightings.into_iter().for_each(|sighting| self.running.known.saw(round, sighting));
            }
            Event::Tick { shard } => self.tick(shard)?,
            Event::Sweep => self.sweep()?,
            Event::Look => self.look()?,
            Event::Report => self.report(),
            Event::Unheard(volumes) => self.running.wishes.need(volumes),
            Event::Mapped { volume, runs } => {
                self.world.oracle.counts.maps += u64::from(runs.is_some());
                self.step_maps(maps::Input::Ended { volume, runs });
            }
        }
        Ok(())
    }

    /// Takes what the control plane says; sessions of volumes that went elsewhere end.
    fn assigned(&mut self, told: BTreeMap<usize, Assignment>) -> Result<(), Fatal> {
        let given = |(machine, owner): (&usize, &Assignment)| {
            (volume_of(*machine), Given { epoch: owner.epoch, agent: *machine })
        };
        let looks = self.running.looks;
        for (machine, owner) in &told {
            let over = self.running.over.entry(*machine).or_insert((0, looks));
            if over.0 != owner.generation_min {
                *over = (owner.generation_min, looks);
            }
        }
        self.running.over.retain(|machine, _| told.contains_key(machine));
        let before = std::mem::replace(&mut self.running.assignments, told);
        let now = self.running.assignments.iter().map(given).collect();
        let Changes { revoked, lowered } = changes(before.iter().map(given), &now);
        for (volume, newest) in lowered {
            self.running.wishes.learn(volume, claims::Cause::Fenced(newest));
        }
        for volume in revoked {
            let shard = self.running.owner(volume);
            self.world.oracle.contest_forgotten(self.number, machine_of(volume));
            self.input(shard, Input::Revoked { volume })?;
        }
        Ok(())
    }

    /// Says to the control plane what only it can mend.
    fn report(&mut self) {
        let assignments = &self.running.assignments;
        let assigned = |volume| assignments.get(&machine_of(volume)).map(|owner| owner.epoch);
        let newer = self.running.wishes.newer(assigned, REPORT_VOLUMES_MAX);
        let needed = self.running.wishes.take_needed(REPORT_VOLUMES_MAX);
        let node = self.world.control.identity(self.number);
        self.world.report(Report { node, from: self.number, needed, newer });
        self.after(REPORT, Event::Report);
    }

    /// Looks at the segments that the index knows and nobody saw since the start.
    fn look_at_segments(&mut self) {
        let (round, targets) = self.running.known.take_unseen(16);
        if targets.is_empty() {
            return;
        }
        let (node, vault) = (self.number, self.world.store.vault());
        self.world.spawn(self.process(), async move {
            let mut sightings = Vec::new();
            for target in targets {
                sightings.extend(look(&vault, target).await);
            }
            world::Event::Node(node, Event::Seen { round, sightings })
        });
    }

    /// Steps the node's maps and carries out what they say.
    fn step_maps(&mut self, input: maps::Input) {
        let mut out = Vec::new();
        self.running.maps.step(input, &mut out);
        for maps::Output::Map { volume } in out {
            let (number, vault) = (self.number, self.world.store.vault());
            let shape = self.running.shape;
            self.world.spawn(self.process(), async move {
                // Derived: whatever goes wrong costs time only.
                let written = map::write_shaped(&vault, volume, shape).await.ok().flatten();
                let runs = written.map(|written| written.runs);
                world::Event::Node(number, Event::Mapped { volume, runs })
            });
        }
    }
}

impl Running {
    /// The shard that owns a volume, as production spreads them.
    fn owner(&self, volume: VolumeId) -> usize {
        let bytes = u64::from_le_bytes(std::array::from_fn(|n| volume.0[8 + n]));
        usize::try_from(bytes % self.shards.len() as u64).expect("below the number of shards")
    }
}
