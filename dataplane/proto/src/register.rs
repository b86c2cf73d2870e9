//! The register of a vault: which logs there are, and what may be deleted, one entry behind the other.
//!
//! Layout and rules: `docs/formats/register.md`.

use crate::error::DecodeError;
use crate::ids::{LogId, Slot, VaultId};
use crate::limits::{REGISTER_LOGS_MAX, REGISTER_MAX, REGISTER_OPEN_MAX, SLOT_MAX, TARGETS_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::targets::{Target, put_target, take_target};
use crate::wire::{Put, Reader};
use std::collections::{BTreeMap, BTreeSet};

const HEAD: SectionKind = SectionKind { number: 1, stride: 64, max: 1, what: "register head" };
const LOGS: SectionKind =
    SectionKind { number: 2, stride: 32, max: REGISTER_LOGS_MAX, what: "register logs" };
const OPEN: SectionKind =
    SectionKind { number: 3, stride: 24, max: REGISTER_OPEN_MAX, what: "register condemnations" };
const TARGETS: SectionKind =
    SectionKind { number: 4, stride: 32, max: TARGETS_MAX, what: "register targets" };

/// The place of an entry of a vault's register.
#[must_use]
pub fn place(vault: VaultId, number: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Register, vault, subject: vault.0, number, part: 0 }
}

/// An entry, by its number and by what it is: if the register lost its end and grew again, another one has its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct At {
    /// Its number; 0 in front of the first.
    pub number: u64,
    /// First bytes of the BLAKE3-256 of the entry as it is stored; zeros in front of the first.
    pub digest: [u8; 8],
}

impl At {
    /// In front of the first entry.
    pub const NONE: Self = Self { number: 0, digest: [0; 8] };

    /// Of an entry, stored with this digest.
    #[must_use]
    pub fn of(number: u64, digest: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        Self { number, digest: [a, b, c, d, e, f, g, h] }
    }

    /// The later of two; this one if they have one number.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.number > self.number { other } else { self }
    }

    /// Lays it out, in 16 bytes.
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.put_u64(self.number);
        out.put_bytes(&self.digest);
    }

    /// Reads what `put` wrote.
    pub(crate) fn take(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, DecodeError> {
        let at = Self { number: reader.u64()?, digest: reader.array()? };
        if at.number > REGISTER_MAX || at.number == 0 && at != Self::NONE {
            return Err(DecodeError::Range { what, value: at.number });
        }
        Ok(at)
    }
}

/// What an entry adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// These logs are written from now on.
    Births(BTreeSet<LogId>),
    /// The log is sealed: nothing comes to it any more.
    Ended(LogId),
    /// Nobody is to refer to these segments any more.
    Condemnation(BTreeSet<Target>),
    /// Those that a condemnation may delete; the others of it are spared.
    Verdict {
        /// Number of the condemnation.
        of: u64,
        /// What is deleted.
        targets: BTreeSet<Target>,
    },
    /// All that the verdict on a condemnation names is deleted.
    Swept {
        /// Number of the condemnation.
        of: u64,
    },
}

impl Statement {
    /// One log is written from now on.
    #[must_use]
    pub fn birth(log: LogId) -> Self {
        Self::Births([log].into())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Births(_) => 1,
            Self::Ended(_) => 2,
            Self::Condemnation(_) => 3,
            Self::Verdict { .. } => 4,
            Self::Swept { .. } => 5,
        }
    }

    /// The condemnation that it speaks of; 0 if of none.
    fn of(&self) -> u64 {
        match self {
            Self::Verdict { of, .. } | Self::Swept { of } => *of,
            Self::Births(_) | Self::Ended(_) | Self::Condemnation(_) => 0,
        }
    }

    /// The log that it speaks of; zeros if of none.
    fn log(&self) -> LogId {
        match self {
            Self::Ended(log) => *log,
            Self::Births(_) | Self::Condemnation(_) | Self::Verdict { .. } | Self::Swept { .. } => {
                LogId([0; 16])
            }
        }
    }

    /// What is condemned, or is to be deleted.
    #[must_use]
    pub fn targets(&self) -> Option<&BTreeSet<Target>> {
        match self {
            Self::Condemnation(targets) | Self::Verdict { targets, .. } => Some(targets),
            Self::Births(_) | Self::Ended(_) | Self::Swept { .. } => None,
        }
    }
}

/// What all statements so far come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Every log that was born and did not end, and the number of its birth.
    pub logs: BTreeMap<LogId, u64>,
    /// Of those of which verdicts name segments: nothing at or above this slot is named. The horizon that permitted it is not below.
    pub floors: BTreeMap<LogId, Slot>,
    /// Every condemnation that is not swept, by its number, and the number of its verdict.
    pub open: BTreeMap<u64, Option<u64>>,
}

/// An entry: what it adds, and what that results in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterBody {
    /// BLAKE3-256 of the entry before, as it is stored; zeros in the first.
    pub before: [u8; 32],
    /// What it adds.
    pub statement: Statement,
    /// What it results in.
    pub state: State,
}

impl RegisterBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If there is more of something than its limit: the caller asks first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { before, statement, state } = self;
        let targets = statement.targets().into_iter().flatten();
        let count = statement.targets().map_or(0, BTreeSet::len);
        let bytes = 256 + state.logs.len() * 32 + state.open.len() * 24 + count * 32;
        let mut out = SectionWriter::with_capacity(bytes);
        out.put(&HEAD, 1, |out| {
            out.put_bytes(before);
            out.put_u8(statement.code());
            out.put_zeros(7);
            out.put_u64(statement.of());
            out.put_bytes(&statement.log().0);
        });
        out.put(&LOGS, state.logs.len(), |out| {
            for (log, born) in &state.logs {
                out.put_bytes(&log.0);
                out.put_u64(*born);
                out.put_u64(state.floors.get(log).map_or(0, |floor| floor.0));
            }
        });
        out.put(&OPEN, state.open.len(), |out| {
            for (number, verdict) in &state.open {
                out.put_u64(*number);
                out.put_u64(verdict.unwrap_or(0));
                out.put_zeros(8);
            }
        });
        out.put(&TARGETS, count, |out| targets.for_each(|target| put_target(out, target)));
        out.finish()
    }

    /// Reads the body of entry `number`.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here, a statement included; by the field that is wrong.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, DecodeError> {
        if number == 0 || number > REGISTER_MAX {
            return Err(DecodeError::Range { what: "register number", value: number });
        }
        let sections = Sections::read("register body", bytes, &[HEAD, LOGS, OPEN, TARGETS])?;
        let mut head = sections.record(&HEAD)?;
        let before: [u8; 32] = head.array()?;
        if (before == [0; 32]) != (number == 1) {
            return Err(DecodeError::Range { what: "register digest", value: number });
        }
        let mut statement = take_statement(head, &sections)?;
        let state = State::take(&sections)?;
        if let Statement::Births(logs) = &mut statement {
            *logs = state.born(number).collect();
        }
        check(number, &statement, &state)?;
        Ok(Self { before, statement, state })
    }
}

impl State {
    /// Reads the state out of the body of an entry, whatever that states: a later program's, too.
    ///
    /// # Errors
    /// As [`RegisterBody::decode`], but for the statement.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::take(&Sections::read("register body", bytes, &[HEAD, LOGS, OPEN, TARGETS])?)
    }

    /// The logs that an entry says were born.
    fn born(&self, number: u64) -> impl Iterator<Item = LogId> {
        let born = self.logs.iter().filter(move |(_, born)| **born == number);
        born.map(|(log, _)| *log)
    }

    fn take(sections: &Sections<'_>) -> Result<Self, DecodeError> {
        let (logs, floors) = take_logs(sections)?;
        Ok(Self { logs, floors, open: take_open(sections)? })
    }
}

fn take_statement(mut head: Reader<'_>, sections: &Sections<'_>) -> Result<Statement, DecodeError> {
    let code = head.u8()?;
    if code > 5 {
        let (what, feature) = ("register body", "statement");
        return Err(DecodeError::Newer { what, feature, bit: code.into() });
    }
    head.reserved(7)?;
    let of = head.u64()?;
    let log = LogId(head.array()?);
    let targets = take_targets(sections)?;
    let is_empty = targets.is_empty();
    let statement = match code {
        // Which ones the state says.
        1 => Statement::Births(BTreeSet::new()),
        2 => Statement::Ended(log),
        3 => Statement::Condemnation(targets),
        4 => Statement::Verdict { of, targets },
        5 => Statement::Swept { of },
        _ => return Err(DecodeError::Range { what: "register statement", value: code.into() }),
    };
    // Without a condemned segment there is no condemnation; a verdict may spare all.
    let is_legal = match &statement {
        Statement::Births(_) => is_empty,
        Statement::Ended(log) => *log != LogId([0; 16]) && is_empty,
        Statement::Condemnation(_) => !is_empty,
        Statement::Verdict { .. } => true,
        Statement::Swept { .. } => is_empty,
    };
    if !is_legal || statement.of() != of || statement.log() != log {
        return Err(DecodeError::Range { what: "register statement", value: code.into() });
    }
    Ok(statement)
}

fn take_targets(sections: &Sections<'_>) -> Result<BTreeSet<Target>, DecodeError> {
    let mut targets = BTreeSet::new();
    for mut record in sections.records(&TARGETS) {
        let target = take_target(&mut record)?;
        if targets.last().is_some_and(|last| *last >= target) {
            return Err(DecodeError::Range { what: "register targets", value: target.slot.0 });
        }
        targets.insert(target);
    }
    Ok(targets)
}

/// Logs with the numbers of their births, and those of them that have a floor.
type Logs = (BTreeMap<LogId, u64>, BTreeMap<LogId, Slot>);

fn take_logs(sections: &Sections<'_>) -> Result<Logs, DecodeError> {
    let (mut logs, mut floors) = (BTreeMap::new(), BTreeMap::new());
    for mut record in sections.records(&LOGS) {
        let log = LogId(record.array()?);
        let (born, floor) = (record.u64()?, Slot(record.u64()?));
        if floor > SLOT_MAX.next() {
            return Err(DecodeError::Range { what: "register floor", value: floor.0 });
        }
        let is_next = logs.last_key_value().is_none_or(|(last, _)| *last < log);
        if !is_next || log == LogId([0; 16]) {
            return Err(DecodeError::Range { what: "register logs", value: born });
        }
        logs.insert(log, born);
        if floor > Slot(0) {
            floors.insert(log, floor);
        }
    }
    Ok((logs, floors))
}

fn take_open(sections: &Sections<'_>) -> Result<BTreeMap<u64, Option<u64>>, DecodeError> {
    let mut open = BTreeMap::new();
    for mut record in sections.records(&OPEN) {
        let (number, verdict) = (record.u64()?, record.u64()?);
        record.reserved(8)?;
        let is_next = open.last_key_value().is_none_or(|(last, _)| *last < number);
        if !is_next || verdict != 0 && verdict <= number {
            return Err(DecodeError::Range { what: "register condemnations", value: number });
        }
        open.insert(number, (verdict != 0).then_some(verdict));
    }
    Ok(open)
}

/// Each entry is one thing, and entry `number` is what it says.
fn check(number: u64, statement: &Statement, state: &State) -> Result<(), DecodeError> {
    let verdicts = state.open.values().flatten();
    // Several logs may be born by one.
    let mut entries: BTreeSet<u64> = state.logs.values().copied().collect();
    if let Some(entry) = entries.iter().find(|entry| **entry == 0 || **entry > number) {
        return Err(DecodeError::Range { what: "register state", value: *entry });
    }
    for entry in state.open.keys().chain(verdicts) {
        if *entry == 0 || *entry > number || !entries.insert(*entry) {
            return Err(DecodeError::Range { what: "register state", value: *entry });
        }
    }
    let is_named = entries.contains(&number);
    let holds = match statement {
        Statement::Births(logs) => !logs.is_empty(),
        Statement::Ended(log) => !is_named && number > 1 && !state.logs.contains_key(log),
        Statement::Condemnation(_) => state.open.get(&number) == Some(&None),
        Statement::Verdict { of, .. } => state.open.get(of) == Some(&Some(number)),
        // Behind the condemnation comes at least its verdict.
        Statement::Swept { of } => {
            let is_behind = *of > 0 && number.checked_sub(*of).is_some_and(|behind| behind > 1);
            !is_named && is_behind && !entries.contains(of)
        }
    };
    if !holds {
        return Err(DecodeError::Range { what: "register state", value: number });
    }
    Ok(())
}
