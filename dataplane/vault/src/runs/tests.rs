use super::*;
use crate::testing::World;
use crate::verify::verify;
use farshore_proto::{Attempt, LogId, Slot, Target};
use std::fs;

fn chunks(count: u32) -> Vec<(ChunkId, Location)> {
    let chunk = |n: u32| {
        let mut id = [0; 32];
        // Not in order.
        id[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let log = LogId([u8::try_from(n % 3).unwrap(); 16]);
        let target = Target { log, slot: Slot(u64::from(n) / 100), attempt: Attempt([3; 8]) };
        (ChunkId(id), Location { target, chunk: n % 100, blocks: 8 })
    };
    (0..count).map(chunk).collect()
}

async fn all(vault: &Vault) -> (Loaded, Vec<(ChunkId, Location)>) {
    let mut found = Vec::new();
    let each = |_, chunks: &[(ChunkId, Location)]| found.extend_from_slice(chunks);
    let loaded = load(vault, &BTreeSet::new(), each).await.unwrap();
    found.sort_by_key(|(id, _)| *id);
    (loaded, found)
}

#[tokio::test]
async fn what_is_written_is_loaded() {
    let world = World::new(1, 1).await;
    assert_eq!(all(&world.vault).await, (Loaded::default(), Vec::new()));
    assert_eq!(write(&world.vault, &[]).await.unwrap(), 0);
    let mut written = chunks(3000);
    assert_eq!(write(&world.vault, &written[..1000]).await.unwrap(), 1);
    // The first of two equal ids counts.
    let mut twice = written[1000..].to_vec();
    twice.push((written[1500].0, Location { chunk: 9_999, ..written[1500].1 }));
    assert_eq!(write(&world.vault, &twice).await.unwrap(), 1);
    written.sort_by_key(|(id, _)| *id);
    let (loaded, found) = all(&world.vault).await;
    assert!(found == written);
    assert_eq!(loaded, Loaded { runs: 2, chunks: 3000, skipped: Vec::new() });
}

#[tokio::test]
async fn more_than_one_run_holds_is_written_as_several() {
    let world = World::new(1, 1).await;
    let count = u32::try_from(INDEX_RUN_CHUNKS_MAX).unwrap() + 10;
    assert_eq!(write(&world.vault, &chunks(count)).await.unwrap(), 2);
    let (loaded, found) = all(&world.vault).await;
    assert_eq!((loaded.runs, loaded.chunks), (2, u64::from(count)));
    assert_eq!(found.len(), count as usize);
}

#[tokio::test]
async fn a_damaged_or_foreign_run_is_passed_over_and_named() {
    let (world, other) = (World::new(1, 1).await, World::new(1, 1).await);
    write(&world.vault, &chunks(500)).await.unwrap();
    write(&other.vault, &chunks(500)).await.unwrap();
    let run = list(&world.vault).await.unwrap()[0];
    let theirs = list(&other.vault).await.unwrap()[0];
    let file = world.file(&ObjectName::index_run(run));
    let whole = fs::read(&file).unwrap();
    let mut bad = vec![whole[..whole.len() - 1].to_vec(), Vec::new()];
    for at in [0, 4, 30, 60, 100, 130, 144, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        bad.push(flipped);
    }
    bad.push(fs::read(other.file(&ObjectName::index_run(theirs))).unwrap());
    for bytes in bad {
        fs::write(&file, bytes).unwrap();
        let (loaded, found) = all(&world.vault).await;
        assert_eq!((loaded.runs, loaded.skipped.len(), found), (0, 1, vec![]));
        let report = verify(&world.vault, false, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.problems[0].object, ObjectName::index_run(run));
    }
    fs::write(&file, &whole).unwrap();
    // Under another name it is another run's place.
    let moved = world.file(&ObjectName::index_run(RunId([7; 16])));
    fs::write(moved, &whole).unwrap();
    fs::write(file.with_file_name("README"), "x").unwrap();
    let (loaded, found) = all(&world.vault).await;
    assert_eq!((loaded.runs, loaded.skipped.len(), found.len()), (1, 1, 500));
    let report = verify(&world.vault, false, |_| {}).await.unwrap();
    assert_eq!((report.index_runs, report.problems.len()), (1, 1));
}
