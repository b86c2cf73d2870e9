use super::*;
use farshore_vault::testing::{BLOCKS, World, image_bytes};
use farshore_vault::{Patience, PointSelector, Supply};
use proptest::prelude::*;

/// What a guest reads and writes at least.
const SECTOR_BYTES: u64 = 512;
const SECTORS: u64 = BLOCKS * 8;

async fn open(world: &World) -> Export {
    let volume = world.volumes[0].id;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    Export::open(view, &world.folder.path().join("drill.overlay")).await.unwrap()
}

fn model(world: &World) -> Vec<u8> {
    let points = world.committed_points();
    image_bytes(&points.iter().rfind(|point| point.volume == 0).unwrap().image)
}

#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, count: u64, byte: u8 },
    Zero { sector: u64, count: u64 },
    Trim { sector: u64, count: u64 },
    Read { sector: u64, count: u64 },
    Flush,
    Restart,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SECTORS, 1..60_u64).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (range(), 1..255_u8)
            .prop_map(|((sector, count), byte)| Step::Write { sector, count, byte }),
        2 => range().prop_map(|(sector, count)| Step::Zero { sector, count }),
        2 => range().prop_map(|(sector, count)| Step::Trim { sector, count }),
        4 => range().prop_map(|(sector, count)| Step::Read { sector, count }),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
    ]
}

fn bytes(sector: u64) -> usize {
    usize::try_from(sector * SECTOR_BYTES).unwrap()
}

async fn run(steps: Vec<Step>) {
    let world = World::sample().await;
    let mut model = model(&world);
    let mut export = open(&world).await;
    for step in steps {
        match step {
            Step::Write { sector, count, byte } => {
                let data = Bytes::from(vec![byte; bytes(count)]);
                export.write(sector * SECTOR_BYTES, data).await.unwrap();
                model[bytes(sector)..bytes(sector + count)].fill(byte);
            }
            Step::Zero { sector, count } => {
                export.write_zeroes(sector * SECTOR_BYTES, count * SECTOR_BYTES).await.unwrap();
                model[bytes(sector)..bytes(sector + count)].fill(0);
            }
            Step::Trim { sector, count } => {
                export.trim(sector * SECTOR_BYTES, count * SECTOR_BYTES).await.unwrap();
                let (from, to) = (sector.next_multiple_of(8), (sector + count) / 8 * 8);
                if from < to {
                    model[bytes(from)..bytes(to)].fill(0);
                }
            }
            Step::Read { sector, count } => {
                let (offset, length) = (sector * SECTOR_BYTES, count * SECTOR_BYTES);
                let read = flatten(&export.read(offset, length).await.unwrap());
                assert!(read == model[bytes(sector)..bytes(sector + count)], "{sector}+{count}");
                check_extents(&export, offset, length, &read).await;
            }
            Step::Flush => export.flush().await.unwrap(),
            Step::Restart => {
                drop(export);
                export = open(&world).await;
            }
        }
    }
    let read = export.read(0, export.size_bytes()).await.unwrap();
    assert!(flatten(&read) == model);
}

async fn check_extents(export: &Export, offset: u64, length: u64, read: &[u8]) {
    let extents = export.extents(offset, length, usize::MAX).await.unwrap();
    let mut at = 0;
    for (bytes, holds) in extents {
        let end = at + usize::try_from(bytes).unwrap();
        assert!(end > at);
        assert!(holds == Holds::Data || read[at..end].iter().all(|byte| *byte == 0));
        at = end;
    }
    assert_eq!(at as u64, length);
    assert_eq!(export.extents(offset, length, 1).await.unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn behaves_as_a_disk(steps in prop::collection::vec(step(), 1..50)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}

/// Changes of a disk that ends anywhere: what, where, how much.
type Bytewise = (u8, u64, u64);

async fn run_bytewise(size: u64, steps: Vec<Bytewise>) {
    let world = World::sample_of(size).await;
    let mut model = model(&world);
    model.truncate(usize::try_from(size).unwrap());
    let mut export = open(&world).await;
    assert_eq!(export.size_bytes(), size);
    for (what, at, length) in steps {
        // Half of all touch the end.
        let offset = if at % 2 == 0 { size - 1 - at % 9000 } else { at % size };
        let length =
            if at % 4 == 0 { size - offset } else { 1 + length % (size - offset).min(9000) };
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        match what {
            0..100 => {
                export.write(offset, vec![what; range.len()].into()).await.unwrap();
                model[range].fill(what);
            }
            100..140 => {
                export.write_zeroes(offset, length).await.unwrap();
                model[range].fill(0);
            }
            140..160 => {
                export.trim(offset, length).await.unwrap();
                let whole = range.start.next_multiple_of(BLOCK_BYTES)
                    ..range.end / BLOCK_BYTES * BLOCK_BYTES;
                if whole.start < whole.end {
                    model[whole].fill(0);
                }
            }
            160..180 => {
                export.flush().await.unwrap();
                drop(export);
                export = open(&world).await;
            }
            _ => {
                let read = flatten(&export.read(offset, length).await.unwrap());
                assert!(read == model[range], "{offset}+{length} of {size}");
                check_extents(&export, offset, length, &read).await;
            }
        }
    }
    assert!(flatten(&export.read(0, size).await.unwrap()) == model);
    assert!(export.write(size - 1, vec![1, 1].into()).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ends_at_its_last_byte(
        size in (BLOCKS - 1) * 4096 + 1..=BLOCKS * 4096,
        steps in prop::collection::vec(any::<Bytewise>(), 1..50),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run_bytewise(size, steps));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_parts_of_one_block_do_not_lose_each_other() {
    let world = World::sample().await;
    let mut expected = model(&world);
    let export = Arc::new(open(&world).await);
    let mut tasks = Vec::new();
    for sector in 0..64_u64 {
        let export = Arc::clone(&export);
        let byte = u8::try_from(sector).unwrap() + 1;
        expected[bytes(sector)..bytes(sector + 1)].fill(byte);
        tasks.push(tokio::spawn(async move {
            let data = Bytes::from(vec![byte; bytes(1)]);
            export.write(sector * SECTOR_BYTES, data).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    export.flush().await.unwrap();
    let read = export.read(0, export.size_bytes()).await.unwrap();
    assert!(flatten(&read) == expected);
    assert_eq!(export.overlay().held_blocks(), 8);
}

#[tokio::test]
async fn what_is_not_inside_the_disk_is_refused() {
    let world = World::sample().await;
    let export = open(&world).await;
    let size = export.size_bytes();
    for (offset, length) in [(size - 511, 512), (size, 1), (u64::MAX - 511, 512), (0, 0)] {
        let error = export.read(offset, length).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{offset}+{length}");
        assert!(export.write_zeroes(offset, length).await.is_err());
        assert!(export.trim(offset, length).await.is_err());
    }
    assert!(export.write(size - 512, Bytes::from(vec![0; 1024])).await.is_err());
}

/// S19: a small write waits for the store only if it needs it, and keeps nobody else waiting.
#[tokio::test]
async fn small_writes_do_not_wait_for_each_other_while_the_store_is_away() {
    let world = World::sample().await;
    let volume = world.volumes[0].id;
    let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
    let patience = Patience::new(std::time::Duration::from_secs(60));
    let view = view.with_patience(patience.clone());
    let export = Export::open(view, &world.folder.path().join("drill.overlay")).await.unwrap();
    let export = Arc::new(export);
    let mut model = model(&world);
    let mut note = |at: usize, data: &[u8]| model[at..at + data.len()].copy_from_slice(data);
    let block = BLOCK_BYTES as u64;
    export.write(3 * block, Bytes::from(vec![1; BLOCK_BYTES])).await.unwrap();
    note(3 * BLOCK_BYTES, &[1; BLOCK_BYTES]);
    let (here, away) = (world.folder.path().join("vault"), world.folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    // All of these are in one stripe. The first needs the store.
    let waiting = tokio::spawn({
        let export = Arc::clone(&export);
        async move { export.write(2 * block + 512, Bytes::from(vec![2; 512])).await }
    });
    let mut supply = patience.supply();
    supply.wait_for(|supply| matches!(supply, Supply::Waiting { .. })).await.unwrap();
    export.write(3 * block + 512, Bytes::from(vec![3; 512])).await.unwrap();
    note(3 * BLOCK_BYTES + 512, &[3; 512]);
    export.write(4 * block, Bytes::from(vec![4; BLOCK_BYTES])).await.unwrap();
    note(4 * BLOCK_BYTES, &[4; BLOCK_BYTES]);
    // Somebody writes all of the block that the first waits for: its bytes come on top of that.
    export.write(2 * block, Bytes::from(vec![5; BLOCK_BYTES])).await.unwrap();
    note(2 * BLOCK_BYTES, &[5; BLOCK_BYTES]);
    assert!(!waiting.is_finished(), "the store is away");
    std::fs::rename(&away, &here).unwrap();
    waiting.await.unwrap().unwrap();
    note(2 * BLOCK_BYTES + 512, &[2; 512]);
    let pieces = export.read(0, export.size_bytes()).await.unwrap();
    assert!(flatten(&pieces) == model);
}
