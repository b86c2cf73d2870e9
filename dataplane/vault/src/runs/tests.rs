use super::*;
use crate::testing::World;
use crate::verify::verify;
use farshore_codec::digest::digest;
use farshore_proto::{Attempt, LogId, Slot, Target};
use std::fs;

/// A vault with an entry in its register.
async fn world() -> World {
    let world = World::new(1, 1).await;
    crate::register::bear(&world.vault, 0, LogId([9; 16])).await.unwrap();
    world
}

/// What a writer says that has applied it.
fn said(world: &World, chunks: &[(ChunkId, Location)]) -> Run {
    let entry = fs::read(world.file(&ObjectName::register(1))).unwrap();
    Run { applied: At::of(1, &digest(&entry)), chunks: chunks.to_vec() }
}

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

/// How many runs opened, how many did not, and the chunks, in order.
async fn all(vault: &Vault) -> (usize, usize, Vec<(ChunkId, Location)>) {
    let runs = list(vault, None).await.unwrap();
    let read: Vec<Read> = read(vault, runs).try_collect().await.unwrap();
    let (opened, skipped): (Vec<Read>, Vec<Read>) =
        read.into_iter().partition(|read| read.said.is_some());
    let said: Vec<Run> = opened.into_iter().filter_map(|read| read.said).collect();
    let opened = said.len();
    let entry = crate::register::read(vault, 1).await.unwrap().at();
    assert!(said.iter().all(|run| run.applied == entry), "what its writer had applied");
    let mut found: Vec<_> = said.into_iter().flat_map(|run| run.chunks).collect();
    found.sort_by_key(|(id, _)| *id);
    (opened, skipped.len(), found)
}

#[tokio::test]
async fn what_is_written_is_loaded() {
    let world = world().await;
    assert_eq!(all(&world.vault).await, (0, 0, Vec::new()));
    assert_eq!(write(&world.vault, 1, &said(&world, &[])).await.unwrap(), 0);
    let mut written = chunks(3000);
    assert_eq!(write(&world.vault, 1, &said(&world, &written[..1000])).await.unwrap(), 1);
    // The first of two equal ids counts.
    let mut twice = written[1000..].to_vec();
    twice.push((written[1500].0, Location { chunk: 9_999, ..written[1500].1 }));
    assert_eq!(write(&world.vault, 1, &said(&world, &twice)).await.unwrap(), 1);
    written.sort_by_key(|(id, _)| *id);
    let (opened, skipped, found) = all(&world.vault).await;
    assert!(found == written);
    assert_eq!((opened, skipped), (2, 0));
}

#[tokio::test]
async fn more_than_one_run_holds_is_written_as_several() {
    let world = world().await;
    let count = u32::try_from(INDEX_RUN_CHUNKS_MAX).unwrap() + 10;
    assert_eq!(write(&world.vault, 1, &said(&world, &chunks(count))).await.unwrap(), 2);
    let (opened, _, found) = all(&world.vault).await;
    assert_eq!((opened, found.len()), (2, count as usize));
}

#[tokio::test]
async fn a_damaged_or_foreign_run_is_passed_over_and_named() {
    let (world, other) = (world().await, world().await);
    write(&world.vault, 1, &said(&world, &chunks(500))).await.unwrap();
    write(&other.vault, 1, &said(&world, &chunks(500))).await.unwrap();
    let run = *list(&world.vault, None).await.unwrap().first().unwrap();
    let theirs = *list(&other.vault, None).await.unwrap().first().unwrap();
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
        assert_eq!(all(&world.vault).await, (0, 1, vec![]));
        let report = verify(&world.vault, false, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.problems[0].object, ObjectName::index_run(run));
    }
    fs::write(&file, &whole).unwrap();
    // Under another name it is another run's place.
    let moved = world.file(&ObjectName::index_run(RunId([7; 16])));
    fs::write(moved, &whole).unwrap();
    fs::write(file.with_file_name("README"), "x").unwrap();
    let (opened, skipped, found) = all(&world.vault).await;
    assert_eq!((opened, skipped, found.len()), (1, 1, 500));
    let report = verify(&world.vault, false, |_| {}).await.unwrap();
    assert_eq!((report.index_runs, report.problems.len()), (1, 1));
}

#[tokio::test]
async fn only_runs_from_a_number_on_are_listed() {
    let world = world().await;
    for number in [7, 300, 301, 301, 70_000] {
        write(&world.vault, number, &said(&world, &chunks(5))).await.unwrap();
    }
    // Of a writer that knew no numbers, with a name behind all others.
    let unnumbered = RunId([0xff; 16]);
    let all = list(&world.vault, None).await.unwrap();
    fs::write(world.file(&ObjectName::index_run(unnumbered)), "").unwrap();
    let numbers = async |from| -> Vec<Option<u64>> {
        let runs = list(&world.vault, from).await.unwrap();
        runs.into_iter().map(number_of).collect()
    };
    assert_eq!(numbers(Some(301)).await, [Some(301), Some(301), Some(70_000)]);
    assert_eq!(numbers(Some(302)).await, [Some(70_000)]);
    assert_eq!(numbers(Some(u64::MAX)).await, []);
    assert_eq!(all.len(), 5);
    let with_unnumbered = list(&world.vault, None).await.unwrap();
    assert_eq!(with_unnumbered.len(), 6);
    assert_eq!(with_unnumbered.last().copied().and_then(number_of), None);
    assert_eq!(number_of(numbered(u64::MAX, [0; 16])), Some(NUMBER_MAX));
}

/// Entries of the register that are lost at its end leave no other trace.
#[tokio::test]
async fn a_run_of_who_applied_more_of_the_register_than_there_is_is_named() {
    let world = world().await;
    write(
        &world.vault,
        1,
        &Run { applied: At { number: 2, digest: [2; 8] }, ..said(&world, &chunks(5)) },
    )
    .await
    .unwrap();
    let report = verify(&world.vault, false, |_| {}).await.unwrap();
    let [problem] = &report.problems[..] else { panic!("{report:?}") };
    assert_eq!(problem.object, ObjectName::register(2));
    assert!(problem.what.contains("index/"), "{problem:?}");
    // Others got its number.
    crate::register::bear(&world.vault, 0, LogId([8; 16])).await.unwrap();
    let report = verify(&world.vault, false, |_| {}).await.unwrap();
    let [problem] = &report.problems[..] else { panic!("{report:?}") };
    assert_eq!(problem.object, ObjectName::register(2));
    assert!(problem.what.contains("another one than index/"), "{problem:?}");
}
