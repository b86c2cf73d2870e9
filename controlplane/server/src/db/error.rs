//! What SQLite says, as the errors of the control plane.

use crate::error::ControlError;

/// SQLite's primary result code for "database or disk is full".
const SQLITE_FULL: &str = "13";

/// What SQLite, or the library in front of it, said.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DatabaseError(sqlx::Error);

/// Which step to this version's schema failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MigrationError(sqlx::migrate::MigrateError);

impl From<sqlx::Error> for ControlError {
    fn from(source: sqlx::Error) -> Self {
        let is_full = source
            .as_database_error()
            .and_then(|error| error.code())
            .is_some_and(|code| code == SQLITE_FULL);
        if is_full { Self::NoSpace } else { Self::Database { source: DatabaseError(source) } }
    }
}

impl From<sqlx::migrate::MigrateError> for ControlError {
    fn from(source: sqlx::migrate::MigrateError) -> Self {
        Self::Migration { source: MigrationError(source) }
    }
}
