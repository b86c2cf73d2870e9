//! Why the control plane cannot start or go on, and with which exit code it ends.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use farshore_api::Exit;

use crate::error::ControlError;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// A setting is not acceptable.
    #[error("{flag} {why}")]
    Setting {
        /// The flag.
        flag: &'static str,
        /// What is wrong and what to do.
        why: String,
    },
    /// The data directory, or a file in it, cannot be made.
    #[error(
        "cannot create {path}: {source}; choose a --data directory that this user may write and that has \
             room"
    )]
    Create {
        /// What could not be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in the data directory cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A secret can be read by others.
    #[error("{path} can be read by other users; run `chmod 600 {path}` and start again")]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A file in the data directory is not what it should be.
    #[error("{path} is damaged: {why}; restore it from a backup, or move the data directory away")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another control plane runs on the same directory.
    #[error(
        "{path} is in use by another farshore-control; stop that one, or choose another --data"
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}; stop what uses it, or choose another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The catalogue does not work.
    #[error("cannot open the catalogue {path}: {source}{}", cause(.source))]
    Catalogue {
        /// The database file.
        path: PathBuf,
        /// Why.
        source: ControlError,
    },
    /// The process cannot get what it runs on.
    #[error("cannot start threads and catch signals: {source}")]
    Runtime {
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {why}")]
    Tls {
        /// What the library said.
        why: String,
    },
}

fn cause(error: &ControlError) -> String {
    std::error::Error::source(error).map(|cause| format!(" ({cause})")).unwrap_or_default()
}

impl Fatal {
    /// Turns an I/O error about `path` into the sentence for it.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.into(), source }
    }

    /// The code that the process ends with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setting { .. } => Exit::Usage,
            Self::Create { source, .. } => Exit::from_io(source, Exit::CannotCreate),
            Self::File { source, .. } => Exit::from_io(source, Exit::InputOutput),
            Self::Exposed { .. } => Exit::Denied,
            Self::Damaged { .. } => Exit::DataInvalid,
            Self::InUse { .. } => Exit::Conflict,
            Self::Listen { .. } => Exit::Unavailable,
            Self::Catalogue { source: ControlError::NoSpace, .. } => Exit::NoSpace,
            Self::Catalogue { source: ControlError::Migration { .. }, .. } => Exit::DataInvalid,
            Self::Catalogue { .. } => Exit::InputOutput,
            Self::Runtime { .. } => Exit::SystemMissing,
            Self::Tls { .. } => Exit::Internal,
        }
    }
}
