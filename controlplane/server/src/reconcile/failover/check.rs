//! What starting a failover would find: looks at everything that it needs, and changes nothing.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use farshore_api::failover::{Check, CreateFailover, FailoverCheck};
use tokio::process::Command;

use crate::app::App;
use crate::error::ControlError;
use crate::providers::confine::is_installed;
use crate::providers::process;
use crate::providers::qemu::firmware::Firmware;
use crate::reconcile::vault_end;

/// How long the point may take to be opened.
const POINT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest word of a program that is passed on.
const SAID_CHARS_MAX: usize = 400;

/// Looks at what a failover of `machine` needs.
///
/// # Errors
/// As [`crate::db::Db::create_failover`].
pub async fn check(
    app: &App,
    machine: &str,
    spec: &CreateFailover,
) -> Result<FailoverCheck, ControlError> {
    let (volume, mut point, mut point_time_unix_ms) = app.db.check_failover(machine, spec).await?;
    let settings = &app.settings;
    let seen = vault_end::look(app, spec, volume, point).await?;
    if let Some(newest) = seen.as_ref().and_then(|seen| seen.takes) {
        (point, point_time_unix_ms) = (newest.point, newest.time_unix_ms);
    }
    let mut checks = vec![check_of("point", point_opens(app, volume, point).await)];
    // What the vault does not say keeps no failover: it goes by the catalogue, or says so itself.
    checks.extend(seen.map(|seen| check_of("vault", Ok(seen.told))));
    checks.push(check_of("room", room(&settings.data)));
    if !spec.serve_only {
        let firmware = Firmware::find(spec.firmware.as_deref(), settings.firmware_dir.as_deref());
        let firmware = firmware.map(|_| "is there".to_owned()).map_err(|error| error.to_string());
        checks.push(check_of("firmware", firmware));
        checks.push(check_of("QEMU", installed(&settings.qemu_program)));
    }
    Ok(FailoverCheck { machine: machine.to_owned(), point, point_time_unix_ms, volume, checks })
}

fn check_of(what: &str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    let found = found.unwrap_or_else(|why| why);
    Check { what: what.to_owned(), ok, found }
}

/// Lets the export open the point in the vault, with the recovery key, and serve nothing.
async fn point_opens(app: &App, volume: uuid::Uuid, point: uuid::Uuid) -> Result<String, String> {
    let settings = &app.settings;
    let mut command = Command::new(&settings.node_program);
    command
        .args(["export", "--check", "--vault", &settings.vault, "--key-file"])
        .arg(&settings.key_file)
        .args(["--volume", &volume.to_string(), "--point", &point.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(POINT_TIMEOUT, command.output()).await;
    let output = output
        .map_err(|_| format!("the vault did not answer for {} s", POINT_TIMEOUT.as_secs()))?
        .map_err(|error| format!("cannot start {}: {error}", settings.node_program.display()))?;
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    let said = process::last_line_of(said, SAID_CHARS_MAX);
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// Room for what will be written over the point.
fn room(dir: &Path) -> Result<String, String> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|error| format!("cannot look at {}: {error}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{free} bytes are free for the overlay in {}", dir.display());
    if free == 0 { Err(found) } else { Ok(found) }
}

fn installed(program: &Path) -> Result<String, String> {
    let missing = || format!("{} is not installed", program.display());
    if is_installed(program) { Ok("is there".to_owned()) } else { Err(missing()) }
}
