//! Claims of a node's shards: a few at a time, each answered once, and what the control plane is to hear of
//! those that ended badly.
//!
//! The vault has the last word on who owns a volume; claiming is asking it. A claim that ends with a newer
//! epoch, or with the epoch in another log, cannot be mended here: only the control plane gives epochs.
//!
//! Invariants:
//!   - C1: at most `at_once` claims are under way, and what waits is bounded.
//!   - C2: each claim that is wanted is answered exactly once, to the shard and for the log that asked.
//!   - C3: what only the control plane can mend is said until it was.

use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::RefusalReason;
use farshore_proto::limits::SHARD_VOLUMES_MAX;
use farshore_proto::{Epoch, LogId, Seq, Slot, Stamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Claims that a node carries out at the same time.
pub const CLAIMS_AT_ONCE: usize = 8;
/// Claims that wait: as many as a shard's volumes, for each of some shards.
pub const CLAIMS_WAITING_MAX: usize = 16 * SHARD_VOLUMES_MAX;

/// What a shard wants to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that the control plane gave it.
    pub epoch: Epoch,
    /// The shard's log.
    pub log: LogId,
    /// No earlier slot of that log can hold the volume under this epoch.
    pub first_slot: Slot,
    /// The size of its disk.
    pub size_bytes: u64,
    /// What people call it.
    pub label: String,
}

/// Why a volume is not the shard's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOurs {
    /// Who can mend it.
    pub cause: Cause,
    /// What the agent is told.
    pub reason: RefusalReason,
    /// For people.
    pub text: String,
}

/// Who can mend it that a volume cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The control plane: the epoch is in another log, and only a newer one can be written here.
    NeedsEpoch,
    /// The control plane: this newer epoch owns the volume.
    Fenced(Epoch),
    /// Time, or whoever owns the disk.
    Other,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A shard wants a volume.
    Wanted {
        /// The shard.
        shard: usize,
        /// What it wants.
        wanted: Wanted,
    },
    /// The end of an [`Output::Claim`].
    Ended {
        /// Its number.
        number: u64,
        /// What the vault holds of the volume; or why it is not ours.
        end: Result<(Seq, Stamp), NotOurs>,
    },
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Make the volume the log's, and find out what the vault holds of it.
    Claim {
        /// The number of the claim.
        number: u64,
        /// What is claimed.
        wanted: Wanted,
    },
    /// Tell the shard that asked.
    Tell {
        /// The shard.
        shard: usize,
        /// For which log it asked.
        log: LogId,
        /// The volume.
        volume: VolumeId,
        /// What the vault holds of it; or what its agent is told.
        outcome: Result<(Seq, Stamp), (RefusalReason, String)>,
    },
    /// [`Wishes::learn`] of it.
    Wish {
        /// The volume.
        volume: VolumeId,
        /// What only the control plane can mend.
        cause: Cause,
    },
}

/// A claim that was wanted.
#[derive(Debug)]
struct Asked {
    shard: usize,
    log: LogId,
    volume: VolumeId,
}

/// The state machine of a node's claims.
#[derive(Debug)]
pub struct Claims {
    at_once: usize,
    waiting_max: usize,
    next: u64,
    waiting: VecDeque<(usize, Wanted)>,
    under_way: BTreeMap<u64, Asked>,
}

impl Claims {
    /// With so many under way at the same time, and so many that wait for their turn.
    ///
    /// # Panics
    /// If there is no room for any.
    #[must_use]
    pub fn new(at_once: usize, waiting_max: usize) -> Self {
        assert!(at_once > 0, "C1: claims end one by one");
        let (waiting, under_way) = (VecDeque::new(), BTreeMap::new());
        Self { at_once, waiting_max, next: 0, waiting, under_way }
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If a claim ends that is not under way: a bug in the driver.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Wanted { shard, wanted } if self.waiting.len() >= self.waiting_max => {
                let Wanted { log, volume, .. } = wanted;
                let text = "the node is too busy to claim a volume".to_owned();
                let outcome = Err((RefusalReason::Unavailable, text));
                out.push(Output::Tell { shard, log, volume, outcome });
            }
            Input::Wanted { shard, wanted } => self.waiting.push_back((shard, wanted)),
            Input::Ended { number, end } => {
                let asked = self.under_way.remove(&number).expect("C2: a claim ends once");
                self.ended(asked, end, out);
            }
        }
        while self.under_way.len() < self.at_once
            && let Some((shard, wanted)) = self.waiting.pop_front()
        {
            let number = self.next;
            self.next += 1;
            let Wanted { log, volume, .. } = wanted;
            self.under_way.insert(number, Asked { shard, log, volume });
            out.push(Output::Claim { number, wanted });
        }
        self.check();
    }

    fn ended(&mut self, asked: Asked, end: Result<(Seq, Stamp), NotOurs>, out: &mut Vec<Output>) {
        let Asked { shard, log, volume } = asked;
        if let Err(NotOurs { cause: cause @ (Cause::NeedsEpoch | Cause::Fenced(_)), .. }) = &end {
            out.push(Output::Wish { volume, cause: *cause });
        }
        let outcome = end.map_err(|NotOurs { reason, text, .. }| (reason, text));
        out.push(Output::Tell { shard, log, volume, outcome });
    }

    fn check(&self) {
        assert!(self.under_way.len() <= self.at_once, "C1");
        assert!(self.waiting.len() <= self.waiting_max, "C1");
        assert!(self.waiting.is_empty() || self.under_way.len() == self.at_once, "C2: all idle");
    }
}

/// What only the control plane can mend, until it was told.
#[derive(Debug, Default)]
pub struct Wishes {
    needed: BTreeSet<VolumeId>,
    newest: BTreeMap<VolumeId, Epoch>,
}

impl Wishes {
    /// A claim ended because of this.
    pub fn learn(&mut self, volume: VolumeId, cause: Cause) {
        match cause {
            Cause::NeedsEpoch => {
                self.needed.insert(volume);
            }
            Cause::Fenced(newest) if !is_on(Bug::NewerEpochUnsaid) => {
                self.newest.insert(volume, newest);
            }
            Cause::Fenced(_) | Cause::Other => {}
        }
    }

    /// Volumes that need a newer epoch, at most so many: said once, and wanted again at their agents' next
    /// hello if that did not help.
    pub fn take_needed(&mut self, max: usize) -> Vec<VolumeId> {
        std::iter::from_fn(|| self.needed.pop_first()).take(max).collect()
    }

    /// That was not heard.
    pub fn need(&mut self, volumes: impl IntoIterator<Item = VolumeId>) {
        self.needed.extend(volumes);
    }

    /// Newer epochs than those that the volumes are assigned under, at most so many. Their agents wait for
    /// the control plane and ask no more, so each is said again until it has given a greater one, or the
    /// volume to another node.
    pub fn newer(
        &mut self,
        assigned: impl Fn(VolumeId) -> Option<Epoch>,
        max: usize,
    ) -> Vec<(VolumeId, Epoch)> {
        self.newest
            .retain(|volume, newest| assigned(*volume).is_some_and(|epoch| epoch <= *newest));
        self.newest.iter().take(max).map(|(volume, epoch)| (*volume, *epoch)).collect()
    }
}

#[cfg(test)]
mod tests;
