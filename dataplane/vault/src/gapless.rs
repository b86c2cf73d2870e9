//! Lists of objects with numbers from 1 on, made in order and never deleted, of which the newest says all that counts. One that is lost in front
//! of it is passed over: `vault verify` names it.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{END_GROWTH, END_PROBES, NUMBERS_BEHIND};
use crate::store::Store;
use futures::future::try_join_all;

/// The highest number that there is, knowing that `known` is there, or is 0; 0 if there is none.
///
/// # Errors
/// `Unavailable`; `Limit` above `max`.
pub(crate) async fn newest(
    store: &Store,
    known: u64,
    max: u64,
    name: impl Fn(u64) -> ObjectName,
) -> Result<u64, VaultError> {
    let mut last = known;
    while last <= max {
        // Most lists have nothing new: the next one, and those that would show its loss.
        let next: Vec<u64> = (last + 1..=last + 1 + NUMBERS_BEHIND).collect();
        let found = are_there(store, &next, &name).await?;
        let joined = found.iter().take_while(|is_there| **is_there).count();
        last += joined as u64;
        if joined == next.len() {
            last = gallop(store, last, max, &name).await?;
            continue;
        }
        let later = found.iter().rposition(|is_there| *is_there).filter(|at| *at > joined);
        match later {
            // The one in front of it is lost, or has come since it was asked for.
            Some(later) => last = next[later],
            // So many behind the first missing one are still to be looked at.
            None if joined > 0 => {}
            None => return Ok(last),
        }
    }
    Err(VaultError::Limit { url: store.url().to_owned(), what: "numbers of a list", max })
}

/// A number that is there, near the end: steps that grow until one is not there, then parts of what is left.
async fn gallop(
    store: &Store,
    known: u64,
    max: u64,
    name: &impl Fn(u64) -> ObjectName,
) -> Result<u64, VaultError> {
    let (mut last, mut missing): (u64, Option<u64>) = (known, None);
    let mut step: u64 = 1;
    loop {
        let numbers: Vec<u64> = match missing {
            _ if last > max => return Ok(last),
            None => (0..END_PROBES).map(|n| last + step * END_GROWTH.pow(n)).collect(),
            Some(end) if end > last + 1 + NUMBERS_BEHIND => {
                let part = (end - last).div_ceil(u64::from(END_PROBES) + 1);
                let parts = (1..=u64::from(END_PROBES)).map(|n| last + n * part);
                parts.filter(|number| *number < end).collect()
            }
            Some(_) => return Ok(last),
        };
        let found = are_there(store, &numbers, name).await?;
        let there = found.iter().rposition(|is_there| *is_there);
        missing = numbers.get(there.map_or(0, |at| at + 1)).copied().or(missing);
        last = there.map_or(last, |at| numbers[at]);
        step = step.saturating_mul(END_GROWTH.pow(END_PROBES)).min(max);
    }
}

async fn are_there(
    store: &Store,
    numbers: &[u64],
    name: &impl Fn(u64) -> ObjectName,
) -> Result<Vec<bool>, VaultError> {
    let names: Vec<_> = numbers.iter().map(|number| name(*number)).collect();
    let found = names.iter().map(|name| store.exists(name));
    Ok(try_join_all(found).await?)
}
