use super::*;
use crate::batch::{Change, Handle};
use farshore_proto::BlockRange;

const LOG: LogId = LogId([1; 16]);
const NEXT: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);

fn step(tenure: &mut Tenure, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    tenure.step(input, &mut out);
    out
}

fn id(n: usize) -> VolumeId {
    VolumeId((n as u128).to_be_bytes())
}

fn known() -> RecoveredVolume {
    RecoveredVolume {
        epoch: Epoch(1),
        size_bytes: 4096,
        committed: Seq(0),
        stamp: Stamp::default(),
    }
}

/// A tenure that has looked through its journal.
fn seen() -> Tenure {
    let mut tenure = Tenure::default();
    let out = step(&mut tenure, Input::Start { log: LOG, incarnation: 4 });
    assert!(matches!(out[..], [Output::SeeJournal { log: LOG }]));
    let out = step(&mut tenure, Input::JournalSeen { volumes: BTreeSet::from([VOLUME]) });
    let [Output::ReadLog { log: LOG, incarnation: 4, journaled }] = &out[..] else {
        panic!("the log is read next, not {out:?}");
    };
    assert!(journaled.contains(&VOLUME), "T1");
    assert!(!tenure.is_open());
    tenure
}

fn opened(out: Vec<Output>) -> Opening {
    let Ok([Output::Open(opening)]) = <[Output; 1]>::try_from(out) else {
        panic!("it opens");
    };
    opening
}

fn open() -> (Tenure, Opening) {
    let mut tenure = seen();
    let volumes = BTreeMap::from([(VOLUME, known())]);
    let found = RecoveredLog { next_slot: Slot(7), incarnation: 9, volumes, ..Default::default() };
    let out = step(&mut tenure, Input::LogRead { found: Some(found) });
    assert!(matches!(&out[..], [Output::ReadJournal { log: LOG, volumes }] if volumes.len() == 1));
    let volumes = BTreeSet::from([VOLUME]);
    let opening = opened(step(&mut tenure, Input::JournalRead { volumes, files: vec![3, 11] }));
    assert!(tenure.is_open());
    (tenure, opening)
}

fn there(log: LogId) -> Input {
    Input::PutEnded { log, slot: Slot(7), end: PutEnd::There }
}

fn claimed(log: LogId) -> Input {
    Input::ClaimEnded { log, volume: VOLUME, outcome: Ok((Seq(0), Stamp::default())) }
}

#[test]
fn a_start_reads_the_journal_the_log_and_the_journals_frames() {
    let (_, opening) = open();
    assert_eq!((opening.log, opening.next_slot, opening.incarnation), (LOG, Slot(7), 9));
    assert_eq!(opening.first_file, 12, "T4: behind every file that is there");
    let change = Change::Zero(BlockRange { block: 0, count: 1 });
    let (epoch, seq, handle) = (Epoch(1), Seq(1), Handle(0));
    let entry = Entry {
        imprint: farshore_proto::Imprint::default(),
        stamp: Stamp::default(),
        volume: VOLUME,
        epoch,
        seq,
        change,
        handle,
        bytes: 0,
    };
    let frame = JournaledEntry { entry, file: 3 };
    let told: Vec<shard::Input> = opening.inputs([frame]).collect();
    let [
        shard::Input::Recovered { volume: VOLUME, .. },
        shard::Input::Replay { file: 3, .. },
        shard::Input::Replayed { files },
    ] = &told[..]
    else {
        panic!("volumes, frames, files, not {told:?}");
    };
    assert_eq!(files, &[3, 11]);
}

#[test]
fn a_log_found_sealed_at_the_start_gives_way_to_a_new_one() {
    let mut tenure = seen();
    let out = step(&mut tenure, Input::LogRead { found: None });
    assert!(matches!(out[..], [Output::Renew { sealed: LOG }]));
    assert!(!tenure.is_open());
    let opening = opened(step(&mut tenure, Input::Renewed { log: NEXT, files: vec![5] }));
    assert_eq!((opening.log, opening.next_slot, opening.first_file), (NEXT, Slot(0), 6));
    let told: Vec<shard::Input> = opening.inputs([]).collect();
    assert!(matches!(&told[..], [shard::Input::Replayed { files }] if files == &[5]), "T4");
}

#[test]
fn a_seal_ends_what_is_asked_for_the_log_and_opens_the_next_once_the_journal_is_at_rest() {
    let (mut tenure, _) = open();
    assert!(matches!(step(&mut tenure, there(LOG))[..], [Output::Tell(_)]));
    assert!(matches!(step(&mut tenure, claimed(LOG))[..], [Output::Tell(_)]));
    let sealed = || Input::PutEnded { log: LOG, slot: Slot(8), end: PutEnd::Sealed };
    assert!(matches!(step(&mut tenure, sealed())[..], [Output::Retire]));
    // A second put that finds the seal, and whatever else is late.
    for input in [sealed(), there(LOG), claimed(LOG)] {
        assert!(step(&mut tenure, input).is_empty(), "T3");
    }
    assert!(matches!(step(&mut tenure, Input::AtRest)[..], [Output::Renew { sealed: LOG }]));
    let opening = opened(step(&mut tenure, Input::Renewed { log: NEXT, files: vec![12] }));
    assert_eq!((opening.log, opening.first_file, tenure.log()), (NEXT, 13, NEXT));
    for input in [sealed(), there(LOG), claimed(LOG)] {
        assert!(step(&mut tenure, input).is_empty(), "T3");
    }
    assert!(matches!(step(&mut tenure, claimed(NEXT))[..], [Output::Tell(_)]));
}

#[test]
fn a_slot_that_is_taken_ends_the_node() {
    let (mut tenure, _) = open();
    let taken = Input::PutEnded { log: LOG, slot: Slot(8), end: PutEnd::Taken };
    assert!(matches!(step(&mut tenure, taken)[..], [Output::Taken { log: LOG, slot: Slot(8) }]));
}

#[test]
#[should_panic(expected = "T2")]
fn a_sealed_log_is_not_drawn_again() {
    let mut tenure = seen();
    step(&mut tenure, Input::LogRead { found: None });
    step(&mut tenure, Input::Renewed { log: LOG, files: Vec::new() });
}

/// S12: a shard whose log names more volumes than it may hold starts all the same.
#[test]
fn of_more_volumes_than_a_shard_holds_the_journaled_ones_come_first() {
    let volumes = (0..SHARD_VOLUMES_MAX + 9).map(|n| (id(n), known())).collect();
    let last = id(SHARD_VOLUMES_MAX + 8);
    let kept = in_room(volumes, &BTreeSet::from([last]));
    assert_eq!(kept.len(), SHARD_VOLUMES_MAX);
    assert_eq!((kept[0].0, kept[1].0), (last, id(0)), "what is journaled comes first");
}
