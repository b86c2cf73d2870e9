//! The bytes of each version. If one of these fails: bump the version, do not edit the bytes.

use crate::samples::{self, Sample};
use std::path::PathBuf;

fn folder(version: u8) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata")).join(format!("v{version}"))
}

fn path(sample: &Sample) -> PathBuf {
    folder(sample.version).join(format!("{}.bin", sample.name))
}

/// Compares byte by byte. A layout that is new has no file yet: `FARSHORE_WRITE_GOLDEN=1` writes
/// it; a file that is there is never written again.
#[test]
fn bytes_of_a_version_do_not_change() {
    for sample in samples::all() {
        let (name, path) = (sample.name, path(&sample));
        if !path.exists() && std::env::var_os("FARSHORE_WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(folder(sample.version)).unwrap();
            std::fs::write(&path, &sample.bytes).unwrap();
        }
        let pinned = std::fs::read(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; bump the version, do not edit the bytes", path.display())
        });
        let differs = pinned.iter().zip(&sample.bytes).position(|(old, new)| old != new);
        assert_eq!(differs, None, "{name}: bump the version, do not edit the bytes");
        let (old, new) = (pinned.len(), sample.bytes.len());
        assert_eq!(old, new, "{name}: bump the version, do not edit the bytes");
    }
}

#[test]
fn every_golden_file_has_its_layout() {
    let samples = samples::all();
    let mut known: Vec<_> = samples.iter().map(path).collect();
    known.sort();
    let mut versions: Vec<_> = samples.iter().map(|sample| sample.version).collect();
    versions.sort_unstable();
    versions.dedup();
    let mut files: Vec<_> = versions
        .into_iter()
        .flat_map(|version| std::fs::read_dir(folder(version)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files, known);
}
