//! The chunk index of a node.

use farshore_ingest::index::{Index, IndexError};
use farshore_proto::{Attempt, ChunkId, LogId, Slot, Target, VaultId};
use farshore_vault::Location;
use farshore_vault::register::Condemned;
use std::fs;
use std::path::Path;

const VAULT: VaultId = VaultId([1; 16]);

fn chunk(number: u8) -> (ChunkId, Location) {
    let log = LogId([0x40 + number % 3; 16]);
    let target = Target { log, slot: Slot(number.into()), attempt: Attempt([number; 8]) };
    let at = Location { target, chunk: 7, blocks: 8 };
    (ChunkId([number; 32]), at)
}

/// What the index in `dir` finds is where it is; a part of it may not be found.
fn check_index(dir: &Path, what: &str) -> Option<usize> {
    let mut index = match Index::open(dir, VAULT) {
        Ok(index) => index,
        Err(IndexError::Damaged { path, .. } | IndexError::OtherVault { path, .. }) => {
            assert!(path.starts_with(dir), "{what}");
            return None;
        }
        Err(error) => panic!("{what}: {error}"),
    };
    let ids: Vec<ChunkId> = (0..12).map(|number| chunk(number).0).collect();
    let found = index.lookup(&ids, &Condemned::default());
    for (number, found) in (0..).zip(&found) {
        assert!(found.is_none_or(|found| found == chunk(number).1), "{what}: chunk {number}");
    }
    Some(found.iter().flatten().count())
}

/// A wrong place would join blocks to the wrong bytes in new segments.
#[test]
fn a_damaged_chunk_index_finds_less_never_elsewhere() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let whole: Vec<(ChunkId, Location)> = (0..12).map(chunk).collect();
    let mut index = Index::open(dir.path(), VAULT).unwrap();
    index.clear(Condemned::default()).unwrap();
    index.insert(&whole).unwrap();
    drop(index);
    assert_eq!(check_index(dir.path(), "whole"), Some(12));
    let files = ["chunks-0000000000", "logs", "cleared"]
        .map(|name| (name, fs::read(dir.path().join(name)).unwrap()));
    let restore = || {
        for (name, bytes) in &files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    };
    let (mut refused, mut fewer) = (0, 0);
    for (name, bytes) in &files {
        for at in 0..bytes.len() {
            restore();
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(dir.path().join(name), bytes).unwrap();
            match check_index(dir.path(), &format!("flip at {at} of {name}")) {
                None => refused += 1,
                Some(found) => {
                    assert!(found < 12, "flip at {at} of {name} is not noticed");
                    fewer += 1;
                }
            }
        }
        for length in 0..bytes.len() {
            restore();
            fs::write(dir.path().join(name), &bytes[..length]).unwrap();
            check_index(dir.path(), &format!("cut of {name} to {length}"));
        }
    }
    // One of them put back from another time.
    restore();
    let more: Vec<(ChunkId, Location)> = (12..24).map(chunk).collect();
    Index::open(dir.path(), VAULT).unwrap().insert(&more).unwrap();
    fs::write(dir.path().join("logs"), &files[1].1[..64 + 32]).unwrap();
    check_index(dir.path(), "older list of logs");
    println!("chunk index: {refused} flips refused, {fewer} find less");
    assert!(refused > 4000 && fewer > 500);
}
