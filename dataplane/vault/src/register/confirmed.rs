//! Whether the register still has what somebody states to have applied.
//!
//! Entries that were lost at its end leave no trace, and others get their numbers: a number alone is no answer to them.

use super::{digest, found, open};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::SEALED_OBJECT_BYTES_MAX;
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::register::At;
use std::collections::BTreeMap;

/// The entries that were asked for and are there.
#[derive(Debug, Default)]
pub struct Confirmed(BTreeMap<u64, At>);

impl Confirmed {
    /// Whether an entry is there, and the one that is meant. It is read if none of its number was.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged; `Unavailable`.
    pub async fn has(&mut self, vault: &Vault, at: At) -> Result<bool, VaultError> {
        if at == At::NONE {
            return Ok(true);
        }
        let known = match self.0.get(&at.number) {
            Some(known) => *known,
            None => match read(vault, at).await? {
                Some(read) => *self.0.entry(at.number).or_insert(read),
                None => return Ok(false),
            },
        };
        Ok(known == at || is_on(Bug::AnswerByNumber))
    }
}

/// The entry of a number that is there, if one is.
async fn read(vault: &Vault, at: At) -> Result<Option<At>, VaultError> {
    let name = ObjectName::register(at.number);
    let get = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await;
    let Some(object) = found(get.map_err(Into::into))? else { return Ok(None) };
    let read = At::of(at.number, &digest(&object));
    if read != at {
        // What is garbled is no other one.
        open(vault, at.number, object).await?;
    }
    Ok(Some(read))
}
