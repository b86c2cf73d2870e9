//! The newest revision of a machine or group.

use super::Revised;
use crate::error::VaultError;
use crate::layout::ordinal_of;
use crate::limits::{
    REVISION_TRIES_MAX, REVISIONS_BEHIND, REVISIONS_MAX, SMALL_SEALED_OBJECT_BYTES_MAX,
};
use crate::store::StoreError;
use crate::vault::Vault;
use futures::TryStreamExt;
use futures::future::try_join_all;

/// A revision that opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision<K> {
    /// Its number.
    pub number: u64,
    /// What it says.
    pub body: K,
    /// Whether that is all: not where a later program wrote what this one may ignore, and would lose.
    pub is_all: bool,
}

/// What is known of a machine or group.
#[derive(Debug)]
pub struct Found<K> {
    /// The newest revision that opens, if one of the last does.
    pub revision: Option<Revision<K>>,
    /// Number of the newest.
    pub newest: u64,
    /// Why the newest does not open: what it says is not known then, and an older one says what was.
    pub broken: Option<VaultError>,
}

impl<K> Found<K> {
    /// The newest revision.
    ///
    /// # Errors
    /// Why it does not open.
    pub fn into_newest(self) -> Result<Option<Revision<K>>, VaultError> {
        match self.broken {
            Some(error) => Err(error),
            None => Ok(self.revision),
        }
    }
}

/// Reads a revision; nothing if it is not there.
pub(crate) async fn read<K: Revised>(
    vault: &Vault,
    id: K::Id,
    revision: u64,
) -> Result<Option<Revision<K>>, VaultError> {
    let name = K::name(id, revision);
    let bytes = match vault.store().get(&name, SMALL_SEALED_OBJECT_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match K::open(&bytes, vault.id(), id, revision, vault.ring()) {
        Ok((body, is_all)) => Ok(Some(Revision { number: revision, body, is_all })),
        Err(source) => Err(vault.damaged_in(name, K::KIND.header_bytes(), source)),
    }
}

/// The newest revision: the search begins where a listing ends, which may lag.
pub(super) async fn newest<K: Revised>(
    vault: &Vault,
    id: K::Id,
) -> Result<Option<Found<K>>, VaultError> {
    let newest = match last_number::<K>(vault, id).await {
        Ok(newest) => newest,
        // Some object there has a number that nobody gives out: that hides no other machine.
        Err(error @ VaultError::Limit { .. }) => {
            return Ok(Some(Found { revision: None, newest: 0, broken: Some(error) }));
        }
        Err(error) => return Err(error),
    };
    let mut found = Found { revision: None, newest, broken: None };
    let oldest = newest.saturating_sub(REVISION_TRIES_MAX) + 1;
    for number in (oldest..=newest).rev() {
        match read::<K>(vault, id, number).await {
            Ok(Some(revision)) => {
                found.revision = Some(revision);
                break;
            }
            Ok(None) if number == newest => {
                let (url, object) = (vault.url().to_owned(), K::name(id, number));
                found.broken = Some(VaultError::LostEnd { url, object });
            }
            Ok(None) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => found.broken = found.broken.or(Some(error)),
        }
    }
    Ok((newest > 0).then_some(found))
}

/// The highest number that there is; 0 if there is none.
pub(crate) async fn last_number<K: Revised>(vault: &Vault, id: K::Id) -> Result<u64, VaultError> {
    let mut last = 0;
    let mut listing = vault.store().list(K::folder(id));
    while let Some(object) = listing.try_next().await? {
        last = last.max(ordinal_of(&object.name).unwrap_or(0));
    }
    drop(listing);
    search::<K>(vault, id, last).await
}

/// The highest number that there is, by asking behind `last`, the highest that was listed.
pub(super) async fn search<K: Revised>(
    vault: &Vault,
    id: K::Id,
    last: u64,
) -> Result<u64, VaultError> {
    let mut last = last;
    loop {
        if last <= REVISIONS_MAX {
            last = gallop::<K>(vault, id, last).await?;
        }
        if last > REVISIONS_MAX {
            let (url, max) = (vault.url().to_owned(), REVISIONS_MAX);
            return Err(VaultError::Limit { url, what: "revisions of a machine or group", max });
        }
        // They are made in order, so one that is there means that those in front of it were. The first was just asked
        // for.
        let behind = (last + 2..=last + REVISIONS_BEHIND).map(|number| async move {
            Ok::<_, VaultError>(is_there::<K>(vault, id, number).await?.then_some(number))
        });
        let Some(later) = try_join_all(behind).await?.into_iter().flatten().max() else {
            return Ok(last);
        };
        tracing::warn!(
            object = %K::name(id, last + 1), later = %K::name(id, later),
            "a revision is missing although a later one exists"
        );
        last = later;
    }
}

/// The last of those that follow on `last` without a gap.
pub(super) async fn gallop<K: Revised>(
    vault: &Vault,
    id: K::Id,
    last: u64,
) -> Result<u64, VaultError> {
    let (mut last, mut step) = (last, 1);
    while is_there::<K>(vault, id, last + step).await? {
        last += step;
        step *= 2;
        if last > REVISIONS_MAX {
            return Ok(last);
        }
    }
    // Between the last that was there and the first that was not.
    while step > 1 {
        step /= 2;
        if is_there::<K>(vault, id, last + step).await? {
            last += step;
        }
    }
    Ok(last)
}

async fn is_there<K: Revised>(vault: &Vault, id: K::Id, number: u64) -> Result<bool, VaultError> {
    Ok(vault.store().exists(&K::name(id, number)).await?)
}
