//! The checkout: where it is, which files it holds, and running commands in it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Folders that hold no source of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "dist"];

/// Returns the root of the checkout this xtask was built from.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one folder below the root")
        .to_path_buf()
}

/// Returns the folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Starts a cargo command in the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or ends with another status than 0.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let line = shown(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// As [`check`], with what it said on stderr.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = shown(command);
    let output = command.output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, said.trim());
    }
    Ok(output.stdout)
}

/// As [`output`], as text without the last line end.
///
/// # Errors
/// As [`output`], or if it printed something that is not UTF-8.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    let text = String::from_utf8(output(command)?).context("read a command's output")?;
    Ok(text.trim_end().to_owned())
}

/// Whether a program lies on the PATH.
pub(crate) fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// Starts a command of a tool that Debian keeps where only root's PATH leads.
pub(crate) fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words: Vec<_> =
        std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// A text file of the checkout.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path below the root, with `/` between its parts.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) text: String,
}

impl Source {
    /// Whether the whole file is test code.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
            || self.path.starts_with("tests/")
            || self.path.contains("/benches/")
    }

    /// The lines before the test module that ends the file.
    pub(crate) fn lines_without_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.test_module_line().unwrap_or(usize::MAX);
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line)).take_while(move |l| l.0 < end)
    }

    /// The line, counted from 1, of `#[cfg(test)]` before a `mod … {` that closes the file.
    fn test_module_line(&self) -> Option<usize> {
        let lines: Vec<&str> = self.text.lines().collect();
        lines.iter().enumerate().find_map(|(i, line)| {
            let next = lines[i + 1..].iter().find(|l| !l.trim_start().starts_with("#["))?;
            let opens = next.starts_with("mod ") && next.ends_with('{');
            (line.trim() == "#[cfg(test)]" && opens).then_some(i + 1)
        })
    }
}

/// Reads every file of the checkout that ends in one of `endings` (such as `.rs`), in path order.
///
/// # Errors
/// If a folder or file cannot be read.
pub(crate) fn sources(endings: &[&str]) -> Result<Vec<Source>> {
    let root = root();
    let mut paths = Vec::new();
    walk(&root, &mut paths)?;
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let name = path.strip_prefix(&root).expect("walked below the root").to_string_lossy();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
            found.push(Source { path: name.into_owned(), text });
        }
    }
    Ok(found)
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() {
            paths.push(entry.path());
        } else if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
            walk(&entry.path(), paths)?;
        }
    }
    Ok(())
}

/// The part of a line of Rust before its comment.
///
/// Good enough for rules about names: a `//` inside a string literal hides the rest of the line.
pub(crate) fn code_of(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Ends a check: prints how much was looked at, or every finding.
///
/// # Errors
/// If there are findings.
pub(crate) fn conclude(check: &str, looked_at: &str, findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        println!("{check}: {looked_at}, nothing to say");
        return Ok(());
    }
    for finding in findings {
        eprintln!("{check}: {finding}");
    }
    bail!("{check}: {} finding(s) above", findings.len())
}
