//! That the revisions of the vault are all there and open.

use super::Report;
use crate::error::VaultError;
use crate::gapless;
use crate::layout::ObjectName;
use crate::limits::VAULT_REVISIONS_MAX;
use crate::revision::open;
use crate::vault::Vault;

/// Checks all of them; gives how many open.
pub(super) async fn check(vault: &Vault, report: &mut Report) -> Result<u64, VaultError> {
    let (store, mut whole) = (vault.store(), 0);
    let known = vault.revision().number();
    let newest = gapless::newest(store, known, VAULT_REVISIONS_MAX, ObjectName::revision).await?;
    for number in 1..=newest {
        let name = ObjectName::revision(number);
        match open(store, number, vault.ring()).await {
            Ok(_) => whole += 1,
            Err(VaultError::LostEnd { .. }) => {
                let later = ObjectName::revision(newest);
                let there = format!(" although {later} exists");
                report.add(
                    name,
                    0,
                    format!("is missing{}", if number < newest { &there } else { "" }),
                );
            }
            Err(error) => report.add_error(name, error)?,
        }
    }
    Ok(whole)
}
