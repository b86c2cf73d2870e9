//! How an export serves, for those who cannot ask it: a file, and lines in the log.

use crate::clock::unix_ms;
use farshore_api::export::{ExportState, ExportStatus};
use farshore_export::{ExportError, Watch};
use farshore_proto::ErrorKind;
use farshore_vault::{Patience, Supply};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Between two changes of the file.
const PAUSE: Duration = Duration::from_millis(200);

/// What requests met, besides a store that is away.
#[derive(Debug)]
pub(super) struct Health(watch::Sender<Ills>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ills {
    /// The overlay had no room for the last write.
    full: Option<(SystemTime, String)>,
    /// The last read met something that waiting does not mend.
    damage: Option<(SystemTime, String)>,
}

impl Default for Health {
    fn default() -> Self {
        Self(watch::Sender::new(Ills::default()))
    }
}

impl Watch for Health {
    fn wrote(&self, result: &Result<(), ExportError>) {
        let error = result.as_ref().err().filter(|error| error.is_no_space());
        self.note(error, |ills| &mut ills.full);
    }

    fn read<T>(&self, result: &Result<T, ExportError>) {
        // What was waited for in vain has been told by who waited.
        let is_told = |error: &&ExportError| {
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled)
                || matches!(error, ExportError::Range { .. })
        };
        let error = result.as_ref().err().filter(|error| !is_told(error));
        self.note(error, |ills| &mut ills.damage);
    }
}

impl Health {
    fn note(
        &self,
        error: Option<&ExportError>,
        of: impl Fn(&mut Ills) -> &mut Option<(SystemTime, String)>,
    ) {
        self.0.send_if_modified(|ills| {
            let known = of(ills);
            match error {
                None => known.take().is_some(),
                Some(_) if known.is_some() => false,
                Some(error) => {
                    *known = Some((SystemTime::now(), error.to_string()));
                    true
                }
            }
        });
    }
}

/// Tells each change, for as long as the export serves.
pub(super) async fn tell(path: Option<PathBuf>, patience: Patience, health: Arc<Health>) {
    let (mut supply, mut ills) = (patience.supply(), health.0.subscribe());
    let patience_seconds = patience.max().as_secs();
    let mut told: Option<ExportStatus> = None;
    loop {
        let found = {
            let (supply, ills) = (supply.borrow_and_update(), ills.borrow_and_update());
            status(&supply, &ills, patience_seconds, told.as_ref())
        };
        if told.as_ref() != Some(&found) {
            if told.as_ref().is_none_or(|told| told.state != found.state) {
                log(&found, told.as_ref());
            }
            if let Some(path) = &path
                && let Err(error) = write(path, &found)
            {
                tracing::warn!(path = %path.display(), %error, "cannot write the status file");
            }
            told = Some(found);
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            _ = supply.changed() => {}
            _ = ills.changed() => {}
        }
    }
}

/// What hinders most comes first.
fn status(
    supply: &Supply,
    ills: &Ills,
    patience_seconds: u64,
    told: Option<&ExportStatus>,
) -> ExportStatus {
    let (state, since, reason) = match (supply, ills) {
        (Supply::Waiting { since, reason }, _) => (ExportState::Waiting, *since, Some(reason)),
        (Supply::Failed { since, reason }, _) => (ExportState::Failing, *since, Some(reason)),
        (Supply::Well, Ills { damage: Some((since, reason)), .. }) => {
            (ExportState::Failing, *since, Some(reason))
        }
        (Supply::Well, Ills { full: Some((since, reason)), .. }) => {
            (ExportState::OverlayFull, *since, Some(reason))
        }
        (Supply::Well, _) => (ExportState::Serving, SystemTime::now(), None),
    };
    let since_unix_ms = match told {
        Some(told) if told.state == state => told.since_unix_ms,
        _ => unix_ms(since),
    };
    ExportStatus { state, reason: reason.cloned(), since_unix_ms, patience_seconds }
}

fn log(status: &ExportStatus, before: Option<&ExportStatus>) {
    let reason = status.reason.as_deref().unwrap_or_default();
    match status.state {
        ExportState::Serving if before.is_none() => {}
        ExportState::Serving => tracing::info!("every request is answered again"),
        ExportState::Waiting => {
            let seconds = status.patience_seconds;
            tracing::warn!(
                reason,
                "the vault's store does not answer: reads wait up to {seconds} s"
            );
        }
        ExportState::Failing => tracing::error!(reason, "reads fail"),
        ExportState::OverlayFull => {
            tracing::error!(
                reason,
                "the overlay's file system is full: writes fail until there is room"
            );
        }
    }
}

/// Replaces the file. It is no matter of durability: after a crash there is nothing to tell.
fn write(path: &Path, status: &ExportStatus) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, serde_json::to_vec(status)?)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_space() -> ExportError {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        farshore_export::overlay::OverlayError::Io { path: "o".into(), verb: "write", source }
            .into()
    }

    fn damaged() -> ExportError {
        let path = PathBuf::from("o");
        farshore_export::overlay::OverlayError::Damaged { path, what: "gone" }.into()
    }

    #[tokio::test]
    async fn the_file_says_why_and_since_when() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let health = Arc::new(Health::default());
        let patience = Patience::new(Duration::from_secs(600));
        let task = tokio::spawn(tell(Some(path.clone()), patience, Arc::clone(&health)));
        let state = async |wanted: ExportState| {
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            loop {
                let found = std::fs::read(&path).ok();
                let found =
                    found.map(|bytes| serde_json::from_slice::<ExportStatus>(&bytes).unwrap());
                match found {
                    Some(found) if found.state == wanted => return found,
                    _ => assert!(std::time::Instant::now() < deadline, "{found:?}"),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = state(ExportState::Serving).await;
        assert_eq!((found.reason, found.patience_seconds), (None, 600));
        health.wrote(&Err(no_space()));
        let full = state(ExportState::OverlayFull).await;
        assert!(full.reason.unwrap().contains("cannot write") && full.since_unix_ms > 0);
        health.read::<()>(&Err(damaged()));
        let failing = state(ExportState::Failing).await;
        assert!(failing.reason.unwrap().contains("gone"));
        // Each of the two ends by itself.
        health.read(&Ok(()));
        state(ExportState::OverlayFull).await;
        health.wrote(&Ok(()));
        assert_eq!(state(ExportState::Serving).await.reason, None);
        task.abort();
    }
}
