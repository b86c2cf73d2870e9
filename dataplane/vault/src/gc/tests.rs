use super::*;
use crate::base::tests::{base_at, check, is_there, make_base};
use crate::horizon;
use crate::horizon::tests::{Files, at_every_call, files};
use crate::log::{PutOutcome, find_whole_end, put_segment};
use crate::map::{Shape, write_shaped};
use crate::testing::{BLOCKS, World, at_once, counted};
use crate::verify::verify;
use crate::view::{PointSelector, VolumeView};
use bytes::Bytes;
use farshore_codec::SegmentBuilder;
use farshore_codec::segment::slot_without_data;
use farshore_proto::bugs::switch_on;
use farshore_proto::segment::SlotWriter;
use farshore_proto::{BlockRange, Epoch, ErrorKind};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

#[derive(Debug, Clone)]
enum Do {
    Write {
        volume: usize,
        block: u64,
        count: u64,
        seed: u32,
    },
    End {
        volume: usize,
        is_mark: bool,
    },
    Commit {
        log: usize,
    },
    Move {
        volume: usize,
        log: usize,
    },
    GoOn {
        volume: usize,
        log: usize,
        point: Index,
    },
    Restart {
        log: usize,
    },
    Map {
        volume: usize,
    },
    Base {
        volume: usize,
        map: Index,
        kept: u32,
    },
    LetGo {
        log: usize,
    },
    /// The writer of a log applies the register.
    Apply {
        log: usize,
    },
    Step,
}

fn act() -> impl Strategy<Value = Do> {
    // Few contents, so that what was condemned is written again.
    let seed = prop_oneof![1 => Just(0_u32), 6 => (1..4_u32).prop_map(|seed| seed * 1000)];
    let write =
        (0..2_usize, 0..BLOCKS / 8, 1..4_u64, seed).prop_map(|(volume, block, count, seed)| {
            Do::Write { volume, block: block * 8, count: count * 8, seed }
        });
    let (volume, log) = (0..2_usize, 0..2_usize);
    prop_oneof![
        8 => write,
        6 => (volume.clone(), prop::bool::weighted(0.8))
            .prop_map(|(volume, is_mark)| Do::End { volume, is_mark }),
        5 => log.clone().prop_map(|log| Do::Commit { log }),
        1 => (volume.clone(), log.clone()).prop_map(|(volume, log)| Do::Move { volume, log }),
        1 => (volume.clone(), log.clone(), any::<Index>())
            .prop_map(|(volume, log, point)| Do::GoOn { volume, log, point }),
        1 => log.clone().prop_map(|log| Do::Restart { log }),
        6 => volume.clone().prop_map(|volume| Do::Map { volume }),
        4 => (volume, any::<Index>(), any::<u32>())
            .prop_map(|(volume, map, kept)| Do::Base { volume, map, kept }),
        4 => log.clone().prop_map(|log| Do::LetGo { log }),
        4 => log.prop_map(|log| Do::Apply { log }),
        6 => Just(Do::Step),
    ]
}

fn shape() -> Shape {
    Shape { page_runs: 3, part_bytes: 500, layer_runs: 20, unmarked: 1, smallest: 2 }
}

/// What who begins now refers to no more.
async fn refused(vault: &Vault) -> BTreeSet<Target> {
    let mut reader = register::Reader::default();
    reader.refresh(vault).await.unwrap();
    reader.condemned().targets().copied().collect()
}

/// Applies the register, as a node does: nothing that is condemned is referred to from the next segment on.
async fn apply(world: &mut World, log: usize) {
    let entry = register::newest(&world.vault, 0).await.unwrap();
    let condemned = refused(&world.vault).await;
    world.logs[log].refused.extend(condemned);
    world.logs[log].register = entry.at();
}

async fn born() -> World {
    let mut world = World::new(2, 2).await;
    for log in 0..2 {
        register::bear(&world.vault, 0, world.logs[log].id).await.unwrap();
        apply(&mut world, log).await;
    }
    world
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    deleted: usize,
    spared: usize,
    waited: usize,
}

async fn act_out(world: &mut World, act: Do, totals: &mut Totals) {
    match act {
        Do::Write { volume, block, count, seed } => world.write(volume, block, count, seed),
        Do::End { volume, is_mark } => world.end_span(volume, is_mark),
        Do::Commit { log } => drop(world.commit(log).await),
        Do::Move { volume, log } => world.claim(volume, log).await,
        Do::GoOn { volume, log, point } => {
            let mut points = Vec::new();
            for point in world.committed_points() {
                if is_there(world, &point).await {
                    points.push(point);
                }
            }
            if !points.is_empty() {
                world.go_on_from(volume, log, point.get(&points)).await;
            }
        }
        Do::Restart { log } => world.logs[log].incarnation += 1,
        Do::Map { volume } => {
            world.commit(world.volumes[volume].log).await;
            write_shaped(&world.vault, world.volumes[volume].id, shape()).await.unwrap();
        }
        Do::Base { volume, map, kept } => drop(make_base(world, volume, &map, kept).await),
        Do::LetGo { log } => {
            drop(horizon::let_go(&world.vault, world.logs[log].id, Slot(u64::MAX)).await.unwrap());
        }
        Do::Apply { log } => apply(world, log).await,
        Do::Step => match step(&world.vault).await.unwrap() {
            Step::Judged { spared, .. } => totals.spared += spared,
            Step::Swept { segments, .. } => totals.deleted += segments,
            Step::Waiting { .. } => totals.waited += 1,
            Step::Nothing | Step::Condemned { .. } => {}
        },
    }
}

async fn run(acts: Vec<Do>) -> Totals {
    let (mut world, mut totals) = (born().await, Totals::default());
    for act in acts {
        act_out(&mut world, act, &mut totals).await;
    }
    check(&world).await;
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:#?}");
    totals
}

/// Whatever happens in whatever order: what a base keeps and what came since restores, and verification finds the vault whole.
#[test]
fn nothing_that_is_needed_is_deleted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let sum = std::cell::Cell::new(Totals::default());
    let ran = runner.run(&prop::collection::vec(act(), 30..140), |acts| {
        let now = runtime.block_on(run(acts));
        let Totals { deleted, spared, waited } = sum.get();
        sum.set(Totals {
            deleted: deleted + now.deleted,
            spared: spared + now.spared,
            waited: waited + now.waited,
        });
        Ok(())
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
    let Totals { deleted, spared, waited } = sum.get();
    assert!(deleted > 20 && waited > 20, "{:?}, {spared} spared", sum.get());
}

#[tokio::test]
async fn a_log_in_no_register_holds_everything_up_until_it_is_sealed() {
    let mut world = World::new(1, 1).await;
    world.write(0, 0, 4, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    let error = step(&world.vault).await.unwrap_err();
    assert!(matches!(error, VaultError::Unborn { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    world.seal(0).await;
    assert_eq!(step(&world.vault).await.unwrap(), Step::Nothing);
}

/// Writes the same bytes, wherever; commits them with a mark.
async fn put(world: &mut World, block: u64, seed: u32) {
    world.write(0, block, 8, seed);
    world.end_span(0, true);
    world.commit(0).await;
}

/// Slot 0 holds what nothing refers to any more, slot 1 what the base's map does; both are in front of the horizon.
async fn passed() -> World {
    let mut world = born().await;
    put(&mut world, 0, 1000).await;
    put(&mut world, 0, 2000).await;
    write_shaped(&world.vault, world.volumes[0].id, shape()).await.unwrap();
    base_at(&world, 1, &[1]).await.unwrap();
    let moved = horizon::let_go(&world.vault, world.logs[0].id, Slot(u64::MAX)).await.unwrap();
    assert!(matches!(moved, horizon::Moved::To(_)), "{moved:?}");
    world
}

/// The first of them is condemned.
async fn condemned() -> World {
    let world = passed().await;
    assert_eq!(step(&world.vault).await.unwrap(), Step::Condemned { number: 3, segments: 1 });
    world
}

async fn answer(world: &mut World) {
    for log in 0..2 {
        apply(world, log).await;
        world.commit(log).await;
    }
}

fn has_slot(world: &World, slot: u64) -> bool {
    world.file(&ObjectName::slot(world.logs[0].id, Slot(slot))).exists()
}

#[tokio::test]
async fn what_nothing_refers_to_goes_once_all_logs_have_answered() {
    let mut world = condemned().await;
    let waiting = |world: &World, logs: &[usize]| Step::Waiting {
        number: 3,
        logs: logs.iter().map(|log| world.logs[*log].id).collect(),
    };
    assert_eq!(step(&world.vault).await.unwrap(), waiting(&world, &[0, 1]));
    // An answer is a committed slot.
    apply(&mut world, 0).await;
    assert_eq!(step(&world.vault).await.unwrap(), waiting(&world, &[0, 1]));
    world.commit(0).await;
    assert_eq!(step(&world.vault).await.unwrap(), waiting(&world, &[1]));
    // Or a seal.
    world.seal(1).await;
    let judged = Step::Judged { of: 3, deleted: 1, spared: 0 };
    assert_eq!(step(&world.vault).await.unwrap(), judged);
    assert!(has_slot(&world, 0), "a verdict permits the delete, and does not carry it out");
    assert_eq!(step(&world.vault).await.unwrap(), Step::Swept { of: 3, segments: 1 });
    assert!(!has_slot(&world, 0) && has_slot(&world, 1));
    assert_eq!(step(&world.vault).await.unwrap(), Step::Nothing);
    // It is stored again, not referred to.
    put(&mut world, 16, 1000).await;
    check(&world).await;
}

/// Without the answers a writer that has not heard goes on to refer to what is deleted.
#[tokio::test]
async fn a_verdict_without_answers_loses_what_is_written_next() {
    for bug in [None, Some(Bug::VerdictWithoutAnswers)] {
        let mut world = condemned().await;
        switch_on(bug.as_slice());
        for _ in 0..2 {
            step(&world.vault).await.unwrap();
        }
        switch_on(&[]);
        put(&mut world, 16, 1000).await;
        let view = VolumeView::open(&world.vault, world.volumes[0].id, PointSelector::Latest);
        let view = view.await.unwrap();
        let read = view.read(BlockRange { block: 16, count: 8 }).await;
        assert_eq!(read.is_err(), bug.is_some(), "{bug:?}");
    }
}

/// The register lost its newest entry after writers had applied it, and a condemnation got its number: they have not heard of that.
#[tokio::test]
async fn what_was_said_of_an_entry_that_is_lost_answers_no_other_of_its_number() {
    for bug in [None, Some(Bug::AnswerByNumber)] {
        let mut world = passed().await;
        let lost = Statement::birth(LogId([77; 16]));
        register::append(&world.vault, 0, lost).await.unwrap();
        for log in 0..2 {
            apply(&mut world, log).await;
        }
        std::fs::remove_file(world.file(&ObjectName::register(3))).unwrap();
        let condemned = Step::Condemned { number: 3, segments: 1 };
        assert_eq!(step(&world.vault).await.unwrap(), condemned);
        for log in 0..2 {
            world.commit(log).await;
        }
        switch_on(bug.as_slice());
        let answered = step(&world.vault).await;
        let swept = step(&world.vault).await;
        switch_on(&[]);
        put(&mut world, 16, 1000).await;
        assert_eq!(has_slot(&world, 0), bug.is_none());
        if bug.is_some() {
            assert_eq!(answered.unwrap(), Step::Judged { of: 3, deleted: 1, spared: 0 });
            assert_eq!(swept.unwrap(), Step::Swept { of: 3, segments: 1 });
            continue;
        }
        check(&world).await;
        for error in [answered.unwrap_err(), swept.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("gc/0000000003"), "{error}");
        }
        // What is sealed refers to nothing more.
        for log in 0..2 {
            world.seal(log).await;
        }
        let judged = Step::Judged { of: 3, deleted: 0, spared: 1 };
        assert_eq!(step(&world.vault).await.unwrap(), judged);
    }
}

#[tokio::test]
async fn what_was_referred_to_before_the_answer_is_spared() {
    let mut world = condemned().await;
    let before = world.references;
    put(&mut world, 16, 1000).await;
    assert!(world.references > before, "its writer has not heard of the condemnation");
    answer(&mut world).await;
    let judged = Step::Judged { of: 3, deleted: 0, spared: 1 };
    assert_eq!(step(&world.vault).await.unwrap(), judged);
    assert_eq!(step(&world.vault).await.unwrap(), Step::Swept { of: 3, segments: 0 });
    assert!(has_slot(&world, 0));
    check(&world).await;
}

/// A sweeper that hung comes to its deletes when others have done them, and the slot holds something else.
#[tokio::test]
async fn a_verdict_deletes_the_attempt_that_it_names_and_no_other() {
    let mut world = condemned().await;
    answer(&mut world).await;
    step(&world.vault).await.unwrap();
    let file = world.file(&ObjectName::slot(world.logs[0].id, Slot(0)));
    let keys = world.vault.seal_keys();
    let at = (world.vault.id(), world.logs[0].id, Slot(0));
    let writer = SlotWriter::of_run(1);
    let fill = slot_without_data(SlotKind::Fill, at, writer, keys);
    std::fs::write(&file, fill.unwrap()).unwrap();
    assert_eq!(step(&world.vault).await.unwrap(), Step::Swept { of: 3, segments: 1 });
    assert!(has_slot(&world, 0), "what fences stays");
}

/// What says what is needed cannot be read: nothing is deleted.
#[tokio::test]
async fn nothing_is_deleted_where_what_is_needed_is_not_known() {
    let mut world = condemned().await;
    answer(&mut world).await;
    let base = crate::base::newest(&world.vault, world.volumes[0].id).await.unwrap().unwrap();
    let (at, attempt) = (base.body.at, base.body.map);
    let map = world.file(&ObjectName::map(base.volume, at, attempt));
    let files = [
        world.file(&base.object()),
        map,
        world.file(&ObjectName::pages(base.volume, at, attempt, 0)),
        world.file(&ObjectName::horizon(world.logs[0].id, 1)),
        world.file(&ObjectName::register(3)),
        world.file(&ObjectName::epoch(base.volume, 1)),
    ];
    for file in files {
        let kept = std::fs::read(&file).unwrap();
        let mut bytes = kept.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let error = step(&world.vault).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        std::fs::write(&file, kept).unwrap();
    }
    let judged = Step::Judged { of: 3, deleted: 1, spared: 0 };
    assert_eq!(step(&world.vault).await.unwrap(), judged);
}

/// A base is made and a horizon moved while what is needed is read: what both passed over is found one way or the other.
#[test]
fn what_is_needed_is_found_while_a_base_and_a_horizon_move() {
    at_once(while_a_base_and_a_horizon_move());
}

async fn while_a_base_and_a_horizon_move() {
    let mut world = condemned().await;
    let entry = register::newest(&world.vault, 0).await.unwrap();
    let target = refused(&world.vault).await;
    put(&mut world, 16, 1000).await;
    let folder = world.folder.path().to_owned();
    let before = files(&folder);
    write_shaped(&world.vault, world.volumes[0].id, shape()).await.unwrap();
    base_at(&world, 2, &[2]).await.unwrap();
    let moved = horizon::let_go(&world.vault, world.logs[0].id, Slot(u64::MAX)).await.unwrap();
    assert!(matches!(moved, horizon::Moved::To(_)), "{moved:?}");
    let after = files(&folder);
    for bug in [None, Some(Bug::BasesReadBeforeSlots)] {
        let mut missed = 0;
        let look = async |_, vault: Vault| {
            switch_on(bug.as_slice());
            let found = needed(&vault, &entry, &[]).await;
            switch_on(&[]);
            match found {
                Ok(found) => missed += u64::from(!target.is_subset(&found.targets)),
                Err(error) => assert!(matches!(error, VaultError::Passed { .. }), "{error}"),
            }
        };
        let calls = at_every_call(&world, [&before, &after], look).await;
        assert!(calls > 10 && (missed > 0) == bug.is_some(), "{bug:?}: {missed} of {calls}");
    }
}

/// What was lost is not taken for what nothing needs.
#[tokio::test]
async fn nothing_is_deleted_where_something_was_lost() {
    let mut world = condemned().await;
    put(&mut world, 16, 1000).await;
    // Of fewer slots behind a missing one nobody can tell a loss from a crash.
    for block in [24, 32, 40, 48] {
        put(&mut world, block, 1000).await;
    }
    answer(&mut world).await;
    let log = world.logs[0].id;
    let volume = world.volumes[0].id;
    let lost = [
        // A slot in front of the end, behind which something refers to what is condemned.
        world.file(&ObjectName::slot(log, Slot(2))),
        // The base that the horizon goes by.
        world.file(&ObjectName::base(volume, 1)),
        // An entry that slots state.
        world.file(&ObjectName::register(3)),
    ];
    for file in lost {
        let kept = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let error = step(&world.vault).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        std::fs::write(&file, kept).unwrap();
    }
    let judged = Step::Judged { of: 3, deleted: 0, spared: 1 };
    assert_eq!(step(&world.vault).await.unwrap(), judged);
}

/// In front of a horizon no scan of a log comes by: what a kept point needs there is looked at all the same.
#[tokio::test]
async fn verify_reads_what_kept_points_need_in_front_of_horizons() {
    let world = condemned().await;
    let object = ObjectName::slot(world.logs[0].id, Slot(1));
    let verified = async || verify(&world.vault, true, |_| {}).await.unwrap();
    let whole = verified().await;
    assert!(whole.is_whole() && whole.segments >= 1, "{whole:?}");
    let (file, mut bytes) = (world.file(&object), std::fs::read(world.file(&object)).unwrap());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    for damage in [Some(bytes), None] {
        std::fs::remove_file(&file).unwrap();
        if let Some(bytes) = &damage {
            std::fs::write(&file, bytes).unwrap();
        }
        let report = verified().await;
        let names = report.problems.iter().filter(|problem| problem.object == object);
        assert!(names.count() > 0, "{}: {report:?}", damage.is_some());
    }
}

/// A run hung before its put, and the next one filled the slot: were the fill swept with what lies beside it, the put would be told that it counts.
#[tokio::test]
async fn what_fences_is_never_swept() {
    for bug in [None, Some(Bug::FencesSwept)] {
        let mut world = born().await;
        put(&mut world, 0, 1000).await;
        let (log, vault) = (world.logs[0].id, world.vault.id());
        let keys = world.vault.seal_keys();
        let hung = SlotWriter::of_run(1);
        let late = SegmentBuilder::new(vault, log, Slot(1), hung, keys, 1).unwrap();
        let late = Bytes::from(late.finish().unwrap().bytes().to_vec());
        for slot in (1..5).map(Slot) {
            let at = (vault, log, slot);
            let fill = slot_without_data(SlotKind::Fill, at, SlotWriter::of_run(2), keys);
            std::fs::write(world.file(&ObjectName::slot(log, slot)), fill.unwrap()).unwrap();
        }
        (world.logs[0].next, world.logs[0].incarnation) = (Slot(5), 2);
        put(&mut world, 0, 2000).await;
        write_shaped(&world.vault, world.volumes[0].id, shape()).await.unwrap();
        base_at(&world, 1, &[1]).await.unwrap();
        let moved = horizon::let_go(&world.vault, log, Slot(u64::MAX)).await.unwrap();
        assert!(matches!(&moved, horizon::Moved::To(to) if to.slot() > Slot(4)), "{moved:?}");
        switch_on(bug.as_slice());
        while step(&world.vault).await.unwrap() != Step::Nothing {
            answer(&mut world).await;
        }
        switch_on(&[]);
        assert!(!has_slot(&world, 0));
        let put = put_segment(&world.vault, log, Slot(1), late).await.unwrap();
        assert_eq!(put == PutOutcome::Committed, bug.is_some(), "{bug:?}: {put:?}");
    }
}

/// What refers to anything and is in no register would not be looked at.
#[tokio::test]
async fn a_log_that_was_not_born_holds_up_what_it_may_refer_to() {
    for bug in [None, Some(Bug::UnbornOverlooked)] {
        let mut world = World::new(2, 2).await;
        register::bear(&world.vault, 0, world.logs[0].id).await.unwrap();
        apply(&mut world, 0).await;
        put(&mut world, 0, 1000).await;
        put(&mut world, 0, 2000).await;
        write_shaped(&world.vault, world.volumes[0].id, shape()).await.unwrap();
        base_at(&world, 1, &[1]).await.unwrap();
        let moved = horizon::let_go(&world.vault, world.logs[0].id, Slot(u64::MAX)).await.unwrap();
        assert!(matches!(moved, horizon::Moved::To(_)), "{moved:?}");
        world.claim(1, 1).await;
        let before = world.references;
        world.write(1, 40, 8, 1000);
        world.end_span(1, true);
        world.commit(1).await;
        assert!(world.references > before, "it refers to slot 0");
        switch_on(bug.as_slice());
        let mut last = step(&world.vault).await;
        for _ in 0..8 {
            apply(&mut world, 0).await;
            world.commit(0).await;
            last = step(&world.vault).await;
        }
        switch_on(&[]);
        match bug {
            None => assert!(matches!(last, Err(VaultError::Unborn { .. })), "{last:?}"),
            Some(_) => assert_eq!(last.unwrap(), Step::Nothing),
        }
        assert_eq!(has_slot(&world, 0), bug.is_none(), "{bug:?}");
    }
}

/// A log of which much is deleted: its horizon is at slot 40, the one before at 2; three slots are behind.
async fn swept() -> World {
    swept_since().await.0
}

/// The same, and what there was in front of that horizon.
async fn swept_since() -> (World, Files) {
    let mut world = condemned().await;
    for seed in 0..40 {
        put(&mut world, 8, 3000 + seed).await;
    }
    let before = files(world.folder.path());
    let volume = world.volumes[0].id;
    write_shaped(&world.vault, volume, shape()).await.unwrap();
    let points = world.committed_points().len();
    base_at(&world, points - 1, &[points - 1]).await.unwrap();
    let log = world.logs[0].id;
    let moved = horizon::let_go(&world.vault, log, Slot(40)).await.unwrap();
    assert!(matches!(&moved, horizon::Moved::To(to) if to.slot() == Slot(40)), "{moved:?}");
    while step(&world.vault).await.unwrap() != Step::Nothing {
        answer(&mut world).await;
    }
    assert!(!has_slot(&world, 38), "nothing needs it");
    (world, before)
}

/// A horizon that comes, and deletes that it permits, while an end is looked for, are no loss: floors are read before horizons.
#[test]
fn a_horizon_that_moves_while_an_end_is_looked_for_is_not_lost() {
    at_once(async {
        let (world, before) = swept_since().await;
        let (log, after) = (world.logs[0].id, files(world.folder.path()));
        let look = async |call, vault: Vault| match find_whole_end(&vault, log, Slot(0)).await {
            Ok(end) => assert!(end.next > Slot(41), "call {call}: {end:?}"),
            Err(error) => {
                assert!(matches!(error, VaultError::Passed { .. }), "call {call}: {error}")
            }
        };
        let calls = at_every_call(&world, [&before, &after], look).await;
        assert!(calls > 10, "{calls}");
    });
}

/// The newest horizon is lost, and nothing is left of the slots behind the one before: nobody writes there.
#[tokio::test]
async fn a_log_whose_newest_horizon_is_lost_does_not_end_at_the_one_before() {
    let world = swept().await;
    let (log, volume) = (world.logs[0].id, world.volumes[0].id);
    let whole = find_end(&world.vault, log, Slot(0)).await.unwrap();
    assert_eq!(find_whole_end(&world.vault, log, Slot(0)).await.unwrap(), whole);
    let lost = ObjectName::horizon(log, 2);
    std::fs::remove_file(world.file(&lost)).unwrap();
    // What was deleted looks like the end.
    let found = find_end(&world.vault, log, Slot(0)).await.unwrap();
    assert!(found.next < Slot(8) && whole.next > Slot(41), "{found:?}");
    let count = files(world.folder.path()).len();
    let is_it = |error: &VaultError| matches!(error, VaultError::LostHorizon { object, .. } if *object == lost);
    for found in [
        find_whole_end(&world.vault, log, Slot(0)).await,
        crate::log::seal(&world.vault, log, Slot(0)).await,
    ] {
        let error = found.unwrap_err();
        assert!(is_it(&error) && error.is_lost() && error.kind() == ErrorKind::Corrupt, "{error}");
    }
    let error = step(&world.vault).await.unwrap_err();
    assert!(is_it(&error), "{error}");
    let fence = crate::fence::fence_volume(&world.vault, volume, Epoch(99), None).await;
    assert!(fence.unwrap_err().is_lost());
    // Who reads the volume begins at its base, behind what was deleted.
    check(&world).await;
    assert_eq!(files(world.folder.path()).len(), count, "nothing was put");
    let report = verify(&world.vault, false, |_| {}).await.unwrap();
    assert!(report.problems.iter().any(|problem| problem.object == lost), "{report:?}");
    let entry = register::newest(&world.vault, 0).await.unwrap();
    assert_eq!(entry.state.floors[&log], Slot(40), "{entry:?}");
}

/// A base is lost, and slots that it covered are deleted: that is said, not that history was let go meanwhile.
#[tokio::test]
async fn a_lost_base_that_a_horizon_went_by_is_named() {
    let world = swept().await;
    let volume = world.volumes[0].id;
    std::fs::remove_file(world.file(&ObjectName::base(volume, 2))).unwrap();
    // Behind the newest map nothing is lost.
    let open = |point| VolumeView::open(&world.vault, volume, point);
    let points = world.committed_points();
    assert_eq!(open(PointSelector::Latest).await.unwrap().point().id, points.last().unwrap().id);
    let Err(error) = open(PointSelector::Seq(points[20].seq)).await else { panic!("it is gone") };
    let name = ObjectName::base(volume, 2).to_string();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&name), "{error}");
}

/// The slot where a base ends is there, or in front of the horizon: where it is not, all behind it is lost, and nobody seals in front of it.
#[tokio::test]
async fn a_lost_end_behind_a_base_or_a_map_is_no_end() {
    for has_base in [true, false] {
        let mut world = born().await;
        for seed in 0..30 {
            put(&mut world, 8, 3000 + seed).await;
        }
        let (log, volume) = (world.logs[0].id, world.volumes[0].id);
        write_shaped(&world.vault, volume, shape()).await.unwrap();
        if has_base {
            base_at(&world, 29, &[29]).await.unwrap();
        }
        for slot in 20..30 {
            std::fs::remove_file(world.file(&ObjectName::slot(log, Slot(slot)))).unwrap();
        }
        let error = VolumeView::open(&world.vault, volume, PointSelector::Latest).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt, "{has_base}");
        let fence = crate::fence::fence_volume(&world.vault, volume, Epoch(99), None).await;
        let error = fence.unwrap_err();
        assert!(error.is_lost(), "{has_base}: {error}");
        let end = find_end(&world.vault, log, Slot(0)).await.unwrap();
        assert!(!end.is_sealed && end.next == Slot(20), "{has_base}: {end:?}");
    }
}

/// A log that is in no register is sealed: what it refers to stays.
#[tokio::test]
async fn what_a_sealed_log_in_no_register_refers_to_is_needed() {
    let mut world = condemned().await;
    world.claim(1, 1).await;
    world.write(1, 40, 8, 1000);
    world.end_span(1, true);
    world.commit(1).await;
    world.seal(1).await;
    answer_of(&mut world, 0).await;
    // As if its birth had never been.
    let entry = register::newest(&world.vault, 0).await.unwrap();
    let mut unborn = entry.clone();
    unborn.state.logs.remove(&world.logs[1].id);
    let target = refused(&world.vault).await;
    assert!(
        target
            .is_subset(&needed(&world.vault, &unborn, &[world.logs[1].id]).await.unwrap().targets)
    );
}

async fn answer_of(world: &mut World, log: usize) {
    apply(world, log).await;
    world.commit(log).await;
}

/// A writer that has not heard refers to what is condemned, and answers, while the verdict is made: what is needed is read behind the answers.
#[test]
fn an_answer_that_comes_while_a_verdict_is_made_spares_what_was_referred_to_before() {
    at_once(an_answer_while_a_verdict_is_made());
}

async fn an_answer_while_a_verdict_is_made() {
    let mut world = condemned().await;
    answer_of(&mut world, 1).await;
    let folder = world.folder.path().to_owned();
    let before = files(&folder);
    put(&mut world, 16, 1000).await;
    answer_of(&mut world, 0).await;
    let after = files(&folder);
    let mut judged = 0;
    let look = async |call, vault: Vault| match step(&vault).await.unwrap() {
        Step::Waiting { .. } => {}
        Step::Judged { deleted: 0, spared: 1, .. } => judged += 1,
        other => panic!("call {call}: {other:?}"),
    };
    let calls = at_every_call(&world, [&before, &after], look).await;
    assert!(judged > 0 && calls > 10, "{judged} of {calls}");
}

/// That all is deleted is said behind the deletes: whoever goes on with what was cut short does them again.
#[tokio::test]
async fn a_sweep_that_is_cut_short_is_gone_on_with() {
    let mut world = condemned().await;
    answer(&mut world).await;
    let judged = Step::Judged { of: 3, deleted: 1, spared: 0 };
    assert_eq!(step(&world.vault).await.unwrap(), judged);
    let (store, hooks) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    hooks.refuse(&ObjectName::slot(world.logs[0].id, Slot(0)).to_string());
    step(&vault).await.unwrap_err();
    assert!(has_slot(&world, 0));
    assert_eq!(step(&world.vault).await.unwrap(), Step::Swept { of: 3, segments: 1 });
    assert!(!has_slot(&world, 0));
}

/// S41: a claimant that hung seals a slot that was lost, far in front of the end: what is referred to behind it is needed all the same.
#[tokio::test]
async fn a_seal_in_the_place_of_a_lost_slot_ends_nothing() {
    let mut world = condemned().await;
    let entry = register::newest(&world.vault, 0).await.unwrap();
    // So many that the search for the end does not come by.
    for _ in 0..70 {
        put(&mut world, 16, 2000).await;
    }
    let whole = needed(&world.vault, &entry, &[]).await.unwrap();
    assert!(!whole.targets.is_empty());
    let keys = world.vault.seal_keys();
    let log = world.logs[0].id;
    for slot in [2, 5, 20, 40] {
        let file = world.file(&ObjectName::slot(log, Slot(slot)));
        let kept = std::fs::read(&file).unwrap();
        let at = (world.vault.id(), log, Slot(slot));
        let seal = slot_without_data(SlotKind::Seal, at, SlotWriter::of_run(2), keys);
        std::fs::write(&file, seal.unwrap()).unwrap();
        assert!(!find_end(&world.vault, log, Slot(0)).await.unwrap().is_sealed, "{slot}");
        let error = needed(&world.vault, &entry, &[]).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, VaultError::LostSlot { .. }), "{slot}: {error}");
        std::fs::write(&file, kept).unwrap();
    }
}

/// What is more than a condemnation names is for the next one.
#[tokio::test]
async fn a_condemnation_names_no_more_than_it_may() {
    let mut world = born().await;
    world.claim(1, 1).await;
    for seed in 1..6_u32 {
        for number in 0..2 {
            let seed = seed * 1000 + u32::try_from(number).unwrap() * 50_000;
            world.write(number, 0, 8, seed);
            world.end_span(number, true);
            world.commit(number).await;
        }
    }
    for number in 0..2 {
        let (volume, log) = (world.volumes[number].id, world.logs[number].id);
        write_shaped(&world.vault, volume, shape()).await.unwrap();
        crate::base::renew(&world.vault, volume, |_| false).await.unwrap().unwrap();
        let moved = horizon::let_go(&world.vault, log, Slot(u64::MAX)).await.unwrap();
        assert!(matches!(moved, horizon::Moved::To(_)), "{number}: {moved:?}");
    }
    let listed = crate::catalog::log_ids(&world.vault).await.unwrap();
    // Four of each log; the newest of each is in its base.
    for max in [1, 2, 3, 4, 5, 7, 8, 9] {
        let entry = register::newest(&world.vault, 0).await.unwrap();
        let step = condemn(&world.vault, &entry, &listed, max).await.unwrap();
        let Step::Condemned { segments, .. } = step else { panic!("{max}: {step:?}") };
        assert_eq!(segments, max.min(8));
    }
}
