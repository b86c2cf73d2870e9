use super::*;
use crate::learning::{Learnt, learn};
use farshore_codec::SegmentBuilder;
use farshore_ingest::dedup::held_chunks;
use farshore_proto::bugs::{Bug, switch_on};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::register::Statement;
use farshore_proto::segment::{SlotWriter, Table};
use farshore_proto::{Attempt, ChunkId, Slot, Target};
use farshore_vault::Location;
use farshore_vault::layout::ObjectName;
use farshore_vault::log::{put_segment, read_header};
use farshore_vault::register::{At, read};
use farshore_vault::register::{append, newest};
use farshore_vault::runs::{self, Run};
use farshore_vault::testing::World;

const LOG: LogId = LogId([7; 16]);

fn target(slot: u64) -> Target {
    Target { log: LogId([1; 16]), slot: Slot(slot), attempt: Attempt([2; 8]) }
}

async fn register(world: &World) -> (Register, Dedup) {
    let index = Index::open(&world.folder.path().join("index"), world.vault.id()).unwrap();
    let dedup = Dedup::new(world.vault.vault_keys(), index, 1).unwrap();
    (
        Register::new(world.vault.clone(), Handle::current(), dedup.clone(), Ok(Reader::default())),
        dedup,
    )
}

async fn finds(dedup: &Dedup, ids: &[ChunkId]) -> Vec<bool> {
    let found = dedup.lookup(LOG, ids.to_vec()).await;
    found.iter().map(Option::is_some).collect()
}

#[tokio::test]
async fn nothing_is_looked_up_before_the_register_is_applied_and_then_nothing_condemned() {
    let world = World::new(1, 1).await;
    let (register, dedup) = register(&world).await;
    let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
    for (id, slot) in ids.into_iter().zip(1..) {
        dedup.learn_at(
            target(slot),
            vec![(id, Location { target: target(slot), chunk: 0, blocks: 4 })],
        );
    }
    dedup.loaded().await;
    assert_eq!(finds(&dedup, &ids).await, [false; 2]);
    register.bear(LOG).await.unwrap();
    register.bear(LOG).await.unwrap();
    assert_eq!(newest(&world.vault, 0).await.unwrap().number, 1, "it is born once");
    assert_eq!(finds(&dedup, &ids).await, [false; 2], "the logs were not read yet");
    register.begin([at(&world, 1).await]).await.unwrap();
    assert_eq!((finds(&dedup, &ids).await, register.applied().number), (vec![true; 2], 1));
    append(&world.vault, 0, Statement::Condemnation([target(2)].into())).await.unwrap();
    register.0.refresh().await.unwrap();
    assert_eq!((finds(&dedup, &ids).await, register.applied().number), (vec![true, false], 2));
    // A new log has applied what was condemned before its birth.
    append(&world.vault, 0, Statement::Condemnation([target(1)].into())).await.unwrap();
    register.bear(LogId([9; 16])).await.unwrap();
    assert_eq!((finds(&dedup, &ids).await, register.applied().number), (vec![false; 2], 4));
}

/// The store lost what the logs say was applied: what was condemned there is not known.
#[tokio::test]
async fn with_less_of_the_register_than_the_logs_state_nothing_is_looked_up() {
    let world = World::new(1, 1).await;
    let (register, dedup) = register(&world).await;
    let id = ChunkId([1; 32]);
    dedup.learn_at(target(1), vec![(id, Location { target: target(1), chunk: 0, blocks: 4 })]);
    dedup.loaded().await;
    register.bear(LOG).await.unwrap();
    let lost = append(&world.vault, 0, Statement::birth(LogId([9; 16]))).await.unwrap().at();
    let file = world.file(&ObjectName::register(2));
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    register.begin([lost]).await.unwrap();
    assert_eq!((finds(&dedup, &[id]).await, register.applied().number), (vec![false], 0));
    std::fs::write(&file, kept).unwrap();
    register.0.refresh().await.unwrap();
    assert_eq!((finds(&dedup, &[id]).await, register.applied().number), (vec![true], 2));
}

/// The register lost its end and grew again: what the logs state is another entry.
#[tokio::test]
async fn with_another_register_than_the_logs_state_nothing_is_looked_up() {
    let world = World::new(1, 1).await;
    let (register, dedup) = register(&world).await;
    let id = ChunkId([1; 32]);
    dedup.learn_at(target(1), vec![(id, Location { target: target(1), chunk: 0, blocks: 4 })]);
    dedup.loaded().await;
    register.bear(LOG).await.unwrap();
    let lost = append(&world.vault, 0, Statement::birth(LogId([9; 16]))).await.unwrap().at();
    std::fs::remove_file(world.file(&ObjectName::register(2))).unwrap();
    append(&world.vault, 0, Statement::birth(LogId([8; 16]))).await.unwrap();
    register.begin([at(&world, 1).await, lost]).await.unwrap();
    let told = register.0.left_out.get().unwrap();
    assert!(told.contains("gc/0000000002"), "{told}");
    assert_eq!((finds(&dedup, &[id]).await, register.applied()), (vec![false], At::NONE));
}

async fn at(world: &World, number: u64) -> At {
    read(&world.vault, number).await.unwrap().at()
}

/// A segment of some chunks in the vault, and its bytes.
async fn commit(world: &World, slot: u64) -> (Target, Table, Vec<u8>) {
    let keys = world.vault.seal_keys();
    let (vault, log) = (&world.vault, LogId([1; 16]));
    let writer = SlotWriter::of_run(1);
    let mut builder = SegmentBuilder::new(vault.id(), log, Slot(slot), writer, keys, 1).unwrap();
    for byte in 1..=4_u8 {
        let bytes = vec![byte.wrapping_mul(31) ^ u8::try_from(slot).unwrap(); 4 * BLOCK_BYTES];
        builder.push_chunk(vault.hasher().id(&bytes), &bytes);
    }
    let built = builder.finish().unwrap();
    let target = Target { log, slot: Slot(slot), attempt: built.header.attempt() };
    let bytes = built.bytes();
    put_segment(vault, log, Slot(slot), bytes::Bytes::from(bytes.clone())).await.unwrap();
    (target, built.table, bytes)
}

/// A node that starts with what is in a folder.
async fn started(world: &World, folder: &Path) -> (Register, Dedup) {
    let (index, read) = loop {
        match open_index(folder, &world.vault).await {
            Ok(opened) => break opened,
            // The thread of the one before still ends.
            Err(error) if format!("{error:#}").contains("in use") => std::thread::yield_now(),
            Err(error) => panic!("{error:#}"),
        }
    };
    let dedup = Dedup::new(world.vault.vault_keys(), index, 1).unwrap();
    let register = Register::new(world.vault.clone(), Handle::current(), dedup.clone(), read);
    dedup.loaded().await;
    register.bear(LOG).await.unwrap();
    register.begin([]).await.unwrap();
    (register, dedup)
}

/// Waits until it is durable up to where the index was cleared.
async fn cleared(folder: &Path) {
    let begun = std::time::Instant::now();
    while !folder.join("cleared").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the index is never cleared");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What of the chunks of segments is found, once all that is to be looked at was.
async fn found(world: &World, dedup: &Dedup, tables: &[&Table]) -> Vec<bool> {
    dedup.look_at_all(&world.vault).await;
    let mut all = Vec::new();
    for table in tables {
        let ids: Vec<ChunkId> = table.chunks.iter().map(|chunk| chunk.id).collect();
        // Asked for twice: the first time says what is to be looked at.
        finds(dedup, &ids).await;
        dedup.look_at_all(&world.vault).await;
        let found = finds(dedup, &ids).await;
        assert!(found.iter().all(|it| *it == found[0]), "{found:?}");
        all.push(found[0]);
    }
    all
}

/// A node knows two segments; one is swept while it is down, and a put that was sent twice brings that back.
async fn swept_while_down(world: &World, folder: &Path) -> (Table, Table) {
    let (kept, swept) = (commit(world, 1).await, commit(world, 2).await);
    let (register, dedup) = started(world, folder).await;
    for (target, table, _) in [&kept, &swept] {
        dedup.learn(*target, table);
    }
    assert_eq!(found(world, &dedup, &[&kept.1, &swept.1]).await, [true; 2]);
    cleared(folder).await;
    drop((register, dedup));
    let of = append(&world.vault, 0, Statement::Condemnation([swept.0].into())).await.unwrap();
    let of = of.number;
    append(&world.vault, 0, Statement::Verdict { of, targets: [swept.0].into() }).await.unwrap();
    append(&world.vault, 0, Statement::Swept { of }).await.unwrap();
    std::fs::write(world.file(&ObjectName::slot(swept.0.log, swept.0.slot)), swept.2).unwrap();
    (kept.1, swept.1)
}

/// S39.
#[tokio::test]
async fn what_was_swept_while_a_node_was_down_is_not_referred_to_though_it_comes_back() {
    let world = World::new(1, 1).await;
    let folder = world.folder.path().join("node/index");
    let (kept, swept) = swept_while_down(&world, &folder).await;
    for round in 0..2 {
        let (_register, dedup) = started(&world, &folder).await;
        assert_eq!(found(&world, &dedup, &[&kept, &swept]).await, [true, false], "start {round}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_know_what_was_swept_refers_to_it() {
    let world = World::new(1, 1).await;
    let folder = world.folder.path().join("node/index");
    let (kept, swept) = swept_while_down(&world, &folder).await;
    switch_on(&[Bug::SweptFoundAgain]);
    let (_register, dedup) = started(&world, &folder).await;
    assert_eq!(found(&world, &dedup, &[&kept, &swept]).await, [true; 2], "the bug is found");
}

/// If it cannot be told what was swept, the index is begun anew; if nothing can be read at all, it is kept, and nothing is looked up.
#[tokio::test]
async fn an_index_of_which_nobody_can_tell_what_was_swept_is_begun_anew() {
    let world = World::new(1, 1).await;
    let folder = world.folder.path().join("node/index");
    let (kept, swept) = swept_while_down(&world, &folder).await;
    let entry = |number| world.file(&ObjectName::register(number));
    let newest = std::fs::read(entry(4)).unwrap();
    std::fs::write(entry(4), &newest[1..]).unwrap();
    let index = open_index(&folder, &world.vault).await.unwrap();
    assert!(index.1.is_err() && index.0.cleared().is_some());
    drop(index);
    std::fs::write(entry(4), newest).unwrap();
    std::fs::remove_file(entry(3)).unwrap();
    let (_register, dedup) = started(&world, &folder).await;
    assert_eq!(found(&world, &dedup, &[&kept, &swept]).await, [false; 2]);
}

/// Another node left a run; it had not applied what was swept since.
#[tokio::test]
async fn a_run_is_learnt_without_what_was_swept_since_it_was_written() {
    let world = World::new(1, 1).await;
    let folder = world.folder.path().join("node/index");
    let (kept, swept) = swept_while_down(&world, &folder).await;
    let theirs = commit(&world, 3).await;
    let chunks = |table: &Table, target| held_chunks(target, table);
    let kept_target = Target { slot: Slot(1), attempt: attempt_at(&world, 1).await, ..theirs.0 };
    let swept_target = Target { slot: Slot(2), attempt: attempt_at(&world, 2).await, ..theirs.0 };
    let of = |applied, chunks: [Vec<_>; 3]| Run { applied, chunks: chunks.concat() };
    let all =
        [chunks(&kept, kept_target), chunks(&swept, swept_target), chunks(&theirs.1, theirs.0)];
    let other = At { digest: [9; 8], ..at(&world, 3).await };
    let entries = [At::NONE, at(&world, 1).await, at(&world, 2).await, at(&world, 3).await, other];
    for (number, applied) in entries.into_iter().enumerate() {
        runs::write(&world.vault, 1, &of(applied, all.clone())).await.unwrap();
        let folder = world.folder.path().join(format!("other-{number}"));
        let (_register, dedup) = started(&world, &folder).await;
        let mut learnt = Learnt::open(&folder, 0);
        learn(&world.vault, &dedup, &mut learnt).await;
        let found = found(&world, &dedup, &[&kept, &swept, &theirs.1]).await;
        // The verdict is entry 3: who has applied that names nothing of it, so one that says so and does is believed.
        // One that was written behind another entry than the one that is there says nothing.
        let expected = if number < 4 { [true, number == 3, true] } else { [false; 3] };
        assert_eq!(found, expected, "{applied:?}");
        let run = *runs::list(&world.vault, None).await.unwrap().first().unwrap();
        std::fs::remove_file(world.file(&ObjectName::index_run(run))).unwrap();
    }
}

async fn attempt_at(world: &World, slot: u64) -> Attempt {
    read_header(&world.vault, LogId([1; 16]), Slot(slot)).await.unwrap().attempt()
}

/// A log that is sealed while the register is damaged is left by a new one, and from then on nothing refers to anything.
#[tokio::test]
async fn a_log_goes_on_without_a_register_that_is_damaged_and_nothing_is_looked_up() {
    let world = World::new(1, 1).await;
    let folder = world.folder.path().join("node/index");
    let (target, table, _) = commit(&world, 1).await;
    let (register, dedup) = started(&world, &folder).await;
    dedup.learn(target, &table);
    assert_eq!(found(&world, &dedup, &[&table]).await, [true]);
    let newest = world.file(&ObjectName::register(1));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[1..]).unwrap();
    register.bear(LogId([8; 16])).await.unwrap();
    assert_eq!(found(&world, &dedup, &[&table]).await, [false]);
    let told = register.0.left_out.get().unwrap();
    assert!(told.contains("gc/0000000001"), "{told}");
    // Nor when it can be read again: what was written meanwhile is in no register.
    std::fs::write(&newest, bytes).unwrap();
    register.0.refresh().await.unwrap();
    register.bear(LogId([6; 16])).await.unwrap();
    assert_eq!(found(&world, &dedup, &[&table]).await, [false]);
    drop((register, dedup));
    let (_register, dedup) = started(&world, &folder).await;
    dedup.learn(target, &table);
    assert_eq!(found(&world, &dedup, &[&table]).await, [true], "the next start knows it again");
}
