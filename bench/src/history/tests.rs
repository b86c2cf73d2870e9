use super::*;
use farshore_engine::shard::CHECKPOINT_SLOTS;
use farshore_ingest::claim::{SealedLogs, claim_with};
use farshore_ingest::recover::recover;
use farshore_proto::{Seq, Slot};
use farshore_vault::layout::ObjectName;
use std::collections::BTreeSet;

fn options(slots: u64) -> Options {
    Options {
        slots,
        takeover_slots: slots,
        volumes: 11,
        delay_ms: 0,
        dir: PathBuf::new(),
        keep: false,
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The figures check what they find; the smallest history there is passes.
#[tokio::test]
async fn what_is_found_is_what_was_written() {
    let (folder, options) = (folder(), options(slots_min(11)));
    options.check().unwrap();
    let (figures, history) = takeover::measure(&options, folder.path()).await.unwrap();
    // Of each volume 3 epochs, the missing one, the 3 behind it, and the new one.
    assert!(figures[1].requests.unwrap() >= 11 * 8, "{figures:?}");
    history.clear().unwrap();
    let (figures, history) = start::measure(&options, folder.path()).await.unwrap();
    assert!(figures[1].in_flight_max.unwrap() > 1, "{figures:?}");
    history.clear().unwrap();
    let (compared, _) = start::compare(&options, folder.path()).await.unwrap();
    assert!(compared[0].requests < compared[1].requests, "{compared:?}");
}

/// A start that reads all slots finds the same as one with a checkpoint: the checkpoints that were written are true.
#[tokio::test]
async fn checkpoints_say_what_the_slots_say() {
    let folder = folder();
    let history = History::write(folder.path().join("vault"), 2, 1200, 11).await.unwrap();
    for log in &history.logs {
        let mut ledgers = Vec::new();
        for newest in [true, false] {
            let none = BTreeSet::new();
            let found = recover(&history.vault, log.id, 2, &none, |_, _| {}).await.unwrap();
            let found = found.unwrap();
            start::check(log, &found, newest).unwrap();
            ledgers.push(found.ledger);
            for slot in log.slots..found.next_slot.0 {
                history.remove(&ObjectName::slot(log.id, Slot(slot))).unwrap();
            }
            if newest {
                for slot in log.checkpoints() {
                    history.remove(&ObjectName::checkpoint(log.id, slot)).unwrap();
                }
            }
        }
        assert!(ledgers[0].tails().eq(ledgers[1].tails()));
        assert_eq!(ledgers[0].tails().count(), log.volumes.len());
        // Some stand still behind the checkpoint, some move.
        let moved = |tail: &farshore_proto::checkpoint::VolumeTail| {
            tail.newest.0 >= log.slots - CHECKPOINT_SLOTS
        };
        assert!(ledgers[0].tails().any(|(_, tail)| moved(tail)));
        assert!(ledgers[0].tails().any(|(_, tail)| !moved(tail)));
    }
}

/// Something else than what was written is no figure.
#[tokio::test]
async fn a_volume_that_is_elsewhere_is_noticed() {
    let folder = folder();
    let mut history = History::write(folder.path().join("vault"), 1, 1200, 4).await.unwrap();
    let none = BTreeSet::new();
    let id = history.logs[0].id;
    let found = recover(&history.vault, id, 2, &none, |_, _| {}).await.unwrap().unwrap();
    start::check(&history.logs[0], &found, true).unwrap();
    assert!(start::check(&history.logs[0], &found, false).is_err());
    let (volume, place) = history.logs[0].volumes.iter_mut().next().unwrap();
    let volume = *volume;
    place.committed = Seq(place.committed.0 + 1);
    assert!(start::check(&history.logs[0], &found, true).is_err());
    let wanted = takeover::wanted(volume);
    let claimed = claim_with(&history.vault, &wanted, &SealedLogs::default()).await.unwrap();
    assert!(takeover::check(&history.logs[0], &[(volume, claimed)]).is_err());
}

#[test]
fn a_log_too_short_for_its_checkpoints_is_refused() {
    assert!(options(slots_min(11) - 1).check().is_err());
}
