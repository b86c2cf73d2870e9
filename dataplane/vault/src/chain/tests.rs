use super::*;
use crate::testing::history::{steps, world_of};
use crate::testing::{Call, World, counted};
use farshore_proto::ErrorKind;
use proptest::prelude::*;

/// What a chain reads of a volume: slot, first and last seq of each span, and whose the last frame is.
type Read = (Vec<(Slot, Seq, Seq)>, Stamp);

async fn read(vault: &Vault, volume: VolumeId) -> Result<Read, VaultError> {
    let mut chain = Chain::open(vault, volume).await?;
    let mut spans = Vec::new();
    while let Some(Found { slot, span, .. }) = chain.next().await? {
        spans.push((slot, span.first_seq, span.last_seq));
    }
    chain.hole().await?;
    Ok((spans, chain.stamp()))
}

/// Volume 1 has something in every slot, volume 0 in some; a checkpoint at `checkpoint`.
async fn busy(slots: u64, quiet: &[u64], checkpoint: u64) -> World {
    let mut world = World::new(2, 1).await;
    for slot in 0..slots {
        if slot == checkpoint {
            world.checkpoint(0).await;
        }
        for volume in 0..2 {
            if volume == 1 || quiet.contains(&slot) {
                world.write(volume, slot % 80, 1, 100 + u32::try_from(slot).unwrap());
                world.end_span(volume, true);
            }
        }
        world.commit(0).await;
    }
    world
}

/// The slots that were asked for, in order of their numbers.
fn asked(world: &World, trail: &[(Call, object_store::path::Path)]) -> Vec<u64> {
    let folder = format!("logs/{}/", world.logs[0].id);
    let slot = |path: &str| u64::from_str_radix(path.strip_prefix(&folder)?, 16).ok();
    let mut slots: Vec<u64> = trail.iter().filter_map(|(_, path)| slot(path.as_ref())).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// I14: what a quiet volume costs to read is not what its neighbours wrote.
#[tokio::test]
async fn a_quiet_volume_is_read_without_the_slots_between() {
    let world = busy(420, &[2, 120, 300, 418], 400).await;
    let (vault, volume) = (&world.vault, world.volumes[0].id);
    let all = read(&vault.clone().with_quiet_slots(u64::MAX), volume).await.unwrap();
    assert_eq!(all.0.iter().map(|span| span.0.0).collect::<Vec<_>>(), [2, 120, 300, 418]);
    let (store, counted) = counted(vault);
    let found = read(&vault.through(store).with_quiet_slots(8), volume).await.unwrap();
    assert_eq!(found, all);
    let asked = asked(&world, &counted.trail());
    let between = asked.iter().filter(|slot| (40..390).contains(*slot)).count();
    assert!(between < 20, "{asked:?}");
}

/// Quiet at first, and then no more: it is not walked back for long.
#[tokio::test]
async fn a_volume_that_is_not_quiet_any_more_is_read_slot_by_slot() {
    let slots: Vec<u64> = (0..2).chain(100..400).collect();
    let world = busy(420, &slots, 400).await;
    let (vault, volume) = (&world.vault, world.volumes[0].id);
    let all = read(&vault.clone().with_quiet_slots(u64::MAX), volume).await.unwrap();
    let (store, counted) = counted(vault);
    let found = read(&vault.through(store).with_quiet_slots(8), volume).await.unwrap();
    assert_eq!(found, all);
    // It looks four times, for some sixty requests, and goes back 32 slots then: not 196.
    assert!(counted.count() < 420 + 4 * (60 + 32 + 20), "{}", counted.count());
}

/// One that has nothing at all between: what is behind the checkpoint is read, and no more.
#[tokio::test]
async fn a_volume_that_is_quiet_to_the_end_ends_there() {
    let world = busy(420, &[2], 400).await;
    let (vault, volume) = (world.vault.clone(), world.volumes[0].id);
    let (store, counted) = counted(&vault);
    let found = read(&vault.through(store).with_quiet_slots(8), volume).await.unwrap();
    assert_eq!(found.0, [(Slot(2), Seq(1), world.volumes[0].seq)]);
    assert!(asked(&world, &counted.trail()).len() < 100);
}

/// S20: a slot that was lost is a loss to those volumes that have something there.
#[tokio::test]
async fn a_lost_slot_is_a_loss_where_it_held_something_only() {
    let world = busy(420, &[2, 120, 300, 418], 400).await;
    let log = world.logs[0].id;
    let vault = world.vault.clone().with_quiet_slots(8);
    let [quiet, other] = [world.volumes[0].id, world.volumes[1].id];
    let whole = read(&vault, quiet).await.unwrap();
    std::fs::remove_file(world.file(&ObjectName::slot(log, Slot(200)))).unwrap();
    assert_eq!(read(&vault, quiet).await.unwrap(), whole);
    assert_eq!(read(&vault, other).await.unwrap_err().kind(), ErrorKind::Corrupt);
    for lost in [300, 120] {
        let file = world.file(&ObjectName::slot(log, Slot(lost)));
        let kept = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let error = read(&vault, quiet).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{lost}: {error}");
        std::fs::write(&file, kept).unwrap();
    }
}

fn damage_header(world: &World, slot: u64) {
    let file = world.file(&ObjectName::slot(world.logs[0].id, Slot(slot)));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[90] ^= 1;
    std::fs::write(&file, bytes).unwrap();
}

/// S26: a header says which of the slots behind it count. Where those behind it tell that themselves, one that cannot be read
/// is the loss of what it held, and of no more.
#[tokio::test]
async fn a_damaged_header_is_a_loss_where_its_slot_held_something_only() {
    for damaged in [3, 9] {
        let mut world = World::new(2, 1).await;
        for slot in 0..16_u64 {
            // Run 2 begins at slot 10.
            world.logs[0].incarnation = 1 + u64::from(slot >= 10);
            for volume in 0..2 {
                if volume == 1 || slot != damaged {
                    world.write(volume, slot, 1, 100 + u32::try_from(slot).unwrap());
                    world.end_span(volume, true);
                }
            }
            world.commit(0).await;
        }
        let [other, own] = [world.volumes[0].id, world.volumes[1].id];
        let whole = read(&world.vault, other).await.unwrap();
        damage_header(&world, damaged);
        let found = read(&world.vault, other).await;
        let end = crate::log::find_end(&world.vault, world.logs[0].id, Slot(0)).await;
        if damaged == 3 {
            assert_eq!(found.unwrap(), whole);
            assert_eq!(end.unwrap().next, Slot(16));
        } else {
            // A run began right behind it, or in it: what follows may be void.
            assert_eq!(found.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert_eq!(read(&world.vault, own).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_trail_changes_nothing_that_a_stream_says(steps in steps(), quiet in 1_u64..4) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = world_of(steps).await;
            for volume in &world.volumes {
                let all = read(&world.vault.clone().with_quiet_slots(u64::MAX), volume.id).await;
                let some = read(&world.vault.clone().with_quiet_slots(quiet), volume.id).await;
                assert_eq!(some.unwrap(), all.unwrap());
            }
        });
    }
}
