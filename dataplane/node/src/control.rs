//! The node's side of the control plane: registration, assignments, reports.
//!
//! None of it is needed for a frame to be journaled and committed: while the control plane is away
//! the node goes on with the assignments it was given last (I10).

use crate::assignments::Assignments;
use crate::derived::Maps;
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::services::deliver;
use crate::shard::Message;
use farshore_api::agent::ReportOrder;
use farshore_api::limits::{LET_GO_MS_MAX, REPORT_VOLUMES_MAX};
use farshore_api::limits::{NODE_LOST_AFTER_SECONDS_DEFAULT, NODE_WORD_MS_MAX, REPORT_POINTS_MAX};
use farshore_api::node::{
    Assignments as Told, LetGo, NodeReport, RegisterNode, Registered, Reported, ToLetGo,
};
use farshore_api::paths;
use farshore_client::{Backoff, ClientError, ControlClient};
use farshore_engine::assignments::Changes;
use farshore_engine::claims::Cause;
use farshore_proto::VolumeId;
use farshore_vault::durable;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Sooner while more recovery points wait than one report takes, or a volume is to be let go.
const BACKLOG_EVERY: Duration = Duration::from_millis(100);
/// How long for a volume that is not let go: as long as a failover waits for that.
const LET_GO_AWAITED: Duration = Duration::from_millis(LET_GO_MS_MAX);
/// How long a shard may take to say whether it has let a volume go; the next report asks again.
const LET_GO_WAIT: Duration = Duration::from_millis(500);
/// How long the first answer to a report is waited for: a third of a node's usual limit of silence.
const REPORT_TIME_MIN: Duration =
    Duration::from_millis(NODE_LOST_AFTER_SECONDS_DEFAULT * 1_000 / 3);
/// How long after many that did not come.
const REPORT_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the control plane may hold back an answer in which nothing is new.
const POLL_WAIT: Duration = Duration::from_secs(20);

/// What the control tasks work with.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) client: ControlClient,
    pub(crate) dir: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) incarnation: u64,
    pub(crate) assignments: Arc<Assignments>,
    pub(crate) shards: Vec<Post<Message>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) maps: Arc<Maps>,
    /// A report is wanted at once.
    pub(crate) report_now: Arc<Notify>,
}

impl Control {
    fn cache(&self) -> PathBuf {
        self.dir.join("assignments.json")
    }

    /// Takes the assignments of the last run, so that sessions can begin before the control plane
    /// answers.
    pub(crate) fn load_cached(&self) {
        let cached = std::fs::read(self.cache()).ok();
        let told: Option<Told> = cached.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(told) = told {
            self.assignments.replace(&told);
        }
    }

    /// Registers, then follows the assignments, for as long as the node lives.
    pub(crate) async fn follow(self) {
        let mut backoff = Backoff::default();
        let mut version = None;
        let mut is_registered = false;
        loop {
            let step = if is_registered { self.poll(version).await } else { self.register().await };
            match step {
                Ok(Some(told)) => {
                    version = Some(told.version);
                    self.take(&told);
                    backoff = Backoff::default();
                }
                Ok(None) => {
                    is_registered = true;
                    backoff = Backoff::default();
                }
                Err(error) => {
                    // The control plane may have been started anew: say again who we are.
                    let what = if is_registered { "assignments" } else { "register" };
                    is_registered = false;
                    backoff.after(what, &error).await;
                }
            }
        }
    }

    async fn register(&self) -> Result<Option<Told>, ClientError> {
        let request = RegisterNode {
            address: self.address.to_string(),
            shards: u32::try_from(self.shards.len()).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let Registered { .. } = self.client.post(paths::NODE_REGISTER, &request).await?;
        Ok(None)
    }

    async fn poll(&self, version: Option<u64>) -> Result<Option<Told>, ClientError> {
        let wait_ms = POLL_WAIT.as_millis();
        let query = match version {
            Some(version) => format!("?after={version}&wait_ms={wait_ms}"),
            None => String::new(),
        };
        let path = format!("{}{query}", paths::NODE_ASSIGNMENTS);
        self.client.get(&path, POLL_WAIT).await.map(Some)
    }

    fn take(&self, told: &Told) {
        let changes = keep_and_replace(&self.cache(), &self.assignments, told);
        for (volume, newest) in changes.lowered {
            tracing::warn!(%volume, epoch = %newest, "the control plane gives an epoch that is older than the one before; it is told");
            self.metrics.wish(volume, Cause::Fenced(newest));
        }
        tell_revoked(&self.shards, &self.assignments, changes.revoked);
        if !self.assignments.to_let_go().is_empty() {
            // A failover waits for the word.
            self.report_now.notify_one();
        }
    }

    /// Those of the volumes that are to be let go which are, by the word of their shards.
    async fn let_go(&self, asked: &[ToLetGo]) -> Vec<LetGo> {
        let asked = asked.iter().take(REPORT_VOLUMES_MAX).filter_map(|asked| {
            let volume = VolumeId::from(asked.volume);
            let (answer, answered) = oneshot::channel();
            let shard = &self.shards[self.assignments.owner(volume)];
            // One that is busy is asked again with the next report.
            shard
                .try_send(Message::IsLetGo { volume, answer })
                .is_ok()
                .then_some((*asked, answered))
        });
        let mut let_go = Vec::new();
        let deadline = tokio::time::Instant::now() + LET_GO_WAIT;
        for (ToLetGo { volume, epoch }, answered) in asked.collect::<Vec<_>>() {
            if let Ok(Ok(Some(log))) = tokio::time::timeout_at(deadline, answered).await {
                let_go.push(LetGo { volume, epoch, log: log.into() });
            }
        }
        let_go
    }

    /// Says once a second that the node lives. A word of its own: a report may be large, and may wait
    /// for whatever the control plane writes.
    pub(crate) async fn live(self) {
        let longest = Duration::from_millis(NODE_WORD_MS_MAX);
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let word = self.client.post_within::<Registered>(paths::NODE_ALIVE, &(), longest);
            if let Err(error) = word.await {
                // The report says so aloud.
                tracing::debug!(%error, "no answer to a word of life");
            }
        }
    }

    /// Reports once a second, for as long as the node lives.
    pub(crate) async fn report(self) {
        let started = Instant::now();
        let (mut is_silent, mut wait, mut holds_since) = (false, REPORT_EVERY, None::<Instant>);
        let mut longest = REPORT_TIME_MIN;
        let (mut order, mut was_late) = (ReportOrder::default(), false);
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.report_now.notified() => {}
            }
            // Before the points are taken: a volume that is let go has told its last.
            let asked = self.assignments.to_let_go();
            let let_go = self.let_go(&asked).await;
            holds_since = match let_go.len() < asked.len() {
                true => holds_since.or_else(|| Some(Instant::now())),
                false => None,
            };
            let is_awaited = holds_since.is_some_and(|since| since.elapsed() < LET_GO_AWAITED);
            order = order.next(was_late);
            let report = NodeReport {
                order,
                uptime_seconds: started.elapsed().as_secs_f64(),
                cpu_seconds: cpu_seconds(),
                volumes: self.metrics.volumes(),
                points: self.metrics.points(),
                trouble: self.metrics.troubles().told(),
                counters: self.counters(),
                epochs_wanted: self.metrics.take_epochs_wanted(),
                epochs_seen: self.metrics.epochs_seen(|volume| self.assignments.epoch(volume)),
                let_go,
            };
            let told = self.client.post_within::<Reported>(paths::NODE_REPORT, &report, longest);
            let told = told.await;
            // A connection that hangs is soon given up, a control plane that is slow is waited for.
            longest = match &told {
                Ok(_) => REPORT_TIME_MIN,
                Err(_) => (longest * 2).min(REPORT_TIME_MAX),
            };
            was_late = told.as_ref().is_ok_and(|reported| reported.late);
            let reported = told.as_ref().ok();
            for volume in after_report(&self.metrics, &self.assignments, &report, reported) {
                self.maps.left(volume);
            }
            if let Err(error) = &told
                && !is_silent
            {
                tracing::warn!(%error, "cannot report; replication goes on");
            }
            is_silent = told.is_err();
            wait = match report.points.len() {
                // More of them wait: the control plane was away, or there are many sources.
                REPORT_POINTS_MAX.. if !is_silent => BACKLOG_EVERY,
                _ if is_awaited && !is_silent => BACKLOG_EVERY,
                _ => REPORT_EVERY,
            };
        }
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let mut counters = self.metrics.counters();
        counters.insert("incarnation".to_owned(), self.incarnation);
        counters
    }
}

/// Keeps what the control plane says for the next start, then goes by it.
///
/// That a volume was let go is said only if the next start knows it too: without that word its log is sealed.
fn keep_and_replace(cache: &Path, assignments: &Assignments, told: &Told) -> Changes {
    let kept = serde_json::to_vec(told)
        .map_err(io::Error::other)
        .and_then(|bytes| durable::replace(cache, &bytes));
    let mut known = told.clone();
    if let Err(error) = kept {
        tracing::warn!(%error, "cannot keep the assignments for the next start");
        known.to_let_go.clear();
    }
    assignments.replace(&known)
}

/// Tells the shards which of their volumes were taken away, however busy they are: a session that stands
/// writes on until its shard hears of it.
fn tell_revoked(shards: &[Post<Message>], assignments: &Assignments, revoked: Vec<VolumeId>) {
    let mut by_owner: BTreeMap<usize, Vec<VolumeId>> = BTreeMap::new();
    for volume in revoked {
        by_owner.entry(assignments.owner(volume)).or_default().push(volume);
    }
    for (owner, volumes) in by_owner {
        let post = shards[owner].clone();
        tokio::spawn(async move {
            for volume in volumes {
                deliver(&post, Message::Revoked { volume }).await;
            }
        });
    }
}

/// What follows from a report that the control plane has, or that was lost on its way; returns the volumes
/// that are not this node's any more.
fn after_report(
    metrics: &Metrics,
    assignments: &Assignments,
    report: &NodeReport,
    reported: Option<&Reported>,
) -> Vec<VolumeId> {
    if reported.is_none_or(|reported| reported.late) {
        // What was wanted was not looked at.
        metrics.want_epochs(&report.epochs_wanted);
    }
    if reported.is_none() {
        return Vec::new();
    }
    metrics.reported(report, |volume| assignments.epoch(volume).is_some())
}

/// CPU time of this process, user and system.
fn cpu_seconds() -> f64 {
    // Fields 14 and 15, counted behind the name, which may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second();
    ticks / f64::from(u32::try_from(per_second).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Mail, mailbox};
    use farshore_api::machine::VolumeStats;
    use farshore_api::node::NodeVolume;
    use farshore_proto::Epoch;
    use uuid::Uuid;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    /// C9: without the word that its next start knows it too, a volume is not said to be let go; its frames are
    /// refused all the same.
    #[test]
    fn nothing_is_let_go_before_the_next_start_knows_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, assignments) = (dir.path().join("assignments.json"), Assignments::new(1));
        let (agent, id) = (Uuid::from_u128(9), VolumeId([1; 16]));
        let volume = NodeVolume {
            volume: id.into(),
            epoch: 4,
            parent_epoch: None,
            agent,
            agent_generation_min: 0,
            machine: "web1".to_owned(),
            machine_id: None,
            disk: String::new(),
            mark_interval_ms: 1_000,
        };
        let owned = Told { version: 1, volumes: vec![volume], to_let_go: Vec::new() };
        keep_and_replace(&cache, &assignments, &owned);
        let asked = ToLetGo { volume: id.into(), epoch: 5 };
        let ended = Told { version: 2, volumes: Vec::new(), to_let_go: vec![asked] };
        // In the way of the file that becomes the kept one.
        let in_the_way = cache.with_extension("new");
        std::fs::create_dir(&in_the_way).unwrap();
        let changes = keep_and_replace(&cache, &assignments, &ended);
        assert_eq!((changes.revoked, assignments.of(id, agent)), (vec![id], None));
        assert!(assignments.to_let_go().is_empty(), "a start would take the volume up again");
        std::fs::remove_dir(&in_the_way).unwrap();
        keep_and_replace(&cache, &assignments, &ended);
        assert_eq!(assignments.to_let_go(), [asked]);
        let kept: Told = serde_json::from_slice(&std::fs::read(&cache).unwrap()).unwrap();
        assert!(kept.volumes.is_empty() && kept.to_let_go == [asked]);
    }

    /// Otherwise the session of a volume that was taken away would write on for as long as it stands.
    #[tokio::test]
    async fn a_shard_that_is_busy_hears_of_what_was_taken_away_all_the_same() {
        let (post, inbox) = mailbox(1);
        let busy = Message::Revoked { volume: VolumeId([9; 16]) };
        assert!(post.try_send(busy).is_ok(), "its mailbox is full now");
        let revoked = vec![VOLUME, VolumeId([2; 16])];
        tell_revoked(&[post], &Assignments::new(1), revoked);
        tokio::task::yield_now().await;
        for n in [9, 1, 2] {
            let Mail::Message(Message::Revoked { volume }) = inbox.next().await else {
                panic!("a message of the three");
            };
            assert_eq!(volume, VolumeId([n; 16]));
        }
    }

    /// An agent whose volume needs an epoch waits for it, and asks no more.
    #[test]
    fn what_a_lost_report_asked_for_is_asked_for_again() {
        let (metrics, assignments) = (Metrics::default(), Assignments::new(1));
        metrics.built(VOLUME, Epoch(1), &VolumeStats::default());
        metrics.wish(VOLUME, Cause::NeedsEpoch);
        let report = || NodeReport {
            order: ReportOrder::default(),
            uptime_seconds: 0.0,
            cpu_seconds: 0.0,
            volumes: metrics.volumes(),
            points: Vec::new(),
            trouble: None,
            counters: BTreeMap::new(),
            epochs_wanted: metrics.take_epochs_wanted(),
            epochs_seen: Vec::new(),
            let_go: Vec::new(),
        };
        for _ in 0..2 {
            let lost = report();
            assert_eq!(lost.epochs_wanted, [Uuid::from(VOLUME)]);
            assert!(after_report(&metrics, &assignments, &lost, None).is_empty());
        }
        let sent = report();
        let reported = Reported { version: 1, ignored_volumes: Vec::new(), late: false };
        assert_eq!(sent.epochs_wanted, [Uuid::from(VOLUME)]);
        assert_eq!(
            after_report(&metrics, &assignments, &sent, Some(&reported)),
            [VOLUME],
            "nobody's here"
        );
        assert!(report().epochs_wanted.is_empty());
    }
}
