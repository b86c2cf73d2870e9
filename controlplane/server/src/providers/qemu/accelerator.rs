//! What QEMU runs machines on: the processor, through KVM, or software.
//!
//! That `/dev/kvm` opens says little: under another hypervisor it may fail at an instruction that
//! firmware or kernel use, and QEMU then stays there with a machine that does nothing. So KVM is
//! taken only after it has run the firmware, without a disk, up to its first word on the console.
//! On the way there it has been through all processor modes, paging, floating point and timers.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::firmware::Firmware;
use crate::db::Process;
use crate::providers::confine::{self, Confinement};
use crate::providers::{ProviderError, process};
use crate::settings::{QemuAccel, Settings};

/// How long firmware may take to its first word. It needs about one second; a busy machine is not
/// to lose KVM for that.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The proof's files, in its directory.
const CONSOLE: &str = "console.log";
const VARIABLES: &str = "firmware-variables.fd";

/// Bytes of QEMU's log that are searched.
const LOG_BYTES_MAX: u64 = 64 * 1024;

/// What a machine runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// Software; slow, and runs anywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The operator's choice, or what a proof says.
///
/// # Cancel safety
/// Safe: a proof that is dropped leaves nothing running.
pub async fn choose(settings: &Settings, confinement: &Confinement) -> Accelerator {
    match settings.qemu_accel {
        QemuAccel::Kvm => return Accelerator::Kvm,
        QemuAccel::Tcg => return Accelerator::Tcg,
        QemuAccel::Auto => {}
    }
    let dir = settings.data.join("kvm-proof");
    let proof = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(error) => Err(format!("/dev/kvm: {error}")),
        Ok(_) => prove(&settings.qemu_program, confinement, dir, PROOF_TIMEOUT).await,
    };
    match proof {
        Ok(()) => {
            info!("failed-over machines run on KVM");
            Accelerator::Kvm
        }
        Err(reason) => {
            info!(reason, "failed-over machines run in software, without KVM");
            Accelerator::Tcg
        }
    }
}

/// A proof in progress. Dropping it ends its machine and removes its files.
struct Proof {
    dir: PathBuf,
    machine: Option<Process>,
}

impl Drop for Proof {
    fn drop(&mut self) {
        if let Some(machine) = self.machine {
            process::kill(machine);
        }
        // What cannot be removed is used again by the next proof.
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// Whether QEMU runs firmware on KVM; if not, why.
async fn prove(
    program: &Path,
    confinement: &Confinement,
    dir: PathBuf,
    limit: Duration,
) -> Result<(), String> {
    let (console, log) = (dir.join(CONSOLE), dir.join("qemu.log"));
    // One that a killed control plane left behind.
    for stray in confine::running(&dir).map_err(|error| error.to_string())? {
        process::stop(stray).await.map_err(|error| error.to_string())?;
    }
    let mut proof = Proof { dir, machine: None };
    let machine = start(program, confinement, &proof.dir, &log).await;
    let machine = machine.map_err(|error| error.to_string())?;
    proof.machine = Some(machine);
    let deadline = Instant::now() + limit;
    loop {
        // Whether it lives is looked at first, so that what it said last is seen.
        let is_alive = process::is_alive(machine);
        if has_kvm_failed(&log) {
            return Err("KVM cannot run the firmware".into());
        }
        if fs::metadata(&console).is_ok_and(|console| console.len() > 0) {
            return Ok(());
        }
        if !is_alive {
            return Err(format!("QEMU ended: {}", process::last_line(&log)));
        }
        if Instant::now() >= deadline {
            return Err(format!("the firmware said nothing for {} s", limit.as_secs()));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn start(
    program: &Path,
    confinement: &Confinement,
    dir: &Path,
    log: &Path,
) -> Result<Process, ProviderError> {
    let firmware = Firmware::find(None, None)?;
    let variables = dir.join(VARIABLES);
    fs::create_dir_all(dir).map_err(|error| ProviderError::file("create", dir, error))?;
    firmware.prepare(&variables)?;
    let console = dir.join(CONSOLE);
    File::create(&console).map_err(|error| ProviderError::file("create", &console, error))?;
    confinement.let_through(dir)?;
    for own in [&variables, &console].into_iter().filter(|path| path.exists()) {
        confinement.hand_over(own)?;
    }
    let mut arguments = super::machine_arguments(Accelerator::Kvm, dir, Path::new(CONSOLE));
    arguments.extend(["-m".into(), "256".into()]);
    arguments.extend(firmware.arguments(Path::new(VARIABLES)));
    confinement.start(program, arguments, dir, log).await
}

/// Whether QEMU's log says that KVM gave up. QEMU itself goes on.
pub(super) fn has_kvm_failed(log: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|log| log.take(LOG_BYTES_MAX).read_to_end(&mut text));
    read.is_ok() && String::from_utf8_lossy(&text).contains("KVM internal error")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for QEMU: `$serial` is where its console goes. It takes the sandbox.
    fn qemu(dir: &Path, script: &str) -> PathBuf {
        let program = dir.join("qemu");
        let find_console = "case \"$*\" in *'-qmp stdio') exit 0;; esac\n\
                            for a; do case $a in file:*) serial=${a#file:};; esac; done";
        fs::write(&program, format!("#!/bin/sh\n{find_console}\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    async fn proof(script: &str, limit: Duration) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let program = qemu(dir.path(), script);
        let files = dir.path().join("proof");
        let proof = prove(&program, &Confinement::default(), files.clone(), limit).await;
        assert!(!files.exists(), "nothing stays");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !confine::running(&files).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "still runs");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        proof
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn kvm_is_proved_by_the_firmwares_first_word() {
        if Firmware::find(None, None).is_err() {
            return;
        }
        proof("printf B >\"$serial\"; exec sleep 60", LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_kvm_that_fails_hangs_or_does_not_start_is_not_taken() {
        if Firmware::find(None, None).is_err() {
            return;
        }
        let internal = "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60";
        assert!(proof(internal, LONG).await.unwrap_err().contains("cannot run the firmware"));
        let refused = proof("echo 'no permission' >&2; exit 1", LONG).await.unwrap_err();
        assert!(refused.contains("no permission"), "{refused}");
        let mute = proof("exec sleep 60", Duration::from_millis(100)).await.unwrap_err();
        assert!(mute.contains("said nothing"), "{mute}");
    }
}
