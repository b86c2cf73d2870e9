//! What happened, line by line: a story to read, and what two runs of one seed must share.

use std::io::Write;

/// The lines of one run.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Option<Vec<String>>,
    is_printed: bool,
}

impl Trace {
    /// Keeps nothing.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// Keeps every line.
    #[must_use]
    pub fn kept() -> Self {
        Self { lines: Some(Vec::new()), is_printed: false }
    }

    /// Prints every line as it comes, so that a run that hangs or panics has told what it did.
    #[must_use]
    pub fn printed() -> Self {
        Self { lines: None, is_printed: true }
    }

    /// Whether lines are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_printed || self.lines.is_some()
    }

    /// Adds a line at a moment of virtual time, in microseconds.
    pub fn line(&mut self, at_us: u64, who: &str, text: &str) {
        let line = format!("{:>4}.{:06} {who:<8} {text}", at_us / 1_000_000, at_us % 1_000_000);
        if self.is_printed {
            // Whoever reads no further has seen enough.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    /// The lines kept.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
