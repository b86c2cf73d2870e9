use super::*;

const LOG: LogId = LogId([1; 16]);

fn volume(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn wanted(n: u8) -> Input {
    let wanted = Wanted {
        volume: volume(n),
        epoch: Epoch(1),
        log: LOG,
        first_slot: Slot(0),
        size_bytes: 4096,
        label: String::new(),
    };
    Input::Wanted { shard: usize::from(n), wanted }
}

fn step(claims: &mut Claims, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    claims.step(input, &mut out);
    out
}

fn numbers(out: &[Output]) -> Vec<u64> {
    let number = |output: &Output| match output {
        Output::Claim { number, .. } => Some(*number),
        Output::Tell { .. } | Output::Wish { .. } => None,
    };
    out.iter().filter_map(number).collect()
}

fn not_ours(cause: Cause) -> NotOurs {
    NotOurs { cause, reason: RefusalReason::Unavailable, text: "not now".to_owned() }
}

#[test]
fn a_few_are_under_way_and_each_is_answered_to_whoever_asked() {
    let mut claims = Claims::new(2, 9);
    assert_eq!(numbers(&step(&mut claims, wanted(0))), [0]);
    assert_eq!(numbers(&step(&mut claims, wanted(1))), [1]);
    assert!(step(&mut claims, wanted(2)).is_empty(), "it waits for its turn");
    let out = step(&mut claims, Input::Ended { number: 1, end: Ok((Seq(7), Stamp::default())) });
    let told = Output::Tell {
        shard: 1,
        log: LOG,
        volume: volume(1),
        outcome: Ok((Seq(7), Stamp::default())),
    };
    assert_eq!(out[0], told);
    assert_eq!(numbers(&out), [2], "the next one has its turn");
}

#[test]
fn whoever_asks_beyond_the_limit_is_told_to_come_back() {
    let mut claims = Claims::new(1, 1);
    step(&mut claims, wanted(0));
    step(&mut claims, wanted(1));
    let out = step(&mut claims, wanted(2));
    let [Output::Tell { shard: 2, outcome: Err((RefusalReason::Unavailable, _)), .. }] = &out[..]
    else {
        panic!("a refusal, not {out:?}");
    };
}

#[test]
fn what_only_the_control_plane_can_mend_is_said_until_it_was() {
    let mut claims = Claims::new(1, 9);
    let mut wishes = Wishes::default();
    let causes = [Cause::Fenced(Epoch(40)), Cause::NeedsEpoch, Cause::Other];
    for (number, cause) in causes.into_iter().enumerate() {
        step(&mut claims, wanted(u8::try_from(number).unwrap()));
        let end = Err(not_ours(cause));
        for output in step(&mut claims, Input::Ended { number: number as u64, end }) {
            if let Output::Wish { volume, cause } = output {
                wishes.learn(volume, cause);
            }
        }
    }
    for _ in 0..2 {
        assert_eq!(wishes.newer(|_| Some(Epoch(3)), 9), [(volume(0), Epoch(40))]);
    }
    assert!(wishes.newer(|_| Some(Epoch(41)), 9).is_empty(), "it was mended");
    assert!(wishes.newer(|_| Some(Epoch(3)), 9).is_empty(), "and is said no more");
    let lost = wishes.take_needed(9);
    assert_eq!(lost, [volume(1)]);
    assert!(wishes.take_needed(9).is_empty());
    wishes.need(lost);
    assert_eq!(wishes.take_needed(9), [volume(1)], "a report was lost");
}

#[test]
fn a_volume_that_is_another_nodes_is_not_spoken_of() {
    let mut wishes = Wishes::default();
    wishes.learn(volume(0), Cause::Fenced(Epoch(50)));
    assert!(wishes.newer(|_| None, 9).is_empty());
    assert!(wishes.newer(|_| Some(Epoch(3)), 9).is_empty(), "it is forgotten here");
}

#[test]
#[should_panic(expected = "a claim ends once")]
fn a_claim_ends_once() {
    let mut claims = Claims::new(1, 9);
    step(&mut claims, Input::Ended { number: 0, end: Ok((Seq(0), Stamp::default())) });
}
