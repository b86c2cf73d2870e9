//! The register of a vault: what a statement makes of what all before it came to.
//!
//! Whoever makes an entry and whoever checks one asks here, so that both say the same.
//!
//! Invariants:
//!   - R1: a verdict names nothing that its condemnation did not name, and a condemnation has one verdict.
//!   - R2: a condemnation stays open until all that its verdict names is deleted.
//!   - R3: births, condemnations and verdicts have the numbers of their entries.
//!   - R4: whatever verdicts name of a log lies below its floor, which never falls.

use farshore_proto::limits::{
    REGISTER_LOGS_MAX, REGISTER_MAX, REGISTER_OPEN_WRITTEN_MAX, TARGETS_MAX,
};
use farshore_proto::register::{State, Statement};
use farshore_proto::{ErrorKind, LogId, Target};
use std::collections::BTreeSet;

/// A statement that makes no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The log is there already.
    #[error("log {log} was born by entry {born} of the register")]
    Born {
        /// The log.
        log: LogId,
        /// The entry.
        born: u64,
    },
    /// The log is not among those that are written.
    #[error("log {log} is not in the register, or ended")]
    NoLog {
        /// The log.
        log: LogId,
    },
    /// No such condemnation is open.
    #[error("condemnation {of} is not open")]
    NotOpen {
        /// Its number.
        of: u64,
    },
    /// There is a verdict on the condemnation.
    #[error("condemnation {of} has its verdict: entry {verdict} of the register")]
    Judged {
        /// Its number.
        of: u64,
        /// The verdict's.
        verdict: u64,
    },
    /// There is no verdict on the condemnation.
    #[error("condemnation {of} has no verdict")]
    NotJudged {
        /// Its number.
        of: u64,
    },
    /// The condemnation does not name what the verdict names.
    #[error("condemnation {of} does not name slot {} of log {}", target.slot, target.log)]
    NotCondemned {
        /// Its number.
        of: u64,
        /// What the verdict names.
        target: Target,
    },
    /// The birth of no log.
    #[error("a birth names at least one log")]
    NoBirth,
    /// A condemnation of nothing.
    #[error("a condemnation names at least one segment")]
    Nothing,
    /// More of something than the register holds.
    #[error("the register has room for {max} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: u64,
    },
}

impl Refused {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Born { .. } | Self::Judged { .. } => ErrorKind::Conflict,
            Self::NoLog { .. } | Self::NotOpen { .. } => ErrorKind::NotFound,
            Self::NotJudged { .. } | Self::NotCondemned { .. } | Self::NoBirth | Self::Nothing => {
                ErrorKind::Invalid
            }
            Self::Limit { .. } => ErrorKind::Limit,
        }
    }
}

/// What entry `number`, with this statement, makes of `before`, what all entries in front of it come to. `condemned` is
/// what the condemnation named that a verdict speaks of; of other statements it is not looked at.
///
/// # Errors
/// What the statement breaks.
pub fn after(
    before: &State,
    number: u64,
    statement: &Statement,
    condemned: &BTreeSet<Target>,
) -> Result<State, Refused> {
    if number > REGISTER_MAX {
        return Err(Refused::Limit { what: "entries", max: REGISTER_MAX });
    }
    if statement.targets().is_some_and(|targets| targets.len() > TARGETS_MAX) {
        return Err(Refused::Limit { what: "segments in an entry", max: TARGETS_MAX as u64 });
    }
    let mut state = before.clone();
    match statement {
        Statement::Births(logs) => {
            for log in logs {
                if let Some(born) = state.logs.insert(*log, number) {
                    return Err(Refused::Born { log: *log, born });
                }
            }
            if logs.is_empty() {
                return Err(Refused::NoBirth);
            }
            if state.logs.len() > REGISTER_LOGS_MAX {
                let max = REGISTER_LOGS_MAX as u64;
                return Err(Refused::Limit { what: "logs that are not sealed", max });
            }
        }
        Statement::Ended(log) => {
            state.logs.remove(log).ok_or(Refused::NoLog { log: *log })?;
            state.floors.remove(log);
        }
        Statement::Condemnation(targets) => {
            if targets.is_empty() {
                return Err(Refused::Nothing);
            }
            state.open.insert(number, None);
            if state.open.len() > REGISTER_OPEN_WRITTEN_MAX {
                let max = REGISTER_OPEN_WRITTEN_MAX as u64;
                return Err(Refused::Limit { what: "open condemnations", max });
            }
        }
        Statement::Verdict { of, targets } => {
            let of = *of;
            match state.open.get_mut(&of) {
                None => return Err(Refused::NotOpen { of }),
                Some(Some(verdict)) => return Err(Refused::Judged { of, verdict: *verdict }),
                Some(verdict) => *verdict = Some(number),
            }
            if let Some(target) = targets.difference(condemned).next().copied() {
                return Err(Refused::NotCondemned { of, target });
            }
            for target in targets.iter().filter(|target| before.logs.contains_key(&target.log)) {
                let floor = state.floors.entry(target.log).or_default();
                *floor = target.slot.next().max(*floor);
            }
        }
        Statement::Swept { of } => match state.open.remove(of) {
            Some(Some(_)) => {}
            Some(None) => return Err(Refused::NotJudged { of: *of }),
            None => return Err(Refused::NotOpen { of: *of }),
        },
    }
    Ok(state)
}

/// The newest condemnation that waits for a log: one without a verdict that was made behind the log's birth.
#[must_use]
pub fn asked_of(state: &State, log: LogId) -> u64 {
    let Some(born) = state.logs.get(&log) else { return 0 };
    let waiting = state.open.iter().filter(|(number, verdict)| verdict.is_none() && *number > born);
    waiting.map(|(number, _)| *number).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::register::RegisterBody;
    use farshore_proto::{Attempt, Slot};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn log(n: usize) -> LogId {
        LogId((n as u128 + 1).to_be_bytes())
    }

    fn targets(slots: impl IntoIterator<Item = u64>) -> BTreeSet<Target> {
        let target = |slot| Target { log: log(0), slot: Slot(slot), attempt: Attempt([7; 8]) };
        slots.into_iter().map(target).collect()
    }

    fn birth(n: usize) -> Statement {
        Statement::birth(log(n))
    }

    /// The state after these, in their order; each condemnation names slots 1 to 3.
    fn of(statements: &[Statement]) -> State {
        let next = |state: State, (number, statement): (u64, &Statement)| {
            after(&state, number, statement, &targets(1..4)).unwrap()
        };
        (1..).zip(statements).fold(State::default(), next)
    }

    fn refused(before: &[Statement], statement: &Statement) -> Refused {
        let number = before.len() as u64 + 1;
        after(&of(before), number, statement, &targets(1..4)).unwrap_err()
    }

    fn condemnation() -> Statement {
        Statement::Condemnation(targets(1..4))
    }

    fn verdict(of: u64, slots: impl IntoIterator<Item = u64>) -> Statement {
        Statement::Verdict { of, targets: targets(slots) }
    }

    #[test]
    fn a_log_is_there_from_its_birth_to_its_end() {
        let state = of(&[birth(1), birth(2), Statement::Ended(log(1))]);
        assert_eq!(state.logs, [(log(2), 2)].into());
        let twice = refused(&[birth(1), birth(2)], &birth(1));
        assert_eq!(twice, Refused::Born { log: log(1), born: 1 });
        let unborn = refused(&[birth(1)], &Statement::Ended(log(2)));
        assert_eq!(unborn, Refused::NoLog { log: log(2) });
    }

    #[test]
    fn a_condemnation_is_open_until_what_its_verdict_names_is_swept() {
        let open = |statements: &[Statement]| of(statements).open;
        let (first, swept) = (condemnation(), Statement::Swept { of: 1 });
        assert_eq!(open(std::slice::from_ref(&first)), [(1, None)].into());
        let judged = [first.clone(), condemnation(), verdict(1, [2, 3])];
        assert_eq!(open(&judged), [(1, Some(3)), (2, None)].into());
        assert_eq!(open(&[&judged[..], &[swept]].concat()), [(2, None)].into());
        // It may spare all.
        assert_eq!(open(&[first, verdict(1, [])]), [(1, Some(2))].into());
    }

    #[test]
    fn a_verdict_names_only_what_was_condemned_and_is_the_only_one() {
        let before = [birth(1), condemnation(), verdict(2, [1])];
        let more = refused(&before[..2], &verdict(2, [1, 4]));
        let target = *targets([4]).first().unwrap();
        assert_eq!(more, Refused::NotCondemned { of: 2, target });
        assert_eq!(refused(&before, &verdict(2, [1])), Refused::Judged { of: 2, verdict: 3 });
        for of in [0, 1, 3, 4] {
            assert_eq!(refused(&before, &verdict(of, [])), Refused::NotOpen { of });
            assert_eq!(refused(&before, &Statement::Swept { of }), Refused::NotOpen { of });
        }
        let early = refused(&before[..2], &Statement::Swept { of: 2 });
        assert_eq!(early, Refused::NotJudged { of: 2 });
    }

    #[test]
    fn logs_that_are_born_together_have_one_number() {
        let both = Statement::Births([log(1), log(2)].into());
        assert_eq!(
            of(&[birth(0), both.clone()]).logs,
            [(log(0), 1), (log(1), 2), (log(2), 2)].into()
        );
        assert_eq!(refused(&[birth(2)], &both), Refused::Born { log: log(2), born: 1 });
        assert_eq!(refused(&[], &Statement::Births(BTreeSet::new())), Refused::NoBirth);
    }

    /// R4.
    #[test]
    fn a_log_is_known_to_be_whole_above_what_verdicts_name() {
        let floors = |statements: &[Statement]| of(statements).floors;
        let judged = [birth(0), condemnation(), condemnation(), verdict(2, [2]), verdict(3, [1])];
        assert_eq!(floors(&judged[..3]), BTreeMap::new());
        assert_eq!(floors(&judged[..4]), [(log(0), Slot(3))].into());
        assert_eq!(floors(&judged), [(log(0), Slot(3))].into());
        assert_eq!(floors(&[&judged[..], &[Statement::Ended(log(0))]].concat()), BTreeMap::new());
        // What lies in a log that ended is nobody's.
        assert_eq!(floors(&[condemnation(), verdict(1, [2])]), BTreeMap::new());
    }

    #[test]
    fn a_log_is_asked_by_what_was_condemned_since_its_birth() {
        let state = State {
            logs: [(log(1), 3)].into(),
            floors: BTreeMap::new(),
            open: [(2, None), (4, None), (5, Some(7)), (6, None), (8, Some(9))].into(),
        };
        assert_eq!((asked_of(&state, log(1)), asked_of(&state, log(2))), (6, 0));
        let state = State { logs: [(log(1), 7)].into(), ..state };
        assert_eq!(asked_of(&state, log(1)), 0);
    }

    #[test]
    fn what_the_register_holds_is_bounded() {
        let limit = |refused| match refused {
            Refused::Limit { max, .. } => usize::try_from(max).unwrap(),
            other => panic!("{other}"),
        };
        let open = vec![condemnation(); REGISTER_OPEN_WRITTEN_MAX];
        assert_eq!(limit(refused(&open, &condemnation())), REGISTER_OPEN_WRITTEN_MAX);
        let logs = (0..REGISTER_LOGS_MAX).map(|n| (log(n), n as u64 + 1)).collect();
        let full = State { logs, ..State::default() };
        let next = |statement: &Statement| after(&full, 99_999, statement, &BTreeSet::new());
        assert_eq!(limit(next(&birth(REGISTER_LOGS_MAX)).unwrap_err()), REGISTER_LOGS_MAX);
        next(&Statement::Ended(log(0))).unwrap();
        let many = Statement::Condemnation(targets(0..=TARGETS_MAX as u64));
        assert_eq!(limit(next(&many).unwrap_err()), TARGETS_MAX);
        let nothing = Statement::Condemnation(BTreeSet::new());
        assert_eq!(next(&nothing), Err(Refused::Nothing));
        let late = after(&full, REGISTER_MAX + 1, &Statement::Ended(log(0)), &BTreeSet::new());
        assert!(matches!(late, Err(Refused::Limit { .. })));
    }

    proptest! {
        /// R3: what comes of any statements is what the decoder takes.
        #[test]
        fn what_is_not_refused_is_an_entry(
            tries in proptest::collection::vec((0..5_u8, 0..6_usize, 1..30_u64), 1..60),
        ) {
            let (mut state, mut number) = (State::default(), 0);
            for (kind, which, of) in tries {
                let statement = match kind {
                    0 => birth(which),
                    1 => Statement::Ended(log(which)),
                    2 => condemnation(),
                    3 => verdict(of, [1]),
                    _ => Statement::Swept { of },
                };
                let Ok(next) = after(&state, number + 1, &statement, &targets(1..4)) else {
                    continue;
                };
                number += 1;
                let before = [u8::from(number > 1); 32];
                let body = RegisterBody { before, statement, state: next.clone() };
                prop_assert_eq!(RegisterBody::decode(&body.encode(), number), Ok(body));
                state = next;
            }
        }
    }
}
