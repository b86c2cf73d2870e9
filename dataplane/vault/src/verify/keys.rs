//! The vault object and the wrapped keys.

use super::Report;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::store::StoreError;
use crate::vault::{Vault, list_keys, read_vault_object, wrappers_in};
use crate::wrappers::look;
use farshore_proto::KeyNumber;
use farshore_proto::keys::Fingerprint;
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use std::collections::BTreeSet;

/// Checks that both are what they were when the vault was opened, and that what others open it with is
/// there and is no other vault's. Whether it opens, only those can tell.
pub(super) async fn check(vault: &Vault, report: &mut Report) -> Result<(), VaultError> {
    check_identity(vault, report).await?;
    for name in vault.lost_keys() {
        report.add(name.clone(), 0, "is missing");
    }
    for (name, opened) in vault.wrapped_keys() {
        match vault.store().get(name, SMALL_OBJECT_BYTES_MAX as u64).await {
            Ok(found) if found == *opened => {}
            Ok(_) => {
                report.add(name.clone(), 0, "is not what it was when the vault was opened");
            }
            Err(StoreError::NotFound { .. }) => report.add(name.clone(), 0, "is missing"),
            Err(error) => report.add_error(name.clone(), error.into())?,
        }
    }
    let ours = vault.wrapper().fingerprint;
    let listed = list_keys(vault.store()).await?;
    for (number, wrapper) in listed.iter().filter(|(_, wrapper)| *wrapper != ours) {
        match look(vault, *number, *wrapper).await {
            Ok(_) | Err(VaultError::Store(StoreError::NotFound { .. })) => {}
            Err(error) => report.add_error(ObjectName::key(*number, *wrapper), error)?,
        }
    }
    check_gaps(vault, &listed, report);
    Ok(())
}

async fn check_identity(vault: &Vault, report: &mut Report) -> Result<(), VaultError> {
    let name = ObjectName::vault;
    match read_vault_object(vault.store(), vault.wrapper().fingerprint).await {
        Ok((_, bytes)) if bytes == *vault.identity_bytes() => {}
        Ok((object, _)) if object.vault == vault.id() => {
            report.add(name(), 0, "is not what it was when the vault was opened");
        }
        Ok(_) => report.add(name(), 0, "it is that of another vault"),
        Err(VaultError::NotAVault { .. } | VaultError::NoIdentity { .. }) => {
            report.add(name(), 0, "is missing");
        }
        Err(error) => report.add_error(name(), error)?,
    }
    Ok(())
}

/// Whoever opens the vault reads all its keys but for those that were erased.
fn check_gaps(vault: &Vault, listed: &BTreeSet<(KeyNumber, Fingerprint)>, report: &mut Report) {
    let opened: BTreeSet<_> = vault.ring().keys().map(|(number, ..)| number).collect();
    let mut numbers = opened.clone();
    numbers.extend(listed.iter().map(|(number, _)| *number));
    let revision = vault.revision().body();
    let is_erased = |number: &KeyNumber| revision.is_some_and(|body| body.is_erased(*number));
    let Some(last) = numbers.last().copied() else { return };
    let mut missing = (1..last.0).map(KeyNumber).filter(|number| !is_erased(number));
    numbers.extend(missing.find(|number| !numbers.contains(number)));
    numbers.retain(|number| !is_erased(number));
    for (number, wrapper) in listed.iter().filter(|(number, _)| is_erased(number)) {
        report.add(ObjectName::key(*number, *wrapper), 0, "was erased, and is there");
    }
    for wrapper in wrappers_in(listed) {
        for number in numbers.iter().filter(|number| !listed.contains(&(**number, wrapper))) {
            // What was there when the vault was opened was named before.
            let name = ObjectName::key(*number, wrapper);
            let is_ours = wrapper == vault.wrapper().fingerprint && opened.contains(number);
            if is_ours || vault.lost_keys().contains(&name) {
                continue;
            }
            let there = listed.iter().find(|(other, _)| other == number || *other > *number);
            let there = there.map(|(number, wrapper)| ObjectName::key(*number, *wrapper));
            let there = there.map_or_else(String::new, |name| format!(" although {name} exists"));
            report.add(name, 0, format!("is missing{there}"));
        }
    }
}
