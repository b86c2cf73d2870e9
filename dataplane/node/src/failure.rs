//! Errors that end a command, with the exit status that scripts see.

use farshore_api::exit::Exit;
use farshore_client::IdentityError;
use farshore_proto::ErrorKind;
use farshore_vault::VaultError;
use farshore_vault::key_file::KeyFileError;
use std::fmt;
use std::io;

/// A sentence for people and a status for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit status of an error, wherever in its chain the reason is.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.exit;
        }
        if let Some(error) = cause.downcast_ref::<VaultError>() {
            return of_vault(error);
        }
        if let Some(error) = cause.downcast_ref::<farshore_vault::StoreError>() {
            return of_kind(error.kind());
        }
        if let Some(error) = cause.downcast_ref::<KeyFileError>() {
            return of_kind(error.kind());
        }
        if cause.downcast_ref::<IdentityError>().is_some() {
            return Exit::Denied;
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return of_io(error);
        }
    }
    Exit::Failure
}

fn of_vault(error: &VaultError) -> Exit {
    match error {
        VaultError::WrongKey { .. } => Exit::WrongKey,
        error if error.is_no_space() => Exit::NoSpace,
        error => of_kind(error.kind()),
    }
}

fn of_kind(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Throttled => Exit::Unavailable,
        ErrorKind::Fenced => Exit::Fenced,
        ErrorKind::Conflict => Exit::Conflict,
        ErrorKind::Invalid => Exit::DataInvalid,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::Corrupt => Exit::Corrupt,
        ErrorKind::Limit | ErrorKind::Internal => Exit::Internal,
    }
}

fn of_io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::StorageFull => Exit::NoSpace,
        io::ErrorKind::PermissionDenied => Exit::CannotCreate,
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Exit::Unavailable,
        _ => Exit::InputOutput,
    }
}
