use super::*;
use crate::testing::World;
use farshore_codec::seal::{CommitKey, Domain, Purpose, Sealer};
use farshore_proto::Domain as DedupDomain;
use farshore_proto::ErrorKind;
use farshore_proto::bugs::switch_on;
use farshore_proto::object::{Compression, ObjectHeader, ObjectPlace, commit, committed};
use farshore_proto::segment::put_own;
use std::collections::BTreeSet;

async fn filled(slots: u64) -> World {
    let mut world = World::new(1, 1).await;
    for seed in 0..slots {
        world.write(0, 0, 4, 100 + u32::try_from(seed).unwrap());
        world.end_span(0, true);
        world.commit(0).await;
    }
    world
}

#[tokio::test]
async fn a_put_that_is_tried_again_is_committed_and_another_is_foreign() {
    let mut world = filled(1).await;
    let log = world.logs[0].id;
    let bytes = world.build(0);
    let outcome = put_segment(&world.vault, log, Slot(1), bytes.clone()).await.unwrap();
    assert_eq!(outcome, PutOutcome::Committed);
    // As after an error that came when the store had carried out the put.
    let outcome = put_segment(&world.vault, log, Slot(1), bytes).await.unwrap();
    assert_eq!(outcome, PutOutcome::Committed);
    world.logs[0].next = Slot(1);
    let other = world.build(0);
    let outcome = put_segment(&world.vault, log, Slot(1), other).await.unwrap();
    assert_eq!(outcome, PutOutcome::Foreign(Foreign::Segment));
    world.seal(0).await;
    let late = world.build(0);
    let outcome = put_segment(&world.vault, log, Slot(2), late).await.unwrap();
    assert_eq!(outcome, PutOutcome::Foreign(Foreign::Sealed));
}

#[tokio::test]
async fn the_end_is_found_from_any_hint() {
    let mut world = filled(21).await;
    let log = world.logs[0].id;
    for from in [0, 1, 9, 20, 21] {
        let end = find_end(&world.vault, log, Slot(from)).await.unwrap();
        assert_eq!((end.next, end.is_sealed, end.incarnation), (Slot(21), false, 1), "{from}");
        assert!(end.void.is_empty());
    }
    world.seal(0).await;
    for from in [0, 21] {
        let end = find_end(&world.vault, log, Slot(from)).await.unwrap();
        assert_eq!((end.next, end.is_sealed), (Slot(21), true), "{from}");
    }
    let empty = LogId([0x66; 16]);
    let end = find_end(&world.vault, empty, Slot(0)).await.unwrap();
    assert_eq!((end.next, end.is_sealed, end.incarnation), (Slot(0), false, 0));
}

#[tokio::test]
async fn a_seal_is_put_once_and_behind_what_won_its_slot() {
    let world = filled(3).await;
    let log = world.logs[0].id;
    assert_eq!(seal(&world.vault, log, Slot(0)).await.unwrap().next, Slot(3));
    assert_eq!(seal(&world.vault, log, Slot(0)).await.unwrap().next, Slot(3));
    assert_eq!(seal(&world.vault, log, Slot(3)).await.unwrap().next, Slot(3));
    // Writer and sealer race: whatever wins, the segment is committed or foreign, never both.
    for _ in 0..8 {
        let mut world = filled(1).await;
        let log = world.logs[0].id;
        let bytes = world.build(0);
        let (put, sealed) = tokio::join!(
            put_segment(&world.vault, log, Slot(1), bytes),
            seal(&world.vault, log, Slot(0))
        );
        match put.unwrap() {
            PutOutcome::Committed => assert_eq!(sealed.unwrap().next, Slot(2)),
            PutOutcome::Foreign(Foreign::Sealed) => assert_eq!(sealed.unwrap().next, Slot(1)),
            PutOutcome::Foreign(Foreign::Segment) => panic!("nobody else writes"),
        }
    }
}

#[tokio::test]
async fn a_scan_ends_at_the_seal_or_the_first_empty_slot() {
    let mut world = filled(12).await;
    let log = world.logs[0].id;
    let count = async |from| {
        let mut scan = LogScan::new(&world.vault, log, Slot(from));
        let mut slots = Vec::new();
        while let Some((slot, segment)) = scan.next().await.unwrap() {
            assert_eq!(segment.header().slot(), slot);
            assert_eq!(segment.table.spans.len(), 1);
            slots.push(slot.0);
        }
        assert!(scan.next().await.unwrap().is_none());
        (slots, scan.end().unwrap())
    };
    assert_eq!(count(0).await, ((0..12).collect(), ScanEnd::Missing(Slot(12))));
    assert_eq!(count(7).await, ((7..12).collect(), ScanEnd::Missing(Slot(12))));
    assert_eq!(count(12).await, (vec![], ScanEnd::Missing(Slot(12))));
    seal(&world.vault, log, Slot(0)).await.unwrap();
    assert_eq!(count(0).await.1, ScanEnd::Sealed(Slot(12)));
    world.logs[0].next = Slot(13);
}

#[tokio::test]
async fn void_slots_in_front_of_a_scan_still_tell_which_slots_are_void() {
    let mut world = filled(2).await;
    let log = world.logs[0].id;
    // Run 1 leaves slots 3 and 4 behind the missing slot 2; run 2 fills 2 and goes on at 5.
    for slot in [3, 4] {
        world.logs[0].next = Slot(slot);
        world.commit(0).await;
    }
    world.logs[0].incarnation = 2;
    for slot in [2, 5] {
        world.logs[0].next = Slot(slot);
        world.commit(0).await;
    }
    for from in [0, 3, 4] {
        let mut scan = LogScan::new(&world.vault, log, Slot(from));
        let mut slots = Vec::new();
        while let Some((slot, _)) = scan.next().await.unwrap() {
            slots.push(slot.0);
        }
        let expected: Vec<u64> = [0, 1, 2, 5].into_iter().filter(|slot| *slot >= from).collect();
        assert_eq!(slots, expected, "from {from}");
    }
    assert_eq!(find_end(&world.vault, log, Slot(0)).await.unwrap().incarnation, 2);
}

#[tokio::test]
async fn a_damaged_slot_is_named_and_the_scan_goes_on() {
    let world = filled(4).await;
    let log = world.logs[0].id;
    let file = world.file(&ObjectName::slot(log, Slot(1)));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[218] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut scan = LogScan::new(&world.vault, log, Slot(0));
    assert_eq!(scan.next().await.unwrap().unwrap().0, Slot(0));
    let error = scan.next().await.unwrap_err();
    assert!(error.to_string().contains("0000000000000001 is damaged at byte 208"), "{error}");
    assert_eq!(scan.next().await.unwrap().unwrap().0, Slot(2));
}

/// A slot that a later program put: its body has a section that a reader must understand.
fn newer(world: &World, slot: Slot, kind: SlotKind) -> Vec<u8> {
    let place = SegmentHeader::place(world.vault.id(), world.logs[0].id, slot);
    let ObjectPlace { kind: object, vault, subject, number, part } = &place;
    let context: [&[u8]; 5] =
        [&object.magic(), &vault.0, subject, &number.to_le_bytes(), &part.to_le_bytes()];
    let keys = world.vault.seal_keys();
    let (own_key, own) = keys.own;
    let (domain, (key, data)) = match kind {
        SlotKind::Segment => (DedupDomain::FIRST, keys.data),
        SlotKind::Fill | SlotKind::Seal => (DedupDomain::OWN, keys.own),
    };
    let mut sealer = Sealer::draw(data, Purpose::Object, &context).unwrap();
    let mut body = [60_u32 | 1 << 16, 4, 1, 0, 7].map(u32::to_le_bytes).concat();
    let header = ObjectHeader {
        place,
        domain,
        key,
        own_key,
        variant: kind.code(),
        compression: Compression::Raw,
        body_bytes: body.len() + 16,
        body_raw_bytes: body.len(),
        salt: *sealer.salt(),
        commitment: [0; 32],
        header_bytes: object.header_bytes(),
    };
    let mut head =
        header.encode(|out| put_own(out, 0, &SlotWriter::of_run(world.logs[0].incarnation)));
    let committing = CommitKey::derive(own, Purpose::Object, &context, sealer.salt());
    let commitment = committing.commit(&committed(&head));
    commit(&mut head, &commitment);
    sealer.seal(Domain::Body, &head, &mut body).unwrap();
    [head, body].concat()
}

/// What a slot means that a later program put is not known, so nor is what those behind it do.
#[tokio::test]
async fn a_slot_of_a_newer_version_leaves_a_scan_unsure() {
    for kind in [SlotKind::Segment, SlotKind::Fill, SlotKind::Seal] {
        let mut world = filled(2).await;
        let log = world.logs[0].id;
        let name = ObjectName::slot(log, Slot(2));
        std::fs::write(world.file(&name), newer(&world, Slot(2), kind)).unwrap();
        world.logs[0].next = Slot(3);
        world.write(0, 0, 4, 1);
        world.end_span(0, true);
        world.commit(0).await;
        let mut scan = LogScan::new(&world.vault, log, Slot(0));
        for _ in 0..2 {
            scan.next().await.unwrap().unwrap();
        }
        let error = scan.next().await.unwrap_err();
        assert!(matches!(&error, VaultError::Version { object, .. } if *object == name), "{error}");
        assert!(!scan.is_sure(), "{kind:?}");
    }
}

/// The same in front of where a scan begins, where its head alone is read.
#[tokio::test]
async fn a_slot_of_a_newer_version_in_front_of_a_scan_is_named() {
    let mut world = filled(4).await;
    let log = world.logs[0].id;
    let name = ObjectName::slot(log, Slot(1));
    let mut bytes = std::fs::read(world.file(&name)).unwrap();
    let end = u16::from_le_bytes([bytes[6], bytes[7]]).into();
    bytes[4] = 3;
    let mut head = bytes[..end - 4].to_vec();
    farshore_proto::wire::put_crc(&mut head, 0);
    bytes[..end].copy_from_slice(&head);
    std::fs::write(world.file(&name), bytes).unwrap();
    let mut scan = LogScan::new(&world.vault, log, Slot(3));
    let error = scan.next().await.unwrap_err();
    assert!(matches!(&error, VaultError::Version { object, .. } if *object == name), "{error}");
    assert!(!scan.is_sure());
    assert_eq!(scan.next().await.unwrap().unwrap().0, Slot(3), "it is said once");
    // A volume that begins behind it ends there, and its readers do.
    drop(scan);
    world.claim(0, 0).await;
    let volume = world.volumes[0].id;
    let error = crate::catalog::end_of_volume(&world.vault, volume).await.unwrap_err();
    assert!(error.is_newer(), "{error}");
}

/// Takes the slots from `from` on away, as if they were not put yet.
fn take_away(world: &World, from: u64) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let log = world.logs[0].id;
    let files = (from..world.logs[0].next.0).map(|slot| {
        let path = world.file(&ObjectName::slot(log, Slot(slot)));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (path, bytes)
    });
    files.collect()
}

/// S11: the writer fills slots between a reader's look at one and at those behind it.
#[tokio::test]
async fn a_log_that_is_written_while_it_is_read_has_lost_nothing() {
    // So many segments, and perhaps a seal, are put in between.
    for (segments, is_sealed) in
        [(1, false), (2, false), (3, true), (4, false), (5, false), (5, true)]
    {
        let what = format!("{segments} segments, sealed: {is_sealed}");
        for from in [0, 3, 4] {
            let mut world = filled(3 + segments).await;
            if is_sealed {
                world.seal(0).await;
                world.logs[0].next = world.logs[0].next.next();
            }
            let (log, end) = (world.logs[0].id, world.logs[0].next.0);
            let files = take_away(&world, 3);
            let (store, counted) = crate::testing::counted(&world.vault);
            let vault = Vault::open(&store, &world.recovery).await.unwrap();
            counted.grow(&ObjectName::slot(log, Slot(3)), files);
            if from <= 3 {
                let found = find_end(&vault, log, Slot(from)).await.unwrap();
                assert_eq!(found.is_sealed, is_sealed, "{what}");
                // With nothing behind it the slot is the end, as it was when it was read.
                let expected = if segments == 1 { 3 } else { end - u64::from(is_sealed) };
                assert_eq!(found.next.0, expected, "{what}");
                assert!(found.void.is_empty(), "{what}");
            } else {
                // A volume that began while slot 3 was under way.
                let mut scan = LogScan::new(&vault, log, Slot(from));
                let mut slots = Vec::new();
                while let Some((slot, _)) = scan.next().await.unwrap() {
                    slots.push(slot.0);
                }
                assert_eq!(slots, (4..3 + segments).collect::<Vec<_>>(), "{what}");
            }
            assert!(counted.has_grown());
        }
    }
}

#[tokio::test]
async fn a_point_is_read_while_its_volume_is_written() {
    for segments in 1..6 {
        let world = filled(3 + segments).await;
        let volume = world.volumes[0].id;
        let files = take_away(&world, 3);
        let (store, counted) = crate::testing::counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        counted.grow(&ObjectName::slot(world.logs[0].id, Slot(3)), files);
        let view = crate::VolumeView::open(&vault, volume, crate::PointSelector::Latest);
        let view = view.await.unwrap();
        assert!(counted.has_grown());
        assert!(view.point().seq >= world.points[2].seq);
        assert_eq!(view.hole(), None, "the slot is there");
    }
}

/// Puts slots without data, as run `incarnation` leaves them.
async fn put_slots(
    vault: &Vault,
    log: LogId,
    kind: SlotKind,
    incarnation: u64,
    slots: impl IntoIterator<Item = u64>,
) {
    let keys = vault.seal_keys();
    for slot in slots.into_iter().map(Slot) {
        let writer = SlotWriter::of_run(incarnation);
        let object = slot_without_data(kind, (vault.id(), log, slot), writer, keys).unwrap();
        let name = ObjectName::slot(log, slot);
        assert_eq!(vault.store().create(&name, object).await.unwrap(), Put::Created);
    }
}

/// Rule 7 of ADR 0014: the end of a long log costs few requests, and what dead runs left behind it, or hung ones behind
/// a seal, is never taken for it.
#[tokio::test]
async fn the_end_is_searched_and_what_lies_around_it_is_seen() {
    let world = World::new(0, 1).await;
    let (store, gets) = crate::testing::counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let ends = [1, 3, 4, 15, 16, 17, 19, 31, 63, 64, 127, 128, 129, 130, 131, 500, 1023, 1030];
    for (number, end) in (0..).zip(ends) {
        // Of the three slots behind the first missing one each may be filled.
        for behind in [0b000, 0b111, 0b100, 0b010] {
            let id = LogId([number, behind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            put_slots(&world.vault, id, SlotKind::Fill, 1, 0..end - 1).await;
            put_slots(&world.vault, id, SlotKind::Fill, 7, end - 1..end).await;
            let left = (0..3).filter(|bit| behind & 1 << bit != 0).map(|bit| end + 1 + bit);
            put_slots(&world.vault, id, SlotKind::Fill, 6, left.clone()).await;
            let left: BTreeSet<Slot> = left.map(Slot).collect();
            for from in [0, 1, end / 2, end] {
                let what = format!("end {end}, {left:?} behind it, from {from}");
                let before = gets.count();
                let found = find_end(&vault, id, Slot(from)).await.unwrap();
                assert_eq!((found.next, found.is_sealed), (Slot(end), false), "{what}");
                assert_eq!((&found.void, found.incarnation), (&left, 7), "{what}");
                assert!(gets.count() - before < 150, "{what}: {} requests", gets.count() - before);
            }
            // A claimant comes; then puts that hung, and fills of a start, land behind its seal.
            // No seal is void, whatever its incarnation.
            let incarnation = if number % 2 == 0 { 7 } else { 1 };
            put_slots(&world.vault, id, SlotKind::Seal, incarnation, [end]).await;
            for from in [0, end / 2, end] {
                let found = find_end(&vault, id, Slot(from)).await.unwrap();
                assert_eq!((found.next, found.is_sealed), (Slot(end), true), "{left:?} {from}");
            }
        }
    }
}

#[tokio::test]
async fn a_loss_far_in_front_of_the_end_is_for_who_reads_it() {
    let world = World::new(0, 1).await;
    let log = world.logs[0].id;
    put_slots(&world.vault, log, SlotKind::Fill, 1, (0..1000).filter(|slot| *slot != 300)).await;
    assert_eq!(find_end(&world.vault, log, Slot(0)).await.unwrap().next, Slot(1000));
    let mut scan = LogScan::new(&world.vault, log, Slot(0)).filled_to(Slot(1000));
    let lost = loop {
        match scan.next().await {
            Ok(found) => assert!(found.is_some(), "slot 300 is lost"),
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, VaultError::LostSlot { slot: Slot(300), .. }), "{lost}");
}

#[tokio::test]
async fn what_the_last_slots_say_of_checkpoints_is_found() {
    let world = World::new(0, 1).await;
    let (vault, log) = (&world.vault, world.logs[0].id);
    let keys = vault.seal_keys();
    for slot in 0..40 {
        // The last of them lies: it cannot know of what is behind itself.
        let checkpoint = match slot {
            // It is believed if the log is as long.
            34 => Some(Slot(30)),
            36 => Some(Slot(20)),
            39 => Some(Slot(41)),
            _ => None,
        };
        let writer = SlotWriter { checkpoint, ..SlotWriter::of_run(1) };
        let at = (vault.id(), log, Slot(slot));
        let object = slot_without_data(SlotKind::Fill, at, writer, keys).unwrap();
        vault.store().create(&ObjectName::slot(log, Slot(slot)), object).await.unwrap();
    }
    let end = find_end(vault, log, Slot(0)).await.unwrap();
    assert_eq!((end.next, end.checkpoint), (Slot(40), Some(Slot(30))));
    // Who seals says it too.
    let sealed = seal(vault, log, Slot(0)).await.unwrap().next;
    let header = read_header(vault, log, sealed).await.unwrap();
    assert_eq!(header.writer.checkpoint, Some(Slot(30)));
}

/// Rule 7 of ADR 0014: a log does not end in front of what a checkpoint speaks of.
#[tokio::test]
async fn a_log_that_lost_what_a_checkpoint_speaks_of_has_no_end() {
    let mut world = filled(12).await;
    let log = world.logs[0].id;
    // Slots 10 and 11 are lost; slot 12 was put by a run that knew them.
    world.logs[0].checkpoint = Some(Slot(12));
    world.write(0, 0, 4, 900);
    world.end_span(0, true);
    world.commit(0).await;
    for slot in [10, 11] {
        std::fs::remove_file(world.file(&ObjectName::slot(log, Slot(slot)))).unwrap();
    }
    for from in [0, 9, 10] {
        let error = find_end(&world.vault, log, Slot(from)).await.unwrap_err();
        let is_it = matches!(error, VaultError::LostSlot { slot: Slot(10), later: Slot(11), .. });
        assert!(is_it, "{error}");
        seal(&world.vault, log, Slot(from)).await.unwrap_err();
    }
}

/// Rule 1 of version 2: what is missing, and nothing says that it may be, is lost. Where that is taken for an end, all behind it is gone.
#[tokio::test]
async fn a_lost_slot_near_the_end_is_no_end() {
    for bug in [None, Some(Bug::LossTakenForEnd)] {
        let world = filled(12).await;
        let log = world.logs[0].id;
        std::fs::remove_file(world.file(&ObjectName::slot(log, Slot(6)))).unwrap();
        switch_on(bug.as_slice());
        let sealed = seal(&world.vault, log, Slot(0)).await.map(|end| end.next);
        switch_on(&[]);
        match bug {
            None => assert_eq!(sealed.unwrap_err().kind(), ErrorKind::Corrupt),
            Some(_) => assert_eq!(sealed.unwrap(), Slot(6), "the bug shows"),
        }
    }
}
