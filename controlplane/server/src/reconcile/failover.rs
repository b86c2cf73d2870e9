//! Drives one failover: asks [`crate::domain::failover`] what to do, does it, says what came of it.
//!
//! Starting a process and noting it down is not interrupted; waiting for it is, as soon as somebody
//! changes the failover's state. Stopping the control plane leaves the processes alone; the next
//! start takes them up again.

mod backoff;
mod check;
mod keep;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::db::{Actor, FailoverRow, Process, ProcessRole};
use crate::domain::failover::{Command, Event};
use crate::error::ControlError;
use crate::providers::export::Files;
use crate::providers::{ProviderError, process, qemu};
use crate::reconcile::vault_end::{self, Fence};
use backoff::Backoff;

pub use check::check;

/// Pause after the catalogue failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What came of a command.
enum Outcome {
    /// This happened.
    Event(Event),
    /// It does not come up.
    Broken(ProviderError),
    /// It may run and was not seen to: look again.
    Slow(ProviderError),
    /// It ran, and something of it is gone or stands still: why.
    Lost(String),
    /// Somebody changed the state meanwhile: look again.
    Changed,
    /// Nothing is left to do.
    Done,
}

/// Drives the failover until nothing is left to do.
pub async fn drive(app: &App, id: Uuid) {
    let mut backoff = Backoff::default();
    loop {
        match drive_once(app, id, &mut backoff).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(failure) => {
                error!(failover = %id, error = %failure, "drive failover");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Carries out what the state asks for. Returns whether to go on.
async fn drive_once(app: &App, id: Uuid, backoff: &mut Backoff) -> Result<bool, ControlError> {
    let changes = app.changes.listen(Topic::Failovers);
    let row = app.db.failover(id).await?;
    let Some(command) = row.command() else { return Ok(false) };
    let outcome = perform(app, &row, command, changes, backoff).await?;
    let (event, reason) = match outcome {
        Outcome::Done => return Ok(false),
        Outcome::Changed => return Ok(true),
        Outcome::Event(event) => (event, None),
        Outcome::Broken(failure) => (Event::Broken, Some(failure.to_string())),
        Outcome::Slow(failure) => {
            let detail = format!("{}{failure}", keep::FOR_NOW);
            app.db.set_failover_facts(id, None, None, Some(&detail)).await?;
            warn!(failover = %id, detail, "failover waits");
            app.changes.wake(Topic::Failovers);
            return Ok(true);
        }
        Outcome::Lost(reason) => {
            backoff.lost(Instant::now());
            app.db.set_failover_facts(id, None, None, Some(&reason)).await?;
            warn!(failover = %id, reason, "failover is to be brought back");
            (Event::Lost, None)
        }
    };
    if event == Event::Broken {
        app.db.set_failover_facts(id, None, None, Some(what_to_do(&row))).await?;
    }
    let state = app.db.failover_event(Actor::Control, id, event, reason.as_deref()).await?;
    match reason {
        Some(reason) => warn!(failover = %id, reason, "failover failed"),
        None => info!(failover = %id, state = state.as_str(), "failover"),
    }
    app.changes.wake(Topic::Failovers);
    if matches!(event, Event::Fenced | Event::Cleared) {
        app.changes.wake(Topic::Assignments);
    }
    Ok(true)
}

/// What an operator does about a failover that did not come up.
fn what_to_do(row: &FailoverRow) -> &'static str {
    if row.domain().resumes_replication() {
        "retry tries again; cleanup rolls back: the machine then replicates again where it was"
    } else {
        "retry tries again; cleanup removes what is left of it"
    }
}

async fn perform(
    app: &App,
    row: &FailoverRow,
    command: Command,
    changes: watch::Receiver<u64>,
    backoff: &mut Backoff,
) -> Result<Outcome, ControlError> {
    let files = Files::new(&app.settings.failovers(), row.shown.id);
    match command {
        Command::Begin => Ok(Outcome::Event(Event::Begin)),
        Command::Fence => fence(app, row, &files, changes).await,
        Command::StartExport => keep::start_export(app, row, &files, changes).await,
        Command::StartMachine => keep::start_machine(app, row, &files, changes).await,
        Command::Watch => {
            backoff.up(Instant::now());
            keep::watch(app, row, &files, changes).await
        }
        Command::Recover => keep::recover(app, row, &files, changes, backoff).await,
        Command::Stop => match stop(app, row, &files).await? {
            None => Ok(Outcome::Done),
            Some(failure) => unfinished(app, row, &failure.to_string()).await,
        },
        Command::Clear => {
            if let Some(failure) = stop(app, row, &files).await? {
                return unfinished(app, row, &failure.to_string()).await;
            }
            match files.remove() {
                Ok(()) => Ok(Outcome::Event(Event::Cleared)),
                Err(failure) => unfinished(app, row, &failure.to_string()).await,
            }
        }
    }
}

/// Tells why ending a failover is not over, and lets it be tried again after a pause.
async fn unfinished(app: &App, row: &FailoverRow, reason: &str) -> Result<Outcome, ControlError> {
    app.db.set_failover_facts(row.shown.id, None, None, Some(reason)).await?;
    warn!(failover = %row.shown.id, reason, "end failover");
    tokio::time::sleep(RETRY_INTERVAL).await;
    Ok(Outcome::Changed)
}

/// Fences the machine: nobody is given its volume, whoever writes it lets it go or has its log sealed, and
/// the vault says where it ends.
async fn fence(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    // What an earlier try left may be of an older point than this one takes.
    if row.retries > 0
        && let Some(failure) = stop(app, row, files).await?
    {
        return unfinished(app, row, &failure.to_string()).await;
    }
    let fenced = async {
        let epoch = app.db.fence_machine(row.machine).await?;
        // Its node, if it lives, hears of it and lets go.
        app.changes.wake(Topic::Assignments);
        let let_go = vault_end::let_go(app, row.shown.volume).await?;
        vault_end::fence_in_vault(app, row, epoch, let_go).await
    };
    let fence = tokio::select! {
        fence = fenced => fence?,
        () = state_changed(app, row, changes) => return Ok(Outcome::Changed),
    };
    match fence {
        Fence::Away { why } => Ok(Outcome::Broken(ProviderError::VaultAway { why })),
        Fence::Passed { detail } => {
            if detail.is_some() {
                app.db.set_failover_facts(row.shown.id, None, None, detail.as_deref()).await?;
            }
            Ok(Outcome::Event(Event::Fenced))
        }
    }
}

/// Ends all processes of the failover, the machine before its disk. Those that do not end, or of which
/// nobody can tell, stay noted down; returns why not all are gone.
async fn stop(
    app: &App,
    row: &FailoverRow,
    files: &Files,
) -> Result<Option<ProviderError>, ControlError> {
    let mut why = None;
    for (role, noted, found) in [
        (ProcessRole::Machine, row.guest, qemu::machines(files)),
        (ProcessRole::Export, row.export, files.exports()),
    ] {
        match stop_all(noted, found).await {
            Ok(()) => app.db.set_failover_process(row.shown.id, role, None).await?,
            Err(failure) => why = Some(failure),
        }
    }
    Ok(why)
}

async fn stop_all(
    noted: Option<Process>,
    found: Result<Vec<Process>, ProviderError>,
) -> Result<(), ProviderError> {
    let mut all = Ok(());
    if let Some(process) = noted {
        all = process::stop(process).await;
    }
    for process in found? {
        let stopped = process::stop(process).await;
        all = all.and(stopped);
    }
    all
}

/// Ends when the failover is in another state than it was in `row`, or it was said to try again.
async fn state_changed(app: &App, row: &FailoverRow, mut changes: watch::Receiver<u64>) {
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        match app.db.failover_state(row.shown.id).await {
            Ok(now) if now == (row.shown.state, row.retries) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::process::{Launch, Trust};

    /// P24: what is noted down is ended whether or not others can be looked for.
    #[tokio::test]
    async fn the_noted_process_is_ended_though_nobody_can_look_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let start = || {
            process::start(&Launch {
                program: std::path::Path::new("/bin/sh"),
                arguments: &["-c", "exec sleep 60"].map(Into::into),
                trust: Trust::Guest,
                dir: None,
                log: &dir.path().join("log"),
                hint: "install it",
            })
        };
        let (noted, other) = (start().unwrap(), start().unwrap());
        let unseen = ProviderError::Unseen { pid: 1, source: std::io::Error::other("no") };
        let stopped = stop_all(Some(noted), Err(unseen)).await;
        let is_ended = !process::is_alive(noted);
        let others = stop_all(Some(noted), Ok(vec![other])).await;
        process::stop(noted).await.unwrap();
        assert!(matches!(stopped, Err(ProviderError::Unseen { pid: 1, .. })), "{stopped:?}");
        assert!(is_ended, "it writes its disk on");
        assert!(others.is_ok() && !process::is_alive(other), "{others:?}");
    }
}
