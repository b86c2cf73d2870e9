//! Opening what a volume left behind, and deciding what of it can be trusted.

use super::{Env, Stream};
use crate::capture::progress::Progress;
use crate::durable::private_dir;
use crate::hrl::{Log, LogError};
use crate::state::StateFile;
use farshore_api::agent::AgentVolume;
use farshore_api::machine::Capture;
use farshore_engine::source::Opened;
use farshore_proto::frame::Mark;
use farshore_proto::{ErrorKind, Seq};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of the room on the file system, the share that one log takes at most.
const ROOM_SHARE: (u64, u64) = (3, 4);
/// The log's limit is never below this, however little room there is.
const LOG_BYTES_MIN: u64 = 16 << 20;

/// Why a volume cannot begin. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file of the agent cannot be read or written.
    #[error(
        "the agent cannot {action} {}: {source}; give it space and permissions there", path.display()
    )]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error("the log of the volume cannot be opened: {source}; give the agent space there")]
    Log {
        /// Why.
        #[from]
        source: LogError,
    },
    /// A bug in the agent.
    #[error("the volume's task failed: {source}")]
    Task {
        /// How.
        source: tokio::task::JoinError,
    },
}

impl OpenError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Log { .. } => ErrorKind::Unavailable,
            Self::Task { .. } => ErrorKind::Internal,
        }
    }
}

/// A volume's stream as it was found.
#[derive(Debug)]
pub struct Opening {
    /// Directory of the volume.
    pub dir: PathBuf,
    /// The stream.
    pub stream: Arc<Stream>,
    /// What the log held.
    pub opened: Opened,
    /// The marks in it.
    pub marks: Vec<(Seq, Mark)>,
    /// Loopback port to serve the disk on, if not a Unix socket.
    pub nbd_port: Option<u16>,
    /// Whether nothing was there: a volume that the agent meets for the first time.
    pub is_new: bool,
}

impl Opening {
    /// Opens the log and the state of a volume; blocks.
    ///
    /// A log that is absent or damaged although the volume had begun means that the whole disk is
    /// sent again.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(env: &Env, volume: &AgentVolume) -> Result<Self, OpenError> {
        let dir = env.data.join("volumes").join(volume.volume.to_string());
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        private_dir(&dir).map_err(failed("create", &dir))?;
        let path = dir.join("state.json");
        let state = match StateFile::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let path = path.display();
                tracing::error!(%path, %error, "the state is damaged: the whole disk is sent again");
                StateFile::unknown(&dir.join("state.json"))
            }
            other => other.map_err(failed("read", &path))?,
        };
        let is_new = state.was_absent();
        let state = Arc::new(state);
        let log_dir = dir.join("hrl");
        private_dir(&log_dir).map_err(failed("create", &log_dir))?;
        let limit = log_limit(&log_dir, env.log_bytes_max).map_err(failed("measure", &log_dir))?;
        let (log, recovered) = Log::open(&log_dir, volume.volume.into(), limit)?;
        let progress = Arc::new(Progress::new(Arc::clone(&state)));
        let trouble = match &recovered.damage {
            Some(damage) => Some(damage.clone()),
            None if recovered.was_absent && !is_new => Some("the log is gone".to_owned()),
            None => None,
        };
        if let Some(trouble) = trouble {
            let volume = volume.volume;
            tracing::error!(%volume, trouble, "the log is damaged: the whole disk is sent again");
            progress.begin_again().map_err(failed("write", &path))?;
            progress.resume();
        }
        // Until a session joins, the node has at most what the log held at the first start since
        // the last one did: a power cut may have taken what came behind.
        let last = recovered.last;
        let floor = Seq(state.get().floor.unwrap_or(last.0)).min(last);
        if let Err(error) = state.update(|state| state.floor = Some(floor.0)) {
            tracing::warn!(path = %path.display(), %error, "the volume's state cannot be written");
        }
        let (log, has_intents) = (Arc::new(log), volume.capture == Capture::Nbd);
        let stream = Stream::new(volume.volume.into(), log, state, progress, has_intents);
        Ok(Self {
            dir,
            stream: Arc::new(stream),
            opened: Opened { last, floor },
            marks: recovered.marks,
            nbd_port: volume.nbd_port,
            is_new,
        })
    }
}

/// The limit of a log: what was asked for, or most of the room there is.
fn log_limit(dir: &Path, asked: u64) -> io::Result<u64> {
    let room = rustix::fs::statvfs(dir)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let mut used = 0;
    for entry in std::fs::read_dir(dir)? {
        used += entry?.metadata()?.len();
    }
    let share = free.saturating_add(used) / ROOM_SHARE.1 * ROOM_SHARE.0;
    Ok(asked.min(share.max(LOG_BYTES_MIN)))
}
