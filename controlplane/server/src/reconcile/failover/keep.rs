//! Brings export and machine up, looks after them, and brings back what is gone, always on the overlay
//! that is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use super::backoff::Backoff;
use super::{Outcome, state_changed};
use crate::app::{App, Topic};
use crate::db::{FailoverRow, Process, ProcessRole};
use crate::domain::failover::Event;
use crate::error::ControlError;
use crate::providers::export::{self, Export, Files};
use crate::providers::qemu::{self, Machine, Seen, Taken};
use crate::providers::{ProviderError, process};

/// How often the processes of a running failover are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

const DOWN: &str = "the machine has shut itself down and stays down; its disk is still served, retry \
     boots it again";

/// Begins what is said only while it is so.
pub(super) const FOR_NOW: &str = "for now: ";

/// Why something was not brought up.
enum Failure {
    Provider(ProviderError),
    Control(ControlError),
}

impl From<ProviderError> for Failure {
    fn from(failure: ProviderError) -> Self {
        Self::Provider(failure)
    }
}

impl From<ControlError> for Failure {
    fn from(failure: ControlError) -> Self {
        Self::Control(failure)
    }
}

pub(super) async fn start_export(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let exported = unless_changed(app, row, changes, ensure_export(app, row, files)).await;
    came_up(exported.map(|exported| exported.map(|_| Event::Exported)))
}

pub(super) async fn start_machine(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    let firmware_ran = AtomicBool::new(false);
    let booting = bring_up(app, row, files, &firmware_ran);
    let booted = unless_changed(app, row, changes, booting).await;
    let outcome = came_up(booted.map(|booted| booted.map(|()| Event::Booted)))?;
    Ok(match outcome {
        // What came up is brought back, however far it got.
        Outcome::Broken(failure) if firmware_ran.into_inner() => Outcome::Lost(failure.to_string()),
        outcome => outcome,
    })
}

/// What an attempt brings; none if somebody changes the failover's state first.
async fn unless_changed<T>(
    app: &App,
    row: &FailoverRow,
    changes: watch::Receiver<u64>,
    attempt: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        brought = attempt => Some(brought),
        () = state_changed(app, row, changes) => None,
    }
}

fn came_up(result: Option<Result<Event, Failure>>) -> Result<Outcome, ControlError> {
    match result {
        None => Ok(Outcome::Changed),
        Some(Ok(event)) => Ok(Outcome::Event(event)),
        // It may run: it is looked at again, and nothing of it is ended.
        Some(Err(Failure::Provider(failure @ ProviderError::Slow { .. }))) => {
            Ok(Outcome::Slow(failure))
        }
        Some(Err(Failure::Provider(failure))) => Ok(Outcome::Broken(failure)),
        Some(Err(Failure::Control(failure))) => Err(failure),
    }
}

/// One attempt to bring back what is gone, after a pause that grows. What stands in the way is shown.
pub(super) async fn recover(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
    backoff: &mut Backoff,
) -> Result<Outcome, ControlError> {
    let attempt = async {
        tokio::time::sleep(backoff.pause()).await;
        bring_up(app, row, files, &AtomicBool::new(false)).await
    };
    let Some(result) = unless_changed(app, row, changes, attempt).await else {
        backoff.forget();
        return Ok(Outcome::Changed);
    };
    match result {
        Ok(()) => Ok(Outcome::Event(Event::Recovered)),
        Err(Failure::Control(failure)) => Err(failure),
        Err(Failure::Provider(failure)) => {
            backoff.failed();
            let seconds = backoff.pause().as_secs();
            let detail = format!("{failure}; tried again every {seconds} s");
            app.db.set_failover_facts(row.shown.id, None, None, Some(&detail)).await?;
            app.changes.wake(Topic::Failovers);
            warn!(failover = %row.shown.id, %failure, "bring back failover");
            Ok(Outcome::Changed)
        }
    }
}

/// Brings up what is missing of export and machine. Sets `firmware_ran` once the machine's
/// firmware was seen to run.
async fn bring_up(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    firmware_ran: &AtomicBool,
) -> Result<(), Failure> {
    let (export, nbd_uri) = ensure_export(app, row, files).await?;
    if !row.domain().wants_machine() {
        if row.shown.machine_is_down {
            app.db.set_machine_down(row.shown.id, DOWN).await?;
        }
        return Ok(());
    }
    let seen = tokio::select! {
        seen = ensure_machine(app, row, files, &nbd_uri, firmware_ran) => seen?,
        failure = ended(files, export) => return Err(failure.into()),
    };
    if let (machine, Seen::ShutDown) = seen {
        note_shutdown(app, row, machine).await?;
    }
    Ok(())
}

/// The export, which serves, and where.
async fn ensure_export(
    app: &App,
    row: &FailoverRow,
    files: &Files,
) -> Result<(Process, String), Failure> {
    let id = row.shown.id;
    let export = match row.export.filter(|export| process::is_alive(*export)) {
        Some(export) => export,
        None => {
            let point = row.shown.point;
            let point = point.ok_or(ProviderError::Incomplete { what: "recovery point" })?;
            let settings = &app.settings;
            let export = Export {
                program: &settings.node_program,
                vault: &settings.vault,
                key_file: &settings.key_file,
                volume: row.shown.volume,
                point,
                listen: row.spec.listen,
                served_at: row.shown.nbd_uri.as_deref(),
            };
            export.start(files).await?
        }
    };
    app.db.set_failover_process(id, ProcessRole::Export, Some(export)).await?;
    let nbd_uri = export::ready(files, export).await?;
    app.db.set_failover_facts(id, Some(&nbd_uri), None, None).await?;
    if row.domain().wants_machine() {
        // A machine that waits for its disk finds this socket, which is a new one.
        files.hand_over(&app.confinement)?;
    }
    Ok((export, nbd_uri))
}

/// The machine, once it was seen to run, or to have shut down.
async fn ensure_machine(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    nbd_uri: &str,
    firmware_ran: &AtomicBool,
) -> Result<(Process, Seen), Failure> {
    let id = row.shown.id;
    let usual = usual(row);
    let mut taken = match row.guest.filter(|machine| process::is_alive(*machine)) {
        Some(machine) => Taken { machine, is_new: false },
        None => {
            let machine = Machine {
                program: &app.settings.qemu_program,
                accelerator: app.accelerator().await,
                confinement: &app.confinement,
                firmware_dir: app.settings.firmware_dir.as_deref(),
            };
            machine.start(files, nbd_uri, &row.spec).await?
        }
    };
    let machine = taken.machine;
    app.db.set_failover_process(id, ProcessRole::Machine, Some(machine)).await?;
    let console = files.console().to_string_lossy().into_owned();
    app.db.set_failover_facts(id, None, Some(&console), None).await?;
    let mut shown = row.shown.detail.clone();
    loop {
        match qemu::seen_running(files, machine).await {
            Ok(seen) => {
                tell(app, id, usual, &mut shown).await?;
                return Ok((machine, seen));
            }
            // It is looked at for as long as it takes, and is not ended any more because it was not seen: it may
            // have booted since.
            Err(failure @ ProviderError::OnlyFirmware) => {
                taken.is_new = false;
                firmware_ran.store(true, Ordering::Relaxed);
                let why = files.export_trouble().unwrap_or_else(|| failure.to_string());
                tell(app, id, &format!("{FOR_NOW}{why}"), &mut shown).await?;
            }
            Err(failure) => {
                let (is_to_end, failure) = qemu::verdict(taken, failure);
                if is_to_end {
                    // The next attempt boots it anew.
                    process::stop(machine).await?;
                }
                return Err(failure.into());
            }
        }
    }
}

/// What is said of a failover when nothing is said for now.
fn usual(row: &FailoverRow) -> &str {
    if row.shown.detail.starts_with(FOR_NOW) { "" } else { &row.shown.detail }
}

/// Shows `detail`, unless that is shown.
async fn tell(app: &App, id: Uuid, detail: &str, shown: &mut String) -> Result<(), ControlError> {
    if detail != shown.as_str() {
        app.db.set_failover_facts(id, None, None, Some(detail)).await?;
        app.changes.wake(Topic::Failovers);
        detail.clone_into(shown);
    }
    Ok(())
}

/// Ends with the export.
async fn ended(files: &Files, export: Process) -> ProviderError {
    while process::is_alive(export) {
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
    let log = files.export_log();
    ProviderError::Ended { what: "the export", last_line: process::last_line(&log), log }
}

async fn note_shutdown(app: &App, row: &FailoverRow, machine: Process) -> Result<(), ControlError> {
    app.db.set_machine_down(row.shown.id, DOWN).await?;
    app.changes.wake(Topic::Failovers);
    // QEMU has waited for this: the machine in it is off.
    if let Err(failure) = process::stop(machine).await {
        // A clean-up finds it, and a retry takes it up.
        warn!(failover = %row.shown.id, %failure, "end a machine that is off");
    }
    Ok(())
}

/// Looks after the processes until something of them is gone, stands still or has shut down.
pub(super) async fn watch(
    app: &App,
    row: &FailoverRow,
    files: &Files,
    changes: watch::Receiver<u64>,
) -> Result<Outcome, ControlError> {
    if row.export.is_none() {
        return Ok(Outcome::Lost("the export does not run".into()));
    }
    let wants_machine = row.domain().wants_machine();
    if wants_machine && row.guest.is_none() {
        return Ok(Outcome::Lost("the machine does not run".into()));
    }
    let failure = tokio::select! {
        failure = export_ended(row, files) => failure,
        seen = changed(app, row, files) => match seen? {
            Seen::Paused(why) => why,
            Seen::Gone(last_line) => format!("QEMU ended: {last_line}"),
            Seen::Broken => ProviderError::KvmFailed { log: files.machine_log() }.to_string(),
            Seen::ShutDown => {
                if let Some(machine) = row.guest {
                    note_shutdown(app, row, machine).await?;
                }
                return Ok(Outcome::Changed);
            }
            Seen::Running | Seen::Unknown(_) => return Ok(Outcome::Changed),
        },
        () = state_changed(app, row, changes) => return Ok(Outcome::Changed),
    };
    Ok(Outcome::Lost(failure))
}

async fn export_ended(row: &FailoverRow, files: &Files) -> String {
    match row.export {
        Some(export) => ended(files, export).await.to_string(),
        None => std::future::pending().await,
    }
}

/// Looks at the machine until it does something else than run, and tells what it sees meanwhile: that
/// the export waits for its store, that QEMU does not answer. Nothing is done about either: the store
/// may come back, and the machine may well run.
async fn changed(app: &App, row: &FailoverRow, files: &Files) -> Result<Seen, ControlError> {
    let machine = row.guest.filter(|_| row.domain().wants_machine());
    // What was said of it before it ran, or that its machine is down, is said again afterwards.
    let usual = if row.shown.machine_is_down { DOWN } else { usual(row) };
    let (mut control, mut shown) = (None, row.shown.detail.clone());
    loop {
        let mut trouble = files.export_trouble();
        if let Some(machine) = machine {
            match qemu::look(files, machine, &mut control).await {
                Seen::Running => {}
                Seen::Unknown(why) => trouble = Some(why),
                seen => return Ok(seen),
            }
        }
        let detail = trouble.map_or_else(|| usual.to_owned(), |why| format!("{FOR_NOW}{why}"));
        tell(app, row.shown.id, &detail, &mut shown).await?;
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
