//! Seeds that must hold, the same seed twice, and bugs that must be found.

use farshore_proto::bugs::Bug;
use farshore_sim::campaign::{hunt, run_alone, run_many};
use farshore_sim::run::Setup;
use farshore_sim::trace::Trace;

/// Seeds of every test run; `cargo xtask sim --seeds` runs others.
const SEEDS: u64 = 300;

fn threads() -> usize {
    std::thread::available_parallelism().expect("cores can be counted").get()
}

#[test]
fn every_rule_holds() {
    let summary = run_many(0..SEEDS, &[], threads(), false, |_| ());
    assert_eq!(summary.runs, SEEDS);
    let failures: Vec<String> = summary
        .failures
        .iter()
        .map(|failure| {
            let (seed, violation) = (failure.seed, &failure.violation);
            format!(
                "{}: {}\n  replay: cargo xtask sim --seed {seed} --trace",
                violation.rule, violation.what
            )
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // A simulator that does nothing breaks no rule.
    assert!(summary.strikes.len() == farshore_sim::faults::Fault::ALL.len());
    assert!(summary.points > 10 * SEEDS && summary.marks > 20 * SEEDS, "{summary:?}");
}

#[test]
fn a_seed_is_a_run() {
    let story = |seed| run_alone(&Setup::of(seed), &[], Trace::kept()).unwrap().story;
    for seed in [1, 2, 3] {
        let (one, two) = (story(seed), story(seed));
        let differs = one.iter().zip(&two).position(|(one, two)| one != two);
        let shown = differs.map(|line| (&one[line], &two[line]));
        assert_eq!(shown, None, "seed {seed}, line {differs:?}");
        assert_eq!(one.len(), two.len());
        assert!(one.len() > 500);
    }
    assert_ne!(story(1), story(2));
}

macro_rules! finds {
    ($($name:ident: $bug:ident within $seeds:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let hunt = hunt(Bug::$bug, 0, $seeds, threads());
                assert!(hunt.found.is_some(), "{} runs did not find {:?}", hunt.runs, hunt.bug);
            }
        )*
    };
}

finds! {
    finds_an_ack_before_the_flush: AckBeforeFlush within 200,
}
