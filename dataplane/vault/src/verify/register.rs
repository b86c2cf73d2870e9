//! That the entries of the register are all there, open, and follow from one another.

use super::Report;
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, ordinal_of};
use crate::limits::NUMBERS_BEHIND;
use crate::register::{self, Entry};
use crate::vault::Vault;
use farshore_proto::limits::REGISTER_MAX;
use farshore_proto::register::At;
use futures::TryStreamExt;
use std::collections::BTreeMap;

/// The entries that slots and index runs say were applied, each with one that says it.
#[derive(Debug, Clone, Default)]
pub(super) struct Applied(BTreeMap<(u64, [u8; 8]), ObjectName>);

impl Applied {
    /// What an object says.
    pub(super) fn take(&mut self, at: At, object: &ObjectName) {
        if at != At::NONE {
            self.0.entry((at.number, at.digest)).or_insert_with(|| object.clone());
        }
    }

    /// Who had applied another entry of this number than the one that is there.
    fn others(&self, entry: &Entry) -> impl Iterator<Item = &ObjectName> {
        let At { number, digest } = entry.at();
        let stated = self.0.range((number, [0; 8])..=(number, [0xff; 8]));
        stated.filter(move |((_, stated), _)| *stated != digest).map(|(_, object)| object)
    }
}

/// Checks all entries, two in memory at a time; gives how many open.
pub(super) async fn check(
    vault: &Vault,
    applied: Applied,
    report: &mut Report,
) -> Result<u64, VaultError> {
    let mut whole = 0;
    let mut number = 1;
    // None behind what does not open.
    let mut before = Some(Entry::default());
    while number <= REGISTER_MAX {
        let name = ObjectName::register(number);
        match register::found(register::read(vault, number).await) {
            Ok(Some(entry)) => {
                whole += 1;
                for object in applied.others(&entry) {
                    let what = format!("is another one than {object} was written behind");
                    report.add(name.clone(), 0, what);
                }
                if let Some(before) = &before {
                    compare(vault, before, &entry, report).await?;
                }
                before = Some(entry);
            }
            Ok(None) => {
                let Some(later) = next(vault, number).await? else { break };
                // It may have been made since.
                if vault.store().exists(&name).await? {
                    continue;
                }
                let later_name = ObjectName::register(later);
                report.add(name, 0, format!("is missing although {later_name} exists"));
                (number, before) = (later, None);
                continue;
            }
            Err(error) => {
                report.add_error(name, error)?;
                before = None;
            }
        }
        number += 1;
    }
    // Entries that are lost at the end leave no trace but this.
    if let Some(((stated, _), object)) = applied.0.last_key_value()
        && *stated >= number
    {
        let what = format!("is missing: {object} was written by who had applied it");
        report.add(ObjectName::register(*stated), 0, what);
    }
    Ok(whole)
}

async fn compare(
    vault: &Vault,
    before: &Entry,
    entry: &Entry,
    report: &mut Report,
) -> Result<(), VaultError> {
    let name = ObjectName::register(entry.number);
    match register::check(vault, before, entry).await {
        Ok(Ok(())) => {}
        Ok(Err(what)) => report.add(name, 0, what),
        Err(error) => report.add_error(name, error)?,
    }
    Ok(())
}

/// The first one behind a number that is missing.
async fn next(vault: &Vault, missing: u64) -> Result<Option<u64>, VaultError> {
    for number in missing + 1..=missing + NUMBERS_BEHIND {
        if vault.store().exists(&ObjectName::register(number)).await? {
            return Ok(Some(number));
        }
    }
    let mut first: Option<u64> = None;
    let name = ObjectName::register(missing);
    let mut listing = vault.store().list_behind(Folder::Register, &name);
    while let Some(object) = listing.try_next().await? {
        let number = ordinal_of(&object.name).filter(|number| *number > missing);
        first = first.into_iter().chain(number).min();
    }
    Ok(first)
}
