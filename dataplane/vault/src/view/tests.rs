use super::*;
use crate::catalog;
use crate::chain::Chain;
use crate::testing::{BLOCKS, ModelPoint, World, history, image_bytes};
use farshore_codec::segment::chunk_of;
use farshore_codec::{CodecError, Opener, SegmentBuilder};
use farshore_proto::bugs::{Bug, switch_on};
use farshore_proto::epoch::{EndKind, Ended};
use farshore_proto::segment::ChunkPlace;
use farshore_proto::{ErrorKind, Slot};
use proptest::prelude::*;

fn whole() -> BlockRange {
    BlockRange { block: 0, count: BLOCKS }
}

async fn check_point(world: &World, vault: &Vault, point: &ModelPoint) {
    let volume = world.volumes[point.volume].id;
    let by_id = PointSelector::Point(point.id);
    let view = VolumeView::open(vault, volume, by_id).await.unwrap();
    assert_eq!((view.point().id, view.point().seq), (point.id, point.seq));
    let expected = image_bytes(&point.image);
    assert!(flatten(&view.read(whole()).await.unwrap()) == expected, "{point:?}");
    for (block, count) in [(0, 1), (BLOCKS - 1, 1), (7, 13), (31, 40)] {
        let read = view.read(BlockRange { block, count }).await.unwrap();
        let at = |block: u64| usize::try_from(block).unwrap() * BLOCK_BYTES;
        assert!(flatten(&read) == expected[at(block)..at(block + count)], "{block}+{count}");
    }
    for (run, is_data) in view.extents(whole()).await.unwrap() {
        let blocks = usize::try_from(run.block).unwrap()..usize::try_from(run.end()).unwrap();
        assert!(point.image[blocks].iter().all(|seed| (*seed != 0) == is_data), "{run:?}");
    }
    let data = point.image.iter().filter(|seed| **seed != 0).count();
    let (data, most) = ((data * BLOCK_BYTES) as u64, view.data_bytes_max());
    let epochs = crate::epoch::read_epochs(vault, volume).await.unwrap();
    let has_bases = epochs.iter().any(|body| body.base.is_some());
    assert!(most == data || has_bases && most > data, "without a map or a base it is exact");
}

async fn check_all(world: &World) {
    let vault = world.reopen().await;
    let points = world.committed_points();
    for point in &points {
        check_point(world, &vault, point).await;
    }
    for (number, volume) in world.volumes.iter().enumerate() {
        let mine = points.iter().filter(|point| point.volume == number);
        let expected: Vec<_> = mine.map(|point| (point.id, point.seq)).collect();
        let listed = catalog::list_points(&vault, volume.id).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|point| (point.id, point.seq)).collect();
        assert_eq!(listed, expected);
        match VolumeView::open(&vault, volume.id, PointSelector::Latest).await {
            Ok(view) => {
                let newest = world.latest(number).unwrap();
                let newest = (newest.id, newest.seq);
                assert_eq!((view.point().id, view.point().seq), newest);
                let by_seq = PointSelector::Seq(newest.1);
                let view = VolumeView::open(&vault, volume.id, by_seq).await.unwrap();
                assert_eq!((view.point().id, view.point().seq), newest);
            }
            Err(error) => {
                assert!(world.latest(number).is_none(), "{error}");
                assert!(matches!(error, VaultError::NoPoint { .. }), "{error}");
            }
        }
    }
    let report = crate::verify::verify(&vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole() && report.holes.is_empty(), "{report:?}");
    assert_eq!(report.points, points.len() as u64);
    let stats = crate::stats::stats(&vault).await.unwrap();
    assert_eq!((stats.points, stats.volumes), (report.points, report.volumes));
    assert_eq!((stats.chunks, stats.segments), (report.chunks, report.segments));
}

#[tokio::test]
async fn every_point_of_two_volumes_and_two_epochs_reads_as_it_was() {
    check_all(&World::sample().await).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_history_reads_back_as_the_model_says(steps in history::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { check_all(&history::world_of(steps).await).await });
    }
}

#[tokio::test]
async fn a_fenced_writer_beyond_the_seal_and_beyond_its_epoch_changes_nothing() {
    let mut world = World::new(1, 2).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    // It has put one more slot when the log is sealed behind it, and puts another beyond the seal.
    world.write(0, 0, 8, 2000);
    world.end_span(0, true);
    let image = world.volumes[0].image.clone();
    world.commit(0).await;
    world.seal(0).await;
    world.logs[0].next = Slot(3);
    world.write(0, 0, 8, 3000);
    world.end_span(0, true);
    world.commit(0).await;
    world.points.pop();
    world.volumes[0].image = image;
    let vault = world.reopen().await;
    let view = VolumeView::open(&vault, world.volumes[0].id, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, Seq(4));
    assert_eq!(view.hole(), None);
    check_point(&world, &vault, &world.committed_points()[1].clone()).await;
}

#[tokio::test]
async fn spans_above_the_next_epochs_first_seq_do_not_count() {
    let mut world = World::new(1, 2).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    let seq = world.volumes[0].seq;
    // The old writer commits to its log what the new epoch does not take over.
    world.write(0, 0, 8, 2000);
    world.end_span(0, true);
    world.commit(0).await;
    world.points.pop();
    let volume = world.volumes[0].id;
    let body = EpochBody {
        epoch: Epoch(2),
        log: world.logs[1].id,
        first_slot: Slot(0),
        first_seq: seq.next(),
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
        stamp: farshore_proto::Stamp::default(),
        label: String::new(),
        ended: Some(Ended { kind: EndKind::Word, slot: Slot(1) }),
        base: None,
    };
    crate::epoch::claim(&world.vault, volume, &body).await.unwrap();
    let end = catalog::end_of_volume(&world.vault, volume).await.unwrap();
    assert_eq!((end.last_seq, end.epochs.len()), (seq, 2));
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, seq);
    let report = crate::verify::verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.points, 1);
}

#[tokio::test]
async fn a_slot_that_a_crashed_run_left_behind_a_hole_is_void() {
    let mut world = World::new(1, 1).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    // Run 1 puts slot 2 but dies before slot 1 arrives; slot 2 holds another future.
    let (first, image) = (world.volumes[0].seq, world.volumes[0].image.clone());
    world.logs[0].next = Slot(2);
    world.write(0, 0, 8, 2000);
    world.end_span(0, true);
    world.commit(0).await;
    world.points.pop();
    let end = log_end(&world).await;
    assert_eq!((end.next, end.void.into_iter().collect::<Vec<_>>()), (Slot(1), vec![Slot(2)]));
    let volume = world.volumes[0].id;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, first);
    let hole = view.hole().unwrap();
    assert_eq!((hole.slot, hole.later), (Slot(1), Slot(2)));
    let report = crate::verify::verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.holes, [hole]);
    // Run 2 goes on with other writes under the same seqs.
    world.logs[0].incarnation = 2;
    world.logs[0].next = Slot(1);
    world.volumes[0].rewind(first, image);
    world.write(0, 40, 8, 3000);
    world.end_span(0, true);
    world.commit(0).await;
    let end = log_end(&world).await;
    assert_eq!((end.next, end.incarnation), (Slot(3), 2));
    check_all_but_images_before(&world).await;
}

async fn log_end(world: &World) -> crate::log::LogEnd {
    crate::log::find_end(&world.vault, world.logs[0].id, Slot(0)).await.unwrap()
}

async fn check_all_but_images_before(world: &World) {
    let vault = world.reopen().await;
    let points = world.committed_points();
    for point in &points {
        check_point(world, &vault, point).await;
    }
    let report = crate::verify::verify(&vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole() && report.holes.is_empty(), "{report:?}");
    assert_eq!((report.points, report.segments), (points.len() as u64, 2));
}

#[tokio::test]
async fn what_does_not_exist_is_said_by_name() {
    let world = World::sample().await;
    let vault = &world.vault;
    let volume = world.volumes[0].id;
    let strange = VolumeId([0x77; 16]);
    let error = VolumeView::open(vault, strange, PointSelector::Latest).await.unwrap_err();
    assert!(error.to_string().contains(&strange.to_string()), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let point = PointSelector::Point(PointId([0x55; 16]));
    let error = VolumeView::open(vault, volume, point).await.unwrap_err();
    assert!(matches!(error, VaultError::PointNotFound { .. }), "{error}");
    let error = VolumeView::open(vault, volume, PointSelector::Seq(Seq(1))).await.unwrap_err();
    assert!(matches!(error, VaultError::SeqNotFound { .. }), "{error}");
    let view = VolumeView::open(vault, volume, PointSelector::Latest).await.unwrap();
    let error = view.read(BlockRange { block: BLOCKS - 1, count: 2 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = view.read(BlockRange { block: u64::MAX, count: 2 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// S13: a guest's disk must not break because the store is away.
#[tokio::test]
async fn a_read_outlasts_a_store_that_is_away() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let open = || VolumeView::open(&world.vault, volume, PointSelector::Latest);
    let (impatient, view) = (open().await.unwrap(), open().await.unwrap());
    let patience = Patience::new(Duration::from_secs(60));
    let view = view.with_patience(patience.clone());
    let (here, away) = (world.folder.path().join("vault"), world.folder.path().join("away"));
    let whole = BlockRange { block: 0, count: BLOCKS };
    std::fs::rename(&here, &away).unwrap();
    assert!(impatient.read(whole).await.unwrap_err().is_unavailable());
    let read = tokio::spawn(async move { view.read(whole).await });
    let mut supply = patience.supply();
    let is_waiting = |supply: &crate::Supply| matches!(supply, crate::Supply::Waiting { .. });
    supply.wait_for(is_waiting).await.unwrap();
    std::fs::rename(&away, &here).unwrap();
    let pieces = read.await.unwrap().unwrap();
    assert!(flatten(&pieces) == image_bytes(&world.volumes[0].image));
    assert_eq!(*supply.borrow(), crate::Supply::Well);
    // What is lost is not waited for.
    let view = open().await.unwrap().with_patience(patience);
    std::fs::remove_dir_all(here.join("logs")).unwrap();
    let begun = std::time::Instant::now();
    let error = view.read(whole).await.unwrap_err();
    assert!(!error.is_unavailable() && begun.elapsed() < Duration::from_secs(30), "{error}");
}

/// I7: one small read out of each of many frames keeps what was asked for, not the frames.
#[tokio::test]
async fn what_is_read_keeps_no_more_memory_than_twice_its_length() {
    let large = crate::testing::large(16).await;
    let view = VolumeView::open(&large.vault, large.volume, PointSelector::Latest).await.unwrap();
    for block in (0..4096).step_by(97) {
        for piece in view.read(BlockRange { block, count: 1 }).await.unwrap() {
            let Piece::Data(data) = piece else { panic!("every block was written") };
            assert!(data.is_unique(), "block {block}: it shares the memory of its frame");
        }
    }
}

/// D3: a segment put again under its name holds the same bytes, and is not the one that is referred to.
#[tokio::test]
async fn another_attempt_at_a_slot_is_not_what_is_referred_to() {
    let mut world = World::new(2, 2).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    let slot = world.commit(0).await;
    world.claim(1, 1).await;
    world.write(1, 16, 8, 1000);
    world.end_span(1, true);
    let user = world.commit(1).await;
    assert!(world.references > 0, "log 1 refers to what log 0 holds");
    check_all(&world).await;

    let (log, file) = (world.logs[0].id, world.file(&ObjectName::slot(world.logs[0].id, slot)));
    let whole_object = std::fs::read(&file).unwrap();
    let ring = world.vault.ring();
    let opener = Opener::open_header(&whole_object, world.vault.id(), log, slot, ring).unwrap();
    let keys = world.vault.seal_keys();
    let writer = opener.header().writer;
    let mut again = SegmentBuilder::new(world.vault.id(), log, slot, writer, keys, 1).unwrap();
    let mut frames = Vec::new();
    let each = |_: &_, _, raw: &[u8]| {
        frames.push(raw.to_vec());
        Ok::<_, CodecError>(())
    };
    let table = opener.open_all(&whole_object, each).unwrap();
    for (number, chunk) in (0..).zip(&table.chunks) {
        let ChunkPlace::Here { frame, .. } = chunk.place else { continue };
        let raw = &frames[usize::try_from(frame).unwrap()];
        let bytes = chunk_of(&table, number, raw, world.vault.hasher()).unwrap();
        assert_eq!(again.push_chunk(chunk.id, bytes), number);
    }
    table.spans.iter().for_each(|span| again.push_span(span.clone()));
    let again = again.finish().unwrap();
    assert!(again.table == table && again.header.attempt() != opener.header().attempt());
    std::fs::write(&file, again.bytes()).unwrap();

    let vault = world.reopen().await;
    let point = &world.committed_points()[0];
    check_point(&world, &vault, point).await;
    let volume = world.volumes[1].id;
    let view = VolumeView::open(&vault, volume, PointSelector::Latest).await.unwrap();
    let error = view.read(whole()).await.unwrap_err();
    assert!(matches!(error, VaultError::Replaced { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    switch_on(&[Bug::AttemptNotCompared]);
    let taken = view.read(whole()).await;
    switch_on(&[]);
    assert!(taken.is_ok(), "the bug shows");
    let (object, user) = (ObjectName::slot(log, slot), ObjectName::slot(world.logs[1].id, user));
    let text = format!("{object} is not the one that volumes/{volume} refers to: that one is lost");
    assert!(error.to_string().contains(&text), "{error}");
    let report = crate::verify::verify(&vault, false, |_| {}).await.unwrap();
    let told = format!("is not the segment that {user} refers to: that one is lost");
    let is_it = |problem: &crate::verify::Problem| problem.object == object && problem.what == told;
    assert!(report.problems.iter().any(is_it), "{report:?}");
}

/// S22: the slots in front of an epoch's first one are lost, and the log goes on behind them.
#[tokio::test]
async fn slots_lost_in_front_of_an_epoch_do_not_end_it() {
    for lost in 1..=5_u64 {
        let mut world = World::new(2, 2).await;
        world.write(0, 0, 8, 1000);
        world.end_span(0, true);
        world.commit(0).await;
        world.claim(1, 1).await;
        for seed in 2..9 {
            world.write(1, 0, 8, seed * 1000);
            world.end_span(1, true);
            world.commit(1).await;
        }
        world.claim(0, 1).await;
        let first = world.logs[1].next;
        for seed in [20_000, 30_000, 40_000, 50_000] {
            world.write(0, 4, 8, seed);
            world.end_span(0, true);
            world.commit(1).await;
        }
        for back in 1..=lost {
            let slot = Slot(first.0 - back);
            std::fs::remove_file(world.file(&ObjectName::slot(world.logs[1].id, slot))).unwrap();
        }
        let vault = world.reopen().await;
        let volume = world.volumes[0].id;
        let view = VolumeView::open(&vault, volume, PointSelector::Latest).await.unwrap();
        assert_eq!(view.point().seq, world.volumes[0].seq, "{lost} slots lost");
        let bytes = flatten(&view.read(whole()).await.unwrap());
        assert!(bytes == image_bytes(&world.volumes[0].image), "{lost} slots lost");
        let report = crate::verify::verify(&vault, true, |_| {}).await.unwrap();
        assert!(!report.is_whole(), "{lost} slots lost");
        let latest = VolumeView::open(&vault, world.volumes[1].id, PointSelector::Latest).await;
        assert_eq!(latest.unwrap_err().kind(), ErrorKind::Corrupt, "{lost} slots lost");
    }
}

/// A mark each second makes as many as a listing takes in 194 days.
#[tokio::test]
async fn a_view_is_read_through_more_marks_than_a_listing_takes() {
    let mut world = World::new(1, 1).await;
    world.end_span(0, true);
    world.commit(0).await;
    let volume = world.volumes[0].id;
    let epochs = crate::epoch::read_epochs(&world.vault, volume).await.unwrap();
    let mut build = Build::behind(None, &Origin::default());
    let mut chain = Chain::begin(&world.vault, volume, epochs, 0).unwrap();
    let found = chain.next().await.unwrap().unwrap();
    for _ in 0..=crate::limits::POINTS_MAX {
        build.take(&chain, &found).unwrap();
    }
    assert_eq!(build.point().map(|point| point.id), Some(world.points[0].id));
}
