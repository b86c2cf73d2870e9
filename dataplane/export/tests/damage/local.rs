//! The same on a directory, through what people use: restores to files, and exports.

use crate::needs::{Piece, pieces};
use crate::world::{A, C, World, recovery_key};
use crate::write::image_bytes;
use farshore_export::Export;
use farshore_export::restore::{RestoreOptions, restore};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_vault::verify::verify;
use farshore_vault::view::flatten;
use farshore_vault::{Access, PointSelector, Store, Vault, VolumeView};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Local {
    world: World,
    folder: TempDir,
    vault: Vault,
}

impl Local {
    async fn new() -> Self {
        let world = World::new().await;
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &world.objects {
            let file = folder.path().join("vault").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
        let url = folder.path().join("vault");
        let store = Store::open(url.to_str().unwrap(), Access::Read).unwrap();
        let vault = Vault::open(&store, &recovery_key()).await.unwrap();
        Self { world, folder, vault }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("vault").join(name)
    }

    /// Restores every point to a file; how many were right, and the errors of the others.
    async fn restore_all(&self) -> (usize, Vec<String>) {
        let to = self.folder.path().join("restored.img");
        let (mut restored, mut errors) = (0, Vec::new());
        for point in &self.world.writer.points {
            let volume = self.world.volume(point.volume);
            let by_id = PointSelector::Point(point.id);
            let view = match VolumeView::open(&self.vault, volume, by_id).await {
                Ok(view) => view,
                Err(error) => {
                    errors.push(error.to_string());
                    continue;
                }
            };
            match restore(
                &view,
                &to,
                RestoreOptions { may_replace: true, ..RestoreOptions::default() },
                |_| {},
            )
            .await
            {
                Ok(_) => {
                    assert!(fs::read(&to).unwrap() == image_bytes(&point.image), "{point:?}");
                    restored += 1;
                    fs::remove_file(&to).unwrap();
                }
                Err(error) => errors.push(error.to_string()),
            }
            assert_nothing_left(self.folder.path());
        }
        (restored, errors)
    }
}

/// A restore that failed leaves no file behind that could be taken for one.
fn assert_nothing_left(folder: &Path) {
    let names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["vault"]);
}

#[tokio::test]
async fn restores_to_files_are_whole_or_name_what_is_damaged() {
    let local = Local::new().await;
    assert_eq!(local.restore_all().await, (13, Vec::new()));
    let (mut tried, mut refused) = (0, 0);
    for name in local.world.objects.keys() {
        let whole = local.world.objects[name].clone();
        let mut damages = vec![Vec::new(), whole[..1].to_vec(), [&whole[..], b"x"].concat()];
        for at in pieces(&local.world, name).await {
            let mut flipped = whole.to_vec();
            flipped[at.range.start] ^= 1;
            damages.extend([flipped, whole[..at.range.end - 1].to_vec()]);
        }
        for bytes in damages {
            tried += 1;
            fs::write(local.file(name), &bytes).unwrap();
            let (restored, errors) = local.restore_all().await;
            assert_eq!(restored + errors.len(), 13);
            refused += errors.len();
            for error in errors {
                assert!(error.contains(&format!("object {name} is damaged")), "{name}: {error}");
            }
            let report = verify(&local.vault, true, |_| {}).await.unwrap();
            let is_frame_of_void = *name == local.world.slot(0, 3) && bytes.len() == whole.len();
            let is_named =
                report.problems.iter().any(|problem| problem.object.to_string() == *name);
            assert!(is_named || is_frame_of_void, "{name}: {report:#?}");
        }
        fs::write(local.file(name), whole).unwrap();
    }
    println!("restores to files: {tried} damages, {refused} of {} restores refused", tried * 13);
    assert!(tried > 100 && refused > 300);
    assert_eq!(local.restore_all().await, (13, Vec::new()));
}

/// A guest that boots from a point with a damaged frame reads what is whole, and an error where it
/// is not; never other bytes.
#[tokio::test]
async fn an_export_serves_what_is_whole_and_refuses_what_is_not() {
    let local = Local::new().await;
    let name = local.world.slot(0, 0);
    let frames = pieces(&local.world, &name).await;
    let last = frames.iter().rfind(|at| matches!(at.piece, Piece::Frame(_))).unwrap();
    assert_eq!(last.piece, Piece::Frame(1), "the first segment has two frames");
    let mut bytes = local.world.objects[&name].to_vec();
    bytes[last.range.end - 1] ^= 1;
    fs::write(local.file(&name), bytes).unwrap();
    let point = local.world.writer.points.iter().rfind(|point| point.volume == C).unwrap();
    let by_id = PointSelector::Point(point.id);
    let view = VolumeView::open(&local.vault, local.world.volume(C), by_id).await.unwrap();
    let export = Export::open(view, &local.folder.path().join("overlay")).await.unwrap();
    let (mut read, mut refused) = (0, 0);
    for (block, seed) in point.image.iter().enumerate() {
        match export.read((block * BLOCK_BYTES) as u64, BLOCK_BYTES as u64).await {
            Ok(pieces) => {
                assert!(flatten(&pieces) == crate::write::block_bytes(*seed), "block {block}");
                read += 1;
            }
            Err(error) => {
                let expected = format!("object {name} is damaged at byte {}: ", last.range.start);
                assert!(error.to_string().contains(&expected), "{error}");
                refused += 1;
            }
        }
    }
    assert!(read > 100 && refused > 20, "{read} read, {refused} refused");
    // What the guest writes over it is its own.
    let block = point.image.iter().rposition(|seed| *seed >= 1000).unwrap();
    let offset = (block * BLOCK_BYTES) as u64;
    assert!(export.read(offset, BLOCK_BYTES as u64).await.is_err());
    export.write(offset, vec![7; BLOCK_BYTES].into()).await.unwrap();
    assert_eq!(flatten(&export.read(offset, BLOCK_BYTES as u64).await.unwrap())[..], [7; 4096]);
}

/// The latest point is asked for without knowing which it is: what is damaged on the way to it is
/// told, never an older point returned for it.
#[tokio::test]
async fn the_latest_point_is_never_an_older_one_because_of_damage() {
    let local = Local::new().await;
    let volume = local.world.volume(A);
    let newest = local.world.writer.points.iter().rfind(|point| point.volume == A).unwrap();
    for name in local.world.objects.keys() {
        let whole = local.world.objects[name].clone();
        for at in pieces(&local.world, name).await {
            let mut flipped = whole.to_vec();
            flipped[at.range.start] ^= 1;
            fs::write(local.file(name), flipped).unwrap();
            match VolumeView::open(&local.vault, volume, PointSelector::Latest).await {
                Ok(view) => assert_eq!(view.point().seq, newest.seq, "{name}"),
                Err(error) => assert!(error.to_string().contains(name), "{name}: {error}"),
            }
        }
        fs::write(local.file(name), whole).unwrap();
    }
}
