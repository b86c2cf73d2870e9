//! Recovery points.
//!
//! Their order is their rank, the seq of the machine's first volume: a volume has one stream, whose
//! seqs go on from epoch to epoch and never come again. No statement here orders by a time.

use farshore_api::agent::PointReport;
use farshore_api::point::{Point, PointKind, PointSelector, PointState, PointVolume};
use farshore_proto::bugs::{Bug, is_on};
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::record::{Record, name_of, number, own};
use super::retention::Heard;
use super::{Actor, Db, Tx, events, machines, raise_version};
use crate::clock;
use crate::domain::point_time::{self, PointTimes};
use crate::error::ControlError;

/// Points that may wait for a machine's agent at one time.
const ASKED_MAX: u64 = 16;

/// Points named when the first digits of an id name several.
const NAMED_MAX: u32 = 5;

/// Rank of what is not committed yet: behind all that is.
const UNRANKED: i64 = i64::MAX;

/// Later times, which only a broken clock shows, are kept as this: the last second of the year 9999.
const TIME_MS_MAX: u64 = 253_402_300_799_000;

/// A machine's newest committed point.
fn newest() -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "SELECT * FROM points WHERE machine = ? AND state = 'committed'
         ORDER BY {} DESC, id DESC LIMIT 1",
        order()
    ))
}

/// The column that says which of two points is the newer one.
pub(super) fn order() -> &'static str {
    if is_on(Bug::LatestByTime) { "time_ms" } else { "rank" }
}

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
    /// Asks a machine's agent for a point. Returns it as requested; one that was asked for already
    /// under the same id is returned as it stands.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is another point's; `Invalid` if agents cannot keep what it is to promise; `NotFound`; `WrongState` if the machine
    /// is failed over or 16 points wait already.
    pub async fn create_point(
        &self,
        actor: Actor,
        machine: &str,
        kind: PointKind,
        wanted: Option<Uuid>,
    ) -> Result<Point, ControlError> {
        if let Some(why) = kind.refusal() {
            return Err(ControlError::Invalid { field: "kind", why: why.to_owned() });
        }
        if let Some(asked) = self.asked_before(machine, wanted).await? {
            return Ok(asked);
        }
        let point = Point {
            point: wanted.unwrap_or_else(Uuid::now_v7),
            kind,
            rank: None,
            time_unix_ms: clock::now_ms(),
            at_unix_ms: None,
            heard_unix_ms: None,
            clock_off_ms: None,
            state: PointState::Requested,
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
            "INSERT INTO points (id, machine, kind, time_ms, heard_ms, state, asked)
             VALUES (?, ?, ?, ?, ?, 'requested', 1)",
        )
        .bind(point.point.to_string())
        .bind(id.to_string())
        .bind(name_of(&kind))
        .bind(own(point.time_unix_ms))
        .bind(own(point.time_unix_ms))
        .execute(&mut *tx)
        .await?;
        raise_version(&mut tx).await?;
        events::append(&mut tx, actor, "point.mark", machine, &point.point.to_string()).await?;
        tx.commit().await?;
        Ok(point)
    }

    /// The point that an earlier call asked for under the same id.
    async fn asked_before(
        &self,
        machine: &str,
        wanted: Option<Uuid>,
    ) -> Result<Option<Point>, ControlError> {
        let Some(wanted) = wanted else { return Ok(None) };
        let row = sqlx::query(
            "SELECT machines.name, points.asked FROM points
             JOIN machines ON machines.id = points.machine WHERE points.id = ?",
        )
        .bind(wanted.to_string())
        .fetch_optional(&self.readers)
        .await?
        .map(Record);
        match row {
            None => Ok(None),
            Some(row) if row.text("name")? == machine && row.flag("asked")? => {
                self.point(machine, PointSelector::Id(wanted)).await.map(Some)
            }
            Some(_) => Err(ControlError::AlreadyExists {
                what: "recovery point",
                name: wanted.to_string(),
                hint: "ask under a new id",
            }),
        }
    }

    /// A machine's newest points by rank that are committed or asked for, newest last; with `before`
    /// only those older than that point.
    ///
    /// # Errors
    /// `NotFound` if there is no such machine, or no such point to be older than.
    pub async fn points(
        &self,
        machine: &str,
        before: Option<PointSelector>,
        limit: u32,
    ) -> Result<Vec<Point>, ControlError> {
        let id = self.id_of_machine(machine).await?;
        // Behind every point, those that wait included.
        let (mut rank, mut point) = (UNRANKED, "g".to_owned());
        if let Some(before) = before {
            let mut reader = self.readers.acquire().await?;
            let row = find(&mut reader, id, machine, before).await?;
            (rank, point) = (own(row.number("rank")?), row.text("id")?);
        }
        let rows = sqlx::query(
            "SELECT * FROM points WHERE machine = ? AND (state = 'committed' OR asked = 1)
             AND (rank, id) < (?, ?) ORDER BY rank DESC, id DESC LIMIT ?",
        )
        .bind(id.to_string())
        .bind(rank)
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
    /// `NotFound`; `Invalid` if the first digits of an id name several.
    pub async fn point(
        &self,
        machine: &str,
        selector: PointSelector,
    ) -> Result<Point, ControlError> {
        let id = self.id_of_machine(machine).await?;
        let mut reader = self.readers.acquire().await?;
        let row = find(&mut reader, id, machine, selector).await?;
        drop(reader);
        self.with_volumes_of_point(&row).await
    }

    /// A machine's newest committed point.
    pub(super) async fn newest_point(&self, machine: Uuid) -> Result<Option<Point>, ControlError> {
        let row =
            sqlx::query(newest()).bind(machine.to_string()).fetch_optional(&self.readers).await?;
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
        let state: PointState = record.name("state")?;
        let is_committed = state == PointState::Committed;
        let time_unix_ms = record.number("time_ms")?;
        let at_unix_ms = record.optional_number("at_ms")?;
        Ok(Point {
            point,
            kind: record.name("kind")?,
            rank: is_committed.then(|| record.number("rank")).transpose()?,
            time_unix_ms,
            at_unix_ms,
            heard_unix_ms: record.optional_number("heard_ms")?.filter(|_| is_committed),
            clock_off_ms: at_unix_ms.and_then(|at| point_time::clock_off_ms(time_unix_ms, at)),
            state,
            volumes: volumes?,
        })
    }
}

fn unknown_blocks(record: &Record) -> Result<u32, ControlError> {
    let blocks = record.number("unknown_blocks")?;
    u32::try_from(blocks).map_err(|_| ControlError::Unreadable { column: "unknown_blocks" })
}

/// Whether there is a point of this id.
pub(super) async fn is_known(tx: &mut Tx, point: Uuid) -> Result<bool, ControlError> {
    let row = sqlx::query("SELECT 1 FROM points WHERE id = ?")
        .bind(point.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(row.is_some())
}

/// Takes in that one volume of a point is in the vault. A point is committed once all volumes of
/// its machine are; its rank is then the seq of the first of them.
pub(super) async fn commit(
    tx: &mut Tx,
    report: &PointReport,
    heard: Heard,
) -> Result<Change, ControlError> {
    let point = report.point.to_string();
    let owner = sqlx::query(
        "SELECT volumes.machine, agents.clock_off_ms FROM volumes
         JOIN machines ON machines.id = volumes.machine
         JOIN agents ON agents.id = machines.agent WHERE volumes.id = ?",
    )
    .bind(report.volume.to_string())
    .fetch_one(&mut **tx)
    .await
    .map(Record)?;
    let machine = owner.text("machine")?;
    // The agent's clock may say anything, and a node reports the points of many agents at once: a
    // time that the database cannot hold must not keep the others' points away.
    let time = own(report.time_unix_ms.min(TIME_MS_MAX));
    // The agent's time and kind replace what was noted when the point was asked for. A point of
    // another machine stays as it is: the condition keeps one agent from changing another's.
    let noted = sqlx::query(
        "INSERT INTO points (id, machine, kind, time_ms, heard_ms, state, asked)
         VALUES (?, ?, ?, ?, ?, 'requested', 0)
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, time_ms = excluded.time_ms
         WHERE points.machine = excluded.machine AND points.state = 'requested'",
    )
    .bind(&point)
    .bind(&machine)
    .bind(name_of(&report.kind))
    .bind(time)
    .bind(own(heard.since_ms))
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
        "UPDATE points SET state = 'committed', heard_ms = ?,
            rank = (SELECT seq FROM point_volumes WHERE point = points.id ORDER BY volume LIMIT 1)
         WHERE id = ? AND (SELECT count(*) FROM point_volumes WHERE point = points.id)
            >= (SELECT count(*) FROM volumes WHERE machine = points.machine)
         RETURNING asked, rank, time_ms",
    )
    .bind(own(heard.since_ms))
    .bind(&point)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = committed else { return Ok(Change::None) };
    let row = Record(row);
    let times = PointTimes {
        time_ms: row.number("time_ms")?,
        clock_off_ms: owner.signed("clock_off_ms")?,
        heard_ms: heard.wall_ms,
        before_ms: before_rank(tx, &machine, row.number("rank")?).await?,
    };
    sqlx::query("UPDATE points SET at_ms = ? WHERE id = ?")
        .bind(own(point_time::at_ms(times)))
        .bind(&point)
        .execute(&mut **tx)
        .await?;
    Ok(if row.flag("asked")? { Change::AskedCommitted } else { Change::Committed })
}

/// When the newest committed point below a rank was set.
async fn before_rank(tx: &mut Tx, machine: &str, rank: u64) -> Result<Option<u64>, ControlError> {
    let row = sqlx::query(
        "SELECT at_ms FROM points WHERE machine = ? AND state = 'committed' AND rank < ?
         ORDER BY rank DESC, id DESC LIMIT 1",
    )
    .bind(machine)
    .bind(own(rank))
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.map(|row| Record(row).optional_number("at_ms")).transpose()?.flatten())
}

/// The point of a machine that a selector names.
async fn find(
    reader: &mut SqliteConnection,
    machine: Uuid,
    name: &str,
    selector: PointSelector,
) -> Result<Record, ControlError> {
    let id = machine.to_string();
    let query = match selector {
        PointSelector::Latest => sqlx::query(newest()).bind(id),
        PointSelector::Id(point) => {
            sqlx::query("SELECT * FROM points WHERE machine = ? AND id = ?")
                .bind(id)
                .bind(point.to_string())
        }
        PointSelector::Prefix(prefix) => sqlx::query(
            "SELECT * FROM points WHERE machine = ? AND id LIKE ? || '%'
                 AND (state = 'committed' OR asked = 1) ORDER BY rank DESC, id DESC LIMIT ?",
        )
        .bind(id)
        .bind(prefix.to_string())
        .bind(NAMED_MAX + 1),
        PointSelector::NotAfter(_) | PointSelector::Ago(_) => {
            let not_after = selector.not_after(clock::now_ms()).unwrap_or(TIME_MS_MAX);
            sqlx::query(
                "SELECT * FROM points WHERE machine = ? AND state = 'committed' AND at_ms <= ?
                 ORDER BY rank DESC, id DESC LIMIT 1",
            )
            .bind(id)
            .bind(own(not_after))
        }
    };
    let mut rows = query.fetch_all(reader).await?;
    if rows.len() > 1 {
        let ids: Result<Vec<String>, ControlError> =
            rows.into_iter().map(|row| Record(row).text("id")).collect();
        let mut ids = ids?;
        let more = if ids.len() > NAMED_MAX as usize { ", and others" } else { "" };
        ids.truncate(NAMED_MAX as usize);
        let why = format!(
            "`{selector}` begins the ids of several recovery points: {}{more}; give more digits",
            ids.join(", ")
        );
        return Err(ControlError::Invalid { field: "point", why });
    }
    let what = match selector {
        PointSelector::Id(_) | PointSelector::Prefix(_) => selector.to_string(),
        PointSelector::Latest => format!("latest of {name}"),
        PointSelector::NotAfter(_) | PointSelector::Ago(_) => {
            format!("of {name}, not after {selector}")
        }
    };
    rows.pop().map(Record).ok_or_else(|| missing(what))
}

/// Id of a machine's newest committed point.
pub(super) async fn newest_committed(
    connection: &mut SqliteConnection,
    machine: Uuid,
) -> Result<Option<Uuid>, ControlError> {
    let row = sqlx::query(newest()).bind(machine.to_string()).fetch_optional(connection).await?;
    row.map(|row| Record(row).id("id")).transpose()
}

/// Id of the committed point of a machine that a selector names.
pub(super) async fn find_committed(
    tx: &mut Tx,
    machine: Uuid,
    name: &str,
    selector: PointSelector,
) -> Result<Uuid, ControlError> {
    let row = find(tx, machine, name, selector).await?;
    match row.name::<PointState>("state")? {
        PointState::Committed => row.id("id"),
        _ => Err(missing(selector.to_string())),
    }
}

pub(super) fn missing(name: String) -> ControlError {
    ControlError::NotFound { what: "committed recovery point", name }
}
