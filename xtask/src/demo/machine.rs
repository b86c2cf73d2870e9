//! The server: QEMU with its disk on an NBD export, its console read here.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::console::{Console, now_ms};

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Where Debian puts the firmware.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

/// A running guest. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    pub(crate) console: Console,
    /// When it was started, in ms since 1970.
    pub(crate) started_ms: u64,
}

impl Machine {
    /// Starts the guest on an export. Its flushes reach the export; nothing is cached here.
    ///
    /// Software emulation: a /dev/kvm may be there and still not run a guest.
    ///
    /// # Errors
    /// If QEMU does not start.
    pub(crate) fn start(nbd_uri: &str, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        // A comma ends an option of QEMU; two are one.
        let file = nbd_uri.replace(',', ",,");
        let started_ms = now_ms();
        let mut qemu = Command::new(QEMU)
            .args(["-nodefaults", "-machine", "q35,accel=tcg", "-m", "256", "-smp", "1"])
            .args(["-bios", FIRMWARE, "-display", "none", "-serial", "stdio", "-net", "none"])
            .arg("-no-reboot")
            .arg("-drive")
            .arg(format!("file={file},format=raw,if=virtio,cache=writeback"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {QEMU}"))?;
        let output = qemu.stdout.take().context("QEMU without an output")?;
        Ok(Self { qemu, console: Console::read(output, false), started_ms })
    }

    /// Whether QEMU still runs.
    ///
    /// # Errors
    /// If the system cannot say.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait().context("look after QEMU")?.is_none())
    }

    /// SIGKILL: a power cut.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.qemu.kill().context("kill QEMU")?;
        self.qemu.wait().context("wait for QEMU").map(|_| ())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
