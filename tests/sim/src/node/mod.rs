//! A node: its shards, its journal, and its part in the vault.
//!
//! A driver around the same engine, journal order, segment building, claims and recovery as
//! `farshore-node`; what differs is that sockets, files, threads and time are the world's.
//!
//! - [`start`] counts the start, reads the journal and recovers each shard's log.
//! - [`shard`] carries out what one shard's engine says.
//! - [`session`] takes frames from connections and gives the engine what they hold.
//! - [`journal`] is the disk under [`farshore_vault::journal`].

mod journal;
mod session;
mod shard;
mod start;

use crate::control::{Assignment, machine_of, volume_of};
use crate::disk::Disk;
use crate::net::Arrival;
use crate::world::{self, Process, World};
use farshore_codec::{ChunkHasher, Chunker};
use farshore_engine::batch::Limits;
use farshore_engine::shard::{Input, Settings};
use farshore_proto::frame::RefusalReason;
use farshore_proto::{ChunkId, LogId, Seq, Slot, VolumeId};
use farshore_vault::dedup::Known;
use farshore_vault::index::Location;
use farshore_vault::journal::{JournalWriter, Written};
use farshore_vault::log::Foreign;
use farshore_vault::map;
use journal::SimJournal;
use session::Sessions;
use shard::Shard;
use start::{Recovered, Starting};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

/// Segments of a volume after which it is mapped again.
const MAP_SEGMENTS: u64 = 10;

/// What happens to a node.
#[derive(Debug)]
pub enum Event {
    /// The control plane says which volumes are this node's, by server.
    Assignments(BTreeMap<usize, Assignment>),
    /// From the network.
    Net(Arrival),
    /// Its logs were read at the start.
    Recovered(Result<Vec<Option<Recovered>>, String>),
    /// A claim ended.
    Claimed {
        /// The shard that asked.
        shard: usize,
        /// The volume.
        volume: VolumeId,
        /// What the vault holds of it, or what its agent is told.
        outcome: Result<Seq, (RefusalReason, String)>,
        /// Whether only a newer epoch helps.
        needs_epoch: bool,
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
    /// A shard's thread comes to building its next segment.
    Build {
        /// The shard.
        shard: usize,
    },
    /// A put ended.
    Put {
        /// The shard.
        shard: usize,
        /// The slot.
        slot: Slot,
        /// What is in the slot instead, if not the segment.
        end: Result<(), Foreign>,
    },
    /// A shard's engine wanted to be told the time.
    Tick {
        /// The shard.
        shard: usize,
    },
    /// Silent sessions are looked for.
    Sweep,
    /// A map was written, or not: nothing depends on it.
    Mapped,
}

/// What a node keeps over a restart besides its journal.
#[derive(Debug, Default)]
struct Kept {
    incarnation: u64,
    logs: Vec<LogId>,
    /// The chunk index: never synced, so a power cut may take it.
    index: HashMap<ChunkId, Location>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Down,
    Starting(Starting),
    Running(Box<Running>),
    /// It told the world that it exits.
    Exiting,
}

/// A node that serves.
#[derive(Debug)]
struct Running {
    incarnation: u64,
    tools: Tools,
    known: Known<HashMap<ChunkId, Location>>,
    assignments: BTreeMap<usize, Assignment>,
    shards: Vec<Shard>,
    sessions: Sessions,
    /// Segments of each volume since its last map.
    unmapped: BTreeMap<VolumeId, u64>,
    is_mapping: bool,
    /// It is killed as soon as so many puts of one shard are on their way.
    doom_puts: Option<usize>,
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
        ..Settings::default()
    }
}

impl Node {
    /// A node that does not run and has an empty disk.
    #[must_use]
    pub fn new(number: usize) -> Self {
        let (files, kept, state) = (Disk::default(), Kept::default(), State::Down);
        Self { number, files, kept, state }
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

    /// It dies as soon as so many puts of one shard are on their way; a process that does not run has
    /// no doom.
    pub fn set_doom(&mut self, puts: Option<usize>) {
        if let State::Running(running) = &mut self.state {
            running.doom_puts = puts;
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
        if let State::Running(running) = std::mem::take(&mut self.state) {
            self.kept.index = running.known.into_index();
        }
    }

    /// Its machine loses its power. The process was ended before.
    pub fn cut_power(&mut self, rng: &mut fastrand::Rng) {
        self.files.cut_power(rng);
        if rng.bool() {
            self.kept.index.clear();
        }
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
        if let Event::Recovered(found) = event {
            return self.recovered(world, found);
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
        let mut turn = Turn { number, files: &self.files, running, world };
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
            Event::Recovered(_) => {}
            Event::Claimed { shard, volume, outcome, needs_epoch } => {
                if needs_epoch {
                    self.world.want_epoch(self.number, machine_of(volume));
                }
                self.input(shard, Input::Claimed { volume, outcome })?;
            }
            Event::Grouped { shard, group, journal, written } => {
                self.grouped(shard, group, journal, written)?;
            }
            Event::Build { shard } => self.build(shard)?,
            Event::Put { shard, slot, end } => self.put_ended(shard, slot, end)?,
            Event::Tick { shard } => self.tick(shard)?,
            Event::Sweep => self.sweep()?,
            Event::Mapped => self.running.is_mapping = false,
        }
        self.map_next();
        Ok(())
    }

    /// Takes what the control plane says; sessions of volumes that went elsewhere end.
    fn assigned(&mut self, told: BTreeMap<usize, Assignment>) -> Result<(), Fatal> {
        let before = std::mem::replace(&mut self.running.assignments, told);
        let now = &self.running.assignments;
        let is_over = |(machine, before): &(usize, Assignment)| {
            now.get(machine).is_none_or(|now| now.epoch != before.epoch)
        };
        let revoked: Vec<usize> =
            before.into_iter().filter(is_over).map(|(machine, _)| machine).collect();
        for machine in revoked {
            let volume = volume_of(machine);
            let shard = self.running.owner(volume);
            self.input(shard, Input::Revoked { volume })?;
        }
        Ok(())
    }

    /// A segment of these volumes is in the vault.
    fn mark_unmapped(&mut self, volumes: impl Iterator<Item = VolumeId>) {
        for volume in volumes {
            *self.running.unmapped.entry(volume).or_default() += 1;
        }
    }

    /// Maps a volume that is due, one at a time.
    fn map_next(&mut self) {
        let due = self.running.unmapped.iter().find(|(_, count)| **count >= MAP_SEGMENTS);
        let Some((volume, _)) = due.filter(|_| !self.running.is_mapping) else { return };
        let (volume, number) = (*volume, self.number);
        self.running.unmapped.remove(&volume);
        self.running.is_mapping = true;
        let vault = self.world.store.vault();
        self.world.spawn(self.process(), async move {
            // Derived: whatever goes wrong costs time only.
            let _tried = map::write(&vault, volume).await;
            world::Event::Node(number, Event::Mapped)
        });
    }
}

impl Running {
    /// The shard that owns a volume, as production spreads them.
    fn owner(&self, volume: VolumeId) -> usize {
        let bytes = u64::from_le_bytes(std::array::from_fn(|n| volume.0[8 + n]));
        usize::try_from(bytes % self.shards.len() as u64).expect("below the number of shards")
    }
}
