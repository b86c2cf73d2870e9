//! Dropping what is too old to keep, by the time of [`crate::domain::retention`].

use super::record::{Record, own};
use super::{Actor, Db, Tx, events, points};
use crate::clock;
use crate::domain::retention::{Look, Note, RetentionClock};
use crate::error::ControlError;
use farshore_proto::bugs::{Bug, is_on};

/// Rows that one transaction drops: others wait for it.
const BATCH: u64 = 10_000;

/// Rows of a volume's counters that are kept apart; older ones are added up in one.
const STATS_KEPT: u32 = 8;

/// Name of the clock among the settings.
const CLOCK: &str = "retention_clock";

impl Db {
    /// The clock by which points go, as it was left; none before the first look.
    ///
    /// # Errors
    /// `Database`.
    pub async fn retention_clock(&self) -> Result<Option<RetentionClock>, ControlError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = ?")
            .bind(CLOCK)
            .fetch_optional(&self.readers)
            .await?;
        // One that cannot be read is begun again: that may only keep longer what is not old yet.
        Ok(row.and_then(|row| Record(row).json("value").ok()))
    }

    /// The longest retention of all policies, in milliseconds.
    ///
    /// # Errors
    /// `Database`.
    pub async fn longest_retention_ms(&self) -> Result<u64, ControlError> {
        let row = sqlx::query("SELECT coalesce(max(retention_hours), 0) AS hours FROM policies")
            .fetch_one(&self.readers)
            .await?;
        Ok(Record(row).number("hours")?.saturating_mul(3_600_000))
    }

    /// Takes in a look at the clocks. Returns the time by which to prune.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn look_at_clocks(&self, look: &Look<'_>) -> Result<u64, ControlError> {
        let mut tx = self.begin().await?;
        let mut clock = match read_clock(&mut tx).await? {
            Some(clock) => clock,
            None => RetentionClock::begin(look),
        };
        let (action, detail) = match clock.step(look) {
            Some(Note::Jumped { ahead_ms }) => (
                "retention.doubt",
                format!(
                    "the clock is {} s further than time has passed; old points are kept for as \
                     much longer, until that has passed or `farshore policy believe-clock` says \
                     that the clock is right",
                    ahead_ms / 1000
                ),
            ),
            Some(Note::Believed) => ("retention.believe", "the clock is believed again".into()),
            None => ("", String::new()),
        };
        if !action.is_empty() {
            tracing::warn!(action, detail, "retention");
            events::append(&mut tx, Actor::Control, action, "clock", &detail).await?;
        }
        write_clock(&mut tx, &clock).await?;
        tx.commit().await?;
        Ok(clock.time_ms)
    }

    /// A person says that the wall clock is right.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn believe_clock(&self, actor: Actor, look: &Look<'_>) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        let mut clock = match read_clock(&mut tx).await? {
            Some(clock) => clock,
            None => RetentionClock::begin(look),
        };
        clock.believe(look);
        write_clock(&mut tx, &clock).await?;
        events::append(&mut tx, actor, "retention.believe", "clock", "said to be right").await?;
        tx.commit().await?;
        Ok(())
    }

    /// How many points [`Db::prune`] would drop by that time.
    ///
    /// # Errors
    /// `Database`.
    pub async fn points_to_prune(&self, time_ms: u64) -> Result<u64, ControlError> {
        let old = old_points();
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) AS count {old}")))
            .bind(own(time_ms))
            .fetch_one(&self.readers)
            .await?;
        Record(row).number("count")
    }

    /// Drops recovery points that were heard of longer ago than their policy keeps them, except each
    /// machine's newest by rank, and expired enrolment tokens; adds up old counters of volumes. Goes
    /// on until nothing is left, in steps between which others write.
    ///
    /// # Errors
    /// `Database`.
    pub async fn prune(&self, time_ms: u64) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        events::prune(&mut tx).await?;
        sqlx::query("DELETE FROM enrolment_tokens WHERE expires_at_s < ?")
            .bind(own((time_ms / 1000).saturating_sub(86_400)))
            .execute(&mut *tx)
            .await?;
        add_up_stats(&mut tx).await?;
        tx.commit().await?;
        loop {
            let mut tx = self.begin().await?;
            let dropped = drop_points(&mut tx, time_ms).await?;
            tx.commit().await?;
            if dropped < BATCH {
                return Ok(());
            }
        }
    }
}

async fn read_clock(tx: &mut Tx) -> Result<Option<RetentionClock>, ControlError> {
    let row = sqlx::query("SELECT value FROM settings WHERE name = ?")
        .bind(CLOCK)
        .fetch_optional(&mut **tx)
        .await?;
    Ok(row.and_then(|row| Record(row).json("value").ok()))
}

/// When points are heard of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// By the clock as it is: points are dated by it.
    pub(super) wall_ms: u64,
    /// Since when they count as known, which may be later: they grow old from there.
    pub(super) since_ms: u64,
}

/// Of points that are heard of now.
pub(super) async fn heard(tx: &mut Tx, wall_ms: u64) -> Result<Heard, ControlError> {
    let (boot, host, up_ms) = (clock::boot(), clock::host(), clock::up_ms());
    heard_at(tx, &Look { wall_ms, boot: &boot, host: &host, up_ms, retention_ms: 0 }).await
}

/// Of points that are heard of while the clocks show this.
pub(super) async fn heard_at(tx: &mut Tx, look: &Look<'_>) -> Result<Heard, ControlError> {
    let wall_ms = look.wall_ms;
    let kept = read_clock(tx).await?;
    Ok(Heard { wall_ms, since_ms: kept.map_or(wall_ms, |clock| clock.heard_ms(look)) })
}

async fn write_clock(tx: &mut Tx, clock: &RetentionClock) -> Result<(), ControlError> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES (?, ?)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(CLOCK)
    .bind(serde_json::to_string(clock).unwrap_or_default())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Points that are older at a time, which is asked for, than their policy keeps them, but for each machine's
/// newest.
fn old_points() -> String {
    let since = if is_on(Bug::AgeByAgentsClock) { "time_ms" } else { "heard_ms" };
    let order = points::order();
    format!(
        "FROM points
            JOIN machines ON machines.id = points.machine
            JOIN policies ON policies.name = machines.policy
            WHERE points.{since} < ? - policies.retention_hours * 3600000
            AND points.id <> coalesce((SELECT newest.id FROM points AS newest
                WHERE newest.machine = points.machine AND newest.state = 'committed'
                ORDER BY newest.{order} DESC, newest.id DESC LIMIT 1), '')"
    )
}

/// Drops a batch of old points. Their age counts from when they were heard of: the agents' times may
/// say anything.
async fn drop_points(tx: &mut Tx, time_ms: u64) -> Result<u64, ControlError> {
    let old = old_points();
    let dropped = sqlx::query(sqlx::AssertSqlSafe(format!(
        "DELETE FROM points WHERE id IN (SELECT points.id {old} LIMIT ?)"
    )))
    .bind(own(time_ms))
    .bind(own(BATCH))
    .execute(&mut **tx)
    .await?;
    Ok(dropped.rows_affected())
}

/// Adds the counters of epochs and runs long ago up in one row of each volume, under epoch 0, which
/// none has.
async fn add_up_stats(tx: &mut Tx) -> Result<(), ControlError> {
    const OLD: &str = "SELECT volume, epoch, run FROM (SELECT volume, epoch, run, row_number() OVER
        (PARTITION BY volume ORDER BY epoch DESC, run DESC) AS place
        FROM volume_stats WHERE epoch > 0) WHERE place > ?";
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO volume_stats (volume, epoch, run, bytes_in, zero_bytes, duplicate_bytes,
            unique_bytes, stored_bytes)
         SELECT volume, 0, 0, sum(bytes_in), sum(zero_bytes), sum(duplicate_bytes),
            sum(unique_bytes), sum(stored_bytes) FROM volume_stats
         WHERE (volume, epoch, run) IN ({OLD}) GROUP BY volume
         ON CONFLICT (volume, epoch, run) DO UPDATE SET
            bytes_in = bytes_in + excluded.bytes_in,
            zero_bytes = zero_bytes + excluded.zero_bytes,
            duplicate_bytes = duplicate_bytes + excluded.duplicate_bytes,
            unique_bytes = unique_bytes + excluded.unique_bytes,
            stored_bytes = stored_bytes + excluded.stored_bytes"
    )))
    .bind(STATS_KEPT)
    .execute(&mut **tx)
    .await?;
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "DELETE FROM volume_stats WHERE (volume, epoch, run) IN ({OLD})"
    )))
    .bind(STATS_KEPT)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
