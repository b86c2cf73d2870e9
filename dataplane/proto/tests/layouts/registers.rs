//! The bodies of the register: round trips, and what the decoder refuses.

use crate::bodies::{MUST, Section, join, split};
use crate::samples::{self, ENTRY, LOG, OTHER, OTHER_LOG, OWN};
use farshore_proto::limits::{
    OBJECT_BODY_BYTES_MAX, REGISTER_LOGS_MAX, REGISTER_MAX, REGISTER_OPEN_MAX, SLOT_MAX,
    TARGETS_MAX,
};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::register::{RegisterBody, State, Statement};
use farshore_proto::{Attempt, DecodeError, ErrorKind, LogId, Slot, Target};
use proptest::collection::btree_set;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Offsets in the sample, each behind the head of its section: one head, two logs, two condemnations, two targets.
const HEAD: usize = 16;
const LOGS: usize = HEAD + 64 + 16;
const OPEN: usize = LOGS + 2 * 32 + 16;
pub(crate) const TARGETS: usize = OPEN + 2 * 24 + 16;

type Read = Result<RegisterBody, DecodeError>;

fn decode(body: &[u8]) -> Read {
    RegisterBody::decode(body, ENTRY)
}

fn with(at: usize, bytes: &[u8]) -> Read {
    let mut body = samples::register().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    decode(&body)
}

/// The sample with something else in it.
fn changed(change: impl FnOnce(&mut RegisterBody)) -> Read {
    let mut body = samples::register();
    change(&mut body);
    decode(&body.encode())
}

#[track_caller]
fn out_of_range(read: Read, what: &'static str, value: u64) {
    assert_eq!(read, Err(DecodeError::Range { what, value }));
}

/// An entry with this statement and this state, in its place.
fn entry(number: u64, statement: Statement, logs: &[(LogId, u64)], open: &[(u64, u64)]) -> Read {
    let verdict = |verdict: u64| (verdict > 0).then_some(verdict);
    let state = State {
        floors: BTreeMap::new(),
        logs: logs.iter().copied().collect(),
        open: open.iter().map(|(number, of)| (*number, verdict(*of))).collect(),
    };
    let before = [u8::from(number > 1); 32];
    RegisterBody::decode(&RegisterBody { before, statement, state }.encode(), number)
}

#[test]
fn the_sample_reads_back_and_lies_where_the_tests_take_it_to_be() {
    let body = samples::register().encode();
    assert_eq!((decode(&body), body.len()), (Ok(samples::register()), TARGETS + 2 * 32));
    let shapes: Vec<_> = split(&body).iter().map(|s| (s.number, s.stride, s.count)).collect();
    assert_eq!(shapes, [(1, 64, 1), (2, 32, 2), (3, 24, 2), (4, 32, 2)]);
    let object = samples::register_object();
    let (header, _) = ObjectHeader::decode(ObjectKind::Register, &object).unwrap();
    assert_eq!((header.place.subject, header.place.number), (samples::VAULT.0, ENTRY));
    assert_eq!(object.len(), header.whole_bytes());
    assert_eq!(header.encode(|own| own.extend([0; 4])), object[..160]);
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    let limits = [(0, 1), (1, REGISTER_LOGS_MAX), (2, REGISTER_OPEN_MAX), (3, TARGETS_MAX)];
    for (at, max) in limits {
        let with_records = |count: usize| {
            let mut sections = split(&samples::register().encode());
            let Section { number, stride, .. } = sections[at];
            sections[at] = Section::of_zeros(number, MUST, stride, u32::try_from(count).unwrap());
            decode(&join(&sections)).unwrap_err()
        };
        let error = with_records(max + 1);
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = with_records(max);
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
}

#[test]
fn one_with_as_much_as_there_may_be_reads_back() {
    let number = (REGISTER_LOGS_MAX + 2 * REGISTER_OPEN_MAX) as u64;
    let target = |slot: usize| Target { slot: Slot(slot as u64), ..OWN };
    let log = |n: u64| LogId(u128::from(n).to_be_bytes());
    let logs = (1..=REGISTER_LOGS_MAX as u64).map(|n| (log(n), n)).collect();
    let first = REGISTER_LOGS_MAX as u64 + 1;
    let open = (0..REGISTER_OPEN_MAX as u64).map(|n| (first + 2 * n, Some(first + 2 * n + 1)));
    let body = RegisterBody {
        before: [1; 32],
        statement: Statement::Verdict {
            of: number - 1,
            targets: (0..TARGETS_MAX).map(target).collect(),
        },
        state: State { logs, floors: BTreeMap::new(), open: open.collect() },
    };
    let bytes = body.encode();
    assert!(bytes.len() <= OBJECT_BODY_BYTES_MAX);
    assert!(RegisterBody::decode(&bytes, number) == Ok(body), "it is another");
}

#[test]
fn entries_have_numbers_from_one_and_all_but_the_first_name_the_one_before() {
    let (body, own) = (samples::register().encode(), [(LOG, 1)]);
    for number in [0, REGISTER_MAX + 1, u64::MAX] {
        out_of_range(RegisterBody::decode(&body, number), "register number", number);
    }
    out_of_range(with(HEAD, &[0; 32]), "register digest", ENTRY);
    entry(1, Statement::birth(LOG), &own, &[]).unwrap();
    entry(REGISTER_MAX, Statement::birth(LOG), &[(LOG, REGISTER_MAX)], &[]).unwrap();
    let state = State { logs: own.into(), ..State::default() };
    let first = RegisterBody { before: [7; 32], statement: Statement::birth(LOG), state };
    out_of_range(RegisterBody::decode(&first.encode(), 1), "register digest", 1);
}

/// What a later program states is no damage.
#[test]
fn a_statement_of_a_later_program_is_refused_by_name() {
    for code in [6, 77, 255] {
        let newer =
            DecodeError::Newer { what: "register body", feature: "statement", bit: code.into() };
        assert_eq!(with(HEAD + 32, &[code]), Err(newer.clone()));
        assert_eq!(newer.kind(), ErrorKind::Invalid);
    }
    out_of_range(with(HEAD + 32, &[0]), "register statement", 0);
    for at in 33..40 {
        let error = with(HEAD + at, &[1]).unwrap_err();
        assert_eq!(error, DecodeError::Reserved { what: "register head" }, "{at}");
    }
}

#[test]
fn a_statement_says_what_is_its_own_and_nothing_else() {
    // A verdict, taken for each other kind: it has a condemnation and targets.
    for code in [1, 2, 3, 5] {
        out_of_range(with(HEAD + 32, &[code]), "register statement", code.into());
    }
    // A verdict and a log.
    out_of_range(with(HEAD + 48, &[1]), "register statement", 4);
    let refused = |read: Read, code: u64| out_of_range(read, "register statement", code);
    let none = LogId([0; 16]);
    refused(entry(2, Statement::Ended(none), &[], &[]), 2);
    refused(entry(2, Statement::Condemnation(BTreeSet::new()), &[], &[(2, 0)]), 3);
    // A birth and a log: which ones were born the state says.
    let state = State { logs: [(LOG, 2)].into(), ..State::default() };
    let birth = RegisterBody { before: [7; 32], statement: Statement::birth(LOG), state };
    let mut birth = birth.encode();
    birth[HEAD + 48] = 1;
    refused(RegisterBody::decode(&birth, 2), 1);
    let spares = Statement::Verdict { of: 2, targets: BTreeSet::new() };
    entry(3, spares, &[], &[(2, 3)]).unwrap();
}

/// The state is what the statement makes of the one before.
#[test]
fn a_state_holds_what_the_statement_says() {
    let refused = |read: Read, value: u64| out_of_range(read, "register state", value);
    let (birth, ended) = (|| Statement::birth(LOG), || Statement::Ended(LOG));
    entry(5, birth(), &[(LOG, 5), (OTHER_LOG, 4)], &[]).unwrap();
    refused(entry(5, birth(), &[(LOG, 4)], &[]), 5);
    let both = entry(5, birth(), &[(LOG, 5), (OTHER_LOG, 5)], &[]).unwrap();
    assert_eq!(both.statement, Statement::Births([LOG, OTHER_LOG].into()));
    entry(5, ended(), &[(OTHER_LOG, 4)], &[]).unwrap();
    refused(entry(5, ended(), &[(LOG, 4)], &[]), 5);
    refused(entry(5, ended(), &[(OTHER_LOG, 5)], &[]), 5);
    refused(entry(1, ended(), &[], &[]), 1);

    let condemnation = || Statement::Condemnation([OWN].into());
    entry(5, condemnation(), &[], &[(4, 0), (5, 0)]).unwrap();
    refused(entry(5, condemnation(), &[], &[(4, 0)]), 5);
    let verdict = || Statement::Verdict { of: 3, targets: [OWN].into() };
    entry(5, verdict(), &[], &[(3, 5)]).unwrap();
    for open in [&[][..], &[(3, 0)], &[(3, 4)], &[(4, 5)]] {
        refused(entry(5, verdict(), &[], open), 5);
    }
    let swept = |of: u64| Statement::Swept { of };
    entry(5, swept(3), &[(LOG, 1)], &[(2, 4)]).unwrap();
    refused(entry(5, swept(3), &[], &[(3, 4)]), 5);
    refused(entry(5, swept(3), &[(LOG, 3)], &[]), 5);
    for of in [0, 4, 5, 6, u64::MAX] {
        refused(entry(5, swept(of), &[], &[]), 5);
    }
}

#[test]
fn each_entry_is_one_thing_and_none_is_of_later() {
    let birth = || Statement::birth(LOG);
    let refused = |logs: &[(LogId, u64)], open: &[(u64, u64)], value: u64| {
        out_of_range(entry(9, birth(), logs, open), "register state", value);
    };
    entry(9, birth(), &[(LOG, 9), (OTHER_LOG, 8)], &[(2, 3), (4, 0)]).unwrap();
    refused(&[(LOG, 9), (OTHER_LOG, 0)], &[], 0);
    refused(&[(LOG, 9)], &[(9, 0)], 9);
    refused(&[(LOG, 9), (OTHER_LOG, 10)], &[], 10);
    refused(&[(LOG, 9), (OTHER_LOG, 4)], &[(4, 0)], 4);
    refused(&[(LOG, 9)], &[(0, 0)], 0);
    refused(&[(LOG, 9)], &[(10, 0)], 10);
    refused(&[(LOG, 9)], &[(2, 4), (4, 0)], 4);
    refused(&[(LOG, 9)], &[(2, 4), (3, 4)], 4);
    refused(&[(LOG, 9)], &[(2, 10)], 10);
    let early = entry(9, birth(), &[(LOG, 9)], &[(3, 3)]);
    out_of_range(early, "register condemnations", 3);
}

#[test]
fn what_is_listed_comes_once_and_in_order() {
    out_of_range(with(LOGS, &[0xff; 16]), "register logs", 4);
    out_of_range(with(LOGS, &OTHER_LOG.0), "register logs", 4);
    out_of_range(with(LOGS, &[0; 16]), "register logs", 1);
    out_of_range(with(OPEN, &[7, 0, 0, 0, 0, 0, 0, 0]), "register condemnations", 7);
    out_of_range(with(OPEN, &[8, 0, 0, 0, 0, 0, 0, 0]), "register condemnations", 7);
    out_of_range(with(TARGETS, &OTHER_LOG.0), "register targets", 9);
    let same = samples::register().encode()[TARGETS + 32..TARGETS + 64].to_vec();
    out_of_range(with(TARGETS, &same), "register targets", 9);
    let attempt = Target { attempt: Attempt([0xff; 8]), ..OTHER };
    changed(|body| {
        body.statement = Statement::Verdict { of: 7, targets: [OWN, OTHER, attempt].into() };
    })
    .unwrap();
    for at in [OPEN + 16, OPEN + 47] {
        let error = with(at, &[1]).unwrap_err();
        assert!(matches!(error, DecodeError::Reserved { .. }), "{at}: {error}");
    }
    let far = 1_u64 << 63;
    out_of_range(with(LOGS + 24, &far.to_le_bytes()), "register floor", far);
    let sections = split(&samples::register().encode());
    out_of_range(decode(&join(&sections[1..])), "register body", 1);
}

prop_compose! {
    fn target()(log: [u8; 16], slot in 0..1_u64 << 62, attempt: [u8; 8]) -> Target {
        Target { log: LogId(log), slot: Slot(slot), attempt: Attempt(attempt) }
    }
}

proptest! {
    #[test]
    fn any_entry_reads_back(
        number in 100..REGISTER_MAX, which in 1..=5_u8, targets in btree_set(target(), 1..40),
        logs in btree_set(any::<[u8; 16]>(), 1..20), open in 0..20_u64, judged in 0..20_u64,
        before in 1..=255_u8,
    ) {
        // Births in the odd ones of the first, condemnations in tens behind, some with a verdict.
        let mut state = State {
            logs: (0..).zip(&logs).map(|(n, log)| (LogId(*log), 2 * n + 1)).collect(),
            floors: logs.iter().skip(3).map(|log| (LogId(*log), Slot(SLOT_MAX.0 / (1 + open)))).collect(),
            open: (0..open).map(|n| (50 + 2 * n, (n < judged).then_some(51 + 2 * n))).collect(),
        };
        state.logs.remove(&LogId([0; 16]));
        state.floors.remove(&LogId([0; 16]));
        let log = LogId([0xab; 16]);
        let statement = match which {
            1 => {
                let born = BTreeSet::from([log, LogId([0xac; 16])]);
                state.logs.extend(born.iter().map(|log| (*log, number)));
                Statement::Births(born)
            }
            2 => { state.logs.remove(&log); Statement::Ended(log) }
            3 => { state.open.insert(number, None); Statement::Condemnation(targets) }
            4 => { state.open.insert(48, Some(number)); Statement::Verdict { of: 48, targets } }
            _ => Statement::Swept { of: 48 },
        };
        let body = RegisterBody { before: [before; 32], statement, state };
        prop_assert_eq!(RegisterBody::decode(&body.encode(), number), Ok(body));
    }
}
