//! The vault and its recovery key before the first child starts.

use crate::failure::Outcome;
use crate::vault::{make as make_vault, reopen};

use super::settings::UpSettings;
use super::site::Site;

/// Makes both at the first start. Later a vault that is not there is an error: an empty one in its
/// place would hide that everything is gone.
pub(super) async fn make(site: &Site, settings: &UpSettings) -> Outcome {
    let key_file = site.key_file();
    if UpSettings::last(site)?.is_some() {
        reopen(&settings.vault, &key_file).await.map(drop)
    } else {
        make_vault(&settings.vault, &key_file).await.map(drop)
    }
}
