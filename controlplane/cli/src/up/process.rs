//! One child process: how it is started, where its words go, and what its last ones were.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use farshore_api::Exit;
use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc::Sender;

use crate::failure::{Failure, Outcome};

use super::site::program_name;
use super::supervisor::{Child, Death, Input};

/// A log that is larger when its child starts becomes `NAME.log.1`.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// So much of the end of a log is read for the last words.
const LAST_WORDS_BYTES: u64 = 16 << 10;
/// Longest line that is passed on.
const LINE_CHARS_MAX: usize = 1_000;
/// Longest line that is looked at for `ready`.
const READY_LINE_BYTES_MAX: u64 = 4_096;

/// What a process is started with.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) child: Child,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) log: PathBuf,
}

impl Launch {
    /// Starts the process and watches it: `Ready` and `Died` are sent to `events`.
    ///
    /// The process gets SIGTERM when the thread that called this ends, so the caller's thread must
    /// live as long as `up` does.
    pub(super) fn start(self, events: &Sender<Input>) -> Outcome<u32> {
        let (log, from) = open_log(&self.log)
            .map_err(|error| Failure::io("open the log", &self.log, &error, Exit::CannotCreate))?;
        let failed =
            |error: &io::Error| Failure::io("start", &self.program, error, Exit::SystemMissing);
        let mut process = self.command(log).spawn().map_err(|error| failed(&error))?;
        let (Some(pid), Some(stdout)) = (process.id(), process.stdout.take()) else {
            return Err(failed(&io::Error::other("it was gone at once")));
        };
        let child = self.child;
        let ready = tokio::spawn(watch_words(child, pid, stdout, events.clone()));
        let events = events.clone();
        tokio::spawn(async move {
            let status = process.wait().await;
            let death = death(child, status, &self.log, from);
            ready.abort();
            // Nobody listens any more only when `up` itself ends.
            let _ = events.send(Input::Died { child, pid, death }).await;
        });
        Ok(pid)
    }

    fn command(&self, log: File) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C on the terminal is for `up` alone, which then stops its children in order.
            .process_group(0);
        let parent = getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        };
        #[expect(unsafe_code, reason = "a hook between fork and exec cannot be set safely")]
        // SAFETY: the hook makes two system calls; it allocates nothing, takes no lock and touches
        // no state of the parent.
        unsafe {
            command.pre_exec(die_with_parent)
        };
        command
    }
}

/// The log to append to, and its size now; a large one is put aside first.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let mut log = open()?;
    let mut size = log.metadata()?.len();
    if size > LOG_BYTES_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, aside)?;
        log = open()?;
        size = 0;
    }
    Ok((log, size))
}

/// Waits for the line `ready …`, then reads on so that the process never blocks on a full pipe.
async fn watch_words(child: Child, pid: u32, stdout: ChildStdout, events: Sender<Input>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = (&mut stdout).take(READY_LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if line.starts_with(b"ready") {
            break;
        }
    }
    // Nobody listens any more only when `up` itself ends.
    let _ = events.send(Input::Ready { child, pid }).await;
    let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
}

fn death(child: Child, status: io::Result<ExitStatus>, log: &Path, from: u64) -> Death {
    let (status, how) = match status {
        Ok(status) => {
            let how = status.signal().map_or_else(
                || format!("ended with status {}", status.code().unwrap_or(-1)),
                |signal| format!("was ended by signal {signal}"),
            );
            (status.code().and_then(|code| u8::try_from(code).ok()), how)
        }
        Err(error) => (None, format!("cannot be watched: {error}")),
    };
    let code = status.filter(|status| *status != 0).unwrap_or(Exit::Failure.code());
    // A signal ends a process without a word of its own.
    let words = status.filter(|status| *status != 0).and_then(|_| last_words(log, from));
    let last_words = words.unwrap_or_else(|| {
        Failure::new(Exit::Failure, format!("farshore-{child} {how}"))
            .hint(format!("its log is {}", log.display()))
    });
    Death { status, last_words: Failure { code, ..last_words } }
}

/// The last error and hint in the part of a log that begins at `from`; else its last line.
fn last_words(log: &Path, from: u64) -> Option<Failure> {
    let mut file = File::open(log).ok()?;
    let size = file.metadata().ok()?.len();
    let start = from.max(size.saturating_sub(LAST_WORDS_BYTES));
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    parse_last_words(&text, log)
}

/// What stands behind the mark that Farshore's programs put before their last words.
fn error_of(line: &str) -> Option<&str> {
    let marks = Child::ALL.map(|child| format!("{}: ", program_name(child)));
    let mut marks = marks.iter().map(String::as_str).chain(["error: "]);
    marks.find_map(|mark| line.strip_prefix(mark))
}

fn parse_last_words(text: &str, log: &Path) -> Option<Failure> {
    let cut = |line: &str| line.trim().chars().take(LINE_CHARS_MAX).collect::<String>();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut errors = lines.iter().enumerate().rev();
    let error = errors.find_map(|(at, line)| Some((at, error_of(line)?)));
    let last = || Some((lines.len().checked_sub(1)?, *lines.last()?));
    let (at, message) = error.or_else(last)?;
    let hint = lines.get(at + 1).and_then(|line| line.strip_prefix("hint: "));
    let hint = hint.map_or_else(|| format!("its log is {}", log.display()), cut);
    Some(Failure::new(Exit::Failure, cut(message)).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<(String, String)> {
        let failure = parse_last_words(text, Path::new("/l/node.log"))?;
        Some((failure.message, failure.hint.unwrap()))
    }

    #[test]
    fn the_last_error_and_its_hint_are_found() {
        let text = "INFO start\nerror: old\nerror: the vault is gone\nhint: mount it\n\nINFO bye\n";
        assert_eq!(words(text).unwrap(), ("the vault is gone".into(), "mount it".into()));
    }

    #[test]
    fn the_name_of_the_program_marks_an_error_too() {
        let text = "INFO start\nfarshore-control: cannot listen\n";
        assert_eq!(words(text).unwrap().0, "cannot listen");
    }

    #[test]
    fn without_an_error_the_last_line_counts() {
        let log = "its log is /l/node.log";
        assert_eq!(words("one\ntwo\n\n").unwrap(), ("two".into(), log.into()));
        assert_eq!(words("\n"), None);
        assert_eq!(words("error: alone").unwrap(), ("alone".into(), log.into()));
    }

    #[test]
    fn deaths_tell_the_status_or_the_signal() {
        let missing = Path::new("/no/log");
        let killed = death(Child::Node, Ok(ExitStatus::from_raw(9)), missing, 0);
        assert_eq!(killed.status, None);
        assert_eq!(killed.last_words.message, "farshore-node was ended by signal 9");
        let ended = death(Child::Node, Ok(ExitStatus::from_raw(81 << 8)), missing, 0);
        assert_eq!(ended.status, Some(81));
        assert_eq!(ended.last_words.code, 81);
    }

    #[test]
    fn only_words_of_this_process_count() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("node.log");
        std::fs::write(&log, "error: of yesterday\n").unwrap();
        let (file, from) = open_log(&log).unwrap();
        drop(file);
        let status = ExitStatus::from_raw(64 << 8);
        let silent = death(Child::Node, Ok(status), &log, from);
        assert_eq!(silent.last_words.message, "farshore-node ended with status 64");
        std::fs::write(&log, "error: of yesterday\nerror: of today\n").unwrap();
        assert_eq!(death(Child::Node, Ok(status), &log, from).last_words.message, "of today");
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("node.log");
        File::create(&log).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        let (_, from) = open_log(&log).unwrap();
        assert_eq!(from, 0);
        assert!(dir.path().join("node.log.1").exists());
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    }
}
