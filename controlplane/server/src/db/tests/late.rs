//! C13: reports that come late, twice or out of order.

use farshore_api::agent::ReportOrder;

use super::*;

const RUN: Uuid = Uuid::from_u128(1);
const NEXT_RUN: Uuid = Uuid::from_u128(2);

fn order(run: Uuid, number: u64) -> ReportOrder {
    ReportOrder { run, number }
}

/// All that may have changed since stays as the newest report had it.
#[tokio::test]
async fn a_late_report_of_an_agent_sets_nothing_back() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let newest = |run, number| {
        let mut report = site.report(volume, 1, VolumeState::Protected);
        report.order = order(run, number);
        report.clock_unix_ms = Some(clock::now_ms());
        report.volumes[0].committed_seq = 700;
        report.volumes[0].journaled_seq = 800;
        report.volumes[0].sent_seq = 900;
        report.volumes[0].samples =
            Some(SampleReport { bytes: 9, rounds: 3, differences: 2, last: None });
        report
    };
    let taken = site.db.agent_report(site.agent, &newest(RUN, 7)).await.unwrap();
    assert!(!taken.is_late && taken.told.len() == 1);
    let shown = async || {
        let machine = view(site.db.machine("web").await.unwrap(), clock::now_ms());
        let volume = machine.volumes[0].clone();
        let seqs = (volume.sent_seq, volume.journaled_seq, volume.committed_seq);
        (machine.state, seqs, volume.nbd_uri, volume.samples.map(|samples| samples.differences))
    };
    let before = shown().await;
    assert_eq!(before.1, (900, 800, 700));
    site.db.agent_report(site.agent, &newest(NEXT_RUN, 1)).await.unwrap();
    let mut late = site.report(volume, 1, VolumeState::Error);
    late.volumes[0].nbd_uri = None;
    late.clock_unix_ms = Some(1);
    let point = Uuid::now_v7();
    late.points = vec![PointReport {
        point,
        volume,
        epoch: 1,
        seq: 5,
        kind: PointKind::Crash,
        unknown_blocks: 0,
        time_unix_ms: 1_000,
    }];
    late.volumes[0].grown_to_bytes = Some(1 << 20);
    site.let_epochs_age().await;
    for of in [order(RUN, 6), order(RUN, 7), order(RUN, 8), order(NEXT_RUN, 1)] {
        late.order = of;
        let taken = site.db.agent_report(site.agent, &late).await.unwrap();
        assert!(taken.is_late && taken.told.is_empty() && !taken.assignments_changed, "{of:?}");
        assert_eq!(shown().await, before, "{of:?}");
    }
    assert_eq!(site.db.agent_volumes(site.agent).await.unwrap()[0].epoch, 1, "it has no new size");
    let told = site.db.point("web", PointSelector::Id(point)).await.unwrap();
    assert_eq!(told.state, PointState::Committed, "a point stays one, however late it is told");
}

/// Also if its reports have no order, or its run is a new one.
#[tokio::test]
async fn what_is_committed_goes_back_under_no_epoch_that_goes_on() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let tell = async |epoch, seqs: (u64, u64, u64)| {
        let mut report = site.report(volume, epoch, VolumeState::Protected);
        let volume = &mut report.volumes[0];
        (volume.sent_seq, volume.journaled_seq, volume.committed_seq) = seqs;
        site.db.agent_report(site.agent, &report).await.unwrap();
        let machine = view(site.db.machine("web").await.unwrap(), clock::now_ms());
        let volume = machine.volumes[0].clone();
        (volume.sent_seq, volume.journaled_seq, volume.committed_seq)
    };
    assert_eq!(tell(1, (90, 80, 70)).await, (90, 80, 70));
    assert_eq!(tell(1, (90, 75, 60)).await, (90, 75, 70), "a journal can be lost");
    assert_eq!(tell(1, (0, 0, 0)).await, (70, 70, 70), "it has just started");
    assert_eq!(tell(1, (91, 81, 71)).await, (91, 81, 71));
    let other = add_node(&site.db).await;
    let away = Move { volume, to: other, from: Some(site.node) };
    site.db.place(&[away]).await.unwrap();
    assert_eq!(tell(1, (92, 82, 72)).await, (92, 82, 72));
    assert_eq!(tell(2, (10, 10, 10)).await, (10, 10, 10), "the stream may be another");
    assert_eq!(tell(1, (93, 83, 73)).await, (10, 10, 10), "that epoch is over");
}

/// Counters that go back are those of a node that began again; late ones are not.
#[tokio::test]
async fn a_late_report_of_a_node_counts_nothing_twice_and_asks_for_nothing() {
    let site = site().await;
    let volume = site.protect("web").await;
    site.place().await;
    let report = async |number, bytes_in, trouble: Option<&str>, wants: bool| {
        let stats = VolumeStats { bytes_in, unique_bytes: bytes_in, ..VolumeStats::default() };
        let (epoch, journaled_seq, committed_seq) = (1, 1, 1);
        let contested = trouble.map(str::to_owned);
        let volumes = vec![NodeVolumeReport {
            volume,
            epoch,
            journaled_seq,
            committed_seq,
            stats,
            contested,
        }];
        let report = NodeReport {
            order: order(RUN, number),
            volumes,
            trouble: trouble.map(str::to_owned),
            epochs_wanted: if wants { vec![volume] } else { Vec::new() },
            ..NodeReport::default()
        };
        site.let_epochs_age().await;
        site.db.node_report(site.node, &report).await.unwrap()
    };
    assert!(!report(1, 100, None, false).await.is_late);
    assert!(!report(3, 300, None, false).await.is_late);
    let taken = report(2, 200, Some("a vault that was away"), true).await;
    assert!(taken.is_late && !taken.assignments_changed);
    report(4, 400, None, false).await;
    let stats = site.db.machine("web").await.unwrap().volumes[0].stats;
    assert_eq!((stats.bytes_in, stats.unique_bytes), (400, 400));
    let events = site.db.events(None, 100).await.unwrap();
    let about = ["node.trouble", "node.recovered", "volume.contested"];
    assert!(events.iter().all(|event| !about.contains(&event.action.as_str())), "{events:?}");
    assert_eq!(site.db.node_volumes(site.node).await.unwrap()[0].epoch, 1, "it has its epoch");
}
