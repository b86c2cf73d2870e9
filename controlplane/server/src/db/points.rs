//! Recovery points.

use farshore_api::agent::PointReport;
use farshore_api::point::{Point, PointKind, PointSelector, PointVolume};
use uuid::Uuid;

use super::record::{Record, name_of, number, own};
use super::{Actor, Db, Tx, events, machines, raise_version};
use crate::clock;
use crate::error::ControlError;

/// Points that may wait for a machine's agent at one time.
const ASKED_MAX: u64 = 16;

/// Later times, which only a broken clock shows, are kept as this: the last second of the year 9999.
const TIME_MS_MAX: u64 = 253_402_300_799_000;

const NEWEST: &str = "SELECT * FROM points WHERE machine = ? AND state = 'committed'
    ORDER BY time_ms DESC, id DESC LIMIT 1";

/// What a report of a point changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it was known, or some volume of the machine is still missing.
    None,
    /// A point became committed.
    Committed,
    /// A point that somebody asked for became committed.
    AskedCommitted,
}

impl Db {
    /// Asks a machine's agent for a point. Returns it as requested.
    ///
    /// # Errors
    /// `Invalid` if agents cannot keep what it is to promise; `NotFound`; `WrongState` if the machine
    /// is failed over or 16 points wait already.
    pub async fn create_point(
        &self,
        actor: Actor,
        machine: &str,
        kind: PointKind,
    ) -> Result<Point, ControlError> {
        if let Some(why) = kind.refusal() {
            return Err(ControlError::Invalid { field: "kind", why: why.to_owned() });
        }
        let point = Point {
            point: Uuid::now_v7(),
            kind,
            time_unix_ms: clock::now_ms(),
            state: farshore_api::point::PointState::Requested,
            volumes: Vec::new(),
        };
        let mut tx = self.begin().await?;
        let id = machines::machine_id(&mut tx, machine).await?;
        let row = sqlx::query(
            "SELECT failed_over, (SELECT count(*) FROM points WHERE points.machine = machines.id
                AND state = 'requested' AND asked = 1) AS waiting
             FROM machines WHERE id = ?",
        )
        .bind(id.to_string())
        .fetch_one(&mut *tx)
        .await?;
        let record = Record(row);
        let refuse = |why: &str| {
            Err(ControlError::WrongState { what: "machine", name: machine.into(), why: why.into() })
        };
        if record.flag("failed_over")? {
            return refuse("is failed over and sets no points; clean its failover up first");
        }
        if record.number("waiting")? >= ASKED_MAX {
            return refuse("has 16 points waiting for its agent; check that the agent runs");
        }
        sqlx::query(
            "INSERT INTO points (id, machine, kind, time_ms, state, asked)
             VALUES (?, ?, ?, ?, 'requested', 1)",
        )
        .bind(point.point.to_string())
        .bind(id.to_string())
        .bind(name_of(&kind))
        .bind(own(point.time_unix_ms))
        .execute(&mut *tx)
        .await?;
        raise_version(&mut tx).await?;
        events::append(&mut tx, actor, "point.mark", machine, &point.point.to_string()).await?;
        tx.commit().await?;
        Ok(point)
    }

    /// A machine's newest points that are committed or asked for, newest last; with `before` only
    /// those older than that point.
    ///
    /// # Errors
    /// `NotFound` if there is no such machine, or no such point to be older than.
    pub async fn points(
        &self,
        machine: &str,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Point>, ControlError> {
        let id = self.id_of_machine(machine).await?;
        let (time, point) = match before {
            None => (i64::MAX, String::new()),
            Some(before) => {
                let row = sqlx::query("SELECT time_ms FROM points WHERE id = ? AND machine = ?")
                    .bind(before.to_string())
                    .bind(id.to_string())
                    .fetch_optional(&self.readers)
                    .await?
                    .ok_or_else(|| missing(before.to_string()))?;
                (own(Record(row).number("time_ms")?), before.to_string())
            }
        };
        let rows = sqlx::query(
            "SELECT * FROM points WHERE machine = ? AND (state = 'committed' OR asked = 1)
             AND (time_ms, id) < (?, ?) ORDER BY time_ms DESC, id DESC LIMIT ?",
        )
        .bind(id.to_string())
        .bind(time)
        .bind(point)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let mut points = Vec::with_capacity(rows.len());
        for row in rows.into_iter().rev() {
            points.push(self.with_volumes_of_point(&Record(row)).await?);
        }
        Ok(points)
    }

    /// One point of a machine; `latest` is the newest committed one.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn point(
        &self,
        machine: &str,
        selector: PointSelector,
    ) -> Result<Point, ControlError> {
        let id = self.id_of_machine(machine).await?;
        match selector {
            PointSelector::Latest => {
                self.newest_point(id).await?.ok_or_else(|| missing(format!("latest of {machine}")))
            }
            PointSelector::Id(point) => {
                let row = sqlx::query("SELECT * FROM points WHERE id = ? AND machine = ?")
                    .bind(point.to_string())
                    .bind(id.to_string())
                    .fetch_optional(&self.readers)
                    .await?
                    .ok_or_else(|| missing(point.to_string()))?;
                self.with_volumes_of_point(&Record(row)).await
            }
        }
    }

    /// A machine's newest committed point.
    pub(super) async fn newest_point(&self, machine: Uuid) -> Result<Option<Point>, ControlError> {
        let row =
            sqlx::query(NEWEST).bind(machine.to_string()).fetch_optional(&self.readers).await?;
        match row {
            None => Ok(None),
            Some(row) => self.with_volumes_of_point(&Record(row)).await.map(Some),
        }
    }

    async fn id_of_machine(&self, name: &str) -> Result<Uuid, ControlError> {
        sqlx::query("SELECT id FROM machines WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.readers)
            .await?
            .map(|row| Record(row).id("id"))
            .ok_or_else(|| machines::missing(name))?
    }

    async fn with_volumes_of_point(&self, record: &Record) -> Result<Point, ControlError> {
        let point = record.id("id")?;
        let rows = sqlx::query(
            "SELECT volume, seq, unknown_blocks FROM point_volumes WHERE point = ? ORDER BY volume",
        )
        .bind(point.to_string())
        .fetch_all(&self.readers)
        .await?;
        let volumes: Result<Vec<PointVolume>, ControlError> = rows
            .into_iter()
            .map(|row| {
                let record = Record(row);
                Ok(PointVolume {
                    volume: record.id("volume")?,
                    seq: record.number("seq")?,
                    unknown_blocks: unknown_blocks(&record)?,
                })
            })
            .collect();
        Ok(Point {
            point,
            kind: record.name("kind")?,
            time_unix_ms: record.number("time_ms")?,
            state: record.name("state")?,
            volumes: volumes?,
        })
    }
}

fn unknown_blocks(record: &Record) -> Result<u32, ControlError> {
    let blocks = record.number("unknown_blocks")?;
    u32::try_from(blocks).map_err(|_| ControlError::Unreadable { column: "unknown_blocks" })
}

/// Takes in that one volume of a point is in the vault. A point is committed once all volumes of
/// its machine are.
pub(super) async fn commit(tx: &mut Tx, report: &PointReport) -> Result<Change, ControlError> {
    let point = report.point.to_string();
    let machine = sqlx::query("SELECT machine FROM volumes WHERE id = ?")
        .bind(report.volume.to_string())
        .fetch_one(&mut **tx)
        .await
        .map(|row| Record(row).text("machine"))??;
    // The agent's clock may say anything, and a node reports the points of many agents at once: a
    // time that the database cannot hold must not keep the others' points away.
    let time = own(report.time_unix_ms.min(TIME_MS_MAX));
    // The agent's time and kind replace what was noted when the point was asked for. A point of
    // another machine stays as it is: the condition keeps one agent from changing another's.
    let noted = sqlx::query(
        "INSERT INTO points (id, machine, kind, time_ms, state, asked)
         VALUES (?, ?, ?, ?, 'requested', 0)
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, time_ms = excluded.time_ms
         WHERE points.machine = excluded.machine AND points.state = 'requested'",
    )
    .bind(&point)
    .bind(&machine)
    .bind(name_of(&report.kind))
    .bind(time)
    .execute(&mut **tx)
    .await?;
    if noted.rows_affected() == 0 {
        return Ok(Change::None);
    }
    sqlx::query(
        "INSERT INTO point_volumes (point, volume, seq, unknown_blocks) VALUES (?, ?, ?, ?)
         ON CONFLICT DO NOTHING",
    )
    .bind(&point)
    .bind(report.volume.to_string())
    .bind(number("seq", report.seq)?)
    .bind(report.unknown_blocks)
    .execute(&mut **tx)
    .await?;
    let committed = sqlx::query(
        "UPDATE points SET state = 'committed' WHERE id = ?
         AND (SELECT count(*) FROM point_volumes WHERE point = points.id)
            >= (SELECT count(*) FROM volumes WHERE machine = points.machine)
         RETURNING asked",
    )
    .bind(&point)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = committed else { return Ok(Change::None) };
    let was_asked = Record(row).flag("asked")?;
    Ok(if was_asked { Change::AskedCommitted } else { Change::Committed })
}

/// Id of a machine's newest committed point.
pub(super) async fn newest_committed(
    tx: &mut Tx,
    machine: Uuid,
) -> Result<Option<Uuid>, ControlError> {
    let row = sqlx::query(NEWEST).bind(machine.to_string()).fetch_optional(&mut **tx).await?;
    row.map(|row| Record(row).id("id")).transpose()
}

/// Checks that a machine has this committed point.
pub(super) async fn check_committed(
    tx: &mut Tx,
    machine: Uuid,
    point: Uuid,
) -> Result<(), ControlError> {
    sqlx::query("SELECT 1 FROM points WHERE id = ? AND machine = ? AND state = 'committed'")
        .bind(point.to_string())
        .bind(machine.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .map(|_| ())
        .ok_or_else(|| missing(point.to_string()))
}

pub(super) fn missing(name: String) -> ControlError {
    ControlError::NotFound { what: "committed recovery point", name }
}
