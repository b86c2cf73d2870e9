use super::*;
use crate::fence::fence_volume;
use crate::testing::{BLOCKS, World};
use crate::verify::verify;
use crate::view::{PointSelector, VolumeView};
use farshore_codec::SegmentBuilder;
use farshore_proto::epoch::{EndKind, Ended};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::segment::{SlotWriter, Span};
use farshore_proto::{
    Epoch, ErrorKind, Imprint, LogId, MarkKind, Place, PointId, Seq, Slot, Stamp,
};

/// The first epoch of a volume if its number is at most 3, else a later one.
fn body(epoch: u64, log: u8, first_seq: u64) -> EpochBody {
    EpochBody {
        epoch: Epoch(epoch),
        log: LogId([log; 16]),
        first_slot: Slot(0),
        first_seq: Seq(first_seq),
        size_bytes: 1 << 20,
        stamp: Stamp::default(),
        label: "db-1 /dev/vda".to_owned(),
        ended: (epoch > 3).then_some(Ended { kind: EndKind::Seal, slot: Slot(12) }),
        base: None,
    }
}

fn marked() -> Span {
    let mark = Mark {
        point: PointId([5; 16]),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 0,
        group: MarkGroup::ALONE,
    };
    Span {
        stamp: Stamp::default(),
        volume: VolumeId([0; 16]),
        epoch: Epoch(1),
        first_seq: Seq(1),
        last_seq: Seq(1),
        previous: None,
        mark: Some(mark),
        imprint: Imprint::default(),
        extents: Vec::new(),
    }
}

#[tokio::test]
async fn a_claim_wins_once_and_may_be_repeated() {
    let world = World::new(0, 0).await;
    let volume = VolumeId([9; 16]);
    assert!(read_epochs(&world.vault, volume).await.unwrap().is_empty());
    for (ours, ordinal) in [(body(3, 1, 1), 1), (body(5, 2, 40), 2)] {
        for _ in 0..2 {
            let claimed = claim(&world.vault, volume, &ours).await.unwrap();
            assert_eq!(claimed, Claim::Claimed { ordinal });
        }
    }
    let epochs = read_epochs(&world.vault, volume).await.unwrap();
    assert_eq!(epochs, [body(3, 1, 1), body(5, 2, 40)]);
    // The same or an older epoch is too late, whoever asks.
    for late in [body(3, 1, 1), body(4, 7, 50), body(5, 7, 40)] {
        let lost = claim(&world.vault, volume, &late).await.unwrap();
        assert_eq!(lost, Claim::Lost { newest: body(5, 2, 40) });
    }
}

#[tokio::test]
async fn of_two_that_claim_at_once_one_wins() {
    let world = World::new(0, 0).await;
    for round in 0..16 {
        let volume = VolumeId([round; 16]);
        let (a, b) = (body(2, 1, 1), body(2, 2, 1));
        let (a, b) = tokio::join!(claim(&world.vault, volume, &a), claim(&world.vault, volume, &b));
        let won =
            [a.unwrap(), b.unwrap()].iter().filter(|c| matches!(c, Claim::Claimed { .. })).count();
        assert_eq!(won, 1);
    }
}

#[tokio::test]
async fn a_claim_that_goes_back_or_has_too_long_a_label_is_refused() {
    let world = World::new(0, 0).await;
    let volume = VolumeId([9; 16]);
    claim(&world.vault, volume, &body(1, 1, 40)).await.unwrap();
    let error = claim(&world.vault, volume, &body(4, 1, 39)).await.unwrap_err();
    assert!(matches!(error, VaultError::EpochOrder { .. }), "{error}");
    let label = "x".repeat(LABEL_BYTES_MAX + 1);
    let long = EpochBody { label, ..body(4, 1, 40) };
    let error = claim(&world.vault, volume, &long).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert_eq!(read_epochs(&world.vault, volume).await.unwrap().len(), 1);
}

/// What an epoch goes on from is a point that is there, of a place before it, and fits; else each point from there on
/// says what is missing, and `verify` names it. Points in front of it read.
#[tokio::test]
async fn an_epoch_goes_on_from_a_point_that_is_there() {
    let place = |ordinal, seq| Place { ordinal, seq: Seq(seq) };
    let nowhere = VolumeId([9; 16]);
    let half = BLOCKS * BLOCK_BYTES as u64 / 2;
    let whole = 2 * half;
    for (of, at, point, size_bytes, is_there) in [
        (None, place(1, 3), 0, whole, true),
        (None, place(1, 2), 0, whole, false),
        (None, place(2, 3), 0, whole, false),
        (None, place(7, 3), 0, whole, false),
        (None, place(1, 3), 0, half, false),
        (None, place(1, 3), 1, whole, false),
        (Some(nowhere), place(1, 3), 0, whole, false),
    ] {
        let mut world = World::new(1, 2).await;
        world.write(0, 0, 2, 1000);
        world.write(0, 4, 2, 2000);
        world.end_span(0, true);
        world.write(0, 0, 4, 3000);
        world.end_span(0, true);
        world.commit(0).await;
        let volume = world.volumes[0].id;
        let point = world.points[point].id;
        let base = Some(EpochBase { volume: of.unwrap_or(volume), at, point });
        let ended = Some(Ended { kind: EndKind::Word, slot: Slot(1) });
        let begun = EpochBody { size_bytes, ended, base, ..body(2, 0x11, 6) };
        assert_eq!(
            claim(&world.vault, volume, &begun).await.unwrap(),
            Claim::Claimed { ordinal: 2 }
        );
        let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await;
        let report = verify(&world.vault, true, |_| {}).await.unwrap();
        let said = format!("{of:?} {at} {point} {size_bytes}: {report:?}");
        match view {
            Ok(view) => assert!(is_there && view.point().seq == at.seq, "{said}"),
            Err(error) => {
                assert!(
                    !is_there && matches!(error, VaultError::EpochBase { .. }),
                    "{error} {said}"
                );
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
        assert_eq!(report.is_whole(), is_there, "{said}");
        let id = world.points[1].id;
        for of_old in [PointSelector::Seq(Seq(5)), PointSelector::Point(id)] {
            let old = VolumeView::open(&world.vault, volume, of_old).await.unwrap();
            assert_eq!((old.point().seq, old.point().id), (Seq(5), id));
        }
    }
}

/// Volumes that go on from one another are read to no end of them.
#[tokio::test]
async fn bases_that_lead_in_a_circle_are_refused() {
    let mut world = World::new(2, 2).await;
    for number in 0..2 {
        world.write(number, 0, 2, 1000);
        world.end_span(number, true);
    }
    world.commit(0).await;
    let volumes = [world.volumes[0].id, world.volumes[1].id];
    let mark = marked().mark.unwrap();
    for (volume, other) in [(0, 1), (1, 0)] {
        let at = Place { ordinal: 2, seq: Seq(4) };
        let base = Some(EpochBase { volume: volumes[other], at, point: mark.point });
        let ended = Some(Ended { kind: EndKind::Word, slot: Slot(1) });
        let size_bytes = BLOCKS * BLOCK_BYTES as u64;
        let begun = EpochBody { size_bytes, ended, base, ..body(2, 0x11, 3) };
        claim(&world.vault, volumes[volume], &begun).await.unwrap();
    }
    let keys = world.vault.seal_keys();
    let (log, slot) = (LogId([0x11; 16]), Slot(0));
    let writer = SlotWriter::of_run(1);
    let made = SegmentBuilder::new(world.vault.id(), log, slot, writer, keys, 1);
    let mut builder = made.unwrap();
    for volume in volumes {
        let span =
            Span { volume, epoch: Epoch(2), first_seq: Seq(3), last_seq: Seq(4), ..marked() };
        builder.push_span(span);
    }
    let object = Bytes::from(builder.finish().unwrap().bytes());
    world.vault.store().create(&ObjectName::slot(log, slot), object).await.unwrap();
    let error =
        VolumeView::open(&world.vault, volumes[0], PointSelector::Latest).await.unwrap_err();
    assert!(matches!(error, VaultError::EpochBase { .. }), "{error}");
}

/// S31: a seal that an epoch names shuts out whoever wrote before; without it he may go on.
#[tokio::test]
async fn a_lost_seal_is_named() {
    let world = World::sample().await;
    let volume = world.volumes[1].id;
    let fenced = fence_volume(&world.vault, volume, Epoch(9), None).await.unwrap();
    let (log, seal) = fenced.sealed.unwrap();
    assert!(verify(&world.vault, true, |_| {}).await.unwrap().is_whole());
    let name = ObjectName::slot(log, seal);
    std::fs::remove_file(world.file(&name)).unwrap();
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    let named = report.problems.iter().any(|problem| problem.object == name);
    assert!(named, "{report:?}");
    // The last slot that was committed before it is lost too: the epoch says that it was there.
    let last = ObjectName::slot(log, Slot(seal.0 - 1));
    std::fs::remove_file(world.file(&last)).unwrap();
    let error = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap_err();
    assert!(error.is_lost() || error.kind() == ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(&last.to_string()), "{error}");
}

/// A store that is away when a later epoch is asked for has not said that one is there.
#[tokio::test]
async fn an_epoch_that_could_not_be_asked_for_makes_none_a_lost_one() {
    let world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    for ordinal in 2..=7 {
        let (store, counted) = crate::testing::counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        counted.refuse(&ObjectName::epoch(volume, ordinal).to_string());
        let read = read_epochs(&vault, volume).await;
        if ordinal <= 2 + EPOCHS_BEHIND {
            assert!(read.unwrap_err().is_unavailable(), "ordinal {ordinal}");
        } else {
            assert_eq!(read.unwrap().len(), 1, "ordinal {ordinal} says nothing of the end");
        }
    }
    // One that is there is missed by name all the same.
    let later = world.file(&ObjectName::epoch(volume, 3));
    std::fs::copy(world.file(&ObjectName::epoch(volume, 1)), later).unwrap();
    let error = read_epochs(&world.vault, volume).await.unwrap_err();
    assert!(matches!(error, VaultError::LostNumber { .. }), "{error}");
}
