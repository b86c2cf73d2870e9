//! Commands that take minutes say how far they are.
//!
//! On a terminal cargo draws its own bar. Elsewhere, in continuous integration or behind a pipe, it says
//! nothing for as long as one crate takes: there, a line comes every ten seconds, and one at the end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::repo;

/// Between two lines of progress.
const EVERY: Duration = Duration::from_secs(10);

/// Messages of cargo that wait for us.
const MESSAGES_MAX: usize = 64;

/// Runs `cargo VERB ARGUMENTS`, which compiles, and says how many of its crates are done. `verb` is more
/// than one word for what builds without running.
///
/// # Errors
/// If it cannot be started or ends with another status than 0.
pub(crate) fn build(what: &str, verb: &[&str], arguments: &[&str]) -> Result<()> {
    // What follows `--` is for a program that cargo starts.
    let at = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
    let (own, theirs) = arguments.split_at(at);
    let mut cargo = repo::cargo();
    cargo.args(verb);
    if std::io::stderr().is_terminal() {
        return repo::check(cargo.args(arguments));
    }
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]).args(own).args(theirs);
    let all = crates(own, verb.contains(&"test") || own.contains(&"--all-targets"));
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("read what cargo says")?;
    let mut done = BTreeSet::new();
    watch(BufReader::new(output), EVERY, |progress| match progress {
        Progress::Line(line) => done.extend(finished_crate(line)),
        Progress::Still(since) => {
            println!("{what}: {} of {} crates, {}", done.len(), shown_total(all), shown(since));
        }
        Progress::End(since) => println!("{what}: {} crates, {}", done.len(), shown(since)),
    });
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("`cargo {} {}` ended with {status}", verb.join(" "), own.join(" "));
    }
    Ok(())
}

/// Builds these packages, and says how far it is.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_packages(options: &[&str], packages: &[&str]) -> Result<()> {
    let mut arguments = options.to_vec();
    arguments.extend(packages.iter().flat_map(|package| ["--package", package]));
    build("building", &["build"], &arguments)
}

/// Runs a command that says what it does by itself, and tells between its words that it goes on.
///
/// # Errors
/// If it cannot be started or ends with another status than 0.
pub(crate) fn check(what: &str, command: &mut Command) -> Result<()> {
    if std::io::stderr().is_terminal() {
        return repo::check(command);
    }
    let (running, ended) = sync_channel::<()>(0);
    let begun = Instant::now();
    let what = what.to_owned();
    let teller = thread::spawn(move || {
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            println!("{what}: {} so far", shown(begun.elapsed()));
        }
    });
    let result = repo::check(command);
    drop(running);
    // It ends with the channel; a panic of it would be a bug in a line of text.
    teller.join().ok();
    result
}

/// What there is to tell.
#[derive(Debug, PartialEq, Eq)]
enum Progress<'a> {
    /// A line came.
    Line(&'a str),
    /// It goes on, for so long by now.
    Still(Duration),
    /// It ended, after so long.
    End(Duration),
}

/// Reads lines to their end, and tells of each, and now and then that there are more to come.
fn watch(lines: impl BufRead + Send, every: Duration, mut tell: impl FnMut(Progress<'_>)) {
    let begun = Instant::now();
    let (sender, receiver) = sync_channel(MESSAGES_MAX);
    thread::scope(|scope| {
        scope.spawn(|| pass_on(lines, sender));
        let mut due = begun + every;
        loop {
            match receiver.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(line) => tell(Progress::Line(&line)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Lines that come all the time must not keep this away.
            if Instant::now() >= due {
                tell(Progress::Still(begun.elapsed()));
                due = Instant::now() + every;
            }
        }
    });
    tell(Progress::End(begun.elapsed()));
}

fn pass_on(lines: impl BufRead, sender: SyncSender<String>) {
    for line in lines.lines().map_while(Result::ok) {
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// The crate that a message of cargo says is done, compiled just now or before.
fn finished_crate(line: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_done = message["reason"] == "compiler-artifact";
    is_done.then(|| message["package_id"].as_str().map(str::to_owned))?
}

/// How many crates there are to compile; none if cargo does not say.
fn crates(arguments: &[&str], has_tests: bool) -> Option<usize> {
    let edges = if has_tests { "normal,build,dev" } else { "normal,build" };
    let mut tree = repo::cargo();
    tree.args(["tree", "--quiet", "--prefix", "none", "--edges", edges]);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--workspace" => _ = tree.arg(word),
            "--package" => _ = tree.arg(word).args(words.next()),
            _ => {}
        }
    }
    repo::text(&mut tree).ok().map(|text| distinct(&text))
}

/// A crate that is shown again is marked; it stays one.
fn distinct(tree: &str) -> usize {
    let crates = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    crates.filter(|line| !line.is_empty()).collect::<BTreeSet<_>>().len()
}

fn shown_total(all: Option<usize>) -> String {
    all.map_or_else(|| "all".to_owned(), |all| all.to_string())
}

/// A time as people read it.
pub(crate) fn shown(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::mpsc::Receiver;

    /// Says nothing until it was told of three times, then a line, and the same again.
    struct Slow {
        told: Receiver<()>,
        lines: Vec<&'static str>,
    }

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some(line) = self.lines.pop() else { return Ok(0) };
            for _ in 0..3 {
                self.told.recv().unwrap();
            }
            buffer[..line.len()].copy_from_slice(line.as_bytes());
            Ok(line.len())
        }
    }

    #[test]
    fn what_says_nothing_for_long_is_told_of_again_and_again() {
        let (tell, told) = sync_channel(100);
        let slow = Slow { told, lines: vec!["two\n", "one\n"] };
        let mut seen = Vec::new();
        watch(BufReader::new(slow), Duration::from_millis(1), |progress| {
            seen.push(match progress {
                Progress::Line(line) => line.to_owned(),
                Progress::Still(_) => {
                    // It has all that it waits for after six.
                    tell.try_send(()).ok();
                    "still".to_owned()
                }
                Progress::End(_) => "end".to_owned(),
            });
        });
        let one = seen.iter().position(|word| word == "one").unwrap();
        let two = seen.iter().position(|word| word == "two").unwrap();
        let still =
            |from: usize, to: usize| seen[from..to].iter().filter(|w| *w == "still").count();
        assert!(still(0, one) >= 3 && still(0, two) >= 6, "{seen:?}");
        assert_eq!(seen.last().unwrap(), "end");
    }

    #[test]
    fn crates_are_counted_once() {
        let line = r#"{"reason":"compiler-artifact","package_id":"a 1.0","fresh":true}"#;
        assert_eq!(finished_crate(line).as_deref(), Some("a 1.0"));
        assert_eq!(finished_crate(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(finished_crate("warning: no message"), None);
        assert_eq!(distinct("a v1\nb v1\nb v1 (*)\n\na v2\n"), 3);
    }

    #[test]
    fn times_are_shown_as_people_read_them() {
        assert_eq!(shown(Duration::from_millis(9_940)), "9.9 s");
        assert_eq!(shown(Duration::from_secs(130)), "2 min 10 s");
    }
}
