//! The vault's register: logs are born before anything is put or looked up for them, and what is condemned is referred to
//! no more.

use super::{Event, Fatal, Node, State, Turn};
use crate::world::{self, World};
use farshore_engine::register::asked_of;
use farshore_engine::shard::Input;
use farshore_proto::LogId;
use farshore_vault::Vault;
use farshore_vault::register::Reader;
use std::time::Duration;

/// Between two looks.
const READ: Duration = Duration::from_secs(3);
/// Between two tries to have a log born.
const RETRY: Duration = Duration::from_millis(400);

/// A log that was to be born.
#[derive(Debug)]
pub struct Born {
    pub(super) shard: usize,
    pub(super) log: LogId,
    /// The register since then.
    pub(super) read: Result<Box<Reader>, String>,
}

/// Has a log born; gives the register since then.
pub(super) async fn bear(vault: &Vault, log: LogId) -> Result<Box<Reader>, String> {
    let mut reader = Box::<Reader>::default();
    reader.bear(vault, log).await.map_err(|error| error.to_string())?;
    Ok(reader)
}

impl Node {
    /// A start has drawn a log.
    pub(super) fn bear(&self, world: &mut World, shard: usize, log: LogId) {
        let (vault, number) = (world.store.vault(), self.number);
        world.spawn(self.process(), async move {
            let read = bear(&vault, log).await;
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
        self.world.spawn(self.process(), async move {
            let read = loop {
                match bear(&vault, log).await {
                    Ok(read) => break Ok(read),
                    Err(_) => sleep(RETRY).await,
                }
            };
            world::Event::Node(node, Event::Born(Born { shard, log, read }))
        });
    }

    /// The log that a shard goes on with was born.
    pub(super) fn born(&mut self, born: Born) -> Result<(), Fatal> {
        let Born { shard, log, read } = born;
        if let Ok(reader) = read {
            // All that was condemned before.
            self.apply(&reader)?;
        }
        self.renewed(shard, log)
    }

    /// Begins to read what is new in the register.
    pub(super) fn read_register(&mut self) {
        let mut reader = std::mem::take(&mut self.running.register);
        let (vault, node) = (self.world.store.vault(), self.number);
        self.world.spawn(self.process(), async move {
            // It is read again later.
            let _unread = reader.refresh(&vault).await;
            world::Event::Node(node, Event::Register(Some(reader)))
        });
    }

    /// It was read.
    pub(super) fn register_read(&mut self, reader: Box<Reader>) -> Result<(), Fatal> {
        self.apply(&reader)?;
        self.running.register = reader;
        self.after(READ, Event::Register(None));
        Ok(())
    }

    /// Applies what was read, unless it is less than logs of this node state: then the store lost some of it.
    fn apply(&mut self, reader: &Reader) -> Result<(), Fatal> {
        let entry = reader.newest();
        if entry.number == 0 || entry.number < self.running.least {
            return Ok(());
        }
        self.running.known.apply(entry.number, reader.condemned().collect());
        let number = self.running.known.applied().unwrap_or(0);
        for shard in 0..self.running.shards.len() {
            if self.running.shards[shard].tenure.is_open() {
                let asked = asked_of(&entry.state, self.running.shards[shard].log());
                self.input(shard, Input::Applied { number, asked })?;
            }
        }
        Ok(())
    }
}
