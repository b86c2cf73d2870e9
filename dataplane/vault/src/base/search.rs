//! The newest base of a volume, found without a listing: numbers have no gaps.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{VOLUME_BASES_BEHIND, VOLUME_BASES_MAX};
use crate::store::StoreError;
use crate::vault::Vault;
use farshore_proto::VolumeId;
use std::collections::BTreeMap;

/// Numbers that are asked for at the same time.
const AT_ONCE: u64 = VOLUME_BASES_BEHIND + 1;
/// Steps get so many times as long.
const GROWTH: u64 = 4;

/// Number of the newest base of a volume; 0 if it has none.
///
/// # Errors
/// `Corrupt` if one is missing in front of a later one; `Unavailable`; `Limit`.
pub(crate) async fn last_number(vault: &Vault, volume: VolumeId) -> Result<u64, VaultError> {
    let mut asked = Asked { vault, volume, answers: BTreeMap::new() };
    let mut last = 0;
    loop {
        let (there, missing) = asked.bracket(last).await?;
        last = asked.narrow(there, missing).await?;
        let behind: Vec<u64> = (last + 2..=last + 1 + VOLUME_BASES_BEHIND).collect();
        asked.ask(&behind).await?;
        let Some(later) = behind.iter().copied().find(|number| asked.is_there(*number)) else {
            return Ok(last);
        };
        // They are made in order, so it was there, or was made since.
        asked.answers.remove(&(last + 1));
        asked.ask(&[last + 1]).await?;
        if !asked.is_there(last + 1) {
            let (url, object) = (vault.url().to_owned(), ObjectName::base(volume, last + 1));
            return Err(VaultError::LostNumber {
                url,
                object,
                later: ObjectName::base(volume, later),
            });
        }
        (last, asked.answers) = (last + 1, BTreeMap::new());
    }
}

/// What was asked for, and whether it was there.
struct Asked<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    answers: BTreeMap<u64, bool>,
}

impl Asked<'_> {
    fn is_there(&self, number: u64) -> bool {
        self.answers.get(&number).copied().unwrap_or(false)
    }

    /// Asks for numbers, all at once, but for those that were asked for before.
    async fn ask(&mut self, numbers: &[u64]) -> Result<(), VaultError> {
        let (vault, volume, answers) = (self.vault, self.volume, &mut self.answers);
        let unasked = numbers.iter().copied().filter(|number| !answers.contains_key(number));
        let found = unasked.map(|number| {
            let name = ObjectName::base(volume, number);
            async move { Ok::<_, StoreError>((number, vault.store().exists(&name).await?)) }
        });
        let found = futures::future::try_join_all(found.collect::<Vec<_>>()).await?;
        answers.extend(found);
        Ok(())
    }

    /// The last of those that were there in front of the first that was missing, and that one.
    async fn look(
        &mut self,
        there: u64,
        numbers: &[u64],
    ) -> Result<(u64, Option<u64>), VaultError> {
        self.ask(numbers).await?;
        let found = numbers.iter().take_while(|number| self.is_there(**number)).count();
        let last = found.checked_sub(1).map_or(there, |at| numbers[at]);
        Ok((last, numbers.get(found).copied()))
    }

    /// A number that is there, `from` or above, or 0, and one above it that is not.
    async fn bracket(&mut self, from: u64) -> Result<(u64, u64), VaultError> {
        let (mut there, mut step) = (from, 1);
        while there <= VOLUME_BASES_MAX {
            let numbers: Vec<u64> = (1..=AT_ONCE).map(|n| there + n * step).collect();
            let (last, missing) = self.look(there, &numbers).await?;
            if let Some(missing) = missing {
                return Ok((last, missing));
            }
            (there, step) = (last, step * GROWTH);
        }
        let (url, max) = (self.vault.url().to_owned(), VOLUME_BASES_MAX);
        Err(VaultError::Limit { url, what: "bases of a volume", max })
    }

    /// The last in front of the first one that is missing, between one that is there and one that is not.
    async fn narrow(&mut self, there: u64, missing: u64) -> Result<u64, VaultError> {
        let (mut there, mut missing) = (there, missing);
        while missing - there > 1 {
            let step = (missing - there).div_ceil(AT_ONCE + 1);
            let numbers = (1..=AT_ONCE).map(|n| there + n * step);
            let numbers: Vec<u64> = numbers.take_while(|number| *number < missing).collect();
            let (last, found) = self.look(there, &numbers).await?;
            (there, missing) = (last, found.unwrap_or(missing));
        }
        Ok(there)
    }
}
