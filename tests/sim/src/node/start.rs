//! A start: the journal is made durable as it is, each log is read, the journal is replayed.

use super::journal::{self, SimJournal};
use super::session::Sessions;
use super::shard::{Shard, ShardParts};
use super::{Event, Node, Running, State, Tools, Turn, draw_settings};
use crate::control::{Assignment, machine_of, volume_of};
use crate::store::at_once;
use crate::world::{self, World};
use farshore_codec::{ChunkHasher, Chunker};
use farshore_engine::batch::Entry;
use farshore_engine::shard::Input;
use farshore_proto::segment::Table;
use farshore_proto::{ChunkId, LogId, Seq, Slot, VolumeId};
use farshore_vault::Vault;
use farshore_vault::catalog::end_of_volume;
use farshore_vault::dedup::Known;
use farshore_vault::epoch::read_epochs;
use farshore_vault::index::Location;
use farshore_vault::journal::{JournalWriter, Owner, Replayed, replay_file, volumes_in};
use farshore_vault::recover::{RecoveredLog, recover};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a journal file: a few groups.
const FILE_BYTES: u64 = 160 << 10;
const SWEEP: Duration = Duration::from_secs(5);

/// A node that reads its logs.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) assignments: BTreeMap<usize, Assignment>,
}

/// What was read of one shard's log.
#[derive(Debug)]
pub struct Recovered {
    log: RecoveredLog,
    tables: Vec<(Slot, Table)>,
}

/// What was found in one shard's journal.
#[derive(Debug, Default)]
struct Journal {
    replayed: Vec<Replayed>,
    files: Vec<u64>,
}

/// What a start has made of its logs and journals.
#[derive(Debug)]
struct Opened {
    shards: Vec<Shard>,
    /// What each shard is to be told before it serves.
    journals: Vec<(RecoveredLog, Journal)>,
    known: Known<HashMap<ChunkId, Location>>,
}

impl Node {
    /// Starts its process.
    pub fn start(&mut self, world: &mut World) {
        if self.kept.logs.is_empty() {
            self.kept.logs = (0..world.size.shards).map(|_| draw_log(world)).collect();
        }
        // Durable before it is used.
        self.kept.incarnation += 1;
        let mut logs = Vec::new();
        for (shard, log) in self.kept.logs.iter().enumerate() {
            match self.journaled(&world.store.vault(), shard, *log) {
                Ok(volumes) => logs.push((*log, volumes)),
                Err(error) => {
                    let process = self.process();
                    self.state = State::Exiting;
                    return world.exit(process, &format!("cannot read the journal: {error}"));
                }
            }
        }
        let assignments = world.control.told(self.process());
        self.state = State::Starting(Starting { assignments });
        let (vault, number, incarnation) =
            (world.store.vault(), self.number, self.kept.incarnation);
        world.spawn(self.process(), async move {
            let found = recover_all(&vault, incarnation, logs).await;
            world::Event::Node(number, Event::Recovered(found))
        });
    }

    /// The volumes in a shard's journal; what is there of it is durable afterwards.
    fn journaled(&self, vault: &Vault, shard: usize, log: LogId) -> io::Result<BTreeSet<VolumeId>> {
        let mut volumes = BTreeSet::new();
        for path in self.files.list(&journal::dir(shard)) {
            let Some(file) = journal::number(&path) else { continue };
            self.files.open(&path)?.sync()?;
            let mut bytes = journal::read(&self.files, &path)?;
            volumes.extend(volumes_in((vault.id(), log), vault.ring(), (file, &mut bytes)));
        }
        self.files.sync_dir(&journal::dir(shard))?;
        Ok(volumes)
    }

    /// The logs were read, or not.
    pub(super) fn recovered(
        &mut self,
        world: &mut World,
        found: Result<Vec<Option<Recovered>>, String>,
    ) {
        let State::Starting(Starting { assignments }) = std::mem::take(&mut self.state) else {
            return;
        };
        let process = self.process();
        let mut rng = world.rng.fork();
        for log in &self.kept.logs {
            world.store.writer_goes_on(*log, &mut rng);
        }
        let started = found
            .and_then(|found| self.open_shards(world, found).map_err(|error| error.to_string()));
        let Opened { shards, journals, known } = match started {
            Ok(started) => started,
            Err(why) => {
                self.state = State::Exiting;
                return world.exit(process, &format!("cannot start: {why}"));
            }
        };
        let vault = world.store.vault();
        let tools = Tools {
            chunker: Chunker::new(&vault.vault_keys().chunk_key),
            hasher: ChunkHasher::new(vault.vault_keys().id_key.clone()),
        };
        let mut running = Box::new(Running {
            incarnation: self.kept.incarnation,
            tools,
            known,
            assignments,
            shards,
            sessions: Sessions::default(),
            unmapped: BTreeMap::new(),
            is_mapping: false,
            doom_puts: None,
        });
        let (number, files) = (self.number, &self.files);
        let mut turn = Turn { number, files, running: &mut running, world };
        let replayed: Result<(), String> = journals
            .into_iter()
            .enumerate()
            .try_for_each(|(shard, (log, journal))| turn.replay(shard, log, journal));
        if let Err(why) = replayed {
            self.state = State::Exiting;
            return world.exit(process, &why);
        }
        self.state = State::Running(running);
        world.control.set_up(number, true);
        world.after(SWEEP, world::Event::Node(number, Event::Sweep));
    }

    /// Makes the shards, and reads what their journals hold for them.
    fn open_shards(
        &mut self,
        world: &mut World,
        found: Vec<Option<Recovered>>,
    ) -> io::Result<Opened> {
        let vault = world.store.vault();
        let mut known = Known::new(std::mem::take(&mut self.kept.index));
        let settings = draw_settings(&mut world.rng);
        let (mut shards, mut journals) = (Vec::new(), Vec::new());
        for (shard, found) in found.into_iter().enumerate() {
            let (log, journal) = match found {
                Some(Recovered { log, tables }) => {
                    for (slot, table) in tables {
                        known.learn(self.kept.logs[shard], slot, &table);
                    }
                    let journal = self.read_journal(&vault, shard, &log)?;
                    (log, journal)
                }
                None => {
                    // Others own its volumes now; what the journal holds was fenced off with the log.
                    self.kept.logs[shard] = draw_log(world);
                    let files = self.journal_files(shard).into_keys().collect();
                    (RecoveredLog::default(), Journal { files, ..Journal::default() })
                }
            };
            let (number, key) = vault.newest_key();
            let owner = Owner {
                vault: vault.id(),
                log: self.kept.logs[shard],
                number,
                key: Arc::new(key.clone()),
            };
            let first_file = journal.files.last().map_or(0, |last| last + 1);
            let disk =
                SimJournal::new(self.files.clone(), shard, world.sleeper(), world.rng.fork());
            let journal_writer = JournalWriter::new(disk, owner, first_file, FILE_BYTES);
            shards.push(Shard::new(ShardParts {
                log: self.kept.logs[shard],
                settings,
                incarnation: log.incarnation.max(self.kept.incarnation),
                next_slot: log.next_slot,
                void: log.void.clone(),
                journal: journal_writer,
            }));
            journals.push((log, journal));
        }
        Ok(Opened { shards, journals, known })
    }

    fn journal_files(&self, shard: usize) -> BTreeMap<u64, std::path::PathBuf> {
        let paths = self.files.list(&journal::dir(shard)).into_iter();
        paths.filter_map(|path| Some((journal::number(&path)?, path))).collect()
    }

    fn read_journal(&self, vault: &Vault, shard: usize, log: &RecoveredLog) -> io::Result<Journal> {
        let mut journal = Journal::default();
        let place = (vault.id(), self.kept.logs[shard]);
        for (number, path) in self.journal_files(shard) {
            let mut bytes = journal::read(&self.files, &path)?;
            let file = (number, bytes.as_mut_slice());
            // How it ended is for people: whatever is missing, agents still have.
            let _end = replay_file(place, vault.ring(), file, &log.volumes, &mut journal.replayed);
            journal.files.push(number);
        }
        Ok(journal)
    }
}

impl Turn<'_> {
    /// Gives a shard's engine what was recovered, and has it judged.
    fn replay(&mut self, shard: usize, log: RecoveredLog, journal: Journal) -> Result<(), String> {
        let mut story = format!("shard {shard} goes on at slot {}", log.next_slot);
        for (volume, known) in log.volumes {
            let (epoch, size_bytes, committed) = (known.epoch, known.size_bytes, known.committed);
            self.input(shard, Input::Recovered { volume, epoch, size_bytes, committed })?;
        }
        for Replayed { volume, epoch, seq, stamp, change, frame, file } in journal.replayed {
            let bytes = frame.body.len();
            let handle = self.running.shards[shard].keep(frame);
            let entry = Entry { volume, epoch, seq, change, handle, bytes };
            self.input(shard, Input::Replay { entry, stamp, file })?;
        }
        self.input(shard, Input::Replayed { files: journal.files })?;
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

fn draw_log(world: &mut World) -> LogId {
    LogId(world.rng.u128(..).to_le_bytes())
}

async fn recover_all(
    vault: &Vault,
    incarnation: u64,
    logs: Vec<(LogId, BTreeSet<VolumeId>)>,
) -> Result<Vec<Option<Recovered>>, String> {
    let mut found = Vec::new();
    for (log, journaled) in logs {
        let mut tables = Vec::new();
        let learn = |slot: Slot, table: &Table| tables.push((slot, table.clone()));
        let recovered = recover(vault, log, incarnation, &journaled, learn).await;
        let recovered = recovered.map_err(|error| error.to_string())?;
        found.push(recovered.map(|log| Recovered { log, tables }));
    }
    Ok(found)
}
