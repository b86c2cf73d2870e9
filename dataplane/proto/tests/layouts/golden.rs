//! The bytes of version 2. If one of these fails: bump the version, do not edit the bytes.

use crate::samples;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/v2"))
}

fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.bin"))
}

/// Compares byte by byte. A layout that is new has no file yet: `FARSHORE_WRITE_GOLDEN=1` writes
/// it; a file that is there is never written again.
#[test]
fn bytes_of_version_2_do_not_change() {
    for (name, bytes) in samples::all() {
        let path = path(name);
        if !path.exists() && std::env::var_os("FARSHORE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &bytes).expect("a golden file is written");
        }
        let pinned = std::fs::read(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; bump the version, do not edit the bytes", path.display())
        });
        let differs = pinned.iter().zip(&bytes).position(|(old, new)| old != new);
        assert_eq!(differs, None, "{name}: bump the version, do not edit the bytes");
        assert_eq!(pinned.len(), bytes.len(), "{name}: bump the version, do not edit the bytes");
    }
}

#[test]
fn every_golden_file_has_its_layout() {
    let files = std::fs::read_dir(folder()).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut known: Vec<_> = samples::all().iter().map(|(name, _)| path(name)).collect();
    known.sort();
    assert_eq!(files, known);
}
