use super::*;
use crate::testing::{BLOCKS, World, image_bytes};
use crate::view::{PointSelector, VolumeView, flatten};
use farshore_proto::BlockRange;
use farshore_proto::checkpoint::CheckpointBody;
use std::fs;
use std::path::{Path, PathBuf};

/// All objects of the vault, as files, in order.
fn objects(world: &World) -> Vec<PathBuf> {
    fn walk(at: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let mut out = Vec::new();
    walk(&world.folder.path().join("vault"), &mut out);
    out.sort();
    out
}

fn name_of(world: &World, file: &Path) -> String {
    let root = world.folder.path().join("vault");
    file.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

/// Reads every point whole: what comes back is right, or an error. Returns how many came back, and
/// the errors.
async fn read_all(world: &World) -> (usize, Vec<String>) {
    let mut read = 0;
    let mut errors = Vec::new();
    for point in world.committed_points() {
        let volume = world.volumes[point.volume].id;
        let by_id = PointSelector::Point(point.id);
        let view = match VolumeView::open(&world.vault, volume, by_id).await {
            Ok(view) => view,
            Err(error) => {
                errors.push(error.to_string());
                continue;
            }
        };
        match view.read(BlockRange { block: 0, count: BLOCKS }).await {
            Ok(pieces) => {
                assert!(flatten(&pieces) == image_bytes(&point.image), "{point:?}");
                read += 1;
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    (read, errors)
}

async fn check_named(world: &World, file: &Path, how: &str) -> Report {
    let name = name_of(world, file);
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    let is_named =
        |problem: &Problem| problem.object.to_string() == name || problem.what.contains(&name);
    assert!(report.problems.iter().any(is_named), "{how} of {name}: {report:#?}");
    let (_, errors) = read_all(world).await;
    if name.starts_with("logs") || name.starts_with("volumes") {
        let is_explained = |error: &String| {
            error.contains(&name)
                || error.contains("has no recovery point")
                || error.contains("next")
        };
        assert!(errors.iter().all(is_explained), "{how} of {name}: {errors:#?}");
    } else {
        // Nothing but opening the vault needs them.
        assert!(errors.is_empty(), "{how} of {name}: {errors:#?}");
        let error = Vault::open(world.vault.store(), &world.recovery).await.unwrap_err();
        assert!(error.to_string().contains(&name), "{how} of {name}: {error}");
    }
    report
}

#[tokio::test]
async fn a_whole_vault_has_no_problem() {
    let world = World::sample().await;
    let shallow = verify(&world.vault, false, |_| {}).await.unwrap();
    let mut steps = 0;
    let deep = verify(&world.vault, true, |_| steps += 1).await.unwrap();
    assert!(shallow.is_whole() && deep.is_whole(), "{deep:?}");
    assert_eq!((deep.volumes, deep.points, deep.segments, steps), (2, 7, 5, 5));
    assert_eq!((shallow.frames, shallow.chunks), (deep.frames, deep.chunks));
    assert!(deep.read_bytes > shallow.read_bytes && deep.frames > 2 && deep.chunks > 20);
    assert_eq!(read_all(&world).await, (7, Vec::new()));
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_named_and_never_returned() {
    let world = World::sample().await;
    for file in objects(&world) {
        let whole = fs::read(&file).unwrap();
        // Header, table and frames of a segment; every field of a small object.
        let step = if whole.len() < 600 { 13 } else { 97 + whole.len() / 6 };
        for at in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&file, bytes).unwrap();
            check_named(&world, &file, &format!("flip at {at}")).await;
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(read_all(&world).await.0, 7);
}

#[tokio::test]
async fn an_object_that_is_cut_short_or_grown_is_named() {
    let world = World::sample().await;
    for file in objects(&world) {
        let whole = fs::read(&file).unwrap();
        for length in [0, 3, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            check_named(&world, &file, &format!("cut to {length}")).await;
        }
        fs::write(&file, [whole.as_slice(), &[0]].concat()).unwrap();
        check_named(&world, &file, "growth").await;
        fs::write(&file, whole).unwrap();
    }
}

#[tokio::test]
async fn an_object_in_the_place_of_another_is_named() {
    let world = World::sample().await;
    let other = World::sample().await;
    let files = objects(&world);
    for (at, file) in files.iter().enumerate() {
        let whole = fs::read(file).unwrap();
        let neighbour = fs::read(&files[(at + 1) % files.len()]).unwrap();
        fs::write(file, neighbour).unwrap();
        check_named(&world, file, "swap").await;
        fs::write(file, &whole).unwrap();
        // The object of that name in another vault, equal but for the vault's id and keys.
        let (ours, others) = (&world.recovery, &other.recovery);
        let [ours, others] = [ours, others].map(|key| key.wrapper().fingerprint.to_string());
        let name = name_of(&world, file).to_string().replace(&ours, &others);
        let theirs = other.folder.path().join("vault").join(name);
        fs::copy(theirs, file).unwrap();
        let report = verify(&world.vault, true, |_| {}).await.unwrap();
        assert!(!report.is_whole(), "{}", file.display());
        read_all(&world).await;
        fs::write(file, &whole).unwrap();
    }
}

#[tokio::test]
async fn a_deleted_object_is_named_and_the_points_before_it_read() {
    let world = World::sample().await;
    for file in objects(&world) {
        let name = name_of(&world, &file);
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let report = verify(&world.vault, true, |_| {}).await.unwrap();
        let holes: Vec<String> = report
            .holes
            .iter()
            .map(|hole| ObjectName::slot(hole.log, hole.slot).to_string())
            .collect();
        let is_named = holes.contains(&name)
            || report.problems.iter().any(|problem| problem.object.to_string() == name);
        // The end of what was written is not missed by anybody: a seal, the newest slot.
        let is_end = name.ends_with("0003") || name.ends_with("111/0000000000000001");
        // The newest epoch of a volume is missed by its spans.
        let is_newest_epoch = name.ends_with("0000000002");
        assert_eq!(is_named || is_newest_epoch, !is_end, "{name}: {report:#?}");
        assert!(!is_newest_epoch || !report.is_whole(), "{name}: {report:#?}");
        let (read, errors) = read_all(&world).await;
        match name.as_str() {
            name if name.contains("10101010") && name.ends_with("0001") => {
                assert!(read >= 2, "{name}: {errors:#?}");
            }
            name if name.contains("11111111-") => {
                assert!(read >= 5, "{name}: {errors:#?}");
            }
            _ => {}
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(read_all(&world).await.0, 7);
}

#[tokio::test]
async fn damage_to_one_frame_leaves_points_that_do_not_need_it_whole() {
    let world = World::sample().await;
    // Slot 1 of log 1 holds the last point of volume 1 and nothing else.
    let file = world.file(&ObjectName::slot(world.logs[1].id, Slot(1)));
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let report = check_named(&world, &file, "flip in a frame").await;
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    assert!(report.problems[0].offset > 160, "{report:#?}");
    assert_eq!(report.points, 7);
    assert_eq!(read_all(&world).await.0, 6);
    // The tables alone do not tell.
    assert!(verify(&world.vault, false, |_| {}).await.unwrap().is_whole());
}

#[tokio::test]
async fn a_segment_lost_in_the_middle_of_a_long_log_is_told_from_a_crash() {
    let mut world = World::new(1, 1).await;
    for seed in 1..9 {
        world.write(0, 0, 4, seed * 100);
        world.end_span(0, true);
        world.commit(0).await;
    }
    let (log, volume) = (world.logs[0].id, world.volumes[0].id);
    fs::remove_file(world.file(&ObjectName::slot(log, Slot(2)))).unwrap();
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    assert_eq!(report.problems[0].object, ObjectName::slot(log, Slot(2)));
    assert!(report.holes.is_empty());
    let error = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap_err();
    assert!(matches!(error, VaultError::LostSlot { slot: Slot(2), .. }), "{error}");
    let error = crate::log::find_end(&world.vault, log, Slot(0)).await.unwrap_err();
    assert!(matches!(error, VaultError::LostSlot { slot: Slot(2), .. }), "{error}");
    let error = crate::log::seal(&world.vault, log, Slot(0)).await.unwrap_err();
    assert!(matches!(error, VaultError::LostSlot { slot: Slot(2), .. }), "{error}");
    // A point from before it is named by id and reads.
    assert_eq!(read_all(&world).await.0, 2);
}

#[tokio::test]
async fn any_backend_reads_the_same() {
    use object_store::ObjectStoreExt;
    let world = World::sample().await;
    let memory = Arc::new(object_store::memory::InMemory::new());
    for file in objects(&world) {
        let bytes = fs::read(&file).unwrap();
        let path = object_store::path::Path::from(name_of(&world, &file));
        memory.put(&path, bytes.into()).await.unwrap();
    }
    let store = crate::store::Store::over(memory, "memory://");
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let mut report = verify(&vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(report, verify(&world.vault, true, |_| {}).await.unwrap());
    let slot = ObjectName::slot(world.logs[0].id, Slot(0));
    let path = object_store::path::Path::from(slot.to_string());
    for bytes in [vec![], vec![0; 50]] {
        memory_put(&store, &path, bytes).await;
        report = verify(&vault, true, |_| {}).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.object == slot), "{report:#?}");
    }
}

async fn memory_put(store: &crate::store::Store, path: &object_store::path::Path, bytes: Vec<u8>) {
    use object_store::ObjectStoreExt;
    store.backend().put(path, bytes.into()).await.unwrap();
}

#[tokio::test]
async fn a_vault_that_is_being_written_has_no_problem() {
    let mut world = World::new(2, 2).await;
    let vault = world.reopen().await;
    let (done, is_done) = tokio::sync::watch::channel(false);
    let writing = async {
        for round in 0..40_u32 {
            let number = usize::try_from(round % 2).unwrap();
            world.write(number, u64::from(round), 8, 1 + round * 100);
            world.end_span(number, true);
            let log = world.volumes[number].log;
            world.commit(log).await;
            if round % 8 == 7 {
                world.claim(number, 1 - log).await;
            }
        }
        done.send(true).unwrap();
    };
    let verifying = async {
        let mut runs = 0;
        while !*is_done.borrow() {
            let report = verify(&vault, true, |_| {}).await.unwrap();
            assert!(report.is_whole() && report.holes.is_empty(), "{report:#?}");
            runs += 1;
        }
        runs
    };
    let ((), runs) = tokio::join!(writing, verifying);
    assert!(runs > 0);
    assert_eq!(verify(&vault, true, |_| {}).await.unwrap().points, 40);
}

/// A checkpoint that lies is named, and so is one that speaks of what is not there; nobody needs it.
#[tokio::test]
async fn a_checkpoint_that_says_something_else_than_its_log_is_named() {
    let world = World::sample().await;
    let (vault, log) = (&world.vault, world.logs[0].id);
    let end = crate::log::find_end(vault, log, Slot(0)).await.unwrap();
    let ledger = crate::checkpoint::read_ledger(vault, log, &end, |_| {}).await.unwrap();
    let body = ledger.body().unwrap().clone();
    let world = &world;
    let said = async |slot: u64, body: CheckpointBody| {
        let name = ObjectName::checkpoint(log, Slot(slot));
        crate::checkpoint::write(vault, log, Slot(slot), body).await.unwrap();
        let report = verify(vault, false, |_| {}).await.unwrap();
        fs::remove_file(world.file(&name)).unwrap();
        let said: Vec<String> = report.problems.iter().map(|it| it.what.clone()).collect();
        assert!(report.problems.iter().all(|problem| problem.object == name), "{report:#?}");
        said
    };
    assert!(said(3, body.clone()).await.is_empty(), "it is true");
    let later = CheckpointBody { horizon: 9, ..body.clone() };
    assert!(said(3, later).await.is_empty(), "its maker knew of a later horizon");
    let mut lie = body.clone();
    lie.tails.values_mut().next().unwrap().stamp = Default::default();
    assert_eq!(said(3, lie).await, ["says something else than the slots in front of it"]);
    let late = ["speaks of slots that are not there: the log ends at slot 3"];
    assert_eq!(said(5, body).await, late);
}

/// Machines and groups: each revision lost, damaged, or an older one under its name.
#[tokio::test]
async fn every_revision_of_a_machine_and_a_group_is_checked() {
    use crate::testing::machines::{DB, Machines, SHOP};
    let all = Machines::new().await;
    let report = verify(&all.world.vault, true, |_| {}).await.unwrap();
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!((report.machines, report.groups, report.points), (3, 1, 20));
    let names =
        [ObjectName::machine(DB, 1), ObjectName::machine(DB, 2), ObjectName::group(SHOP, 1)];
    for name in &names {
        let file = all.world.file(name);
        let bytes = fs::read(&file).unwrap();
        for at in [0, 100, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            fs::write(&file, bad).unwrap();
            let report = verify(&all.world.vault, false, |_| {}).await.unwrap();
            assert_eq!(report.problems.len(), 1, "{name}: {report:#?}");
            assert_eq!(&report.problems[0].object, name);
        }
        fs::write(&file, bytes).unwrap();
    }
    fs::copy(all.world.file(&names[0]), all.world.file(&names[1])).unwrap();
    let report = verify(&all.world.vault, false, |_| {}).await.unwrap();
    assert_eq!((report.machines, &report.problems[0].object), (2, &names[1]));
    fs::remove_file(all.world.file(&names[0])).unwrap();
    let report = verify(&all.world.vault, false, |_| {}).await.unwrap();
    let missing = report.problems.iter().find(|problem| problem.object == names[0]).unwrap();
    assert!(missing.what.contains("is missing although"), "{missing:?}");
}
