//! What a log says of the register, and when it says so although it has nothing else to say.

use super::*;
use farshore_proto::register::At;

fn bench() -> Bench {
    let mut bench = Bench::with(Settings { spacing_ms: 0, ..Settings::default() });
    bench.open();
    bench
}

/// What is to be built: slots, what they say of the register, and how many spans they have.
fn built(out: &[Output]) -> Vec<(Slot, u64, usize)> {
    let build = |output: &Output| match output {
        Output::Build { slot, writer, spans } => Some((*slot, writer.register.number, spans.len())),
        _ => None,
    };
    out.iter().filter_map(build).collect()
}

fn applied(number: u64, asked: u64) -> Input {
    Input::Applied { at: At { number, digest: number.to_be_bytes() }, asked }
}

#[test]
fn a_segment_says_what_was_applied_when_it_was_begun() {
    let mut bench = bench();
    assert_eq!(built(&bench.step(applied(7, 0))), []);
    bench.mark(true);
    let group = bench.seq.0;
    let out = bench.step(Input::GroupDone { group, file: 0 });
    assert_eq!(built(&out), [(Slot(0), 7, 1)]);
}

#[test]
fn a_silent_log_answers_once_by_a_segment_without_spans() {
    let mut bench = bench();
    let mut asked = |number, asked| built(&bench.step(applied(number, asked)));
    assert_eq!(asked(4, 5), [], "it has not applied that");
    assert_eq!(asked(6, 5), [(Slot(0), 6, 0)]);
    assert_eq!(asked(6, 5), [], "it is on its way");
    let out = bench.step(Input::PutDone { slot: Slot(0) });
    assert!(matches!(&out[..], [Output::Committed { lasts, .. }] if lasts.is_empty()), "{out:?}");
    let mut asked = |number, asked| built(&bench.step(applied(number, asked)));
    assert_eq!(asked(9, 5), [], "it was said");
    assert_eq!(asked(9, 6), [], "so was that");
    assert_eq!(asked(9, 8), [(Slot(1), 9, 0)]);
    assert!(bench.shard.is_settled());
}

#[test]
fn a_log_that_has_something_to_say_answers_with_that() {
    let mut bench = bench();
    bench.mark(false);
    let group = bench.seq.0;
    bench.step(Input::GroupDone { group, file: 0 });
    assert_eq!(built(&bench.step(applied(6, 5))), []);
    assert_eq!(built(&bench.step(Input::Ship)), [(Slot(0), 6, 1)]);
}
