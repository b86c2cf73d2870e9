//! Drives one failover: asks [`crate::domain::failover`] what to do, does it, says what came of it.
//!
//! Starting a process and noting it down is not interrupted; waiting for it is, as soon as somebody
//! changes the failover's state. Stopping the control plane leaves the processes alone; the next
//! start takes them up again.

use std::time::Duration;

use farshore_api::failover::FailoverState;
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::db::{Actor, FailoverRow, Process, ProcessRole};
use crate::domain::failover::{Command, Event};
use crate::error::ControlError;
use crate::providers::export::{self, Export, Files};
use crate::providers::{ProviderError, process, qemu};

/// How often the processes of a running failover are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Pause after the catalogue failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long a fence waits for the node's next report, which comes every second.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How often that report is looked for.
const REPORT_LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// What came of a command.
enum Outcome {
    /// This happened.
    Event(Event),
    /// It cannot go on.
    Broken(ProviderError),
    /// Somebody changed the state meanwhile: look again.
    Changed,
    /// Nothing is left to do.
    Done,
}

/// Drives the failover until nothing is left to do.
pub async fn drive(app: &App, id: Uuid) {
    loop {
        match drive_once(app, id).await {
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
async fn drive_once(app: &App, id: Uuid) -> Result<bool, ControlError> {
    let changes = app.changes.listen(Topic::Failovers);
    let row = app.db.failover(id).await?;
    let Some(command) = row.command() else { return Ok(false) };
    let outcome = perform(app, &row, command, changes).await?;
    let (event, reason) = match outcome {
        Outcome::Done => return Ok(false),
        Outcome::Changed => return Ok(true),
        Outcome::Event(event) => (event, None),
        Outcome::Broken(failure) => (Event::Broken, Some(failure.to_string())),
    };
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

async fn perform(
    app: &App,
    row: &FailoverRow,
    command: Command,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let files = Files::new(&app.settings.failovers(), row.shown.id);
    match command {
        Command::Begin => Ok(Outcome::Event(Event::Begin)),
        Command::Fence => fence(app, row, changes).await,
        Command::StartExport => start_export(app, row, &files, changes).await,
        Command::StartMachine => start_machine(app, row, &files, changes).await,
        Command::Watch => watch(app, row, &files, changes).await,
        Command::Stop => {
            if stop(app, row, &files).await? {
                return Ok(Outcome::Done);
            }
            unfinished(app, row, "a process of it does not end").await
        }
        Command::Clear => {
            if !stop(app, row, &files).await? {
                return unfinished(app, row, "a process of it does not end").await;
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

/// Lets the volume's node tell what it has committed until now, before the fence takes the volume
/// from it: the agent may have died before it could. A failover to a named point needs none of it.
async fn fence(
    app: &App,
    row: &FailoverRow,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    if row.shown.point.is_some() {
        return Ok(Outcome::Event(Event::Fenced));
    }
    tokio::select! {
        heard = tokio::time::timeout(LAST_REPORT_TIMEOUT, next_report(app, row.shown.volume)) => {
            match heard {
                Ok(heard) => heard?,
                Err(_) => info!(failover = %row.shown.id, "no word of the node before the fence"),
            }
            Ok(Outcome::Event(Event::Fenced))
        }
        () = state_changed(app, row.shown.id, row.shown.state, changes) => Ok(Outcome::Changed),
    }
}

/// Ends when the node that has the volume reports, or when no node has it.
async fn next_report(app: &App, volume: Uuid) -> Result<(), ControlError> {
    let heard_before = app.db.node_heard_ms(volume).await?;
    loop {
        let heard = app.db.node_heard_ms(volume).await?;
        if heard.is_none() || heard != heard_before {
            return Ok(());
        }
        tokio::time::sleep(REPORT_LOOK_INTERVAL).await;
    }
}

async fn start_export(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let id = row.shown.id;
    let running = row.export.filter(|export| process::is_alive(*export));
    let export = match running {
        Some(export) => export,
        None => {
            let Some(point) = row.shown.point else {
                return Ok(Outcome::Broken(ProviderError::Incomplete { what: "recovery point" }));
            };
            let settings = &app.settings;
            let export = Export {
                program: &settings.node_program,
                vault: &settings.vault,
                key_file: &settings.key_file,
                volume: row.shown.volume,
                point,
                listen: row.spec.listen,
            };
            match export.start(files).await {
                Ok(export) => export,
                Err(failure) => return Ok(Outcome::Broken(failure)),
            }
        }
    };
    app.db.set_failover_process(id, ProcessRole::Export, Some(export)).await?;
    let ready = tokio::select! {
        ready = export::ready(files, export) => ready,
        () = state_changed(app, id, row.shown.state, changes) => return Ok(Outcome::Changed),
    };
    match ready {
        Ok(nbd_uri) => {
            app.db.set_failover_facts(id, Some(&nbd_uri), None, None).await?;
            Ok(Outcome::Event(Event::Exported))
        }
        Err(failure) => Ok(Outcome::Broken(failure)),
    }
}

async fn start_machine(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let id = row.shown.id;
    let running = row.guest.filter(|machine| process::is_alive(*machine));
    let machine = match running {
        Some(machine) => machine,
        None => {
            let Some(nbd_uri) = &row.shown.nbd_uri else {
                return Ok(Outcome::Broken(ProviderError::Incomplete { what: "export" }));
            };
            let program = &app.settings.qemu_program;
            let accelerator = app.accelerator().await;
            match qemu::start(program, accelerator, files, nbd_uri, &row.spec).await {
                Ok(machine) => machine,
                Err(failure) => return Ok(Outcome::Broken(failure)),
            }
        }
    };
    app.db.set_failover_process(id, ProcessRole::Machine, Some(machine)).await?;
    let console = files.console().to_string_lossy().into_owned();
    app.db.set_failover_facts(id, None, Some(&console), None).await?;
    tokio::select! {
        settled = qemu::settled(files, machine) => Ok(match settled {
            Ok(()) => Outcome::Event(Event::Booted),
            Err(failure) => Outcome::Broken(failure),
        }),
        () = state_changed(app, id, row.shown.state, changes) => Ok(Outcome::Changed),
    }
}

/// Looks after the processes. An export that ends is a failure: the disk is gone from under the
/// machine. A machine that ends has shut down: its disk is still there to be read.
async fn watch(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let look = async {
        loop {
            let is_served = row.export.is_some_and(process::is_alive);
            let has_shut_down = row.guest.is_some_and(|guest| !process::is_alive(guest));
            if !is_served || has_shut_down {
                return is_served;
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    };
    let is_served = tokio::select! {
        is_served = look => is_served,
        () = state_changed(app, row.shown.id, row.shown.state, changes) => {
            return Ok(Outcome::Changed);
        }
    };
    if !is_served {
        let log = files.export_log();
        let last_line = process::last_line(&log);
        return Ok(Outcome::Broken(ProviderError::Ended { what: "the export", last_line, log }));
    }
    let detail = "the machine has shut down; its disk is still served";
    // Said first: whoever sees that the process is gone is to see why.
    app.db.set_failover_facts(row.shown.id, None, None, Some(detail)).await?;
    app.db.set_failover_process(row.shown.id, ProcessRole::Machine, None).await?;
    app.changes.wake(Topic::Failovers);
    Ok(Outcome::Changed)
}

/// Ends all processes of the failover, the machine before its disk. Those that do not end stay noted
/// down; returns whether none is left.
async fn stop(app: &App, row: &FailoverRow, files: &Files) -> Result<bool, ControlError> {
    let mut is_gone = true;
    let machines = row.guest.into_iter().chain(qemu::machines(files)).collect();
    let exports = row.export.into_iter().chain(files.exports()).collect();
    for (role, processes) in [(ProcessRole::Machine, machines), (ProcessRole::Export, exports)] {
        if stop_all(processes).await {
            app.db.set_failover_process(row.shown.id, role, None).await?;
        } else {
            is_gone = false;
        }
    }
    Ok(is_gone)
}

async fn stop_all(processes: Vec<Process>) -> bool {
    let mut is_gone = true;
    for process in processes {
        is_gone &= process::stop(process).await;
    }
    is_gone
}

/// Ends when the failover is in another state than `before`.
async fn state_changed(
    app: &App,
    id: Uuid,
    before: FailoverState,
    mut changes: watch::Receiver<u64>,
) {
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        match app.db.failover(id).await {
            Ok(row) if row.shown.state == before => {}
            _ => return,
        }
    }
}
