//! The vault's register, as the node reads it: its logs are born, and what is condemned is referred to no more.
//!
//! Read on threads of its own; what it says goes to the chunk index first, then to the shards, whose segments state it.

use crate::dedup::Dedup;
use crate::rt::Post;
use crate::shard::Message;
use crate::state::Logs;
use anyhow::{Context, bail};
use farshore_engine::register::asked_of;
use farshore_ingest::limits::REGISTER_READ_EVERY;
use farshore_proto::LogId;
use farshore_vault::Vault;
use farshore_vault::register::Reader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};

/// Times that the chunk index is asked to apply it while it is far behind …
const APPLY_TRIES: u32 = 20;
/// … and the time between two.
const APPLY_RETRY: Duration = Duration::from_millis(250);

/// Shared by the shards.
#[derive(Debug, Clone)]
pub(crate) struct Register(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vault: Vault,
    threads: Handle,
    dedup: Dedup,
    reader: Mutex<Reader>,
    /// The highest number that the node's logs state. With less nothing is looked up: the store lost what was applied, or
    /// shows it late.
    least: AtomicU64,
    /// A log that is written may not be in it: nothing is looked up until the next start.
    is_left_out: AtomicBool,
}

impl Register {
    /// Nothing is read yet, and nothing applied before [`Self::begin`].
    pub(crate) fn new(vault: Vault, threads: Handle, dedup: Dedup) -> Self {
        let (reader, least) = (Mutex::default(), AtomicU64::new(u64::MAX));
        let is_left_out = AtomicBool::new(false);
        Self(Arc::new(Shared { vault, threads, dedup, reader, least, is_left_out }))
    }

    /// Makes sure that a log is in the register; all below its birth is applied when this returns, if anything is. May be
    /// asked for on any thread.
    ///
    /// # Errors
    /// What keeps the register from being read or written; the log may be in there all the same.
    pub(crate) async fn bear(&self, log: LogId) -> anyhow::Result<()> {
        let (said, answer) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        self.0.threads.spawn(async move { said.send(shared.bear(log).await) });
        answer.await.context("the threads of the register are gone")?
    }

    /// Goes on without it, as something is wrong with it: nothing is looked up, so nothing that is condemned is referred to.
    pub(crate) fn leave_out(&self, error: &anyhow::Error) {
        self.0.is_left_out.store(true, Ordering::Relaxed);
        tracing::error!(
            error = %format!("{error:#}"),
            "the vault's register is damaged: replication goes on, but until the next start all is stored anew; `farshore vault verify` says more"
        );
    }

    /// Reads and applies it, now that all logs of the node are read: they state that it was applied up to `least`.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub(crate) async fn begin(&self, least: u64) -> anyhow::Result<()> {
        if self.0.is_left_out.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.0.least.store(least, Ordering::Relaxed);
        let shared = Arc::clone(&self.0);
        self.0.threads.spawn(async move { shared.refresh().await }).await?
    }

    /// What is known of chunks, which it is applied to.
    pub(crate) fn dedup(&self) -> &Dedup {
        &self.0.dedup
    }

    /// Up to which entry it is applied: what is looked up from now on is nothing that is condemned by then.
    pub(crate) fn applied(&self) -> u64 {
        self.0.dedup.applied()
    }

    /// Reads and applies it, and tells the shards, now and then for as long as the node runs.
    pub(crate) async fn follow(self, logs: Logs, shards: Vec<Post<Message>>) {
        loop {
            self.tell(&logs, &shards).await;
            tokio::time::sleep(REGISTER_READ_EVERY).await;
            if let Err(error) = self.0.refresh().await {
                tracing::warn!(
                    error = %format!("{error:#}"),
                    "cannot read the vault's register: replication goes on, and nothing is deleted in the vault meanwhile"
                );
            }
        }
    }

    async fn tell(&self, logs: &Logs, shards: &[Post<Message>]) {
        let number = self.applied();
        let reader = self.0.reader.lock().await;
        for (shard, post) in shards.iter().enumerate() {
            let log = logs.of(shard);
            let asked = asked_of(&reader.newest().state, log);
            // One that is too busy to hear is told the next time.
            let _unheard = post.offer(Message::Applied { log, number, asked });
        }
    }
}

impl Shared {
    async fn bear(&self, log: LogId) -> anyhow::Result<()> {
        // One after the other: shards that begin together would outrun each other.
        let mut reader = self.reader.lock().await;
        if !reader.newest().state.logs.contains_key(&log) {
            let born = reader.bear(&self.vault, log).await;
            let born =
                born.with_context(|| format!("enter log {log} into the vault's register"))?;
            tracing::info!(%log, born, "the log is in the vault's register");
        }
        self.apply(&reader).await
    }

    async fn refresh(&self) -> anyhow::Result<()> {
        let mut reader = self.reader.lock().await;
        reader.refresh(&self.vault).await.context("read the vault's register")?;
        self.apply(&reader).await
    }

    async fn apply(&self, reader: &Reader) -> anyhow::Result<()> {
        let (number, least) = (reader.newest().number, self.least.load(Ordering::Relaxed));
        if number < least {
            // Before the logs are read nobody knows.
            if least != u64::MAX {
                tracing::error!(
                    number,
                    least,
                    "logs of this node state more of the vault's register than there is of it: entries are lost; all is stored anew"
                );
            }
            return Ok(());
        }
        for _ in 0..APPLY_TRIES {
            if self.dedup.apply(number, reader.condemned().collect()).await {
                return Ok(());
            }
            tokio::time::sleep(APPLY_RETRY).await;
        }
        bail!("the chunk index is too far behind to be told what is condemned")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_ingest::index::Index;
    use farshore_proto::register::Statement;
    use farshore_proto::{Attempt, ChunkId, Slot, Target};
    use farshore_vault::Location;
    use farshore_vault::register::{append, newest};
    use farshore_vault::testing::World;

    const LOG: LogId = LogId([7; 16]);

    fn target(slot: u64) -> Target {
        Target { log: LogId([1; 16]), slot: Slot(slot), attempt: Attempt([2; 8]) }
    }

    async fn register(world: &World) -> (Register, Dedup) {
        let index = Index::open(&world.folder.path().join("index"), world.vault.id()).unwrap();
        let dedup = Dedup::new(world.vault.vault_keys(), index, 1).unwrap();
        (Register::new(world.vault.clone(), Handle::current(), dedup.clone()), dedup)
    }

    async fn finds(dedup: &Dedup, ids: &[ChunkId]) -> Vec<bool> {
        let found = dedup.lookup(LOG, ids.to_vec()).await;
        found.iter().map(Option::is_some).collect()
    }

    #[tokio::test]
    async fn nothing_is_looked_up_before_the_register_is_applied_and_then_nothing_condemned() {
        let world = World::new(1, 1).await;
        let (register, dedup) = register(&world).await;
        let (ids, at) = ([ChunkId([1; 32]), ChunkId([2; 32])], |slot| target(slot));
        for (id, slot) in ids.into_iter().zip(1..) {
            dedup
                .learn_at(at(slot), vec![(id, Location { target: at(slot), chunk: 0, blocks: 4 })]);
        }
        dedup.loaded().await;
        assert_eq!(finds(&dedup, &ids).await, [false; 2]);
        register.bear(LOG).await.unwrap();
        register.bear(LOG).await.unwrap();
        assert_eq!(newest(&world.vault, 0).await.unwrap().number, 1, "it is born once");
        assert_eq!(finds(&dedup, &ids).await, [false; 2], "the logs were not read yet");
        register.begin(1).await.unwrap();
        assert_eq!((finds(&dedup, &ids).await, register.applied()), (vec![true; 2], 1));
        append(&world.vault, 0, Statement::Condemnation([target(2)].into())).await.unwrap();
        register.0.refresh().await.unwrap();
        assert_eq!((finds(&dedup, &ids).await, register.applied()), (vec![true, false], 2));
        // A new log has applied what was condemned before its birth.
        append(&world.vault, 0, Statement::Condemnation([target(1)].into())).await.unwrap();
        register.bear(LogId([9; 16])).await.unwrap();
        assert_eq!((finds(&dedup, &ids).await, register.applied()), (vec![false; 2], 4));
    }

    /// The store lost what the logs say was applied: what was condemned there is not known.
    #[tokio::test]
    async fn with_less_of_the_register_than_the_logs_state_nothing_is_looked_up() {
        let world = World::new(1, 1).await;
        let (register, dedup) = register(&world).await;
        let id = ChunkId([1; 32]);
        dedup.learn_at(target(1), vec![(id, Location { target: target(1), chunk: 0, blocks: 4 })]);
        dedup.loaded().await;
        register.bear(LOG).await.unwrap();
        register.begin(2).await.unwrap();
        assert_eq!((finds(&dedup, &[id]).await, register.applied()), (vec![false], 0));
        append(&world.vault, 0, Statement::Birth(LogId([9; 16]))).await.unwrap();
        register.0.refresh().await.unwrap();
        assert_eq!((finds(&dedup, &[id]).await, register.applied()), (vec![true], 2));
    }
}
