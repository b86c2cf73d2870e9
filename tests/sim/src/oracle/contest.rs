//! Two holders of one volume, as a node was told of them.

use super::Oracle;
use farshore_engine::shard::CONTEST_MS;
use farshore_proto::{Epoch, Timestamp};
use std::collections::BTreeMap;

/// By node and server.
pub(super) type Contests = BTreeMap<(usize, usize), Contest>;

/// What a node knows of a volume's holders.
#[derive(Debug)]
pub(super) struct Contest {
    epoch: Epoch,
    /// When each holder came last.
    came: BTreeMap<usize, Timestamp>,
    /// Whether one said that another had taken over while it lived.
    is_told: bool,
}

impl Oracle {
    /// A holder came to a node for a volume that the node has under this epoch.
    pub fn came(
        &mut self,
        (node, now): (usize, Timestamp),
        (holder, epoch): (usize, Epoch),
        is_overtaken: bool,
    ) {
        let new = || Contest { epoch, came: BTreeMap::new(), is_told: false };
        let key = (node, self.machine(holder));
        let contest = self.contests.entry(key).or_insert_with(new);
        if contest.epoch != epoch {
            // A new epoch has new holders.
            *contest = new();
        }
        contest.came.insert(holder, now);
        contest.is_told |= is_overtaken && contest.came.len() > 1;
    }

    /// A node begins anew with a server's volume: what it was told counts no more.
    pub fn contest_forgotten(&mut self, node: usize, machine: usize) {
        self.contests.remove(&(node, machine));
    }

    /// A node begins anew with every volume.
    pub fn contests_forgotten(&mut self, node: usize) {
        self.contests.retain(|(at, _), _| *at != node);
    }

    /// A node took a frame: then it was told of no other holder, or that one has been away for long enough.
    pub(super) fn judge_holder(
        &mut self,
        (node, now): (usize, Timestamp),
        (holder, epoch): (usize, Epoch),
    ) {
        let key = (node, self.machine(holder));
        let is_told = self.contests.get(&key).is_some_and(|it| it.is_told && it.epoch == epoch);
        if !is_told {
            return self.came((node, now), (holder, epoch), false);
        }
        let Some(contest) = self.contests.get(&key) else { return };
        let others = contest.came.iter().filter(|(other, _)| **other != holder);
        let newest =
            others.map(|(other, at)| (*other, now.since_ms(*at))).min_by_key(|(_, ms)| *ms);
        match newest {
            Some((other, away_ms)) if away_ms < CONTEST_MS => {
                let what = format!(
                    "node {node} takes a frame of agent {holder}; it was told that agent {other} holds the \
                     same volume, which came {away_ms} ms ago"
                );
                self.violate("P31", what);
            }
            _ => {
                self.contests.remove(&key);
            }
        }
    }
}
