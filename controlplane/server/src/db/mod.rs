//! The catalogue in SQLite. Nothing outside this module writes SQL.
//!
//! | file | holds |
//! |---|---|
//! | `identities` | enrolment tokens, identities, the operator's token hash |
//! | `certificates` | what was issued to whom, what is in use, what is over |
//! | `agents`, `nodes` | registrations and what nodes report of themselves |
//! | `policies` | policies |
//! | `machines` | machines, their volumes and placement |
//! | `epochs` | fences, and epochs that nodes ask for |
//! | `reports` | what agents and nodes report of volumes |
//! | `points` | recovery points |
//! | `failovers` | failovers and their transitions |
//! | `retention` | dropping what is too old, and the clock for it |
//! | `events` | what happened |
//! | `audit` | what operators did and who was let in, for good |
//! | `error` | what SQLite says, as our errors |
//!
//! One connection writes, several read: writers queue in this process and never meet a busy
//! database. Every change is durable when the call returns (WAL, `synchronous = FULL`).

mod agents;
mod audit;
mod certificates;
mod epochs;
mod error;
mod events;
mod failovers;
mod fences;
mod identities;
mod machines;
mod nodes;
mod points;
mod policies;
mod record;
mod reports;
mod retention;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

use crate::domain::report_order::ReportOrders;
use crate::error::ControlError;
use crate::limits::Buckets;

pub use certificates::Issued;
pub use error::{DatabaseError, MigrationError};
pub use events::Actor;
pub use failovers::{FailoverRow, Process, ProcessRole, takes_newest};
pub use fences::{Cut, Writer};
pub use identities::Enrolled;
pub use machines::Placement;
pub use reports::Taken;

/// Connections for reading.
const READERS: u32 = 4;

/// How long a call waits for a connection before it fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// A transaction that may write.
type Tx = Transaction<'static, Sqlite>;

/// The catalogue.
#[derive(Debug, Clone)]
pub struct Db {
    writer: SqlitePool,
    readers: SqlitePool,
    /// How many rows each machine may still add.
    rows: Arc<Buckets>,
    /// Which report of each agent and node is its newest.
    orders: Arc<Mutex<ReportOrders>>,
}

impl Db {
    /// Opens the database file, creating it if there is none, and brings it to this version's
    /// schema.
    ///
    /// # Errors
    /// `Database` or `NoSpace` if the file cannot be opened, `Migration` if it is of a newer version
    /// or damaged.
    pub async fn open(file: &Path) -> Result<Self, ControlError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.create_if_missing(false).read_only(true))
            .await?;
        Ok(Self { writer, readers, rows: Arc::default(), orders: Arc::default() })
    }

    /// Closes all connections; the write-ahead log is folded into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin(&self) -> Result<Tx, ControlError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Number of the newest assignments.
    ///
    /// # Errors
    /// `Database`.
    pub async fn assignments_version(&self) -> Result<u64, ControlError> {
        let row = sqlx::query("SELECT version FROM assignments").fetch_one(&self.readers).await?;
        record::Record(row).number("version")
    }
}

/// Raises the number of the assignments; to be called in every transaction that changes them.
async fn raise_version(tx: &mut Tx) -> Result<(), ControlError> {
    sqlx::query("UPDATE assignments SET version = version + 1").execute(&mut **tx).await?;
    Ok(())
}
