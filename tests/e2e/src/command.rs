//! The operator's command, run as a script would run it.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::wait;

/// No command of a test may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// The `farshore` binary, for one data folder or for none.
#[derive(Clone, Debug)]
pub struct Farshore {
    data: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    line: String,
    status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Where the binaries of this build lie: beside this program, or beside the folder of this test.
///
/// # Errors
/// If the running program cannot be located.
pub fn binaries() -> Result<PathBuf> {
    let program = std::env::current_exe().context("locate this program")?;
    let folder = program.parent().context("a program in a folder of cargo's")?;
    let is_test = folder.ends_with("deps");
    let folder = if is_test { folder.parent().context("a folder of cargo's")? } else { folder };
    Ok(folder.to_path_buf())
}

/// A command for one of the binaries.
///
/// # Errors
/// If it has not been built.
pub fn binary(name: &str) -> Result<Command> {
    let path = binaries()?.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build --workspace`", path.display());
    Ok(Command::new(path))
}

impl Farshore {
    /// Talks to what runs on a data folder.
    #[must_use]
    pub fn on(data: &Path) -> Self {
        Self { data: Some(data.to_path_buf()), environment: Vec::new() }
    }

    /// As on a machine where nothing runs and nothing is known.
    #[must_use]
    pub fn bare() -> Self {
        Self { data: None, environment: Vec::new() }
    }

    /// Adds an environment variable, such as `FARSHORE_KEY_FILE`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs to the end, whatever that is. Words are separated by spaces; paths of tests have none.
    ///
    /// # Errors
    /// If the binary is missing or does not end.
    pub fn run(&self, line: &str) -> Result<Outcome> {
        let context = || format!("run `farshore {line}`");
        let (mut stdout, mut stderr) = (scratch()?, scratch()?);
        let mut child = binary("farshore")?
            .args(line.split_whitespace())
            .env_remove("FARSHORE_DATA")
            .envs(self.data.iter().map(|data| ("FARSHORE_DATA", data)))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(context)?;
        let end = wait::until("the command to end", LIMIT, || Ok(child.try_wait()?));
        if end.is_err() {
            child.kill().with_context(context)?;
            child.wait().with_context(context)?;
        }
        let (stdout, stderr) = (content(&mut stdout)?, content(&mut stderr)?);
        let status = end.with_context(|| format!("`farshore {line}` said: {stdout}{stderr}"))?;
        Ok(Outcome { line: line.to_owned(), status, stdout, stderr })
    }

    /// Runs, expects success.
    ///
    /// # Errors
    /// If it ends with another code than 0.
    pub fn ok(&self, line: &str) -> Result<Outcome> {
        let outcome = self.run(line)?;
        ensure!(outcome.code() == Some(0), "{outcome}");
        Ok(outcome)
    }

    /// Runs with `--output json`, expects success, returns what was printed.
    ///
    /// # Errors
    /// If it ends with another code than 0 or prints no JSON.
    pub fn json(&self, line: &str) -> Result<Value> {
        self.ok(&format!("{line} --output json"))?.json()
    }
}

/// A file without a name, so that a command can print more than a pipe holds.
fn scratch() -> Result<File> {
    tempfile::tempfile().context("create a scratch file")
}

fn content(file: &mut File) -> Result<String> {
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Outcome {
    /// The exit code; nothing after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What was printed, as JSON: the whole, or else the last line (long jobs print several).
    ///
    /// # Errors
    /// If neither is JSON.
    pub fn json(&self) -> Result<Value> {
        let last = self.stdout.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(&self.stdout)
            .or_else(|_| serde_json::from_str(last))
            .with_context(|| format!("no JSON: {self}"))
    }

    /// Expects a refusal with this code and one sentence that names `object`.
    ///
    /// # Errors
    /// If the code is another, or what was said is not one sentence for a person.
    pub fn refused(&self, code: i32, object: &str) -> Result<()> {
        ensure!(self.code() == Some(code), "expected exit code {code}: {self}");
        let said = self.stderr.trim();
        ensure!(said.contains(object), "the sentence does not name {object}: {self}");
        ensure!(!said.is_empty() && said.lines().count() <= 3, "not one sentence: {self}");
        let is_dump =
            ["panicked", "RUST_BACKTRACE", "Os {", "kind:"].iter().any(|w| said.contains(w));
        ensure!(!is_dump, "a dump, not a sentence: {self}");
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`farshore {}` ended with {}; stdout: {}; stderr: {}",
            self.line,
            self.status,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }
}
