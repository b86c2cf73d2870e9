use super::*;
use crate::catalog::MarkTail;
use crate::error::VaultError;
use crate::fence::end_of_stream;
use crate::testing::{BLOCKS, Call, ModelPoint, World, counted, image_bytes, stamp_of};
use crate::verify::verify;
use crate::view::{Point, VolumeView, flatten};
use farshore_codec::map::{PartBuilder, PartOpener, seal_manifest};
use farshore_proto::epoch::{EndKind, Ended};
use farshore_proto::map::{MapFields, Page};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{BlockRange, ErrorKind, MarkKind, Seq, Slot};
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
            Ok((*view.point(), view.label().to_owned(), bytes, view.extents(WHOLE).await.unwrap()))
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
        let latest = see(&vault, volume.id, PointSelector::Latest).await;
        let newest = latest.as_ref().ok().map(|seen| seen.0.id);
        assert_eq!(newest, world.latest(number).map(|point| point.id), "the latest of {number}");
        seen.push(latest);
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

const FOLDERS: [&str; 2] = ["maps", "pages"];

/// All with the maps that there are, and all without any, are the same.
async fn check(world: &World) {
    let with = see_all(world).await;
    let vault = world.folder.path().join("vault");
    let present = FOLDERS.map(|folder| vault.join(folder).exists());
    for (folder, _) in FOLDERS.iter().zip(present).filter(|(_, is_there)| *is_there) {
        fs::rename(vault.join(folder), world.folder.path().join(folder)).unwrap();
    }
    let without = see_all(world).await;
    for (folder, _) in FOLDERS.iter().zip(present).filter(|(_, is_there)| *is_there) {
        fs::rename(world.folder.path().join(folder), vault.join(folder)).unwrap();
    }
    assert!(with == without);
}

#[derive(Debug, Clone)]
enum Step {
    Write { volume: usize, block: u64, count: u64, seed: u32 },
    End { volume: usize, is_mark: bool },
    Commit { log: usize },
    Move { volume: usize, log: usize },
    GoOn { volume: usize, log: usize, point: prop::sample::Index },
    Restart { log: usize },
    Map { volume: usize, shape: Shape },
}

fn shape() -> impl Strategy<Value = Shape> {
    let small = (1..6_usize, 1..1000_usize, 1..20_usize, 1..8_usize, 1..8_u64);
    let small = small.prop_map(|(page_runs, part_bytes, layer_runs, unmarked, smallest)| Shape {
        page_runs,
        part_bytes,
        layer_runs,
        unmarked,
        smallest,
    });
    prop_oneof![4 => small, 1 => Just(Shape::default())]
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
        1 => (volume.clone(), 0..2_usize, any::<prop::sample::Index>())
            .prop_map(|(volume, log, point)| Step::GoOn { volume, log, point }),
        1 => (0..2_usize).prop_map(|log| Step::Restart { log }),
        4 => (volume, shape()).prop_map(|(volume, shape)| Step::Map { volume, shape }),
    ]
}

async fn run(steps: Vec<Step>) -> Vec<Written> {
    let mut world = World::new(2, 2).await;
    let mut maps = Vec::new();
    for step in steps {
        match step {
            Step::Write { volume, block, count, seed } => world.write(volume, block, count, seed),
            Step::End { volume, is_mark } => world.end_span(volume, is_mark),
            Step::Commit { log } => drop(world.commit(log).await),
            Step::Move { volume, log } => world.claim(volume, log).await,
            Step::GoOn { volume, log, point } => {
                let points = world.committed_points();
                if !points.is_empty() {
                    world.go_on_from(volume, log, point.get(&points)).await;
                }
            }
            Step::Restart { log } => world.logs[log].incarnation += 1,
            Step::Map { volume, shape } => {
                let id = world.volumes[volume].id;
                maps.extend(write_shaped(&world.vault, id, shape).await.unwrap());
            }
        }
    }
    check(&world).await;
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    let mut listed = 0;
    for volume in &world.volumes {
        listed += list(&world.vault, volume.id).await.unwrap().len() as u64;
    }
    assert!(listed >= maps.len() as u64);
    assert!(report.is_whole() && report.maps == listed, "{listed} maps: {report:#?}");
    maps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn maps_change_nothing_of_any_history(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}

const SMALL: Shape =
    Shape { page_runs: 3, part_bytes: 1000, layer_runs: 1000, unmarked: 1000, smallest: 4 };

/// The sample with maps of volume 0 at its newest two points, a delta over pages, and one of volume 1.
async fn mapped() -> World {
    let mut world = World::sample().await;
    let volume = world.volumes[0].id;
    let older = write_shaped(&world.vault, volume, SMALL).await.unwrap().unwrap();
    assert_eq!((older.layers, older.runs), (1, older.new_runs), "{older:?}");
    assert!(older.runs > 6, "several pages: {older:?}");
    world.write(0, 90, 3, 7000);
    world.write(0, 3, 2, 0);
    world.end_span(0, true);
    world.write(0, 91, 3, 8000);
    world.end_span(0, false);
    world.commit(1).await;
    let newer = write_shaped(&world.vault, volume, SMALL).await.unwrap().unwrap();
    assert_eq!(newer.layers, 2, "{newer:?}");
    assert!(newer.new_runs < older.runs, "only what changed: {newer:?}");
    assert_eq!(newer.at.seq, Seq(older.at.seq.0 + 3));
    assert_eq!(write(&world.vault, volume).await.unwrap(), None, "the newest point has its map");
    assert!(write(&world.vault, world.volumes[1].id).await.unwrap().is_some());
    assert_eq!(list(&world.vault, volume).await.unwrap().len(), 2);
    world
}

/// All objects of maps, in order.
fn files(world: &World) -> Vec<PathBuf> {
    fn walk(at: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let mut out = Vec::new();
    for folder in FOLDERS {
        walk(&world.folder.path().join("vault").join(folder), &mut out);
    }
    out.sort();
    out
}

fn name_of(world: &World, file: &Path) -> String {
    let root = world.folder.path().join("vault");
    file.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

fn is_part(world: &World, file: &Path) -> bool {
    name_of(world, file).starts_with("pages/")
}

/// With what is wrong now, everything reads as before, and verification of all data names `file`.
async fn check_named(world: &World, expected: &[Seen], file: &Path, how: &str) {
    let name = name_of(world, file);
    assert!(see_all(world).await == expected, "{how} of {name}");
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    let is_named = report.problems.iter().any(|problem| problem.object.to_string() == name);
    assert!(is_named, "{how} of {name}: {report:#?}");
}

#[tokio::test]
async fn a_damaged_object_of_a_map_is_passed_over_and_named() {
    let world = mapped().await;
    check(&world).await;
    let expected = see_all(&world).await;
    for file in files(&world) {
        let whole = fs::read(&file).unwrap();
        for at in [0, 50, 70, 100, 170, 190, 230, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&file, bytes).unwrap();
            check_named(&world, &expected, &file, &format!("flip at {at}")).await;
        }
        for length in [0, 150, 192, whole.len() - 1] {
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
async fn a_missing_swapped_or_foreign_object_of_a_map_is_passed_over() {
    let (world, other) = (mapped().await, mapped().await);
    let expected = see_all(&world).await;
    let (all, theirs) = (files(&world), files(&other));
    for (at, file) in all.iter().enumerate() {
        let whole = fs::read(file).unwrap();
        for neighbour in [(at + 1) % all.len(), (at + all.len() / 2) % all.len()] {
            fs::write(file, fs::read(&all[neighbour]).unwrap()).unwrap();
            check_named(&world, &expected, file, "swap").await;
        }
        fs::copy(&theirs[at], file).unwrap();
        check_named(&world, &expected, file, "that of another vault in place").await;
        fs::remove_file(file).unwrap();
        if is_part(&world, file) {
            check_named(&world, &expected, file, "loss").await;
        } else {
            assert!(see_all(&world).await == expected, "a map without its manifest");
        }
        fs::write(file, &whole).unwrap();
    }
    // What is not a map of ours by its name is not looked at.
    let maps = world.folder.path().join("vault/maps");
    fs::write(maps.join("README"), "x").unwrap();
    fs::write(maps.join(world.volumes[0].id.to_string()).join("7"), "x").unwrap();
    check(&world).await;
}

/// A view that is open when a page turns out to be damaged goes on by the logs, as soon as they can be read.
#[tokio::test]
async fn a_view_outlives_the_damage_of_a_page() {
    let mut world = mapped().await;
    let volume = world.volumes[0].id;
    world.write(0, 40, 6, 9000);
    world.end_span(0, true);
    world.commit(1).await;
    let open = || VolumeView::open(&world.vault, volume, PointSelector::Latest);
    let (view, second) = (open().await.unwrap(), open().await.unwrap());
    let expected = flatten(&second.read(WHOLE).await.unwrap());
    for file in files(&world).into_iter().filter(|file| is_part(&world, file)) {
        fs::remove_file(file).unwrap();
    }
    let (logs, away) = (world.folder.path().join("vault/logs"), world.folder.path().join("away"));
    fs::rename(&logs, &away).unwrap();
    for _ in 0..3 {
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), view.read(WHOLE));
        assert!(read.await.expect("it ends").is_err(), "neither map nor logs");
    }
    fs::rename(&away, &logs).unwrap();
    let ranges = (0..BLOCKS).map(|block| view.read(BlockRange { block, count: 1 }));
    let read = futures::future::try_join_all(ranges).await.unwrap();
    assert!(read.iter().flat_map(|pieces| flatten(pieces)).eq(expected.iter().copied()));
    assert!(flatten(&view.read(WHOLE).await.unwrap()) == expected);
    assert_eq!(view.extents(WHOLE).await.unwrap(), second.extents(WHOLE).await.unwrap());
    assert!(flatten(&second.read(WHOLE).await.unwrap()) == expected, "from its cache");
}

/// All maps since a layer was lost are passed over at once, however many they are, and the next one is whole again.
#[tokio::test]
async fn a_lost_layer_of_very_many_maps_costs_one_try() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    let shape = Shape { smallest: 1000, ..SMALL };
    let mut names = Vec::new();
    for round in 0..30_u32 {
        world.write(0, u64::from(round % 12) * 8, 2, 1000 * (round + 1));
        world.end_span(0, true);
        world.commit(0).await;
        let written = write_shaped(&world.vault, volume, shape).await.unwrap().unwrap();
        names.push(written.at);
    }
    let full = *list(&world.vault, volume).await.unwrap().first().unwrap();
    fs::remove_file(world.file(&ObjectName::pages(volume, full.0, full.1, 0))).unwrap();
    check(&world).await;
    world.write(0, 90, 2, 77_000);
    world.end_span(0, true);
    world.commit(0).await;
    let written = write_shaped(&world.vault, volume, shape).await.unwrap().unwrap();
    assert_eq!(written.layers, 1, "it does not build on what is lost");
    check(&world).await;
}

#[tokio::test]
async fn attempts_that_died_and_attempts_side_by_side_never_meet() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let expected = see_all(&world).await;
    write_shaped(&world.vault, volume, SMALL).await.unwrap().unwrap();
    let (manifest, part) = (files(&world)[0].clone(), files(&world)[1].clone());
    // One that died before its manifest.
    fs::remove_file(&manifest).unwrap();
    assert!(write_shaped(&world.vault, volume, SMALL).await.unwrap().is_some());
    assert_eq!(files(&world).len(), 3, "the dead one's part, and both objects of the new one");
    check(&world).await;
    // The dead one's part in the place of the new one's.
    let new =
        files(&world).into_iter().find(|file| is_part(&world, file) && *file != part).unwrap();
    fs::copy(&part, &new).unwrap();
    check_named(&world, &expected, &new, "a part of another attempt").await;
}

/// A map that names a part before that is put, or without a look at what was kept of it, is one that a crash or a store
/// leaves broken.
#[tokio::test]
async fn a_map_is_put_behind_its_parts_and_once_they_were_read_back() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let (store, calls) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let shape = Shape { part_bytes: 1, ..SMALL };
    write_shaped(&vault, volume, shape).await.unwrap().unwrap();
    let trail = calls.trail();
    let first = |call, file: &Path| {
        let name = name_of(&world, file);
        trail.iter().position(|(made, at)| *made == call && at.as_ref() == name).unwrap()
    };
    let (parts, maps): (Vec<_>, Vec<_>) =
        files(&world).into_iter().partition(|file| is_part(&world, file));
    let [map] = &maps[..] else { panic!("{maps:?}") };
    assert!(parts.len() > 1, "{parts:?}");
    let at = first(Call::Put, map);
    for part in &parts {
        let (put, read) = (first(Call::Put, part), first(Call::Get, part));
        assert!(put < read && read < at, "{part:?}: {put}, {read}, {at}");
    }
}

/// Much came without a mark: there are maps without one, and the newest point is found all the same.
#[tokio::test]
async fn a_map_without_a_mark_serves_what_comes_behind_it_and_no_older_point() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    let shape = Shape { unmarked: 4, ..SMALL };
    let mut written = Vec::new();
    for round in 0..6_u32 {
        for block in 0..5 {
            world.write(0, u64::from(block * 6 + round), 1, 1000 * (round + 1) + block);
        }
        world.end_span(0, round == 1 || round == 5);
        world.commit(0).await;
        written.push(write_shaped(&world.vault, volume, shape).await.unwrap().unwrap().at.seq);
        check(&world).await;
    }
    let newest = world.volumes[0].seq;
    assert_eq!((written.last(), written.len()), (Some(&newest), 6));
    let end = end_of_stream(&world.vault, volume).await.unwrap();
    assert_eq!(end.point.map(|point| point.seq), Some(newest));
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole() && report.maps == 6, "{report:#?}");
    // Before the last mark the newest point was in front of four maps.
    let last = list(&world.vault, volume).await.unwrap().pop_last().unwrap();
    fs::remove_file(world.file(&ObjectName::map(volume, last.0, last.1))).unwrap();
    let slot = world.points.pop().unwrap().slot;
    fs::remove_file(world.file(&ObjectName::slot(world.logs[0].id, slot))).unwrap();
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, written[1]);
    assert!(flatten(&view.read(WHOLE).await.unwrap()) == image_bytes(&world.points[0].image));
    let end = end_of_stream(&world.vault, volume).await.unwrap();
    assert_eq!(end.point.map(|point| point.seq), Some(written[1]));
    assert_eq!(end.last_seq, written[4]);
}

/// Replaces the manifest of the newest map of volume 0 by one that opens.
fn forge(world: &World, name: Name, change: impl FnOnce(&mut MapFields, &mut Manifest)) {
    let vault = &world.vault;
    let at = place(vault, world.volumes[0].id, name);
    let file = world.file(&ObjectName::map(at.volume, at.at, at.attempt));
    let object = fs::read(&file).unwrap();
    let (header, mut manifest) = open_manifest(&object, &at, vault.ring()).unwrap();
    let mut fields = header.fields;
    change(&mut fields, &mut manifest);
    let keys = vault.seal_keys();
    fs::write(file, seal_manifest(&at, &fields, keys, &manifest, 1).unwrap()).unwrap();
}

/// Replaces the pages of the full layer of the map by ones that open, and the manifest to fit.
fn forge_pages(world: &World, name: Name, change: impl FnOnce(&mut Vec<Page>)) {
    let vault = &world.vault;
    let at = place(vault, world.volumes[0].id, name);
    let file = world.file(&ObjectName::pages(at.volume, at.at, at.attempt, 0));
    let object = fs::read(&file).unwrap();
    let opener = PartOpener::open(&front_of(&object), &at, 0, vault.ring()).unwrap();
    let range = |number| {
        let range = opener.page_range(number);
        usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
    };
    let pages = (0..opener.pages().len())
        .map(|number| opener.open_page(number, &object[range(number)]).unwrap());
    let mut pages: Vec<Page> = pages.collect();
    change(&mut pages);
    let keys = vault.seal_keys();
    let mut part = PartBuilder::new(at, 0, keys, 1).unwrap();
    pages.iter().for_each(|page| part.push(page, false).unwrap());
    let (object, shape, _) = part.finish().unwrap();
    fs::write(file, object).unwrap();
    let runs = pages.iter().map(|page| page.runs.len() as u64).sum();
    forge(world, name, |_, manifest| {
        (manifest.layers[0].runs, manifest.layers[0].parts) = (runs, vec![shape]);
    });
}

/// Header and directory of a part.
fn front_of(object: &[u8]) -> Vec<u8> {
    let header = farshore_proto::map::PartHeader::decode(object).unwrap();
    object[..header.object.whole_bytes()].to_vec()
}

#[tokio::test]
async fn a_map_that_says_what_the_logs_do_not_is_a_problem() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    write(&world.vault, volume).await.unwrap().unwrap();
    let name = list(&world.vault, volume).await.unwrap().pop_last().unwrap();
    let object = ObjectName::map(volume, name.0, name.1);
    let files = [object.clone(), ObjectName::pages(volume, name.0, name.1, 0)];
    let whole = files.clone().map(|file| fs::read(world.file(&file)).unwrap());
    let restore = || {
        for (file, bytes) in files.iter().zip(&whole) {
            fs::write(world.file(file), bytes).unwrap();
        }
    };
    let changes: [fn(&mut Vec<Page>); 5] = [
        |pages| {
            pages[0].runs.pop();
        },
        |pages| pages[0].runs = pages[0].runs.split_off(1),
        |pages| pages[0].chunks[0].number += 1,
        |pages| pages[0].runs[1].range.count -= 1,
        |pages| pages[0].chunks[0].check[3] ^= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        forge_pages(&world, name, change);
        assert!(verify(&world.vault, false, |_| {}).await.unwrap().is_whole());
        let report = verify(&world.vault, true, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "change {number}: {report:#?}");
        assert_eq!(report.problems[0].object, object);
        restore();
    }
    forge(&world, name, |_, manifest| manifest.mark.as_mut().unwrap().time_unix_ms += 1);
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert_eq!(report.problems[0].object, object, "{report:#?}");
    restore();
    // Bytes that are not of the chunk are never returned.
    for change in [(|pages| pages[0].chunks[0].check = [0x55; 8]) as fn(&mut Vec<Page>), |pages| {
        pages[0].chunks[0].offset += 4096
    }] {
        forge_pages(&world, name, change);
        let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
        let error = view.read(WHOLE).await.unwrap_err();
        assert!(matches!(error, VaultError::Damaged { .. }), "{error}");
        restore();
    }
    // Where reading goes on is tried, and given up for the logs.
    for change in [
        (|manifest| manifest.slot.0 += 100) as fn(&mut Manifest),
        |manifest| manifest.log.0 = [9; 16],
        |manifest| manifest.size_bytes += 4096,
        |manifest| manifest.layers[0].runs += 1,
        |manifest| manifest.layers[0].parts[0].front_bytes -= 1,
        |manifest| manifest.mark.as_mut().unwrap().at.ordinal += 1,
    ] {
        forge(&world, name, |_, manifest| change(manifest));
        check(&world).await;
        restore();
    }
    forge(&world, name, |fields, _| fields.ordinal += 7);
    check(&world).await;
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
        first_slot: Slot(0),
        first_seq: seq.next(),
        size_bytes: BLOCKS * farshore_proto::limits::BLOCK_BYTES as u64,
        label: String::new(),
        ended: Some(Ended { kind: EndKind::Word, slot: Slot(1) }),
        base: None,
    };
    crate::epoch::claim(&world.vault, volume, &body).await.unwrap();
    check(&world).await;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    assert_eq!(view.point().seq, seq);
}

/// Two points, a map at the second one, whose segment is lost.
async fn lost_under_a_map() -> (World, ModelPoint) {
    let mut world = World::new(1, 1).await;
    for seed in [1000, 2000] {
        world.write(0, 0, 8, seed);
        world.end_span(0, true);
        world.commit(0).await;
    }
    write(&world.vault, world.volumes[0].id).await.unwrap().unwrap();
    let lost = world.points.pop().unwrap();
    fs::remove_file(world.file(&ObjectName::slot(world.logs[0].id, lost.slot))).unwrap();
    (world, lost)
}

#[tokio::test]
async fn a_map_whose_last_segment_is_lost_does_not_hide_the_loss() {
    let (world, _) = lost_under_a_map().await;
    let volume = world.volumes[0].id;
    let error = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap_err();
    assert!(matches!(error, VaultError::Lost { .. }), "{error}");
    // The points before it are found by their seqs and ids.
    let (seq, id) = (world.points[0].seq, world.points[0].id);
    for selector in [PointSelector::Seq(seq), PointSelector::Point(id)] {
        assert_eq!(see(&world.vault, volume, selector).await.unwrap().0.seq, seq);
    }
}

/// S32: a map of slots that a store lost, and in whose place others came, is not gone on from; that there was a later point
/// is not hidden.
#[tokio::test]
async fn a_map_of_slots_that_others_took_is_not_used() {
    for more in [0, 1] {
        let mut world = World::new(1, 1).await;
        world.write(0, 0, 8, 1000);
        world.end_span(0, true);
        world.commit(0).await;
        let (kept, image) = (world.volumes[0].seq, world.volumes[0].image.clone());
        world.write(0, 0, 8, 2000);
        world.end_span(0, true);
        world.commit(0).await;
        let volume = world.volumes[0].id;
        write(&world.vault, volume).await.unwrap().unwrap();
        let lost = world.points.pop().unwrap();
        fs::remove_file(world.file(&ObjectName::slot(world.logs[0].id, lost.slot))).unwrap();
        // The log goes on from what is left; with the same seqs, or with others.
        world.volumes[0].rewind(kept, image);
        (world.logs[0].next, world.logs[0].incarnation) = (lost.slot, 2);
        for block in 0..=more {
            world.write(0, 16 + block, 1, 3000);
        }
        let mark = Mark {
            point: PointId([0xfe; 16]),
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: false,
            time_unix_ms: 1,
            group: MarkGroup::ALONE,
        };
        world.end_span_with(0, Some(|_| mark));
        let seq = world.volumes[0].seq;
        assert_eq!(seq == lost.seq, more == 0);
        world.commit(0).await;
        let expected = image_bytes(&world.volumes[0].image);
        let by_id = PointSelector::Point(mark.point);
        for is_ended in [false, true] {
            if is_ended {
                // The map is at the end of an epoch, or in it.
                world.claim(0, 0).await;
            }
            for selector in [PointSelector::Latest, by_id, PointSelector::Seq(seq)] {
                let (point, _, bytes, _) = see(&world.vault, volume, selector).await.unwrap();
                assert_eq!((point.seq, point.id), (seq, mark.point));
                assert!(bytes == expected, "{more} {is_ended} {selector:?}");
            }
        }
    }
    // Nothing came in their place that is as new as the map: the latest is not known.
    let (mut world, lost) = lost_under_a_map().await;
    let volume = world.volumes[0].id;
    let (kept, image) = (world.points[0].seq, world.points[0].image.clone());
    world.volumes[0].rewind(kept, image);
    (world.logs[0].next, world.logs[0].incarnation) = (lost.slot, 2);
    world.end_span(0, true);
    world.commit(0).await;
    let found = see(&world.vault, volume, PointSelector::Latest).await;
    assert_eq!(found.unwrap_err(), ErrorKind::Corrupt);
}

/// S31: a branch whose only point is lost is not given as what it goes on from, and a map without a mark there does not
/// hide the points of older branches.
#[tokio::test]
async fn a_branch_that_lost_its_point_is_not_its_base() {
    let mut world = World::new(1, 2).await;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    let volume = world.volumes[0].id;
    let old = world.points[0].clone();
    world.go_on_from(0, 1, &old).await;
    world.write(0, 0, 8, 2000);
    world.end_span(0, false);
    world.commit(1).await;
    let unmarked = write_shaped(&world.vault, volume, Shape { unmarked: 1, ..SMALL }).await;
    assert!(unmarked.unwrap().is_some());
    assert_eq!(see(&world.vault, volume, PointSelector::Latest).await.unwrap().0.id, old.id);
    let mut tail = MarkTail::open(&world.vault, volume).await.unwrap();
    while tail.before().is_some() {
        tail.extend(&world.vault).await.unwrap();
    }
    assert_eq!(tail.marks().iter().map(|mark| mark.point.id).collect::<Vec<_>>(), [old.id]);
    world.write(0, 20, 8, 3000);
    world.end_span(0, true);
    world.commit(1).await;
    write(&world.vault, volume).await.unwrap().unwrap();
    let lost = world.points.pop().unwrap();
    fs::remove_file(world.file(&ObjectName::slot(world.logs[1].id, lost.slot))).unwrap();
    let found = see(&world.vault, volume, PointSelector::Latest).await;
    assert_eq!(found.unwrap_err(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_point_whose_id_is_out_of_order_is_found_by_the_logs() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    world.write(0, 0, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    world.write(0, 8, 8, 1000);
    world.end_span(0, true);
    world.commit(0).await;
    write(&world.vault, volume).await.unwrap().unwrap();
    // The map claims a smaller id than the point before it has: it is chosen for that point.
    let name = list(&world.vault, volume).await.unwrap().pop_last().unwrap();
    for point in [PointId([1; 16]), PointId([0xff; 16])] {
        forge(&world, name, |fields, _| fields.point = Some(point));
        for point in &world.points {
            let found = see(&world.vault, volume, PointSelector::Point(point.id)).await.unwrap();
            assert_eq!((found.0.id, found.0.seq), (point.id, point.seq));
            assert!(found.2 == image_bytes(&point.image));
        }
    }
}

#[tokio::test]
async fn maps_that_cannot_be_read_are_done_without() {
    let world = mapped().await;
    let volume = world.volumes[0].id;
    let newest = list(&world.vault, volume).await.unwrap().pop_last().unwrap();
    let newest = ObjectName::map(volume, newest.0, newest.1).to_string();
    for refused in ["maps", newest.rsplit_once('/').unwrap().0] {
        let (store, counted) = counted(&world.vault);
        counted.refuse(refused);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        for point in world.committed_points() {
            let volume = world.volumes[point.volume].id;
            let seen = see(&vault, volume, PointSelector::Point(point.id)).await.unwrap();
            assert!(seen.2 == image_bytes(&point.image), "{point:?}");
        }
    }
}

/// GETs and time of opening a view with and without maps, and of one cold read: `cargo nextest run --no-capture`.
#[tokio::test]
async fn a_map_spares_reading_two_thousand_segments_and_a_read_is_a_page_and_a_frame() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    for round in 0..2000_u32 {
        world.write(0, u64::from(round % 80), 1 + u64::from(round % 7), 1 + round * 10);
        world.end_span(0, true);
        world.commit(0).await;
        if round.is_multiple_of(400) {
            write_shaped(&world.vault, volume, SMALL).await.unwrap();
        }
    }
    let (store, gets) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let mut counts = Vec::new();
    for is_mapped in [false, true] {
        if is_mapped {
            write_shaped(&world.vault, volume, SMALL).await.unwrap().unwrap();
        }
        let before = gets.count();
        let started = std::time::Instant::now();
        let view = VolumeView::open(&vault, volume, PointSelector::Latest).await.unwrap();
        let took = started.elapsed();
        let count = gets.count() - before;
        println!("2000 segments, newest map {is_mapped}: {count} GETs, {took:?}");
        let bytes = flatten(&view.read(WHOLE).await.unwrap());
        assert!(bytes == image_bytes(&world.volumes[0].image));
        counts.push(count);
    }
    assert!(counts[0] > 350 && counts[1] < 48, "{counts:?}");
    for block in 0..BLOCKS {
        let view = VolumeView::open(&vault, volume, PointSelector::Latest).await.unwrap();
        let before = gets.count();
        view.read(BlockRange { block, count: 1 }).await.unwrap();
        assert!(gets.count() - before <= 2, "block {block}: a page and a frame");
    }
}

/// What it says of a layer that the one before has too is not taken for compared.
#[tokio::test]
async fn a_map_that_says_something_else_of_a_layer_than_the_one_before_is_named() {
    let world = mapped().await;
    let volume = world.volumes[0].id;
    let name = list(&world.vault, volume).await.unwrap().pop_last().unwrap();
    forge(&world, name, |_, manifest| manifest.layers[1].runs += 1);
    for read_data in [false, true] {
        let report = verify(&world.vault, read_data, |_| {}).await.unwrap();
        let named: Vec<_> = report.problems.iter().map(|problem| &problem.object).collect();
        assert_eq!(named, [&ObjectName::map(volume, name.0, name.1)], "{report:#?}");
    }
    check(&world).await;
}

/// The logs say what is wrong with them; that a map could not be compared is counted.
#[tokio::test]
async fn a_map_beside_damaged_logs_is_not_compared() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    for seed in [1000, 2000] {
        world.write(0, 0, 8, seed);
        world.end_span(0, true);
        world.commit(0).await;
        world.write(0, 8, 8, seed);
        world.end_span(0, true);
        world.commit(0).await;
        write(&world.vault, volume).await.unwrap().unwrap();
    }
    let file = world.file(&ObjectName::slot(world.logs[0].id, world.points[2].slot));
    let mut bytes = fs::read(&file).unwrap();
    bytes[210] ^= 1;
    fs::write(&file, bytes).unwrap();
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert_eq!((report.maps, report.maps_not_compared), (2, 1), "{report:#?}");
    assert!(!report.is_whole());
}

/// A point that no map has is looked for in the logs once, also where a slot is missing at their end.
#[tokio::test]
async fn a_point_that_may_be_behind_a_hole_costs_no_older_map() {
    let mut world = World::new(1, 1).await;
    let volume = world.volumes[0].id;
    for round in 0..6_u32 {
        world.write(0, u64::from(round) * 8, 8, 1000 * (round + 1));
        world.end_span(0, true);
        world.commit(0).await;
        write_shaped(&world.vault, volume, SMALL).await.unwrap().unwrap();
    }
    let (store, gets) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let strange = PointSelector::Point(PointId([0xee; 16]));
    let mut counts = Vec::new();
    for is_hole in [false, true] {
        if is_hole {
            world.logs[0].next = world.logs[0].next.next();
            world.write(0, 0, 8, 9000);
            world.end_span(0, true);
            world.commit(0).await;
        }
        let before = gets.count();
        let error = VolumeView::open(&vault, volume, strange).await.unwrap_err();
        assert_eq!(matches!(error, VaultError::PointBehindHole { .. }), is_hole, "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        counts.push(gets.count() - before);
    }
    assert!(counts[1] <= counts[0] + 8, "{counts:?}");
}

#[tokio::test]
async fn a_map_is_written_though_the_answers_of_its_puts_are_lost() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let (store, calls) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    calls.lose_answers();
    assert!(write_shaped(&vault, volume, SMALL).await.unwrap().is_some());
    check(&world).await;
    assert!(verify(&world.vault, true, |_| {}).await.unwrap().is_whole());
}
