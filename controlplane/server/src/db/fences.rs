//! Fences of volumes: nobody is given them, and what a writer of before tells counts up to where they
//! were cut.

use farshore_api::agent::PointReport;
use farshore_api::limits::REPORT_VOLUMES_MAX;
use farshore_api::node::{LetGo, ToLetGo};
use uuid::Uuid;

use super::record::{Record, number};
use super::{Actor, Db, Tx, events, points, raise_version, retention};
use crate::clock;
use crate::error::ControlError;

/// What is known of the writer of a fenced volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The node that had the volume.
    pub node: Option<Uuid>,
    /// The log in which the volume gets no more, by that node's word.
    pub let_go_log: Option<Uuid>,
}

/// Where a fence in the vault has cut a volume's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The volume.
    pub volume: Uuid,
    /// The epoch of the fence, and the seq from which on nothing counts; none if it could not be made.
    pub fence: Option<(u64, u64)>,
    /// The newest point before it.
    pub point: Option<PointReport>,
}

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

    /// What is known of the writer of a fenced volume.
    ///
    /// # Errors
    /// `Database`; `NotFound`.
    pub async fn writer_of(&self, volume: Uuid) -> Result<Writer, ControlError> {
        let row = sqlx::query("SELECT last_node, let_go_log FROM volumes WHERE id = ?")
            .bind(volume.to_string())
            .fetch_optional(&self.readers)
            .await?
            .map(Record)
            .ok_or_else(|| ControlError::NotFound { what: "volume", name: volume.to_string() })?;
        let (node, let_go_log) = (row.optional_id("last_node")?, row.optional_id("let_go_log")?);
        Ok(Writer { node, let_go_log })
    }

    /// The fenced volumes that a node had and has not said to have let go.
    ///
    /// # Errors
    /// `Database`.
    pub async fn to_let_go(&self, node: Uuid) -> Result<Vec<ToLetGo>, ControlError> {
        let rows = sqlx::query(
            "SELECT volumes.id, volumes.epoch FROM volumes
             JOIN machines ON machines.id = volumes.machine AND machines.failed_over = 1
             WHERE volumes.last_node = ? AND volumes.node IS NULL AND volumes.let_go_log IS NULL
             ORDER BY volumes.id LIMIT ?",
        )
        .bind(node.to_string())
        .bind(u32::try_from(REPORT_VOLUMES_MAX).unwrap_or(u32::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let row = Record(row);
                Ok(ToLetGo { volume: row.id("id")?, epoch: row.number("epoch")? })
            })
            .collect()
    }

    /// Notes where a failover's fence has cut the volume. What was told from behind it is no point and
    /// leaves the catalogue; the newest point before it is entered, and becomes the failover's if it
    /// `is_taken` ([`FailoverRow::takes`](super::failovers::FailoverRow::takes)). Returns whether the catalogue did not know that one, and the point that it
    /// would have taken.
    ///
    /// # Errors
    /// `Database`, `NoSpace`; `Invalid` for numbers that the database cannot hold.
    pub async fn note_cut(
        &self,
        failover: Uuid,
        machine: Uuid,
        cut: &Cut,
        is_taken: bool,
    ) -> Result<(bool, Option<Uuid>), ControlError> {
        let mut tx = self.begin().await?;
        let known = points::newest_committed(&mut tx, machine).await?;
        if let Some((epoch, first_seq)) = cut.fence {
            let (epoch, first_seq) = (number("epoch", epoch)?, number("seq", first_seq)?);
            note_fence(&mut tx, cut.volume, epoch, first_seq).await?;
            // A vault without any point of the volume is more likely another than the right one.
            if cut.point.is_some() {
                drop_behind(&mut tx, cut.volume, first_seq).await?;
            }
        }
        let Some(point) = &cut.point else {
            tx.commit().await?;
            return Ok((false, known));
        };
        let heard = retention::heard(&mut tx, clock::now_ms()).await?;
        let change = points::commit(&mut tx, point, heard).await?;
        if is_taken {
            sqlx::query(
                "UPDATE failovers SET point = ?1,
                    nbd_uri = CASE WHEN point IS ?1 THEN nbd_uri ELSE NULL END
                 WHERE id = ?2",
            )
            .bind(point.point.to_string())
            .bind(failover.to_string())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok((change != points::Change::None, known))
    }

    /// What [`Self::note_cut`] would answer to a point of the volume, if nothing changed: whether the catalogue does not
    /// know it, and which one it takes for the newest. Changes nothing.
    ///
    /// # Errors
    /// `Database`; `NotFound` for an unknown volume.
    pub async fn compare_newest(
        &self,
        volume: Uuid,
        point: Uuid,
    ) -> Result<(bool, Option<Uuid>), ControlError> {
        let mut reader = self.readers.acquire().await?;
        let row = sqlx::query(
            "SELECT machine, EXISTS (SELECT 1 FROM points
                WHERE points.id = ? AND points.state = 'committed') AS is_known
             FROM volumes WHERE id = ?",
        )
        .bind(point.to_string())
        .bind(volume.to_string())
        .fetch_optional(&mut *reader)
        .await?
        .map(Record)
        .ok_or_else(|| ControlError::NotFound { what: "volume", name: volume.to_string() })?;
        let known = points::newest_committed(&mut reader, row.id("machine")?).await?;
        Ok((!row.flag("is_known")?, known))
    }

    /// When a committed point was set, by our clock, and the time between two marks of its machine.
    ///
    /// # Errors
    /// `Database`.
    pub async fn pace_at(&self, point: Uuid) -> Result<Option<(u64, u64)>, ControlError> {
        let row = sqlx::query(
            "SELECT points.at_ms,
                coalesce(machines.mark_interval_ms, policies.mark_interval_ms) AS interval_ms
             FROM points JOIN machines ON machines.id = points.machine
             JOIN policies ON policies.name = machines.policy
             WHERE points.id = ? AND points.at_ms IS NOT NULL",
        )
        .bind(point.to_string())
        .fetch_optional(&self.readers)
        .await?;
        row.map(Record)
            .map(|row| Ok((row.number("at_ms")?, row.number("interval_ms")?)))
            .transpose()
    }
}

async fn note_fence(
    tx: &mut Tx,
    volume: Uuid,
    epoch: i64,
    first_seq: i64,
) -> Result<(), ControlError> {
    sqlx::query(
        "INSERT INTO fences (volume, epoch, first_seq) VALUES (?, ?, ?)
         ON CONFLICT (volume, epoch) DO UPDATE SET first_seq = excluded.first_seq",
    )
    .bind(volume.to_string())
    .bind(epoch)
    .bind(first_seq)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Removes what was told of from behind a fence: all of it was told under older epochs, since nobody has
/// written under the fence's.
async fn drop_behind(tx: &mut Tx, volume: Uuid, first_seq: i64) -> Result<(), ControlError> {
    let gone = sqlx::query(
        "DELETE FROM points WHERE state = 'committed' AND id IN
            (SELECT point FROM point_volumes WHERE volume = ? AND seq >= ?)
         RETURNING id",
    )
    .bind(volume.to_string())
    .bind(first_seq)
    .fetch_all(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM point_volumes WHERE volume = ? AND seq >= ?")
        .bind(volume.to_string())
        .bind(first_seq)
        .execute(&mut **tx)
        .await?;
    for row in gone {
        let point = Record(row).text("id")?;
        let detail =
            format!("lies behind the fence of volume {volume}: the vault does not hold it");
        events::append(tx, Actor::Control, "point.fenced", point, &detail).await?;
    }
    Ok(())
}

/// Whether a place in a volume's stream lies behind a fence: it was written under an older epoch, from the
/// seq on that the fence has cut.
pub(super) async fn is_behind(
    tx: &mut Tx,
    volume: Uuid,
    epoch: u64,
    seq: u64,
) -> Result<bool, ControlError> {
    let row = sqlx::query(
        "SELECT 1 FROM fences WHERE volume = ? AND epoch > ? AND first_seq <= ? LIMIT 1",
    )
    .bind(volume.to_string())
    .bind(number("epoch", epoch)?)
    .bind(number("seq", seq)?)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.is_some())
}

/// Whether the vault has the fence under which a volume is now.
pub(super) async fn is_cut(tx: &mut Tx, volume: Uuid) -> Result<bool, ControlError> {
    let row = sqlx::query(
        "SELECT 1 FROM fences JOIN volumes ON volumes.id = fences.volume
         AND volumes.epoch = fences.epoch WHERE volumes.id = ?",
    )
    .bind(volume.to_string())
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.is_some())
}

/// A node says that it has let a volume go. Only the node that had it is asked, and only about the fence
/// that there is now.
pub(super) async fn take_let_go(tx: &mut Tx, node: Uuid, word: &LetGo) -> Result<(), ControlError> {
    sqlx::query(
        "UPDATE volumes SET let_go_log = ? WHERE id = ? AND epoch = ? AND node IS NULL
         AND last_node = ? AND EXISTS (SELECT 1 FROM machines
            WHERE machines.id = volumes.machine AND machines.failed_over = 1)",
    )
    .bind(word.log.to_string())
    .bind(word.volume.to_string())
    .bind(number("epoch", word.epoch)?)
    .bind(node.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
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
                node = NULL, let_go_log = NULL
             WHERE machine = ?",
        )
        .bind(machine.to_string())
        .execute(&mut **tx)
        .await?;
        raise_version(tx).await?;
    }
    points::newest_committed(tx, machine).await
}

/// Gives a machine back to placement after a failover that was not kept.
pub(super) async fn unfence(tx: &mut Tx, machine: Uuid) -> Result<(), ControlError> {
    sqlx::query("UPDATE machines SET failed_over = 0 WHERE id = ?")
        .bind(machine.to_string())
        .execute(&mut **tx)
        .await?;
    raise_version(tx).await
}
