//! QEMU: boots an exported point.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farshore_api::failover::CreateFailover;

use super::export::Files;
use super::{ProviderError, process};
use crate::db::Process;

/// Where Debian's `ovmf` package, and others, put the firmware.
const FIRMWARE: [&str; 4] = [
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/OVMF/OVMF.fd",
    "/usr/share/qemu/OVMF.fd",
    "/usr/share/edk2/ovmf/OVMF.fd",
];

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
    let mut serial = OsString::from("file:");
    serial.push(files.console());
    serial
}

/// Starts the machine on the disk at `nbd_uri`. Machines of this failover that were never noted
/// down are ended first.
///
/// # Errors
/// `Missing` without QEMU or firmware, `Start`, `File`.
pub async fn start(
    program: &Path,
    files: &Files,
    nbd_uri: &str,
    spec: &CreateFailover,
) -> Result<Process, ProviderError> {
    let firmware = firmware(spec)?;
    for stray in machines(files) {
        process::stop(stray).await;
    }
    let arguments = arguments(files, nbd_uri, spec, &firmware);
    process::start(program, &arguments, &files.machine_log(), INSTALL_HINT)
}

fn firmware(spec: &CreateFailover) -> Result<PathBuf, ProviderError> {
    let candidates: Vec<&str> = match &spec.firmware {
        Some(named) => vec![named],
        None => FIRMWARE.to_vec(),
    };
    let found = candidates.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| ProviderError::Missing {
        program: candidates[0].into(),
        hint: "it is the firmware: install the Debian package ovmf, or name another file",
    })
}

fn arguments(
    files: &Files,
    nbd_uri: &str,
    spec: &CreateFailover,
    firmware: &Path,
) -> Vec<OsString> {
    // In a -drive value a comma ends the value, and two stand for one.
    let disk = nbd_uri.replace(',', ",,");
    let memory = spec.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT).to_string();
    let cpus = spec.cpus.unwrap_or(CPUS_DEFAULT).to_string();
    vec![
        "-machine".into(),
        "q35,accel=kvm:tcg".into(),
        "-m".into(),
        memory.into(),
        "-smp".into(),
        cpus.into(),
        "-bios".into(),
        firmware.into(),
        "-drive".into(),
        format!("file={disk},format=raw,if=virtio,cache=writeback,discard=unmap").into(),
        "-serial".into(),
        serial(files),
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
/// `Ended` with what QEMU said.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn settled(files: &Files, machine: Process) -> Result<(), ProviderError> {
    tokio::time::sleep(SETTLE).await;
    if process::is_alive(machine) {
        return Ok(());
    }
    let log = files.machine_log();
    Err(ProviderError::Ended { what: "QEMU", last_line: process::last_line(&log), log })
}

#[cfg(test)]
mod tests {
    use farshore_api::failover::FailoverKind;
    use uuid::Uuid;

    use super::*;

    fn spec(firmware: Option<String>) -> CreateFailover {
        CreateFailover {
            kind: FailoverKind::Drill,
            point: Default::default(),
            serve_only: false,
            listen: Default::default(),
            memory_mib: Some(512),
            cpus: None,
            firmware,
        }
    }

    #[test]
    fn commas_in_the_uri_stay_in_the_uri() {
        let files = Files::new(Path::new("/srv/a,b"), Uuid::from_u128(1));
        let uri = "nbd+unix:///?socket=/srv/a,b/nbd.sock";
        let arguments = arguments(&files, uri, &spec(None), Path::new("/fw"));
        assert!(arguments.iter().any(|argument| {
            argument.to_string_lossy().starts_with("file=nbd+unix:///?socket=/srv/a,,b/nbd.sock,")
        }));
        assert!(arguments.windows(2).any(|pair| pair[0] == "-m" && pair[1] == "512"));
    }

    #[test]
    fn missing_firmware_is_named() {
        let error = firmware(&spec(Some("/nowhere/fw.fd".into()))).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/fw.fd is not installed"), "{error}");
    }
}
