//! C4 C7: which points stay and which is the latest, whatever clocks do, over the real store.

use std::collections::BTreeMap;

use farshore_proto::bugs::{Bug, switch_on};

use super::super::record::own;
use super::super::retention::heard_at;
use super::super::{machines, points};
use super::*;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A point that the catalogue was told of.
#[derive(Debug, Clone, Copy)]
struct Told {
    id: Uuid,
    heard_true_ms: u64,
}

/// The catalogue of one machine under a clock that may be off, and what it must hold.
struct World {
    site: Site,
    volume: Uuid,
    rng: fastrand::Rng,
    true_ms: u64,
    up_ms: u64,
    off_ms: i64,
    boot: u64,
    retention_ms: u64,
    /// By rank.
    points: BTreeMap<u64, Told>,
    gone: usize,
}

impl World {
    async fn begin(seed: u64) -> Self {
        let site = site().await;
        let volume = site.protect("web").await;
        site.place().await;
        let retention_ms = site.db.longest_retention_ms().await.unwrap();
        assert_eq!(retention_ms, DAY);
        let mut world = Self {
            site,
            volume,
            rng: fastrand::Rng::with_seed(seed),
            true_ms: clock::now_ms(),
            up_ms: HOUR,
            off_ms: 0,
            boot: 0,
            retention_ms,
            points: BTreeMap::new(),
            gone: 0,
        };
        // Behind the first look there is a time that nothing is heard of before.
        world.prune().await.unwrap();
        world
    }

    fn wall_ms(&self) -> u64 {
        self.true_ms.saturating_add_signed(self.off_ms)
    }

    fn look<'a>(&self, boot: &'a str) -> Look<'a> {
        let (wall_ms, up_ms, retention_ms) = (self.wall_ms(), self.up_ms, self.retention_ms);
        Look { wall_ms, boot, host: "h", up_ms, retention_ms }
    }

    /// A point is told, perhaps late, of an agent whose clock says anything.
    async fn tell(&mut self) {
        let newest = self.points.last_key_value().map_or(0, |(rank, _)| *rank);
        let is_late = self.rng.u32(0..4) == 0;
        let seq = if is_late { self.rng.u64(1..newest + 2) } else { newest + self.rng.u64(1..50) };
        if self.points.contains_key(&seq) {
            return;
        }
        let id = Uuid::from_u128(self.rng.u128(..));
        let point = PointReport {
            point: id,
            volume: self.volume,
            epoch: 1,
            seq,
            kind: PointKind::Crash,
            unknown_blocks: 0,
            time_unix_ms: self.rng.u64(0..2 * self.true_ms),
        };
        let report = AgentReport { points: vec![point], ..AgentReport::default() };
        let taken = self.site.db.agent_report(self.site.agent, &report).await.unwrap();
        assert!(taken.points_changed && taken.ignored_volumes.is_empty(), "{taken:?}");
        // The clock may be another one for this moment only.
        let off_ms = match self.rng.u32(0..4) {
            0 => i64::try_from(self.rng.u64(0..400 * DAY)).unwrap().saturating_neg(),
            _ => self.off_ms,
        };
        let wall_ms = self.true_ms.saturating_add_signed(off_ms);
        let boot = self.boot.to_string();
        let look = Look { wall_ms, ..self.look(&boot) };
        let mut tx = self.site.db.begin().await.unwrap();
        let heard = heard_at(&mut tx, &look).await.unwrap();
        sqlx::query("UPDATE points SET heard_ms = ? WHERE id = ?")
            .bind(own(heard.since_ms))
            .bind(id.to_string())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        self.points.insert(seq, Told { id, heard_true_ms: self.true_ms });
    }

    /// Time passes, perhaps with the control plane away or its host started anew, and the clock steps.
    fn pass(&mut self) {
        let ms = match self.rng.u32(0..12) {
            0 => self.rng.u64(0..2 * DAY),
            _ => self.rng.u64(0..2 * HOUR),
        };
        self.true_ms += ms;
        self.up_ms += ms;
        if self.rng.u32(0..10) == 0 {
            self.boot += 1;
            self.up_ms = self.rng.u64(0..ms + 1);
        }
        let days = i64::try_from(400 * DAY).unwrap();
        match self.rng.u32(0..8) {
            0 => self.off_ms += self.rng.i64(-days..days),
            1 => self.off_ms += self.rng.i64(-90_000..90_000),
            2 => self.off_ms = 0,
            _ => {}
        }
    }

    /// What is old goes, what is not stays, and the newest always.
    async fn prune(&mut self) -> Result<(), String> {
        let boot = self.boot.to_string();
        let look = self.look(&boot);
        let time_ms = self.site.db.look_at_clocks(&look).await.unwrap();
        self.site.db.prune(time_ms).await.unwrap();
        let left = self.site.db.points("web", None, 1_000).await.unwrap();
        let ranks: Vec<u64> = left.iter().filter_map(|point| point.rank).collect();
        assert!(ranks.is_sorted(), "lists go by rank: {ranks:?}");
        let newest = self.points.last_key_value().map(|(rank, _)| *rank);
        let true_ms = self.true_ms;
        let is_gone = |_: &u64, told: &mut Told| left.iter().all(|point| point.point != told.id);
        let gone: Vec<(u64, Told)> = self.points.extract_if(.., is_gone).collect();
        for (rank, told) in &gone {
            let age_ms = true_ms - told.heard_true_ms;
            if Some(*rank) == newest {
                return Err("the newest goes".to_owned());
            }
            // The clock may gain an hour without a doubt while it is not looked at.
            if age_ms + HOUR < DAY {
                return Err(format!("the point at {rank} goes after {age_ms} ms"));
            }
        }
        self.gone += gone.len();
        assert_eq!(left.len(), self.points.len(), "nothing comes back");
        Ok(())
    }

    async fn judge_latest(&self) -> Result<(), String> {
        let Some((rank, told)) = self.points.last_key_value() else { return Ok(()) };
        let latest = self.site.db.point("web", PointSelector::Latest).await.unwrap();
        let shown = self.site.db.machine("web").await.unwrap().last_point.unwrap();
        let mut tx = self.site.db.begin().await.unwrap();
        let machine = machines::machine_id(&mut tx, "web").await.unwrap();
        let taken = points::newest_committed(&mut tx, machine).await.unwrap();
        let (id, rank) = (told.id, Some(*rank));
        if (latest.rank, shown.rank) != (rank, rank) || taken != Some(id) {
            let (latest, shown) = (latest.rank, shown.rank);
            return Err(format!("latest is {latest:?}, shown {shown:?}, the newest is {rank:?}"));
        }
        Ok(())
    }
}

/// How many points went, or what was wrong.
async fn run(seed: u64) -> Result<usize, String> {
    let mut world = World::begin(seed).await;
    for _ in 0..40 {
        for _ in 0..world.rng.u32(0..3) {
            world.tell().await;
        }
        world.pass();
        world.prune().await?;
        world.judge_latest().await?;
    }
    Ok(world.gone)
}

const SEEDS: u64 = 8;

#[tokio::test]
async fn no_clock_takes_a_point_that_is_not_old_or_makes_another_one_the_latest() {
    let mut gone = 0;
    for seed in 0..SEEDS {
        gone += run(seed).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    assert!(gone > 20, "a clock that is believed lets old points go: {gone}");
}

/// The statements that are shipped, and the clock that they go by, with a mistake in them.
#[tokio::test]
async fn each_seeded_bug_of_what_is_kept_is_found() {
    let bugs = [
        (Bug::LatestByTime, "latest is"),
        (Bug::AgeByAgentsClock, "goes after"),
        (Bug::PruneByWall, "goes after"),
        (Bug::HeardByWall, "goes after"),
    ];
    for (bug, words) in bugs {
        switch_on(&[bug]);
        let mut found = None;
        for seed in 0..SEEDS {
            if let Err(what) = run(seed).await {
                found = Some((seed, what));
                break;
            }
        }
        switch_on(&[]);
        let (seed, what) = found.unwrap_or_else(|| panic!("{} is not found", bug.name()));
        println!("{} is found by seed {seed}: {what}", bug.name());
        assert!(what.contains(words), "{}: {what}", bug.name());
    }
}
