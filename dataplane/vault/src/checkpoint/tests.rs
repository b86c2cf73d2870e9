use super::*;
use crate::log::{find_end, seal};
use crate::testing::World;
use crate::testing::history::{steps, world_of};
use farshore_proto::{Epoch, Seq};
use proptest::prelude::*;

async fn ledger(vault: &Vault, log: LogId) -> Ledger {
    let end = find_end(vault, log, Slot(0)).await.unwrap();
    read_ledger(vault, log, &end, |_| {}).await.unwrap()
}

/// The slots that reading the log learns from.
async fn learnt(vault: &Vault, log: LogId) -> Vec<u64> {
    let end = find_end(vault, log, Slot(0)).await.unwrap();
    let mut slots = Vec::new();
    read_ledger(vault, log, &end, |segment| slots.push(segment.header().slot().0)).await.unwrap();
    slots
}

/// What the slots of a log in front of `at` say, all of them read.
async fn before(vault: &Vault, log: LogId, at: Slot) -> Ledger {
    let mut ledger = Ledger::default();
    let mut scan = LogScan::new(vault, log, Slot(0));
    while let Some((slot, segment)) = scan.next().await.unwrap() {
        if slot < at {
            let spans = segment.table.spans.iter().map(SpanEnd::from);
            ledger.take(slot, &segment.header().writer, spans);
        }
    }
    ledger
}

/// A volume written slot by slot; from some slots on the writer names a checkpoint that it wrote there.
async fn written(slots: u64, checkpoints: &[u64]) -> World {
    let mut world = World::new(1, 2).await;
    for slot in 0..slots {
        if checkpoints.contains(&slot) {
            world.checkpoint(0).await;
        }
        world.write(0, slot % 80, 4, 100 + u32::try_from(slot).unwrap());
        world.end_span(0, slot % 3 == 0);
        world.commit(0).await;
    }
    world
}

fn damage(world: &World, slot: u64) {
    let file = world.file(&ObjectName::checkpoint(world.logs[0].id, Slot(slot)));
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_log_is_read_from_its_newest_checkpoint_on() {
    let world = written(20, &[6, 14]).await;
    let log = world.logs[0].id;
    assert_eq!(learnt(&world.vault, log).await, (14..20).collect::<Vec<_>>());
    let found = ledger(&world.vault, log).await;
    assert_eq!((found.next(), found.checkpoint()), (Slot(20), Some(Slot(14))));
    let tail = found.tail(world.volumes[0].id).unwrap();
    assert_eq!(
        (tail.epoch, tail.first_seq, tail.last_seq),
        (Epoch(1), Seq(1), world.volumes[0].seq)
    );
    assert_eq!((tail.newest, tail.mark.unwrap().0 <= tail.last_seq), (Slot(19), true));
}

/// S27: the store lost slots and kept the checkpoint that speaks of them; the log went on with others.
#[tokio::test]
async fn a_checkpoint_of_lost_slots_is_not_taken_for_one_of_those_that_came_instead() {
    let mut world = World::new(2, 1).await;
    let (log, vault) = (world.logs[0].id, world.vault.clone());
    for slot in 0..12_u32 {
        if slot == 10 {
            world.checkpoint(0).await;
        }
        world.write(0, u64::from(slot), 4, 100 + slot);
        world.end_span(0, true);
        world.commit(0).await;
    }
    for slot in 8..12 {
        std::fs::remove_file(world.file(&ObjectName::slot(log, Slot(slot)))).unwrap();
    }
    let writer = &mut world.logs[0];
    (writer.next, writer.incarnation, writer.checkpoint) = (Slot(8), 2, None);
    for slot in 8..10 {
        world.write(1, slot, 4, 200);
        world.end_span(1, true);
        world.commit(0).await;
    }
    let body = ledger(&vault, log).await.body().unwrap().clone();
    let error = write(&vault, log, Slot(10), body).await.unwrap_err();
    assert!(matches!(error, VaultError::CheckpointOfOthers { .. }), "{error}");
    // Nor is it believed where somebody names it all the same.
    world.logs[0].checkpoint = Some(Slot(10));
    for slot in 10..14 {
        world.write(1, slot, 4, 200);
        world.end_span(1, true);
        world.commit(0).await;
    }
    assert_eq!(learnt(&vault, log).await, (0..14).collect::<Vec<_>>());
    let found = ledger(&vault, log).await;
    assert_eq!(found.tail(world.volumes[1].id).unwrap().newest, Slot(13));
    assert_eq!(found.tail(world.volumes[0].id).unwrap().newest, Slot(7));
}

/// What is lost or damaged of what is derived costs time only.
#[tokio::test]
async fn a_checkpoint_that_does_not_open_gives_way_to_the_one_before_and_to_the_slots() {
    let world = written(20, &[6, 14]).await;
    let (vault, log) = (&world.vault, world.logs[0].id);
    let whole = ledger(vault, log).await;
    let says = |ledger: &Ledger| ledger.body().unwrap().clone();
    damage(&world, 14);
    assert_eq!(learnt(vault, log).await, (6..20).collect::<Vec<_>>());
    assert_eq!(says(&ledger(vault, log).await), says(&whole));
    std::fs::remove_file(world.file(&ObjectName::checkpoint(log, Slot(14)))).unwrap();
    assert_eq!(learnt(vault, log).await, (6..20).collect::<Vec<_>>());
    damage(&world, 6);
    assert_eq!(learnt(vault, log).await, (0..20).collect::<Vec<_>>());
    assert_eq!(says(&ledger(vault, log).await), says(&whole));
}

/// Another's, an older or another log's checkpoint put under the name does not open.
#[tokio::test]
async fn a_checkpoint_opens_only_where_it_belongs() {
    let world = written(12, &[3, 9]).await;
    let log = world.logs[0].id;
    let at = |slot| world.file(&ObjectName::checkpoint(log, Slot(slot)));
    std::fs::copy(at(3), at(9)).unwrap();
    let error = read(&world.vault, log, Slot(9)).await.unwrap_err();
    assert!(error.to_string().contains("checkpoint at slot 3"), "{error}");
    assert_eq!(learnt(&world.vault, log).await, (3..12).collect::<Vec<_>>());
    let strange = written(12, &[3]).await;
    std::fs::copy(strange.file(&ObjectName::checkpoint(log, Slot(3))), at(3)).unwrap();
    assert_eq!(learnt(&world.vault, log).await, (0..12).collect::<Vec<_>>());
}

/// Rule 4 of ADR 0014: slots that a dead run left right behind a checkpoint are void all the same.
#[tokio::test]
async fn a_checkpoint_says_which_slots_behind_it_are_void() {
    let mut world = written(4, &[]).await;
    let log = world.logs[0].id;
    // Run 1 leaves slot 5 behind the missing slot 4, which run 2 fills; then run 2 writes a checkpoint at slot 5.
    let late = {
        world.write(0, 0, 4, 900);
        world.end_span(0, false);
        world.logs[0].next = Slot(5);
        let seq = world.volumes[0].seq;
        world.commit(0).await;
        seq
    };
    let image = world.volumes[0].image.clone();
    world.volumes[0].rewind(Seq(late.0 - 1), image);
    (world.logs[0].incarnation, world.logs[0].next) = (2, Slot(4));
    world.write(0, 0, 4, 901);
    world.end_span(0, false);
    world.commit(0).await;
    let end = find_end(&world.vault, log, Slot(0)).await.unwrap();
    let whole = read_ledger(&world.vault, log, &end, |_| {}).await.unwrap();
    let body = before(&world.vault, log, Slot(5)).await.body().unwrap().clone();
    write(&world.vault, log, Slot(5), body).await.unwrap();
    (world.logs[0].checkpoint, world.logs[0].next) = (Some(Slot(5)), Slot(6));
    world.write(0, 0, 4, 902);
    world.end_span(0, false);
    world.commit(0).await;
    assert_eq!(learnt(&world.vault, log).await, [6]);
    let tail = *ledger(&world.vault, log).await.tail(world.volumes[0].id).unwrap();
    assert_eq!((tail.last_seq, tail.is_broken), (world.volumes[0].seq, false));
    assert_eq!(whole.tail(world.volumes[0].id).unwrap().last_seq.next(), tail.last_seq);
}

#[tokio::test]
async fn a_sealed_log_is_read_from_its_checkpoint_too() {
    let world = written(9, &[5]).await;
    let log = world.logs[0].id;
    seal(&world.vault, log, Slot(0)).await.unwrap();
    assert_eq!(learnt(&world.vault, log).await, [5, 6, 7, 8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happened: from a checkpoint at any slot on a log says the same as from its first.
    #[test]
    fn a_checkpoint_changes_nothing_that_a_log_says(steps in steps(), at in any::<prop::sample::Index>()) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let world = world_of(steps).await;
            for log in &world.logs {
                let end = find_end(&world.vault, log.id, Slot(0)).await.unwrap();
                let whole = read_ledger(&world.vault, log.id, &end, |_| {}).await.unwrap();
                let at = Slot(at.index(usize::try_from(end.next.0).unwrap() + 1) as u64);
                let body = before(&world.vault, log.id, at).await.body().unwrap().clone();
                write(&world.vault, log.id, at, body).await.unwrap();
                let named = LogEnd { checkpoint: Some(at), ..end };
                let found = read_ledger(&world.vault, log.id, &named, |_| {}).await.unwrap();
                assert_eq!(found.checkpoint(), Some(at));
                assert_eq!(found.body(), whole.body());
            }
        });
    }
}
