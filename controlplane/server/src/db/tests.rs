//! The catalogue on a temporary SQLite file.

use std::net::SocketAddr;

use farshore_api::Role;
use farshore_api::agent::{
    AgentReport, AgentVolumeReport, Difference, DiskIdentity, PointReport, RegisterAgent,
    SampleReport, VolumeState,
};
use farshore_api::failover::{CreateFailover, FailoverKind, FailoverState};
use farshore_api::identity::Serial;
use farshore_api::machine::{Capture, CreateMachine, MachineState, VolumeStats};
use farshore_api::node::{EpochSeen, NodeLife, NodeReport, NodeVolumeReport, RegisterNode};
use farshore_api::point::{PointKind, PointSelector, PointState};
use farshore_api::policy::{CreatePolicy, UpdatePolicy};
use farshore_api::text::is_printable;
use uuid::Uuid;

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Actor, Cut, Db, Enrolled, Issued, Process, ProcessRole, takes_newest};
use crate::clock;
use crate::domain::failover::Event;
use crate::domain::machine::view;
use crate::domain::placement::{self, Move, NodeSite};
use crate::domain::retention::Look;
use crate::error::ControlError;
use crate::limits::Asked;

mod fences;
mod kept;
mod late;

struct Site {
    _dir: tempfile::TempDir,
    db: Db,
    agent: Uuid,
    node: Uuid,
    seq: AtomicU64,
}

async fn empty() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("control.db")).await.unwrap();
    (dir, db)
}

fn issued(generation: u64, not_after_s: u64) -> Issued {
    let random: [u8; 11] = crate::ca::random();
    let serial = Serial::new(generation, random);
    Issued { serial, key: blake3::hash(&random), not_after_s }
}

async fn identity(db: &Db, role: Role) -> Uuid {
    let (id, hash) = (Uuid::new_v4(), blake3::hash(Uuid::new_v4().as_bytes()));
    let soon = clock::now_s() + 60;
    db.create_token(Actor::Operator, role, &hash, soon, None).await.unwrap();
    db.enrol(role, &hash, id, &issued(1, soon), "").await.unwrap();
    id
}

async fn add_node(db: &Db) -> Uuid {
    let node = identity(db, Role::Node).await;
    let address: SocketAddr = "127.0.0.1:9443".parse().unwrap();
    let request = RegisterNode { address: address.to_string(), shards: 2, version: "0".into() };
    db.register_node(node, address, &request).await.unwrap();
    node
}

async fn add_agent(db: &Db, local: bool) -> Uuid {
    let agent = identity(db, Role::Agent).await;
    let request = RegisterAgent { hostname: "alpha".into(), version: "0".into(), local };
    db.register_agent(agent, &request).await.unwrap();
    agent
}

async fn site() -> Site {
    let (dir, db) = empty().await;
    let agent = add_agent(&db, true).await;
    let node = add_node(&db).await;
    Site { _dir: dir, db, agent, node, seq: AtomicU64::new(7) }
}

fn machine(name: &str) -> CreateMachine {
    CreateMachine {
        name: name.into(),
        disk: format!("/disks/{name}"),
        capture: Capture::Nbd,
        policy: None,
        mark_interval_ms: None,
        nbd_port: None,
        agent_id: None,
    }
}

impl Site {
    async fn protect(&self, name: &str) -> Uuid {
        self.db.create_machine(Actor::Operator, &machine(name)).await.unwrap();
        self.db.machine(name).await.unwrap().volumes[0].id
    }

    async fn place(&self) -> Vec<super::Placement> {
        let volumes = self.db.volume_sites().await.unwrap();
        let nodes = self.db.node_troubles().await.unwrap();
        let nodes: Vec<NodeSite> = nodes
            .into_iter()
            .map(|(node, has_trouble)| NodeSite { node, life: NodeLife::Heard, has_trouble })
            .collect();
        self.db.place(&placement::place(&volumes, &nodes)).await.unwrap()
    }

    /// As if all epochs had been given long ago.
    async fn let_epochs_age(&self) {
        let aged = sqlx::query("UPDATE volumes SET epoch_at_ms = 0");
        aged.execute(&self.db.writer).await.unwrap();
    }

    async fn commit_point(&self, volume: Uuid, point: Uuid, time_unix_ms: u64) -> super::Taken {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let points = vec![PointReport {
            point,
            volume,
            epoch: 1,
            seq,
            kind: PointKind::Crash,
            unknown_blocks: 3,
            time_unix_ms,
        }];
        let report = AgentReport { points, ..AgentReport::default() };
        self.db.agent_report(self.agent, &report).await.unwrap()
    }

    /// As if every point had been heard of at the time that its agent says.
    async fn let_points_be_heard_at_their_times(&self) {
        let aged = sqlx::query("UPDATE points SET heard_ms = time_ms");
        aged.execute(&self.db.writer).await.unwrap();
    }

    fn report(&self, volume: Uuid, epoch: u64, state: VolumeState) -> AgentReport {
        let volume = AgentVolumeReport {
            volume,
            epoch,
            state,
            detail: String::new(),
            progress: 1.0,
            size_bytes: 4096,
            sent_seq: 9,
            journaled_seq: 8,
            committed_seq: 7,
            rpo_seconds: Some(0.5),
            nbd_uri: Some("nbd://localhost".into()),
            error: None,
            identity: None,
            samples: None,
            grown_to_bytes: None,
        };
        AgentReport { volumes: vec![volume], ..AgentReport::default() }
    }
}

fn failover(kind: FailoverKind, point: PointSelector) -> CreateFailover {
    CreateFailover {
        id: None,
        kind,
        point,
        serve_only: true,
        listen: Default::default(),
        memory_mib: None,
        cpus: None,
        firmware: None,
    }
}

#[tokio::test]
async fn a_token_enrols_exactly_one_of_many() {
    let (_dir, db) = empty().await;
    let hash = blake3::hash(b"secret");
    db.create_token(Actor::Operator, Role::Agent, &hash, clock::now_s() + 60, None).await.unwrap();
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        tries.spawn(async move {
            db.enrol(Role::Agent, &hash, Uuid::new_v4(), &issued(1, 1), "").await
        });
    }
    let before = db.assignments_version().await.unwrap();
    let results = tries.join_all().await;
    assert_eq!(db.assignments_version().await.unwrap(), before, "nobody else is woken");
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results.iter().all(|r| matches!(r, Ok(Enrolled::New) | Err(ControlError::TokenRefused)))
    );
}

#[tokio::test]
async fn expired_unknown_and_wrong_role_tokens_are_refused() {
    let (_dir, db) = empty().await;
    let hash = blake3::hash(b"secret");
    let enrol = async |role| db.enrol(role, &hash, Uuid::new_v4(), &issued(1, 1), "").await;
    assert!(matches!(enrol(Role::Agent).await, Err(ControlError::TokenRefused)));
    db.create_token(Actor::Operator, Role::Agent, &hash, clock::now_s(), None).await.unwrap();
    assert!(matches!(enrol(Role::Agent).await, Err(ControlError::TokenRefused)), "expired");
    let other = blake3::hash(b"other");
    db.create_token(Actor::Operator, Role::Agent, &other, clock::now_s() + 60, None).await.unwrap();
    let refused = db.enrol(Role::Node, &other, Uuid::new_v4(), &issued(1, 1), "").await;
    assert!(matches!(refused, Err(ControlError::TokenRefused)), "wrong role");
    db.enrol(Role::Agent, &other, Uuid::new_v4(), &issued(1, 1), "").await.unwrap();
}

#[tokio::test]
async fn identities_are_known_by_role() {
    let (_dir, db) = empty().await;
    let id = identity(&db, Role::Agent).await;
    db.check_identity(Role::Agent, id).await.unwrap();
    assert!(matches!(
        db.check_identity(Role::Node, id).await,
        Err(ControlError::Unauthenticated { .. })
    ));
    assert!(db.renew(Role::Node, id, &issued(2, 5)).await.is_err());
    db.renew(Role::Agent, id, &issued(2, 5)).await.unwrap();
    let same = db.renew(Role::Agent, id, &issued(2, 5)).await;
    assert!(matches!(same, Err(ControlError::Busy { .. })), "two at one moment: {same:?}");
}

#[tokio::test]
async fn a_policy_comes_with_its_failback_policy() {
    let (_dir, db) = empty().await;
    let default = db.policy("default").await.unwrap();
    assert_eq!(default.mark_interval_ms, 5000);
    let request =
        CreatePolicy { name: "gold".into(), mark_interval_ms: 1000, retention_hours: None };
    let gold = db.create_policy(Actor::Operator, &request).await.unwrap();
    assert_eq!(gold.failback_policy.as_deref(), Some("gold-failback"));
    let update = UpdatePolicy { mark_interval_ms: Some(60_000), retention_hours: None };
    db.update_policy(Actor::Operator, "gold-failback", &update).await.unwrap();
    assert_eq!(db.policy("gold").await.unwrap().mark_interval_ms, 1000);
    assert_eq!(db.policy("gold-failback").await.unwrap().mark_interval_ms, 60_000);
    let again = db.create_policy(Actor::Operator, &request).await;
    assert!(matches!(again, Err(ControlError::AlreadyExists { .. })));
    assert_eq!(db.policies().await.unwrap().len(), 4);
}

#[tokio::test]
async fn names_and_disks_are_taken_once() {
    let site = site().await;
    site.protect("web").await;
    let same_name = CreateMachine { disk: "/other".into(), ..machine("web") };
    let refused = site.db.create_machine(Actor::Operator, &same_name).await;
    assert!(matches!(refused, Err(ControlError::AlreadyExists { .. })));
    let same_disk = CreateMachine { disk: "/disks/web".into(), ..machine("db") };
    let refused = site.db.create_machine(Actor::Operator, &same_disk).await;
    assert!(matches!(refused, Err(ControlError::WrongState { .. })));
    let on_port = |name: &str| CreateMachine {
        nbd_port: Some(57_777),
        capture: Capture::Nbd,
        ..machine(name)
    };
    site.db.create_machine(Actor::Operator, &on_port("served")).await.unwrap();
    let refused = site.db.create_machine(Actor::Operator, &on_port("db")).await.unwrap_err();
    assert!(refused.to_string().contains("`served`"), "{refused}");
    let no_policy = CreateMachine { policy: Some("none".into()), ..machine("db") };
    let refused = site.db.create_machine(Actor::Operator, &no_policy).await;
    assert!(matches!(refused, Err(ControlError::NotFound { what: "policy", .. })));
    assert_eq!(site.db.machines().await.unwrap().len(), 2, "nothing half-done is left");
}

#[tokio::test]
async fn the_agent_is_the_named_the_only_or_the_local_one() {
    let (_dir, db) = empty().await;
    let create = async |name: &str, agent_id| {
        db.create_machine(Actor::Operator, &CreateMachine { agent_id, ..machine(name) }).await
    };
    assert!(matches!(create("a", None).await, Err(ControlError::WrongState { .. })));
    let remote = add_agent(&db, false).await;
    create("a", None).await.unwrap();
    add_agent(&db, false).await;
    assert!(matches!(create("b", None).await, Err(ControlError::Invalid { .. })));
    let local = add_agent(&db, true).await;
    create("b", None).await.unwrap();
    create("c", Some(remote)).await.unwrap();
    let unknown = create("d", Some(Uuid::from_u128(1))).await;
    assert!(matches!(unknown, Err(ControlError::NotFound { what: "agent", .. })));
    assert_eq!(db.machine("a").await.unwrap().agent, remote);
    assert_eq!(db.machine("b").await.unwrap().agent, local);
    assert_eq!(db.machine("c").await.unwrap().agent, remote);
}

#[tokio::test]
async fn placement_raises_the_epoch_and_tells_agent_and_node() {
    let site = site().await;
    let volume = site.protect("web").await;
    assert!(site.db.agent_volumes(site.agent).await.unwrap().is_empty());
    let before = site.db.assignments_version().await.unwrap();
    let placed = site.place().await;
    assert_eq!((placed[0].volume, placed[0].node, placed[0].epoch), (volume, site.node, 1));
    assert!(site.db.assignments_version().await.unwrap() > before);
    assert!(site.place().await.is_empty(), "placed once");
    let agent = &site.db.agent_volumes(site.agent).await.unwrap()[0];
    assert_eq!((agent.epoch, agent.node.id), (1, site.node));
    assert_eq!(agent.node.server_name, format!("{}.node.farshore", site.node));
    let node = &site.db.node_volumes(site.node).await.unwrap()[0];
    assert_eq!((node.epoch, node.parent_epoch, node.agent), (1, None, site.agent));

    let other = add_node(&site.db).await;
    let stale = Move { volume, to: other, from: None };
    assert!(site.db.place(&[stale]).await.unwrap().is_empty(), "decided on an older state");
    let fresh = Move { volume, to: other, from: Some(site.node) };
    assert_eq!(site.db.place(&[fresh]).await.unwrap()[0].epoch, 2);
    assert!(site.db.node_volumes(site.node).await.unwrap().is_empty());
    let moved = &site.db.node_volumes(other).await.unwrap()[0];
    assert_eq!((moved.epoch, moved.parent_epoch), (2, Some(1)));
}

#[tokio::test]
async fn reports_count_for_ones_own_volumes_and_the_newest_epoch() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let stranger = add_agent(&site.db, false).await;
    let report = site.report(volume, 1, VolumeState::Protected);
    let taken = site.db.agent_report(stranger, &report).await.unwrap();
    assert_eq!(taken.ignored_volumes, [volume]);
    let show = async || view(site.db.machine("web").await.unwrap(), clock::now_ms());
    assert_eq!(show().await.state, MachineState::Pending);
    site.db.agent_report(site.agent, &report).await.unwrap();
    let shown = show().await;
    assert_eq!(shown.state, MachineState::Protected);
    assert_eq!(shown.volumes[0].nbd_uri.as_deref(), Some("nbd://localhost"));
    let from_the_future = site.report(volume, 2, VolumeState::Error);
    site.db.agent_report(site.agent, &from_the_future).await.unwrap();
    assert_eq!(show().await.state, MachineState::Protected);
    let mut too_large = site.report(volume, 1, VolumeState::Error);
    too_large.volumes[0].committed_seq = u64::MAX;
    let refused = site.db.agent_report(site.agent, &too_large).await;
    assert!(matches!(refused, Err(ControlError::Invalid { field: "committed_seq", .. })));
}

#[tokio::test]
async fn a_nodes_counters_add_up_over_restarts_and_epochs() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = async |bytes_in| {
        let stats = VolumeStats { bytes_in, unique_bytes: bytes_in / 2, ..VolumeStats::default() };
        let volumes = vec![NodeVolumeReport {
            volume,
            epoch: 1,
            journaled_seq: 1,
            committed_seq: 1,
            stats,
            contested: None,
        }];
        let report = NodeReport { cpu_seconds: 1.5, volumes, ..NodeReport::default() };
        site.db.node_report(site.node, &report).await.unwrap()
    };
    for bytes_in in [100, 200, 200, 50] {
        assert!(report(bytes_in).await.ignored_volumes.is_empty());
    }
    let stats = site.db.machine("web").await.unwrap().volumes[0].stats;
    assert_eq!((stats.bytes_in, stats.unique_bytes), (250, 125));
    assert_eq!(site.db.nodes(|_| NodeLife::Heard).await.unwrap()[0].cpu_seconds, 1.5);
}

/// P31: once when it begins and once when it ends, however often it is reported.
#[tokio::test]
async fn two_agents_that_claim_a_volume_are_one_event() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let said = Some("two agents claim volume v (agent a at x; agent a at y)".to_owned());
    for contested in [None, said.clone(), said.clone(), None, None] {
        let stats = VolumeStats::default();
        let (epoch, journaled_seq, committed_seq) = (1, 1, 1);
        let report =
            NodeVolumeReport { volume, epoch, journaled_seq, committed_seq, contested, stats };
        let report = NodeReport { volumes: vec![report], ..NodeReport::default() };
        site.db.node_report(site.node, &report).await.unwrap();
    }
    let events = site.db.events(None, 100).await.unwrap();
    let of_contest: Vec<_> =
        events.iter().filter(|event| event.action.contains("contested")).collect();
    let actions: Vec<&str> = of_contest.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(actions, ["volume.contested", "volume.uncontested"]);
    assert_eq!(
        (of_contest[0].object.as_str(), Some(&of_contest[0].detail)),
        ("web", said.as_ref())
    );
}

/// D35: a disk that has grown gets an epoch with its size, once, and not while it has no node.
#[tokio::test]
async fn a_disk_that_has_grown_gets_an_epoch_with_its_size() {
    let site = site().await;
    let volume = site.protect("web").await;
    let mut report = site.report(volume, 1, VolumeState::Protected);
    report.volumes[0].grown_to_bytes = Some(8192);
    assert!(!site.db.agent_report(site.agent, &report).await.unwrap().assignments_changed);
    site.place().await;
    let age = async || {
        sqlx::query("UPDATE volumes SET epoch_at_ms = 0").execute(&site.db.writer).await.unwrap();
    };
    let assigned = async || {
        let volumes = site.db.agent_volumes(site.agent).await.unwrap();
        (volumes[0].epoch, volumes[0].size_bytes)
    };
    assert!(
        !site.db.agent_report(site.agent, &report).await.unwrap().assignments_changed,
        "just placed"
    );
    assert_eq!(assigned().await, (1, None));
    age().await;
    assert!(site.db.agent_report(site.agent, &report).await.unwrap().assignments_changed);
    assert_eq!(assigned().await, (2, Some(8192)));
    age().await;
    for bytes in [8192, 5000, u64::MAX, (6 << 40) + 1] {
        report.volumes[0].grown_to_bytes = Some(bytes);
        let taken = site.db.agent_report(site.agent, &report).await.unwrap();
        assert!(!taken.assignments_changed, "{bytes}");
    }
    report.volumes[0].grown_to_bytes = Some(9000);
    assert!(site.db.agent_report(site.agent, &report).await.unwrap().assignments_changed);
    assert_eq!(assigned().await, (3, Some(9000)));
    let events = site.db.events(None, 100).await.unwrap();
    let grown: Vec<_> = events.iter().filter(|event| event.action == "volume.grow").collect();
    assert_eq!(grown.len(), 2);
    assert!(grown[0].detail.contains("grown to 8192 bytes, epoch 2"), "{}", grown[0].detail);
}

/// D34: each difference is one event, whatever is reported of it again, and shown.
#[tokio::test]
async fn a_difference_is_one_event_and_shown() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let last = Some(Difference { offset: 8_192, length: 4_096, time_unix_ms: 7 });
    let told = |bytes, differences| {
        let last = last.filter(|_| differences > 0);
        Some(SampleReport { bytes, rounds: 1, differences, last })
    };
    let all = [None, told(1, 0), told(2, 1), told(2, 1), told(3, 1), told(9, 4), told(1, 2)];
    for samples in all {
        let mut report = site.report(volume, 1, VolumeState::Protected);
        report.volumes[0].samples = samples;
        assert!(
            site.db.agent_report(site.agent, &report).await.unwrap().ignored_volumes.is_empty()
        );
        let machine = site.db.machine("web").await.unwrap();
        let heard = machine.volumes[0].report.as_ref().unwrap();
        assert_eq!(heard.samples, samples);
    }
    let events = site.db.events(None, 100).await.unwrap();
    let told: Vec<_> = events.iter().filter(|event| event.action == "volume.differs").collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for (event, places) in told.iter().zip(["one place", "3 places", "2 places"]) {
        assert_eq!(event.object, "web");
        assert!(event.detail.contains(places), "{}", event.detail);
        assert!(event.detail.contains("at byte 8192 (4096 bytes)"), "{}", event.detail);
        assert!(event.detail.contains(&volume.to_string()), "{}", event.detail);
    }
}

#[tokio::test]
async fn a_node_that_lost_its_logs_gets_a_greater_epoch() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = NodeReport { epochs_wanted: vec![volume], ..NodeReport::default() };
    let epoch = async || site.db.agent_volumes(site.agent).await.unwrap()[0].epoch;
    let taken = site.db.node_report(site.node, &report).await.unwrap();
    assert_eq!((taken.assignments_changed, epoch().await), (false, 1), "it has a fresh one");

    site.let_epochs_age().await;
    let before = site.db.assignments_version().await.unwrap();
    let stranger = add_node(&site.db).await;
    let taken = site.db.node_report(stranger, &report).await.unwrap();
    assert_eq!((taken.ignored_volumes, epoch().await), (vec![volume], 1), "not its volume");
    let taken = site.db.node_report(site.node, &report).await.unwrap();
    assert!(taken.assignments_changed && taken.ignored_volumes.is_empty());
    assert!(site.db.assignments_version().await.unwrap() > before);
    let given = &site.db.node_volumes(site.node).await.unwrap()[0];
    assert_eq!((given.epoch, given.parent_epoch, epoch().await), (2, Some(1), 2));
    let again = site.db.node_report(site.node, &report).await.unwrap();
    assert_eq!((again.assignments_changed, epoch().await), (false, 2), "not so soon again");
    let event = &site.db.events(None, 100).await.unwrap().pop().unwrap();
    assert_eq!((event.action.as_str(), event.object.clone()), ("volume.renew", volume.to_string()));

    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    for event in [Event::Begin, Event::Fenced] {
        site.db.failover_event(Actor::Control, id, event, None).await.unwrap();
    }
    site.let_epochs_age().await;
    let taken = site.db.node_report(site.node, &report).await.unwrap();
    assert_eq!(taken.ignored_volumes, [volume], "fenced");
    assert_eq!(site.db.machine("web").await.unwrap().volumes[0].epoch, 3);
}

#[tokio::test]
async fn points_are_asked_for_committed_once_and_listed_in_order() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let asked = site.db.create_point(Actor::Operator, "web", PointKind::Crash, None).await.unwrap();
    let marks = &site.db.agent_volumes(site.agent).await.unwrap()[0].marks_requested;
    assert_eq!((marks[0].point, marks[0].kind), (asked.point, PointKind::Crash));
    let none = site.db.point("web", PointSelector::Latest).await;
    assert!(matches!(none, Err(ControlError::NotFound { .. })), "requested is not committed");

    let mine = Uuid::now_v7();
    let taken = site.commit_point(volume, mine, 1_000).await;
    assert!(taken.points_changed && !taken.assignments_changed);
    let taken = site.commit_point(volume, asked.point, 2_000).await;
    assert!(taken.points_changed && taken.assignments_changed);
    let again = site.commit_point(volume, asked.point, 9_999).await;
    assert!(!again.points_changed, "told twice");

    assert!(site.db.agent_volumes(site.agent).await.unwrap()[0].marks_requested.is_empty());
    let points = site.db.points("web", None, 10).await.unwrap();
    let ids: Vec<Uuid> = points.iter().map(|point| point.point).collect();
    assert_eq!(ids, [mine, asked.point]);
    assert_eq!(points[1].time_unix_ms, 2_000, "what is committed does not change");
    assert_eq!((points[0].volumes[0].volume, points[0].volumes[0].seq), (volume, 7));
    assert_eq!(points[0].volumes[0].unknown_blocks, 3);
    let before = Some(PointSelector::Id(asked.point));
    let older = site.db.points("web", before, 10).await.unwrap();
    assert_eq!(older.len(), 1);
    let latest = site.db.point("web", PointSelector::Latest).await.unwrap();
    assert_eq!((latest.point, latest.state), (asked.point, PointState::Committed));
}

#[tokio::test]
async fn an_agent_cannot_touch_anothers_points() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let point = Uuid::now_v7();
    site.commit_point(volume, point, 1_000).await;
    let stranger = add_agent(&site.db, false).await;
    let request = CreateMachine { agent_id: Some(stranger), ..machine("evil") };
    site.db.create_machine(Actor::Operator, &request).await.unwrap();
    let theirs = site.db.machine("evil").await.unwrap().volumes[0].id;
    let report = PointReport {
        point,
        volume: theirs,
        epoch: 1,
        seq: 1,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms: 5_000,
    };
    let report = AgentReport { points: vec![report], ..AgentReport::default() };
    assert!(!site.db.agent_report(stranger, &report).await.unwrap().points_changed);
    let kept = site.db.point("web", PointSelector::Id(point)).await.unwrap();
    assert_eq!((kept.time_unix_ms, kept.volumes.len()), (1_000, 1));
}

/// C1: one agent's clock must not keep the points of others out of the catalogue.
#[tokio::test]
async fn a_point_of_an_absurd_time_does_not_spoil_the_report_that_holds_it() {
    let site = site().await;
    let (volume, other) = (site.protect("web").await, site.protect("db").await);
    site.place().await;
    let point = |volume, time_unix_ms| PointReport {
        point: Uuid::now_v7(),
        volume,
        epoch: 1,
        seq: 1,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms,
    };
    let report = AgentReport {
        points: vec![point(volume, u64::MAX), point(other, 1_000)],
        ..AgentReport::default()
    };
    assert!(site.db.agent_report(site.agent, &report).await.unwrap().points_changed);
    let absurd = site.db.points("web", None, 10).await.unwrap();
    assert_eq!(absurd[0].time_unix_ms, 253_402_300_799_000, "the end of the year 9999");
    assert_eq!(site.db.points("db", None, 10).await.unwrap().len(), 1);
}

/// P11: the agent ends a disk on a word only, so the word is kept until the agent has heard it.
#[tokio::test]
async fn an_unprotected_volume_is_named_until_its_agent_says_that_it_ended() {
    let site = site().await;
    let volume = site.protect("web").await;
    let other = site.protect("db").await;
    site.place().await;
    let ended = async || site.db.agent_ended(site.agent).await.unwrap();
    assert_eq!(ended().await, (vec![], vec![]));
    site.db.delete_machine(Actor::Operator, "web", None).await.unwrap();
    assert_eq!(ended().await, (vec![volume], vec![]));
    let stranger = add_agent(&site.db, false).await;
    let report = AgentReport { detached: vec![volume, other], ..AgentReport::default() };
    site.db.agent_report(stranger, &report).await.unwrap();
    assert_eq!(ended().await, (vec![volume], vec![]), "another agent's word");
    site.db.agent_report(site.agent, &AgentReport::default()).await.unwrap();
    assert_eq!(ended().await, (vec![volume], vec![]), "it has not said so");
    site.db.agent_report(site.agent, &report).await.unwrap();
    assert_eq!(ended().await, (vec![], vec![]));
}

#[tokio::test]
async fn points_past_retention_go_but_the_newest_stays() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    for time in [1_000, 2_000, 3_000] {
        site.commit_point(volume, Uuid::now_v7(), time).await;
    }
    site.let_points_be_heard_at_their_times().await;
    site.db.prune(clock::now_ms()).await.unwrap();
    let left = site.db.points("web", None, 10).await.unwrap();
    assert_eq!(left.iter().map(|point| point.time_unix_ms).collect::<Vec<_>>(), [3_000]);
}

/// C4: one mark was set while the agent's clock was two hours ahead; then it was set right.
#[tokio::test]
async fn a_point_of_a_clock_that_was_ahead_is_not_the_latest_behind_a_later_one() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let now = clock::now_ms();
    let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    for (id, time) in ids.into_iter().zip([now - 9_000, now + 7_200_000, now]) {
        site.commit_point(volume, id, time).await;
    }
    let latest = site.db.point("web", PointSelector::Latest).await.unwrap();
    assert_eq!((latest.point, latest.clock_off_ms), (ids[2], None));
    let shown = site.db.machine("web").await.unwrap().last_point.unwrap();
    assert_eq!(shown.point, ids[2]);
    let points = site.db.points("web", None, 10).await.unwrap();
    assert_eq!(points.iter().map(|point| point.point).collect::<Vec<_>>(), ids);
    let off = points[1].clock_off_ms.unwrap();
    assert!((7_190_000..=7_200_000).contains(&off), "told: {off}");
    let at: Vec<u64> = points.iter().map(|point| point.at_unix_ms.unwrap()).collect();
    assert!(at.is_sorted() && at[2] <= points[2].heard_unix_ms.unwrap(), "{at:?}");
    let before = Some(PointSelector::Id(ids[2]));
    let older = site.db.points("web", before, 1).await.unwrap();
    assert_eq!(older[0].point, ids[1], "pages go by rank");
    let by_time = PointSelector::NotAfter(now + 60_000);
    assert_eq!(site.db.point("web", by_time).await.unwrap().point, ids[2]);
    let by_time = PointSelector::Ago(5_000);
    assert_eq!(site.db.point("web", by_time).await.unwrap().point, ids[0]);

    let drill = failover(FailoverKind::Drill, PointSelector::Latest);
    let drill = site.db.create_failover(Actor::Operator, "web", &drill).await.unwrap();
    assert_eq!(site.db.failover(drill).await.unwrap().shown.point, Some(ids[2]));
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    for event in [Event::Begin, Event::Fenced] {
        site.db.failover_event(Actor::Control, id, event, None).await.unwrap();
    }
    assert_eq!(site.db.failover(id).await.unwrap().shown.point, Some(ids[2]));

    site.db.prune(now + 365 * 86_400_000).await.unwrap();
    let left = site.db.points("web", None, 10).await.unwrap();
    assert_eq!(left.len(), 1, "a time that is absurd keeps no point");
    assert_eq!(left[0].point, ids[2], "the newest stays");
}

/// C4: an agent says how its clock stands; its points show it, and are found by the right time.
#[tokio::test]
async fn an_agents_clock_that_is_behind_shows_beside_its_points() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let now = clock::now_ms();
    let behind = AgentReport { clock_unix_ms: Some(now - 3_600_000), ..AgentReport::default() };
    site.db.agent_report(site.agent, &behind).await.unwrap();
    let report = NodeReport {
        points: vec![PointReport {
            point: Uuid::now_v7(),
            volume,
            epoch: 1,
            seq: 3,
            kind: PointKind::Crash,
            unknown_blocks: 0,
            time_unix_ms: now - 3_601_000,
        }],
        ..NodeReport::default()
    };
    site.db.node_report(site.node, &report).await.unwrap();
    let point = site.db.point("web", PointSelector::Latest).await.unwrap();
    let off = point.clock_off_ms.unwrap();
    assert!((-3_601_000..=-3_590_000).contains(&off), "told: {off}");
    assert!(point.at_unix_ms.unwrap() >= now - 10_000);
    let early = PointSelector::NotAfter(now - 1_800_000);
    assert!(matches!(site.db.point("web", early).await, Err(ControlError::NotFound { .. })));
}

#[tokio::test]
async fn points_are_found_by_the_first_digits_of_their_ids() {
    let site = site().await;
    let volume = site.protect("web").await;
    let other = site.protect("db").await;
    site.place().await;
    let ids = [0x1111_2222_u128 << 96, 0x1111_3333_u128 << 96].map(Uuid::from_u128);
    for id in ids {
        site.commit_point(volume, id, 1_000).await;
    }
    site.commit_point(other, Uuid::from_u128(0x1111_2222_4444 << 80), 1_000).await;
    let find = async |text: &str| site.db.point("web", text.parse().unwrap()).await;
    assert_eq!(find("11112").await.unwrap().point, ids[0]);
    assert_eq!(find("11113333-0").await.unwrap().point, ids[1]);
    let Err(ControlError::Invalid { why, .. }) = find("1111").await else { panic!("two match") };
    assert!(ids.iter().all(|id| why.contains(&id.to_string())), "{why}");
    assert!(matches!(find("2222").await, Err(ControlError::NotFound { .. })));
    let drill = failover(FailoverKind::Drill, "11113".parse().unwrap());
    let drill = site.db.create_failover(Actor::Operator, "web", &drill).await.unwrap();
    assert_eq!(site.db.failover(drill).await.unwrap().shown.point, Some(ids[1]));
}

#[tokio::test]
async fn an_unplanned_failover_fences_and_a_clean_up_gives_back() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    let early = site.db.create_failover(Actor::Operator, "web", &spec).await;
    assert!(matches!(early, Err(ControlError::NotFound { .. })), "no point yet");
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let second = site.db.create_failover(Actor::Operator, "web", &spec).await;
    assert!(matches!(second, Err(ControlError::WrongState { .. })), "one at a time");
    let apply =
        async |event| site.db.failover_event(Actor::Control, id, event, None).await.unwrap();
    assert_eq!(apply(Event::Begin).await, FailoverState::Fencing);
    let newest = Uuid::now_v7();
    site.commit_point(volume, newest, 2_000).await;
    assert_eq!(apply(Event::Fenced).await, FailoverState::Exporting);
    assert_eq!(apply(Event::Fenced).await, FailoverState::Exporting, "once only");
    let row = site.db.failover(id).await.unwrap();
    assert_eq!(row.shown.point, Some(newest), "chosen after the fence");
    assert!(site.db.agent_volumes(site.agent).await.unwrap().is_empty());
    assert!(site.db.node_volumes(site.node).await.unwrap().is_empty());
    assert!(site.place().await.is_empty(), "fenced volumes are not placed");
    let facts = site.db.machine("web").await.unwrap();
    assert_eq!(facts.volumes[0].epoch, 2);
    assert_eq!(view(facts, clock::now_ms()).state, MachineState::FailedOver);
    let refused = site.db.create_point(Actor::Operator, "web", PointKind::Crash, None).await;
    assert!(matches!(refused, Err(ControlError::WrongState { .. })));
    let refused = site.db.delete_machine(Actor::Operator, "web", None).await;
    assert!(matches!(refused, Err(ControlError::WrongState { .. })));

    apply(Event::CleanUp { force: false }).await;
    assert_eq!(apply(Event::Cleared).await, FailoverState::CleanedUp);
    assert_eq!(site.place().await[0].epoch, 3);
    let node = &site.db.node_volumes(site.node).await.unwrap()[0];
    assert_eq!(node.parent_epoch, Some(1), "the last epoch that a node was given");
    let steps = site.db.failover(id).await.unwrap().shown.steps;
    let states: Vec<&str> = steps.iter().map(|step| step.state.as_str()).collect();
    assert_eq!(states, ["requested", "fencing", "exporting", "cleaning_up", "cleaned_up"]);
    // Whoever knows it by its id does not hit another of its name.
    let other = site.db.delete_machine(Actor::Operator, "web", Some(Uuid::from_u128(1))).await;
    assert!(matches!(other, Err(ControlError::WrongState { .. })), "{other:?}");
    let id = site.db.machine("web").await.unwrap().id;
    site.db.delete_machine(Actor::Operator, "web", Some(id)).await.unwrap();
    assert!(matches!(site.db.machine("web").await, Err(ControlError::NotFound { .. })));
}

/// C8: the catalogue is put back from an older copy; the vault holds newer epochs.
#[tokio::test]
async fn epochs_are_raised_above_those_that_a_node_finds_in_the_vault() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = async |node, epoch| {
        let epochs_seen = vec![EpochSeen { volume, epoch }];
        let report = NodeReport { epochs_seen, ..NodeReport::default() };
        site.db.node_report(node, &report).await.unwrap()
    };
    let stranger = add_node(&site.db).await;
    assert_eq!(report(stranger, 40).await.ignored_volumes, [volume], "not its volume");
    assert!(report(site.node, 40).await.assignments_changed, "though its epoch is a fresh one");
    let given = &site.db.node_volumes(site.node).await.unwrap()[0];
    assert_eq!((given.epoch, given.parent_epoch), (41, Some(40)));
    assert_eq!(site.db.agent_volumes(site.agent).await.unwrap()[0].epoch, 41);
    assert!(!report(site.node, 40).await.assignments_changed, "it is above that");
    let event = &site.db.events(None, 100).await.unwrap().pop().unwrap();
    assert_eq!((event.action.as_str(), event.object.clone()), ("volume.raise", volume.to_string()));
}

/// C9: the catalogue ends where the control plane last heard, the vault where the stream does.
#[tokio::test]
async fn a_failover_takes_the_newest_point_of_the_vault() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let known = Uuid::now_v7();
    site.commit_point(volume, known, 1_000).await;
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let apply =
        async |event| site.db.failover_event(Actor::Control, id, event, None).await.unwrap();
    apply(Event::Begin).await;
    let machine = site.db.failover(id).await.unwrap().machine;
    let epoch = site.db.fence_machine(machine).await.unwrap();
    assert_eq!(epoch, site.db.fence_machine(machine).await.unwrap(), "fenced once");
    assert_eq!(site.db.raise_fence(volume, 40).await.unwrap(), 41);
    let point = PointReport {
        point: Uuid::now_v7(),
        volume,
        epoch: 1,
        seq: 99,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms: 2_000,
    };
    let cut = Cut { volume, fence: Some((41, 100)), point: Some(point) };
    let taken = site.db.note_cut(id, machine, &cut, true).await.unwrap();
    assert_eq!(taken, (true, Some(known)));
    // Somebody tells of a point that the vault does not hold.
    site.seq.store(200, Ordering::Relaxed);
    site.commit_point(volume, Uuid::now_v7(), 3_000).await;
    apply(Event::Fenced).await;
    assert_eq!(site.db.failover(id).await.unwrap().shown.point, Some(point.point));
    assert_eq!(site.db.machine("web").await.unwrap().volumes[0].epoch, 41, "fenced once");
}

/// C7: the clock of the control plane is set forward by a year, and back.
#[tokio::test]
async fn no_point_goes_because_the_clock_jumped() {
    const DAY: u64 = 86_400_000;
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    for _ in 0..3 {
        site.commit_point(volume, Uuid::now_v7(), clock::now_ms()).await;
    }
    let retention_ms = site.db.longest_retention_ms().await.unwrap();
    assert_eq!(retention_ms, DAY);
    let now = clock::now_ms();
    let prune = async |wall_ms, up_ms| {
        let look = Look { wall_ms, boot: "a", host: "h", up_ms, retention_ms };
        let time_ms = site.db.look_at_clocks(&look).await.unwrap();
        site.db.prune(time_ms).await.unwrap();
        site.db.points("web", None, 10).await.unwrap().len()
    };
    assert_eq!(prune(now, 1_000).await, 3);
    assert_eq!(prune(now + 365 * DAY, 61_000).await, 3, "no year has passed");
    let clock_kept = site.db.retention_clock().await.unwrap().unwrap();
    assert!(clock_kept.is_in_doubt());
    let event = site.db.events(None, 100).await.unwrap().pop().unwrap();
    assert_eq!(event.action, "retention.doubt");
    assert_eq!(prune(now + 120_000, 121_000).await, 3, "it was set right");
    assert_eq!(prune(now + 2 * DAY, 2 * DAY + 1_000).await, 1, "two days have passed");

    site.commit_point(volume, Uuid::now_v7(), clock::now_ms()).await;
    let heard = sqlx::query("UPDATE points SET heard_ms = ?");
    heard.bind(super::record::own(now + 2 * DAY)).execute(&site.db.writer).await.unwrap();
    assert_eq!(prune(now + 365 * DAY, 2 * DAY + 2_000).await, 2);
    let look = Look {
        wall_ms: now + 365 * DAY,
        boot: "a",
        host: "h",
        up_ms: 2 * DAY + 3_000,
        retention_ms,
    };
    let in_doubt = async |time_ms| site.db.points_to_prune(time_ms).await.unwrap();
    assert_eq!(in_doubt(look.wall_ms).await, 1, "what believing it would drop");
    assert_eq!(in_doubt(clock_kept.time_ms).await, 0);
    site.db.believe_clock(Actor::Operator, &look).await.unwrap();
    assert_eq!(prune(now + 365 * DAY, 2 * DAY + 4_000).await, 1, "a person said so");
}

/// C7: more points than one step drops, and counters of more epochs than are kept apart.
#[tokio::test]
async fn pruning_keeps_up_and_counters_are_added_up() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let many = sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000)
         INSERT INTO points (id, machine, kind, time_ms, heard_ms, at_ms, rank, state, asked)
         SELECT printf('%08x-0000-7000-8000-000000000000', i), machines.id, 'crash', 1, i, 1, i,
            'committed', 0 FROM n, machines",
    );
    many.execute(&site.db.writer).await.unwrap();
    site.db.prune(clock::now_ms()).await.unwrap();
    let left = site.db.points("web", None, 10).await.unwrap();
    assert_eq!(left.iter().map(|point| point.rank).collect::<Vec<_>>(), [Some(25_000)]);

    let stats = sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
         INSERT INTO volume_stats SELECT ?, i, 0, i, 1, 1, 1, 1 FROM n",
    );
    stats.bind(volume.to_string()).execute(&site.db.writer).await.unwrap();
    for _ in 0..2 {
        site.db.prune(clock::now_ms()).await.unwrap();
        let facts = site.db.machine("web").await.unwrap();
        assert_eq!(facts.volumes[0].stats.bytes_in, 50 * 51 / 2, "the sum stays");
        assert_eq!(facts.volumes[0].stats.stored_bytes, 50);
        let rows = sqlx::query("SELECT 1 FROM volume_stats").fetch_all(&site.db.readers).await;
        assert_eq!(rows.unwrap().len(), 9);
    }
}

/// N8: an answer is lost, and what was asked for is asked for again.
#[tokio::test]
async fn what_is_asked_for_again_under_its_id_is_done_once() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.protect("db").await;
    site.place().await;
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let id = Some(Uuid::now_v7());
    let ask = async |machine, id| {
        site.db.create_point(Actor::Operator, machine, PointKind::Crash, id).await
    };
    let asked = ask("web", id).await.unwrap();
    assert_eq!(Some(asked.point), id);
    assert_eq!(ask("web", id).await.unwrap(), asked);
    site.commit_point(volume, asked.point, 2_000).await;
    assert_eq!(ask("web", id).await.unwrap().state, PointState::Committed, "as it stands");
    let stolen = ask("db", id).await;
    assert!(matches!(stolen, Err(ControlError::AlreadyExists { .. })), "{stolen:?}");

    let spec = CreateFailover {
        id: Some(Uuid::now_v7()),
        ..failover(FailoverKind::Drill, PointSelector::Latest)
    };
    let first = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let again = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    assert_eq!((Some(first), first), (spec.id, again));
    assert_eq!(site.db.failovers(10).await.unwrap().len(), 1);
    let other = CreateFailover { serve_only: !spec.serve_only, ..spec };
    let refused = site.db.create_failover(Actor::Operator, "web", &other).await;
    assert!(matches!(refused, Err(ControlError::AlreadyExists { .. })), "{refused:?}");
}

/// C6: another node would have to seal its log, though it lives.
#[tokio::test]
async fn a_volume_goes_back_to_its_node_after_a_failover_that_is_not_kept() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.protect("db").await;
    site.place().await;
    add_node(&site.db).await;
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let clean_up = Event::CleanUp { force: false };
    for event in [Event::Begin, Event::Fenced, clean_up, Event::Cleared] {
        site.db.failover_event(Actor::Control, id, event, None).await.unwrap();
    }
    let placed = site.place().await;
    assert_eq!((placed[0].volume, placed[0].node), (volume, site.node), "though it has more");
    assert_eq!(site.db.volume_sites().await.unwrap()[0].last_node, None);
}

/// C5: what an agent gets done under its node says that the node lives.
#[tokio::test]
async fn what_an_agent_tells_is_of_the_node_that_its_volume_is_assigned_to() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = async |epoch, journaled_seq| {
        let mut report = site.report(volume, epoch, VolumeState::Protected);
        report.volumes[0].journaled_seq = journaled_seq;
        let taken = site.db.agent_report(site.agent, &report).await.unwrap();
        taken.told.into_iter().next().map(|told| told.node)
    };
    assert_eq!(report(1, 10).await, Some(site.node));
    assert_eq!(report(2, 12).await, None, "nobody was given that epoch");
    let other = add_node(&site.db).await;
    let away = Move { volume, to: other, from: Some(site.node) };
    site.db.place(&[away]).await.unwrap();
    assert_eq!(report(1, 13).await, None, "under the node before");
    assert_eq!(report(2, 14).await, Some(other));
}

#[tokio::test]
async fn a_drill_leaves_replication_alone() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let point = Uuid::now_v7();
    site.commit_point(volume, point, 1_000).await;
    let unknown = failover(FailoverKind::Drill, PointSelector::Id(Uuid::now_v7()));
    let refused = site.db.create_failover(Actor::Operator, "web", &unknown).await;
    assert!(matches!(refused, Err(ControlError::NotFound { .. })));
    let spec = failover(FailoverKind::Drill, PointSelector::Id(point));
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let apply = async |event| site.db.failover_event(Actor::Control, id, event, None).await;
    apply(Event::Begin).await.unwrap();
    apply(Event::Exported).await.unwrap();
    assert!(matches!(apply(Event::Commit).await, Err(ControlError::WrongState { .. })));
    apply(Event::CleanUp { force: false }).await.unwrap();
    apply(Event::Cleared).await.unwrap();
    let facts = site.db.machine("web").await.unwrap();
    assert_eq!((facts.volumes[0].epoch, facts.failed_over), (1, false));
    assert!(site.db.failovers_to_drive().await.unwrap().is_empty());
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("control.db");
    let db = Db::open(&file).await.unwrap();
    add_agent(&db, true).await;
    db.create_machine(Actor::Operator, &machine("web")).await.unwrap();
    db.set_operator_token(&blake3::hash(b"t")).await.unwrap();
    let version = db.assignments_version().await.unwrap();
    db.close().await;

    let db = Db::open(&file).await.unwrap();
    assert_eq!(db.assignments_version().await.unwrap(), version);
    assert_eq!(db.machines().await.unwrap()[0].name, "web");
    assert_eq!(db.operator_token().await.unwrap(), blake3::hash(b"t"));
    let actions: Vec<String> =
        db.events(None, 100).await.unwrap().into_iter().map(|event| event.action).collect();
    assert_eq!(actions, ["token.create", "identity.enrol", "agent.register", "machine.protect"]);
}

#[tokio::test]
async fn a_site_is_failed_over_whole_and_what_is_kept_does_not_count() {
    let site = site().await;
    let spec = failover(FailoverKind::Unplanned, PointSelector::Latest);
    for number in 0..100 {
        let name = format!("web-{number}");
        let volume = site.protect(&name).await;
        site.place().await;
        site.commit_point(volume, Uuid::now_v7(), 1_000).await;
        site.db.create_failover(Actor::Operator, &name, &spec).await.unwrap();
    }
    // As many as there may be: commits and failures make room.
    let volume = site.protect("last").await;
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    sqlx::query(
        "WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < 3996)
         INSERT INTO failovers (id, machine, machine_name, volume, kind, spec, state, created_at_ms)
         SELECT 'x' || n, machine, machine_name, volume, kind, spec, 'running', 1
         FROM more, (SELECT * FROM failovers LIMIT 1)",
    )
    .execute(&site.db.writer)
    .await
    .unwrap();
    let refused = site.db.create_failover(Actor::Operator, "last", &spec).await.unwrap_err();
    assert!(refused.to_string().contains("4096 failovers are under way"), "{refused}");
    for state in ["committed = 1", "committed = 0, state = 'failed'"] {
        let sql = format!("UPDATE failovers SET {state} WHERE id LIKE 'x%'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&site.db.writer).await.unwrap();
        assert!(site.db.check_failover("last", &spec).await.is_ok(), "{state}");
    }
    site.db.create_failover(Actor::Operator, "last", &spec).await.unwrap();
}

#[tokio::test]
async fn a_retry_is_seen_by_who_waits_and_forgets_the_failure() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let spec = failover(FailoverKind::Drill, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let apply =
        async |event| site.db.failover_event(Actor::Operator, id, event, Some("gone")).await;
    apply(Event::Broken).await.unwrap();
    assert_eq!(site.db.failover(id).await.unwrap().shown.error.as_deref(), Some("gone"));
    assert_eq!(apply(Event::Retry).await.unwrap(), FailoverState::Requested);
    assert_eq!(site.db.failover(id).await.unwrap().shown.error, None);
    for event in [Event::Begin, Event::Exported, Event::Lost] {
        apply(event).await.unwrap();
    }
    let before = site.db.failover_state(id).await.unwrap();
    assert_eq!(apply(Event::Retry).await.unwrap(), FailoverState::Recovering);
    assert_eq!(site.db.failover_state(id).await.unwrap(), (before.0, before.1 + 1));
    site.db.set_machine_down(id, "it has shut down").await.unwrap();
    let row = site.db.failover(id).await.unwrap();
    assert!(row.shown.machine_is_down && !row.domain().wants_machine(), "{row:?}");
}

#[tokio::test]
async fn processes_are_noted_and_forgotten() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.commit_point(volume, Uuid::now_v7(), 1_000).await;
    let spec = failover(FailoverKind::Drill, PointSelector::Latest);
    let id = site.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
    let process = Process { pid: 77, started: 123_456, boot: Uuid::from_u128(9) };
    site.db.set_failover_process(id, ProcessRole::Export, Some(process)).await.unwrap();
    site.db.set_failover_facts(id, Some("nbd://x"), None, Some("d")).await.unwrap();
    let row = site.db.failover(id).await.unwrap();
    assert_eq!((row.export, row.shown.export_pid), (Some(process), Some(77)));
    assert_eq!(row.shown.nbd_uri.as_deref(), Some("nbd://x"));
    site.db.set_failover_process(id, ProcessRole::Export, None).await.unwrap();
    assert_eq!(site.db.failover(id).await.unwrap().export, None);
}

#[tokio::test]
async fn an_identity_enrols_again_under_its_id_and_only_with_its_own_token() {
    let site = site().await;
    let db = &site.db;
    let soon = clock::now_s() + 60;
    let again = blake3::hash(b"again");
    let stranger = db
        .create_token(Actor::Operator, Role::Agent, &again, soon, Some(Uuid::from_u128(99)))
        .await;
    assert!(matches!(stranger, Err(ControlError::NotFound { .. })), "{stranger:?}");
    let other_role =
        db.create_token(Actor::Operator, Role::Node, &again, soon, Some(site.agent)).await;
    assert!(matches!(other_role, Err(ControlError::NotFound { .. })), "{other_role:?}");
    db.create_token(Actor::Operator, Role::Agent, &again, soon, Some(site.agent)).await.unwrap();
    assert_eq!(db.token_identity(&again).await.unwrap(), Some(site.agent));
    let as_another = db.enrol(Role::Agent, &again, Uuid::new_v4(), &issued(2, soon), "").await;
    assert!(matches!(as_another, Err(ControlError::TokenRefused)), "{as_another:?}");
    db.enrol(Role::Agent, &again, site.agent, &issued(2, soon + 5), "").await.unwrap();
    let twice = db.enrol(Role::Agent, &again, site.agent, &issued(3, soon + 9), "").await;
    assert!(matches!(twice, Err(ControlError::TokenRefused)), "single use");
    // Its answer was lost: the same key is told it again, and nobody else, while the certificate counts.
    let (lost, first) = (blake3::hash(b"lost"), issued(4, soon + 9));
    db.create_token(Actor::Operator, Role::Agent, &lost, soon, Some(site.agent)).await.unwrap();
    let enrolled = db.enrol(Role::Agent, &lost, site.agent, &first, "first").await;
    assert_eq!(enrolled.unwrap(), Enrolled::Again);
    let again = Issued { serial: issued(5, soon).serial, ..first };
    for _ in 0..2 {
        let told = db.enrol(Role::Agent, &lost, site.agent, &again, "second").await.unwrap();
        assert_eq!(told, Enrolled::Before("first".into()));
    }
    for role in [Role::Agent, Role::Node] {
        let key = if role == Role::Agent { blake3::hash(b"another key") } else { first.key };
        let stolen = Issued { key, ..again };
        let refused = db.enrol(role, &lost, site.agent, &stolen, "").await;
        assert!(matches!(refused, Err(ControlError::TokenRefused)), "{refused:?}");
    }
    sqlx::query("UPDATE enrolment_tokens SET expires_at_s = 1").execute(&db.writer).await.unwrap();
    let late = db.enrol(Role::Agent, &lost, site.agent, &again, "").await;
    assert!(matches!(late, Err(ControlError::TokenRefused)), "{late:?}");
    sqlx::query("UPDATE enrolment_tokens SET expires_at_s = 9999999999")
        .execute(&db.writer)
        .await
        .unwrap();
    db.revoke(Actor::Operator, Role::Agent, site.agent).await.unwrap();
    let revoked = db.enrol(Role::Agent, &lost, site.agent, &again, "").await;
    assert!(matches!(revoked, Err(ControlError::TokenRefused)), "{revoked:?}");
    // A token for a new identity cannot take one over.
    let fresh = blake3::hash(b"fresh");
    db.create_token(Actor::Operator, Role::Agent, &fresh, soon, None).await.unwrap();
    assert_eq!(db.token_identity(&fresh).await.unwrap(), None);
}

/// D14: one disk under two machines, also a partition and its disk; two partitions are two disks.
#[tokio::test]
async fn one_disk_of_two_machines_is_told_at_both() {
    let site = site().await;
    let (first, second) = (site.protect("first").await, site.protect("second").await);
    site.place().await;
    let say = async |volume: Uuid, key: &str| {
        let mut report = site.report(volume, 1, VolumeState::Protected);
        let text = "the disk of wwid naa.1".to_owned();
        report.volumes[0].identity = Some(DiskIdentity { key: key.to_owned(), text });
        site.db.agent_report(site.agent, &report).await.unwrap();
    };
    let look = async |name: &str| view(site.db.machine(name).await.unwrap(), clock::now_ms());
    for (one, two) in [("wwid naa.1", "wwid naa.1"), ("wwid naa.1#2048", "wwid naa.1")] {
        say(first, one).await;
        say(second, two).await;
        let (older, younger) = (look("first").await, look("second").await);
        assert_eq!(older.state, MachineState::Degraded, "{older:?}");
        assert!(older.state_detail.contains("`second`"), "{older:?}");
        assert_eq!(younger.state, MachineState::Error, "{younger:?}");
        assert!(younger.state_detail.contains("`first`"), "{younger:?}");
        assert_eq!(younger.volumes[0].identity.as_deref(), Some("the disk of wwid naa.1"));
    }
    say(second, "wwid naa.1#4096").await;
    assert_eq!(look("first").await.state, MachineState::Protected, "two partitions");
    say(second, "").await;
    say(first, "").await;
    assert_eq!(look("first").await.state, MachineState::Protected, "nothing is known");
}

/// P10: what an agent said before the start of the control plane says nothing.
#[tokio::test]
async fn a_word_of_before_the_start_is_not_shown_as_the_state() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = site.report(volume, 1, VolumeState::Protected);
    site.db.agent_report(site.agent, &report).await.unwrap();
    let look = async || view(site.db.machine("web").await.unwrap(), clock::now_ms());
    assert_eq!(look().await.state, MachineState::Protected);
    site.db.begin_to_listen().await.unwrap();
    let shown = look().await;
    assert_eq!(shown.state, MachineState::Degraded);
    assert!(shown.state_detail.contains("was not heard since"), "{shown:?}");
    assert_eq!(shown.volumes[0].nbd_uri, None, "nobody knows whether it is served");
    site.db.agent_report(site.agent, &report).await.unwrap();
    assert_eq!(look().await.state, MachineState::Protected);
}

#[tokio::test]
async fn the_audit_log_is_only_added_to() {
    let site = site().await;
    site.protect("web").await;
    let before = site.db.audit(None, 100).await.unwrap();
    assert!(before.len() >= 3, "{before:?}");
    for sql in [
        "UPDATE audit SET detail = 'x'",
        "UPDATE audit SET at_ms = 0 WHERE id = 1",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)",
        "INSERT OR REPLACE INTO audit SELECT id, 0, actor, action, object, detail, prev_hash, hash
            FROM audit WHERE id = 1",
        "INSERT INTO audit SELECT id + 10, 0, actor, action, object, detail, prev_hash, hash
            FROM audit WHERE id = 1",
    ] {
        let refused = sqlx::query(sql).execute(&site.db.writer).await.unwrap_err();
        assert!(refused.to_string().contains("the audit log"), "{sql}: {refused}");
    }
    site.db.prune(u64::MAX / 2).await.unwrap();
    assert_eq!(site.db.audit(None, 100).await.unwrap(), before);
    let newest = site.db.audit(None, 1).await.unwrap();
    assert_eq!(newest[0], before[before.len() - 1]);
}

#[tokio::test]
async fn events_of_one_agent_do_not_push_out_what_others_did() {
    let site = site().await;
    for n in 0..700_u32 {
        let request =
            RegisterAgent { hostname: format!("h{n}"), version: "0".into(), local: false };
        site.db.register_agent(site.agent, &request).await.unwrap();
    }
    site.db.prune(clock::now_ms()).await.unwrap();
    let events = site.db.events(None, 10_000).await.unwrap();
    let own = format!("agent/{}", site.agent);
    let of_agent = events.iter().filter(|event| event.actor == own).count();
    assert_eq!(of_agent, 500);
    assert!(events.iter().any(|event| event.action == "token.create"), "the operator's are kept");
    // The same again is no event.
    let last = RegisterAgent { hostname: "h699".into(), version: "0".into(), local: false };
    site.db.register_agent(site.agent, &last).await.unwrap();
    assert_eq!(site.db.events(None, 10_000).await.unwrap().len(), events.len());
}

/// T3: one agent cannot fill the catalogue, nor keep others' points away.
#[tokio::test]
async fn a_flood_of_points_of_one_machine_is_not_taken_and_told_once() {
    let site = site().await;
    let Site { db, agent, .. } = &site;
    let (greedy, other) = (site.protect("web").await, site.protect("db").await);
    while db.rows.take(greedy, Asked::MachinePoint).is_ok() {}
    let point = |volume, seq| PointReport {
        point: Uuid::now_v7(),
        volume,
        epoch: 1,
        seq,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms: 1,
    };
    let flood = || (20..1_000).map(|seq| point(greedy, seq));
    for _ in 0..2 {
        let points = flood().chain([point(other, 5)]).collect();
        let report = AgentReport { points, ..AgentReport::default() };
        let taken = db.agent_report(*agent, &report).await.unwrap();
        assert_eq!((taken.ignored_volumes, taken.points_changed), (vec![greedy], true));
    }
    // Some may have been let in while this ran: two a second.
    assert!(db.points("web", None, 1_000).await.unwrap().len() < 900);
    assert_eq!(db.points("db", None, 10).await.unwrap().len(), 2);
    let told = db.events(None, 1_000).await.unwrap();
    let told = told.iter().filter(|event| event.action == "points.refused").count();
    assert_eq!(told, 1);
}

/// T3: what an agent says of a volume is read by people, and by their terminals.
#[tokio::test]
async fn what_agents_say_of_volumes_steers_no_terminal() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let mut report = site.report(volume, 1, VolumeState::Error);
    let hostile = "x\u{1b}[2K\u{9b}1A\r\n\u{202e}y";
    let said = &mut report.volumes[0];
    said.nbd_uri = Some(hostile.into());
    said.error = Some(hostile.into());
    said.detail = hostile.into();
    let identity = DiskIdentity { key: hostile.into(), text: hostile.into() };
    said.identity = Some(identity);
    site.db.agent_report(site.agent, &report).await.unwrap();
    let facts = site.db.machine("web").await.unwrap();
    let heard = facts.volumes[0].report.clone().unwrap();
    for text in [heard.nbd_uri.unwrap(), heard.error.unwrap(), heard.detail, heard.identity] {
        assert!(is_printable(&text) && text.starts_with('x'), "{text:?}");
    }
}

/// H30: what a newer version wrote is shown as unknown, and spoils no list.
#[tokio::test]
async fn a_value_of_a_newer_version_spoils_no_list_and_is_not_acted_on() {
    let site = site().await;
    let Site { db, agent, .. } = &site;
    let volume = site.protect("web").await;
    site.place().await;
    let report = site.report(volume, 1, VolumeState::Protected);
    db.agent_report(*agent, &report).await.unwrap();
    let point = Uuid::now_v7();
    site.commit_point(volume, point, 5).await;
    let drill = failover(FailoverKind::Drill, PointSelector::Latest);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(db.create_failover(Actor::Operator, "web", &drill).await.unwrap());
    }
    assert_eq!(db.failovers_to_drive().await.unwrap(), ids);
    let newer = r#"{"kind":"drill","serve_only":true,"network":"isolated"}"#;
    for sql in [
        "UPDATE machines SET capture = 'ebpf'",
        "UPDATE volumes SET state = 'sampling'",
        "UPDATE points SET kind = 'clean'",
        "UPDATE failover_steps SET state = 'releasing'",
    ] {
        sqlx::query(sql).execute(&db.writer).await.unwrap();
    }
    for (id, sql) in [
        (ids[0], "UPDATE failovers SET kind = 'planned' WHERE id = ?"),
        (ids[1], "UPDATE failovers SET state = 'releasing' WHERE id = ?"),
    ] {
        sqlx::query(sql).bind(id.to_string()).execute(&db.writer).await.unwrap();
    }
    sqlx::query("UPDATE failovers SET spec = ? WHERE id = ?")
        .bind(newer)
        .bind(ids[2].to_string())
        .execute(&db.writer)
        .await
        .unwrap();
    let machines = db.machines().await.unwrap();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].capture, Capture::Unknown);
    let assigned = db.agent_volumes(*agent).await.unwrap();
    assert_eq!(assigned[0].capture, Capture::Unknown);
    let points = db.points("web", None, 10).await.unwrap();
    assert_eq!((points[0].point, points[0].kind), (point, PointKind::Unknown));
    let shown = db.failovers(10).await.unwrap();
    let kinds: Vec<_> = shown.iter().map(|failover| failover.kind).collect();
    let drill = FailoverKind::Drill;
    assert_eq!(kinds, [FailoverKind::Unknown, drill, drill, drill]);
    assert_eq!(shown[1].state, FailoverState::Unknown);
    assert!(shown[2].serve_only);
    // A guess at what is meant could lose what it was to keep.
    assert_eq!(db.failovers_to_drive().await.unwrap(), [ids[3]]);
    for id in &ids[..3] {
        let refused = db.failover_event(Actor::Operator, *id, Event::Retry, None).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}
