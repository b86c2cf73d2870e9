//! `vault key`: which keys open a vault.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use farshore_codec::WrappingKey;
use farshore_proto::keys::{Fingerprint, WrapperKind};
use farshore_vault::key_file::{self, KeyFileError};
use farshore_vault::wrappers::{self, ListedKey, ListedWrapper, Removal};
use farshore_vault::{Vault, VaultError};
use serde::Serialize;

use crate::args::Global;
use crate::confirm::Consent;
use crate::failure::Outcome;
use crate::table::Table;

use super::open::{Source, key_failure, new_key, told, vault_failure};

/// What a removal does not undo.
const KEPT: &str = "Whoever has opened the vault with it may have kept its data keys, and reads what is sealed \
                    under them until the vault's keys are rotated.\n";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the keys of a vault and what wraps them
    List {
        #[command(flatten)]
        source: Source,
    },
    /// Make a node key, with which a node opens the vault without its recovery key
    ///
    /// The recovery key is needed for that. Said again with the same file, it finishes what was cut short.
    Add {
        #[command(flatten)]
        source: Source,
        /// File that takes the node key (mode 0600); never overwritten
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Remove a key: the vault does not open with it any more
    ///
    /// The recovery key is needed for that. The last recovery key is not removed.
    Remove {
        #[command(flatten)]
        source: Source,
        /// Fingerprint of the key, as `list` shows it
        #[arg(value_name = "FINGERPRINT")]
        fingerprint: Fingerprint,
        #[command(flatten)]
        consent: Consent,
    },
}

/// Runs a verb.
pub(super) async fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::List { source } => list(global, &source).await,
        Verb::Add { source, to } => add(global, &source, &to).await,
        Verb::Remove { source, fingerprint, consent } => {
            remove(global, &source, fingerprint, consent).await
        }
    }
}

/// Result of `vault key list`.
#[derive(Debug, Serialize)]
struct KeyList {
    vault: String,
    keys: Vec<KeyRow>,
}

#[derive(Debug, Serialize)]
struct KeyRow {
    number: u32,
    domain: Option<u32>,
    /// `data` or `root`.
    kind: Option<&'static str>,
    wrappers: Vec<WrapperRow>,
}

#[derive(Debug, Serialize)]
struct WrapperRow {
    fingerprint: String,
    /// `recovery` or `node`.
    kind: Option<&'static str>,
    /// Whether it is the one that was given.
    in_hand: bool,
    damage: Option<String>,
}

impl KeyRow {
    fn new(key: &ListedKey, in_hand: Fingerprint) -> Self {
        let wrapper = |found: &ListedWrapper| WrapperRow {
            fingerprint: found.fingerprint.to_string(),
            kind: found.kind.as_ref().ok().map(|kind| kind.word()),
            in_hand: found.fingerprint == in_hand,
            damage: found.kind.as_ref().err().map(|error| told(error)),
        };
        Self {
            number: key.number.0,
            domain: key.role.map(|(domain, _)| domain.0),
            kind: key.role.map(|(_, kind)| kind.word()),
            wrappers: key.wrappers.iter().map(wrapper).collect(),
        }
    }
}

impl KeyList {
    fn table(&self) -> String {
        let mut table = Table::new(&["KEY", "DOMAIN", "KIND", "WRAPPED BY", ""], "no keys");
        for key in &self.keys {
            for wrapper in &key.wrappers {
                let kind = wrapper.kind.map_or("damaged", |kind| kind);
                table.row([
                    key.number.to_string(),
                    match key.domain {
                        None => "?".to_owned(),
                        // The vault's own.
                        Some(0) => "own".to_owned(),
                        Some(domain) => domain.to_string(),
                    },
                    key.kind.unwrap_or("?").to_owned(),
                    format!("{kind} {}", wrapper.fingerprint),
                    if wrapper.in_hand { "in hand".to_owned() } else { String::new() },
                ]);
            }
        }
        table.render()
    }
}

async fn list(global: &Global, source: &Source) -> Outcome {
    let vault = source.open(global).await?;
    let found = wrappers::list(&vault).await.map_err(|error| vault_failure(&error))?;
    let in_hand = vault.wrapper().fingerprint;
    let keys = found.iter().map(|key| KeyRow::new(key, in_hand)).collect();
    let list = KeyList { vault: vault.url().to_owned(), keys };
    global.output.unwrap_or_default().print(&list, KeyList::table)?;
    let wrappers = found.iter().flat_map(|key| &key.wrappers);
    match wrappers.filter_map(|wrapper| wrapper.kind.as_ref().err()).next() {
        Some(error) => Err(vault_failure(error).hint(
            "other keys open the vault all the same; `farshore vault key remove FINGERPRINT` removes what \
             is damaged",
        )),
        None => Ok(()),
    }
}

/// A node key that a vault was given.
#[derive(Debug)]
pub(crate) struct Given {
    key: WrappingKey,
    is_new: bool,
    wrapped: usize,
}

/// Makes a node key in a file, as far as it is not there, and has the vault open with it.
///
/// The file comes first: a key that nobody holds would open the vault for nobody.
///
/// # Errors
/// `DataInvalid` if there is something else in the file, what the vault says.
pub(crate) async fn give_node_key(vault: &Vault, path: &Path) -> Outcome<Given> {
    let (key, is_new) = match key_file::read_kind(path, WrapperKind::Node) {
        Ok(key) => (key, false),
        Err(KeyFileError::Missing { .. }) => (new_key(path, WrapperKind::Node)?, true),
        Err(error) => return Err(key_failure(&error)),
    };
    let wrapped = wrappers::add(vault, &key).await.map_err(|error| vault_failure(&error))?;
    Ok(Given { key, is_new, wrapped })
}

/// Result of `vault key add`.
#[derive(Debug, Serialize)]
struct Added {
    vault: String,
    fingerprint: String,
    kind: &'static str,
    key_file: String,
    key_created: bool,
    /// Keys of the vault that were wrapped for it now.
    wrapped: usize,
}

async fn add(global: &Global, source: &Source, to: &Path) -> Outcome {
    let vault = source.open_as_operator(global).await?;
    let given = give_node_key(&vault, to).await?;
    let wrapper = given.key.wrapper();
    let added = Added {
        vault: vault.url().to_owned(),
        fingerprint: wrapper.fingerprint.to_string(),
        kind: wrapper.kind.word(),
        key_file: to.display().to_string(),
        key_created: given.is_new,
        wrapped: given.wrapped,
    };
    global.output.unwrap_or_default().print(&added, |added| {
        let was = if added.key_created { "made" } else { "was there" };
        let mut table = Table::pairs();
        table
            .pair("vault", &added.vault)
            .pair("node key", format!("{} ({was})", added.key_file))
            .pair("fingerprint", &added.fingerprint)
            .pair("wrapped now", format!("{} keys of the vault", added.wrapped));
        table.render()
    })
}

/// Result of `vault key remove`.
#[derive(Debug, Serialize)]
struct Removed {
    vault: String,
    fingerprint: String,
    kind: Option<&'static str>,
    removed: Vec<String>,
}

async fn remove(
    global: &Global,
    source: &Source,
    fingerprint: Fingerprint,
    consent: Consent,
) -> Outcome {
    let vault = source.open_as_operator(global).await?;
    let removal = wrappers::removal(&vault, fingerprint).await.map_err(|error| match error {
        error @ VaultError::NoWrapper { .. } => {
            vault_failure(&error).hint("`farshore vault key list` shows those that there are")
        }
        error => vault_failure(&error),
    })?;
    if !consent.ask(&question(&vault, &removal))? {
        return Ok(());
    }
    wrappers::remove(&vault, &removal).await.map_err(|error| {
        vault_failure(&error).hint("say the same again: it removes what is left")
    })?;
    let removed = Removed {
        vault: vault.url().to_owned(),
        fingerprint: fingerprint.to_string(),
        kind: removal.kind.map(WrapperKind::word),
        removed: removal.objects.iter().map(ToString::to_string).collect(),
    };
    global.output.unwrap_or_default().print(&removed, |removed| {
        let mut table = Table::pairs();
        table.pair("vault", &removed.vault).pair(
            "removed",
            format!("{} ({} objects)", removed.fingerprint, removed.removed.len()),
        );
        table.render() + KEPT
    })
}

/// What a removal would do, in one sentence.
fn question(vault: &Vault, removal: &Removal) -> String {
    let kind = removal.kind.map_or_else(|| "damaged key".to_owned(), |kind| kind.to_string());
    let in_hand = if removal.fingerprint == vault.wrapper().fingerprint {
        ", which is the one in hand"
    } else {
        ""
    };
    format!(
        "remove the {kind} {}{in_hand}: {} objects of the vault {}, which will not open with it any more",
        removal.fingerprint,
        removal.objects.len(),
        vault.url()
    )
}
