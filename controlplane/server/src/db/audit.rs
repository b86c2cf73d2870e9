//! The audit log.

use farshore_api::audit::{Entry, FIRST};
use sqlx::sqlite::SqliteRow;

use super::record::{Record, own};
use super::{Actor, Db, Tx};
use crate::clock;
use crate::error::ControlError;

/// Whether something belongs into the audit log: what operators do and who is let in, and what is
/// noticed about identities. What agents and nodes cause as often as they like does not.
pub(super) fn is_for_good(actor: Actor, action: &str) -> bool {
    match actor {
        Actor::Operator | Actor::Enrolment => true,
        Actor::Control => action.starts_with("identity."),
        Actor::Peer(..) => false,
    }
}

/// Adds an entry in the transaction of what it tells of.
pub(super) async fn append(
    tx: &mut Tx,
    actor: &str,
    action: &str,
    object: &str,
    detail: &str,
) -> Result<(), ControlError> {
    let last = sqlx::query("SELECT * FROM audit ORDER BY id DESC LIMIT 1")
        .fetch_optional(&mut **tx)
        .await?
        .map(entry)
        .transpose()?;
    let (id, prev_hash) = last.map_or((0, FIRST.to_owned()), |last| (last.id, last.hash));
    let mut next = Entry {
        id: id + 1,
        at_unix_ms: clock::now_ms(),
        actor: actor.to_owned(),
        action: action.to_owned(),
        object: object.to_owned(),
        detail: detail.to_owned(),
        prev_hash,
        hash: String::new(),
    };
    next.hash = next.expected_hash();
    sqlx::query(
        "INSERT INTO audit (id, at_ms, actor, action, object, detail, prev_hash, hash)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(own(next.id))
    .bind(own(next.at_unix_ms))
    .bind(&next.actor)
    .bind(&next.action)
    .bind(&next.object)
    .bind(&next.detail)
    .bind(&next.prev_hash)
    .bind(&next.hash)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Db {
    /// Entries after `after`, or the newest ones; oldest first, at most `limit`.
    ///
    /// # Errors
    /// `Database`.
    pub async fn audit(&self, after: Option<u64>, limit: u32) -> Result<Vec<Entry>, ControlError> {
        let query = match after {
            Some(after) => {
                sqlx::query("SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?").bind(own(after))
            }
            None => sqlx::query(
                "SELECT * FROM (SELECT * FROM audit ORDER BY id DESC LIMIT ?) ORDER BY id",
            ),
        };
        let rows = query.bind(limit).fetch_all(&self.readers).await?;
        rows.into_iter().map(entry).collect()
    }
}

fn entry(row: SqliteRow) -> Result<Entry, ControlError> {
    let record = Record(row);
    Ok(Entry {
        id: record.number("id")?,
        at_unix_ms: record.number("at_ms")?,
        actor: record.text("actor")?,
        action: record.text("action")?,
        object: record.text("object")?,
        detail: record.text("detail")?,
        prev_hash: record.text("prev_hash")?,
        hash: record.text("hash")?,
    })
}
