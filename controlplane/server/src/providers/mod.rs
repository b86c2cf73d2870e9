//! Where failed-over machines run. There is one provider: processes on the control plane's own
//! machine, an export that serves the recovery point and QEMU that boots it.
//!
//! The processes are put into process groups of their own and are not killed with the control
//! plane. They are known by pid and start time, and, if a crash came between starting one and
//! noting it down, by the file in their command line that only they have.

pub mod confine;
pub mod export;
pub mod process;
pub mod qemu;
pub mod qmp;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

const INSTALL_HINT: &str = "install the Debian package qemu-system-x86, or fail over serving only";

/// Why a provider could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// A program is not installed.
    #[error("{program} is not installed; {hint}")]
    Missing {
        /// The program.
        program: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A firmware image that was asked for may not be used.
    #[error("the firmware {path} {why}")]
    Firmware {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the failover cannot be made, read or removed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The recovery key is not where the settings say.
    #[error(
        "the recovery key {path} is missing; restore it, or start the control plane with the \
             right --key-file"
    )]
    KeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// What was written over the point is not where it was.
    #[error(
        "the overlay {path} is gone, and with it what was written over the point; mount or put back \
             what it lies on"
    )]
    OverlayMissing {
        /// The overlay.
        path: PathBuf,
    },
    /// QEMU does not take commands.
    #[error("QEMU does not answer on {socket}: {source}")]
    Control {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine stands still.
    #[error("{why}")]
    Paused {
        /// Why, and what it waits for.
        why: String,
    },
    /// A process ended when it should have gone on.
    #[error("{what} ended: {last_line}; its log is {log}")]
    Ended {
        /// The export or the machine.
        what: &'static str,
        /// What it said last.
        last_line: String,
        /// Its log.
        log: PathBuf,
    },
    /// A process did not become ready.
    #[error("{what} was not ready after {} s; its log is {log}", waited.as_secs())]
    NotReady {
        /// The export or the machine.
        what: &'static str,
        /// How long it was given.
        waited: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// A process cannot be looked at.
    #[error("cannot tell whether process {pid} runs: {source}")]
    Unseen {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// A process does not end.
    #[error("process {pid} does not end, though it was killed")]
    Lasting {
        /// The process.
        pid: u32,
    },
    /// A machine that was found running has not been seen to run.
    #[error(
        "QEMU (process {pid}) was running already and has not been seen at work for {} s; it is left \
             alone, since it may well be; to have the machine booted anew, end that process; its log is \
             {log}",
        waited.as_secs()
    )]
    Slow {
        /// QEMU.
        pid: u32,
        /// How long it was looked at.
        waited: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// A machine works, and has booted nothing.
    #[error(
        "only its firmware was seen to run: less than 1 MiB of its disk was read, and nothing written; look at \
             its console: is there a system on the disk, and is the firmware the right one?"
    )]
    OnlyFirmware,
    /// KVM is there and does not run the machine.
    #[error(
        "the processor that QEMU emulates came to an error it cannot go on from; with KVM, start the \
             control plane with --qemu-accel tcg; QEMU's log is {log}"
    )]
    KvmFailed {
        /// Its log.
        log: PathBuf,
    },
    /// The vault does not say where the volume ends.
    #[error("the vault cannot be asked where the volume ends: {why}; retry when it answers")]
    VaultAway {
        /// Why not.
        why: String,
    },
    /// The failover lacks something that an earlier step should have noted.
    #[error("the failover has no {what}; clean it up and start another")]
    Incomplete {
        /// What it lacks.
        what: &'static str,
    },
}

impl ProviderError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { action, path: path.into(), source }
    }
}
