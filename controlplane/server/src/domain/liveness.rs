//! Which nodes live: a lease on each, in the control plane's own monotonic time.
//!
//! A node that is taken for lost loses its volumes, and its log is sealed; so silence has to be the
//! node's and nothing else's. What else it may be, and what keeps it from moving volumes:
//!
//! | cause of silence | rule |
//! |---|---|
//! | one connection hangs | any word that proves who says it renews the lease, and so does an agent whose writes get further under the node than ever before; when the node itself was silent for [`VOUCHED_MAX`], a person is asked |
//! | the wall clock steps | there is none here |
//! | this process was stopped, or starved | a gap between its own ticks voids all leases: everybody has the whole limit again |
//! | nobody gets through to this process | a node is lost only while another was heard for as long as the limit, without a gap that comes near it |
//! | a network, a site, a mistake of ours | few nodes are lost at once; for the others a person is asked, until all that were lost have been back for a while |
//!
//! Words count when they arrive, before anything waits for the catalogue.

use std::collections::BTreeMap;
use std::time::Duration;

use farshore_api::node::NodeLife;
use farshore_proto::bugs::{Bug, is_on};
use uuid::Uuid;

/// A node is lost, or asked for, again only this long after another one was, if neither came back.
const WINDOW: Duration = Duration::from_secs(600);

/// A node that came back still counts among the lost ones for so long.
const WINDOW_OF_RETURNED: Duration = Duration::from_secs(60);

/// Who was heard within this part of the limit is a witness that words get through; who was not heard for
/// so much less than the limit was as silent as those it would be a witness against. The first that is
/// heard after a blip has to leave the others time to be heard too.
const WITNESS_SHARE: u32 = 3;

/// For so long agents' words hold a node that does not speak for itself; then a person is asked. One agent
/// that is wrong must not keep the volumes of all others on a node that is gone without anybody hearing of
/// it, and a node that only the control plane does not reach must not lose them without a person either.
pub const VOUCHED_MAX: Duration = Duration::from_secs(600);

/// What an agent said of a volume is forgotten after so long; its next word is a first one then.
const TOLD_KEPT: Duration = Duration::from_secs(600);

/// One of so many nodes may be lost in a window without a person.
const NODES_PER_LOSS: usize = 4;

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<'a> {
    /// Looked at regularly: all nodes, and those that have volumes.
    Tick {
        /// Every node that ever registered.
        nodes: &'a [Uuid],
        /// Those that volumes are placed on.
        owners: &'a [Uuid],
    },
    /// The node said something, and proved that it is the node.
    Heard(Uuid),
    /// An agent says how far a volume is. If that is further than any word before, the node lives.
    Told(Told),
    /// A person says that the node is gone.
    Confirmed(Uuid),
}

/// How far a volume is under its node, by the word of its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The node.
    pub node: Uuid,
    /// The volume.
    pub volume: Uuid,
    /// The epoch under which the node has it.
    pub epoch: u64,
    /// Acked journaled.
    pub journaled: u64,
    /// Acked committed.
    pub committed: u64,
}

/// What to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The node is lost: its volumes may go.
    Lost {
        /// The node.
        node: Uuid,
        /// How long it was not heard.
        silent: Duration,
        /// Whether a person said so.
        by_person: bool,
    },
    /// The node would be lost, but too many are, or agents say that it lives: a person has to say so.
    Asked {
        /// The node.
        node: Uuid,
        /// How long it was not heard.
        silent: Duration,
        /// Whether only agents speak for it.
        is_vouched_for: bool,
    },
    /// A node that was lost or asked for is heard again.
    Back {
        /// The node.
        node: Uuid,
    },
    /// This process did not run for so long: nobody's silence counts.
    Void {
        /// Time between two ticks.
        gap: Duration,
    },
}

/// A person's word against the node's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StillHeard {
    /// How long ago.
    pub ago: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Lost,
    Asked,
    Confirmed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Lease {
    /// Last word, its own or an agent's, since the leases were void.
    heard: Option<Duration>,
    /// Last word of its own.
    own: Option<Duration>,
    /// Since when words came without a gap.
    steady: Option<Duration>,
    /// Since when it is known to this process.
    known: Duration,
    verdict: Option<Verdict>,
    /// When it was lost last, by the rule and not by a person's word.
    lost: Option<Duration>,
}

/// The furthest that an agent told of a volume.
#[derive(Debug, Clone, Copy)]
struct Furthest {
    told: Told,
    at: Duration,
}

/// The leases.
#[derive(Debug)]
pub struct Liveness {
    limit: Duration,
    /// Since when silence counts.
    listening: Option<Duration>,
    ticked: Duration,
    leases: BTreeMap<Uuid, Lease>,
    /// By volume.
    furthest: BTreeMap<Uuid, Furthest>,
}

impl Liveness {
    /// No lease yet; a node may be silent for `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            listening: None,
            ticked: Duration::ZERO,
            leases: BTreeMap::new(),
            furthest: BTreeMap::new(),
        }
    }

    /// The longest pause between two ticks after which leases still hold.
    #[must_use]
    pub fn gap_max(&self) -> Duration {
        self.limit / 2
    }

    /// Takes in what happened at `now`, which only grows.
    ///
    /// # Errors
    /// `StillHeard` if a person gives up a node that speaks for itself.
    pub fn step(
        &mut self,
        now: Duration,
        input: &Input<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), StillHeard> {
        match *input {
            Input::Tick { nodes, owners } => self.tick(now, nodes, owners, out),
            Input::Heard(node) => self.heard(now, node, true, out),
            Input::Told(told) => {
                if self.is_further(now, told) {
                    self.heard(now, told.node, false, out);
                }
            }
            Input::Confirmed(node) => return self.confirmed(now, node, out),
        }
        Ok(())
    }

    /// How a node stands.
    #[must_use]
    pub fn life(&self, now: Duration, node: Uuid) -> NodeLife {
        let Some(lease) = self.leases.get(&node) else { return NodeLife::Silent };
        match lease.verdict {
            Some(Verdict::Lost | Verdict::Confirmed) => NodeLife::Lost,
            Some(Verdict::Asked) => NodeLife::Asked,
            None if self.is_fresh(now, lease) => NodeLife::Heard,
            None => NodeLife::Silent,
        }
    }

    /// How long a node has not spoken for itself; nobody is silent for longer than this process listens.
    #[must_use]
    pub fn own_silence(&self, now: Duration, node: Uuid) -> Duration {
        let own = self.leases.get(&node).and_then(|lease| lease.own).unwrap_or_default();
        now.saturating_sub(own.max(self.listening.unwrap_or(now)))
    }

    fn is_fresh(&self, now: Duration, lease: &Lease) -> bool {
        lease.heard.is_some_and(|heard| now.saturating_sub(heard) <= self.limit)
    }

    fn silence(&self, now: Duration, lease: &Lease) -> Duration {
        let since = lease.heard.unwrap_or(lease.known).max(self.listening.unwrap_or(now));
        now.saturating_sub(since)
    }

    /// Whether a volume is further than any word of it before, under this epoch. The first word may be of any
    /// time, and one that goes back is late, or of an agent that has just started: what brings it to where
    /// it was says nothing.
    fn is_further(&mut self, now: Duration, told: Told) -> bool {
        let Some(known) = self.furthest.get_mut(&told.volume) else {
            self.furthest.insert(told.volume, Furthest { told, at: now });
            return false;
        };
        known.at = now;
        let before = known.told;
        if (before.node, before.epoch) != (told.node, told.epoch) {
            known.told = told;
            return false;
        }
        known.told.journaled = before.journaled.max(told.journaled);
        known.told.committed = before.committed.max(told.committed);
        told.journaled > before.journaled || told.committed > before.committed
    }

    /// Whether only agents speak for a node, for too long.
    fn is_mute(&self, now: Duration, lease: &Lease) -> bool {
        self.silence(now, lease) <= self.limit && self.own_silence_of(now, lease) > VOUCHED_MAX
    }

    fn own_silence_of(&self, now: Duration, lease: &Lease) -> Duration {
        let own = lease.own.unwrap_or(lease.known);
        now.saturating_sub(own.max(self.listening.unwrap_or(now)))
    }

    fn heard(&mut self, now: Duration, node: Uuid, is_own: bool, out: &mut Vec<Output>) {
        let gap_max = self.limit - self.limit / WITNESS_SHARE;
        let listening = self.listening.unwrap_or(now);
        let lease =
            self.leases.entry(node).or_insert_with(|| Lease { known: now, ..Lease::default() });
        // What a person said of a node only the node itself takes back.
        if lease.verdict == Some(Verdict::Confirmed) && !is_own {
            return;
        }
        let own_silence = now.saturating_sub(lease.own.unwrap_or(lease.known).max(listening));
        let is_joined = lease.heard.is_some_and(|heard| now.saturating_sub(heard) <= gap_max);
        if !is_joined {
            lease.steady = Some(now);
        }
        lease.heard = Some(now);
        if is_own {
            lease.own = Some(now);
        }
        if !is_own && own_silence > VOUCHED_MAX {
            return;
        }
        if lease.verdict.take().is_some() {
            out.push(Output::Back { node });
        }
    }

    fn tick(&mut self, now: Duration, nodes: &[Uuid], owners: &[Uuid], out: &mut Vec<Output>) {
        let gap = now.saturating_sub(std::mem::replace(&mut self.ticked, now));
        let is_void = self.listening.is_some() && gap > self.gap_max();
        if is_void {
            out.push(Output::Void { gap });
            for lease in self.leases.values_mut() {
                let is_confirmed = lease.verdict == Some(Verdict::Confirmed);
                lease.verdict = lease.verdict.filter(|_| is_confirmed);
                (lease.heard, lease.own, lease.steady) = (None, None, None);
            }
        }
        if is_void || self.listening.is_none() {
            self.listening = Some(now);
        }
        self.leases.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.leases.entry(*node).or_insert_with(|| Lease { known: now, ..Lease::default() });
        }
        self.furthest.retain(|_, known| now.saturating_sub(known.at) < TOLD_KEPT);
        self.ask_for_the_mute(now, owners, out);
        let is_calm = self.is_calm(now);
        let mut silent: Vec<(Duration, Uuid)> = owners
            .iter()
            .filter_map(|node| Some((*node, self.leases.get(node)?)))
            .filter(|(_, lease)| match lease.verdict {
                None => true,
                Some(Verdict::Asked) => is_calm,
                Some(Verdict::Lost | Verdict::Confirmed) => false,
            })
            .map(|(node, lease)| (self.silence(now, lease), node))
            .filter(|(silence, _)| *silence > self.limit)
            .collect();
        if silent.is_empty() || !self.is_anybody_steady(now) {
            return;
        }
        silent.sort_by(|a, b| b.cmp(a));
        for (silence, node) in silent {
            let is_one_too_many = self.lost_lately(now) >= (nodes.len() / NODES_PER_LOSS).max(1);
            let Some(lease) = self.leases.get_mut(&node) else { continue };
            if is_one_too_many {
                if lease.verdict.replace(Verdict::Asked).is_none() {
                    out.push(Output::Asked { node, silent: silence, is_vouched_for: false });
                }
            } else {
                lease.verdict = Some(Verdict::Lost);
                lease.lost = Some(now);
                out.push(Output::Lost { node, silent: silence, by_person: false });
            }
        }
    }

    /// Asks for nodes that have not spoken for themselves for too long, while agents speak for them.
    fn ask_for_the_mute(&mut self, now: Duration, owners: &[Uuid], out: &mut Vec<Output>) {
        for node in owners {
            let Some(lease) = self.leases.get(node).copied() else { continue };
            if lease.verdict.is_none() && self.is_mute(now, &lease) {
                let silent = self.own_silence_of(now, &lease);
                out.push(Output::Asked { node: *node, silent, is_vouched_for: true });
                self.leases.insert(*node, Lease { verdict: Some(Verdict::Asked), ..lease });
            }
        }
    }

    /// Whether words get through to this process: somebody's did without a gap, until just now. A
    /// witness that has fallen silent too, only a little later, says that nobody gets through.
    fn is_anybody_steady(&self, now: Duration) -> bool {
        let until_just_now = self.limit / WITNESS_SHARE;
        self.leases.values().any(|lease| {
            let is_heard =
                lease.heard.is_some_and(|heard| now.saturating_sub(heard) <= until_just_now);
            let since = lease.steady.filter(|_| is_heard);
            if is_on(Bug::AnyWitnessCounts) {
                return is_heard;
            }
            since.is_some_and(|since| now.saturating_sub(since) >= self.limit)
        })
    }

    /// Whether all that were lost came back, some time ago: it was for them that a person had to be asked
    /// for others. While one of them stays away, waiting is no answer.
    fn is_calm(&self, now: Duration) -> bool {
        let is_away = |lease: &Lease| lease.verdict == Some(Verdict::Lost);
        self.lost_lately(now) == 0 && !self.leases.values().any(is_away)
    }

    fn lost_lately(&self, now: Duration) -> usize {
        let is_lately = |lease: &&Lease| {
            let window = if lease.verdict.is_some() { WINDOW } else { WINDOW_OF_RETURNED };
            lease.lost.is_some_and(|lost| now.saturating_sub(lost) < window)
        };
        self.leases.values().filter(is_lately).count()
    }

    fn confirmed(
        &mut self,
        now: Duration,
        node: Uuid,
        out: &mut Vec<Output>,
    ) -> Result<(), StillHeard> {
        let Some(lease) = self.leases.get(&node) else { return Ok(()) };
        if let Some(own) = lease.own.filter(|own| now.saturating_sub(*own) <= self.limit) {
            return Err(StillHeard { ago: now.saturating_sub(own) });
        }
        let silent = self.silence(now, lease);
        if let Some(lease) = self.leases.get_mut(&node) {
            lease.verdict = Some(Verdict::Confirmed);
            lease.heard = None;
        }
        out.push(Output::Lost { node, silent, by_person: true });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
