//! Epochs of volumes: fences, and epochs that nodes ask for.
//!
//! An epoch only grows. It is raised in the transaction that gives a volume to a node, before
//! anybody is told, and by a fence, which gives the volume to nobody. Where the vault or a node has
//! seen a greater one, as after a catalogue was put back from an older copy, it is raised above that.

use farshore_api::Role;
use farshore_api::agent::PointReport;
use farshore_api::limits::{EPOCH_INTERVAL_MS_MIN, GROWN_BYTES_MAX};
use uuid::Uuid;

use super::record::{Record, number, own};
use super::{Actor, Db, Tx, events, points, raise_version};
use crate::clock;
use crate::error::ControlError;

impl Db {
    /// Fences the machine of a failover, if it is not yet: nobody is given its volumes from here on.
    /// Returns the epoch of its first volume, which a fence in the vault is to carry.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn fence_machine(&self, machine: Uuid) -> Result<u64, ControlError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, machine).await?;
        let row = sqlx::query("SELECT epoch FROM volumes WHERE machine = ? ORDER BY id LIMIT 1")
            .bind(machine.to_string())
            .fetch_one(&mut *tx)
            .await?;
        let epoch = Record(row).number("epoch")?;
        tx.commit().await?;
        Ok(epoch)
    }

    /// Raises the epoch of a volume that nobody writes above one that was seen in the vault. Returns
    /// the epoch.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn raise_fence(&self, volume: Uuid, seen: u64) -> Result<u64, ControlError> {
        let row = sqlx::query(
            "UPDATE volumes SET epoch = max(epoch, ?) + 1 WHERE id = ? AND node IS NULL
             RETURNING epoch",
        )
        .bind(number("epoch", seen)?)
        .bind(volume.to_string())
        .fetch_optional(&self.writer)
        .await?
        .ok_or_else(|| ControlError::NotFound {
            what: "fenced volume",
            name: volume.to_string(),
        })?;
        Record(row).number("epoch")
    }

    /// Takes the newest point that the vault holds of a fenced volume for the failover's, unless one
    /// was named, and enters it into the catalogue. Returns whether the catalogue did not know it, and
    /// the point that it would have taken.
    ///
    /// # Errors
    /// `Database`, `NoSpace`; `Invalid` for numbers that the database cannot hold.
    pub async fn take_point_of_vault(
        &self,
        failover: Uuid,
        machine: Uuid,
        point: &PointReport,
    ) -> Result<(bool, Option<Uuid>), ControlError> {
        let mut tx = self.begin().await?;
        let known = points::newest_committed(&mut tx, machine).await?;
        let change = points::commit(&mut tx, point, clock::now_ms()).await?;
        sqlx::query("UPDATE failovers SET point = ? WHERE id = ? AND point IS NULL")
            .bind(point.point.to_string())
            .bind(failover.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok((change != points::Change::None, known))
    }
}

/// Takes a machine's volumes from every writer: a new epoch that nobody is given. A machine that is
/// fenced already stays as it is.
///
/// Returns the newest committed point at that moment.
pub(super) async fn fence(tx: &mut Tx, machine: Uuid) -> Result<Option<Uuid>, ControlError> {
    let fenced =
        sqlx::query("UPDATE machines SET failed_over = 1 WHERE id = ? AND failed_over = 0")
            .bind(machine.to_string())
            .execute(&mut **tx)
            .await?;
    if fenced.rows_affected() > 0 {
        sqlx::query(
            "UPDATE volumes SET epoch = epoch + 1, last_node = coalesce(node, last_node),
                node = NULL
             WHERE machine = ?",
        )
        .bind(machine.to_string())
        .execute(&mut **tx)
        .await?;
        raise_version(tx).await?;
    }
    points::newest_committed(tx, machine).await
}

/// Gives a volume that stays on its node a greater epoch, unless it was given one just now: what
/// the node asks for then is older than what it was told. Returns the epoch.
pub(super) async fn renew_epoch(
    tx: &mut Tx,
    node: Uuid,
    volume: Uuid,
    now_ms: u64,
) -> Result<Option<u64>, ControlError> {
    // A time to come means that the clock was set back; it must not hold the volume up.
    let row = sqlx::query(
        "UPDATE volumes SET epoch = epoch + 1, parent_epoch = writer_epoch,
            writer_epoch = epoch + 1, epoch_at_ms = ?
         WHERE id = ? AND node = ? AND (epoch_at_ms <= ? OR epoch_at_ms > ?)
         AND EXISTS (SELECT 1 FROM machines
            WHERE machines.id = volumes.machine AND machines.failed_over = 0)
         RETURNING epoch",
    )
    .bind(own(now_ms))
    .bind(volume.to_string())
    .bind(node.to_string())
    .bind(own(now_ms.saturating_sub(EPOCH_INTERVAL_MS_MIN)))
    .bind(own(now_ms))
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let epoch = Record(row).number("epoch")?;
    let detail = format!("node {node} asked for it, epoch {epoch}");
    events::append(tx, Actor::Peer(Role::Node, node), "volume.renew", volume, &detail).await?;
    Ok(Some(epoch))
}

/// Gives a volume whose disk has grown a greater epoch with that size, unless it was given one just now.
/// Returns the epoch.
pub(super) async fn grow(
    tx: &mut Tx,
    agent: Uuid,
    volume: Uuid,
    size_bytes: u64,
    now_ms: u64,
) -> Result<Option<u64>, ControlError> {
    if size_bytes > GROWN_BYTES_MAX {
        return Ok(None);
    }
    let row = sqlx::query(
        "UPDATE volumes SET epoch = epoch + 1, parent_epoch = writer_epoch,
            writer_epoch = epoch + 1, epoch_at_ms = ?1, granted_bytes = ?2
         WHERE id = ?3 AND node IS NOT NULL AND coalesce(granted_bytes, size_bytes) < ?2
         AND (epoch_at_ms <= ?4 OR epoch_at_ms > ?1) AND EXISTS (SELECT 1 FROM machines
            WHERE machines.id = volumes.machine AND machines.failed_over = 0)
         RETURNING epoch",
    )
    .bind(own(now_ms))
    .bind(number("grown_to_bytes", size_bytes)?)
    .bind(volume.to_string())
    .bind(own(now_ms.saturating_sub(EPOCH_INTERVAL_MS_MIN)))
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let epoch = Record(row).number("epoch")?;
    let detail = format!("the disk has grown to {size_bytes} bytes, epoch {epoch}");
    events::append(tx, Actor::Peer(Role::Agent, agent), "volume.grow", volume, &detail).await?;
    Ok(Some(epoch))
}

/// Raises the epoch of a volume that stays on its node above the newest that the node has seen in the
/// vault. Returns the epoch, if it was not above that already.
pub(super) async fn raise_above(
    tx: &mut Tx,
    node: Uuid,
    volume: Uuid,
    seen: u64,
    now_ms: u64,
) -> Result<Option<u64>, ControlError> {
    let seen = number("epoch", seen)?;
    let row = sqlx::query(
        "UPDATE volumes SET epoch = ? + 1, parent_epoch = ?, writer_epoch = ? + 1, epoch_at_ms = ?
         WHERE id = ? AND node = ? AND epoch <= ? AND EXISTS (SELECT 1 FROM machines
            WHERE machines.id = volumes.machine AND machines.failed_over = 0)
         RETURNING epoch",
    )
    .bind(seen)
    .bind(seen)
    .bind(seen)
    .bind(own(now_ms))
    .bind(volume.to_string())
    .bind(node.to_string())
    .bind(seen)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let epoch = Record(row).number("epoch")?;
    let detail = format!(
        "node {node} found epoch {seen} in the vault, newer than the catalogue's; epoch {epoch}"
    );
    events::append(tx, Actor::Peer(Role::Node, node), "volume.raise", volume, &detail).await?;
    Ok(Some(epoch))
}

/// Gives a machine back to placement after a failover that was not kept.
pub(super) async fn unfence(tx: &mut Tx, machine: Uuid) -> Result<(), ControlError> {
    sqlx::query("UPDATE machines SET failed_over = 0 WHERE id = ?")
        .bind(machine.to_string())
        .execute(&mut **tx)
        .await?;
    raise_version(tx).await
}
