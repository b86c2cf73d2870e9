//! The vault, its recovery key and the node's key before the first child starts.

use crate::failure::Outcome;
use crate::vault::{give_node_key, make as make_vault, reopen};

use super::settings::UpSettings;
use super::site::Site;

/// Makes them at the first start. Later a vault that is not there is an error: an empty one in its
/// place would hide that everything is gone. A node key that is not there is made anew.
pub(super) async fn make(site: &Site, settings: &UpSettings) -> Outcome {
    let key_file = site.key_file();
    let vault = match UpSettings::last(site)? {
        Some(_) => reopen(&settings.vault, &key_file).await?,
        None => make_vault(&settings.vault, &key_file).await?.0,
    };
    give_node_key(&vault, &site.node_key_file()).await.map(drop)
}
