//! What changes when the control plane says anew which volumes are a node's.

use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::{Epoch, VolumeId};
use std::collections::BTreeMap;

/// How a volume is given to a node. `A` is the agent that may send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given<A> {
    /// Under which epoch.
    pub epoch: Epoch,
    /// To whom.
    pub agent: A,
}

/// What follows from a new table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Volumes whose sessions end: gone, under another epoch, or of another agent.
    pub revoked: Vec<VolumeId>,
    /// Volumes that were given under this epoch before, and are given under a lower one now: the control
    /// plane has gone back to an older catalogue, and epochs that it gives may be over. Its agent may have
    /// been fenced off by then, and asks no more.
    pub lowered: Vec<(VolumeId, Epoch)>,
}

/// Compares the table of now with the one before.
pub fn changes<A: PartialEq>(
    before: impl IntoIterator<Item = (VolumeId, Given<A>)>,
    now: &BTreeMap<VolumeId, Given<A>>,
) -> Changes {
    let mut changes = Changes::default();
    for (volume, before) in before {
        let given = now.get(&volume);
        if given != Some(&before) {
            changes.revoked.push(volume);
        }
        let is_lower = given.is_some_and(|given| given.epoch < before.epoch);
        if is_lower && !is_on(Bug::NewerEpochUnsaid) {
            changes.lowered.push((volume, before.epoch));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(given: &[(u8, u64, u8)]) -> BTreeMap<VolumeId, Given<u8>> {
        let given = given.iter().map(|(volume, epoch, agent)| {
            (VolumeId([*volume; 16]), Given { epoch: Epoch(*epoch), agent: *agent })
        });
        given.collect()
    }

    #[test]
    fn what_is_gone_or_changed_is_revoked_and_nothing_else() {
        let before = table(&[(1, 1, 9), (2, 1, 9), (3, 1, 9), (4, 1, 9)]);
        let found = changes(before, &table(&[(1, 1, 9), (2, 2, 9), (4, 1, 8), (5, 1, 9)]));
        let revoked = [2, 3, 4].map(|volume| VolumeId([volume; 16])).to_vec();
        assert_eq!(found, Changes { revoked, lowered: Vec::new() });
    }

    /// C8: the vault may have passed what an older catalogue gives.
    #[test]
    fn an_epoch_that_goes_back_is_named() {
        let volume = VolumeId([1; 16]);
        let found = changes(table(&[(1, 7, 9), (2, 7, 9)]), &table(&[(1, 5, 9)]));
        assert_eq!(found.lowered, [(volume, Epoch(7))], "one that is gone is another node's");
        assert!(found.revoked.contains(&volume));
    }
}
