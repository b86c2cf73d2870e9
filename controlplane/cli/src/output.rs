//! How results reach standard output.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use farshore_api::Exit;
use farshore_api::text::is_unprintable;
use serde::Serialize;

use crate::failure::{Failure, Outcome, reason};

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
}

impl Format {
    /// Prints `value` as JSON, or what `table` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Outcome {
        match self {
            Self::Json => print_json(value),
            Self::Table => print_text(&printable_lines(&table(value))),
        }
    }
}

/// Prints one JSON document on lines of its own.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Outcome {
    print_encoded(serde_json::to_string_pretty(value))
}

/// Prints one JSON document on one line.
pub(crate) fn print_json_line<T: Serialize>(value: &T) -> Outcome {
    print_encoded(serde_json::to_string(value))
}

fn print_encoded(text: serde_json::Result<String>) -> Outcome {
    print_text(&encoded(text)?)
}

fn encoded(text: serde_json::Result<String>) -> Outcome<String> {
    text.map(|text| escaped_json(&text).into_owned() + "\n").map_err(|error| {
        Failure::new(Exit::Internal, format!("cannot write the result as JSON: {error}"))
    })
}

/// Prints text as it is and flushes it.
///
/// A reader that went away (`… | head`) wants no more: that is no failure.
pub(crate) fn print_text(text: &str) -> Outcome {
    match farshore_program::print(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(unwritten(&error).hint("what was asked was done; only its result is not shown"))
        }
        _ => Ok(()),
    }
}

/// Prints something that is shown only once: a reader that went away is a failure, too.
pub(crate) fn print_once<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Outcome {
    let text = match format {
        Format::Json => encoded(serde_json::to_string_pretty(value))?,
        Format::Table => text(value),
    };
    farshore_program::print(&text).map_err(|error| unwritten(&error))
}

/// Refuses to begin what could be shown to nobody.
pub(crate) fn check_heard(what: &str) -> Outcome {
    farshore_program::check_heard().map_err(|why| {
        let message = format!("{what} would be printed to standard output, but {why}");
        Failure::new(Exit::InputOutput, message)
            .hint("nothing was done; let it print to a terminal, a pipe or a file")
    })
}

fn unwritten(error: &io::Error) -> Failure {
    Failure::new(
        Exit::from_io(error, Exit::InputOutput),
        format!("cannot write to standard output: {}", reason(error)),
    )
}

/// A path as a word of a shell's command line, to be copied.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "-_./+:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// JSON means the same with characters written out, and then it is fit for a terminal as well. All but
/// the line feeds between values stand in strings, where every one of them may be written so.
fn escaped_json(encoded: &str) -> Cow<'_, str> {
    let must_go = |character: char| character != '\n' && is_unprintable(character);
    if !encoded.chars().any(must_go) {
        return Cow::Borrowed(encoded);
    }
    let mut text = String::with_capacity(encoded.len() + 16);
    for character in encoded.chars() {
        if must_go(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(character);
        }
    }
    Cow::Owned(text)
}

/// Text for a terminal, whoever wrote it: characters that would move its cursor, change its colours,
/// hide or turn around what stands beside them are written out.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|character| match character {
        character if is_unprintable(character) => character.escape_default().to_string(),
        character => character.to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// As [`printable`], of text with several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Bytes for people: `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A Unix time for people: `2026-01-31T12:00:00Z`; a dash for 0, which means never.
pub(crate) fn time(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "-".to_owned();
    }
    // Times after the year 9999 come from a broken clock; humantime refuses them.
    let ms = unix_ms.min(253_402_300_799_000);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long ago a Unix time was: `12s ago`.
pub(crate) fn age(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "never".to_owned();
    }
    let then = UNIX_EPOCH + Duration::from_millis(unix_ms);
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    format!("{} ago", humantime::format_duration(Duration::from_secs(age.as_secs())))
}

/// How far a clock was off, for people: `2h ahead`.
pub(crate) fn clock_off(off_ms: i64) -> String {
    let seconds = off_ms.unsigned_abs() / 1000;
    // Nobody needs the seconds of hours.
    let seconds = if seconds < 3_600 { seconds } else { (seconds + 30) / 60 * 60 };
    let length = humantime::format_duration(Duration::from_secs(seconds));
    format!("{length} {}", if off_ms < 0 { "behind" } else { "ahead" })
}

/// Seconds for people: `1.2 s`; a dash where there are none.
pub(crate) fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))
}

/// A share for people: `42 %`. It says 100 only when all is done.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", (share.clamp(0.0, 1.0) * 100.0).floor())
}

/// Milliseconds for people: `1s`, `500ms`.
pub(crate) fn interval(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// Text for people, or a dash where there is none.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_not_steer_the_terminal() {
        assert!(matches!(printable("größer, 東京"), Cow::Borrowed(_)));
        assert_eq!(printable("ok\u{1b}[2K\u{1b}[1A"), "ok\\u{1b}[2K\\u{1b}[1A");
        assert_eq!(printable("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(printable("x\u{9b}31m\u{7f}"), "x\\u{9b}31m\\u{7f}");
        assert_eq!(printable("a\u{202e}gpj.exe\u{200b}"), "a\\u{202e}gpj.exe\\u{200b}");
        assert_eq!(printable_lines("one\ntwo\u{7}"), "one\ntwo\\u{7}");
    }

    #[test]
    fn json_stays_json_and_does_not_steer_the_terminal_either() {
        let value = "a\nb\u{9b}2J\u{202e}\u{e0001}\u{1b}é";
        let encoded = serde_json::to_string_pretty(&vec![value]).unwrap();
        let shown = escaped_json(&encoded);
        assert!(!shown.chars().any(|c| c != '\n' && is_unprintable(c)), "{shown:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [value]);
        assert!(matches!(escaped_json("[\n  \"é\"\n]"), Cow::Borrowed(_)));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(3 << 29), "1.50 GiB");
        assert_eq!(seconds(Some(1.234)), "1.2 s");
        assert_eq!(seconds(None), "-");
        assert_eq!(percent(0.999), "99 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(f64::NAN), "NaN %");
        assert_eq!(interval(1_500), "1s 500ms");
    }

    #[test]
    fn paths_can_be_copied_into_a_shell() {
        for (path, word) in
            [("/a/b-1", "/a/b-1"), ("/a b", "'/a b'"), ("/c#1", "'/c#1'"), ("/it's", r"'/it'\''s'")]
        {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn clocks_that_are_off_read_well() {
        assert_eq!(clock_off(7_199_400), "2h ahead");
        assert_eq!(clock_off(-9_500), "9s behind");
        assert!(clock_off(i64::MIN).ends_with(" behind"));
    }

    #[test]
    fn times_read_well_even_from_a_broken_clock() {
        assert_eq!(time(0), "-");
        assert_eq!(time(1_000), "1970-01-01T00:00:01Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(age(0), "never");
    }
}
