use super::*;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_vault::fence::{end_of_stream, fence_volume};
use farshore_vault::layout::ObjectName;
use farshore_vault::log::{Foreign, PutOutcome, put_segment};
use farshore_vault::testing::{BLOCKS, World, counted, stamp_of};
use farshore_vault::verify::verify;
use farshore_vault::{PointSelector, VolumeView};

const SIZE_BYTES: u64 = BLOCKS * BLOCK_BYTES as u64;

fn wanted(world: &World, epoch: u64, log: usize) -> Wanted {
    Wanted {
        volume: world.volumes[0].id,
        epoch: Epoch(epoch),
        log: world.logs[log].id,
        first_slot: world.logs[log].next,
        size_bytes: SIZE_BYTES,
        label: "web1".to_owned(),
    }
}

/// Volume 0 with two points in log 0 under epoch 1.
async fn written() -> World {
    let mut world = World::new(1, 2).await;
    for seed in [100, 200] {
        world.write(0, 0, 4, seed);
        world.end_span(0, true);
        world.commit(0).await;
    }
    world
}

async fn refusal(world: &World, wanted: &Wanted) -> ClaimError {
    claim_volume(&world.vault, wanted).await.unwrap_err()
}

#[tokio::test]
async fn a_new_volume_begins_at_seq_1_and_is_claimed_once() {
    let world = World::new(0, 1).await;
    let wanted = Wanted {
        volume: VolumeId([7; 16]),
        epoch: Epoch(3),
        log: world.logs[0].id,
        first_slot: Slot(0),
        size_bytes: SIZE_BYTES,
        label: String::new(),
    };
    let made =
        Claimed { committed: Seq(0), stamp: Stamp::default(), sealed: None, ordinal: Some(1) };
    assert_eq!(claim_volume(&world.vault, &wanted).await.unwrap(), made);
    // As after a lost answer: by then the log may have gone on.
    let again = Wanted { first_slot: Slot(9), ..wanted };
    let held = Claimed { ordinal: None, ..made };
    assert_eq!(claim_volume(&world.vault, &again).await.unwrap(), held);
}

#[tokio::test]
async fn the_epoch_of_the_log_goes_on_where_the_vault_is() {
    let world = written().await;
    let held = claim_volume(&world.vault, &wanted(&world, 1, 0)).await.unwrap();
    assert_eq!(
        held,
        Claimed { committed: Seq(4), stamp: stamp_of(0, Seq(4)), sealed: None, ordinal: None }
    );
    // The next epoch in the same log needs no seal.
    let next = claim_volume(&world.vault, &wanted(&world, 2, 0)).await.unwrap();
    assert_eq!(
        next,
        Claimed { committed: Seq(4), stamp: stamp_of(0, Seq(4)), sealed: None, ordinal: Some(2) }
    );
}

/// P6, S8: after the claim nothing of the old owner counts.
#[tokio::test]
async fn taking_over_seals_the_old_log_first() {
    let mut world = written().await;
    world.write(0, 9, 1, 300);
    world.end_span(0, true);
    let late = world.build(0);
    let taken = claim_volume(&world.vault, &wanted(&world, 2, 1)).await.unwrap();
    let old = world.logs[0].id;
    let sealed = Some((old, Slot(2)));
    assert_eq!(
        taken,
        Claimed { committed: Seq(4), stamp: stamp_of(0, Seq(4)), sealed, ordinal: Some(2) }
    );
    let put = put_segment(&world.vault, old, Slot(2), late).await.unwrap();
    assert_eq!(put, PutOutcome::Foreign(Foreign::Sealed));
}

#[tokio::test]
async fn older_epochs_other_logs_and_other_sizes_are_refused() {
    let mut world = written().await;
    world.claim(0, 0).await;
    let error = refusal(&world, &wanted(&world, 1, 0)).await;
    assert!(matches!(error, ClaimError::Fenced { newest: Epoch(2), .. }), "{error}");
    let error = refusal(&world, &wanted(&world, 2, 1)).await;
    assert!(matches!(error, ClaimError::NeedsEpoch { log, .. } if log == world.logs[0].id));
    let smaller = Wanted { size_bytes: SIZE_BYTES - 4096, ..wanted(&world, 3, 1) };
    let error = refusal(&world, &smaller).await;
    assert!(matches!(error, ClaimError::Size { .. }), "{error}");
    // One that grew needs a new epoch: under the old one nobody reads beyond the old end.
    let larger = Wanted { size_bytes: SIZE_BYTES + 4096, ..wanted(&world, 2, 0) };
    let error = refusal(&world, &larger).await;
    assert!(matches!(error, ClaimError::Grown { .. }), "{error}");
    let larger = Wanted { epoch: Epoch(3), ..larger };
    assert_eq!(claim_volume(&world.vault, &larger).await.unwrap().ordinal, Some(3));
}

/// The epoch before ended by its writer's word.
fn by_word(world: &World) -> Option<(LogId, Ended)> {
    Some((world.logs[0].id, Ended { kind: EndKind::Word, slot: Slot(0) }))
}

/// S8: whoever was late with an older epoch does not lock the newer one out, nor lose what it wrote.
#[tokio::test]
async fn a_claim_that_anybody_else_came_before_is_tried_again() {
    let mut world = written().await;
    let newer = wanted(&world, 3, 1);
    // While `newer` looks around, epoch 2 begins and commits.
    world.claim(0, 0).await;
    world.write(0, 0, 4, 300);
    world.end_span(0, true);
    world.commit(0).await;
    let error = begin(&world.vault, &newer, 1, ((Seq(4), Stamp::default()), by_word(&world)))
        .await
        .unwrap_err();
    assert!(matches!(error, ClaimError::Raced { newest: Epoch(2), .. }), "{error}");
    assert_eq!(error.reason(), RefusalReason::Unavailable);
    assert_eq!(claim_volume(&world.vault, &newer).await.unwrap().committed, Seq(6));
    // An attempt of its own that arrived late.
    let again = Wanted { label: "web2".to_owned(), ..newer };
    let error = begin(&world.vault, &again, 2, ((Seq(6), Stamp::default()), by_word(&world)))
        .await
        .unwrap_err();
    assert!(matches!(error, ClaimError::Raced { newest: Epoch(3), .. }), "{error}");
    let error = begin(
        &world.vault,
        &wanted(&world, 3, 0),
        2,
        ((Seq(6), Stamp::default()), by_word(&world)),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ClaimError::NeedsEpoch { .. }), "{error}");
    let error = begin(
        &world.vault,
        &wanted(&world, 2, 0),
        2,
        ((Seq(6), Stamp::default()), by_word(&world)),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ClaimError::Fenced { newest: Epoch(3), .. }), "{error}");
}

/// S7: the volume began while a slot in front of its first was on its way, and that never came.
#[tokio::test]
async fn a_hole_in_front_of_the_first_slot_ends_the_epoch_before_it_began() {
    let mut world = World::new(2, 2).await;
    world.write(1, 0, 4, 100);
    world.end_span(1, true);
    world.commit(0).await;
    world.write(1, 0, 4, 200);
    world.end_span(1, true);
    let late = world.build(0);
    // Slot 1 is on its way. Volume 0 begins epoch 2 at slot 2, which arrives.
    world.claim(0, 0).await;
    world.write(0, 0, 4, 300);
    world.end_span(0, true);
    assert_eq!(world.commit(0).await, Slot(2));
    let volume = world.volumes[0].id;
    let end = end_of_volume(&world.vault, volume).await.unwrap();
    assert_eq!(end.last_seq, Seq(0), "slot 2 is not committed before slot 1");
    let old = world.logs[0].id;
    let taken = claim_volume(&world.vault, &wanted(&world, 3, 1)).await.unwrap();
    assert_eq!(taken.sealed, Some((old, Slot(1))), "the seal is where the log ends");
    assert_eq!(taken.committed, Seq(0));
    let put = put_segment(&world.vault, old, Slot(1), late).await.unwrap();
    assert_eq!(put, PutOutcome::Foreign(Foreign::Sealed));
    assert_eq!(end_of_volume(&world.vault, volume).await.unwrap().last_seq, Seq(0));
}

/// A node's volumes are all in its logs: one that takes them over reads each log once.
#[tokio::test]
async fn volumes_that_are_taken_over_together_share_one_look_at_their_log() {
    const VOLUMES: usize = 6;
    let mut world = World::new(VOLUMES, 2).await;
    for seed in 0..40_u32 {
        let volume = seed as usize % VOLUMES;
        world.write(volume, 0, 4, 100 + seed);
        world.end_span(volume, true);
        world.commit(0).await;
    }
    let claims =
        world.volumes.iter().map(|volume| Wanted { volume: volume.id, ..wanted(&world, 2, 1) });
    let claims: Vec<Wanted> = claims.collect();
    let (store, gets) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let sealed = SealedLogs::default();
    let mut counts = Vec::new();
    for (number, (wanted, known)) in claims.iter().zip(&world.volumes).enumerate() {
        let before = gets.count();
        let claimed = claim_with(&vault, wanted, &sealed).await.unwrap();
        assert_eq!((claimed.committed, claimed.ordinal), (known.seq, Some(2)));
        assert_eq!(claimed.stamp, stamp_of(number, known.seq));
        assert_eq!(claimed.sealed, Some((world.logs[0].id, Slot(40))));
        counts.push(gets.count() - before);
    }
    assert!(counts[0] > 40 && counts[1..].iter().all(|count| *count < 16), "{counts:?}");
    // Whoever has not read the log finds the same.
    for (number, (wanted, known)) in claims.iter().zip(&world.volumes).enumerate() {
        let claimed = claim_volume(&world.vault, wanted).await.unwrap();
        assert_eq!((claimed.committed, claimed.stamp), (known.seq, stamp_of(number, known.seq)));
    }
}

/// S5: what does not open is judged by the volume's own stream, as it is without company.
#[tokio::test]
async fn a_damaged_segment_of_a_sealed_log_hinders_those_that_miss_it() {
    let mut world = World::new(2, 2).await;
    for (volume, seed) in [(0, 100), (1, 200), (0, 300)] {
        world.write(volume, 0, 4, seed);
        world.end_span(volume, true);
        world.commit(0).await;
    }
    let file = world.file(&ObjectName::slot(world.logs[0].id, Slot(1)));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[208] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let sealed = SealedLogs::default();
    let claimed = claim_with(&world.vault, &wanted(&world, 2, 1), &sealed).await.unwrap();
    assert_eq!(claimed.committed, world.volumes[0].seq, "slot 1 holds nothing of it");
    let other = Wanted { volume: world.volumes[1].id, ..wanted(&world, 2, 1) };
    let error = claim_with(&world.vault, &other, &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// S18: a store that says of a slot that it is not there, when it is, does not cut a stream short.
#[tokio::test]
async fn what_a_seal_ends_is_read_up_to_the_seal() {
    // GETs of slot 1: one on the way to the end of the log, then those of the streams before it.
    for (lapse, is_read) in [(1..2, true), (1..3, true), (1..9, false)] {
        let world = written().await;
        let (store, gets) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let missed = ObjectName::slot(world.logs[0].id, Slot(1));
        gets.lapse(&missed, lapse.clone());
        let claimed = claim_volume(&vault, &wanted(&world, 2, 1)).await;
        match claimed {
            Ok(claimed) => assert_eq!((claimed.committed, is_read), (Seq(4), true), "{lapse:?}"),
            Err(error) => {
                assert!(!is_read && error.kind() == ErrorKind::Corrupt, "{lapse:?}: {error}");
                let epochs = read_epochs(&world.vault, world.volumes[0].id).await.unwrap();
                assert_eq!(epochs.len(), 1, "nothing began behind a stream that was cut short");
            }
        }
        // The store has come to its senses.
        let claimed = claim_volume(&world.vault, &wanted(&world, 2, 1)).await.unwrap();
        assert_eq!(claimed.committed, Seq(4), "{lapse:?}");
    }
}

/// S18: nor does one that does not show the seal itself, or the slots on the way to it.
#[tokio::test]
async fn a_slot_that_only_the_seal_finds_is_read() {
    let world = written().await;
    let log = world.logs[0].id;
    let (store, gets) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    // The walk does not see slot 1, nor whether it is filled by now; the put of the seal does.
    gets.lapse(&ObjectName::slot(log, Slot(1)), 0..1);
    // Of the seal, which is not there at first, the scan sees nothing.
    gets.lapse(&ObjectName::slot(log, Slot(2)), 1..3);
    let claimed = claim_volume(&vault, &wanted(&world, 2, 1)).await.unwrap();
    assert_eq!(claimed.sealed, Some((log, Slot(2))));
    assert_eq!(claimed.committed, Seq(4));
}

/// A node that took over and got nothing says whose the frames before are: the epoch does.
#[tokio::test]
async fn who_takes_over_from_one_that_wrote_nothing_knows_whose_the_newest_frame_is() {
    let mut world = World::new(1, 3).await;
    world.write(0, 0, 4, 100);
    world.end_span(0, true);
    world.commit(0).await;
    let known = (Seq(2), stamp_of(0, Seq(2)));
    let sealed = SealedLogs::default();
    for (epoch, log) in [(2, 1), (3, 2), (4, 2)] {
        let wanted = wanted(&world, epoch, log);
        let claimed = claim_with(&world.vault, &wanted, &sealed).await.unwrap();
        assert_eq!((claimed.committed, claimed.stamp), known, "epoch {epoch}");
        // And after its restart.
        let again = claim_with(&world.vault, &wanted, &sealed).await.unwrap();
        assert_eq!((again.committed, again.stamp), known, "epoch {epoch} again");
    }
}

#[tokio::test]
async fn nothing_counts_that_is_put_behind_a_fence() {
    let mut world = written().await;
    let (volume, log) = (world.volumes[0].id, world.logs[0].id);
    let fenced = fence_volume(&world.vault, volume, Epoch(5), Some(log)).await.unwrap().end;
    let newest = world.points[1].clone();
    assert_eq!((fenced.epoch, fenced.last_seq), (Epoch(5), Seq(4)));
    assert_eq!(fenced.stamp, stamp_of(0, Seq(4)));
    assert_eq!(fenced.point.map(|point| point.id), Some(newest.id));
    // A node that breaks its word goes on.
    world.write(0, 9, 1, 300);
    world.end_span(0, true);
    world.commit(0).await;
    let again = fence_volume(&world.vault, volume, Epoch(5), Some(log)).await.unwrap().end;
    assert_eq!(again, fenced, "as after a lost answer");
    assert_eq!(end_of_stream(&world.vault, volume).await.unwrap(), fenced);
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().id, newest.id);
    let fence = read_epochs(&world.vault, volume).await.unwrap().pop().unwrap();
    assert!(world.logs.iter().all(|log| log.id != fence.log), "nobody's log");
    // The volume goes back to its node, whose log goes on.
    let claimed = claim_volume(&world.vault, &wanted(&world, 6, 0)).await.unwrap();
    let Claimed { committed, stamp, sealed, .. } = claimed;
    assert_eq!(stamp, stamp_of(0, Seq(4)), "by the fence's own epoch");
    assert_eq!(committed, Seq(4), "what came behind the fence is sent again");
    assert_eq!(sealed, Some((fence.log, Slot(0))));
    assert_eq!(end_of_volume(&world.vault, volume).await.unwrap().last_seq, Seq(4));
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
}
