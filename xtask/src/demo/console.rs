//! A guest's serial console, each line with the time it arrived.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// Time between two looks at a console that is a file.
const PAUSE: Duration = Duration::from_millis(10);

/// First words of the guest's kernel.
pub(crate) const KERNEL: &str = "Linux version";
/// First words of the recorder.
pub(crate) const BOOT: &str = "farshore-guest: boot ";
const RECORD: &str = "farshore-guest: record ";
const ERROR: &str = "farshore-guest: error";

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// When it was complete, in ms since 1970.
    pub(crate) at_ms: u64,
    pub(crate) text: String,
}

/// What a guest has said so far.
#[derive(Debug)]
pub(crate) struct Console {
    lines: Arc<Mutex<Vec<Line>>>,
    is_ended: Arc<AtomicBool>,
}

impl Console {
    /// Reads to the end of a pipe, or, where `is_file`, for as long as this lives.
    pub(crate) fn read(source: impl Read + Send + 'static, is_file: bool) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let is_ended = Arc::new(AtomicBool::new(false));
        let (shared, ended) = (Arc::clone(&lines), Arc::clone(&is_ended));
        // It ends with its source or with this; nothing waits for it.
        thread::spawn(move || listen(source, is_file, &shared, &ended));
        Self { lines, is_ended }
    }

    /// Every line so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first line with this text in it.
    pub(crate) fn find(&self, text: &str) -> Option<Line> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find(|line| line.text.contains(text)).cloned()
    }

    /// Waits for a line with this text.
    ///
    /// # Errors
    /// If there is none in time, the guest says that it cannot go on, or the console ends.
    pub(crate) fn wait_for(&self, text: &str, limit: Duration) -> Result<Line> {
        let end_ms = now_ms() + u64::try_from(limit.as_millis())?;
        loop {
            if let Some(line) = self.find(text) {
                return Ok(line);
            }
            if let Some(error) = self.find(ERROR) {
                bail!("the guest cannot go on: {}", error.text);
            }
            if now_ms() > end_ms || self.is_ended.load(Ordering::Relaxed) {
                bail!("the console never said \"{text}\"; its end is:\n{}", self.tail());
            }
            thread::sleep(PAUSE);
        }
    }

    /// The last record that arrived, not later than `at_ms`.
    pub(crate) fn last_record(&self, at_ms: u64) -> u64 {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let until = lines.iter().filter(|line| line.at_ms <= at_ms);
        until.filter_map(|line| record(&line.text)).max().unwrap_or(0)
    }

    fn tail(&self) -> String {
        let lines = self.lines();
        let texts: Vec<String> =
            lines[lines.len().saturating_sub(12)..].iter().map(|line| line.text.clone()).collect();
        texts.join("\n")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
    }
}

fn listen(mut source: impl Read, is_file: bool, lines: &Mutex<Vec<Line>>, is_ended: &AtomicBool) {
    let mut bytes = [0; 4096];
    let mut begun = Vec::new();
    while !is_ended.load(Ordering::Relaxed) {
        match source.read(&mut bytes) {
            Ok(0) if is_file => thread::sleep(PAUSE),
            Ok(0) | Err(_) => break,
            Ok(count) => {
                for byte in &bytes[..count] {
                    match byte {
                        b'\n' => {
                            let text = String::from_utf8_lossy(&begun).trim_end().to_owned();
                            let line = Line { at_ms: now_ms(), text };
                            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                            begun.clear();
                        }
                        byte => begun.push(*byte),
                    }
                }
            }
        }
    }
    is_ended.store(true, Ordering::Relaxed);
}

fn record(text: &str) -> Option<u64> {
    text.split_once(RECORD)?.1.parse().ok()
}

/// What the recorder found when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) records: u64,
    pub(crate) last: u64,
    pub(crate) gaps: u64,
    pub(crate) torn: u64,
}

impl Boot {
    /// Reads `farshore-guest: boot records=N last=N gap=0 torn=0`.
    ///
    /// # Errors
    /// If the line is another.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (_, fields) = text.split_once(BOOT).context("not the recorder's first line")?;
        let field = |name: &str| {
            let value = fields.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
            let value = value.with_context(|| format!("no {name} in \"{text}\""))?;
            value.parse().with_context(|| format!("{name} in \"{text}\""))
        };
        Ok(Self {
            records: field("records")?,
            last: field("last")?,
            gaps: field("gap")?,
            torn: field("torn")?,
        })
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_recorders_lines() {
        let boot = Boot::parse("\u{1b}[0mfarshore-guest: boot records=7 last=7 gap=0 torn=1");
        assert_eq!(boot.unwrap(), Boot { records: 7, last: 7, gaps: 0, torn: 1 });
        assert!(Boot::parse("farshore-guest: boot records=7").is_err());
        assert_eq!(record("farshore-guest: record 12"), Some(12));
        assert_eq!(record("farshore-guest: record 1farshore"), None);
    }

    #[test]
    fn keeps_lines_in_order_and_forgets_a_line_without_an_end() {
        let text = "Linux version 6\r\nfarshore-guest: record 1\nfarshore-guest: rec";
        let console = Console::read(text.as_bytes(), false);
        console.wait_for("record 1", Duration::from_secs(5)).unwrap();
        assert_eq!(console.last_record(u64::MAX), 1);
        assert_eq!(console.last_record(0), 0);
        assert_eq!(console.find(KERNEL).unwrap().text, "Linux version 6");
        assert!(console.wait_for("record 2", Duration::from_millis(50)).is_err());
    }
}
