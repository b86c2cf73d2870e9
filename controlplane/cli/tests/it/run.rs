//! Running the program.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output as exactly one JSON document.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Checks the exit code and that standard error has the sentence and a hint.
    pub(crate) fn fails(&self, code: i32, sentence: &str, hint: &str) {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(self.stderr.contains(sentence), "`{sentence}` is not in {}", self.stderr);
        assert!(self.stderr.contains(&format!("\nhint: {hint}")), "{}", self.stderr);
        assert_eq!(self.stdout, "");
    }

    /// Checks that the command line was refused.
    pub(crate) fn usage(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (64, ""), "{}", self.stderr);
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program is not killed"),
            stdout: String::from_utf8(output.stdout).expect("output is text"),
            stderr: String::from_utf8(output.stderr).expect("errors are text"),
        }
    }
}

/// The program without any setting of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FARSHORE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the program.
pub(crate) fn farshore(args: &[&str]) -> Ran {
    command().args(args).output().expect("the program runs").into()
}

/// Runs the program with `FARSHORE_DATA`.
pub(crate) fn farshore_in(data: &Path, args: &[&str]) -> Ran {
    command().env("FARSHORE_DATA", data).args(args).output().expect("the program runs").into()
}
