//! That each horizon of a log goes on from the one before, and takes back nothing.

use super::Report;
use crate::error::VaultError;
use crate::horizon::{Found, Horizon, reaches, read};
use crate::layout::ObjectName;
use crate::vault::Vault;
use farshore_codec::digest::digest;
use farshore_proto::horizon::HorizonBody;
use farshore_proto::{LogId, Slot};
use std::collections::BTreeMap;

/// Compares the horizons of a log up to the newest, one after the other, and that one with the log's floor; those were read before.
pub(super) async fn check(
    vault: &Vault,
    log: LogId,
    (horizon, floors): (&Horizon, &BTreeMap<LogId, Slot>),
    report: &mut Report,
) -> Result<(), VaultError> {
    let newest = horizon.number;
    if let Err(error) = reaches(vault, log, horizon, floors) {
        report.add_error(ObjectName::horizon(log, newest + 1), error)?;
    }
    let mut before: Option<(HorizonBody, [u8; 32])> = None;
    for number in 1..=newest {
        let name = ObjectName::horizon(log, number);
        let Found { body, object, .. } = match read(vault, log, number).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                let later = ObjectName::horizon(log, newest);
                report.add(name, 0, format!("is missing although {later} exists"));
                before = None;
                continue;
            }
            Err(error) => {
                report.add_error(name, error)?;
                before = None;
                continue;
            }
        };
        report.horizons += 1;
        if let Some(what) = before.as_ref().and_then(|(before, of)| wrong(before, *of, &body)) {
            report.add(name, 0, what);
        }
        before = Some((body, digest(&object)));
    }
    Ok(())
}

/// What is wrong with a horizon, given the one before.
fn wrong(before: &HorizonBody, of: [u8; 32], body: &HorizonBody) -> Option<&'static str> {
    if body.before != of {
        return Some("goes on from another horizon than the one before it");
    }
    if body.slot < before.slot || body.below.incarnation < before.below.incarnation {
        return Some("stands in front of the one before it");
    }
    let is_kept = before.below.tails.iter().all(|(volume, tail)| {
        body.below.tails.get(volume).is_some_and(|now| {
            (now.epoch, now.last_seq, now.newest) >= (tail.epoch, tail.last_seq, tail.newest)
        })
    });
    (!is_kept).then_some("says less of a volume than the one before it")
}
