//! The vault's register: logs are born before anything is put or looked up for them, and what is condemned is referred to
//! no more.

use super::start::new_known;
use super::{Event, Fatal, Node, State, Turn};
use crate::world::{self, World};
use farshore_engine::register::asked_of;
use farshore_engine::shard::Input;
use farshore_ingest::dedup::MemoryIndex;
use farshore_proto::LogId;
use farshore_proto::register::State as Entries;
use farshore_vault::Vault;
use farshore_vault::register::{Condemned, Reader};
use futures::lock::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const READ: Duration = Duration::from_secs(3);
/// Between two tries to have a log born.
const RETRY: Duration = Duration::from_millis(400);

/// A node's reader of the register: one after the other goes on with it.
pub(super) type Register = Arc<Mutex<Reader>>;

/// What was read of the register.
#[derive(Debug)]
pub struct Read {
    condemned: Arc<Condemned>,
    state: Entries,
    /// Whether it has all that logs of the node state.
    is_all: bool,
}

impl Read {
    fn of(reader: &Reader) -> Self {
        let condemned = Arc::new(reader.condemned());
        let is_all = reader.lacks().is_none();
        Self { condemned, state: reader.newest().state.clone(), is_all }
    }
}

/// What a start knows of what was deleted since its index was cleared; nothing if nobody can tell.
pub(super) type Opened = Result<Option<Box<Reader>>, String>;

/// A log that was to be born.
#[derive(Debug)]
pub struct Born {
    pub(super) shard: usize,
    pub(super) log: LogId,
    /// The register since then.
    pub(super) read: Result<Read, String>,
}

/// Has a log born; gives the register since then.
pub(super) async fn bear(vault: &Vault, register: &Register, log: LogId) -> Result<Read, String> {
    let mut reader = register.lock().await;
    reader.bear(vault, log).await.map_err(|error| error.to_string())?;
    Ok(Read::of(&reader))
}

impl Node {
    /// A start reads what was deleted since its index was cleared.
    pub(super) fn open_register(&self, world: &mut World) {
        let State::Starting(starting) = &self.state else { return };
        let (vault, number) = (world.store.vault(), self.number);
        let cleared = starting.known.cleared();
        world.spawn(self.process(), async move {
            let reader = match cleared {
                Some(cleared) => Reader::behind(&vault, cleared).await,
                None => Ok(Reader::default()),
            };
            let opened = match reader {
                Ok(reader) => Ok(Some(Box::new(reader))),
                Err(error) if error.is_unavailable() => Err(error.to_string()),
                Err(_) => Ok(None),
            };
            world::Event::Node(number, Event::Opened(opened))
        });
    }

    /// It was read, or not.
    pub(super) fn register_opened(&mut self, world: &mut World, opened: Opened) {
        let State::Starting(starting) = &mut self.state else { return };
        match opened {
            Ok(Some(reader)) => starting.register = Arc::new(Mutex::new(*reader)),
            Ok(None) => starting.known = new_known(MemoryIndex::default()),
            Err(why) => return self.give_up(world, &why),
        }
        self.begin_next(world);
    }

    /// A start has drawn a log.
    pub(super) fn bear(&self, world: &mut World, shard: usize, log: LogId) {
        let State::Starting(starting) = &self.state else { return };
        let register = Arc::clone(&starting.register);
        let (vault, number) = (world.store.vault(), self.number);
        world.spawn(self.process(), async move {
            let read = bear(&vault, &register, log).await;
            world::Event::Node(number, Event::Born(Born { shard, log, read }))
        });
    }

    /// A log that a start has drawn was born, or not.
    pub(super) fn log_born(&mut self, world: &mut World, born: Born) {
        match born.read {
            Ok(_) => self.renewed(world, born.shard),
            Err(why) => self.give_up(world, &why),
        }
    }

    /// Whether it has not begun to serve.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting(_))
    }
}

impl Turn<'_> {
    /// Has a log born that a shard goes on with, however long the store is away.
    pub(super) fn bear(&mut self, shard: usize, log: LogId) {
        let (vault, node, sleep) = (self.world.store.vault(), self.number, self.world.sleeper());
        let register = Arc::clone(&self.running.register);
        self.world.spawn(self.process(), async move {
            let read = loop {
                match bear(&vault, &register, log).await {
                    Ok(read) => break Ok(read),
                    Err(_) => sleep(RETRY).await,
                }
            };
            world::Event::Node(node, Event::Born(Born { shard, log, read }))
        });
    }

    /// The log that a shard goes on with was born.
    pub(super) fn born(&mut self, born: &Born) -> Result<(), Fatal> {
        if let Ok(read) = &born.read {
            // All that was condemned before.
            self.apply(read)?;
        }
        self.renewed(born.shard, born.log)
    }

    /// Begins to read what is new in the register.
    pub(super) fn read_register(&mut self) {
        let register = Arc::clone(&self.running.register);
        let behind = self.running.known.known_behind();
        let (vault, node) = (self.world.store.vault(), self.number);
        self.world.spawn(self.process(), async move {
            let mut reader = register.lock().await;
            behind.into_iter().for_each(|behind| reader.cleared(behind));
            // It is read again later.
            let _unread = reader.refresh(&vault).await;
            world::Event::Node(node, Event::Register(Some(Read::of(&reader))))
        });
    }

    /// It was read.
    pub(super) fn register_read(&mut self, read: &Read) -> Result<(), Fatal> {
        self.apply(read)?;
        self.after(READ, Event::Register(None));
        Ok(())
    }

    /// Applies what was read, unless it is less than logs of this node state: then the store lost some of it.
    fn apply(&mut self, read: &Read) -> Result<(), Fatal> {
        let Read { condemned, state, is_all } = read;
        if condemned.at.number == 0 || !is_all {
            return Ok(());
        }
        let known = &mut self.running.known;
        // It takes until the next look to clear the index.
        if known.is_clearing()
            && let Some(synced) = known.clear_some()
        {
            known.synced(synced());
        }
        known.apply(Arc::clone(condemned));
        let at = known.applied().unwrap_or_default();
        for shard in 0..self.running.shards.len() {
            if self.running.shards[shard].tenure.is_open() {
                let asked = asked_of(state, self.running.shards[shard].log());
                self.input(shard, Input::Applied { at, asked })?;
            }
        }
        Ok(())
    }
}
