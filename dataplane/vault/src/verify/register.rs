//! That the entries of the register are all there, open, and follow from one another.

use super::Report;
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, ordinal_of};
use crate::limits::NUMBERS_BEHIND;
use crate::register::{self, Entry};
use crate::vault::Vault;
use farshore_proto::limits::REGISTER_MAX;
use futures::TryStreamExt;

/// The highest number that a slot or an index run says was applied.
#[derive(Debug, Clone, Default)]
pub(super) struct Applied(Option<(u64, ObjectName)>);

impl Applied {
    /// What an object says.
    pub(super) fn take(&mut self, number: u64, object: &ObjectName) {
        if number > self.0.as_ref().map_or(0, |(number, _)| *number) {
            self.0 = Some((number, object.clone()));
        }
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
    if let Some((stated, object)) = applied.0.filter(|(stated, _)| *stated >= number) {
        let what = format!("is missing: {object} was written by who had applied it");
        report.add(ObjectName::register(stated), 0, what);
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
