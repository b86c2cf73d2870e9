use super::*;
use crate::testing::World;

const BLOCK: u64 = BLOCK_BYTES as u64;

#[tokio::test]
async fn counts_what_the_volumes_wrote_and_what_is_stored() {
    let mut world = World::new(2, 1).await;
    world.write(0, 0, 12, 1000);
    world.write(0, 20, 6, 0);
    world.end_span(0, true);
    // The same content in another volume, and once more in another place: chunks are shared.
    world.write(1, 40, 12, 1000);
    world.end_span(1, true);
    world.commit(0).await;
    world.write(1, 0, 12, 1000);
    world.end_span(1, false);
    world.commit(0).await;
    let stats = stats(&world.vault).await.unwrap();
    let stored: u64 = walk(&world.folder.path().join("vault"));
    let expected = Stats {
        raw_bytes: 36 * BLOCK,
        zero_bytes: 6 * BLOCK,
        unique_bytes: 12 * BLOCK,
        stored_bytes: stored,
        chunks: 2,
        segments: 2,
        volumes: 2,
        points: 2,
    };
    assert_eq!(stats, expected);
}

fn walk(at: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => walk(&entry.path()),
            metadata => metadata.len(),
        })
        .sum()
}

#[tokio::test]
async fn an_empty_vault_has_its_identity_and_three_keys_and_nothing_else() {
    let world = World::new(0, 0).await;
    let stats = stats(&world.vault).await.unwrap();
    assert_eq!(stats, Stats { stored_bytes: 132 + 3 * 120, ..Stats::default() });
}
