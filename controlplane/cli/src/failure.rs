//! How a command ends when it does not do what was asked: a sentence, a hint, an exit code.

use std::fmt;
use std::io;
use std::path::Path;

use farshore_api::{ErrorCode, ErrorDetail, Exit};

use crate::output::{printable, printable_lines};

/// Result of every verb.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// What happened to which object, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit status of the process: one of [`Exit`]'s, or a child's that is passed on.
    pub(crate) code: u8,
    /// One sentence, lower case, no full stop.
    pub(crate) message: String,
    /// What to do, where there is something to say.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit.code(), message: message.into(), hint: None }
    }

    /// With the advice `hint`; it replaces an earlier one.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the advice `hint` when the exit is `exit` and nothing better was said.
    pub(crate) fn hint_on(self, exit: Exit, hint: impl FnOnce() -> String) -> Self {
        if self.code == exit.code() { self.or_hint(hint) } else { self }
    }

    /// With the advice `hint` when nothing better was said.
    pub(crate) fn or_hint(mut self, hint: impl FnOnce() -> String) -> Self {
        self.hint = self.hint.or_else(|| Some(hint()));
        self
    }

    /// Whether the same request may well succeed in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        [Exit::Unavailable, Exit::TryAgain].iter().any(|exit| exit.code() == self.code)
    }

    /// A failed operation on a file: `read /x: no such file or directory`.
    pub(crate) fn io(verb: &str, path: &Path, error: &io::Error, otherwise: Exit) -> Self {
        let failure = Self::new(
            exit_of_io(error, otherwise),
            format!("cannot {verb} {}: {}", path.display(), reason(error)),
        );
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.hint("free some space on that file system and try again")
            }
            io::ErrorKind::PermissionDenied => {
                failure.hint("run as a user who may, or choose another place")
            }
            _ => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sentence may come from somewhere else.
        write!(formatter, "error: {}", printable(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(formatter, "\nhint: {}", printable_lines(hint))?;
        }
        Ok(())
    }
}

impl From<ErrorDetail> for Failure {
    fn from(error: ErrorDetail) -> Self {
        let failure = Self::new(error.code.into(), error.message);
        match error.code {
            ErrorCode::Unauthenticated => {
                failure.hint("point --token-file at the operator's token of this control plane")
            }
            ErrorCode::TooManyRequests | ErrorCode::Unavailable => {
                failure.hint("try again in a moment")
            }
            ErrorCode::Internal => failure.hint("look into the control plane's log"),
            ErrorCode::NoSpace => failure.hint("free some space for the control plane's data"),
            _ => failure,
        }
    }
}

fn exit_of_io(error: &io::Error, otherwise: Exit) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::Denied,
        io::ErrorKind::AlreadyExists => Exit::Conflict,
        _ => Exit::from_io(error, otherwise),
    }
}

/// The system's words for an error, in lower case and without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_sentence_and_the_hint() {
        let failure = Failure::new(Exit::NotFound, "there is no machine `web`").hint("list them");
        assert_eq!(failure.to_string(), "error: there is no machine `web`\nhint: list them");
        assert_eq!(failure.code, 66);
    }

    #[test]
    fn io_errors_tell_the_path_and_choose_the_exit() {
        let missing = io::Error::from_raw_os_error(2);
        let failure = Failure::io("read", Path::new("/x"), &missing, Exit::InputOutput);
        assert_eq!(failure.message, "cannot read /x: no such file or directory");
        assert_eq!(failure.code, Exit::NotFound.code());
        let full = io::Error::from_raw_os_error(28);
        let failure = Failure::io("write", Path::new("/x"), &full, Exit::InputOutput);
        assert_eq!(failure.code, Exit::NoSpace.code());
        assert!(failure.hint.is_some());
    }

    #[test]
    fn replies_of_the_control_plane_keep_their_meaning() {
        let failure = Failure::from(ErrorDetail::new(ErrorCode::AlreadyExists, "taken"));
        assert_eq!(failure.code, Exit::Conflict.code());
        let failure = Failure::from(ErrorDetail::new(ErrorCode::Unauthenticated, "who?"));
        assert_eq!(failure.code, Exit::Denied.code());
        assert!(failure.hint.is_some());
    }

    #[test]
    fn hints_are_added_only_where_they_fit() {
        let failure = Failure::new(Exit::NotFound, "gone");
        let hinted = failure.clone().hint_on(Exit::NotFound, || "look".to_owned());
        assert_eq!(hinted.hint.as_deref(), Some("look"));
        assert_eq!(failure.hint_on(Exit::Conflict, || "look".to_owned()).hint, None);
    }
}
