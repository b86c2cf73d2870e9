//! Policies.

use farshore_api::policy::{CreatePolicy, FAILBACK_SUFFIX, Policy, UpdatePolicy};

use super::record::{Record, number};
use super::{Actor, Db, Tx, events, raise_version};
use crate::error::ControlError;

/// Hours that points stay in the catalogue unless the policy says otherwise.
const RETENTION_HOURS_DEFAULT: u32 = 24;

const SELECT: &str = "SELECT policies.*, (SELECT count(*) FROM machines
    WHERE machines.policy = policies.name) AS machines FROM policies";

impl Db {
    /// Creates a policy together with its failback policy.
    ///
    /// # Errors
    /// `AlreadyExists` if either name is taken.
    pub async fn create_policy(
        &self,
        actor: Actor,
        request: &CreatePolicy,
    ) -> Result<Policy, ControlError> {
        let interval = number("mark_interval_ms", request.mark_interval_ms)?;
        let retention = request.retention_hours.unwrap_or(RETENTION_HOURS_DEFAULT);
        let failback = format!("{}{FAILBACK_SUFFIX}", request.name);
        let mut tx = self.begin().await?;
        for (name, failback_policy) in [(&failback, None), (&request.name, Some(&failback))] {
            sqlx::query(
                "INSERT INTO policies (name, mark_interval_ms, retention_hours, failback_policy)
                 VALUES (?, ?, ?, ?)",
            )
            .bind(name)
            .bind(interval)
            .bind(retention)
            .bind(failback_policy)
            .execute(&mut *tx)
            .await
            .map_err(|error| taken(error, name))?;
        }
        events::append(&mut tx, actor, "policy.create", &request.name, "").await?;
        tx.commit().await?;
        self.policy(&request.name).await
    }

    /// Changes a policy; machines that follow it are told at once.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn update_policy(
        &self,
        actor: Actor,
        name: &str,
        request: &UpdatePolicy,
    ) -> Result<Policy, ControlError> {
        let interval =
            request.mark_interval_ms.map(|value| number("mark_interval_ms", value)).transpose()?;
        let mut tx = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE policies SET mark_interval_ms = coalesce(?, mark_interval_ms),
                retention_hours = coalesce(?, retention_hours) WHERE name = ?",
        )
        .bind(interval)
        .bind(request.retention_hours)
        .bind(name)
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(missing(name));
        }
        raise_version(&mut tx).await?;
        events::append(&mut tx, actor, "policy.update", name, "").await?;
        tx.commit().await?;
        self.policy(name).await
    }

    /// One policy.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn policy(&self, name: &str) -> Result<Policy, ControlError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE name = ?")))
            .bind(name)
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| missing(name))?;
        policy(&Record(row))
    }

    /// All policies in the order of their names.
    ///
    /// # Errors
    /// `Database`.
    pub async fn policies(&self) -> Result<Vec<Policy>, ControlError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY name")))
            .fetch_all(&self.readers)
            .await?;
        rows.into_iter().map(|row| policy(&Record(row))).collect()
    }
}

/// Whether there is such a policy.
pub(super) async fn check(tx: &mut Tx, name: &str) -> Result<(), ControlError> {
    sqlx::query("SELECT 1 FROM policies WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut **tx)
        .await?
        .map(|_| ())
        .ok_or_else(|| missing(name))
}

fn missing(name: &str) -> ControlError {
    ControlError::NotFound { what: "policy", name: name.into() }
}

fn taken(error: sqlx::Error, name: &str) -> ControlError {
    if error.as_database_error().is_some_and(|e| e.is_unique_violation()) {
        let hint = "choose another name, or change that policy";
        return ControlError::AlreadyExists { what: "policy", name: name.into(), hint };
    }
    error.into()
}

fn policy(record: &Record) -> Result<Policy, ControlError> {
    Ok(Policy {
        name: record.text("name")?,
        mark_interval_ms: record.number("mark_interval_ms")?,
        retention_hours: record.narrow("retention_hours")?,
        failback_policy: record.optional_text("failback_policy")?,
        machines: record.number("machines")?,
    })
}
