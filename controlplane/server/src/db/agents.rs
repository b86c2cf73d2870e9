//! Registrations of agents.

use farshore_api::Role;
use farshore_api::agent::{Agent, RegisterAgent};
use farshore_api::limits::REPORT_VOLUMES_MAX;
use uuid::Uuid;

use super::certificates::{CERTIFIED, certified};
use super::record::{Record, own};
use super::{Actor, Db, events};
use crate::clock;
use crate::domain::validate::cut;
use crate::error::ControlError;

impl Db {
    /// Notes where an agent runs.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn register_agent(
        &self,
        id: Uuid,
        request: &RegisterAgent,
    ) -> Result<(), ControlError> {
        let now = own(clock::now_ms());
        let mut tx = self.begin().await?;
        let same = sqlx::query(
            "SELECT 1 FROM agents WHERE id = ? AND hostname = ? AND version = ? AND local = ?",
        )
        .bind(id.to_string())
        .bind(cut(&request.hostname))
        .bind(cut(&request.version))
        .bind(request.local)
        .fetch_optional(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO agents (id, hostname, version, local, registered_at_ms, last_seen_ms)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET hostname = excluded.hostname,
                version = excluded.version, local = excluded.local,
                last_seen_ms = excluded.last_seen_ms",
        )
        .bind(id.to_string())
        .bind(cut(&request.hostname))
        .bind(cut(&request.version))
        .bind(request.local)
        .bind(now)
        .bind(own(clock::steady_ms()))
        .execute(&mut *tx)
        .await?;
        // A start that changes nothing is no event.
        if same.is_none() {
            let peer = Actor::Peer(Role::Agent, id);
            events::append(&mut tx, peer, "agent.register", peer, &cut(&request.hostname)).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Volumes that an agent is to end, and those whose machines run elsewhere since a failover.
    ///
    /// # Errors
    /// `Database`.
    pub async fn agent_ended(&self, agent: Uuid) -> Result<(Vec<Uuid>, Vec<Uuid>), ControlError> {
        let detached = "SELECT volume AS id FROM detached WHERE agent = ? ORDER BY volume LIMIT ?";
        let fenced = "SELECT volumes.id FROM volumes
             JOIN machines ON machines.id = volumes.machine
             WHERE machines.agent = ? AND machines.failed_over = 1 ORDER BY volumes.id LIMIT ?";
        let ids = async |sql: &'static str| {
            let rows = sqlx::query(sql)
                .bind(agent.to_string())
                .bind(own(REPORT_VOLUMES_MAX as u64))
                .fetch_all(&self.readers)
                .await?;
            rows.into_iter().map(|row| Record(row).id("id")).collect::<Result<_, ControlError>>()
        };
        Ok((ids(detached).await?, ids(fenced).await?))
    }

    /// All agents in the order of their registration.
    ///
    /// # Errors
    /// `Database`.
    pub async fn agents(&self) -> Result<Vec<Agent>, ControlError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT agents.*, (SELECT count(*) FROM machines WHERE machines.agent = agents.id)
                AS machines, {CERTIFIED}
             FROM agents JOIN identities ON identities.id = agents.id
             ORDER BY registered_at_ms, agents.id",
        )))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(|row| agent(&Record(row))).collect()
    }
}

fn agent(record: &Record) -> Result<Agent, ControlError> {
    let seen_ms = record.number("last_seen_ms")?;
    Ok(Agent {
        id: record.id("id")?,
        hostname: record.text("hostname")?,
        version: record.text("version")?,
        local: record.flag("local")?,
        healthy: clock::is_healthy(seen_ms),
        last_seen_unix_ms: clock::shown_ms(seen_ms),
        machines: record.number("machines")?,
        certified: certified(record)?,
    })
}
