//! Files that nobody means when they name a target: those that Farshore itself lives on.

use farshore_vault::key_file;
use std::path::Path;

/// In each directory of a program's own.
const LOCK_FILE: &str = "lock";
/// In the directory that holds those of all programs of one host; people keep other files there too.
const ENDPOINTS_FILE: &str = "endpoints.json";
/// In a vault's folder.
const VAULT_OBJECT: &str = "vault";
const LOGS_FOLDER: &str = "logs";

/// What an existing file is to Farshore, in words, wherever it lies; none if it is nothing. `path` is free of
/// links.
pub(super) fn what(path: &Path) -> Option<String> {
    if key_file::read(path).is_ok() {
        return Some("it is a recovery key, without which its vault cannot be read".to_owned());
    }
    let mut directories = path.ancestors().skip(1);
    let own = path.parent();
    directories.find_map(|directory| {
        let has = |name: &str| directory.join(name).is_file();
        let shown = directory.display();
        if is_vault(directory) {
            return Some(format!("it is part of the vault in {shown}"));
        }
        let is_shared = has(ENDPOINTS_FILE);
        let is_named = [LOCK_FILE, ENDPOINTS_FILE]
            .iter()
            .any(|name| own == Some(directory) && path.ends_with(name));
        let is_ours = has(LOCK_FILE) && (!is_shared || is_named);
        is_ours.then(|| format!("it is part of what Farshore keeps in {shown}"))
    })
}

/// What a new file in this directory, free of links, would be in, in words; none where people may keep what they like. A program's own directory is known by
/// little, and who has to restore is not to be kept from it by a file of that name: only a vault is.
pub(super) fn what_around(directory: &Path) -> Option<String> {
    let vault = directory.ancestors().find(|directory| is_vault(directory))?;
    Some(format!("it would be in the vault in {}", vault.display()))
}

fn is_vault(directory: &Path) -> bool {
    directory.join(VAULT_OBJECT).is_file() && directory.join(LOGS_FOLDER).is_dir()
}
