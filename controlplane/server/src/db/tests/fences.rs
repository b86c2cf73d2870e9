//! Fences: who is asked to let go, what counts that is told late, what a retry takes.

use farshore_api::node::{LetGo, ToLetGo};

use super::*;

fn point(volume: Uuid, epoch: u64, seq: u64) -> PointReport {
    PointReport {
        point: Uuid::now_v7(),
        volume,
        epoch,
        seq,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms: 1_000 + seq,
    }
}

impl Site {
    /// The agent tells of a point; returns whether it was taken.
    async fn tell(&self, point: PointReport) -> bool {
        let report = AgentReport { points: vec![point], ..AgentReport::default() };
        let taken = self.db.agent_report(self.agent, &report).await.unwrap();
        assert_eq!(taken.ignored_volumes.is_empty(), taken.points_changed);
        taken.points_changed
    }

    /// An unplanned failover of `web` that is being fenced; returns it, its machine and the epoch.
    async fn fencing(&self, point: PointSelector) -> (Uuid, Uuid, u64) {
        let spec = failover(FailoverKind::Unplanned, point);
        let id = self.db.create_failover(Actor::Operator, "web", &spec).await.unwrap();
        self.apply(id, Event::Begin).await;
        let machine = self.db.failover(id).await.unwrap().machine;
        (id, machine, self.db.fence_machine(machine).await.unwrap())
    }

    async fn apply(&self, id: Uuid, event: Event) -> Option<Uuid> {
        self.db.failover_event(Actor::Control, id, event, None).await.unwrap();
        self.db.failover(id).await.unwrap().shown.point
    }

    async fn seqs(&self) -> Vec<u64> {
        let points = self.db.points("web", None, 100).await.unwrap();
        points.iter().map(|point| point.volumes[0].seq).collect()
    }
}

/// C9: told during the failover or long after it: what lies before the fence counts, what lies behind it
/// does not, and what is written under the next epoch does again.
#[tokio::test]
async fn points_told_late_count_if_they_lie_before_the_fence() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    assert!(site.tell(point(volume, 1, 10)).await);
    let (id, machine, epoch) = site.fencing(PointSelector::Latest).await;
    assert_eq!(epoch, 2);
    // Whether these are points of the volume the vault has still to say.
    assert!(site.tell(point(volume, 1, 20)).await);
    assert!(site.tell(point(volume, 1, 45)).await);
    let newest = point(volume, 1, 30);
    let cut = Cut { volume, fence: Some((epoch, 40)), point: Some(newest) };
    site.db.note_cut(id, machine, &cut, true).await.unwrap();
    assert_eq!(site.seqs().await, [10, 20, 30], "the vault does not hold the last");
    let event = site.db.events(None, 100).await.unwrap().pop().unwrap();
    assert_eq!(event.action, "point.fenced");
    assert_eq!(site.apply(id, Event::Fenced).await, Some(newest.point));

    let of_node = async |point| {
        let report = NodeReport { points: vec![point], ..NodeReport::default() };
        site.db.node_report(site.node, &report).await.unwrap().points_changed
    };
    assert!(of_node(point(volume, 1, 25)).await && !of_node(point(volume, 1, 41)).await);
    assert!(!site.tell(point(volume, 1, 40)).await);
    assert!(!site.tell(point(volume, 0, 40)).await, "an epoch that is not known is an old one");

    site.apply(id, Event::CleanUp { force: false }).await;
    site.apply(id, Event::Cleared).await;
    assert_eq!(site.place().await[0].epoch, 3);
    assert!(!site.tell(point(volume, 1, 41)).await, "an agent that remembers it late");
    assert!(site.tell(point(volume, 1, 39)).await, "the last seq before the fence");
    assert!(site.tell(point(volume, 3, 40)).await, "written again under the next epoch");
    assert_eq!(site.seqs().await, [10, 20, 25, 30, 39, 40]);
}

/// C9: the node that had the volume is asked until it says that it let it go, about this fence.
#[tokio::test]
async fn the_node_that_had_a_fenced_volume_is_asked_to_let_it_go() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    site.tell(point(volume, 1, 10)).await;
    assert!(site.db.to_let_go(site.node).await.unwrap().is_empty());
    let version = site.db.assignments_version().await.unwrap();
    let (id, ..) = site.fencing(PointSelector::Latest).await;
    assert!(site.db.assignments_version().await.unwrap() > version, "it hears of it at once");
    assert_eq!(site.db.to_let_go(site.node).await.unwrap(), [ToLetGo { volume, epoch: 2 }]);
    let stranger = add_node(&site.db).await;
    assert!(site.db.to_let_go(stranger).await.unwrap().is_empty());

    let log = Uuid::from_u128(7);
    let say = async |node, epoch| {
        let let_go = vec![LetGo { volume, epoch, log }];
        site.db.node_report(node, &NodeReport { let_go, ..NodeReport::default() }).await.unwrap();
        site.db.writer_of(volume).await.unwrap().let_go_log
    };
    assert_eq!(say(stranger, 2).await, None, "not its volume");
    assert_eq!(say(site.node, 1).await, None, "a word about another fence");
    assert_eq!(say(site.node, 2).await, Some(log));
    assert!(site.db.to_let_go(site.node).await.unwrap().is_empty(), "it has answered");

    site.apply(id, Event::Fenced).await;
    site.apply(id, Event::CleanUp { force: false }).await;
    site.apply(id, Event::Cleared).await;
    site.place().await;
    say(site.node, 3).await;
    let (.., epoch) = site.fencing(PointSelector::Latest).await;
    assert_eq!(site.db.writer_of(volume).await.unwrap().let_go_log, None, "each fence asks anew");
    assert_eq!(site.db.to_let_go(site.node).await.unwrap(), [ToLetGo { volume, epoch }]);
}

/// C9: the vault was away at the first try.
#[tokio::test]
async fn a_retry_takes_the_newest_point_unless_one_was_named() {
    for is_named in [false, true] {
        let site = site().await;
        let volume = site.protect("web").await;
        site.place().await;
        let known = point(volume, 1, 10);
        site.tell(known).await;
        let selector =
            if is_named { PointSelector::Id(known.point) } else { PointSelector::Latest };
        let (id, machine, epoch) = site.fencing(selector).await;
        assert_eq!(site.apply(id, Event::Fenced).await, Some(known.point));
        site.db.set_failover_facts(id, Some("nbd:served"), None, None).await.unwrap();
        site.apply(id, Event::Broken).await;
        // Told in between.
        let told = point(volume, 1, 20);
        site.tell(told).await;
        site.apply(id, Event::Retry).await;
        site.apply(id, Event::Begin).await;
        let taken = site.apply(id, Event::Fenced).await;
        assert_eq!(taken, Some(if is_named { known.point } else { told.point }));
        site.apply(id, Event::Broken).await;
        // The vault answers.
        let newest = point(volume, 1, 30);
        site.apply(id, Event::Retry).await;
        site.apply(id, Event::Begin).await;
        let is_taken = site.db.failover(id).await.unwrap().takes(newest.time_unix_ms);
        assert_eq!(is_taken, !is_named);
        let cut = Cut { volume, fence: Some((epoch, 31)), point: Some(newest) };
        site.db.note_cut(id, machine, &cut, is_taken).await.unwrap();
        let taken = site.apply(id, Event::Fenced).await;
        assert_eq!(taken, Some(if is_named { known.point } else { newest.point }));
        // Another address is served with another point.
        let served = site.db.failover(id).await.unwrap().shown.nbd_uri;
        assert_eq!(served.is_some(), is_named);
    }
}

/// A point by time is chosen again when the vault's end is known: the catalogue may have heard of less.
#[tokio::test]
async fn a_point_by_time_is_the_vaults_newest_if_that_is_not_after_it() {
    let ago = PointSelector::Ago(60_000);
    for (selector, newest_ms, is_taken) in [
        (PointSelector::NotAfter(5_000), 4_000, true),
        (PointSelector::NotAfter(5_000), 5_000, true),
        (PointSelector::NotAfter(5_000), 5_001, false),
        (ago, clock::now_ms() - 61_000, true),
        (ago, clock::now_ms() - 50_000, false),
    ] {
        let site = site().await;
        let volume = site.protect("web").await;
        site.place().await;
        let known = point(volume, 1, 10);
        site.tell(known).await;
        let (id, machine, epoch) = site.fencing(selector).await;
        let newest = PointReport { time_unix_ms: newest_ms, ..point(volume, 1, 30) };
        let row = site.db.failover(id).await.unwrap();
        assert_eq!(row.takes(newest_ms), is_taken, "{selector:?} {newest_ms}");
        let cut = Cut { volume, fence: Some((epoch, 31)), point: Some(newest) };
        site.db.note_cut(id, machine, &cut, is_taken).await.unwrap();
        let taken = site.apply(id, Event::Fenced).await;
        assert_eq!(taken, Some(if is_taken { newest.point } else { known.point }));
    }
}

/// C9: who only asks is told what the fence would find, and nothing changes.
#[tokio::test]
async fn the_vaults_newest_is_compared_without_being_taken() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let (known, other) = (point(volume, 1, 10), point(volume, 1, 30));
    site.tell(known).await;
    let compare = async |point: PointReport| site.db.compare_newest(volume, point.point).await;
    assert_eq!(compare(known).await.unwrap(), (false, Some(known.point)));
    assert_eq!(compare(other).await.unwrap(), (true, Some(known.point)));
    assert_eq!(site.seqs().await, [10], "it is not entered");
    assert!(site.db.compare_newest(Uuid::from_u128(9), known.point).await.is_err());
    let (at_ms, interval_ms) = site.db.pace_at(known.point).await.unwrap().unwrap();
    assert_eq!((at_ms, interval_ms), (known.time_unix_ms, 5_000));
    assert_eq!(site.db.pace_at(other.point).await.unwrap(), None);
}

/// C9: a failover, and who asks what one would do, take the vault's newest by the same rule.
#[test]
fn only_an_unplanned_failover_of_no_named_point_takes_the_vaults_newest() {
    use FailoverKind::{Drill, Unplanned};
    let (latest, before) = (PointSelector::Latest, PointSelector::NotAfter(5_000));
    let named = PointSelector::Id(Uuid::from_u128(1));
    for (asked, newest_ms, is_taken) in [
        ((Unplanned, latest), 9_000, true),
        ((Unplanned, before), 5_000, true),
        ((Unplanned, before), 5_001, false),
        ((Unplanned, PointSelector::Ago(1_000)), 9_000, true),
        ((Unplanned, PointSelector::Ago(1_000)), 9_001, false),
        ((Unplanned, named), 1, false),
        ((Drill, latest), 1, false),
        ((Drill, before), 1, false),
    ] {
        assert_eq!(takes_newest(asked, 10_000, newest_ms), is_taken, "{asked:?} {newest_ms}");
    }
}
