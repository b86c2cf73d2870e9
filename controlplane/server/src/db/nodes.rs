//! Registrations of nodes and what they report of themselves.

use std::net::SocketAddr;

use farshore_api::Role;
use farshore_api::node::{Node, NodeLife, RegisterNode};
use uuid::Uuid;

use super::certificates::{CERTIFIED, certified};
use super::record::{Record, own};
use super::{Actor, Db, events, raise_version};
use crate::clock;
use crate::domain::validate::cut;
use crate::error::ControlError;

impl Db {
    /// Notes where a node listens. Agents are told at once if it moved.
    ///
    /// Agents bring their whole disks to that address, so a node does not move to another machine's by
    /// its own word: only with the enrolment that an operator made a token for. Its port may change.
    ///
    /// # Errors
    /// `WrongState` if it may not move; `Database`, `NoSpace`.
    pub async fn register_node(
        &self,
        id: Uuid,
        address: SocketAddr,
        request: &RegisterNode,
    ) -> Result<(), ControlError> {
        let now = own(clock::now_ms());
        let mut tx = self.begin().await?;
        let known = sqlx::query(
            "SELECT identities.generation_min, nodes.enrolled_generation, nodes.address,
                nodes.shards, nodes.version
             FROM identities LEFT JOIN nodes ON nodes.id = identities.id WHERE identities.id = ?",
        )
        .bind(id.to_string())
        .fetch_one(&mut *tx)
        .await?;
        let known = Record(known);
        let enrolled = known.number("generation_min")?;
        let is_same = match known.optional_text("address")? {
            None => false,
            Some(before) => {
                let is_enrolled_since = known.number("enrolled_generation")? < enrolled;
                let ip = before.parse::<SocketAddr>().map(|before| before.ip());
                if !is_enrolled_since && ip.is_ok_and(|before| before != address.ip()) {
                    return Err(ControlError::WrongState {
                        what: "node",
                        name: id.to_string(),
                        why: format!(
                            "is at {before}; to move it to {address}, enrol it again with \
                             `farshore node token --id {id}`"
                        ),
                    });
                }
                before == address.to_string()
                    && known.number("shards")? == u64::from(request.shards)
                    && known.text("version")? == cut(&request.version)
            }
        };
        sqlx::query(
            "INSERT INTO nodes (id, address, shards, version, registered_at_ms, last_seen_ms,
                enrolled_generation)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET address = excluded.address, shards = excluded.shards,
                version = excluded.version, last_seen_ms = excluded.last_seen_ms,
                enrolled_generation = excluded.enrolled_generation",
        )
        .bind(id.to_string())
        .bind(address.to_string())
        .bind(request.shards)
        .bind(cut(&request.version))
        .bind(now)
        .bind(own(clock::steady_ms()))
        .bind(own(enrolled))
        .execute(&mut *tx)
        .await?;
        // A start that changes nothing is no event.
        if !is_same {
            raise_version(&mut tx).await?;
            let peer = Actor::Peer(Role::Node, id);
            events::append(&mut tx, peer, "node.register", peer, &address.to_string()).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// All nodes in the order of their registration.
    ///
    /// # Errors
    /// `Database`.
    pub async fn nodes(&self, life: impl Fn(Uuid) -> NodeLife) -> Result<Vec<Node>, ControlError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT nodes.*, (SELECT count(*) FROM volumes WHERE volumes.node = nodes.id)
                AS volumes, {CERTIFIED}
             FROM nodes JOIN identities ON identities.id = nodes.id
             ORDER BY registered_at_ms, nodes.id",
        )))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(|row| node(&Record(row), &life)).collect()
    }

    /// All nodes but those that were revoked, and whether something keeps each from its work.
    ///
    /// # Errors
    /// `Database`.
    pub async fn node_troubles(&self) -> Result<Vec<(Uuid, bool)>, ControlError> {
        let rows = sqlx::query(
            "SELECT nodes.id, trouble FROM nodes
             JOIN identities ON identities.id = nodes.id AND identities.revoked_at_ms IS NULL
             ORDER BY registered_at_ms, nodes.id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let record = Record(row);
                Ok((record.id("id")?, !record.text("trouble")?.is_empty()))
            })
            .collect()
    }
}

fn node(record: &Record, life: impl Fn(Uuid) -> NodeLife) -> Result<Node, ControlError> {
    let id = record.id("id")?;
    let seen_ms = record.number("last_seen_ms")?;
    Ok(Node {
        id,
        address: record.text("address")?,
        shards: record.narrow("shards")?,
        version: record.text("version")?,
        healthy: clock::is_healthy(seen_ms),
        last_seen_unix_ms: clock::shown_ms(seen_ms),
        life: life(id),
        volumes: record.number("volumes")?,
        uptime_seconds: record.real("uptime_seconds")?,
        cpu_seconds: record.real("cpu_seconds")?,
        counters: record.json("counters")?,
        certified: certified(record)?,
        trouble: Some(record.text("trouble")?).filter(|trouble| !trouble.is_empty()),
    })
}
