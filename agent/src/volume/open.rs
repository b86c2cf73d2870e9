//! Opening what a volume left behind.

use super::{Env, Stream};
use crate::durable::private_dir;
use crate::hrl::LogError;
use crate::stream::{Found, LOG_DIR, Place, StreamError};
use farshore_api::agent::AgentVolume;
use farshore_api::machine::Capture;
use farshore_engine::source::Opened;
use farshore_proto::mark::Mark;
use farshore_proto::{ErrorKind, Seq};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of the room on the file system, the share that one log takes at most.
const ROOM_SHARE: (u64, u64) = (3, 4);
/// The log's limit is never below this, however little room there is.
const LOG_BYTES_MIN: u64 = 16 << 20;

/// A write of ours may be on the disk and not in the log yet when the agent is killed: so much later than
/// the last thing that we noted the disk may have been changed by us.
const NOTED_LATE_NS: i64 = 50_000_000;

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

impl From<StreamError> for OpenError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Io { action, path, source } => Self::Io { action, path, source },
            StreamError::Log(source) => Self::Log { source },
        }
    }
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
    /// When the run before, if it was not stopped in order, can have changed the disk at the latest, in
    /// nanoseconds.
    pub ran_until_ns: Option<i64>,
}

impl Opening {
    /// Opens the log and the state of a volume; blocks. If it `is_forced`, a directory that takes nothing or
    /// cannot be read keeps nobody's disk from being served: see [`Place::is_forced`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(env: &Env, volume: &AgentVolume, is_forced: bool) -> Result<Self, OpenError> {
        let dir = env.data.join("volumes").join(volume.volume.to_string());
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        let log_dir = dir.join(LOG_DIR);
        // Before anything of this run changes a file.
        let ran_until_ns = noted_last_ns(&dir).map(|noted| noted.saturating_add(NOTED_LATE_NS));
        let made = private_dir(&log_dir).map_err(failed("create", &log_dir));
        let limit = log_limit(&log_dir, env.log_bytes_max).map_err(failed("measure", &log_dir));
        let limit = match made.and(limit) {
            Err(_) if is_forced => LOG_BYTES_MIN.min(env.log_bytes_max),
            limit => limit?,
        };
        let place = Place {
            files: Arc::clone(&env.files),
            time: Arc::new(env.clock),
            dir: dir.clone(),
            log_bytes_max: limit,
            life: draw_life().map_err(failed("draw a number for", &dir))?,
            is_forced,
        };
        let has_intents = volume.capture == Capture::Nbd;
        let (stream, found) = Stream::open(&place, volume.volume.into(), has_intents)?;
        let Found { opened, marks, is_new, .. } = found;
        let nbd_port = volume.nbd_port;
        let stream = Arc::new(stream);
        Ok(Self { dir, stream, opened, marks, nbd_port, is_new, ran_until_ns })
    }
}

/// When a file of the volume was changed last; none if there are none. Every write to the disk is
/// followed by one to the log, or was preceded by one to the intents.
fn noted_last_ns(dir: &Path) -> Option<i64> {
    let files = [dir.to_owned(), dir.join(LOG_DIR)].into_iter().filter_map(|dir| {
        let times = std::fs::read_dir(dir).ok()?.flatten().filter_map(|entry| {
            let found = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some(found.mtime().wrapping_mul(1_000_000_000).wrapping_add(found.mtime_nsec()))
        });
        times.max()
    });
    files.max()
}

/// The number of this run's life.
fn draw_life() -> io::Result<u32> {
    let drawn = getrandom::u32().map_err(io::Error::other)?;
    Ok(drawn.max(1))
}

/// The limit of a log: what was asked for, or most of the room there is.
fn log_limit(dir: &Path, asked: u64) -> io::Result<u64> {
    let room = rustix::io::retry_on_intr(|| rustix::fs::statvfs(dir))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let mut used = 0;
    for entry in std::fs::read_dir(dir)? {
        used += entry?.metadata()?.len();
    }
    let share = free.saturating_add(used) / ROOM_SHARE.1 * ROOM_SHARE.0;
    Ok(asked.min(share.max(LOG_BYTES_MIN)))
}
