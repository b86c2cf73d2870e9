use super::*;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_vault::testing::{self, BLOCKS, World, history, image_bytes};
use farshore_vault::{PointSelector, catalog};
use proptest::prelude::*;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

/// Shared with the tests of damage.
#[path = "../../tests/damage/loops.rs"]
mod loops;
use loops::Disk;

async fn sample() -> (World, VolumeView, Vec<u8>) {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    let points = world.committed_points();
    let newest = points.iter().rfind(|point| point.volume == 0).unwrap();
    let expected = image_bytes(&newest.image);
    (world, view, expected)
}

#[tokio::test]
async fn a_file_is_made_whole_sparse_and_private() {
    let (world, view, expected) = sample().await;
    let to = world.folder.path().join("disk.img");
    let mut last = None;
    let report =
        restore(&view, &to, RestoreOptions::default(), |now| last = Some(now)).await.unwrap();
    assert!(fs::read(&to).unwrap() == expected);
    let metadata = fs::metadata(&to).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 <= report.written_bytes + 65536, "{}", metadata.blocks());
    let data_bytes = view.data_bytes_max();
    assert_eq!(report.size_bytes, expected.len() as u64);
    assert_eq!(last, Some(RestoreProgress { written_bytes: data_bytes, data_bytes }));
    assert!(!world.folder.path().join("disk.img.partial").exists());
}

#[tokio::test]
async fn a_file_with_content_is_only_replaced_when_told() {
    let (world, view, expected) = sample().await;
    let to = world.folder.path().join("disk.img");
    fs::write(&to, b"precious").unwrap();
    let error = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty { .. }), "{error}");
    assert_eq!(fs::read(&to).unwrap(), b"precious");
    assert!(error.to_string().contains("8 bytes, data of no known kind"), "{error}");
    restore(&view, &to, replacing(), |_| {}).await.unwrap();
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(names(&world), ["disk.img"]);
    // Whoever could read the old one cannot read the new one.
    fs::set_permissions(&to, fs::Permissions::from_mode(0o666)).unwrap();
    restore(&view, &to, replacing(), |_| {}).await.unwrap();
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    let empty = world.folder.path().join("empty.img");
    fs::write(&empty, b"").unwrap();
    restore(&view, &empty, RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(fs::read(&empty).unwrap() == expected);
}

#[tokio::test]
async fn a_target_that_cannot_be_written_is_named() {
    let (world, view, _) = sample().await;
    let folder = world.folder.path();
    let error = restore(&view, folder, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotATarget { .. }), "{error}");
    let missing = folder.join("no/such/folder/disk.img");
    let error = restore(&view, &missing, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("no/such/folder/disk.img"), "{error}");
    let full = Path::new("/dev/full");
    let error = restore(&view, full, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotATarget { .. }), "{error}");
}

#[tokio::test]
async fn a_failed_restore_leaves_nothing_behind() {
    let (world, view, _) = sample().await;
    let file = world.file(&ObjectName::slot(world.logs[0].id, farshore_proto::Slot(0)));
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let to = world.folder.path().join("disk.img");
    let error = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("0000000000000000 is damaged at byte"), "{error}");
    assert!(!to.exists());
    assert!(names(&world).is_empty(), "{:?}", names(&world));
}

fn replacing() -> RestoreOptions {
    RestoreOptions { may_replace: true, ..RestoreOptions::default() }
}

/// Files beside the vault, those with a dot too.
fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.folder.path()).unwrap().flatten();
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<String> =
        files.map(|file| file.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_farshore_lives_on_is_never_written_over() {
    let (world, view, _) = sample().await;
    let folder = world.folder.path().canonicalize().unwrap();
    let refused = async |to: &Path| {
        let before = fs::read(to).ok();
        let restored = restore(&view, to, replacing(), |_| ()).await;
        let error = restored.expect_err(&format!("{}", to.display()));
        assert_eq!(fs::read(to).ok(), before);
        error.to_string()
    };
    let key = folder.join("recovery.key");
    farshore_vault::key_file::create(
        &key,
        &farshore_codec::WrappingKey::draw(farshore_proto::keys::WrapperKind::Recovery).unwrap(),
    )
    .unwrap();
    let link = folder.join("link");
    std::os::unix::fs::symlink(&key, &link).unwrap();
    for to in [&key, &link] {
        let error = refused(to).await;
        assert!(error.contains("is a recovery key"), "{error}");
    }
    // A vault, an agent's directory, and one that holds those of all programs.
    let all = folder.join("all");
    for directory in ["all/agent/volumes", "all/vault/logs/1"] {
        fs::create_dir_all(folder.join(directory)).unwrap();
    }
    for file in ["lock", "endpoints.json", "agent/lock", "agent/volumes/hrl", "vault/vault"] {
        fs::write(all.join(file), b"kept").unwrap();
    }
    fs::write(all.join("vault/logs/1/0"), b"kept").unwrap();
    for file in ["lock", "endpoints.json", "agent/lock", "agent/volumes/hrl"] {
        let error = refused(&all.join(file)).await;
        assert!(error.contains("what Farshore keeps in"), "{file}: {error}");
    }
    for file in ["vault/vault", "vault/logs/1/0"] {
        let error = refused(&all.join(file)).await;
        assert!(error.contains("part of the vault in"), "{file}: {error}");
    }
    // Nor is a new one made among them.
    for file in ["vault/disk.img", "vault/logs/disk.img"] {
        let error = refused(&all.join(file)).await;
        assert!(error.contains("it would be in the vault in"), "{file}: {error}");
        assert!(!all.join(file).exists());
    }
    // What people keep beside them is theirs.
    let image = all.join("disk.img");
    fs::write(&image, b"old").unwrap();
    restore(&view, &image, replacing(), |_| ()).await.unwrap();
    let error = refused(Path::new("/dev/no such disk")).await;
    assert!(error.contains("there is no such device"), "{error}");
}

#[tokio::test]
async fn a_link_is_followed_and_stays_a_link() {
    let (world, view, expected) = sample().await;
    let folder = world.folder.path();
    let (file, link, farther) = (folder.join("real.img"), folder.join("a"), folder.join("b"));
    fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink("real.img", &link).unwrap();
    std::os::unix::fs::symlink(&link, &farther).unwrap();
    let refused = restore(&view, &farther, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("real.img"), "{refused}");
    restore(&view, &farther, replacing(), |_| {}).await.unwrap();
    assert!(fs::read(&file).unwrap() == expected);
    assert!(farther.symlink_metadata().unwrap().is_symlink());
    // One that leads nowhere yet.
    fs::remove_file(&file).unwrap();
    restore(&view, &farther, RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(fs::read(&file).unwrap() == expected);
    // One that leads to itself.
    let ring = folder.join("ring");
    std::os::unix::fs::symlink("ring", &ring).unwrap();
    let error = restore(&view, &ring, RestoreOptions::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("ring"), "{error}");
}

#[tokio::test]
async fn what_others_have_beside_the_target_is_never_touched() {
    let (world, view, expected) = sample().await;
    let folder = world.folder.path();
    let to = folder.join("disk.img");
    let stem = format!(".farshore-{:08x}", crc32c::crc32c(b"disk.img"));
    let precious = folder.join("precious");
    fs::write(&precious, "precious").unwrap();
    // The names that a restore would take: files, a directory, links, a hard link.
    let foreign = |number: u32, end: &str| folder.join(format!("{stem}-{number}.{end}"));
    fs::write(folder.join("disk.img.partial"), "precious").unwrap();
    fs::write(foreign(0, "restore"), "precious").unwrap();
    fs::write(foreign(1, "partial"), "precious").unwrap();
    fs::create_dir(foreign(2, "restore")).unwrap();
    std::os::unix::fs::symlink(&precious, foreign(3, "restore")).unwrap();
    std::os::unix::fs::symlink(&precious, foreign(4, "partial")).unwrap();
    fs::hard_link(&precious, foreign(5, "restore")).unwrap();
    let before = names(&world);
    restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(fs::read(&to).unwrap() == expected);
    fs::remove_file(&to).unwrap();
    assert_eq!(names(&world), before, "nothing was left and nothing was taken");
    for file in [&precious, &foreign(0, "restore"), &foreign(1, "partial")] {
        assert_eq!(fs::read(file).unwrap(), b"precious", "{}", file.display());
    }
    assert_eq!(fs::read(folder.join("disk.img.partial")).unwrap(), b"precious");
}

#[tokio::test]
async fn a_target_that_somebody_writes_is_refused_by_name() {
    let (world, view, _) = sample().await;
    let to = world.folder.path().join("disk.img");
    fs::write(&to, "precious").unwrap();
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "exec 3>>\"$0\"; echo open; exec sleep 60"])
        .arg(&to)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
    let refused = restore(&view, &to, replacing(), |_| {}).await.unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains(&format!("process {}", child.id())), "{refused}");
    assert_eq!(fs::read(&to).unwrap(), b"precious");
}

/// What a restore leaves that is killed once it has written what lies in one slot.
async fn interrupted(view: &VolumeView, to: &Path, options: &RestoreOptions) {
    let mut plan = Plan::make(view, to.parent().unwrap()).await.unwrap();
    let target = Arc::new(Target::open(to, &wanted(view, plan.data_bytes), options).unwrap());
    let mut frames = plan.next_frames(usize::MAX).unwrap();
    let first = frames[0].frame.target;
    frames.retain(|wanted| wanted.frame.target == first);
    for job in plan::jobs(frames) {
        run(view, job, &target).await.unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_where_it_was_and_believes_nothing_it_does_not_see() {
    let (world, view, expected) = sample().await;
    let to = world.folder.path().join("disk.img");
    interrupted(&view, &to, &RestoreOptions::default()).await;
    let left = names(&world);
    assert_eq!(left.len(), 2, "a partial file and its journal: {left:?}");
    assert!(!to.exists());
    let report = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(report.resumed_bytes > 0, "{report:?}");
    assert_eq!(report.written_bytes, view.data_bytes_max());
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(names(&world), ["disk.img"]);

    // What the disk lost of it, as in a power cut, is written again.
    fs::remove_file(&to).unwrap();
    interrupted(&view, &to, &RestoreOptions::default()).await;
    let partial = names(&world).into_iter().find(|name| name.ends_with(".partial")).unwrap();
    let partial = world.folder.path().join(partial);
    fs::write(&partial, vec![0; expected.len()]).unwrap();
    let report = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap();
    assert_eq!(report.resumed_bytes, 0, "{report:?}");
    assert!(fs::read(&to).unwrap() == expected);
}

#[tokio::test]
async fn what_was_left_of_another_point_is_not_mixed_in() {
    let (world, view, expected) = sample().await;
    let to = world.folder.path().join("disk.img");
    let points = catalog::list_points(&world.vault, view.volume()).await.unwrap();
    let earlier = points[0].id;
    let selector = PointSelector::Point(earlier);
    let other = VolumeView::open(&world.vault, view.volume(), selector).await.unwrap();
    assert_ne!(other.point().id, view.point().id);
    interrupted(&other, &to, &RestoreOptions::default()).await;
    let report = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap();
    assert_eq!(report.resumed_bytes, 0);
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(names(&world), ["disk.img"]);
}

#[tokio::test]
async fn a_device_keeps_what_is_on_it_unless_told_and_what_is_in_use_always() {
    let (world, view, expected) = sample().await;
    let folder = world.folder.path();
    let image = folder.join("image");
    fs::write(&image, vec![0; expected.len() + (1 << 20)]).unwrap();
    let Some(disk) = Disk::of(&image) else { return };

    // The file behind a disk is in use, told or not.
    let refused = restore(&view, &image, replacing(), |_| {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert!(refused.to_string().contains(disk.0.to_str().unwrap()), "{refused}");

    // Nothing is on it: no question. An interruption costs what was not written.
    let journal = folder.join("state");
    let options = RestoreOptions { journal_directory: Some(journal.clone()), ..Default::default() };
    let report = restore(&view, &disk.0, options.clone(), |_| {}).await.unwrap();
    assert_eq!((report.written_bytes, report.resumed_bytes), (view.data_bytes_max(), 0));
    assert!(fs::read(&disk.0).unwrap()[..expected.len()] == expected);
    assert_eq!(fs::read_dir(&journal).unwrap().count(), 0, "it is done");

    // Now something is.
    let refused = restore(&view, &disk.0, options.clone(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, RestoreError::NotEmpty { .. }), "{refused}");
    let file = OpenOptions::new().write(true).open(&disk.0).unwrap();
    file.write_all_at(&[0x53, 0xef], 0x438).unwrap();
    drop(file);
    let link = folder.join("by-id");
    std::os::unix::fs::symlink(&disk.0, &link).unwrap();
    let refused = restore(&view, &link, options.clone(), |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("ext2, ext3 or ext4"), "{refused}");
    assert!(refused.contains(disk.0.to_str().unwrap()), "{refused}");
    let options = RestoreOptions { may_replace: true, ..options };
    let restoring = restore(&view, &link, options.clone(), |_| {}).await;
    restoring.unwrap();
    assert!(fs::read(&disk.0).unwrap()[..expected.len()] == expected);

    // Too small is told before anything is written.
    let small = folder.join("small");
    fs::write(&small, vec![0; expected.len() / 2 / 4096 * 4096]).unwrap();
    let Some(small) = Disk::of(&small) else { return };
    let error = restore(&view, &small.0, options, |_| {}).await.unwrap_err();
    assert!(matches!(error, RestoreError::TooSmall { .. }), "{error}");
}

#[tokio::test]
async fn an_interrupted_restore_to_a_device_goes_on() {
    let (world, view, expected) = sample().await;
    let folder = world.folder.path();
    let image = folder.join("image");
    fs::write(&image, vec![0; expected.len()]).unwrap();
    let Some(disk) = Disk::of(&image) else { return };
    let options =
        RestoreOptions { may_replace: true, journal_directory: Some(folder.join("state")) };
    interrupted(&view, &disk.0, &options).await;
    let report = restore(&view, &disk.0, options, |_| {}).await.unwrap();
    assert!(report.resumed_bytes > 0, "{report:?}");
    assert!(fs::read(&disk.0).unwrap() == expected);
}

/// Restores both volumes of a vault at all points to files; they are the model's images, to the byte.
async fn restores_to_the_byte(size: u64) {
    let mut world = World::sample_of(size).await;
    // The last block of volume 0 has content, and then none again.
    for seed in [7000, 0, 8000] {
        world.write(0, BLOCKS - 2, 2, seed);
        world.end_span(0, true);
        world.commit(1).await;
    }
    for (number, point) in world.committed_points().into_iter().enumerate() {
        let volume = world.volumes[point.volume].id;
        let selector = PointSelector::Point(point.id);
        let view = VolumeView::open(&world.vault, volume, selector).await.unwrap();
        let to = world.folder.path().join(format!("{number}.img"));
        let report = restore(&view, &to, RestoreOptions::default(), |_| {}).await.unwrap();
        assert_eq!(report.size_bytes, size);
        let mut expected = image_bytes(&point.image);
        expected.truncate(usize::try_from(size).unwrap());
        assert!(fs::read(&to).unwrap() == expected, "point {number} of {size} bytes");
    }
}

/// How long a view of 256 MiB takes to open and to restore: `cargo nextest run --no-capture`.
#[tokio::test]
async fn a_larger_volume_is_restored_fetching_each_frame_once() {
    let large = testing::large(64).await;
    let started = std::time::Instant::now();
    let view = VolumeView::open(&large.vault, large.volume, PointSelector::Latest).await.unwrap();
    let opened = started.elapsed();
    let to = large.folder.path().join("restored.img");
    let options = RestoreOptions::default();
    let report = restore(&view, &to, options, |_| {}).await.unwrap();
    let restored = started.elapsed() - opened;
    println!(
        "{} MiB: view {opened:?}, restore {restored:?}, fetched {} MiB",
        report.written_bytes >> 20,
        report.fetched_bytes >> 20,
    );
    let expected = large.expected();
    assert!(fs::read(&to).unwrap() == expected);
    assert!(report.fetched_bytes <= large.frames_bytes);
}

/// Restores all points that the vault holds to one file, each over the one before.
async fn restores_every_point(world: &World) {
    let to = world.folder.path().join("disk.img");
    for point in world.committed_points() {
        let (volume, by_id) = (world.volumes[point.volume].id, PointSelector::Point(point.id));
        let view = VolumeView::open(&world.vault, volume, by_id).await.unwrap();
        let report = restore(&view, &to, replacing(), |_| {}).await.unwrap();
        let data = point.image.iter().filter(|seed| **seed != 0).count() * BLOCK_BYTES;
        assert_eq!(report.written_bytes, data as u64);
        assert!(view.data_bytes_max() >= report.written_bytes);
        assert!(fs::read(&to).unwrap() == image_bytes(&point.image), "{point:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_volume_of_any_size_is_restored_to_the_byte(
        size in (BLOCKS - 1) * 4096 + 1..=BLOCKS * 4096,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(restores_to_the_byte(size));
    }

    #[test]
    fn every_point_of_any_history_is_restored_as_the_model_says(steps in history::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { restores_every_point(&history::world_of(steps).await).await });
    }
}
