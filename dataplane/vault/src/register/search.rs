//! The search for the newest entry of the register: at growing distances, then in parts.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{REGISTER_BEHIND, REGISTER_PROBES};
use crate::vault::Vault;
use farshore_proto::limits::REGISTER_MAX;
use futures::future::try_join_all;
use std::collections::BTreeMap;

/// The highest number that there is, at or behind `known`, which is there; 0 if there is none.
///
/// # Errors
/// `Corrupt` if an entry in front of another one is missing; `Unavailable`.
pub(super) async fn last_number(vault: &Vault, known: u64) -> Result<u64, VaultError> {
    let mut search = Search { vault, said: BTreeMap::new(), last: known };
    loop {
        let end = search.gallop().await?;
        search.narrow(end).await?;
        let missing = search.last + 1;
        let behind = missing + 1..=missing + REGISTER_BEHIND;
        search.ask(behind.clone()).await?;
        let Some(later) = search.first_behind(missing) else { return Ok(search.last) };
        search.look_again(missing, later).await?;
    }
}

struct Search<'a> {
    vault: &'a Vault,
    /// Which are there, of those that were asked for.
    said: BTreeMap<u64, bool>,
    /// The highest that is known to be there.
    last: u64,
}

impl Search<'_> {
    /// Asks for those that nobody asked for yet, at the same time.
    async fn ask(&mut self, numbers: impl IntoIterator<Item = u64>) -> Result<(), VaultError> {
        let vault = self.vault;
        let numbers = numbers.into_iter().filter(|number| !self.said.contains_key(number));
        let asked = numbers.map(|number| async move {
            Ok::<_, VaultError>((number, exists(vault, number).await?))
        });
        let said = try_join_all(asked).await?;
        self.said.extend(said);
        Ok(())
    }

    /// The first one behind a number that is there, of those that were asked for.
    fn first_behind(&self, number: u64) -> Option<u64> {
        self.said.range(number + 1..).find(|(_, is_there)| **is_there).map(|(number, _)| *number)
    }

    /// Asks at growing distances; gives one that is missing, in front of which all that were asked for are there.
    async fn gallop(&mut self) -> Result<u64, VaultError> {
        // Mostly there are none behind, or few: then this one round is all.
        let mut steps: Vec<u64> = (1..=1 + REGISTER_BEHIND).collect();
        loop {
            let start = self.last;
            let numbers: Vec<u64> = steps.iter().map(|step| start.saturating_add(*step)).collect();
            self.ask(numbers.iter().copied()).await?;
            for number in numbers {
                if self.said.get(&number) == Some(&true) {
                    self.last = number;
                } else if let Some(later) = self.first_behind(number) {
                    self.look_again(number, later).await?;
                } else {
                    return Ok(number);
                }
            }
            let far = steps.last().map_or(1, |step| step.saturating_mul(2));
            steps = (0..REGISTER_PROBES).map(|n| far.saturating_mul(1 << n)).collect();
        }
    }

    /// Finds the last one that is there in front of one that is missing.
    async fn narrow(&mut self, end: u64) -> Result<(), VaultError> {
        let mut end = end;
        while end - self.last > 1 {
            let part = (end - self.last).div_ceil(REGISTER_PROBES).max(1);
            let (start, stop) = (self.last, end);
            let numbers: Vec<u64> = (1..REGISTER_PROBES)
                .map(|n| start + n * part)
                .filter(|number| *number < stop)
                .collect();
            self.ask(numbers.iter().copied()).await?;
            for number in numbers {
                if self.said.get(&number) == Some(&true) {
                    self.last = self.last.max(number);
                } else if let Some(later) = self.first_behind(number) {
                    self.look_again(number, later).await?;
                } else {
                    end = number;
                    break;
                }
            }
        }
        Ok(())
    }

    /// One was missing, and a later one is there: they are made in order, so it was there. It may have been made since it
    /// was asked for; else it is lost.
    async fn look_again(&mut self, number: u64, later: u64) -> Result<(), VaultError> {
        if exists(self.vault, number).await? {
            self.said.insert(number, true);
            self.last = self.last.max(number);
            return Ok(());
        }
        let url = self.vault.url().to_owned();
        let (object, later) = (ObjectName::register(number), ObjectName::register(later));
        Err(VaultError::LostNumber { url, object, later })
    }
}

async fn exists(vault: &Vault, number: u64) -> Result<bool, VaultError> {
    // No name has room for more.
    if number > REGISTER_MAX {
        return Ok(false);
    }
    Ok(vault.store().exists(&ObjectName::register(number)).await?)
}
