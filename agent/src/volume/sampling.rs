//! What it takes to read a served disk, and to compare it with what was sent.

use super::Running;
use super::capture::{CaptureError, blocking};
use crate::capture::intent::Recovered;
use crate::capture::prints::{PRINTS_FILE, Prints};
use crate::capture::sample::Sampling;
use crate::capture::splitter::Splitter;
use crate::disk::Disk;
use crate::rt::ReadFile;
use std::sync::Arc;

impl Running {
    pub(super) async fn open_reads(&self, disk: &Arc<Disk>) -> Result<ReadFile, CaptureError> {
        let (reads, disk) = (self.env.reads.clone(), Arc::clone(disk));
        let opened = blocking(move || reads.open(disk.file(), disk.size()));
        opened.await.map_err(|source| self.data_error(source))
    }

    /// Opens what is known to have been sent of the disk; none if that is not wanted or cannot be kept:
    /// the disk is served all the same.
    pub(super) async fn open_prints(
        &self,
        disk: &Arc<Disk>,
        recovered: &Recovered,
    ) -> Result<Option<Arc<Prints>>, CaptureError> {
        let (path, size) = (self.opening.dir.join(PRINTS_FILE), disk.size_bytes());
        let (volume, is_wanted) = (self.opening.stream.volume, self.env.pace.is_some());
        let doubtful = recovered.regions.clone();
        let opened = blocking(move || {
            // What is not kept up is wrong later: then the sampler finds a difference where there is none, and
            // reads again.
            let remove = || {
                if let Err(error) = Prints::remove(&path) {
                    let path = path.display();
                    tracing::warn!(%path, %error, "old prints cannot be removed");
                }
                Ok(None)
            };
            if !is_wanted {
                return remove();
            }
            match Prints::open(&path, volume, size, &doubtful) {
                Ok(prints) => Ok(Some(Arc::new(prints))),
                Err(error) => {
                    let path_text = path.display();
                    tracing::error!(path = %path_text, %error, "the disk is not sampled: its prints \
                        cannot be kept; give the agent space there");
                    remove()
                }
            }
        });
        opened.await.map_err(|source| self.data_error(source))
    }

    /// The sampler of a served disk, if it has one.
    pub(super) async fn sampling(
        &self,
        disk: &Arc<Disk>,
        splitter: &Arc<Splitter>,
        prints: Option<Arc<Prints>>,
    ) -> Result<Option<Sampling>, CaptureError> {
        let (Some(prints), Some(pace)) = (prints, self.env.pace.clone()) else { return Ok(None) };
        Ok(Some(Sampling {
            splitter: Arc::clone(splitter),
            prints,
            reads: self.open_reads(disk).await?,
            stream: Arc::clone(&self.opening.stream),
            pace,
            clock: self.env.clock,
        }))
    }
}
