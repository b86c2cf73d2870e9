use super::write::write_parts;
use super::*;
use crate::error::VaultError;
use crate::fence::end_of_stream;
use crate::testing::{BLOCKS, World, image_bytes, stamp_of};
use crate::verify::verify;
use crate::view::{Point, VolumeView, flatten};
use farshore_codec::map::{open_map, seal_map};
use farshore_proto::limits::MAP_RUNS_MAX;
use farshore_proto::map::{MapBody, MapFields};
use farshore_proto::{BlockRange, ChunkId, ErrorKind};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

const WHOLE: BlockRange = BlockRange { block: 0, count: BLOCKS };

/// What a view shows.
type Seen = Result<(Point, String, Vec<u8>, Vec<(BlockRange, bool)>), ErrorKind>;

async fn see(vault: &Vault, volume: VolumeId, selector: PointSelector) -> Seen {
    match VolumeView::open(vault, volume, selector).await {
        Ok(view) => {
            let bytes = flatten(&view.read(WHOLE).await.unwrap());
            Ok((*view.point(), view.label().to_owned(), bytes, view.extents(WHOLE)))
        }
        Err(error) => Err(error.kind()),
    }
}

/// Every volume at every point, by id, by seq and as the latest.
async fn see_all(world: &World) -> Vec<Seen> {
    let vault = world.reopen().await;
    let mut seen = Vec::new();
    for (number, volume) in world.volumes.iter().enumerate() {
        if let Ok(end) = end_of_stream(&vault, volume.id).await {
            assert_eq!(end.stamp, stamp_of(number, end.last_seq), "whose the newest frame is");
        }
        seen.push(see(&vault, volume.id, PointSelector::Latest).await);
        seen.push(see(&vault, volume.id, PointSelector::Seq(Seq(2))).await);
        seen.push(see(&vault, volume.id, PointSelector::Point(PointId([0xee; 16]))).await);
    }
    for point in world.committed_points() {
        let volume = world.volumes[point.volume].id;
        for selector in [PointSelector::Point(point.id), PointSelector::Seq(point.seq)] {
            let found = see(&vault, volume, selector).await;
            let (at, _, bytes, _) = found.as_ref().unwrap();
            assert_eq!((at.id, at.seq), (point.id, point.seq));
            assert!(*bytes == image_bytes(&point.image), "{point:?}");
            seen.push(found);
        }
    }
    seen
}

fn maps(world: &World) -> PathBuf {
    world.folder.path().join("vault").join("maps")
}

/// All with the maps that there are, and all without any, are the same.
async fn check(world: &World) {
    let with = see_all(world).await;
    let away = world.folder.path().join("away");
    let has_maps = maps(world).exists();
    if has_maps {
        fs::rename(maps(world), &away).unwrap();
    }
    let without = see_all(world).await;
    if has_maps {
        fs::rename(&away, maps(world)).unwrap();
    }
    assert!(with == without);
}

#[derive(Debug, Clone)]
enum Step {
    Write { volume: usize, block: u64, count: u64, seed: u32 },
    End { volume: usize, is_mark: bool },
    Commit { log: usize },
    Move { volume: usize, log: usize },
    Restart { log: usize },
    Map { volume: usize, runs_max: usize },
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
        4 => (volume.clone(), any::<bool>())
            .prop_map(|(volume, is_mark)| Step::End { volume, is_mark }),
        4 => (0..2_usize).prop_map(|log| Step::Commit { log }),
        1 => (volume.clone(), 0..2_usize).prop_map(|(volume, log)| Step::Move { volume, log }),
        1 => (0..2_usize).prop_map(|log| Step::Restart { log }),
        3 => (volume, prop_oneof![1..6_usize, Just(MAP_RUNS_MAX)])
            .prop_map(|(volume, runs_max)| Step::Map { volume, runs_max }),
    ]
}

async fn run(steps: Vec<Step>) {
    let mut world = World::new(2, 2).await;
    let mut written = 0;
    for step in steps {
        match step {
            Step::Write { volume, block, count, seed } => world.write(volume, block, count, seed),
            Step::End { volume, is_mark } => world.end_span(volume, is_mark),
            Step::Commit { log } => drop(world.commit(log).await),
            Step::Move { volume, log } => world.claim(volume, log).await,
            Step::Restart { log } => world.logs[log].incarnation += 1,
            Step::Map { volume, runs_max } => {
                let id = world.volumes[volume].id;
                let map = write_parts(&world.vault, id, runs_max).await.unwrap();
                written += u64::from(map.is_some());
            }
        }
    }
    check(&world).await;
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole() && report.maps == written, "{written} maps: {report:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn maps_change_nothing_of_any_history(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}

/// The sample with maps of volume 0 at its newest two points, in parts, and one of volume 1.
async fn mapped() -> World {
    let mut world = World::sample().await;
    let volume = world.volumes[0].id;
    let older = write_parts(&world.vault, volume, 4).await.unwrap().unwrap();
    assert!(older.parts > 2, "{older:?}");
    world.write(0, 90, 3, 7000);
    world.end_span(0, true);
    world.write(0, 91, 3, 8000);
    world.end_span(0, false);
    world.commit(1).await;
    let newer = write_parts(&world.vault, volume, 4).await.unwrap().unwrap();
    assert_eq!(newer.seq, Seq(older.seq.0 + 2));
    assert_eq!(write(&world.vault, volume).await.unwrap(), None, "the newest point has its map");
    assert!(write(&world.vault, world.volumes[1].id).await.unwrap().is_some());
    assert_eq!(list(&world.vault, volume).await.unwrap().len(), 2);
    world
}

/// All parts of all maps, in order.
fn parts(world: &World) -> Vec<PathBuf> {
    fn walk(at: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let mut out = Vec::new();
    walk(&maps(world), &mut out);
    out.sort();
    out
}

fn name_of(world: &World, file: &Path) -> String {
    let root = world.folder.path().join("vault");
    file.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

/// With what is wrong now, everything reads as before, and verification names `file`.
async fn check_named(world: &World, expected: &[Seen], file: &Path, how: &str) {
    let name = name_of(world, file);
    assert!(see_all(world).await == expected, "{how} of {name}");
    for read_data in [false, true] {
        let report = verify(&world.vault, read_data, |_| {}).await.unwrap();
        let is_named = report.problems.iter().any(|problem| problem.object.to_string() == name);
        assert!(is_named, "{how} of {name}: {report:#?}");
    }
}

#[tokio::test]
async fn a_damaged_part_is_passed_over_and_named() {
    let world = mapped().await;
    check(&world).await;
    let expected = see_all(&world).await;
    for file in parts(&world) {
        let whole = fs::read(&file).unwrap();
        for at in [0, 50, 70, 100, 190, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&file, bytes).unwrap();
            check_named(&world, &expected, &file, &format!("flip at {at}")).await;
        }
        for length in [0, 192, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            check_named(&world, &expected, &file, &format!("cut to {length}")).await;
        }
        fs::write(&file, [whole.as_slice(), &[0]].concat()).unwrap();
        check_named(&world, &expected, &file, "growth").await;
        fs::write(&file, whole).unwrap();
    }
    check(&world).await;
}

#[tokio::test]
async fn a_missing_swapped_or_foreign_part_is_passed_over() {
    let (world, other) = (mapped().await, mapped().await);
    let expected = see_all(&world).await;
    let files = parts(&world);
    for (at, file) in files.iter().enumerate() {
        let whole = fs::read(file).unwrap();
        for neighbour in [(at + 1) % files.len(), (at + files.len() / 2) % files.len()] {
            fs::write(file, fs::read(&files[neighbour]).unwrap()).unwrap();
            check_named(&world, &expected, file, "swap").await;
        }
        let theirs = other.folder.path().join("vault").join(name_of(&world, file));
        fs::copy(theirs, file).unwrap();
        check_named(&world, &expected, file, "that of another vault in place").await;
        fs::remove_file(file).unwrap();
        if name_of(&world, file).ends_with("/0000") {
            assert!(see_all(&world).await == expected, "a map without its first part");
        } else {
            check_named(&world, &expected, file, "loss").await;
        }
        fs::write(file, &whole).unwrap();
    }
    // What is not a map of ours by its name is not looked at.
    fs::write(maps(&world).join("README"), "x").unwrap();
    fs::write(maps(&world).join(world.volumes[0].id.to_string()).join("7"), "x").unwrap();
    check(&world).await;
}

#[tokio::test]
async fn parts_of_two_attempts_are_not_one_map() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let expected = see_all(&world).await;
    write_parts(&world.vault, volume, 4).await.unwrap().unwrap();
    let files = parts(&world);
    let first = fs::read(&files[1]).unwrap();
    fs::remove_dir_all(maps(&world)).unwrap();
    write_parts(&world.vault, volume, 4).await.unwrap().unwrap();
    fs::write(&files[1], first).unwrap();
    check_named(&world, &expected, &files[1], "a part of another attempt").await;
    // An attempt that died before its first part: the next does not mix with it.
    fs::remove_file(&files[0]).unwrap();
    assert_eq!(write_parts(&world.vault, volume, 3).await.unwrap(), None);
    assert!(see_all(&world).await == expected);
}

/// Replaces the body of the first part of the newest map of a volume by one that opens.
fn forge(world: &World, file: &Path, seq: Seq, change: impl FnOnce(&mut MapBody)) {
    let vault = &world.vault;
    let at = MapPlace { vault: vault.id(), volume: world.volumes[0].id, seq, part: 0 };
    let (header, mut body) = open_map(&fs::read(file).unwrap(), at, vault.ring()).unwrap();
    change(&mut body);
    let (number, key) = vault.newest_key();
    fs::write(file, seal_map(at, &header.fields, key, number, &body, 1).unwrap()).unwrap();
}

#[tokio::test]
async fn a_map_that_says_what_the_logs_do_not_is_a_problem() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let written = write(&world.vault, volume).await.unwrap().unwrap();
    let file = world.file(&ObjectName::map(volume, written.seq, 0));
    let whole = fs::read(&file).unwrap();
    let changes: [fn(&mut MapBody); 5] = [
        |body| body.runs.truncate(body.runs.len() - 1),
        |body| body.runs = body.runs.split_off(1),
        |body| body.chunks[0].chunk += 1,
        |body| body.runs[1].range.count -= 1,
        |body| body.head.time_unix_ms += 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        forge(&world, &file, written.seq, change);
        assert!(verify(&world.vault, false, |_| {}).await.unwrap().is_whole());
        let report = verify(&world.vault, true, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "change {number}: {report:#?}");
        assert_eq!(report.problems[0].object, ObjectName::map(volume, written.seq, 0));
        fs::write(&file, &whole).unwrap();
    }
    // A reference that is not to the chunk is never followed.
    forge(&world, &file, written.seq, |body| body.chunks[0].id = ChunkId([0x55; 32]));
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    let error = view.read(WHOLE).await.unwrap_err();
    assert!(matches!(error, VaultError::Reference { .. }), "{error}");
    // Where reading goes on is tried, and given up for the logs.
    for change in [
        (|body| body.head.slot.0 += 100) as fn(&mut MapBody),
        |body| body.head.ordinal += 7,
        |body| body.head.ordinal = u64::MAX,
        |body| body.head.log.0 = [9; 16],
        |body| body.head.size_bytes += 4096,
    ] {
        fs::write(&file, &whole).unwrap();
        forge(&world, &file, written.seq, change);
        check(&world).await;
    }
}

#[tokio::test]
async fn a_map_of_what_a_fenced_writer_wrote_does_not_count() {
    let mut world = World::new(1, 2).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    let seq = world.volumes[0].seq;
    let volume = world.volumes[0].id;
    write(&world.vault, volume).await.unwrap().unwrap();
    world.write(0, 0, 8, 2000);
    world.end_span(0, true);
    world.commit(0).await;
    write(&world.vault, volume).await.unwrap().unwrap();
    world.points.pop();
    let body = EpochBody {
        stamp: stamp_of(0, seq),
        epoch: farshore_proto::Epoch(2),
        log: world.logs[1].id,
        first_slot: farshore_proto::Slot(0),
        first_seq: seq.next(),
        size_bytes: BLOCKS * farshore_proto::limits::BLOCK_BYTES as u64,
        label: String::new(),
    };
    crate::epoch::claim(&world.vault, volume, &body).await.unwrap();
    check(&world).await;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, seq);
}

#[tokio::test]
async fn a_map_whose_last_segment_is_lost_does_not_hide_the_loss() {
    let mut world = World::new(1, 1).await;
    for seed in [1000, 2000] {
        world.write(0, 0, 8, seed);
        world.end_span(0, true);
        world.commit(0).await;
    }
    let volume = world.volumes[0].id;
    write(&world.vault, volume).await.unwrap().unwrap();
    let point = world.points.pop().unwrap();
    fs::remove_file(world.file(&ObjectName::slot(world.logs[0].id, point.slot))).unwrap();
    let error = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap_err();
    assert!(matches!(error, VaultError::Lost { .. }), "{error}");
    // The points before it are found by their seqs and ids.
    let (seq, id) = (world.points[0].seq, world.points[0].id);
    for selector in [PointSelector::Seq(seq), PointSelector::Point(id)] {
        assert_eq!(see(&world.vault, volume, selector).await.unwrap().0.seq, seq);
    }
}

#[tokio::test]
async fn a_point_whose_id_is_out_of_order_is_found_by_the_logs() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    write(&world.vault, volume).await.unwrap().unwrap();
    world.write(0, 8, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    // The map claims a smaller id than the point before it has: it is chosen for that point.
    let seqs = list(&world.vault, volume).await.unwrap();
    let name = ObjectName::map(volume, *seqs.first().unwrap(), 0);
    let at = MapPlace { vault: world.vault.id(), volume, seq: *seqs.first().unwrap(), part: 0 };
    let object = fs::read(world.file(&name)).unwrap();
    let (header, body) = open_map(&object, at, world.vault.ring()).unwrap();
    let (number, key) = world.vault.newest_key();
    for point in [PointId([0; 16]), PointId([0xff; 16])] {
        let fields = MapFields { point, parts: 1, ..header.fields };
        let object = seal_map(at, &fields, key, number, &body, 1).unwrap();
        fs::write(world.file(&name), object).unwrap();
        let wanted = world.points[0].id;
        let found = see(&world.vault, volume, PointSelector::Point(wanted)).await.unwrap();
        assert_eq!((found.0.id, found.0.seq), (wanted, world.points[0].seq));
    }
}

#[tokio::test]
async fn maps_that_cannot_be_read_are_done_without() {
    let world = mapped().await;
    let newest = list(&world.vault, world.volumes[0].id).await.unwrap().pop_last().unwrap();
    let newest = ObjectName::map(world.volumes[0].id, newest, 0).to_string();
    for refused in ["maps", newest.trim_end_matches("/0000")] {
        let (store, counted) = crate::testing::counted(&world.vault);
        counted.refuse(refused);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        for point in world.committed_points() {
            let volume = world.volumes[point.volume].id;
            let seen = see(&vault, volume, PointSelector::Point(point.id)).await.unwrap();
            assert!(seen.2 == image_bytes(&point.image), "{point:?}");
        }
    }
}

/// GETs and time of opening a view with and without a map: `cargo nextest run --no-capture`.
#[tokio::test]
async fn a_map_spares_reading_two_thousand_segments() {
    let mut world = World::new(1, 1).await;
    for round in 0..2000_u32 {
        world.write(0, u64::from(round % 80), 1 + u64::from(round % 7), 1 + round * 10);
        world.end_span(0, true);
        world.commit(0).await;
    }
    let volume = world.volumes[0].id;
    let (store, gets) = crate::testing::counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let mut counts = Vec::new();
    for is_mapped in [false, true] {
        if is_mapped {
            write(&world.vault, volume).await.unwrap().unwrap();
        }
        let before = gets.count();
        let started = std::time::Instant::now();
        let view = VolumeView::open(&vault, volume, PointSelector::Latest).await.unwrap();
        let took = started.elapsed();
        let count = gets.count() - before;
        println!("2000 segments, map {is_mapped}: {count} GETs, {took:?}");
        let bytes = flatten(&view.read(WHOLE).await.unwrap());
        assert!(bytes == image_bytes(&world.volumes[0].image));
        counts.push(count);
    }
    assert!(counts[0] > 2000 && counts[1] < 40, "{counts:?}");
}
