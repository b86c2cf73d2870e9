//! The `.hrl` log of one volume: every change on its way to the vault, in stream order.
//!
//! Files named by the seq of their first frame, each a header and then frames as on the wire. One
//! file is open for appending; whole files go away once everything in them is committed. Appends
//! reach the page cache, which outlives the process; [`Log::sync`] makes them outlive the machine.
//!
//! Order of operations: a new file has its header before it takes a frame; files are trimmed oldest
//! first; the newest file is never removed, so that the next seq is always known. What is behind the
//! frames that somebody relies on may be lost in a crash; the volume's state says up to where that is.
//!
//! A file system that hangs holds whoever changes a file there, and nobody else: others are refused after a
//! moment ([`AppendError::Hangs`]). What hung and comes to its end then is in its place in the log, as
//! nothing was appended in the meantime.

mod closed;
mod frames;
mod lane;
mod reader;
mod recovery;
mod still;
mod trim;
mod writer;

pub use reader::{Cursor, Held, Run};
pub use recovery::{Loss, Lost, Recovered};
pub use writer::{Entry, Home, Log, Marked, Place};

use farshore_proto::{DecodeError, ErrorKind, Seq};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What takes so long counts as hanging: nobody waits for it any more.
pub const HANG_TIME: Duration = Duration::from_secs(2);

/// Why the log could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Reading or writing a file of the log failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A frame that was appended cannot be read back.
    #[error("{} is damaged at offset {offset}, seq {seq}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the frame that cannot be read begins in it.
        offset: u64,
        /// First seq that cannot be read.
        seq: Seq,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The seq is not in the log.
    #[error("seq {seq} is not in the log")]
    Missing {
        /// The seq.
        seq: Seq,
    },
}

impl LogError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Unavailable,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Missing { .. } => ErrorKind::NotFound,
        }
    }
}

/// Why a change was not appended. It is on the disk all the same: its regions are in doubt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The log has reached its limit.
    #[error("the log has reached its limit of {limit_bytes} bytes")]
    Full {
        /// The limit.
        limit_bytes: u64,
    },
    /// The file system of the log is full.
    #[error("no space is left for the log")]
    NoSpace,
    /// What must be noted before anything is appended cannot be noted.
    #[error("the agent's directory takes nothing: {why}")]
    Held {
        /// What the system said.
        why: String,
    },
    /// The file system of the log does not answer, or whoever appended gave up before its turn came.
    #[error("the file system of the log does not answer")]
    Hangs,
    /// Writing failed in another way.
    #[error("the log cannot be written")]
    Io {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something was lost or the log was restarted since the caller looked: the mark would promise
    /// what the log does not hold.
    #[error("the log lost a change in the meantime")]
    Breached,
}

#[cfg(test)]
mod tests;
