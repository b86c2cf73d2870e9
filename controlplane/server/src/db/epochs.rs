//! Epochs of volumes that nodes ask for.
//!
//! An epoch only grows. It is raised in the transaction that gives a volume to a node, before
//! anybody is told, and by a fence, which gives the volume to nobody. Where the vault or a node has
//! seen a greater one, as after a catalogue was put back from an older copy, it is raised above that.

use farshore_api::Role;
use farshore_api::limits::{EPOCH_INTERVAL_MS_MIN, GROWN_BYTES_MAX};
use uuid::Uuid;

use super::record::{Record, number, own};
use super::{Actor, Tx, events};
use crate::error::ControlError;

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
