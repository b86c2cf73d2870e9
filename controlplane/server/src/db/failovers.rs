//! Failovers and their transitions.
//!
//! A transition reads the row, asks [`crate::domain::failover`] and writes the answer in one
//! transaction, so the driver and the operator cannot overtake each other.

use farshore_api::failover::{
    CreateFailover, ExportListen, Failover, FailoverKind, FailoverState, FailoverStep,
};
use farshore_api::limits::FAILOVERS_ACTIVE_MAX;
use farshore_api::point::PointSelector;
use uuid::Uuid;

use super::record::{Record, name_of, own};
use super::{Actor, Db, Tx, events, fences, machines, points};
use crate::clock;
use crate::domain::failover::{self as domain, Command, Event};
use crate::error::ControlError;

/// A process known by its pid, the time it started, in clock ticks after boot, and that boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time.
    pub started: u64,
    /// The boot of the host, as the kernel names it.
    pub boot: Uuid,
}

/// Which of a failover's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessRole {
    /// Serves the export.
    Export,
    /// Runs the machine.
    Machine,
}

/// A failover with what its driver needs.
#[derive(Debug, Clone)]
pub struct FailoverRow {
    /// What is shown.
    pub shown: Failover,
    /// What was asked for.
    pub spec: CreateFailover,
    /// The machine.
    pub machine: Uuid,
    /// The export's process, if one was started.
    pub export: Option<Process>,
    /// The machine's process, if one was started.
    pub guest: Option<Process>,
    /// How often it was said to try again.
    pub retries: u64,
    /// When it was asked for, by the wall clock.
    pub begun_unix_ms: u64,
}

impl FailoverRow {
    /// The decisive part.
    #[must_use]
    pub fn domain(&self) -> domain::Failover {
        // One that asks for more than this version understands is none to carry on with.
        let is_understood = self.spec.kind != FailoverKind::Unknown;
        domain::Failover {
            kind: if is_understood { self.shown.kind } else { FailoverKind::Unknown },
            serve_only: self.shown.serve_only,
            state: self.shown.state,
            committed: self.shown.committed,
            is_down: self.shown.machine_is_down,
        }
    }

    /// Whether it is of the newest point that there is, and not of one that was named.
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.spec.point == PointSelector::Latest && self.shown.kind == FailoverKind::Unplanned
    }

    /// Whether the newest point in the vault, of this time, is the one that was asked for.
    #[must_use]
    pub fn takes(&self, newest_unix_ms: u64) -> bool {
        // *Ago* is before the failover was asked for, however long it took to get here.
        takes_newest((self.shown.kind, self.spec.point), self.begun_unix_ms, newest_unix_ms)
    }

    /// What to do now.
    #[must_use]
    pub fn command(&self) -> Option<Command> {
        self.domain().command()
    }
}

/// Whether a failover that is asked for at such a time takes the newest point in the vault, of that time.
#[must_use]
pub fn takes_newest(
    (kind, point): (FailoverKind, PointSelector),
    asked_unix_ms: u64,
    newest_unix_ms: u64,
) -> bool {
    let not_after = point.not_after(asked_unix_ms);
    kind == FailoverKind::Unplanned
        && (point == PointSelector::Latest
            || not_after.is_some_and(|limit_ms| newest_unix_ms <= limit_ms))
}

impl Db {
    /// Accepts a failover.
    ///
    /// # Errors
    /// `NotFound` for an unknown machine or point; `AlreadyExists` if the id is another's; `WrongState` if the machine is failed over
    /// already, or too many failovers are active.
    pub async fn create_failover(
        &self,
        actor: Actor,
        machine: &str,
        spec: &CreateFailover,
    ) -> Result<Uuid, ControlError> {
        let id = spec.id.unwrap_or_else(Uuid::now_v7);
        let mut tx = self.begin().await?;
        if was_asked(&mut tx, id, machine, spec).await? {
            return Ok(id);
        }
        let machine_id = machines::machine_id(&mut tx, machine).await?;
        check_room(&mut tx, machine, machine_id, spec.kind).await?;
        let point = choose_point(&mut tx, machine, machine_id, spec).await?;
        let now = own(clock::now_ms());
        sqlx::query(
            "INSERT INTO failovers (id, machine, machine_name, volume, kind, spec, point, state,
                created_at_ms)
             SELECT ?, machine, ?, id, ?, ?, ?, 'requested', ? FROM volumes
             WHERE machine = ? ORDER BY id LIMIT 1",
        )
        .bind(id.to_string())
        .bind(machine)
        .bind(name_of(&spec.kind))
        .bind(serde_json::to_string(spec).unwrap_or_default())
        .bind(point.map(|point| point.to_string()))
        .bind(now)
        .bind(machine_id.to_string())
        .execute(&mut *tx)
        .await?;
        add_step(&mut tx, id, FailoverState::Requested).await?;
        let action = match spec.kind {
            FailoverKind::Drill => "failover.drill",
            FailoverKind::Unplanned | FailoverKind::Unknown => "failover.start",
        };
        let detail = format!("failover {id}, point {}", spec.point);
        events::append(&mut tx, actor, action, machine, &detail).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// The volume and the point that a failover would take now, with the point's time.
    ///
    /// # Errors
    /// As [`Self::create_failover`].
    pub async fn check_failover(
        &self,
        machine: &str,
        spec: &CreateFailover,
    ) -> Result<(Uuid, Uuid, u64), ControlError> {
        // Dropped at the end: nothing is changed.
        let mut tx = self.begin().await?;
        let machine_id = machines::machine_id(&mut tx, machine).await?;
        check_room(&mut tx, machine, machine_id, spec.kind).await?;
        let drill = CreateFailover { kind: FailoverKind::Drill, ..spec.clone() };
        let point = choose_point(&mut tx, machine, machine_id, &drill).await?;
        let point = point.ok_or_else(|| points::missing(format!("latest of {machine}")))?;
        let row = sqlx::query(
            "SELECT volumes.id, points.time_ms FROM volumes, points
             WHERE volumes.machine = ? AND points.id = ? ORDER BY volumes.id LIMIT 1",
        )
        .bind(machine_id.to_string())
        .bind(point.to_string())
        .fetch_one(&mut *tx)
        .await?;
        let record = Record(row);
        Ok((record.id("id")?, point, record.number("time_ms")?))
    }

    /// One failover.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn failover(&self, id: Uuid) -> Result<FailoverRow, ControlError> {
        let row = sqlx::query("SELECT * FROM failovers WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| missing(id))?;
        let mut failover = failover(&Record(row))?;
        failover.shown.steps = self.steps(id).await?;
        Ok(failover)
    }

    /// The newest failovers, newest last.
    ///
    /// # Errors
    /// `Database`.
    pub async fn failovers(&self, limit: u32) -> Result<Vec<Failover>, ControlError> {
        let rows = sqlx::query(
            "SELECT * FROM (SELECT * FROM failovers ORDER BY created_at_ms DESC, id DESC LIMIT ?)
             ORDER BY created_at_ms, id",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let mut failovers = Vec::with_capacity(rows.len());
        for row in rows {
            let mut shown = failover(&Record(row))?.shown;
            shown.steps = self.steps(shown.id).await?;
            failovers.push(shown);
        }
        Ok(failovers)
    }

    /// Failovers that something is left to do for, in the order of their creation.
    ///
    /// # Errors
    /// `Database`.
    pub async fn failovers_to_drive(&self) -> Result<Vec<Uuid>, ControlError> {
        let rows = sqlx::query(
            "SELECT * FROM failovers WHERE state NOT IN ('cleaned_up', 'failed')
             OR (state = 'failed' AND (export_pid IS NOT NULL OR machine_pid IS NOT NULL))
             ORDER BY created_at_ms, id",
        )
        .fetch_all(&self.readers)
        .await?;
        // What a newer version began has nobody here; what cannot be read has a driver that says so.
        let is_over = |record: &Record| failover(record).is_ok_and(|row| row.command().is_none());
        let records = rows.into_iter().map(Record).filter(|record| !is_over(record));
        records.map(|record| record.id("id")).collect()
    }

    /// What a driver that waits looks at: the state, and how often it was said to try again.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn failover_state(&self, id: Uuid) -> Result<(FailoverState, u64), ControlError> {
        let row = sqlx::query("SELECT state, retries FROM failovers WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| missing(id))?;
        let record = Record(row);
        Ok((record.name("state")?, record.number("retries")?))
    }

    async fn steps(&self, id: Uuid) -> Result<Vec<FailoverStep>, ControlError> {
        let rows = sqlx::query("SELECT * FROM failover_steps WHERE failover = ? ORDER BY position")
            .bind(id.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.into_iter()
            .map(|row| {
                let record = Record(row);
                let at_unix_ms = record.number("at_ms")?;
                Ok(FailoverStep { state: record.name("state")?, at_unix_ms })
            })
            .collect()
    }

    /// Applies an event. `error` is kept with a failure.
    ///
    /// Fencing and giving back belong to their transitions: `Fenced` raises the epoch, and
    /// `Cleared` of an unplanned failover that was not kept lets replication go on.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` if the state does not allow what the operator asked for.
    pub async fn failover_event(
        &self,
        actor: Actor,
        id: Uuid,
        event: Event,
        error: Option<&str>,
    ) -> Result<FailoverState, ControlError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT * FROM failovers WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| missing(id))?;
        let row = failover(&Record(row))?;
        let mut next = row.domain();
        let is_changed = next.step(event).map_err(|refusal| ControlError::WrongState {
            what: "failover",
            name: id.to_string(),
            why: refusal.to_string(),
        })?;
        let is_retry = event == Event::Retry;
        if !is_changed && !is_retry {
            return Ok(next.state);
        }
        let mut point = row.shown.point;
        if event == Event::Fenced {
            let newest = fences::fence(&mut tx, row.machine).await?;
            // The vault has said which is the latest, or could not be asked: then the catalogue says it, and
            // says it again at another try.
            let is_open = row.is_latest() && !fences::is_cut(&mut tx, row.shown.volume).await?;
            point = if is_open { newest.or(point) } else { point.or(newest) };
        }
        if event == Event::Cleared && next.resumes_replication() {
            fences::unfence(&mut tx, row.machine).await?;
        }
        sqlx::query(
            "UPDATE failovers SET state = ?1, committed = ?2,
                nbd_uri = CASE WHEN point IS ?3 THEN nbd_uri ELSE NULL END, point = ?3,
                machine_down = ?4, error = CASE WHEN ?5 THEN NULL ELSE coalesce(?6, error) END,
                detail = CASE WHEN ?7 THEN '' ELSE detail END, retries = retries + ?8
             WHERE id = ?9",
        )
        .bind(name_of(&next.state))
        .bind(next.committed)
        .bind(point.map(|point| point.to_string()))
        .bind(next.is_down)
        .bind(is_retry)
        .bind(error)
        .bind(is_retry || event == Event::Cleared || (event == Event::Recovered && !next.is_down))
        .bind(is_retry)
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        if is_changed {
            add_step(&mut tx, id, next.state).await?;
        }
        let action = action_of(event);
        let detail = format!("{}: now {}", row.shown.machine, next.state.as_str());
        events::append(&mut tx, actor, action, id, &detail).await?;
        tx.commit().await?;
        Ok(next.state)
    }

    /// Notes a process of a failover, or that it is gone.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn set_failover_process(
        &self,
        id: Uuid,
        role: ProcessRole,
        process: Option<Process>,
    ) -> Result<(), ControlError> {
        let sql = match role {
            ProcessRole::Export => {
                "UPDATE failovers SET export_pid = ?, export_started = ?, export_boot = ?
                 WHERE id = ?"
            }
            ProcessRole::Machine => {
                "UPDATE failovers SET machine_pid = ?, machine_started = ?, machine_boot = ?
                 WHERE id = ?"
            }
        };
        sqlx::query(sql)
            .bind(process.map(|process| process.pid))
            .bind(process.map(|process| own(process.started)))
            .bind(process.map(|process| process.boot.to_string()))
            .bind(id.to_string())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Notes that the machine of a failover has shut itself down, and why that is known: first said,
    /// then its process forgotten, so that whoever sees that it is gone sees why.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn set_machine_down(&self, id: Uuid, detail: &str) -> Result<(), ControlError> {
        sqlx::query(
            "UPDATE failovers SET machine_down = 1, detail = ?, machine_pid = NULL,
                machine_started = NULL, machine_boot = NULL WHERE id = ?",
        )
        .bind(detail)
        .bind(id.to_string())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Notes where a failover serves, where its console goes, and what there is to say; what is
    /// `None` stays.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn set_failover_facts(
        &self,
        id: Uuid,
        nbd_uri: Option<&str>,
        console_path: Option<&str>,
        detail: Option<&str>,
    ) -> Result<(), ControlError> {
        sqlx::query(
            "UPDATE failovers SET nbd_uri = coalesce(?, nbd_uri),
                console_path = coalesce(?, console_path), detail = coalesce(?, detail)
             WHERE id = ?",
        )
        .bind(nbd_uri)
        .bind(console_path)
        .bind(detail)
        .bind(id.to_string())
        .execute(&self.writer)
        .await?;
        Ok(())
    }
}

/// Whether an earlier call asked for the same under the same id.
async fn was_asked(
    tx: &mut Tx,
    id: Uuid,
    machine: &str,
    spec: &CreateFailover,
) -> Result<bool, ControlError> {
    let row = sqlx::query("SELECT machine_name, spec FROM failovers WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .map(Record);
    match row {
        None => Ok(false),
        Some(row)
            if row.text("machine_name")? == machine
                && row.json::<CreateFailover>("spec")? == *spec =>
        {
            Ok(true)
        }
        Some(_) => Err(ControlError::AlreadyExists {
            what: "failover",
            name: id.to_string(),
            hint: "ask under a new id",
        }),
    }
}

async fn check_room(
    tx: &mut Tx,
    name: &str,
    machine: Uuid,
    kind: FailoverKind,
) -> Result<(), ControlError> {
    let row = sqlx::query(
        "SELECT (SELECT failed_over FROM machines WHERE id = ?) AS failed_over,
            (SELECT count(*) FROM failovers WHERE machine = ? AND kind = 'unplanned'
                AND state <> 'cleaned_up') AS unplanned,
            (SELECT count(*) FROM failovers WHERE committed = 0
                AND state NOT IN ('cleaned_up', 'failed')) AS active",
    )
    .bind(machine.to_string())
    .bind(machine.to_string())
    .fetch_one(&mut **tx)
    .await?;
    let record = Record(row);
    let refuse = |why: &str| {
        Err(ControlError::WrongState { what: "machine", name: name.into(), why: why.into() })
    };
    let is_out = record.flag("failed_over")? || record.number("unplanned")? > 0;
    if kind == FailoverKind::Unplanned && is_out {
        return refuse("is failed over already; clean that failover up first");
    }
    if record.number("active")? >= FAILOVERS_ACTIVE_MAX {
        return refuse(&format!(
            "must wait: {FAILOVERS_ACTIVE_MAX} failovers are under way; commit some, or clean some up"
        ));
    }
    Ok(())
}

/// The point to bring back. For an unplanned failover the newest one is chosen after the fence, so
/// that what is committed until then is not lost.
async fn choose_point(
    tx: &mut Tx,
    name: &str,
    machine: Uuid,
    spec: &CreateFailover,
) -> Result<Option<Uuid>, ControlError> {
    let point = points::find_committed(tx, machine, name, spec.point).await?;
    let is_chosen_later =
        spec.kind == FailoverKind::Unplanned && spec.point == PointSelector::Latest;
    Ok((!is_chosen_later).then_some(point))
}

async fn add_step(tx: &mut Tx, id: Uuid, state: FailoverState) -> Result<(), ControlError> {
    sqlx::query(
        "INSERT INTO failover_steps (failover, position, state, at_ms)
         SELECT ?, (SELECT count(*) FROM failover_steps WHERE failover = ?), ?, ?",
    )
    .bind(id.to_string())
    .bind(id.to_string())
    .bind(name_of(&state))
    .bind(own(clock::now_ms()))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn action_of(event: Event) -> &'static str {
    match event {
        Event::Begin => "failover.begin",
        Event::Fenced => "failover.fence",
        Event::Exported => "failover.export",
        Event::Booted => "failover.boot",
        Event::Broken => "failover.fail",
        Event::Lost => "failover.lost",
        Event::Recovered => "failover.recover",
        Event::Retry => "failover.retry",
        Event::Commit => "failover.commit",
        Event::CleanUp { .. } => "failover.cleanup",
        Event::Cleared => "failover.cleared",
    }
}

fn missing(id: Uuid) -> ControlError {
    ControlError::NotFound { what: "failover", name: id.to_string() }
}

fn process(
    record: &Record,
    pid: &'static str,
    started: &'static str,
    boot: &'static str,
) -> Result<Option<Process>, ControlError> {
    let (Some(number), Some(started)) =
        (record.optional_number(pid)?, record.optional_number(started)?)
    else {
        return Ok(None);
    };
    let number = u32::try_from(number).map_err(|_| ControlError::Unreadable { column: pid })?;
    let boot = record.optional_id(boot)?.unwrap_or_default();
    Ok(Some(Process { pid: number, started, boot }))
}

/// What was asked for. What a newer version was asked for may hold more than this one understands, and
/// that may be what matters: then only that it did not want a machine is taken from it.
fn spec(record: &Record) -> Result<CreateFailover, ControlError> {
    if let Ok(spec) = record.json("spec") {
        return Ok(spec);
    }
    let asked: serde_json::Value = record.json("spec")?;
    Ok(CreateFailover {
        id: None,
        kind: FailoverKind::Unknown,
        point: PointSelector::default(),
        serve_only: asked["serve_only"].as_bool().unwrap_or_default(),
        listen: ExportListen::Unknown,
        memory_mib: None,
        cpus: None,
        firmware: None,
    })
}

fn failover(record: &Record) -> Result<FailoverRow, ControlError> {
    let spec = spec(record)?;
    let export = process(record, "export_pid", "export_started", "export_boot")?;
    let guest = process(record, "machine_pid", "machine_started", "machine_boot")?;
    let shown = Failover {
        id: record.id("id")?,
        machine: record.text("machine_name")?,
        kind: record.name("kind")?,
        point: record.optional_id("point")?,
        volume: record.id("volume")?,
        serve_only: spec.serve_only,
        state: record.name("state")?,
        committed: record.flag("committed")?,
        machine_is_down: record.flag("machine_down")?,
        overlay_bytes: None,
        detail: record.text("detail")?,
        nbd_uri: record.optional_text("nbd_uri")?,
        export_pid: export.map(|process| process.pid),
        machine_pid: guest.map(|process| process.pid),
        console_path: record.optional_text("console_path")?,
        error: record.optional_text("error")?,
        steps: Vec::new(),
    };
    let machine = record.id("machine")?;
    let retries = record.number("retries")?;
    let begun_unix_ms = record.number("created_at_ms")?;
    Ok(FailoverRow { shown, spec, machine, export, guest, retries, begun_unix_ms })
}
