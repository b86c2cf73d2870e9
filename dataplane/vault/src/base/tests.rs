mod damage;

use super::*;
use crate::catalog::{self, MarkTail, Marked, find_mark};
use crate::epoch::{newest_branch, place_of, read_epochs};
use crate::fence::end_of_stream;
use crate::horizon::{self, Moved};
use crate::log::{is_filled, read_segment};
use crate::map::{Shape, open_layers, write_shaped};
use crate::testing::{BLOCKS, ModelLog, ModelPoint, World, image_bytes};
use crate::view::{PointSelector, VolumeView, flatten};
use farshore_proto::limits::VOLUME_BLOCKS_MAX;
use farshore_proto::segment::ChunkPlace;
use farshore_proto::{BlockRange, ErrorKind, LogId, MapAttempt, Seq, Slot};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;

const WHOLE: BlockRange = BlockRange { block: 0, count: BLOCKS };

/// The kept point of a model's point whose map is there.
async fn kept_of(world: &World, point: &ModelPoint, map: MapAttempt) -> KeptPoint {
    let volume = world.volumes[point.volume].id;
    let epochs = read_epochs(&world.vault, volume).await.unwrap();
    let at = place_of(&epochs, point.seq);
    let body = &epochs[usize::try_from(at.ordinal).unwrap() - 1];
    let list = catalog::list_marks_to_damage(&world.vault, volume).await.unwrap();
    let marked = list.marks.into_iter().find(|marked| marked.point.id == point.id);
    let Marked { point, group } = marked.unwrap();
    let mark = farshore_proto::mark::Mark {
        point: point.id,
        kind: point.kind,
        unknown_blocks: point.unknown_blocks,
        is_prompt: false,
        time_unix_ms: point.time_unix_ms,
        group,
    };
    KeptPoint { at, map, epoch: body.epoch, size_bytes: body.size_bytes, mark }
}

/// The map of a volume at a place, if there is one.
async fn map_at(world: &World, number: usize, at: Place) -> Option<MapAttempt> {
    let names = map::list(&world.vault, world.volumes[number].id).await.unwrap();
    names.into_iter().find(|name| name.0 == at).map(|name| name.1)
}

/// Whether a point is there: not covered by its volume's base, or listed.
pub(crate) async fn is_there(world: &World, point: &ModelPoint) -> bool {
    let volume = world.volumes[point.volume].id;
    let (epochs, base) = read_whole(&world.vault, volume).await.unwrap();
    let at = place_of(&epochs, point.seq);
    base.is_none_or(|base| !base.covers(at) || base.body.kept_at(at).is_some())
}

/// Whether its volume's base lists a point.
async fn is_kept(world: &World, point: &ModelPoint) -> bool {
    let volume = world.volumes[point.volume].id;
    let base = newest(&world.vault, volume).await.unwrap();
    base.is_some_and(|base| base.kept(point.id).is_some())
}

#[derive(Debug, Clone)]
enum Step {
    Write { volume: usize, block: u64, count: u64, seed: u32 },
    End { volume: usize, is_mark: bool },
    Commit { log: usize },
    Move { volume: usize, log: usize },
    GoOn { volume: usize, log: usize, point: Index },
    Restart { log: usize },
    Map { volume: usize, shape: Shape },
    Base { volume: usize, map: Index, kept: u32 },
    Sweep,
}

fn shape() -> impl Strategy<Value = Shape> {
    let small = (1..6_usize, 1..20_usize, 1..8_usize, 1..8_u64);
    small.prop_map(|(page_runs, layer_runs, unmarked, smallest)| Shape {
        page_runs,
        part_bytes: 500,
        layer_runs,
        unmarked,
        smallest,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let seed = prop_oneof![1 => Just(0_u32), 3 => (1..6_u32).prop_map(|seed| seed * 1000)];
    let write =
        (0..2_usize, 0..BLOCKS / 4, 1..24_u64, seed).prop_map(|(volume, block, count, seed)| {
            Step::Write { volume, block: block * 4, count, seed }
        });
    let volume = 0..2_usize;
    prop_oneof![
        8 => write,
        6 => (volume.clone(), prop::bool::weighted(0.8))
            .prop_map(|(volume, is_mark)| Step::End { volume, is_mark }),
        4 => (0..2_usize).prop_map(|log| Step::Commit { log }),
        1 => (volume.clone(), 0..2_usize).prop_map(|(volume, log)| Step::Move { volume, log }),
        1 => (volume.clone(), 0..2_usize, any::<Index>())
            .prop_map(|(volume, log, point)| Step::GoOn { volume, log, point }),
        1 => (0..2_usize).prop_map(|log| Step::Restart { log }),
        6 => (volume.clone(), shape()).prop_map(|(volume, shape)| Step::Map { volume, shape }),
        3 => (volume, any::<Index>(), any::<u32>())
            .prop_map(|(volume, map, kept)| Step::Base { volume, map, kept }),
        2 => Just(Step::Sweep),
    ]
}

/// Points that epochs of any volume go on from.
async fn pinned(world: &World) -> BTreeSet<(VolumeId, Place)> {
    let mut pinned = BTreeSet::new();
    for volume in &world.volumes {
        let epochs = read_epochs(&world.vault, volume.id).await.unwrap();
        pinned
            .extend(epochs.iter().filter_map(|body| body.base).map(|base| (base.volume, base.at)));
    }
    pinned
}

/// Makes a base at one of the volume's maps, which keeps some of the points that have maps. False where that cannot be.
pub(crate) async fn make_base(world: &World, number: usize, which: &Index, bits: u32) -> bool {
    let volume = world.volumes[number].id;
    let (epochs, before) = read_whole(&world.vault, volume).await.unwrap();
    let branch = newest_branch(&epochs);
    let names = map::list(&world.vault, volume).await.unwrap();
    let fits = |name: &&map::Name| {
        let epoch = usize::try_from(name.0.ordinal).unwrap() - 1;
        branch.has(epoch) && before.as_ref().is_none_or(|base| name.0 >= base.body.at)
    };
    let names: Vec<_> = names.iter().filter(fits).copied().collect();
    if names.is_empty() {
        return false;
    }
    let (at, map) = *which.get(&names);
    let (pinned, mut points) = (pinned(world).await, Vec::new());
    for (bit, point) in world.committed_points().iter().enumerate() {
        let place = place_of(&epochs, point.seq);
        if point.volume != number || place > at || !is_there(world, point).await {
            continue;
        }
        let is_pinned = pinned.contains(&(volume, place));
        let is_wanted = bits & 1 << (bit % 32) != 0;
        let own = if place == at { Some(map) } else { map_at(world, number, place).await };
        match own {
            Some(own) if is_pinned || is_wanted => {
                points.push(kept_of(world, point, own).await);
            }
            None if is_pinned => return false,
            _ => {}
        }
    }
    let expected = before.map_or(1, |base| base.number + 1);
    assert_eq!(write(&world.vault, volume, at, map, points).await.unwrap(), expected);
    true
}

type Slots = BTreeSet<(LogId, Slot)>;

/// The slots that hold chunks of a map.
async fn slots_of(world: &World, number: usize, name: map::Name, slots: &mut Slots) {
    let (vault, volume) = (&world.vault, world.volumes[number].id);
    let epochs = read_epochs(vault, volume).await.unwrap();
    let base = map::load(vault, volume, &epochs, name).await.unwrap();
    let user = base.object(volume);
    for layer in open_layers(vault, volume, &base.manifest.layers, &user, &[]).await.unwrap() {
        for key in layer.pages_in(BlockRange { block: 0, count: VOLUME_BLOCKS_MAX }) {
            let page = layer.read(vault, key, &user).await.unwrap();
            slots.extend(page.frames.iter().map(|frame| (frame.target.log, frame.target.slot)));
        }
    }
}

/// The slot up to which the slots of a log may go, if none of their chunks is needed.
async fn horizon(world: &World, log: usize, spared: u64) -> u64 {
    let ModelLog { id, next, .. } = world.logs[log];
    let to = Slot(next.0.saturating_sub(spared));
    match horizon::let_go(&world.vault, id, to).await.unwrap() {
        Moved::To(horizon) | Moved::Already(horizon) => horizon.slot().0,
        Moved::Held(volume) => panic!("{volume} is not covered"),
    }
}

/// Deletes what bases allow to be deleted: maps that no base names below them, and slots below horizons that nothing needs.
async fn sweep(world: &mut World, spared: u64) -> usize {
    let (mut needed, mut horizons) = (Slots::new(), Vec::new());
    for number in 0..world.volumes.len() {
        let volume = world.volumes[number].id;
        let base = newest(&world.vault, volume).await.unwrap();
        for name in map::list(&world.vault, volume).await.unwrap() {
            let is_named = base.as_ref().is_none_or(|base| {
                let kept = base.body.points.iter().any(|point| (point.at, point.map) == name);
                name.0 > base.body.at || name == base.map() || kept
            });
            if is_named {
                slots_of(world, number, name, &mut needed).await;
            } else {
                let object = ObjectName::map(volume, name.0, name.1);
                std::fs::remove_file(world.file(&object)).unwrap();
            }
        }
    }
    for log in 0..world.logs.len() {
        horizons.push(horizon(world, log, spared).await);
    }
    for (log, horizon) in world.logs.iter().zip(&horizons) {
        for slot in *horizon..log.next.0 {
            let segment = read_segment(&world.vault, log.id, Slot(slot)).await.unwrap();
            for chunk in &segment.table.chunks {
                if let ChunkPlace::There { target, .. } = chunk.place {
                    needed.insert((target.log, target.slot));
                }
            }
        }
    }
    let mut gone = 0;
    for (log, horizon) in horizons.into_iter().enumerate() {
        for slot in (0..horizon).map(Slot) {
            let id = world.logs[log].id;
            let is_there = is_filled(&world.vault, id, slot).await.unwrap();
            if is_there && !needed.contains(&(id, slot)) {
                world.remove(log, slot);
                gone += 1;
            }
        }
    }
    gone
}

/// All marks from the end of a volume's stream backwards.
async fn all_marks(vault: &Vault, volume: VolumeId) -> Vec<PointId> {
    let mut tail = MarkTail::open(vault, volume).await.unwrap();
    while tail.before().is_some() {
        tail.extend(vault).await.unwrap();
    }
    let marks = tail.marks().iter().map(|marked| marked.point.id).collect();
    let broken = tail.into_broken();
    assert!(broken.is_none(), "{broken:?}");
    marks
}

async fn check_point(world: &World, vault: &Vault, point: &ModelPoint) {
    let volume = world.volumes[point.volume].id;
    let is_there = is_there(world, point).await;
    for selector in [PointSelector::Point(point.id), PointSelector::Seq(point.seq)] {
        match VolumeView::open(vault, volume, selector).await {
            Ok(view) => {
                assert!(is_there, "{point:?} was left out");
                assert_eq!((view.point().id, view.point().seq), (point.id, point.seq));
                let bytes = flatten(&view.read(WHOLE).await.unwrap());
                assert!(bytes == image_bytes(&point.image), "{point:?}");
            }
            Err(error) => {
                assert!(!is_there, "{point:?}: {error}");
                assert!(matches!(error, VaultError::PointGone { .. }), "{error}");
                assert_eq!(error.kind(), ErrorKind::NotFound);
                assert!(error.to_string().contains("retention has removed it"), "{error}");
            }
        }
    }
    let found = find_mark(vault, volume, point.id).await.unwrap();
    // One that it does not find may be there all the same, but for those that are listed.
    let seq = found.map(|marked| marked.point.seq);
    assert!(seq == is_there.then_some(point.seq) || seq.is_none() && !is_kept(world, point).await);
}

/// Every point that is there restores, and is listed; those that are not say that they are gone.
pub(crate) async fn check(world: &World) {
    let vault = world.reopen().await;
    for (number, volume) in world.volumes.iter().enumerate() {
        let (epochs, base) = read_whole(&vault, volume.id).await.unwrap();
        let (branch, mut there) = (newest_branch(&epochs), Vec::new());
        for point in world.committed_points().iter().filter(|point| point.volume == number) {
            check_point(world, &vault, point).await;
            if is_there(world, point).await {
                there.push((point.id, point.seq));
            }
        }
        let listed = catalog::list_points(&vault, volume.id).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|point| (point.id, point.seq)).collect();
        assert_eq!(listed, there, "volume {number}");
        let ids: Vec<_> = there.iter().map(|(id, _)| *id).collect();
        assert_eq!(all_marks(&vault, volume.id).await, ids, "volume {number}");
        let first_seq = epochs[branch.first].first_seq;
        let own = branch.base.filter(|base| base.volume == volume.id).map(|base| base.at.seq);
        let newest = there.iter().rfind(|(_, seq)| *seq >= first_seq || Some(*seq) == own);
        match VolumeView::open(&vault, volume.id, PointSelector::Latest).await {
            Ok(view) => assert_eq!(Some(&(view.point().id, view.point().seq)), newest),
            Err(error) => {
                assert!(newest.is_none(), "{error}");
                assert!(matches!(error, VaultError::NoPoint { .. }), "{error}");
            }
        }
        let end = end_of_stream(&vault, volume.id).await.unwrap();
        assert_eq!(end.point.map(|point| (point.id, point.seq)).as_ref(), newest);
        let last = catalog::end_of_volume(&vault, volume.id).await.unwrap().last_seq;
        assert_eq!(end.last_seq, last);
        assert!(base.is_none_or(|base| base.body.at.seq <= last));
    }
}

async fn ends(world: &World) -> Vec<Seq> {
    let mut ends = Vec::new();
    for volume in &world.volumes {
        ends.push(catalog::end_of_volume(&world.vault, volume.id).await.unwrap().last_seq);
    }
    ends
}

/// How many bases were made, and slots deleted.
async fn run(steps: Vec<Step>) -> (usize, usize) {
    let mut world = World::new(2, 2).await;
    let (mut bases, mut gone) = (0, 0);
    for step in steps {
        match step {
            Step::Write { volume, block, count, seed } => world.write(volume, block, count, seed),
            Step::End { volume, is_mark } => world.end_span(volume, is_mark),
            Step::Commit { log } => drop(world.commit(log).await),
            Step::Move { volume, log } => world.claim(volume, log).await,
            Step::GoOn { volume, log, point } => {
                let mut points = Vec::new();
                for point in world.committed_points() {
                    if is_there(&world, &point).await {
                        points.push(point);
                    }
                }
                if !points.is_empty() {
                    world.go_on_from(volume, log, point.get(&points)).await;
                }
            }
            Step::Restart { log } => world.logs[log].incarnation += 1,
            Step::Map { volume, shape } => {
                world.commit(world.volumes[volume].log).await;
                let id = world.volumes[volume].id;
                write_shaped(&world.vault, id, shape).await.unwrap();
            }
            Step::Base { volume, map, kept } => {
                bases += usize::from(make_base(&world, volume, &map, kept).await);
            }
            Step::Sweep => {
                let before = ends(&world).await;
                gone += sweep(&mut world, 4).await;
                assert_eq!(ends(&world).await, before, "where the streams end");
            }
        }
    }
    check(&world).await;
    if gone == 0 {
        let report = crate::verify::verify(&world.vault, true, |_| {}).await.unwrap();
        assert!(report.is_whole() && report.bases == bases as u64, "{report:#?}");
        assert_eq!(report.maps_not_compared, 0);
        let stats = crate::stats::stats(&world.vault).await.unwrap();
        assert_eq!(stats.points, report.points);
        let mut there = 0;
        for point in world.committed_points() {
            there += u64::from(is_there(&world, &point).await);
        }
        assert_eq!(report.points, there);
    }
    (bases, gone)
}

#[test]
fn bases_change_nothing_of_what_is_kept() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let totals = std::cell::Cell::new((0, 0));
    let ran = runner.run(&prop::collection::vec(step(), 1..90), |steps| {
        let (bases, gone) = runtime.block_on(run(steps));
        let so_far = totals.get();
        totals.set((so_far.0 + bases, so_far.1 + gone));
        Ok(())
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
    let (bases, gone) = totals.get();
    assert!(bases > 20 && gone > 20, "{bases} bases, {gone} slots deleted");
}

fn small() -> Shape {
    Shape { page_runs: 3, part_bytes: 500, layer_runs: 20, unmarked: 1, smallest: 2 }
}

/// Five marks of volume 0 in log 0, each in a slot of its own with a map, written over all blocks; a sixth without a map.
async fn marked() -> World {
    let mut world = World::new(1, 2).await;
    for seed in 1..=6_u32 {
        world.write(0, 0, BLOCKS, seed * 1000);
        world.end_span(0, true);
        world.commit(0).await;
        if seed < 6 {
            write_shaped(&world.vault, world.volumes[0].id, small()).await.unwrap().unwrap();
        }
    }
    world
}

/// Makes a base at a point's map, by its number from 0, that keeps points by their numbers.
pub(crate) async fn base_at(world: &World, at: usize, kept: &[usize]) -> Result<u64, VaultError> {
    let volume = world.volumes[0].id;
    let points = world.committed_points();
    let epochs = read_epochs(&world.vault, volume).await.unwrap();
    let place = |number: usize| place_of(&epochs, points[number].seq);
    let mut list = Vec::new();
    for number in kept {
        let map = map_at(world, 0, place(*number)).await.unwrap();
        list.push(kept_of(world, &points[*number], map).await);
    }
    let map = map_at(world, 0, place(at)).await.unwrap();
    write(&world.vault, volume, place(at), map, list).await
}

#[tokio::test]
async fn slots_below_a_base_may_go() {
    let mut world = marked().await;
    let volume = world.volumes[0].id;
    assert_eq!(newest(&world.vault, volume).await.unwrap(), None);
    assert_eq!(base_at(&world, 3, &[1, 3]).await.unwrap(), 1);
    check(&world).await;
    // Of the four slots up to the base's place two hold what is kept.
    assert_eq!(sweep(&mut world, 0).await, 2);
    check(&world).await;
    // The next pass keeps less, and goes up to where a point has no map yet.
    world.write(0, 3, 2, 0);
    world.end_span(0, false);
    world.write(0, 8, 2, 9000);
    world.end_span(0, true);
    world.commit(0).await;
    write_shaped(&world.vault, volume, small()).await.unwrap().unwrap();
    check(&world).await;
    assert_eq!(base_at(&world, 6, &[3]).await.unwrap(), 2);
    assert_eq!(sweep(&mut world, 0).await, 2, "all but those of the point, and of the base's map");
    check(&world).await;
    world.claim(0, 1).await;
    world.write(0, 50, 4, 20_000);
    world.end_span(0, true);
    world.commit(1).await;
    check(&world).await;
    let points = world.committed_points();
    let list = catalog::list_points(&world.vault, volume).await.unwrap();
    let expected = [points[3].id, points[7].id];
    assert_eq!(list.iter().map(|point| point.id).collect::<Vec<_>>(), expected);
}

/// The span there wrote nothing, so no map refers to its slot; few slots follow, or none.
#[tokio::test]
async fn the_slot_where_a_base_ends_may_be_gone() {
    for following in 0..6_u32 {
        let mut world = World::new(1, 1).await;
        let volume = world.volumes[0].id;
        world.write(0, 0, 40, 1000);
        world.end_span(0, true);
        world.commit(0).await;
        world.end_span(0, true);
        world.commit(0).await;
        write_shaped(&world.vault, volume, small()).await.unwrap().unwrap();
        for seed in 0..following {
            world.write(0, 5 * u64::from(seed), 9, 2000 + seed);
            world.end_span(0, seed % 2 == 0);
            world.commit(0).await;
        }
        let before = ends(&world).await;
        assert_eq!(base_at(&world, 1, &[1]).await.unwrap(), 1);
        assert_eq!(sweep(&mut world, 0).await, 1, "the slot of the second mark");
        check(&world).await;
        assert_eq!(ends(&world).await, before);
        let end = end_of_stream(&world.vault, volume).await.unwrap();
        assert_eq!(end.last_seq, before[0]);
        write_shaped(&world.vault, volume, small()).await.unwrap();
        check(&world).await;
    }
}

/// What a later program says of the points that are kept would not be in the next base of this one.
#[tokio::test]
async fn no_base_is_put_behind_one_of_which_a_later_program_says_more() {
    let world = marked().await;
    let volume = world.volumes[0].id;
    assert_eq!(base_at(&world, 2, &[0, 2]).await.unwrap(), 1);
    let base = newest(&world.vault, volume).await.unwrap().unwrap();
    let place = farshore_proto::base::place(world.vault.id(), volume, 1);
    world.outgrow(&ObjectName::base(volume, 1), place, base.body.encode());
    check(&world).await;
    let error = base_at(&world, 3, &[0, 3]).await.unwrap_err();
    assert!(matches!(error, VaultError::Outgrown { .. }), "{error}");
    assert!(newest(&world.vault, volume).await.unwrap().unwrap().number == 1);
}
