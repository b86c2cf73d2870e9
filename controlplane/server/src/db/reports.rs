//! What agents and nodes report.
//!
//! A report is one transaction. What it says of volumes that are not the reporter's is ignored and
//! named in the answer; what it says under an epoch that is over is ignored. Of a late one only what
//! stays true is taken: points, what was let go or is served no more, epochs that were seen.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use farshore_api::Role;
use farshore_api::agent::{
    AgentReport, AgentVolumeReport, Difference, PointReport, ReportOrder, SampleReport,
};
use farshore_api::limits::REPORT_VOLUMES_MAX;
use farshore_api::machine::VolumeStats;
use farshore_api::node::{NodeReport, NodeVolumeReport};
use uuid::Uuid;

use super::record::{Record, name_of, number, own};
use super::{Actor, Db, Tx, epochs, events, fences, points, raise_version, retention};
use crate::clock;
use crate::domain::liveness::Told;
use crate::domain::validate::cut;
use crate::error::ControlError;
use crate::limits::Asked;

/// Told of points beyond what one machine may add.
const FLOOD: &str = "more points than marks every second make are told of this volume: those beyond \
     two a second are not taken into the catalogue; see to its agent";

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Volumes that are not the reporter's.
    pub ignored_volumes: Vec<Uuid>,
    /// Whether a point became committed.
    pub points_changed: bool,
    /// Whether the assignments changed (an asked-for point is there, or a volume's epoch is new).
    pub assignments_changed: bool,
    /// How far volumes are under the nodes that they are assigned to, by a report that is not late.
    pub told: Vec<Told>,
    /// Whether a newer report of the reporter's was there before.
    pub is_late: bool,
}

impl Db {
    /// Whether a report is the reporter's newest. To be asked inside of the transaction that takes it in:
    /// there is one at a time.
    fn is_newest(&self, reporter: Uuid, order: ReportOrder) -> bool {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.take(reporter, order)
    }

    /// Takes in an agent's report.
    ///
    /// # Errors
    /// `Invalid` for numbers that the database cannot hold; nothing is taken in then.
    pub async fn agent_report(
        &self,
        agent: Uuid,
        report: &AgentReport,
    ) -> Result<Taken, ControlError> {
        let now_ms = clock::now_ms();
        let mut tx = self.begin().await?;
        let is_newest = self.is_newest(agent, report.order);
        if is_newest {
            note_agent(&mut tx, agent, report, now_ms).await?;
        }
        let (mut ignored, mut told) = (BTreeSet::new(), Vec::new());
        let mut has_grown = false;
        for volume in &report.volumes {
            if is_owned(&mut tx, Role::Agent, agent, volume.volume).await? {
                if !is_newest {
                    continue;
                }
                told.extend(agent_volume(&mut tx, agent, volume).await?);
                if let Some(size_bytes) = volume.grown_to_bytes {
                    let grown = epochs::grow(&mut tx, agent, volume.volume, size_bytes, now_ms);
                    has_grown |= grown.await?.is_some();
                }
            } else {
                ignored.insert(volume.volume);
            }
        }
        for volume in report.detached.iter().take(REPORT_VOLUMES_MAX) {
            forget_detached(&mut tx, agent, *volume).await?;
        }
        let mut taken = self
            .take_points(&mut tx, (Role::Agent, agent), &report.points, now_ms, ignored)
            .await?;
        (taken.told, taken.is_late) = (told, !is_newest);
        if has_grown {
            raise_version(&mut tx).await?;
            taken.assignments_changed = true;
        }
        tx.commit().await?;
        Ok(taken)
    }

    /// Takes in a node's report.
    ///
    /// # Errors
    /// `Invalid` for numbers that the database cannot hold; nothing is taken in then.
    pub async fn node_report(
        &self,
        node: Uuid,
        report: &NodeReport,
    ) -> Result<Taken, ControlError> {
        let now = clock::now_ms();
        let mut tx = self.begin().await?;
        let is_newest = self.is_newest(node, report.order);
        if is_newest {
            note_node(&mut tx, node, report).await?;
        }
        let mut ignored = BTreeSet::new();
        for volume in &report.volumes {
            if !is_owned(&mut tx, Role::Node, node, volume.volume).await? {
                ignored.insert(volume.volume);
            } else if is_newest {
                let epoch = number("epoch", volume.epoch)?;
                node_stats(&mut tx, volume.volume, epoch, &volume.stats).await?;
                note_contest(&mut tx, node, volume).await?;
            }
        }
        for word in &report.let_go {
            fences::take_let_go(&mut tx, node, word).await?;
        }
        let mut is_renewed = false;
        for volume in &report.epochs_wanted {
            if !is_newest {
                // It may have its epoch by now.
                continue;
            }
            if is_owned(&mut tx, Role::Node, node, *volume).await? {
                let renewed = epochs::renew_epoch(&mut tx, node, *volume, now).await?;
                is_renewed |= renewed.is_some();
            } else {
                ignored.insert(*volume);
            }
        }
        for seen in &report.epochs_seen {
            if is_owned(&mut tx, Role::Node, node, seen.volume).await? {
                let raised =
                    epochs::raise_above(&mut tx, node, seen.volume, seen.epoch, now).await?;
                is_renewed |= raised.is_some();
            } else {
                ignored.insert(seen.volume);
            }
        }
        if is_renewed {
            raise_version(&mut tx).await?;
        }
        let mut taken =
            self.take_points(&mut tx, (Role::Node, node), &report.points, now, ignored).await?;
        taken.assignments_changed |= is_renewed;
        taken.is_late = !is_newest;
        tx.commit().await?;
        Ok(taken)
    }
}

/// Stores that an agent was heard, and how far its clock is off.
async fn note_agent(
    tx: &mut Tx,
    agent: Uuid,
    report: &AgentReport,
    now_ms: u64,
) -> Result<(), ControlError> {
    let off_ms = report.clock_unix_ms.and_then(|clock| clock.checked_signed_diff(now_ms));
    sqlx::query("UPDATE agents SET last_seen_ms = ?, clock_off_ms = ? WHERE id = ?")
        .bind(own(clock::steady_ms()))
        .bind(off_ms.unwrap_or_default())
        .bind(agent.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Stores that a node was heard, and what it says of itself.
async fn note_node(tx: &mut Tx, node: Uuid, report: &NodeReport) -> Result<(), ControlError> {
    let counters = serde_json::to_string(&report.counters).unwrap_or_else(|_| "{}".into());
    let trouble = cut(report.trouble.as_deref().unwrap_or_default());
    note_trouble(tx, node, &trouble).await?;
    sqlx::query(
        "UPDATE nodes SET last_seen_ms = ?, uptime_seconds = ?, cpu_seconds = ?, counters = ?,
            trouble = ?
         WHERE id = ?",
    )
    .bind(own(clock::steady_ms()))
    .bind(report.uptime_seconds)
    .bind(report.cpu_seconds)
    .bind(counters)
    .bind(trouble)
    .bind(node.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The agent serves the volume no more: there is nothing left to tell it.
async fn forget_detached(tx: &mut Tx, agent: Uuid, volume: Uuid) -> Result<(), ControlError> {
    let ended = sqlx::query("DELETE FROM detached WHERE volume = ? AND agent = ?")
        .bind(volume.to_string())
        .bind(agent.to_string())
        .execute(&mut **tx)
        .await?;
    if ended.rows_affected() > 0 {
        let actor = Actor::Peer(Role::Agent, agent);
        events::append(tx, actor, "volume.detached", volume, "its disk is served no more").await?;
    }
    Ok(())
}

/// An event when a node's trouble begins, changes or ends.
async fn note_trouble(tx: &mut Tx, node: Uuid, trouble: &str) -> Result<(), ControlError> {
    let row = sqlx::query("SELECT trouble FROM nodes WHERE id = ? AND trouble <> ?")
        .bind(node.to_string())
        .bind(trouble)
        .fetch_optional(&mut **tx)
        .await?;
    if row.is_some() {
        let actor = Actor::Peer(Role::Node, node);
        let (what, detail) = if trouble.is_empty() {
            ("node.recovered", "works again")
        } else {
            ("node.trouble", trouble)
        };
        events::append(tx, actor, what, actor, detail).await?;
    }
    Ok(())
}

/// An event when two living agents begin to claim a volume, or one is left.
async fn note_contest(
    tx: &mut Tx,
    node: Uuid,
    report: &NodeVolumeReport,
) -> Result<(), ControlError> {
    let text = cut(report.contested.as_deref().unwrap_or_default());
    let row = sqlx::query(
        "UPDATE volumes SET contested = ? WHERE id = ? AND contested <> ?
         RETURNING (SELECT name FROM machines WHERE machines.id = volumes.machine) AS machine",
    )
    .bind(text.as_str())
    .bind(report.volume.to_string())
    .bind(text.as_str())
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = row {
        let machine = Record(row).text("machine")?;
        let (what, detail) = match text.is_empty() {
            false => ("volume.contested", text.as_str()),
            true => ("volume.uncontested", "one agent is left that claims it"),
        };
        events::append(tx, Actor::Peer(Role::Node, node), what, &machine, detail).await?;
    }
    Ok(())
}

async fn is_owned(
    tx: &mut Tx,
    role: Role,
    owner: Uuid,
    volume: Uuid,
) -> Result<bool, ControlError> {
    let sql = match role {
        Role::Agent => {
            "SELECT 1 FROM volumes JOIN machines ON machines.id = volumes.machine
             WHERE volumes.id = ? AND machines.agent = ?"
        }
        Role::Node => "SELECT 1 FROM volumes WHERE id = ? AND node = ?",
    };
    let row = sqlx::query(sql)
        .bind(volume.to_string())
        .bind(owner.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(row.is_some())
}

/// Whether a point counts: it is told by the volume's agent, or by the node that has it or had it until a
/// fence took it away, and does not lie behind a fence.
async fn is_point(
    tx: &mut Tx,
    role: Role,
    owner: Uuid,
    report: &PointReport,
) -> Result<bool, ControlError> {
    let is_theirs = match role {
        Role::Agent => is_owned(tx, role, owner, report.volume).await?,
        Role::Node => {
            let row = sqlx::query(
                "SELECT 1 FROM volumes WHERE id = ?1
                 AND (node = ?2 OR (node IS NULL AND last_node = ?2))",
            )
            .bind(report.volume.to_string())
            .bind(owner.to_string())
            .fetch_optional(&mut **tx)
            .await?;
            row.is_some()
        }
    };
    let PointReport { volume, epoch, seq, .. } = *report;
    Ok(is_theirs && !fences::is_behind(tx, volume, epoch, seq).await?)
}

/// Stores what an agent says of a volume. Returns how far it is under the node that it is assigned to, if
/// the agent speaks of that.
///
/// What was committed under an epoch stays so: an agent that has just started knows less of it.
async fn agent_volume(
    tx: &mut Tx,
    agent: Uuid,
    report: &AgentVolumeReport,
) -> Result<Option<Told>, ControlError> {
    let told =
        sqlx::query("SELECT node FROM volumes WHERE id = ? AND epoch = ? AND node IS NOT NULL")
            .bind(report.volume.to_string())
            .bind(number("epoch", report.epoch)?)
            .fetch_optional(&mut **tx)
            .await?
            .map(|row| Record(row).id("node"))
            .transpose()?
            .map(|node| Told {
                node,
                volume: report.volume,
                epoch: report.epoch,
                journaled: report.journaled_seq,
                committed: report.committed_seq,
            });
    let progress = if report.progress.is_finite() { report.progress.clamp(0.0, 1.0) } else { 0.0 };
    let rpo = report.rpo_seconds.filter(|rpo| rpo.is_finite()).map(|rpo| rpo.max(0.0));
    sqlx::query(
        "WITH kept (seq) AS (SELECT IIF(reported_epoch = ?2, committed_seq, 0) FROM volumes WHERE id = ?1)
         UPDATE volumes SET reported_at_ms = ?3, reported_epoch = ?2, state = ?4, detail = ?5,
            error = ?6, progress = ?7, size_bytes = ?8, sent_seq = MAX(?9, kept.seq),
            journaled_seq = MAX(?10, kept.seq), committed_seq = MAX(?11, kept.seq),
            rpo_seconds = ?12, nbd_uri = ?13, is_heard = 1
         FROM kept WHERE id = ?1 AND ?2 >= reported_epoch AND ?2 <= epoch",
    )
    .bind(report.volume.to_string())
    .bind(number("epoch", report.epoch)?)
    .bind(own(clock::steady_ms()))
    .bind(name_of(&report.state))
    .bind(cut(&report.detail))
    .bind(report.error.as_deref().map(cut))
    .bind(progress)
    .bind(number("size_bytes", report.size_bytes)?)
    .bind(number("sent_seq", report.sent_seq)?)
    .bind(number("journaled_seq", report.journaled_seq)?)
    .bind(number("committed_seq", report.committed_seq)?)
    .bind(rpo)
    .bind(report.nbd_uri.as_deref().map(cut))
    .execute(&mut **tx)
    .await?;
    note_identity(tx, report).await?;
    note_samples(tx, agent, report).await?;
    Ok(told)
}

/// Notes what comparing the disk with what was sent has brought, and an event when it differed. What was
/// found stays until the agent says otherwise: a disk that is not served is not compared.
async fn note_samples(
    tx: &mut Tx,
    agent: Uuid,
    report: &AgentVolumeReport,
) -> Result<(), ControlError> {
    let row = sqlx::query(
        "SELECT volumes.samples, machines.name FROM volumes
         JOIN machines ON machines.id = volumes.machine WHERE volumes.id = ?",
    )
    .bind(report.volume.to_string())
    .fetch_one(&mut **tx)
    .await?;
    let record = Record(row);
    let known: Option<SampleReport> = record.optional_json("samples")?;
    if known == report.samples {
        return Ok(());
    }
    let text = report.samples.as_ref().and_then(|samples| serde_json::to_string(samples).ok());
    sqlx::query("UPDATE volumes SET samples = ? WHERE id = ?")
        .bind(text)
        .bind(report.volume.to_string())
        .execute(&mut **tx)
        .await?;
    let Some(SampleReport { differences, last: Some(last), .. }) = report.samples else {
        return Ok(());
    };
    let before = known.map_or(0, |known| known.differences);
    // An agent that lost its directory counts anew.
    let new = if differences < before { differences } else { differences - before };
    if new > 0 {
        let detail = difference_text(report.volume, new, last);
        let actor = Actor::Peer(Role::Agent, agent);
        events::append(tx, actor, "volume.differs", record.text("name")?, &detail).await?;
    }
    Ok(())
}

fn difference_text(volume: Uuid, new: u64, last: Difference) -> String {
    let Difference { offset, length, .. } = last;
    let places = if new == 1 { "one place".to_owned() } else { format!("{new} places") };
    format!(
        "the disk of volume {volume} was not what had been sent of it in {places}, the last at byte \
         {offset} ({length} bytes): somebody wrote to it unseen, or it forgot what was written; that is \
         read again and sent, and points from before may hold what was sent"
    )
}

/// Notes what the disk is. Unless the agent says so, that stays as it was said last: a disk that is
/// away is still the same.
async fn note_identity(tx: &mut Tx, report: &AgentVolumeReport) -> Result<(), ControlError> {
    let Some(identity) = &report.identity else { return Ok(()) };
    let key = cut(&identity.key);
    let (base, part) = key.rsplit_once('#').unwrap_or((key.as_str(), ""));
    sqlx::query(
        "UPDATE volumes SET disk_base = ?1, disk_part = ?2, disk_text = ?3
         WHERE id = ?4 AND (disk_base <> ?1 OR disk_part <> ?2 OR disk_text <> ?3)",
    )
    .bind(base)
    .bind(part)
    .bind(cut(&identity.text))
    .bind(report.volume.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Stores a node's counters of a volume; those of a node that began again from zero get a row of
/// their own.
async fn node_stats(
    tx: &mut Tx,
    volume: Uuid,
    epoch: i64,
    stats: &VolumeStats,
) -> Result<(), ControlError> {
    let last = sqlx::query(
        "SELECT run, bytes_in FROM volume_stats WHERE volume = ? AND epoch = ?
         ORDER BY run DESC LIMIT 1",
    )
    .bind(volume.to_string())
    .bind(epoch)
    .fetch_optional(&mut **tx)
    .await?
    .map(Record);
    let run = match last {
        None => 0,
        Some(record) => {
            let began_again = stats.bytes_in < record.number("bytes_in")?;
            record.number("run")? + u64::from(began_again)
        }
    };
    sqlx::query(
        "INSERT INTO volume_stats (volume, epoch, run, bytes_in, zero_bytes, duplicate_bytes,
            unique_bytes, stored_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (volume, epoch, run) DO UPDATE SET bytes_in = excluded.bytes_in,
            zero_bytes = excluded.zero_bytes, duplicate_bytes = excluded.duplicate_bytes,
            unique_bytes = excluded.unique_bytes, stored_bytes = excluded.stored_bytes",
    )
    .bind(volume.to_string())
    .bind(epoch)
    .bind(own(run))
    .bind(number("bytes_in", stats.bytes_in)?)
    .bind(number("zero_bytes", stats.zero_bytes)?)
    .bind(number("duplicate_bytes", stats.duplicate_bytes)?)
    .bind(number("unique_bytes", stats.unique_bytes)?)
    .bind(number("stored_bytes", stats.stored_bytes)?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Db {
    /// Takes in points. Those of volumes that are not the reporter's are ignored, and so are more new
    /// ones of a machine than it can have set: a flood must not fill the catalogue.
    async fn take_points(
        &self,
        tx: &mut Tx,
        (role, owner): (Role, Uuid),
        reports: &[PointReport],
        now_ms: u64,
        mut ignored: BTreeSet<Uuid>,
    ) -> Result<Taken, ControlError> {
        let (mut points_changed, mut assignments_changed) = (false, false);
        // Looked up once, and not for the many reports without points.
        let mut looked = None;
        for report in reports {
            let volume = report.volume;
            if !is_point(tx, role, owner, report).await? {
                ignored.insert(volume);
                continue;
            }
            let is_new = !points::is_known(tx, report.point).await?;
            if is_new && self.rows.take(volume, Asked::MachinePoint).is_err() {
                if self.rows.take(volume, Asked::Told).is_ok() {
                    let actor = Actor::Peer(role, owner);
                    events::append(tx, actor, "points.refused", volume, FLOOD).await?;
                }
                ignored.insert(volume);
                continue;
            }
            let heard = match looked {
                Some(heard) => heard,
                None => *looked.insert(retention::heard(tx, now_ms).await?),
            };
            match points::commit(tx, report, heard).await? {
                points::Change::None => {}
                points::Change::Committed => points_changed = true,
                points::Change::AskedCommitted => {
                    points_changed = true;
                    assignments_changed = true;
                }
            }
        }
        if assignments_changed {
            raise_version(tx).await?;
        }
        Ok(Taken {
            ignored_volumes: ignored.into_iter().collect(),
            points_changed,
            assignments_changed,
            told: Vec::new(),
            is_late: false,
        })
    }
}
