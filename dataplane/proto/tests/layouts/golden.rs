//! The bytes of each version. If one of these fails: bump the version, do not edit the bytes.

use crate::samples;
use std::path::PathBuf;

/// Folder, name of the file and bytes of every layout.
fn all() -> Vec<(PathBuf, Vec<u8>)> {
    [("v1", samples::all()), ("v2", samples::all_of_version_2())]
        .into_iter()
        .flat_map(|(version, samples)| {
            samples
                .into_iter()
                .map(move |(name, bytes)| (folder(version).join(format!("{name}.bin")), bytes))
        })
        .collect()
}

fn folder(version: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata")).join(version)
}

/// Compares byte by byte. A layout that is new has no file yet: `FARSHORE_WRITE_GOLDEN=1` writes
/// it; a file that is there is never written again.
#[test]
fn bytes_of_a_version_do_not_change() {
    for (path, bytes) in all() {
        let name = path.display();
        if !path.exists() && std::env::var_os("FARSHORE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &bytes).unwrap();
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
    let files = |version| std::fs::read_dir(folder(version)).unwrap();
    let files = files("v1").chain(files("v2"));
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut known: Vec<_> = all().into_iter().map(|(path, _)| path).collect();
    known.sort();
    assert_eq!(files, known);
}
