use super::*;
use crate::testing::{World, image_bytes};
use crate::view::PointSelector;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

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
    let data_bytes = view.data_bytes();
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
    // What an earlier restore left behind is in nobody's way.
    fs::write(world.folder.path().join("disk.img.partial"), vec![7; 1 << 20]).unwrap();
    let options = RestoreOptions { may_replace: true };
    restore(&view, &to, options, |_| {}).await.unwrap();
    assert!(fs::read(&to).unwrap() == expected);
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
    assert!(!to.exists() && !world.folder.path().join("disk.img.partial").exists());
}

/// Restores both volumes of a vault at all points to files; they are the model's images, to the byte.
async fn restores_to_the_byte(size: u64) {
    let mut world = World::sample_of(size).await;
    // The last block of volume 0 has content, and then none again.
    for seed in [7000, 0, 8000] {
        world.write(0, crate::testing::BLOCKS - 2, 2, seed);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_volume_of_any_size_is_restored_to_the_byte(
        size in (crate::testing::BLOCKS - 1) * 4096 + 1..=crate::testing::BLOCKS * 4096,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(restores_to_the_byte(size));
    }
}
