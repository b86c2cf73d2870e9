//! QEMU: boots an exported point.

pub mod accelerator;
pub mod firmware;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use farshore_api::failover::CreateFailover;

use super::export::Files;
use super::process::Trust;
use super::{ProviderError, process};
use crate::db::Process;
use accelerator::Accelerator;
use firmware::Firmware;

const MEMORY_MIB_DEFAULT: u32 = 1024;
const CPUS_DEFAULT: u32 = 2;

/// QEMU refuses bad arguments, images and firmware at once; one that is still there after this long
/// runs its machine.
const SETTLE: Duration = Duration::from_millis(500);

const INSTALL_HINT: &str = "install the Debian package qemu-system-x86, or fail over serving only";

/// QEMU processes of a failover, noted down or not.
#[must_use]
pub fn machines(files: &Files) -> Vec<Process> {
    process::find("-serial", &serial(files))
}

fn serial(files: &Files) -> OsString {
    serial_to(&files.console())
}

fn serial_to(console: &Path) -> OsString {
    let mut serial = OsString::from("file:");
    serial.push(console);
    serial
}

/// In a value of QEMU's options a comma ends the value, and two stand for one.
fn escaped(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.extend_from_slice(if byte == b',' { b",," } else { std::slice::from_ref(&byte) });
    }
    OsString::from_vec(escaped)
}

/// Starts the machine on the disk at `nbd_uri`. Machines of this failover that were never noted
/// down are ended first.
///
/// # Errors
/// `Missing` without QEMU or firmware, `Start`, `File`.
pub async fn start(
    program: &Path,
    accelerator: Accelerator,
    files: &Files,
    nbd_uri: &str,
    spec: &CreateFailover,
) -> Result<Process, ProviderError> {
    let firmware = Firmware::find(spec.firmware.as_deref())?;
    for stray in machines(files) {
        process::stop(stray).await;
    }
    firmware.prepare(&files.firmware_variables())?;
    let arguments = arguments(accelerator, files, nbd_uri, spec, &firmware);
    process::start(program, &arguments, Trust::Guest, &files.machine_log(), INSTALL_HINT)
}

fn arguments(
    accelerator: Accelerator,
    files: &Files,
    nbd_uri: &str,
    spec: &CreateFailover,
    firmware: &Firmware,
) -> Vec<OsString> {
    let mut disk = OsString::from("file=");
    disk.push(escaped(nbd_uri.as_ref()));
    disk.push(",format=raw,if=virtio,cache=writeback,discard=unmap");
    let memory = spec.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT).to_string();
    let cpus = spec.cpus.unwrap_or(CPUS_DEFAULT).to_string();
    let mut arguments = machine_arguments(accelerator, serial(files));
    arguments.extend(["-m".into(), memory.into(), "-smp".into(), cpus.into()]);
    arguments.extend(firmware.arguments(&files.firmware_variables()));
    arguments.extend(["-drive".into(), disk]);
    arguments
}

/// What all machines are started with. The processor has everything that the accelerator can give:
/// QEMU's default one is too old for some distributions.
fn machine_arguments(accelerator: Accelerator, serial: OsString) -> Vec<OsString> {
    vec![
        "-machine".into(),
        format!("q35,accel={}", accelerator.name()).into(),
        "-cpu".into(),
        "max".into(),
        "-serial".into(),
        serial,
        "-display".into(),
        "none".into(),
        "-monitor".into(),
        "none".into(),
        "-nic".into(),
        "none".into(),
        "-no-reboot".into(),
    ]
}

/// Waits until it is clear that QEMU runs the machine.
///
/// # Errors
/// `Ended` with what QEMU said; `KvmFailed` if KVM gave up, which QEMU outlives.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn settled(files: &Files, machine: Process) -> Result<(), ProviderError> {
    tokio::time::sleep(SETTLE).await;
    let log = files.machine_log();
    if accelerator::has_kvm_failed(&log) {
        return Err(ProviderError::KvmFailed { log });
    }
    if process::is_alive(machine) {
        return Ok(());
    }
    Err(ProviderError::Ended { what: "QEMU", last_line: process::last_line(&log), log })
}

#[cfg(test)]
mod tests {
    use farshore_api::failover::FailoverKind;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn commas_in_the_uri_stay_in_the_uri() {
        let spec = CreateFailover {
            kind: FailoverKind::Drill,
            point: Default::default(),
            serve_only: false,
            listen: Default::default(),
            memory_mib: Some(512),
            cpus: None,
            firmware: None,
        };
        let files = Files::new(Path::new("/srv/a,b"), Uuid::from_u128(1));
        let uri = "nbd+unix:///?socket=/srv/a,b/nbd.sock";
        let firmware = Firmware::Combined("/fw".into());
        let arguments = arguments(Accelerator::Tcg, &files, uri, &spec, &firmware);
        let has = |flag: &str, value: &str| {
            arguments
                .windows(2)
                .any(|pair| pair[0] == flag && pair[1].to_string_lossy().starts_with(value))
        };
        assert!(has("-drive", "file=nbd+unix:///?socket=/srv/a,,b/nbd.sock,"), "{arguments:?}");
        assert!(has("-m", "512") && has("-machine", "q35,accel=tcg") && has("-bios", "/fw"));
    }
}
