//! The reader in another language, written from the documents alone, restores what this program wrote: a machine with
//! two disks, from a directory and from SeaweedFS.

#![allow(clippy::unwrap_used, reason = "tests say what failed by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use farshore_e2e::store::{Kind, Server, installed};
use farshore_proto::base::KeptPoint;
use farshore_proto::mark::Mark;
use farshore_proto::{MapAttempt, Place, Seq, Slot, VolumeId};
use farshore_vault::catalog::{Marked, list_marks_to_damage};
use farshore_vault::layout::{ObjectName, map_of};
use farshore_vault::map::{Shape, write_shaped};
use farshore_vault::testing::machines::{DB, KnownPoint, Machines};
use farshore_vault::testing::{World, image_bytes};
use farshore_vault::{base, horizon, key_file};

/// Exit codes of the reader, as of this program.
const INCOMPLETE: i32 = 65;
const ABSENT: i32 = 66;
const DAMAGED: i32 = 82;

/// A vault with machines, its key beside it.
struct Made {
    all: Machines,
    key: PathBuf,
}

impl Made {
    async fn new() -> Self {
        let all = Machines::new().await;
        let key = all.world.folder.path().join("recovery.key");
        key_file::create(&key, &all.world.recovery).unwrap();
        Self { all, key }
    }

    fn vault(&self) -> PathBuf {
        self.all.world.folder.path().join("vault")
    }

    /// Restores a point of `db-1` to a new folder of this name.
    fn read(&self, vault: &str, point: &str, to: &str, environment: &[(String, String)]) -> Output {
        let mut reader = python();
        reader.arg("reader.py").envs(environment.iter().cloned());
        reader.args(["--vault", vault, "--machine", "db-1", "--point", point]);
        reader.arg("--key-file").arg(&self.key).arg("--to").arg(self.folder(to));
        reader.output().unwrap()
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.all.world.folder.path().join(name)
    }

    /// Checks that a folder has the disks of a point and nothing else.
    fn holds(&self, to: &str, point: &KnownPoint) {
        let files: Vec<_> = fs::read_dir(self.folder(to)).unwrap().collect();
        assert_eq!(files.len(), point.disks.len(), "{files:?}");
        for (index, _, image) in &point.disks {
            let named = |entry: &std::io::Result<fs::DirEntry>| {
                let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
                name.starts_with(&format!("{index}-"))
            };
            let file = files.iter().find(|entry| named(entry)).unwrap().as_ref().unwrap().path();
            assert!(fs::read(&file).unwrap() == image_bytes(image), "{}", file.display());
        }
    }

    fn points(&self) -> Vec<KnownPoint> {
        self.all.points_of(DB)
    }
}

/// Python beside the reader, with what that needs; it leaves nothing in the checkout.
fn python() -> Command {
    let mut python = Command::new("python3");
    python.current_dir(env!("CARGO_MANIFEST_DIR"));
    python.env("PYTHONPATH", installed("reader").unwrap()).env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

fn check(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

#[tokio::test]
async fn every_point_of_a_machine_with_two_disks_is_read_from_a_directory() {
    let made = Made::new().await;
    let vault = made.vault().to_str().unwrap().to_owned();
    let mut complete = 0;
    for (number, point) in made.points().into_iter().enumerate() {
        let to = format!("out-{number}");
        let output = made.read(&vault, &point.id.to_string(), &to, &[]);
        if point.is_complete {
            check(&output);
            made.holds(&to, &point);
            complete += usize::from(point.disks.len() == 2);
        } else {
            assert_eq!(output.status.code(), Some(INCOMPLETE), "{point:?}");
        }
    }
    assert!(complete > 0, "a point has two disks");
}

#[tokio::test]
async fn the_latest_point_of_a_machine_is_read_from_seaweedfs() {
    let made = Made::new().await;
    let server = Server::start(Kind::SeaweedFs).unwrap();
    let environment = server.environment();
    upload(&made.vault(), &environment);
    let output = made.read(&server.vault("copy"), "latest", "out", &environment);
    check(&output);
    let points = made.points();
    let latest = points.iter().rfind(|point| point.is_complete).unwrap();
    made.holds("out", latest);
    // What is lost is said, and nothing is written in its place.
    let lost = fs::read_dir(made.vault().join("logs")).unwrap().next().unwrap().unwrap().path();
    let first = lost.join("0000000000000000");
    fs::remove_file(&first).unwrap();
    let output = made.read(made.vault().to_str().unwrap(), "latest", "lost", &[]);
    assert_eq!(output.status.code(), Some(DAMAGED), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("0000000000000000"), "{output:?}");
}

/// Branches: volumes that go on from points, of their own and of others.
#[tokio::test]
async fn volumes_that_go_on_from_points_are_read() {
    let mut world = World::sample().await;
    let points = world.committed_points();
    let old = points.iter().find(|point| point.volume == 0).unwrap();
    world.go_on_from(0, 0, old).await;
    world.go_on_from(1, 1, &points[2]).await;
    world.write(1, 20, 9, 8000);
    world.end_span(1, true);
    world.commit(1).await;
    let key = world.folder.path().join("recovery.key");
    key_file::create(&key, &world.recovery).unwrap();
    let read = |volume: usize, point: &str, to: &Path| {
        let mut reader = python();
        reader.arg("reader.py").arg("--vault").arg(world.folder.path().join("vault"));
        reader.args(["--volume", &world.volumes[volume].id.to_string(), "--point", point]);
        check(&reader.arg("--key-file").arg(&key).arg("--to").arg(to).output().unwrap());
        let file = fs::read_dir(to).unwrap().next().unwrap().unwrap().path();
        fs::read(file).unwrap()
    };
    let all = world.committed_points();
    assert!(all.len() > points.len());
    for (number, point) in all.iter().enumerate() {
        let to = world.folder.path().join(format!("out-{number}"));
        let bytes = read(point.volume, &point.id.to_string(), &to);
        assert!(bytes == image_bytes(&point.image), "{point:?}");
    }
    for volume in 0..2 {
        let to = world.folder.path().join(format!("latest-{volume}"));
        let latest = world.latest(volume).unwrap();
        assert!(read(volume, "latest", &to) == image_bytes(&latest.image), "{latest:?}");
    }
    assert_eq!(world.latest(0).unwrap().id, old.id, "it has no point of its own there yet");
}

/// A map that the vault has of a volume at a seq.
fn map_at(vault: &Path, volume: VolumeId, seq: Seq) -> (Place, MapAttempt) {
    let folder = vault.join("maps").join(volume.to_string());
    let places = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let maps = places.flat_map(|place| fs::read_dir(place).unwrap());
    let mut names = maps.filter_map(|entry| map_of(entry.unwrap().path().to_str().unwrap()));
    names.find(|(at, _)| at.seq == seq).unwrap()
}

/// A volume with a base between two marks that keeps two of its points, in a log whose horizon is right behind the slot where it ends.
async fn based() -> World {
    let mut world = World::new(1, 1).await;
    let (volume, folder) = (world.volumes[0].id, world.folder.path().join("vault"));
    for seed in 1..=5_u32 {
        world.write(0, 0, 96, seed * 1000);
        world.write(0, u64::from(seed), 3, 0);
        world.end_span(0, true);
        if seed == 4 {
            // A place between two marks, in a slot of its own.
            world.commit(0).await;
            world.write(0, 50, 6, 9000);
            world.end_span(0, false);
        }
        world.commit(0).await;
        let shape = Shape { page_runs: 3, part_bytes: 500, unmarked: 1, ..Shape::default() };
        if seed < 5 {
            write_shaped(&world.vault, volume, shape).await.unwrap().unwrap();
        }
    }
    let marks = list_marks_to_damage(&world.vault, volume).await.unwrap().marks;
    let kept = [1, 3].map(|number: usize| {
        let Marked { point, group } = marks[number];
        let (at, map) = map_at(&folder, volume, point.seq);
        let (epoch, size_bytes) = (point.epoch, point.size_bytes);
        let mark = Mark {
            point: point.id,
            kind: point.kind,
            unknown_blocks: point.unknown_blocks,
            is_prompt: false,
            time_unix_ms: point.time_unix_ms,
            group,
        };
        KeptPoint { at, map, epoch, size_bytes, mark }
    });
    let (at, map) = map_at(&folder, volume, Seq(marks[3].point.seq.0 + 1));
    base::write(&world.vault, volume, at, map, kept.to_vec()).await.unwrap();
    let moved = horizon::let_go(&world.vault, world.logs[0].id, Slot(u64::MAX)).await.unwrap();
    assert!(matches!(&moved, horizon::Moved::To(to) if to.slot() == Slot(5)), "{moved:?}");
    for slot in [0, 2] {
        world.remove(0, Slot(slot));
    }
    world
}

/// Bases: points that are kept are read by their maps, later ones from the base's, and the slots below are gone.
#[tokio::test]
async fn volumes_with_bases_are_read() {
    let world = based().await;
    let (volume, folder) = (world.volumes[0].id, world.folder.path().join("vault"));
    // What is there since is nothing to anybody.
    fs::write(world.file(&ObjectName::slot(world.logs[0].id, Slot(2))), b"late").unwrap();
    let key = world.folder.path().join("recovery.key");
    key_file::create(&key, &world.recovery).unwrap();
    let read = |point: &str, to: &Path| {
        let mut reader = python();
        reader.arg("reader.py").arg("--vault").arg(&folder).arg("--key-file").arg(&key);
        reader.args(["--volume", &volume.to_string(), "--point", point]).arg("--to").arg(to);
        reader.output().unwrap()
    };
    let points = world.committed_points();
    for (number, point) in points.iter().enumerate() {
        let to = world.folder.path().join(format!("out-{number}"));
        let output = read(&point.id.to_string(), &to);
        if [0, 2].contains(&number) {
            assert_eq!(output.status.code(), Some(ABSENT), "{output:?}");
            continue;
        }
        check(&output);
        let file = fs::read_dir(to).unwrap().next().unwrap().unwrap().path();
        assert!(fs::read(file).unwrap() == image_bytes(&point.image), "{point:?}");
    }
    let to = world.folder.path().join("latest");
    check(&read("latest", &to));
    let file = fs::read_dir(to).unwrap().next().unwrap().unwrap().path();
    assert!(fs::read(file).unwrap() == image_bytes(&points[4].image));
    // The slot where the base ends is lost with what came behind, and nothing says that it may be.
    let log = world.logs[0].id;
    let ended = ObjectName::slot(log, Slot(4));
    fs::remove_file(world.file(&ObjectName::slot(log, Slot(2)))).unwrap();
    let lost = [ObjectName::horizon(log, 1), ended.clone(), ObjectName::slot(log, Slot(5))];
    let kept = lost.map(|name| {
        let file = world.file(&name);
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        (file, bytes)
    });
    let output = read("latest", &world.folder.path().join("ended"));
    assert_eq!(output.status.code(), Some(DAMAGED), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&ended.to_string()) && said.contains("bases/0000000001"), "{said}");
    kept.into_iter().for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
    // What the base says is lost with its map.
    fs::remove_dir_all(folder.join("maps")).unwrap();
    let output = read("latest", &world.folder.path().join("lost"));
    assert_eq!(output.status.code(), Some(DAMAGED), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("bases/0000000001"), "{output:?}");
}

/// Puts all objects of a vault below `copy/` of the bucket.
fn upload(vault: &Path, environment: &[(String, String)]) {
    let value = |name: &str| {
        let (_, value) = environment.iter().find(|(known, _)| known == name).unwrap();
        value.clone()
    };
    let mut rclone = Command::new(installed("rclone/bin/rclone").unwrap());
    rclone.arg("copy").arg(vault).arg(":s3:vaults/copy").args(["--config", ""]);
    rclone.args(["--s3-provider", "Other", "--s3-endpoint", &value("AWS_ENDPOINT_URL")]);
    rclone.args(["--s3-access-key-id", &value("AWS_ACCESS_KEY_ID")]);
    rclone.args(["--s3-secret-access-key", &value("AWS_SECRET_ACCESS_KEY")]);
    check(&rclone.output().unwrap());
}

/// Its own tests: the samples that the documents show, and vaults that are made by the documents.
#[test]
fn the_tests_of_the_reader_pass() {
    let output = python().args(["-m", "unittest", "test_reader"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Ran ") && !said.contains("skipped"), "{said}");
}
