//! When a checkpoint of the log is written, what it says, and who names it.

use super::*;

fn bench() -> Bench {
    let settings = Settings { spacing_ms: 0, checkpoint_slots: 4, ..Settings::default() };
    let mut bench = Bench::with(settings);
    bench.open();
    bench
}

/// A mark that somebody waits for, up to its put: the slot, and the checkpoint that it names.
fn begin(bench: &mut Bench) -> (Slot, Option<Slot>) {
    bench.mark(true);
    let group = bench.seq.0;
    let out = bench.step(Input::GroupDone { group, file: 0 });
    let built = out.iter().find_map(|output| match output {
        Output::Build { slot, writer, .. } => Some((*slot, writer.checkpoint)),
        _ => None,
    });
    built.expect("somebody waits for it")
}

fn end(bench: &mut Bench, slot: Slot) -> Option<(Slot, Seq)> {
    let out = bench.step(Input::PutDone { slot });
    out.into_iter().find_map(|output| match output {
        Output::Checkpoint { slot, body } => Some((slot, body.tails[&VOLUME].last_seq)),
        _ => None,
    })
}

#[test]
fn a_checkpoint_comes_after_some_slots_and_says_what_is_committed() {
    let mut bench = bench();
    for n in 0..3 {
        assert_eq!(begin(&mut bench), (Slot(n), None));
        assert_eq!(end(&mut bench, Slot(n)), None);
    }
    let (committed, on_way) = (begin(&mut bench).0, begin(&mut bench).0);
    assert_eq!(end(&mut bench, committed), Some((Slot(4), Seq(4))));
    assert_eq!(end(&mut bench, on_way), None, "one is on its way");
    assert_eq!(begin(&mut bench), (Slot(5), None), "it may not be there");
    bench.step(Input::Checkpointed { slot: Slot(4), is_there: true });
    assert_eq!(begin(&mut bench), (Slot(6), Some(Slot(4))));
    assert_eq!(end(&mut bench, Slot(5)), None);
    assert_eq!(end(&mut bench, Slot(6)), None);
    assert_eq!(begin(&mut bench), (Slot(7), Some(Slot(4))));
    assert_eq!(end(&mut bench, Slot(7)), Some((Slot(8), Seq(8))));
}

#[test]
fn one_that_could_not_be_written_is_tried_again_later() {
    let mut bench = bench();
    let settings = Settings { spacing_ms: 0, checkpoint_slots: 16, ..Settings::default() };
    bench.shard.settings = settings;
    let mut tried = Vec::new();
    for n in 0..22 {
        begin(&mut bench);
        if let Some((slot, _)) = end(&mut bench, Slot(n)) {
            tried.push(slot.0);
            bench.step(Input::Checkpointed { slot, is_there: false });
        }
    }
    assert_eq!(tried, [16, 18, 20, 22]);
}

#[test]
fn a_start_that_read_much_writes_one_at_once() {
    let settings = Settings { checkpoint_slots: 4, ..Settings::default() };
    let mut bench = Bench::with(settings);
    bench.shard = Shard::new(settings, LogEnd::new(Slot(9), 3, BTreeSet::new(), Ledger::default()));
    let committed = (Seq(5), Stamp::default());
    let out = bench.step(Input::Recovered {
        volume: VOLUME,
        epoch: Epoch(1),
        size_bytes: 4096,
        committed,
    });
    assert!(matches!(out[..], [Output::Checkpoint { slot: Slot(9), .. }]), "{out:?}");
}
