//! What capture and session of one volume have in common: the log, and what happens when it does
//! not join the node's stream.

use crate::capture::progress::Progress;
use crate::capture::splitter::Splitter;
use crate::hrl::{Log, LogError};
use crate::state::StateFile;
use farshore_engine::source::Breach;
use farshore_proto::{ErrorKind, Seq, VolumeId};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Why the log could not be restarted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// That the disk must be sent again could not be noted.
    #[error("the volume's state cannot be written")]
    State(#[from] io::Error),
    /// The log's files could not be replaced.
    #[error("the log cannot be restarted")]
    Log(#[from] LogError),
}

impl RestartError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// One volume's stream on this machine.
#[derive(Debug)]
pub struct Stream {
    /// The volume.
    pub volume: VolumeId,
    /// Its log.
    pub log: Arc<Log>,
    /// Its state.
    pub state: Arc<StateFile>,
    /// The copy of its disk.
    pub progress: Arc<Progress>,
    is_joined: watch::Sender<bool>,
    /// The splitter, while the disk is served; a scanned disk has none.
    splitter: Mutex<Option<Arc<Splitter>>>,
    /// Whether intents say what is in doubt. A scan has none: then it is always the whole disk.
    has_intents: bool,
}

impl Stream {
    /// A stream that has not joined yet.
    #[must_use]
    pub fn new(
        volume: VolumeId,
        log: Arc<Log>,
        state: Arc<StateFile>,
        progress: Arc<Progress>,
        has_intents: bool,
    ) -> Self {
        let is_joined = watch::Sender::new(false);
        let splitter = Mutex::default();
        Self { volume, log, state, progress, is_joined, splitter, has_intents }
    }

    /// The splitter, while the disk is served.
    #[must_use]
    pub fn splitter(&self) -> Option<Arc<Splitter>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Splitter>>> {
        self.splitter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets or takes away the splitter.
    pub fn set_splitter(&self, splitter: Option<Arc<Splitter>>) {
        *self.lock() = splitter;
    }

    /// Turns true when the log joins the node's stream.
    #[must_use]
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.is_joined.subscribe()
    }

    /// Notes that the log joins the node's stream; blocks.
    pub fn join(&self) {
        // If this is not written, a later start is more careful than it needs to be.
        if let Err(error) = self.state.update(|state| state.floor = None) {
            tracing::warn!(volume = %self.volume, %error, "the volume's state cannot be written");
        }
        self.is_joined.send_replace(true);
    }

    /// Empties the log and goes on at `next`, with the disk in doubt as far as `breach` says. Blocks.
    ///
    /// That the whole disk is to be sent again is durable before the log is emptied; what is in
    /// doubt otherwise has its intents.
    ///
    /// # Errors
    /// [`RestartError`]; then the log is as it was, or a restart of the agent finds it gone.
    pub fn restart(&self, next: Seq, breach: Breach) -> Result<(), RestartError> {
        let is_partial = breach == Breach::TailLost && self.has_intents;
        tracing::warn!(volume = %self.volume, %next, ?breach, is_partial, "the log starts again");
        if is_partial {
            self.progress.hold();
        } else {
            self.progress.begin_again()?;
        }
        let restarted = self.log.restart(next);
        if restarted.is_ok()
            && is_partial
            && let Some(splitter) = self.splitter()
        {
            splitter.gate().doubt_all();
        }
        self.progress.resume();
        Ok(restarted?)
    }
}
