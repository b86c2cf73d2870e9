//! The reader in another language, written from the documents alone, restores what this program wrote: a machine with
//! two disks, from a directory and from SeaweedFS.

#![allow(clippy::unwrap_used, reason = "tests say what failed by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use farshore_e2e::store::{Kind, Server, installed};
use farshore_vault::key_file;
use farshore_vault::testing::machines::{DB, KnownPoint, Machines};
use farshore_vault::testing::{World, image_bytes};

/// Exit codes of the reader, as of this program.
const INCOMPLETE: i32 = 65;
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
