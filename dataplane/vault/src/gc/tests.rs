use super::*;
use crate::base::tests::{check, is_there, make_base};
use crate::horizon;
use crate::map::{Shape, write_shaped};
use crate::testing::{BLOCKS, World};
use farshore_proto::ErrorKind;
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
    let seed = prop_oneof![1 => Just(0_u32), 3 => (1..6_u32).prop_map(|seed| seed * 1000)];
    let write =
        (0..2_usize, 0..BLOCKS / 4, 1..24_u64, seed).prop_map(|(volume, block, count, seed)| {
            Do::Write { volume, block: block * 4, count, seed }
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

/// Applies the register, as a node does: nothing that is condemned is referred to from the next segment on.
async fn apply(world: &mut World, log: usize) {
    let entry = register::newest(&world.vault, 0).await.unwrap();
    let condemned = register::condemned(&world.vault, &entry.state).await.unwrap();
    world.logs[log].refused.extend(condemned);
    world.logs[log].register = entry.number;
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
    let report = crate::verify::verify(&world.vault, true, |_| {}).await.unwrap();
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
    assert!(deleted > 20 && spared > 0 && waited > 20, "{:?}", sum.get());
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
