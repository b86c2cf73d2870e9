//! How a long job reports: a bar for people, JSON lines for pipes, one document where it was asked
//! for.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use farshore_api::Exit;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, print_json, print_json_line, print_text, printable, printable_lines};

/// Time between two status lines.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Length of a bar that shows a share.
const SHARE_STEPS: f64 = 1_000.0;

/// How the result and what leads to it are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The result as text, with a bar on standard error if that is a terminal.
    Text,
    /// One JSON document at the end.
    Document,
    /// Status lines, then a summary line, on standard output.
    Lines,
}

impl Mode {
    fn choose(asked: Option<Format>, stdout_is_terminal: bool) -> Self {
        match (asked, stdout_is_terminal) {
            (Some(Format::Json), _) => Self::Document,
            (Some(Format::Table), _) | (None, true) => Self::Text,
            (None, false) => Self::Lines,
        }
    }
}

/// A job that takes a while.
#[derive(Debug)]
pub(crate) struct Job {
    mode: Mode,
    bar: ProgressBar,
    /// When the last status line was printed.
    said: Mutex<Option<Instant>>,
}

impl Job {
    /// A job that moves bytes. `verb` stands before the bar.
    pub(crate) fn of_bytes(global: &Global, verb: &'static str) -> Self {
        Self::new(
            global,
            verb,
            "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
        )
    }

    /// A job of which nobody knows how long it takes.
    pub(crate) fn open_ended(global: &Global, verb: &'static str) -> Self {
        Self::new(global, verb, "{spinner} {prefix} {wide_msg}")
    }

    /// A job of which only the share done is known.
    pub(crate) fn of_share(global: &Global, verb: &'static str) -> Self {
        Self::new(global, verb, "{prefix} {wide_bar} {percent} %")
    }

    fn new(global: &Global, verb: &'static str, template: &str) -> Self {
        let mode = Mode::choose(global.output, io::stdout().is_terminal());
        // Hidden by itself where standard error is no terminal.
        let bar = if mode == Mode::Text { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template(template)
            .expect("the templates above name fields that indicatif has");
        bar.set_style(style);
        bar.set_prefix(verb);
        Self { mode, bar, said: Mutex::new(None) }
    }

    /// Reports bytes done. Cheap enough to be called for every block.
    pub(crate) fn bytes(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.line(|| json!({ "bytes_done": done, "bytes_total": total }));
    }

    /// Reports the share done, 0 to 1, with what a program may want to know besides.
    pub(crate) fn share(&self, share: f64, fields: impl FnOnce() -> Value) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        let position = (share.clamp(0.0, 1.0) * SHARE_STEPS) as u64;
        self.bar.set_length(1_000);
        self.bar.set_position(position);
        self.line(fields);
    }

    /// Reports how an open-ended job stands, to people and to programs.
    pub(crate) fn news(&self, text: impl FnOnce() -> String, fields: impl FnOnce() -> Value) {
        if !self.bar.is_hidden() {
            self.bar.set_message(printable(&text()).into_owned());
            self.bar.tick();
        }
        self.line(fields);
    }

    fn line(&self, fields: impl FnOnce() -> Value) {
        if self.mode != Mode::Lines {
            return;
        }
        // A poisoned lock means that another thread died while it printed: say nothing then.
        let Ok(mut said) = self.said.lock() else { return };
        if said.is_some_and(|said| said.elapsed() < STATUS_EVERY) {
            return;
        }
        *said = Some(Instant::now());
        // The result is what counts: a reader that went away does not end the job.
        let _ = print_json_line(&tagged("status", fields()));
    }

    /// Ends the job with its result.
    pub(crate) fn finish<T: Serialize>(
        self,
        result: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        self.bar.finish_and_clear();
        match self.mode {
            Mode::Text => print_text(&printable_lines(&text(result))),
            Mode::Document => print_json(result),
            Mode::Lines => {
                let value = serde_json::to_value(result).map_err(|error| {
                    Failure::new(Exit::Internal, format!("cannot write the result: {error}"))
                })?;
                print_json_line(&tagged("summary", value))
            }
        }
    }
}

impl Drop for Job {
    /// A job that failed leaves no half bar before its error.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The object with its `message_type` in front.
fn tagged(message_type: &str, value: Value) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("message_type".to_owned(), message_type.into());
    match value {
        Value::Object(fields) => object.extend(fields),
        other => {
            object.insert("result".to_owned(), other);
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_the_option_first_and_the_terminal_second() {
        assert_eq!(Mode::choose(Some(Format::Json), true), Mode::Document);
        assert_eq!(Mode::choose(Some(Format::Json), false), Mode::Document);
        assert_eq!(Mode::choose(Some(Format::Table), false), Mode::Text);
        assert_eq!(Mode::choose(None, true), Mode::Text);
        assert_eq!(Mode::choose(None, false), Mode::Lines);
    }

    #[test]
    fn lines_say_what_they_are() {
        let line = tagged("status", json!({ "bytes_done": 1 }));
        assert_eq!(line, json!({ "message_type": "status", "bytes_done": 1 }));
        let line = tagged("summary", json!([1]));
        assert_eq!(line, json!({ "message_type": "summary", "result": [1] }));
    }
}
