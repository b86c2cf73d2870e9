//! The logs of a scenario's processes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines printed of each log when a test fails.
const TAIL_LINES: usize = 120;

/// Every `*.log` file below a folder, in path order.
///
/// # Errors
/// If a folder cannot be listed.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "log") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Lines that say that a human must look, and that no test expected.
///
/// # Errors
/// If a log cannot be read.
pub fn unexpected(folder: &Path, expected: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(folder)? {
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        for line in String::from_utf8_lossy(&text).lines().filter(|line| is_error(line)) {
            if !expected.iter().any(|part| line.contains(part)) {
                found.push(format!("{}: {line}", path.display()));
            }
        }
    }
    Ok(found)
}

/// Whether a line of a log, as text or JSON, is of level ERROR or tells of a panic.
fn is_error(line: &str) -> bool {
    let is_text = line.split_whitespace().take(4).any(|word| word == "ERROR");
    is_text || line.contains("\"level\":\"ERROR\"") || line.contains("panicked at")
}

/// Prints the end of every log.
pub fn print(folder: &Path) {
    for path in files(folder).unwrap_or_default() {
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("---- {} ({} lines)", path.display(), lines.len());
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_an_error_from_a_line_that_speaks_of_one() {
        assert!(is_error("2026-11-23T06:44:00Z ERROR farshore_node: the journal is broken"));
        assert!(is_error("{\"timestamp\":\"…\",\"level\":\"ERROR\",\"fields\":{}}"));
        assert!(is_error("thread 'shard-0' panicked at src/shard.rs:1:1:"));
        assert!(!is_error("2026-11-23T06:44:00Z  INFO farshore_node: no ERROR so far today"));
    }
}
