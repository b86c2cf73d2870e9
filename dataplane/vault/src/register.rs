//! The register: one order of all that bears on deletion. Layout and rules: `docs/formats/register.md`.
//!
//! Each entry has the state that all up to it come to, so the newest is enough, and those that it names.

use crate::error::VaultError;
use crate::gapless;
use crate::layout::ObjectName;
use crate::limits::{REGISTER_TRIES_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::store::{Put, StoreError};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::digest::digest;
use farshore_codec::register::{open_register_state, open_register_wholly, seal_register};
use farshore_engine::register::{Refused, after};
use farshore_proto::limits::REGISTER_MAX;
use farshore_proto::object::ObjectKind;
use farshore_proto::register::{RegisterBody, State, Statement};
use farshore_proto::{LogId, Slot, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod confirmed;
mod reader;

pub use confirmed::Confirmed;
pub use farshore_proto::register::At;
pub use reader::{Condemned, Judged, Reader};

/// An entry of the register, and what all up to it come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its number; 0 in front of the first.
    pub number: u64,
    /// What it results in.
    pub state: State,
    /// What it adds; none in front of the first.
    pub statement: Option<Statement>,
    /// What the next one says of it.
    pub(crate) digest: [u8; 32],
    /// What it says of the one before.
    pub(crate) before: [u8; 32],
    /// Whether it has more than this program knows: that would be lost in the next.
    is_outgrown: bool,
}

impl Entry {
    /// Which one it is.
    #[must_use]
    pub fn at(&self) -> At {
        match self.number {
            0 => At::NONE,
            number => At::of(number, &self.digest),
        }
    }

    fn new(number: u64, digest: [u8; 32], body: RegisterBody) -> Self {
        let RegisterBody { before, statement, state } = body;
        let statement = Some(statement);
        Self { number, state, statement, digest, before, is_outgrown: false }
    }
}

/// The newest entry. `known` is one that is known to be there; 0 if none is.
///
/// # Errors
/// `Corrupt` if an entry is lost, which is named, or the newest does not open; `Invalid` if a newer version made it;
/// `Unavailable`.
pub async fn newest(vault: &Vault, known: u64) -> Result<Entry, VaultError> {
    let last = gapless::newest(vault.store(), known, REGISTER_MAX, ObjectName::register).await?;
    if last == 0 {
        return Ok(Entry::default());
    }
    let entry = match read(vault, last).await {
        Err(error) if error.is_not_found() => {
            let (url, object) = (vault.url().to_owned(), ObjectName::register(last));
            return Err(VaultError::LostEnd { url, object });
        }
        entry => entry?,
    };
    // What is built on it, and what says that it was applied, must not outlive it.
    vault.store().settle(&ObjectName::register(last)).await?;
    Ok(entry)
}

/// The slots below which verdicts name segments of logs, as the newest entry says, also one that states what only a later program knows. If it
/// cannot be read they are not known: the register keeps no log from being gone on with.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn floors(vault: &Vault) -> Result<BTreeMap<LogId, Slot>, VaultError> {
    match newest_state(vault).await {
        Ok(state) => Ok(state.floors),
        Err(error) if error.is_unavailable() => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the register cannot be read: nobody can tell whether a log's newest horizon is lost");
            Ok(BTreeMap::new())
        }
    }
}

async fn newest_state(vault: &Vault) -> Result<State, VaultError> {
    let number = gapless::newest(vault.store(), 0, REGISTER_MAX, ObjectName::register).await?;
    if number == 0 {
        return Ok(State::default());
    }
    let name = ObjectName::register(number);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    vault.store().settle(&name).await?;
    let open = move |vault: &Vault| open_register_state(&object, vault.id(), number, vault.ring());
    vault.open_aside(name, ObjectKind::Register, open).await
}

/// Reads an entry.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if it does not open; `Invalid` if a newer version made it; `Unavailable`.
pub async fn read(vault: &Vault, number: u64) -> Result<Entry, VaultError> {
    let name = ObjectName::register(number);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    open(vault, number, object).await
}

async fn open(vault: &Vault, number: u64, object: Bytes) -> Result<Entry, VaultError> {
    let name = ObjectName::register(number);
    let open = move |vault: &Vault| {
        let (body, is_all) = open_register_wholly(&object, vault.id(), number, vault.ring())?;
        let entry = Entry::new(number, digest(&object), body);
        Ok(Entry { is_outgrown: !is_all, ..entry })
    };
    vault.open_aside(name, ObjectKind::Register, open).await
}

/// Makes an entry with this statement, behind all that there are. `known` is one that is known to be there; 0 if none is.
///
/// # Errors
/// `Refused` if the statement makes no entry; `Invalid` if the newest has what a newer version put there; `Conflict` if others were faster all the time; else as [`newest`]. After
/// `Unavailable` the entry may be there.
///
/// # Cancel safety
/// Dropped, it leaves open whether the entry is there.
pub async fn append(vault: &Vault, known: u64, statement: Statement) -> Result<Entry, VaultError> {
    let mut last = newest(vault, known).await?;
    for _ in 0..REGISTER_TRIES_MAX {
        let body = next(vault, &last, &statement).await?;
        match put(vault, last.number + 1, body).await? {
            Made::Ours(entry) => return Ok(entry),
            Made::Others(entry) => last = entry,
        }
    }
    Err(VaultError::Crowded { url: vault.url().to_owned() })
}

/// Makes sure that a log is in the register; gives the newest entry that was seen, and the number of the log's birth.
///
/// # Errors
/// As [`append`]; a log that is there already is no error.
pub async fn bear(vault: &Vault, known: u64, log: LogId) -> Result<(Entry, u64), VaultError> {
    // What is there already costs no entry: most starts are of logs that were born.
    let last = newest(vault, known).await?;
    if let Some(born) = last.state.logs.get(&log).copied() {
        return Ok((last, born));
    }
    match append(vault, last.number, Statement::birth(log)).await {
        Ok(entry) => {
            let born = entry.number;
            Ok((entry, born))
        }
        Err(VaultError::Refused { cause: Refused::Born { born, .. }, .. }) => {
            Ok((newest(vault, born).await?, born))
        }
        Err(error) => Err(error),
    }
}

/// What the entry behind `last` is with this statement.
async fn next(
    vault: &Vault,
    last: &Entry,
    statement: &Statement,
) -> Result<RegisterBody, VaultError> {
    if last.is_outgrown {
        let (url, object) = (vault.url().to_owned(), ObjectName::register(last.number));
        return Err(VaultError::Outgrown { url, object });
    }
    let condemned = condemned_by(vault, last, statement).await?;
    let state = after(&last.state, last.number + 1, statement, &condemned)
        .map_err(|cause| VaultError::Refused { url: vault.url().to_owned(), cause })?;
    Ok(RegisterBody { before: last.digest, statement: statement.clone(), state })
}

/// What the condemnation names that a verdict speaks of, if it is open behind `last`.
async fn condemned_by(
    vault: &Vault,
    last: &Entry,
    statement: &Statement,
) -> Result<Arc<BTreeSet<Target>>, VaultError> {
    match statement {
        Statement::Verdict { of, .. } if last.state.open.contains_key(of) => {
            named(vault, *of, *of).await
        }
        _ => Ok(Arc::default()),
    }
}

/// Who made the entry that was to be put.
enum Made {
    Ours(Entry),
    Others(Entry),
}

async fn put(vault: &Vault, number: u64, body: RegisterBody) -> Result<Made, VaultError> {
    let name = ObjectName::register(number);
    let ours = Arc::new(body);
    let body = Arc::clone(&ours);
    let sealing =
        vault.seal_aside(&name, move |vault, keys| seal_register(vault.id(), number, keys, &body));
    let object = sealing.await?;
    let unsaid = match vault.store().create(&name, object.clone()).await {
        Ok(Put::Created) => {
            let body = Arc::unwrap_or_clone(ours);
            return Ok(Made::Ours(Entry::new(number, digest(&object), body)));
        }
        Ok(Put::Exists) => None,
        // The answer may have been lost: then it is there.
        Err(error) => Some(error),
    };
    let found = match vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await {
        Ok(found) => found,
        Err(error) => return Err(unsaid.unwrap_or(error).into()),
    };
    // Its salt was drawn: no other has the same bytes.
    let is_ours = found == object;
    vault.store().settle(&name).await?;
    let entry = open(vault, number, found).await?;
    Ok(if is_ours { Made::Ours(entry) } else { Made::Others(entry) })
}

/// The targets of entry `number`: of condemnation `of`, or of a verdict on it.
async fn named(vault: &Vault, number: u64, of: u64) -> Result<Arc<BTreeSet<Target>>, VaultError> {
    let wrong = |what| {
        let (url, object) = (vault.url().to_owned(), ObjectName::register(number));
        VaultError::Register { url, object, what }
    };
    let entry = match read(vault, number).await {
        Err(error) if error.is_not_found() => {
            return Err(wrong("it is missing, and what it condemned is open"));
        }
        entry => entry?,
    };
    match entry.statement {
        Some(Statement::Condemnation(targets)) if number == of => Ok(Arc::new(targets)),
        Some(Statement::Verdict { of: judged, targets }) if judged == of && number != of => {
            Ok(Arc::new(targets))
        }
        _ => Err(wrong("it is not the condemnation or the verdict that later entries say")),
    }
}

/// The error of an entry that is not the one that was there before.
fn another(vault: &Vault, number: u64) -> VaultError {
    let (url, object) = (vault.url().to_owned(), ObjectName::register(number));
    VaultError::Register { url, object, what: "it is another one than was read before" }
}

/// Whether an entry is what its statement makes of the one before; else, why not.
///
/// # Errors
/// `Corrupt` if the condemnation that a verdict speaks of is missing, does not open or is none; `Unavailable`.
pub(crate) async fn check(
    vault: &Vault,
    before: &Entry,
    entry: &Entry,
) -> Result<Result<(), String>, VaultError> {
    if entry.before != before.digest {
        let before = ObjectName::register(before.number);
        return Ok(Err(format!("is not made behind the {before} that is there")));
    }
    let Some(statement) = &entry.statement else { return Ok(Ok(())) };
    let condemned = condemned_by(vault, before, statement).await?;
    Ok(match after(&before.state, entry.number, statement, &condemned) {
        Ok(state) if state == entry.state => Ok(()),
        Ok(_) => Err("has another state than its statement makes of the one before".to_owned()),
        Err(refused) => Err(format!("states what it may not: {refused}")),
    })
}

/// Of an error of the store that an object is not there.
pub(crate) fn found<T>(read: Result<T, VaultError>) -> Result<Option<T>, VaultError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(VaultError::Store(StoreError::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
