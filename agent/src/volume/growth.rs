//! A disk that grows while it is captured.
//!
//! The agent tells its new size; the control plane gives the volume a new epoch of that size; the agent
//! tells its node; and only when the node takes the volume at that size does the capture grow: before that
//! nothing behind the old end may be in the log. Marks of before are sent under the old epoch first, so that
//! their points have the size of then, and no mark is set until what is new was copied.

use super::capture::{CaptureError, blocking};
use super::{Running, Standing};
use crate::capture::splitter::Splitter;
use crate::disk::{Disk, DiskError};
use farshore_api::limits::GROWN_BYTES_MAX;
use farshore_engine::source::Phase;
use farshore_proto::Seq;
use std::sync::Arc;
use std::time::Duration;

/// How long the marks of before may take to reach the node.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(3);
/// How long the node may take to welcome the volume at its new size, before the disk is looked at again.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(10);

impl Running {
    /// The size that the control plane has given the volume, if that is more than is captured.
    pub(super) fn granted(&self, disk: &Disk) -> Option<u64> {
        self.assigned.borrow().size_bytes.filter(|granted| *granted > disk.size_bytes())
    }

    /// Whether the stream may have its new size already, and not what is new of the disk.
    pub(super) fn is_ahead_of(&self, disk: &Disk) -> bool {
        *self.sizes.borrow() > disk.size_bytes()
    }

    /// The disk has a size again that nothing has to be done about.
    pub(super) fn settle_size(&self, disk: &Disk, splitter: Option<&Arc<Splitter>>) {
        self.facts.grow(None);
        match self.granted(disk) {
            None => {
                if let Some(splitter) = splitter {
                    splitter.release_marks();
                }
                self.facts.recover();
            }
            // It was given more, and has shrunk since.
            Some(recorded_bytes) => {
                let (path, size_bytes) = (disk.path().to_owned(), disk.size_bytes());
                let shrunk = DiskError::Resized { path, size_bytes, recorded_bytes };
                self.facts.fail(shrunk.to_string());
            }
        }
    }

    /// The disk has grown to `size_bytes`: tells it, and takes over what the volume was given of that. True if
    /// the volume has another size now, and the disk is still captured with that of before: a scan's.
    pub(super) async fn grow(
        &mut self,
        disk: &Arc<Disk>,
        size_bytes: u64,
        splitter: Option<&Arc<Splitter>>,
    ) -> Result<bool, CaptureError> {
        if size_bytes > GROWN_BYTES_MAX {
            self.facts.warn(Some(format!(
                "disk {} has grown to {size_bytes} bytes, and none is followed above \
                 {GROWN_BYTES_MAX} yet: its first {} bytes are replicated",
                disk.path().display(),
                disk.size_bytes()
            )));
            return Ok(false);
        }
        self.facts.warn(None);
        self.facts.grow(Some(size_bytes));
        let Some(granted) = self.granted(disk).filter(|granted| *granted <= size_bytes) else {
            return Ok(false);
        };
        let end = match splitter {
            Some(splitter) => splitter.hold_marks().await,
            // A scan sets none of its own accord while it is here.
            None => {
                let stream = Arc::clone(&self.opening.stream);
                blocking(move || Ok(stream.log.settle_kept())).await
            }
        };
        let end = end.map_err(|source| self.data_error(source))?;
        self.until(DRAIN_TIME_MAX, |standing| !is_up(standing) || has(standing, end)).await;
        self.sizes.send_replace(granted);
        self.start_session();
        let is_taken = |standing: &Option<Standing>| {
            is_up(standing)
                && standing.as_ref().is_some_and(|standing| standing.size_bytes >= granted)
        };
        if !self.until(WELCOME_TIME_MAX, is_taken).await {
            return Ok(false);
        }
        let volume = self.opening.stream.volume;
        tracing::info!(%volume, disk = %disk.path().display(), granted, "the volume has grown");
        let Some(splitter) = splitter else {
            let stream = Arc::clone(&self.opening.stream);
            let noted = blocking(move || stream.state.update(|state| state.size_bytes = granted));
            noted.await.map_err(|source| self.data_error(source))?;
            self.facts.grow(None);
            return Ok(true);
        };
        if let Err(error) = splitter.grow(granted).await {
            // Its guest keeps the disk; what is new waits.
            self.facts.warn(Some(format!(
                "the growth of disk {} was cut off ({error}): what is new is not replicated yet",
                disk.path().display()
            )));
            return Ok(false);
        }
        self.facts.grow(None);
        Ok(false)
    }

    /// Waits for the session to stand so, for as long; whether it does.
    async fn until(&self, time: Duration, holds: impl FnMut(&Option<Standing>) -> bool) -> bool {
        let (mut standing, mut stop) = (self.facts.standing(), self.stop.clone());
        tokio::select! {
            waited = tokio::time::timeout(time, standing.wait_for(holds)) => {
                matches!(waited, Ok(Ok(_)))
            }
            _ = stop.wait_for(|stop| *stop) => false,
        }
    }
}

fn is_up(standing: &Option<Standing>) -> bool {
    standing.as_ref().is_some_and(|standing| standing.phase == Phase::Streaming)
}

fn has(standing: &Option<Standing>, end: Seq) -> bool {
    standing.as_ref().is_some_and(|standing| standing.journaled >= end)
}
