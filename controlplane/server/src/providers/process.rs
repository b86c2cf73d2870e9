//! Processes that outlive the control plane.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::ProviderError;
use crate::db::Process;
use crate::entrance::lower_descriptors_of;

/// How long a process may take to end after SIGTERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to end a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a process that is to end is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of a log that are searched for its last line.
const TAIL_BYTES: u64 = 4096;

/// Longest last line that is passed on.
const LAST_LINE_CHARS: usize = 400;

/// What every program is given of our environment: how to find others, to tell time and to speak.
const PLAIN: &[&str] = &["PATH", "LANG", "LC_", "TZ", "TMPDIR"];

/// What only those are given that read the vault: its credentials and the way to it.
const STORE: &[&str] = &[
    "FARSHORE_",
    "AWS_",
    "AZURE_",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "SSL_CERT_",
    "RUST_BACKTRACE",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "FAKETIME",
    "FAKETIME_",
];

/// What a program is trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It runs what somebody else wrote, a guest: nothing of ours is told to it.
    Guest,
    /// It is ours and reads the vault, so it gets the store's credentials.
    Store,
}

impl Trust {
    /// Whether a variable of our environment goes on to the program. Names that end in an underscore
    /// stand for all that begin so.
    fn passes_on(self, name: &OsStr) -> bool {
        let fits = |pattern: &&str| {
            let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
            if pattern.ends_with(b"_") { name.starts_with(pattern) } else { name == pattern }
        };
        PLAIN.iter().any(fits) || (self == Self::Store && STORE.iter().any(fits))
    }

    /// What of our environment goes on to the program.
    pub fn environment(self) -> impl Iterator<Item = (OsString, OsString)> {
        env::vars_os().filter(move |(name, _)| self.passes_on(name))
    }
}

/// What a program is started with.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The program.
    pub program: &'a Path,
    /// What it is told.
    pub arguments: &'a [OsString],
    /// What it is trusted with.
    pub trust: Trust,
    /// Where it works; where we do if none is named.
    pub dir: Option<&'a Path>,
    /// Where its words go.
    pub log: &'a Path,
    /// What to do if it is not installed.
    pub hint: &'static str,
}

/// Starts a program in a process group of its own, its output appended to its log. Of our environment
/// it gets what it is trusted with.
///
/// # Errors
/// `Missing` if there is no such program, `Start` if it cannot be run, `File` for its log.
pub fn start(launch: &Launch<'_>) -> Result<Process, ProviderError> {
    let Launch { program, log, hint, .. } = *launch;
    let open_log =
        || OpenOptions::new().create(true).append(true).mode(0o600).open(log).map(Stdio::from);
    let file = |source| ProviderError::file("write", log, source);
    let (out, err) = (open_log().map_err(file)?, open_log().map_err(file)?);
    let boot = boot().map_err(|source| ProviderError::file("read", BOOT_ID, source))?;
    let mut command = Command::new(program);
    command
        .args(launch.arguments)
        .env_clear()
        .envs(launch.trust.environment())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .kill_on_drop(false);
    if let Some(dir) = launch.dir {
        command.current_dir(dir);
    }
    let spawned = command.spawn();
    let mut child = spawned.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ProviderError::Missing { program: program.into(), hint },
        _ => ProviderError::Start { program: program.into(), source },
    })?;
    let pid = child.id().unwrap_or_default();
    // The child is not reaped before its task runs, so its entry in /proc is there even if it has
    // ended already.
    let started = match stat(pid) {
        Ok(stat) => stat.map_or(0, |stat| stat.started),
        Err(source) => {
            // One that nobody could find again must not run.
            let _has_ended = child.start_kill();
            return Err(ProviderError::Unseen { pid, source });
        }
    };
    // Guests and exports get what is usual.
    lower_descriptors_of(pid);
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => info!(pid, %status, "process ended"),
            Err(error) => warn!(pid, %error, "wait for process"),
        }
    });
    Ok(Process { pid, started, boot })
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot of this host, as the kernel names it; nil where it does not. An error is no answer, and is
/// not remembered as one.
fn boot() -> io::Result<Uuid> {
    static BOOT: OnceLock<Uuid> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot);
    }
    let boot = match fs::read_to_string(BOOT_ID) {
        Ok(text) => text.trim().parse().unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Uuid::nil(),
        Err(error) => return Err(error),
    };
    Ok(*BOOT.get_or_init(|| boot))
}

struct Stat {
    state: u8,
    started: u64,
}

/// Reads state and start time (fields 3 and 22, proc(5)). The name before them may hold anything,
/// so they are counted from its closing parenthesis. None if there is no such process.
fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let read = || {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some(Stat { state, started })
    };
    let stat = read().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such fields"));
    stat.map(Some)
}

/// Whether an error of a look says that the process is not there, and not that one could not look.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Whether exactly this process still runs. One that ended and waits to be reaped does not, nor does
/// one of another boot: pids and ticks come back after a reboot.
fn runs(process: Process) -> io::Result<bool> {
    if process.boot != boot()? {
        return Ok(false);
    }
    Ok(stat(process.pid)?
        .is_some_and(|stat| stat.started == process.started && !matches!(stat.state, b'Z' | b'X')))
}

/// Whether exactly this process still runs, for all that is known: while nobody can look it does, so that
/// no other is started in its place.
#[must_use]
pub fn is_alive(process: Process) -> bool {
    runs(process).unwrap_or_else(|error| {
        warn!(pid = process.pid, %error, "cannot tell whether a process runs");
        true
    })
}

/// Ends a process: SIGTERM, then SIGKILL. When this returns without an error it is gone.
///
/// # Errors
/// `Lasting` if it does not end; `Unseen` if it cannot be looked at: it may run.
pub async fn stop(process: Process) -> Result<(), ProviderError> {
    let pid = process.pid;
    let unseen = |source| ProviderError::Unseen { pid, source };
    for (signal, timeout) in [(Signal::TERM, TERM_TIMEOUT), (Signal::KILL, KILL_TIMEOUT)] {
        if !send(process, signal).map_err(unseen)? {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        loop {
            let runs = runs(process);
            if matches!(runs, Ok(false)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                runs.map_err(unseen)?;
                break;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    warn!(pid, "process does not end");
    Err(ProviderError::Lasting { pid })
}

/// Ends a process at once, without waiting for it.
pub fn kill(process: Process) {
    if let Err(error) = send(process, Signal::KILL) {
        warn!(pid = process.pid, %error, "cannot end a process");
    }
}

/// Sends a signal to exactly this process; false if it is gone. The handle is taken before the
/// start time is compared, so the signal cannot hit a later process with the same pid.
fn send(process: Process, signal: Signal) -> io::Result<bool> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Ok(false);
    };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        // There is none, or the number is not a process's any more. Anything else says nothing.
        Err(_) if matches!(runs(process), Ok(false)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !runs(process)? {
        return Ok(false);
    }
    match pidfd_send_signal(&handle, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Processes whose command line holds `flag` followed by `value`.
///
/// # Errors
/// `File` if the processes cannot be looked through: there may be some.
pub fn find(flag: &str, value: &OsStr) -> Result<Vec<Process>, ProviderError> {
    look_through(flag, value).map_err(|source| ProviderError::file("look through", "/proc", source))
}

fn look_through(flag: &str, value: &OsStr) -> io::Result<Vec<Process>> {
    let mut marker = flag.as_bytes().to_vec();
    marker.push(0);
    marker.extend_from_slice(value.as_bytes());
    marker.push(0);
    let boot = boot()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        let line = match fs::read(entry.path().join("cmdline")) {
            Ok(line) => line,
            // It ended meanwhile, or is somebody else's.
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
                continue;
            }
            Err(error) => return Err(error),
        };
        if !line.windows(marker.len()).any(|window| window == marker) {
            continue;
        }
        let Some(stat) = stat(pid)? else { continue };
        let process = Process { pid, started: stat.started, boot };
        if runs(process)? {
            found.push(process);
        }
    }
    Ok(found)
}

/// Time that a thread of a process, or the process, has had a processor, in clock ticks.
#[must_use]
pub fn ticks(pid: u32, thread: u64) -> Option<u64> {
    let text = fs::read(format!("/proc/{pid}/task/{thread}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // User and system time: fields 14 and 15, proc(5); the state is field 3.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

/// The last line of a log that is not empty, shortened.
#[must_use]
pub fn last_line(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    last_line_of(&read().unwrap_or_default(), LAST_LINE_CHARS)
}

/// The last line that is not empty, shortened.
#[must_use]
pub fn last_line_of(text: &[u8], chars_max: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| "it said nothing".into(), |line| line.chars().take(chars_max).collect())
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    /// What a shell is started with.
    fn shell<'a>(arguments: &'a [OsString], log: &'a Path) -> Launch<'a> {
        let program = Path::new("/bin/sh");
        Launch { program, arguments, trust: Trust::Guest, dir: None, log, hint: "install it" }
    }

    fn sleeper(dir: &Path) -> Process {
        start(&shell(&["-c", "exec sleep 60"].map(OsString::from), &dir.join("log"))).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_known_by_pid_and_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        assert!(is_alive(process));
        let of_another_boot = Process { boot: Uuid::from_u128(1), ..process };
        assert!(!is_alive(of_another_boot), "pids and ticks come back after a reboot");
        assert!(stop(of_another_boot).await.is_ok(), "and nothing is sent to who has them now");
        let impostor = Process { started: process.started + 1, ..process };
        assert!(!is_alive(impostor));
        assert!(stop(impostor).await.is_ok(), "an impostor counts as gone");
        assert!(is_alive(process), "and nothing was sent to who has its pid");
        stop(process).await.unwrap();
        assert!(!is_alive(process));
    }

    /// P24: no word of a process is not the word that it is gone.
    #[tokio::test]
    async fn what_cannot_be_looked_at_is_not_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        assert!(is_alive(process));
        // As when the process has no descriptor left. (Each test is a process of its own.)
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let stopped = stop(process).await;
        let found = find("-c", OsStr::new("exec sleep 60"));
        let is_thought_alive = is_alive(process);
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(matches!(stopped, Err(ProviderError::Unseen { .. })), "{stopped:?}");
        assert!(found.is_err(), "{found:?}");
        assert!(is_thought_alive && is_alive(process));
        stop(process).await.unwrap();
        assert!(!is_alive(process));
    }

    #[tokio::test]
    async fn processes_are_found_by_their_marker() {
        let dir = tempfile::tempdir().unwrap();
        let value = dir.path().join("ready.json");
        let script = "sleep 60; :";
        let arguments = [
            OsString::from("-c"),
            script.into(),
            "name".into(),
            "--ready-file".into(),
            value.clone().into(),
        ];
        let log = dir.path().join("log");
        let process = start(&shell(&arguments, &log)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while find("--ready-file", value.as_os_str()).unwrap() != [process] {
            assert!(Instant::now() < deadline, "not found");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        assert!(find("--overlay", value.as_os_str()).unwrap().is_empty());
        stop(process).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_comes_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nothing");
        let log = dir.path().join("log");
        let error = start(&Launch { program: &missing, ..shell(&[], &log) }).unwrap_err();
        assert!(error.to_string().ends_with("is not installed; install it"), "{error}");
    }

    #[tokio::test]
    async fn a_guest_learns_nothing_of_our_environment() {
        const OURS: &str = "CARGO_MANIFEST_DIR";
        assert!(env::var_os(OURS).is_some(), "the test's own environment has something to hide");
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // It is not the guest yet before it says so: a child has our environment until it becomes its program.
        let arguments = ["-c", "env; echo listed; exec sleep 60"].map(OsString::from);
        let process = start(&shell(&arguments, &log)).unwrap();
        let listed = async {
            while !fs::read_to_string(&log).unwrap().contains("listed") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), listed).await.expect("a list");
        let path = format!("/proc/{}/environ", process.pid);
        let mut environment = Vec::new();
        // Nothing is there while it becomes another program.
        while environment.is_empty() {
            environment = fs::read(&path).unwrap();
        }
        stop(process).await.unwrap();
        let names = String::from_utf8_lossy(&environment);
        assert!(names.contains("PATH=") && !names.contains(OURS), "{names}");
        // Names that a shell adds by itself are none of ours.
        let said = fs::read_to_string(&log).unwrap();
        assert!(!said.contains(OURS) && !said.contains("CARGO"), "{said}");
    }

    #[test]
    fn only_those_who_read_the_vault_get_its_credentials() {
        let secrets = [
            "AWS_SECRET_ACCESS_KEY",
            "AZURE_STORAGE_KEY",
            "FARSHORE_KEY_FILE",
            "HOME",
            "HTTPS_PROXY",
        ];
        for name in secrets.map(OsStr::new) {
            assert!(Trust::Store.passes_on(name), "{name:?}");
            assert!(!Trust::Guest.passes_on(name), "{name:?}");
        }
        for name in ["PATH", "LC_ALL", "TZ"].map(OsStr::new) {
            assert!(Trust::Store.passes_on(name) && Trust::Guest.passes_on(name), "{name:?}");
        }
        for name in ["PATHS", "SSH_AUTH_SOCK", "DATABASE_URL", "LANGUAGES_AWS_"].map(OsStr::new) {
            assert!(!Trust::Store.passes_on(name) && !Trust::Guest.passes_on(name), "{name:?}");
        }
    }

    #[test]
    fn the_last_line_is_the_last_that_says_something() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_line(&log), "it said nothing");
        fs::write(&log, format!("{}\nno such point\n\n", "x".repeat(9000))).unwrap();
        assert_eq!(last_line(&log), "no such point");
    }
}
