//! A start: what [`farshore_engine::tenure`] asks for, one shard after the other.

use super::journal::{self, SimJournal};
use super::register::{Register, bear};
use super::session::Sessions;
use super::shard::Shard;
use super::{
    Event, Known, Node, Running, State, Tools, Turn, draw_maps, draw_patience, draw_settings,
    draw_shape,
};
use crate::control::{Assignment, machine_of, volume_of};
use crate::disk::Disk;
use crate::store::at_once;
use crate::world::{self, World};
use farshore_codec::{ChunkHasher, Chunker};
use farshore_engine::batch::Entry;
use farshore_engine::claims::{Claims, Wishes};
use farshore_engine::maps::Maps;
use farshore_engine::standing::LOOK_EVERY_MS;
use farshore_engine::tenure::{
    Input, JournaledEntry, Opening, Output, RecoveredLog, RecoveredVolume, Tenure,
};
use farshore_ingest::claim::SealedLogs;
use farshore_ingest::dedup::MemoryIndex;
use farshore_ingest::journal::{
    JournalWriter, Owner, Replayed, join_streams, replay_file, volumes_in,
};
use farshore_ingest::recover::recover;
use farshore_proto::frame::imprint;
use farshore_proto::segment::Table;
use farshore_proto::{LogId, Seq, Slot, Target, VolumeId};
use farshore_vault::Vault;
use farshore_vault::catalog::end_of_volume;
use farshore_vault::epoch::read_epochs;
use farshore_vault::log::find_end;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a journal file: a few groups.
const FILE_BYTES: u64 = 160 << 10;
const REPORT: Duration = Duration::from_secs(1);
/// Claims that are under way at the same time: few, so that some wait.
const CLAIMS_AT_ONCE: usize = 2;
const CLAIMS_WAITING_MAX: usize = 8;
/// Segments named by verdicts that make an index be cleared: few.
const CLEARED_AT: usize = 6;

/// A node that reads its logs.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) assignments: BTreeMap<usize, Assignment>,
    pub(super) known: Known,
    pub(super) register: Register,
    /// Of the shard whose turn it is.
    tenure: Tenure,
    replayed: Vec<Replayed>,
    /// Those that are ready.
    begun: Vec<Begun>,
}

/// A shard that has what it goes on with.
#[derive(Debug)]
struct Begun {
    tenure: Tenure,
    opening: Opening,
    replayed: Vec<Replayed>,
}

/// What was read of one shard's log; nothing if it was sealed.
pub(super) type LogRead = Result<Option<(RecoveredLog, Vec<(Target, Table)>)>, String>;

impl Node {
    /// Starts its process.
    pub fn start(&mut self, world: &mut World) {
        if self.kept.logs.is_empty() {
            self.kept.logs = (0..world.size.shards).map(|_| draw_log(world)).collect();
        }
        // Durable before it is used.
        self.kept.incarnation += 1;
        self.state = State::Starting(Box::new(Starting {
            assignments: world.control.told(self.process()),
            known: new_known(std::mem::take(&mut self.kept.index)),
            register: Register::default(),
            tenure: Tenure::default(),
            replayed: Vec::new(),
            begun: Vec::new(),
        }));
        self.open_register(world);
    }

    /// Goes on with the next shard, or serves if there is none.
    pub(super) fn begin_next(&mut self, world: &mut World) {
        let State::Starting(starting) = &mut self.state else { return };
        let shard = starting.begun.len();
        match self.kept.logs.get(shard) {
            Some(log) => {
                let (log, incarnation) = (*log, self.kept.incarnation);
                self.prepare(world, Input::Start { log, incarnation });
            }
            None => self.serve(world),
        }
    }

    /// A log was read, or not.
    pub(super) fn log_read(&mut self, world: &mut World, read: LogRead) {
        let State::Starting(starting) = &mut self.state else { return };
        let log = starting.tenure.log();
        let mut rng = world.rng.fork();
        world.store.writer_goes_on(log, &mut rng);
        match read {
            Ok(read) => {
                let found = read.map(|(found, tables)| {
                    for (target, table) in tables {
                        starting.known.learn(target, &table);
                    }
                    found
                });
                self.prepare(world, Input::LogRead { found });
            }
            Err(why) => self.give_up(world, &why),
        }
    }

    /// The log that the shard whose turn it is goes on with was born.
    pub(super) fn renewed(&mut self, world: &mut World, shard: usize) {
        let files = journal_files(&self.files, shard).into_keys().collect();
        let log = self.kept.logs[shard];
        self.prepare(world, Input::Renewed { log, files });
    }

    pub(super) fn give_up(&mut self, world: &mut World, why: &str) {
        self.end();
        self.state = State::Exiting;
        world.exit(self.process(), &format!("cannot start: {why}"));
    }

    /// Carries out what the tenure of the shard whose turn it is says, until it waits for its log.
    fn prepare(&mut self, world: &mut World, input: Input) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let State::Starting(starting) = &mut self.state else { return };
            let mut todo = Vec::new();
            starting.tenure.step(next, &mut todo);
            let shard = starting.begun.len();
            let done = match todo.pop() {
                Some(Output::SeeJournal { log }) => {
                    let seen = self.journaled(&world.store.vault(), shard, log);
                    seen.map(|volumes| input = Some(Input::JournalSeen { volumes }))
                }
                Some(Output::ReadLog { log, incarnation, journaled }) => {
                    let (vault, number) = (world.store.vault(), self.number);
                    let register = Register::clone(&starting.register);
                    world.spawn(self.process(), async move {
                        let place = (&vault, &register, log);
                        let read = read_log(place, incarnation, &journaled).await;
                        world::Event::Node(number, Event::LogRead(read))
                    });
                    Ok(())
                }
                Some(Output::ReadJournal { log, volumes }) => {
                    let read = self.read_journal(&world.store.vault(), (shard, log), &volumes);
                    read.map(|read| input = Some(read))
                }
                Some(Output::Renew { .. }) => {
                    self.kept.logs[shard] = draw_log(world);
                    self.bear(world, shard, self.kept.logs[shard]);
                    Ok(())
                }
                Some(Output::Open(opening)) => {
                    let tenure = std::mem::take(&mut starting.tenure);
                    let replayed = std::mem::take(&mut starting.replayed);
                    starting.begun.push(Begun { tenure, opening, replayed });
                    return self.begin_next(world);
                }
                other => panic!("a shard that starts is told to open a log, not {other:?}"),
            };
            if let Err(error) = done {
                self.give_up(world, &format!("the journal: {error}"));
            }
        }
    }

    /// The volumes in a shard's journal; what is there of it is durable afterwards.
    fn journaled(&self, vault: &Vault, shard: usize, log: LogId) -> io::Result<BTreeSet<VolumeId>> {
        let mut volumes = BTreeSet::new();
        for (file, path) in journal_files(&self.files, shard) {
            self.files.open(&path)?.sync()?;
            let mut bytes = journal::read(&self.files, &path)?;
            volumes.extend(volumes_in((vault.id(), log), vault.ring(), (file, &mut bytes)));
        }
        self.files.sync_dir(&journal::dir(shard))?;
        Ok(volumes)
    }

    fn read_journal(
        &mut self,
        vault: &Vault,
        (shard, log): (usize, LogId),
        volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    ) -> io::Result<Input> {
        let mut replayed = Vec::new();
        let mut files = Vec::new();
        for (number, path) in journal_files(&self.files, shard) {
            let mut bytes = journal::read(&self.files, &path)?;
            let file = (number, bytes.as_mut_slice());
            // How it ended is for people: whatever is missing, agents still have.
            let _end = replay_file((vault.id(), log), vault.ring(), file, volumes, &mut replayed);
            files.push(number);
        }
        let _gaps = join_streams(volumes, &mut replayed);
        let journaled = replayed.iter().map(|frame| frame.volume).collect();
        if let State::Starting(starting) = &mut self.state {
            starting.replayed = replayed;
        }
        Ok(Input::JournalRead { volumes: journaled, files })
    }

    /// All logs are ready.
    fn serve(&mut self, world: &mut World) {
        let State::Starting(starting) = std::mem::take(&mut self.state) else { return };
        let Starting { assignments, known, register, begun, .. } = *starting;
        let stated = begun.iter().map(|Begun { opening, .. }| opening.ledger.register());
        let mut reader = register.try_lock().expect("nothing of the start reads it any more");
        stated.for_each(|at| reader.require(at));
        drop(reader);
        let settings = draw_settings(&mut world.rng);
        let patience = draw_patience(&mut world.rng);
        let vault = world.store.vault();
        let tools = Tools {
            chunker: Chunker::new(&vault.vault_keys().chunk_key),
            hasher: ChunkHasher::new(vault.vault_keys().id_key.clone()),
        };
        let (mut shards, mut openings) = (Vec::new(), Vec::new());
        for (shard, Begun { tenure, opening, replayed }) in begun.into_iter().enumerate() {
            let journal = journal_writer(&self.files, world, shard, &opening);
            shards.push(Shard::new(tenure, settings, &opening, journal));
            openings.push((opening, replayed));
        }
        let mut running = Box::new(Running {
            incarnation: self.kept.incarnation,
            tools,
            known,
            assignments,
            shards,
            sessions: Sessions::default(),
            patience,
            claims: Claims::new(CLAIMS_AT_ONCE, CLAIMS_WAITING_MAX),
            sealed: Arc::new(SealedLogs::default()),
            wishes: Wishes::default(),
            maps: Maps::new(draw_maps(&mut world.rng)),
            shape: draw_shape(&mut world.rng),
            looks: 0,
            over: BTreeMap::new(),
            doom: None,
            register,
        });
        let (number, files, logs) = (self.number, &self.files, &mut self.kept.logs);
        let mut turn = Turn { number, files, logs, running: &mut running, world };
        let told: Result<(), String> = openings
            .into_iter()
            .enumerate()
            .try_for_each(|(shard, (opening, replayed))| turn.begin(shard, opening, replayed));
        turn.read_register();
        self.state = State::Running(running);
        if let Err(why) = told {
            return self.give_up(world, &why);
        }
        world.control.set_up(number, Some(world.now()));
        world.oracle.contests_forgotten(number);
        let sweep = Duration::from_millis(patience.look_every_ms());
        world.after(sweep, world::Event::Node(number, Event::Sweep));
        let look = Duration::from_millis(LOOK_EVERY_MS);
        world.after(look, world::Event::Node(number, Event::Look));
        world.after(REPORT, world::Event::Node(number, Event::Report));
    }
}

/// The journal of a shard, for the log that it opens.
fn journal_writer(
    files: &Disk,
    world: &mut World,
    shard: usize,
    opening: &Opening,
) -> JournalWriter<SimJournal> {
    let vault = world.store.vault();
    let (number, key) = vault.newest_key();
    let (log, key) = (opening.log, Arc::new(key.clone()));
    let owner = Owner { vault: vault.id(), log, number, key };
    let disk = SimJournal::new(files.clone(), shard, world.sleeper(), world.rng.fork());
    JournalWriter::new(disk, owner, opening.first_file, FILE_BYTES)
}

fn journal_files(files: &Disk, shard: usize) -> BTreeMap<u64, PathBuf> {
    let paths = files.list(&journal::dir(shard)).into_iter();
    paths.filter_map(|path| Some((journal::number(&path)?, path))).collect()
}

impl Turn<'_> {
    /// Gives a shard's engine what was recovered, and has it judged.
    fn begin(
        &mut self,
        shard: usize,
        opening: Opening,
        replayed: Vec<Replayed>,
    ) -> Result<(), String> {
        let mut story = format!("shard {shard} goes on at slot {}", opening.next_slot);
        let mut frames = Vec::new();
        for Replayed { volume, epoch, seq, stamp, change, frame, file } in replayed {
            let bytes = frame.body.len();
            let imprint = imprint(&frame.header);
            let handle = self.running.shards[shard].keep(frame);
            let entry = Entry { volume, epoch, seq, stamp, imprint, change, handle, bytes };
            frames.push(JournaledEntry { entry, file });
        }
        // What the chunks are looked up by from the first segment on.
        let at = self.running.known.applied().unwrap_or_default();
        self.input(shard, farshore_engine::shard::Input::Applied { at, asked: 0 })?;
        opening.inputs(frames).try_for_each(|input| self.input(shard, input))?;
        for (volume, stream) in self.running.shards[shard].streams() {
            let _fits = write!(
                story,
                ", volume {} under epoch {} up to {}/{}",
                machine_of(volume),
                stream.epoch(),
                stream.journaled(),
                stream.committed()
            );
        }
        self.world.tell(self.process(), || story);
        self.judge_recovered(shard);
        Ok(())
    }

    /// A shard's log was sealed and nothing writes its journal any more: it goes on with a new one.
    pub(super) fn renew(&mut self, shard: usize) -> Result<(), String> {
        let mut todo = Vec::new();
        self.running.shards[shard].tenure.step(Input::AtRest, &mut todo);
        let Some(Output::Renew { sealed }) = todo.pop() else {
            panic!("a sealed log is left by a new one");
        };
        let log = draw_log(self.world);
        self.logs[shard] = log;
        self.world.oracle.contests_forgotten(self.number);
        self.running.known.forget(sealed);
        self.bear(shard, log);
        Ok(())
    }

    /// The new log of a shard was born.
    pub(super) fn renewed(&mut self, shard: usize, log: LogId) -> Result<(), String> {
        let mut todo = Vec::new();
        let files = journal_files(self.files, shard).into_keys().collect();
        self.running.shards[shard].tenure.step(Input::Renewed { log, files }, &mut todo);
        let Some(Output::Open(opening)) = todo.pop() else {
            panic!("a new log is opened");
        };
        let journal = journal_writer(self.files, self.world, shard, &opening);
        let it = &mut self.running.shards[shard];
        let tenure = std::mem::take(&mut it.tenure);
        *it = Shard::new(tenure, it.settings(), &opening, journal);
        self.begin(shard, opening, Vec::new())
    }

    /// What was acked journaled is there, of every volume whose newest epoch is in the log.
    fn judge_recovered(&mut self, shard: usize) {
        let log = self.running.shards[shard].log();
        let streams: BTreeMap<VolumeId, Seq> = self.running.shards[shard]
            .streams()
            .into_iter()
            .map(|(volume, stream)| (volume, stream.journaled()))
            .collect();
        let vault = self.world.store.direct();
        for machine in 0..self.world.size.machines {
            let volume = volume_of(machine);
            let epochs = at_once(read_epochs(&vault, volume)).unwrap_or_default();
            let Some(epoch) = epochs.last().filter(|epoch| epoch.log == log) else { continue };
            // A volume of which neither log nor journal holds a frame under this epoch is met again
            // at its next hello; then the vault says how far it is.
            let journaled = streams.get(&volume).copied().unwrap_or_else(|| {
                at_once(end_of_volume(&vault, volume)).map_or(Seq(0), |end| end.last_seq)
            });
            self.world.oracle.recovered(log, machine, epoch.epoch, journaled);
        }
    }
}

/// What is known with an index.
pub(super) fn new_known(index: MemoryIndex) -> Known {
    Known::new(index).clearing_at(CLEARED_AT)
}

fn draw_log(world: &mut World) -> LogId {
    LogId(world.rng.u128(..).to_le_bytes())
}

async fn read_log(
    (vault, register, log): (&Vault, &Register, LogId),
    incarnation: u64,
    journaled: &BTreeSet<VolumeId>,
) -> LogRead {
    let mut tables = Vec::new();
    // Before anything is put; one that is sealed is written no more.
    let is_born = register.lock().await.newest().state.logs.contains_key(&log);
    if !is_born {
        let end = find_end(vault, log, Slot(0)).await.map_err(|error| error.to_string())?;
        if !end.is_sealed {
            bear(vault, register, log).await?;
        }
    }
    let learn = |target: Target, table: &Table| tables.push((target, table.clone()));
    let found = recover(vault, log, incarnation, journaled, learn).await;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.map(|found| (found, tables)))
}
