//! What is done when somebody else writes a disk that is served: no mark is set from the moment it is
//! noticed, and once they have ended, all of the disk is read again, for nobody told what they wrote.

use super::Facts;
use crate::disk::Disk;
use crate::stream::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks for other writers.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// How long they must have been quiet before the disk is read again: it would be in vain before.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// Looks after other writers of a served disk, until dropped.
pub(super) async fn mind_others(disk: Arc<Disk>, stream: Arc<Stream>, facts: Arc<Facts>) {
    let mut newest = None;
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        let looked_at = Arc::clone(&disk);
        let found = match blocking(move || Ok(looked_at.disturbance())).await {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(%error, "other writers cannot be looked for");
                continue;
            }
        };
        let since = match newest {
            Some((number, since)) if number == found.number && !found.goes_on => since,
            _ => Instant::now(),
        };
        newest = Some((found.number, since));
        let is_quiet = since.elapsed() >= QUIET_TIME;
        let noted = Arc::clone(&stream);
        let noted = blocking(move || match is_quiet {
            true => {
                noted.reread();
                Ok(())
            }
            false => noted.disturb(),
        });
        let noted = noted.await;
        facts.disturb(&found.seen);
        match noted {
            Ok(()) if is_quiet => {
                disk.settle(found.number);
                facts.settle();
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "that somebody writes the disk cannot be noted: no marks");
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
