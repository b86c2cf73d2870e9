//! What happened.

use std::fmt;

use farshore_api::Role;
use farshore_api::status::Event;
use uuid::Uuid;

use super::record::{Record, own};
use super::{Db, Tx, audit};
use crate::clock;
use crate::error::ControlError;

/// Events kept; older ones are dropped.
const EVENTS_MAX: i64 = 100_000;

/// Events kept of one agent or node; older ones of its are dropped, so that none pushes out what
/// others did.
const EVENTS_OF_PEER_MAX: i64 = 500;

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Whoever holds the operator's token.
    Operator,
    /// The holder of a certificate.
    Peer(Role, Uuid),
    /// Somebody with an enrolment token.
    Enrolment,
    /// The control plane of its own accord.
    Control,
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => formatter.write_str("operator"),
            Self::Peer(role, id) => write!(formatter, "{role}/{id}"),
            Self::Enrolment => formatter.write_str("enrol"),
            Self::Control => formatter.write_str("control"),
        }
    }
}

/// Notes an event in the transaction of what it tells of; in the audit log too if it is to stay.
pub(super) async fn append(
    tx: &mut Tx,
    actor: Actor,
    action: &'static str,
    object: impl fmt::Display,
    detail: &str,
) -> Result<(), ControlError> {
    let (who, object) = (actor.to_string(), object.to_string());
    if audit::is_for_good(actor, action) {
        audit::append(tx, &who, action, &object, detail).await?;
    }
    sqlx::query("INSERT INTO events (at_ms, actor, action, object, detail) VALUES (?, ?, ?, ?, ?)")
        .bind(own(clock::now_ms()))
        .bind(who)
        .bind(action)
        .bind(object)
        .bind(detail)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Drops events beyond the newest 100 000, and the newest 500 of each agent and node.
pub(super) async fn prune(tx: &mut Tx) -> Result<(), ControlError> {
    sqlx::query("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?")
        .bind(EVENTS_MAX)
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "DELETE FROM events WHERE id IN (SELECT id FROM (
            SELECT id, row_number() OVER (PARTITION BY actor ORDER BY id DESC) AS place
            FROM events WHERE actor LIKE 'agent/%' OR actor LIKE 'node/%')
         WHERE place > ?)",
    )
    .bind(EVENTS_OF_PEER_MAX)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Db {
    /// Notes that something happened that changed nothing else.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn note(
        &self,
        actor: Actor,
        action: &'static str,
        object: impl fmt::Display,
        detail: &str,
    ) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        append(&mut tx, actor, action, object, detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Events after `after`, or the newest ones; oldest first, at most `limit`.
    ///
    /// # Errors
    /// `Database`.
    pub async fn events(&self, after: Option<u64>, limit: u32) -> Result<Vec<Event>, ControlError> {
        let rows = match after {
            Some(after) => {
                sqlx::query("SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?")
                    .bind(own(after))
                    .bind(limit)
                    .fetch_all(&self.readers)
                    .await?
            }
            None => {
                sqlx::query(
                    "SELECT * FROM (SELECT * FROM events ORDER BY id DESC LIMIT ?) ORDER BY id",
                )
                .bind(limit)
                .fetch_all(&self.readers)
                .await?
            }
        };
        rows.into_iter().map(|row| event(&Record(row))).collect()
    }
}

fn event(record: &Record) -> Result<Event, ControlError> {
    Ok(Event {
        id: record.number("id")?,
        at_unix_ms: record.number("at_ms")?,
        actor: record.text("actor")?,
        action: record.text("action")?,
        object: record.text("object")?,
        detail: record.text("detail")?,
    })
}

impl Db {
    /// How many there are of everything.
    ///
    /// # Errors
    /// `Database`.
    pub async fn counts(&self) -> Result<farshore_api::status::Counts, ControlError> {
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM agents) AS agents, (SELECT count(*) FROM nodes) AS nodes,
                (SELECT count(*) FROM nodes WHERE last_seen_ms BETWEEN ? AND ?) AS nodes_healthy,
                (SELECT count(*) FROM machines) AS machines,
                (SELECT count(*) FROM policies) AS policies,
                (SELECT count(*) FROM points WHERE state = 'committed') AS points,
                (SELECT count(*) FROM failovers WHERE state NOT IN ('cleaned_up', 'failed'))
                    AS failovers_active",
        )
        .bind(own(clock::healthy_since_ms()))
        .bind(own(clock::steady_ms()))
        .fetch_one(&self.readers)
        .await?;
        let record = Record(row);
        Ok(farshore_api::status::Counts {
            agents: record.number("agents")?,
            nodes: record.number("nodes")?,
            nodes_healthy: record.number("nodes_healthy")?,
            machines: record.number("machines")?,
            policies: record.number("policies")?,
            points: record.number("points")?,
            failovers_active: record.number("failovers_active")?,
        })
    }
}
