//! The vault's register, as the node reads it: its logs are born, and what is condemned is referred to no more.
//!
//! Read on threads of its own; what it says goes to the chunk index first, then to the shards, whose segments state it.

use crate::dedup::Dedup;
use crate::learning;
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::services::chain;
use crate::shard::Message;
use crate::state::Logs;
use crate::troubles::Work;
use anyhow::{Context, bail};
use farshore_engine::register::asked_of;
use farshore_ingest::index::{Index, Room};
use farshore_ingest::limits::REGISTER_READ_EVERY;
use farshore_proto::{ErrorKind, LogId};
use farshore_vault::register::{At, Reader};
use farshore_vault::{Vault, VaultError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};

/// Times that the chunk index is asked to apply it while it is far behind …
const APPLY_TRIES: u32 = 20;
/// … and the time between two.
const APPLY_RETRY: Duration = Duration::from_millis(250);

/// Times that something is wrong with it before it is left out …
const WRONG_TIMES: u32 = 3;
/// … and the time between two.
const WRONG_RETRY: Duration = Duration::from_millis(400);

/// Shared by the shards.
#[derive(Debug, Clone)]
pub(crate) struct Register(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vault: Vault,
    threads: Handle,
    dedup: Dedup,
    reader: Mutex<Reader>,
    /// Whether it is known what the node's logs state. Without all of that nothing is looked up: the store lost what was applied, or shows it
    /// late.
    is_begun: AtomicBool,
    /// Why it cannot be used: logs may be written that are not in it, so nothing is looked up until the next start.
    left_out: OnceLock<String>,
}

impl Register {
    /// With what was read when the index was opened, if it could be; nothing is applied before [`Self::begin`].
    pub(crate) fn new(
        vault: Vault,
        threads: Handle,
        dedup: Dedup,
        read: anyhow::Result<Reader>,
    ) -> Self {
        let is_begun = AtomicBool::new(false);
        let shared = |reader| {
            let (reader, left_out) = (Mutex::new(reader), OnceLock::new());
            Self(Arc::new(Shared { vault, threads, dedup, reader, is_begun, left_out }))
        };
        match read {
            Ok(reader) => shared(reader),
            Err(error) => {
                let register = shared(Reader::default());
                register.0.note(&error);
                register
            }
        }
    }

    /// Makes sure that a log is in the register; all below its birth is applied when this returns, if anything is. Where something is wrong with the
    /// register it is left out: the log is written all the same, and nothing is looked up, so that no log refers to anything. May be asked for on any thread.
    ///
    /// # Errors
    /// If the store cannot be asked, or others make entries all the time; the log may be in there all the same.
    pub(crate) async fn bear(&self, log: LogId) -> anyhow::Result<()> {
        let (said, answer) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        self.0.threads.spawn(async move { said.send(shared.or_left_out(Some(log)).await) });
        answer.await.context("the threads of the register are gone")?
    }

    /// Whether a log was in it when it was read last.
    pub(crate) async fn has(&self, log: LogId) -> bool {
        self.0.reader.lock().await.newest().state.logs.contains_key(&log)
    }

    /// Reads and applies it, now that all logs of the node are read: they state that these entries were applied.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub(crate) async fn begin(&self, stated: impl IntoIterator<Item = At>) -> anyhow::Result<()> {
        let mut reader = self.0.reader.lock().await;
        stated.into_iter().for_each(|at| reader.require(at));
        drop(reader);
        self.0.is_begun.store(true, Ordering::Release);
        let shared = Arc::clone(&self.0);
        self.0.threads.spawn(async move { shared.or_left_out(None).await }).await?
    }

    /// What is known of chunks, which it is applied to.
    pub(crate) fn dedup(&self) -> &Dedup {
        &self.0.dedup
    }

    /// Up to which entry it is applied: what is looked up from now on is nothing that is condemned by then.
    pub(crate) fn applied(&self) -> At {
        self.0.dedup.applied()
    }

    /// Reads and applies it, and tells the shards, now and then for as long as the node runs.
    pub(crate) async fn follow(
        self,
        logs: Logs,
        shards: Vec<Post<Message>>,
        metrics: Arc<Metrics>,
    ) {
        loop {
            self.tell(&logs, &shards).await;
            if let Some(error) = self.0.left_out.get() {
                let text = format!(
                    "the vault's register cannot be used: all is stored anew until it is mended and \
                     the node is started again: {error}; `farshore vault verify` says more"
                );
                metrics.troubles().set(Work::Register, text);
            }
            tokio::time::sleep(REGISTER_READ_EVERY).await;
            let mut read = self.0.refresh().await;
            if read.as_ref().is_err_and(is_damage) {
                // What was applied may not be what others find there: what they condemn under its number was not.
                read = self.0.or_left_out(None).await;
            }
            if let Err(error) = read {
                if !is_passing(&error) {
                    let text = format!(
                        "the vault's register cannot be read on from where this node is: nothing is deleted in the vault meanwhile: \
                         {error:#}; `farshore vault verify` says more; if it is whole, start the node again"
                    );
                    metrics.troubles().set(Work::Register, text);
                }
                tracing::warn!(
                    error = %format!("{error:#}"),
                    "cannot read the vault's register: replication goes on, and nothing is deleted in the vault meanwhile"
                );
            } else if self.0.left_out.get().is_none() {
                metrics.troubles().clear(Work::Register);
            }
        }
    }

    async fn tell(&self, logs: &Logs, shards: &[Post<Message>]) {
        let at = self.applied();
        let reader = self.0.reader.lock().await;
        for (shard, post) in shards.iter().enumerate() {
            let log = logs.of(shard);
            let asked = asked_of(&reader.newest().state, log);
            // One that is too busy to hear is told the next time.
            let _unheard = post.offer(Message::Applied { log, at, asked });
        }
    }
}

/// Whether the register is damaged, or another one than was read before.
fn is_damage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<VaultError>().is_some_and(|error| error.kind() == ErrorKind::Corrupt)
}

/// Whether it may be over by itself; else something is wrong with the register.
fn is_passing(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<VaultError>().map(VaultError::kind);
    !matches!(kind, Some(ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Limit))
}

impl Shared {
    /// Goes on without it: nothing is looked up any more, so nothing that is condemned is referred to.
    async fn leave_out(&self, error: &anyhow::Error) -> anyhow::Result<()> {
        // Nobody applies it in between.
        let _reader = self.reader.lock().await;
        for _ in 0..APPLY_TRIES {
            if self.dedup.leave_out().await {
                self.note(error);
                return Ok(());
            }
            tokio::time::sleep(APPLY_RETRY).await;
        }
        bail!("the chunk index is too far behind to be told that the register is left out")
    }

    /// It is left out.
    fn note(&self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        tracing::error!(
            error,
            "the vault's register cannot be used: replication goes on, but until the next start all is stored anew; `farshore vault verify` says more"
        );
        // The first reason stands.
        let _ = self.left_out.set(error);
    }

    /// Has a log born, or reads what is new; leaves the register out where something is wrong with it, again and again: one garbled answer is no
    /// proof.
    async fn or_left_out(&self, log: Option<LogId>) -> anyhow::Result<()> {
        let mut times = 1;
        loop {
            let done = match log {
                Some(log) => self.born(log).await,
                None => self.refresh().await,
            };
            match done {
                Err(error) if !is_passing(&error) && times == WRONG_TIMES => {
                    return self.leave_out(&error).await;
                }
                Err(error) if !is_passing(&error) => times += 1,
                done => return done,
            }
            tokio::time::sleep(WRONG_RETRY).await;
        }
    }

    async fn born(&self, log: LogId) -> anyhow::Result<()> {
        if self.left_out.get().is_some() {
            return Ok(());
        }
        // One after the other: shards that begin together would outrun each other.
        let mut reader = self.reader.lock().await;
        if !reader.newest().state.logs.contains_key(&log) {
            let born = reader.bear(&self.vault, log).await;
            let born =
                born.with_context(|| format!("enter log {log} into the vault's register"))?;
            tracing::info!(%log, born, "the log is in the vault's register");
        }
        self.apply(&mut reader).await
    }

    async fn refresh(&self) -> anyhow::Result<()> {
        if self.left_out.get().is_some() {
            return Ok(());
        }
        let mut reader = self.reader.lock().await;
        reader.refresh(&self.vault).await.context("read the vault's register")?;
        self.apply(&mut reader).await
    }

    async fn apply(&self, reader: &mut Reader) -> anyhow::Result<()> {
        if self.left_out.get().is_some() {
            return Ok(());
        }
        if !self.is_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(least) = reader.lacks() {
            let number = reader.newest().number;
            tracing::error!(
                number,
                least,
                "logs of this node state more of the vault's register than there is of it: entries are lost; all is stored anew"
            );
            return Ok(());
        }
        for _ in 0..APPLY_TRIES {
            if let Some(behind) = self.dedup.apply(reader.condemned()).await {
                reader.cleared(behind);
                return Ok(());
            }
            tokio::time::sleep(APPLY_RETRY).await;
        }
        bail!("the chunk index is too far behind to be told what is condemned")
    }
}

/// The chunk index is only a hint, and its segments are in the vault: one that is damaged, or of which nobody can tell what was deleted
/// since, is made anew. Gives what was deleted since it was last cleared, too, or why that cannot be read.
///
/// # Errors
/// If the store cannot be asked, or there can be no index.
pub(crate) async fn open_index(
    folder: &Path,
    vault: &Vault,
) -> anyhow::Result<(Index, anyhow::Result<Reader>)> {
    let anew = |error: &dyn std::error::Error| {
        let error = chain(error);
        tracing::warn!(%error, "the chunk index cannot be used; it is made anew from the vault");
        learning::forget(folder);
        Index::reset(folder, vault.id()).context("make the chunk index anew")
    };
    let index = match Index::begin(folder, vault.id(), Room::default()) {
        Ok(index) => index,
        Err(error) if error.kind() == ErrorKind::Conflict => return Err(error.into()),
        Err(error) => anew(&error)?,
    };
    let mut reader = Reader::default();
    let Some(cleared) = index.cleared() else {
        learning::forget(folder);
        return Ok((index, Ok(reader)));
    };
    match Reader::behind(vault, cleared).await {
        Ok(reader) => Ok((index, Ok(reader))),
        Err(error) if error.is_unavailable() => Err(error).context("read the vault's register"),
        // If nothing of the register can be read, nothing of the index is used, nor thrown away.
        Err(error) => match reader.refresh(vault).await {
            Ok(_) => {
                drop(index);
                Ok((anew(&error)?, Ok(reader)))
            }
            Err(error) => Ok((index, Err(error).context("read the vault's register"))),
        },
    }
}

#[cfg(test)]
mod tests;
