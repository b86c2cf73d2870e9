//! QEMU: boots an exported point.

pub mod accelerator;
pub mod firmware;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use farshore_api::failover::CreateFailover;

use tokio::time::Instant;

use super::confine::{self, Confinement};
use super::export::Files;
use super::qmp::{DiskUse, Qmp, Status};
use super::{ProviderError, process};
use crate::db::Process;
use accelerator::Accelerator;
use firmware::Firmware;

const MEMORY_MIB_DEFAULT: u32 = 1024;
const CPUS_DEFAULT: u32 = 2;

/// QEMU refuses bad arguments, images and firmware at once; a machine whose disk fails stands still
/// again about as fast.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a machine may take until it is seen to run.
const SEEN_TIMEOUT: Duration = Duration::from_secs(60);

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Work of a machine's processors, in hundredths of a second, that shows that it runs.
const WORK_TICKS: u64 = 5;

/// Firmware that looks for something to boot reads less than this of a disk, and writes nothing; any kernel is
/// longer.
const FIRMWARE_BYTES_MAX: u64 = 1 << 20;

/// How long a machine may be in its firmware before that is said.
const FIRMWARE_TIME: Duration = Duration::from_secs(5);

/// How long QEMU holds back the machine's reads and writes while its export is away; then the machine
/// is paused, and goes on when the export is back.
const RECONNECT_SECONDS: u32 = 30;

/// QEMU processes of a failover, noted down or not.
///
/// # Errors
/// `File` if that cannot be found out.
pub fn machines(files: &Files) -> Result<Vec<Process>, ProviderError> {
    confine::running(files.dir())
}

/// In a value of QEMU's options a comma ends the value, and two stand for one.
pub(super) fn escaped(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.extend_from_slice(if byte == b',' { b",," } else { std::slice::from_ref(&byte) });
    }
    OsString::from_vec(escaped)
}

/// A machine's process, and whether it was started just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The process.
    pub machine: Process,
    /// Whether it is new: one that is not may have run for long.
    pub is_new: bool,
}

/// What machines are started with.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// QEMU.
    pub program: &'a Path,
    /// What it runs machines on.
    pub accelerator: Accelerator,
    /// How it is confined.
    pub confinement: &'a Confinement,
    /// Where firmware may lie that a failover names.
    pub firmware_dir: Option<&'a Path>,
}

impl Machine<'_> {
    /// Takes up a machine of this failover that was never noted down, or starts one on the disk at
    /// `nbd_uri`.
    ///
    /// # Errors
    /// `Missing` without QEMU or firmware, `Firmware`, `Start`, `File`, `Unseen`, `Lasting`.
    pub async fn start(
        &self,
        files: &Files,
        nbd_uri: &str,
        spec: &CreateFailover,
    ) -> Result<Taken, ProviderError> {
        let mut found = machines(files)?.into_iter();
        if let Some(machine) = found.next() {
            for stray in found {
                process::stop(stray).await?;
            }
            return Ok(Taken { machine, is_new: false });
        }
        let firmware = Firmware::find(spec.firmware.as_deref(), self.firmware_dir)?;
        files.create()?;
        firmware.prepare(&files.firmware_variables())?;
        files.hand_over(self.confinement)?;
        let arguments = arguments(self.accelerator, files, nbd_uri, spec, &firmware);
        let log = files.machine_log();
        begin_log(&log)?;
        let dir = files.guest_dir();
        let machine = self.confinement.start(self.program, arguments, &dir, &log).await?;
        Ok(Taken { machine, is_new: true })
    }
}

fn arguments(
    accelerator: Accelerator,
    files: &Files,
    nbd_uri: &str,
    spec: &CreateFailover,
    firmware: &Firmware,
) -> Vec<OsString> {
    let mut disk = OsString::from("file=");
    disk.push(escaped(&files.disk_for_guest(nbd_uri)));
    disk.push(format!(
        ",file.reconnect-delay={RECONNECT_SECONDS},format=raw,if=virtio,cache=writeback,\
         discard=unmap,werror=stop,rerror=stop"
    ));
    let memory = spec.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT).to_string();
    let cpus = spec.cpus.unwrap_or(CPUS_DEFAULT).to_string();
    let console = files.for_guest(&files.console());
    let mut arguments = machine_arguments(accelerator, files.dir(), &console);
    let mut control = OsString::from("unix:");
    control.push(escaped(files.for_guest(&files.control()).as_os_str()));
    control.push(",server=on,wait=off");
    arguments.extend(["-qmp".into(), control]);
    // A machine that has shut down stays there until it was seen: one that is gone did not shut down.
    arguments.push("-no-shutdown".into());
    arguments.extend(["-m".into(), memory.into(), "-smp".into(), cpus.into()]);
    arguments.extend(firmware.arguments(&files.for_guest(&files.firmware_variables())));
    arguments.extend(["-drive".into(), disk]);
    arguments
}

/// What all machines are started with: the guest of `dir` is known by its name. The processor has
/// everything that the accelerator can give: QEMU's default one is too old for some distributions.
fn machine_arguments(accelerator: Accelerator, dir: &Path, console: &Path) -> Vec<OsString> {
    let mut serial = OsString::from("file:");
    serial.push(console);
    vec![
        "-name".into(),
        confine::marker(dir),
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
    ]
}

/// What is seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It runs.
    Running,
    /// It has shut itself down.
    ShutDown,
    /// It stands still, for this reason, and can go on.
    Paused(String),
    /// Its processor came to an error that it cannot go on from.
    Broken,
    /// Its process ended, with this word.
    Gone(String),
    /// QEMU does not say.
    Unknown(String),
}

/// Looks at a machine over its control socket, which is kept open in `control`.
pub async fn look(files: &Files, machine: Process, control: &mut Option<Qmp>) -> Seen {
    let seen = ask(files, control).await;
    // Whether it lives is looked at last: a socket may have been taken over by nobody.
    if !process::is_alive(machine) {
        return Seen::Gone(process::last_line(&files.machine_log()));
    }
    seen.unwrap_or_else(|failure| {
        *control = None;
        Seen::Unknown(failure.to_string())
    })
}

async fn ask(files: &Files, control: &mut Option<Qmp>) -> Result<Seen, ProviderError> {
    let qmp = match control {
        Some(qmp) => qmp,
        None => control.insert(Qmp::connect(&files.control()).await?),
    };
    Ok(match qmp.status().await? {
        Status::Running => Seen::Running,
        Status::ShutDown => Seen::ShutDown,
        Status::DiskError if qmp.is_out_of_space().await? => Seen::Paused(no_room(files)),
        Status::DiskError => Seen::Paused(format!(
            "the machine is paused: its disk had an error; the export said last: {}",
            process::last_line(&files.export_log())
        )),
        Status::Broken => Seen::Broken,
        Status::Other => Seen::Unknown("QEMU says that the machine does not run yet".into()),
    })
}

fn no_room(files: &Files) -> String {
    let free = files.free_bytes().map_or_else(|| "?".into(), |bytes| bytes.to_string());
    format!(
        "the machine is paused: its overlay has no room: {free} bytes are free in {}; it goes on when \
         there is room",
        files.dir().display()
    )
}

/// Waits until the machine was seen to run: QEMU says so at two looks half a second apart, the
/// console has said something, or the processors have done some work, and more than firmware has used its
/// disk, where QEMU tells that. One that stands still because of its disk is let go on first.
///
/// Returns `Running` or `ShutDown`.
///
/// # Errors
/// `Ended` with what QEMU said; `KvmFailed`; `Paused` if it stands still again at once; `NotReady`;
/// `OnlyFirmware` of one that works and has booted nothing yet: it may still.
///
/// # Cancel safety
/// Safe: it looks, and lets go on what stands still.
pub async fn seen_running(files: &Files, machine: Process) -> Result<Seen, ProviderError> {
    let deadline = Instant::now() + SEEN_TIMEOUT;
    let mut control = None;
    let mut was_told = false;
    let mut running_since: Option<Instant> = None;
    loop {
        match look(files, machine, &mut control).await {
            Seen::Running => {
                let since = *running_since.get_or_insert_with(Instant::now);
                let work = match &mut control {
                    Some(qmp) if since.elapsed() >= SETTLE => work(files, machine, qmp).await,
                    _ => Ok(Work::None),
                };
                match work {
                    Ok(Work::System) => return Ok(Seen::Running),
                    Ok(Work::Firmware) if since.elapsed() >= FIRMWARE_TIME => {
                        return Err(ProviderError::OnlyFirmware);
                    }
                    Ok(Work::Firmware | Work::None) => {}
                    // What it still says would answer another question.
                    Err(_) => control = None,
                }
            }
            Seen::ShutDown => return Ok(Seen::ShutDown),
            Seen::Broken => return Err(ProviderError::KvmFailed { log: files.machine_log() }),
            Seen::Gone(last_line) => {
                let log = files.machine_log();
                return Err(ProviderError::Ended { what: "QEMU", last_line, log });
            }
            Seen::Paused(why) if was_told => return Err(ProviderError::Paused { why }),
            Seen::Paused(_) => {
                if let Some(qmp) = &mut control {
                    qmp.go_on().await?;
                }
                was_told = true;
                running_since = None;
            }
            Seen::Unknown(_) => running_since = None,
        }
        let log = files.machine_log();
        if accelerator::has_kvm_failed(&log) {
            return Err(ProviderError::KvmFailed { log });
        }
        if Instant::now() >= deadline {
            return Err(ProviderError::NotReady { what: "the machine", waited: SEEN_TIMEOUT, log });
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What becomes of a machine that was not seen to run, and whether to end it: one whose processor stands for
/// good, and one that was started just now and has done nothing. One that was there before may run, however
/// slowly it answers, and what it has written since is in its memory alone.
#[must_use]
pub fn verdict(taken: Taken, failure: ProviderError) -> (bool, ProviderError) {
    match failure {
        ProviderError::KvmFailed { .. } => (true, failure),
        ProviderError::NotReady { .. } if taken.is_new => (true, failure),
        ProviderError::NotReady { waited, log, .. } => {
            (false, ProviderError::Slow { pid: taken.machine.pid, waited, log })
        }
        _ => (false, failure),
    }
}

/// Puts the log of the run before aside: what that one said, such as that KVM failed, is not said of
/// the next.
fn begin_log(log: &Path) -> Result<(), ProviderError> {
    match fs::rename(log, log.with_extension("log.before")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ProviderError::file("put aside", log, error))
        }
        _ => Ok(()),
    }
}

/// How far a machine got.
enum Work {
    /// Nothing was seen of it.
    None,
    /// The console has said something, or the processors have done some work.
    Firmware,
    /// More of its disk was used than firmware does, or QEMU does not tell how much.
    System,
}

async fn work(files: &Files, machine: Process, qmp: &mut Qmp) -> Result<Work, ProviderError> {
    if !fs::metadata(files.console()).is_ok_and(|console| console.len() > 0) {
        let threads = qmp.processors().await?;
        let ticks = threads.into_iter().filter_map(|thread| process::ticks(machine.pid, thread));
        if ticks.sum::<u64>() < WORK_TICKS {
            return Ok(Work::None);
        }
    }
    let is_firmware =
        |disk: DiskUse| disk.read_bytes < FIRMWARE_BYTES_MAX && disk.written_bytes == 0;
    Ok(if qmp.disk_use().await?.is_some_and(is_firmware) { Work::Firmware } else { Work::System })
}

#[cfg(test)]
mod tests {
    use farshore_api::failover::FailoverKind;
    use uuid::Uuid;

    use super::*;
    use crate::providers::process::{Launch, Trust};

    #[tokio::test]
    async fn a_machine_that_was_started_and_not_noted_is_taken_up_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), Uuid::from_u128(1));
        files.create().unwrap();
        let name = confine::marker(files.dir());
        // It waits without a child: one would have its command line for a moment.
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let script = format!("read line <{}", pipe.display());
        let arguments = ["-c".into(), script.into(), "qemu".into(), "-name".into(), name];
        let confinement = Confinement::default();
        let running = process::start(&Launch {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            trust: Trust::Guest,
            dir: None,
            log: &files.machine_log(),
            hint: "",
        });
        let running = running.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while machines(&files).unwrap() != [running] {
            assert!(Instant::now() < deadline, "not found");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let machine = Machine {
            program: Path::new("/nowhere/qemu"),
            accelerator: Accelerator::Tcg,
            confinement: &confinement,
            firmware_dir: None,
        };
        let taken_up = machine.start(&files, "nbd://x", &spec()).await.unwrap();
        assert_eq!(taken_up, Taken { machine: running, is_new: false });
        assert!(process::is_alive(running), "and it was not touched");
        process::stop(running).await.unwrap();
    }

    /// P24: a machine that runs on a slow host or store, or whose control socket hangs.
    #[test]
    fn only_what_is_new_is_ended_because_it_was_not_seen() {
        let machine = Process { pid: 7, started: 1, boot: Uuid::nil() };
        let slow = || ProviderError::NotReady {
            what: "the machine",
            waited: SEEN_TIMEOUT,
            log: "/log".into(),
        };
        let is_ended = |is_new, failure| verdict(Taken { machine, is_new }, failure).0;
        assert!(is_ended(true, slow()) && !is_ended(false, slow()));
        let (_, told) = verdict(Taken { machine, is_new: false }, slow());
        assert!(
            told.to_string().contains("process 7") && told.to_string().contains("60 s"),
            "{told}"
        );
        let stands = || ProviderError::KvmFailed { log: "/log".into() };
        assert!(is_ended(true, stands()) && is_ended(false, stands()));
        let paused = || ProviderError::Paused { why: String::new() };
        assert!(!is_ended(true, paused()) && !is_ended(false, paused()));
    }

    /// P24: what KVM did to the run before is not said of this one.
    #[test]
    fn old_words_of_kvm_are_put_aside_with_their_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("qemu.log");
        begin_log(&log).unwrap();
        fs::write(&log, "KVM internal error. Suberror: 1\n").unwrap();
        assert!(accelerator::has_kvm_failed(&log));
        begin_log(&log).unwrap();
        assert!(!accelerator::has_kvm_failed(&log), "there is no log yet");
        fs::write(&log, "hello\n").unwrap();
        assert!(!accelerator::has_kvm_failed(&log));
        assert!(accelerator::has_kvm_failed(&dir.path().join("qemu.log.before")), "it is kept");
    }

    fn spec() -> CreateFailover {
        CreateFailover {
            id: None,
            kind: FailoverKind::Drill,
            point: Default::default(),
            serve_only: false,
            listen: Default::default(),
            memory_mib: Some(512),
            cpus: None,
            firmware: None,
        }
    }

    #[test]
    fn commas_in_the_uri_stay_in_the_uri() {
        let spec = spec();
        let files = Files::new(Path::new("/srv/a,b"), Uuid::from_u128(1));
        let uri = "nbd+unix:///?socket=/elsewhere/a,b/nbd.sock";
        let firmware = Firmware::Combined("/fw".into());
        let arguments = arguments(Accelerator::Tcg, &files, uri, &spec, &firmware);
        let has = |flag: &str, value: &str| {
            arguments
                .windows(2)
                .any(|pair| pair[0] == flag && pair[1].to_string_lossy().starts_with(value))
        };
        assert!(
            has("-drive", "file=nbd+unix:///?socket=/elsewhere/a,,b/nbd.sock,"),
            "{arguments:?}"
        );
        assert!(has("-name", "guest=/srv/a,,b/"), "{arguments:?}");
        assert!(has("-qmp", "unix:own/qmp.sock,"), "{arguments:?}");
        assert!(has("-serial", "file:console.log"), "{arguments:?}");
        let disk = arguments.iter().find(|value| value.to_string_lossy().starts_with("file=nbd"));
        let disk = disk.unwrap().to_string_lossy();
        assert!(disk.contains("werror=stop,rerror=stop") && disk.contains("reconnect-delay="));
        assert!(arguments.contains(&"-no-shutdown".into()), "a shutdown is seen");
        assert!(!arguments.contains(&"-no-reboot".into()), "a reboot is a reboot");
        assert!(has("-m", "512") && has("-machine", "q35,accel=tcg") && has("-bios", "/fw"));
    }
}
