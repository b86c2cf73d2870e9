//! That a volume's intents are void, noted in memory that outlasts the agent.
//!
//! The agent's directory may take not even that: then a kill would leave intents there that say less than was
//! written. A directory of another file system, of the run of the server ([`Files::run_dir`]), tells the next
//! start. A power cut takes the note along.

use crate::durable::private_dir;
use crate::files::Files;
use farshore_proto::VolumeId;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Where the note of one volume is, if the system has a place for it.
#[derive(Debug, Clone)]
pub(super) struct VoidNote(Option<PathBuf>);

impl VoidNote {
    pub(super) fn of(files: &dyn Files, volume: VolumeId) -> Self {
        Self(files.run_dir().map(|dir| dir.join(format!("{volume}.void"))))
    }

    /// Whether the intents of this volume's file count for nothing.
    pub(super) fn is_there(&self) -> bool {
        self.0.as_ref().is_some_and(|path| path.exists())
    }

    /// Notes that they do.
    pub(super) fn make(&self) -> io::Result<()> {
        let Some(path) = &self.0 else {
            return Err(io::Error::other(
                "this server has no directory for what outlasts the agent",
            ));
        };
        path.parent().map_or(Ok(()), private_dir)?;
        fs::File::create(path).map(drop)
    }

    /// The directory of the agent says itself what counts.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It stays: the next start reads more than it must.
            tracing::warn!(path = %path.display(), %error, "the note of void intents stays");
        }
    }
}
