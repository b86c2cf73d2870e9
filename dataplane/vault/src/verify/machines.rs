//! That the revisions of machines and groups are all there and open.

use super::Report;
use crate::error::VaultError;
use crate::machine::{Revised, last_number, read};
use crate::vault::Vault;

/// Checks all of a kind; gives how many there are whose newest revision opens.
pub(super) async fn check<K: Revised>(
    vault: &Vault,
    report: &mut Report,
) -> Result<u64, VaultError> {
    let mut whole = 0;
    for name in vault.store().children(K::ALL).await? {
        let Ok(id) = name.parse::<K::Id>() else { continue };
        let revisions = match last_number::<K>(vault, id).await {
            Ok(revisions) => revisions,
            Err(error) => {
                report.add_error(K::name(id, 1), error)?;
                continue;
            }
        };
        let mut is_open = false;
        for number in 1..=revisions {
            let object = K::name(id, number);
            is_open = match read::<K>(vault, id, number).await {
                Ok(Some(_)) => true,
                Ok(None) => {
                    let later = K::name(id, revisions);
                    report.add(object, 0, format!("is missing although {later} exists"));
                    false
                }
                Err(error) => {
                    report.add_error(object, error)?;
                    false
                }
            };
        }
        whole += u64::from(is_open);
    }
    Ok(whole)
}
