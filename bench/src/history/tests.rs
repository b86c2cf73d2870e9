use super::*;
use farshore_engine::shard::CHECKPOINT_SLOTS;
use farshore_ingest::claim::{SealedLogs, claim_with};
use farshore_ingest::recover::recover;
use farshore_proto::{Seq, Slot};
use farshore_vault::layout::ObjectName;
use report::Unit;
use std::collections::BTreeSet;

fn options(slots: u64) -> Options {
    Options {
        slots,
        takeover_slots: slots,
        volumes: 11,
        view_runs: 20_000,
        view_reads: 8,
        churn_gib: 1,
        restore_runs: 3000,
        maps: 3,
        quiet_slots: 2000,
        idle_volumes: 3,
        busy_volumes: 3,
        load_minutes: 1,
        index_chunks: 20_000,
        only: Vec::new(),
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

/// Held to less than it is, each figure is short; else none of these small ones is, of what does not take long.
fn check_verdicts(figures: &[Figure]) {
    for figure in figures {
        let than = figure.measured - 0.01;
        assert!(figure.clone().held_to(than).is_short(), "{figure:?}");
        let is_slow = matches!(figure.unit, Unit::Seconds | Unit::Percent);
        assert!(is_slow || !figure.is_short(), "{figure:?}");
    }
}

#[tokio::test]
async fn a_cold_read_of_a_view_is_a_page_and_a_frame() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let figures = view::measure(&options, folder.path()).await.unwrap();
    check_verdicts(&figures);
    let [open, memory, requests, bytes, median] = &figures[..] else { panic!("{figures:?}") };
    assert!(open.requests.unwrap() > 8 && memory.unit == Unit::Bytes, "{figures:?}");
    assert!((requests.measured - 2.0).abs() < 0.1, "{requests:?}");
    // A frame of 512 KiB, and something of a page.
    assert!(bytes.measured > f64::from(512 << 10) + 1000.0, "{bytes:?}");
    assert!(median.target.is_none());
    assert!(!folder.path().join("view").exists(), "it is removed");
}

#[tokio::test]
async fn a_view_of_something_else_is_no_figure() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let directory = folder.path().join("view");
    let written = view::write(&options, directory.clone()).await.unwrap();
    let mut job = written.job(0);
    assert!(child::found(&child::Job::View(job.clone())).is_ok());
    job.reads[5].seed += 1;
    assert!(child::found(&child::Job::View(job)).is_err());
}

#[tokio::test]
async fn maps_cost_what_is_written_again_and_again() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let figures = maps::measure(&options, folder.path()).await.unwrap();
    check_verdicts(&figures);
    let units: Vec<Unit> = figures.iter().map(|figure| figure.unit).collect();
    let of_one = [Unit::Percent, Unit::Percent, Unit::Bytes, Unit::Ratio];
    assert_eq!(units, [of_one, of_one].concat());
    let bytes = |of: usize| figures[of].measured;
    assert!((5.0..110.0).contains(&bytes(2)) && (5.0..110.0).contains(&bytes(6)), "{figures:?}");
    // One run costs about the same, and is of sixteen times as much.
    assert!(bytes(4) > 8.0 * bytes(0), "{figures:?}");
}

#[tokio::test]
async fn a_restore_fetches_each_frame_once() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let figures = restore::measure(&options, folder.path()).await.unwrap();
    check_verdicts(&figures);
    // What lies between is fetched along.
    assert!((1.05..1.15).contains(&figures[1].measured), "{figures:?}");
    assert!(figures[3].measured > 0.0, "{figures:?}");
}

#[tokio::test]
async fn a_long_past_is_not_read() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let figures = past::measure(&options, folder.path()).await.unwrap();
    check_verdicts(&figures);
    // The segments behind the map, and little beside them.
    let requests = figures[0].requests.unwrap();
    assert!((250..300).contains(&requests), "{requests}");
}

#[tokio::test]
async fn a_quiet_volume_costs_few_requests() {
    let (folder, options) = (folder(), options(slots_min(11)));
    let figures = quiet::measure(&options, folder.path()).await.unwrap();
    check_verdicts(&figures);
    let requests = figures[0].requests.unwrap();
    assert!((200..1000).contains(&requests), "the 2000 slots between are not read: {figures:?}");
}

/// An index that forgets, or says something wrong, is no figure.
#[test]
fn an_index_knows_all_that_it_was_told() {
    let folder = folder();
    let figures = index::measure(&options(1), folder.path()).unwrap();
    let missed = figures.iter().filter(|figure| figure.name.contains("missed"));
    assert!(missed.clone().all(|figure| figure.measured == 0.0), "{figures:?}");
    assert_eq!(missed.count(), 2);
}
