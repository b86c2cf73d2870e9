use super::*;
use crate::checkpoint::read_ledger;
use crate::log::{LogEnd, seal};
use crate::testing::{World, at_once, counted};
use crate::verify::{Report, verify};
use crate::view::{PointSelector, VolumeView};
use bytes::Bytes;
use farshore_codec::segment::slot_without_data;
use farshore_proto::ErrorKind;
use farshore_proto::bugs::{Bug, switch_on};
use farshore_proto::segment::{SlotKind, SlotWriter};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a directory holds.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => _ = found.insert(path.clone(), std::fs::read(&path).unwrap()),
        }
    }
    found
}

/// Makes a directory hold that, and nothing else.
pub(crate) fn set(folder: &Path, to: &Files) {
    for path in files(folder).into_keys().filter(|path| !to.contains_key(path)) {
        std::fs::remove_file(path).unwrap();
    }
    for (path, bytes) in to {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Has `look` look at a store again and again: just before each of its calls in turn everything goes on from one state to the other. Gives how many
/// calls there are.
pub(crate) async fn at_every_call(
    world: &World,
    [before, after]: [&Files; 2],
    mut look: impl AsyncFnMut(u64, Vault),
) -> u64 {
    let (mut call, mut calls) = (0, 1);
    while call < calls {
        let folder = world.folder.path().to_owned();
        set(&folder, before);
        let (store, hooks) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let then = after.clone();
        hooks.before_call(call, move || set(&folder, &then));
        look(call, vault).await;
        calls = calls.max(hooks.what_others_put().0);
        call += 1;
    }
    calls
}

/// A log with so many slots, all of one volume; every third has a mark.
async fn written(slots: u64) -> World {
    let mut world = World::new(1, 1).await;
    write_on(&mut world, slots).await;
    world
}

async fn write_on(world: &mut World, slots: u64) {
    for _ in 0..slots {
        let slot = world.logs[0].next.0;
        world.write(0, slot % 80, 4, 100 + u32::try_from(slot).unwrap());
        world.end_span(0, slot.is_multiple_of(3));
        world.commit(0).await;
    }
}

async fn moved(world: &World, to: u64) -> Horizon {
    let moved = advance(&world.vault, world.logs[0].id, Slot(to), |_, _| true).await.unwrap();
    let Moved::To(horizon) = moved else { panic!("{moved:?}") };
    horizon
}

fn delete(world: &World, slots: std::ops::Range<u64>) {
    for slot in slots {
        std::fs::remove_file(world.file(&ObjectName::slot(world.logs[0].id, Slot(slot)))).unwrap();
    }
}

/// What a run that hung puts into a slot that was deleted, much later.
fn late(world: &World, kind: SlotKind, slot: u64) {
    let keys = world.vault.seal_keys();
    let log = world.logs[0].id;
    let at = (world.vault.id(), log, Slot(slot));
    let object = slot_without_data(kind, at, SlotWriter::of_run(77), keys).unwrap();
    std::fs::write(world.file(&ObjectName::slot(log, Slot(slot))), object).unwrap();
}

async fn end(vault: &Vault, world: &World) -> Result<(LogEnd, Ledger), VaultError> {
    let log = world.logs[0].id;
    let end = find_end(vault, log, Slot(0)).await?;
    let ledger = read_ledger(vault, log, &end, |_| {}).await?;
    Ok((end, ledger))
}

/// What a log says, whatever its reader began with.
fn says(ledger: &Ledger) -> (Slot, u64, Vec<(VolumeId, VolumeTail)>) {
    let tails = ledger.tails().map(|(volume, tail)| (volume, *tail)).collect();
    (ledger.next(), ledger.incarnation(), tails)
}

#[tokio::test]
async fn a_log_is_read_from_its_newest_horizon_on() {
    let mut world = written(20).await;
    let (_, before) = end(&world.vault, &world).await.unwrap();
    let first = moved(&world, 7).await;
    assert_eq!((first.number, first.slot()), (1, Slot(7)));
    let second = moved(&world, 15).await;
    assert_eq!(second.number, 2);
    delete(&world, 0..15);
    let (found, ledger) = end(&world.vault, &world).await.unwrap();
    assert_eq!((found.next, found.horizon, found.is_sealed), (Slot(20), second.clone(), false));
    assert_eq!((says(&ledger), ledger.slots_behind()), (says(&before), 5));
    // It says what the slots said.
    let log = world.logs[0].id;
    let again = advance(&world.vault, log, Slot(9), |_, _| true).await.unwrap();
    assert_eq!(again, Moved::Already(second));
    write_on(&mut world, 3).await;
    let third = moved(&world, 23).await;
    let (found, ledger) = end(&world.vault, &world).await.unwrap();
    assert_eq!((found.next, ledger.horizon(), third.number), (Slot(23), 3, 3));
    assert_eq!(ledger, third.ledger());
    // The chain of digests.
    let before = read(&world.vault, log, 2).await.unwrap().object;
    assert_eq!(read(&world.vault, log, 3).await.unwrap().body.before, digest(&before));
}

#[tokio::test]
async fn a_horizon_moves_only_over_what_is_there_and_what_a_base_covers() {
    let world = written(9).await;
    let log = world.logs[0].id;
    let held = advance(&world.vault, log, Slot(5), |_, tail| tail.last_seq.0 > 99).await.unwrap();
    assert_eq!(held, Moved::Held(world.volumes[0].id));
    let far = advance(&world.vault, log, Slot(10), |_, _| true).await.unwrap_err();
    assert_eq!(far.kind(), ErrorKind::Limit, "{far}");
    delete(&world, 3..4);
    let lost = advance(&world.vault, log, Slot(5), |_, _| true).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Corrupt, "{lost}");
    assert_eq!(newest(&world.vault, log, 0).await.unwrap(), Horizon::default());
}

/// Whatever a hung run put into slots that were deleted: nobody looks below a horizon.
#[tokio::test]
async fn what_lands_below_a_horizon_later_is_nothing_to_anybody() {
    for kind in [SlotKind::Fill, SlotKind::Seal] {
        let world = written(20).await;
        moved(&world, 15).await;
        delete(&world, 0..15);
        let before = end(&world.vault, &world).await.unwrap();
        for slot in [14, 13, 12, 11, 3] {
            late(&world, kind, slot);
            assert_eq!(end(&world.vault, &world).await.unwrap(), before, "{kind:?} {slot}");
        }
        let mut scan = LogScan::new(&world.vault, world.logs[0].id, Slot(0));
        let mut slots = Vec::new();
        while let Some((slot, _)) = scan.next().await.unwrap() {
            slots.push(slot.0);
        }
        assert_eq!(slots, (15..20).collect::<Vec<_>>(), "{kind:?}");
    }
}

/// While somebody hangs between two calls the writer goes on, the horizon passes, slots are deleted, and a run that
/// hung as well leaves a seal and a fill there.
async fn race(slots: u64, further: u64, to: u64) -> (World, Files, Files) {
    let mut world = written(slots).await;
    let folder = world.folder.path().to_owned();
    let before = files(&folder);
    write_on(&mut world, further).await;
    moved(&world, to).await;
    delete(&world, 0..to);
    // The slot that whoever hangs goes for stays free.
    late(&world, SlotKind::Seal, slots + 2);
    late(&world, SlotKind::Fill, to - 1);
    let after = files(&folder);
    (world, before, after)
}

/// Seals the log while that happens before call number `call`, with a bug or without; gives what came of it, the end of the log, and
/// how many calls there were.
async fn seal_while(
    call: u64,
    from: Slot,
    (world, before, after): &(World, Files, Files),
    bug: Option<Bug>,
) -> (Result<LogEnd, VaultError>, LogEnd, u64) {
    let folder = world.folder.path().to_owned();
    set(&folder, before);
    let (store, hooks) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let log = world.logs[0].id;
    let (taken, then) = (world.file(&ObjectName::slot(log, Slot(12))), after.clone());
    hooks.before_call(call, move || {
        // Who is sealed does not go on.
        if !taken.exists() {
            set(&folder, &then);
        }
    });
    switch_on(bug.as_slice());
    let sealed = seal(&vault, log, from).await;
    switch_on(&[]);
    let found = find_end(&world.vault, log, Slot(0)).await.unwrap();
    (sealed, found, hooks.what_others_put().0)
}

#[tokio::test]
async fn a_seal_ends_its_log_however_long_it_took() {
    let race = race(12, 18, 25).await;
    for from in [0, 8] {
        let (mut call, mut calls) = (0, 1);
        while call < calls {
            let (sealed, found, made) = seal_while(call, Slot(from), &race, None).await;
            let sealed = sealed.unwrap().next;
            assert!(found.is_sealed && found.next == sealed, "call {call}: {sealed}, {found:?}");
            assert!([Slot(12), Slot(30)].contains(&sealed), "call {call}: {sealed}");
            calls = calls.max(made);
            call += 1;
        }
        assert!(calls > 8, "{calls}");
    }
}

#[tokio::test]
async fn the_end_that_was_found_is_one_that_the_log_had() {
    let (world, before, after) = race(12, 18, 25).await;
    let folder = world.folder.path().to_owned();
    let mut known = Vec::new();
    for state in [&before, &after] {
        set(&folder, state);
        let (end, ledger) = end(&world.vault, &world).await.unwrap();
        known.push((end.next, end.is_sealed, says(&ledger)));
    }
    assert_eq!(known[1].0, Slot(30));
    let mut passed = 0;
    let look = async |call, vault: Vault| match end(&vault, &world).await {
        Ok((end, ledger)) => {
            let found = (end.next, end.is_sealed, says(&ledger));
            assert!(known.contains(&found), "call {call}: {found:?}");
        }
        // The end was found, and what is in front of it was gone when that was read.
        Err(VaultError::Passed { .. }) => passed += 1,
        Err(error) => panic!("call {call}: {error}"),
    };
    let calls = at_every_call(&world, [&before, &after], look).await;
    assert!(calls > 8 && passed > 0 && passed < calls / 2, "{calls} {passed}");
}

#[tokio::test]
async fn a_lost_or_damaged_horizon_is_named() {
    let mut world = written(9).await;
    for to in [3, 5, 7, 9] {
        moved(&world, to).await;
    }
    let log = world.logs[0].id;
    let file = |number| world.file(&ObjectName::horizon(log, number));
    let bytes = std::fs::read(file(4)).unwrap();
    // Another one in its place, an older one, a part of it.
    for other in [std::fs::read(file(3)).unwrap(), bytes[..bytes.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(file(4), other).unwrap();
        let error = find_end(&world.vault, log, Slot(0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("horizon/0000000004"), "{error}");
    }
    std::fs::write(file(4), bytes).unwrap();
    for lost in 1..=3 {
        let kept = std::fs::read(file(lost)).unwrap();
        std::fs::remove_file(file(lost)).unwrap();
        // The newest says all that counts.
        assert_eq!(newest(&world.vault, log, 0).await.unwrap().number, 4, "{lost} was lost");
        assert_eq!(find_end(&world.vault, log, Slot(0)).await.unwrap().next, Slot(9));
        std::fs::write(file(lost), kept).unwrap();
    }
    // The last one taken away: what is gone looks lost, and nothing is read wrongly.
    delete(&world, 0..9);
    write_on(&mut world, 4).await;
    std::fs::remove_file(world.file(&ObjectName::horizon(log, 4))).unwrap();
    let error = find_end(&world.vault, log, Slot(0)).await.unwrap_err();
    assert!(matches!(error, VaultError::LostSlot { slot: Slot(7), .. }), "{error}");
}

/// Lists of any length, from any number that is known to be there.
#[tokio::test]
async fn the_newest_of_a_list_is_found_from_wherever_it_is_looked_for() {
    let world = World::new(1, 1).await;
    let log = world.logs[0].id;
    let name = |number| ObjectName::horizon(log, number);
    std::fs::create_dir_all(world.file(&name(1)).parent().unwrap()).unwrap();
    for last in 0..200_u64 {
        if last > 0 {
            world.vault.store().create(&name(last), Bytes::from_static(b"x")).await.unwrap();
        }
        for known in [0, 1, last / 2, last.saturating_sub(5), last.saturating_sub(1), last] {
            let found =
                gapless::newest(world.vault.store(), known.min(last), 1 << 20, name).await.unwrap();
            assert_eq!(found, last, "from {known}");
        }
    }
    let error = gapless::newest(world.vault.store(), 0, 100, name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[tokio::test]
async fn verify_compares_horizons_and_reads_behind_the_newest() {
    let mut world = written(9).await;
    for to in [3, 6] {
        moved(&world, to).await;
    }
    world.checkpoint(0).await;
    write_on(&mut world, 3).await;
    let whole = verify(&world.vault, true, |_| {}).await.unwrap();
    assert_eq!((whole.horizons, whole.checkpoints), (2, 1), "{whole:?}");
    let log = world.logs[0].id;
    let named = |report: &Report, number| {
        report.problems.iter().any(|problem| problem.object == ObjectName::horizon(log, number))
    };
    assert!(!named(&whole, 1) && !named(&whole, 2), "{whole:?}");
    // One that goes on from another one.
    let file = world.file(&ObjectName::horizon(log, 2));
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut body = read(&world.vault, log, 1).await.unwrap().body;
    body.before = [9; 32];
    let keys = world.vault.seal_keys();
    let other = seal_horizon(world.vault.id(), log, 2, keys, &body).unwrap();
    std::fs::write(&file, other).unwrap();
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(named(&report, 2), "{report:?}");
    std::fs::write(&file, kept).unwrap();
    std::fs::remove_file(world.file(&ObjectName::horizon(log, 1))).unwrap();
    let report = verify(&world.vault, true, |_| {}).await.unwrap();
    assert!(named(&report, 1), "{report:?}");
}

/// Whoever reads a volume goes on at the horizon only if it has all that the slots in front of it said of the volume.
#[tokio::test]
async fn an_older_point_is_not_the_latest_because_history_went() {
    let mut world = written(4).await;
    let volume = world.volumes[0].id;
    crate::map::write(&world.vault, volume).await.unwrap().unwrap();
    let older = world.committed_points().last().unwrap().seq;
    write_on(&mut world, 6).await;
    moved(&world, 10).await;
    delete(&world, 0..10);
    let open = || VolumeView::open(&world.vault, volume, PointSelector::Latest);
    let error = open().await.unwrap_err();
    let is_named =
        matches!(&error, VaultError::Lost { object, .. } if *object == ObjectName::base(volume, 1));
    assert!(is_named && error.kind() == ErrorKind::Corrupt, "{error}");
    switch_on(&[Bug::HorizonPassedOver]);
    let taken = open().await.map(|view| view.point().seq);
    switch_on(&[]);
    assert_eq!(taken.unwrap(), older, "the bug shows");
}

/// Each check that a seeded bug leaves out is one that the interleavings need.
#[test]
fn without_the_checks_ends_and_seals_are_wrong() {
    at_once(async {
        let race = race(12, 18, 25).await;
        for bug in [Bug::SealBelowHorizon, Bug::HorizonNotReadAgain] {
            let (mut call, mut calls, mut wrong) = (0, 1, 0);
            while call < calls {
                let (sealed, found, made) = seal_while(call, Slot(0), &race, Some(bug)).await;
                wrong += u64::from(sealed.is_err() || !found.is_sealed);
                calls = calls.max(made);
                call += 1;
            }
            assert!(wrong > 0, "{bug:?}: none of {calls}");
        }
    });
}

/// What a later program says of a log would not be in the next horizon of this one.
#[tokio::test]
async fn no_horizon_is_put_behind_one_of_which_a_later_program_says_more() {
    let world = written(9).await;
    let log = world.logs[0].id;
    moved(&world, 3).await;
    let Found { body, .. } = read(&world.vault, log, 1).await.unwrap();
    let place = farshore_proto::horizon::place(world.vault.id(), log, 1);
    world.outgrow(&ObjectName::horizon(log, 1), place, body.encode());
    assert_eq!(newest(&world.vault, log, 0).await.unwrap().slot(), Slot(3));
    let error = advance(&world.vault, log, Slot(6), |_, _| true).await.unwrap_err();
    assert!(matches!(error, VaultError::Outgrown { .. }), "{error}");
}
