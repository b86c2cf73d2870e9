//! Exit codes of every Farshore binary: one table, so that scripts can rely on it.
//!
//! Codes 64–78 keep their `sysexits.h` meaning; those from 80 up are Farshore's own.

use crate::error::{ErrorCode, ErrorKind};

/// Why a Farshore binary ended. [`Exit::code`] is the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// Did what was asked.
    Success,
    /// A check that was asked for did not hold, or a failure without a code of its own.
    Failure,
    /// Wrong command line or settings.
    Usage,
    /// Input that is not what it should be: a damaged file, an object of the wrong form.
    DataInvalid,
    /// A named input is missing: a disk, a file, a machine, a recovery point.
    NotFound,
    /// A service does not answer, or a port cannot be had.
    Unavailable,
    /// A fault in Farshore.
    Internal,
    /// Something of the system is missing: a program such as QEMU, a kernel feature.
    SystemMissing,
    /// A directory or file cannot be created.
    CannotCreate,
    /// Reading or writing failed.
    InputOutput,
    /// Try again later: throttled, or the state did not allow it yet.
    TryAgain,
    /// The other side broke the protocol.
    Protocol,
    /// A credential was refused, or a file's permissions do not allow it.
    Denied,
    /// The object's state does not allow this, or its name is taken.
    Conflict,
    /// No space left on the device.
    NoSpace,
    /// The recovery key is not the one of this vault.
    WrongKey,
    /// Stored data is damaged.
    Corrupt,
    /// A newer epoch owns the volume.
    Fenced,
    /// A wait ended before what it waited for.
    TimedOut,
    /// Interrupted by SIGINT.
    Interrupted,
}

impl Exit {
    /// Every exit in the order of its code.
    pub const ALL: &[Self] = &[
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::DataInvalid,
        Self::NotFound,
        Self::Unavailable,
        Self::Internal,
        Self::SystemMissing,
        Self::CannotCreate,
        Self::InputOutput,
        Self::TryAgain,
        Self::Protocol,
        Self::Denied,
        Self::Conflict,
        Self::NoSpace,
        Self::WrongKey,
        Self::Corrupt,
        Self::Fenced,
        Self::TimedOut,
        Self::Interrupted,
    ];

    /// The process's exit status.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
            Self::DataInvalid => 65,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::SystemMissing => 72,
            Self::CannotCreate => 73,
            Self::InputOutput => 74,
            Self::TryAgain => 75,
            Self::Protocol => 76,
            Self::Denied => 77,
            Self::Conflict => 79,
            Self::NoSpace => 80,
            Self::WrongKey => 81,
            Self::Corrupt => 82,
            Self::Fenced => 83,
            Self::TimedOut => 84,
            Self::Interrupted => 130,
        }
    }

    /// What the code means, for help texts and documents.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "did what was asked",
            Self::Failure => "a check did not hold, or a failure without a code of its own",
            Self::Usage => "wrong command line or settings",
            Self::DataInvalid => "an input is not what it should be",
            Self::NotFound => "a named disk, file, machine or recovery point is missing",
            Self::Unavailable => "a service does not answer, or a port cannot be had",
            Self::Internal => "a fault in Farshore",
            Self::SystemMissing => "a program or kernel feature is missing",
            Self::CannotCreate => "a directory or file cannot be created",
            Self::InputOutput => "reading or writing failed",
            Self::TryAgain => "not now: try again later",
            Self::Protocol => "the other side broke the protocol",
            Self::Denied => "a credential was refused, or permissions do not allow it",
            Self::Conflict => "the object's state does not allow this, or its name is taken",
            Self::NoSpace => "no space left on the device",
            Self::WrongKey => "the recovery key is not the one of this vault",
            Self::Corrupt => "stored data is damaged",
            Self::Fenced => "a newer epoch owns the volume",
            Self::TimedOut => "a wait ended before what it waited for",
            Self::Interrupted => "interrupted",
        }
    }

    /// The exit that tells most about an I/O error; `otherwise` where the error says nothing.
    #[must_use]
    pub fn from_io(error: &std::io::Error, otherwise: Self) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::StorageFull | Io::QuotaExceeded => Self::NoSpace,
            Io::AddrInUse | Io::AddrNotAvailable | Io::ConnectionRefused => Self::Unavailable,
            _ => otherwise,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Throttled => Self::TryAgain,
            ErrorKind::Fenced => Self::Fenced,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Invalid => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Limit => Self::DataInvalid,
            ErrorKind::Internal | ErrorKind::Unknown => Self::Internal,
        }
    }
}

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Unauthenticated | ErrorCode::TokenRefused | ErrorCode::Forbidden => {
                Self::Denied
            }
            ErrorCode::NoSpace => Self::NoSpace,
            other => other.kind().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }
}
