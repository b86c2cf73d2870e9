//! Which segments are where an index says that they are.
//!
//! What an index or a run knows was true once. A store that lost the newest slots of a log, or was set back, has other
//! attempts there, or nothing; what refers to those that are gone is committed, and can never be read. So a segment is
//! referred to only if this run of the node put it, read it, or has looked at its header since it started. One look is
//! enough, for all chunks of it: what is lost later is found by who reads, not by who writes.
//!
//! What the vault's register condemns is refused: whoever has said that he applied a condemnation refers to nothing of it. What was
//! spared, or swept, is looked at anew.
//!
//! Until a segment was looked at its chunks are stored again: that costs space, nothing else. The slots behind it are
//! looked at with it, as a duplicate stream goes on in them.

use crate::limits::{SIGHTS_AHEAD, SIGHTS_MAX, SIGHTS_QUEUED_MAX};
use farshore_proto::segment::SlotKind;
use farshore_proto::{LogId, Slot, Target};
use farshore_vault::log::read_header;
use farshore_vault::register::Condemned;
use farshore_vault::{Vault, VaultError};
use futures::{StreamExt, stream};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    There,
    Asked,
    Gone,
}

/// What a look at a slot found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// The segment is there.
    There(Target),
    /// Something else is, or nothing.
    Gone(Target),
    /// The store did not say.
    Unsaid(Target),
}

/// The segments that were looked at, and those that are to be.
#[derive(Debug, Default)]
pub(crate) struct Sights {
    known: HashMap<Target, Sight>,
    queue: VecDeque<Target>,
    /// What is condemned.
    refused: Arc<Condemned>,
    /// Counts how often something ceased to be: a look that began before does not say what is there since.
    round: u64,
}

impl Sights {
    /// Known at first hand: put or read by this run.
    pub(crate) fn there(&mut self, target: Target) {
        self.set(target, Sight::There);
    }

    /// Whether a segment may be referred to; if that is not known it is to be looked at.
    pub(crate) fn is_there(&mut self, target: Target) -> bool {
        if self.refused.contains(&target) {
            return false;
        }
        match self.known.get(&target) {
            Some(sight) => *sight == Sight::There,
            None => {
                self.want(target);
                false
            }
        }
    }

    /// Whether it is not there, or may not be referred to.
    pub(crate) fn is_gone(&self, target: Target) -> bool {
        self.known.get(&target) == Some(&Sight::Gone) || self.refused.contains(&target)
    }

    /// These are condemned now, and no others.
    pub(crate) fn refuse(&mut self, refused: Arc<Condemned>) {
        let before = std::mem::replace(&mut self.refused, refused);
        let mut ceased =
            before.targets().filter(|target| !self.refused.contains(target)).peekable();
        if ceased.peek().is_some() {
            self.round += 1;
            // It may have been deleted; and whoever asked for it has no answer that counts.
            ceased.for_each(|target| _ = self.known.remove(target));
            self.known.retain(|_, sight| *sight != Sight::Asked);
            self.queue.clear();
        }
    }

    /// What is condemned.
    pub(crate) fn refused(&self) -> &Arc<Condemned> {
        &self.refused
    }

    /// How often something ceased to be condemned.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// To be looked at, unless that is known or there is no room: whoever needs it asks again.
    pub(crate) fn want(&mut self, target: Target) {
        let is_news = !self.known.contains_key(&target) && !self.refused.contains(&target);
        if self.queue.len() < SIGHTS_QUEUED_MAX && is_news {
            self.set(target, Sight::Asked);
            self.queue.push_back(target);
        }
    }

    /// Whether there is something to look at.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next ones to look at.
    pub(crate) fn take(&mut self, max: usize) -> Vec<Target> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(target) = self.queue.pop_front()
        {
            // Others were seen meanwhile, with those in front of them.
            if self.known.get(&target) == Some(&Sight::Asked) {
                taken.push(target);
            }
        }
        taken
    }

    /// What a look found that began in a round.
    pub(crate) fn saw(&mut self, round: u64, sighting: Sighting) {
        if round != self.round {
            return;
        }
        match sighting {
            Sighting::There(target) => self.set(target, Sight::There),
            Sighting::Gone(target) => self.set(target, Sight::Gone),
            Sighting::Unsaid(target) => _ = self.known.remove(&target),
        }
    }

    fn set(&mut self, target: Target, sight: Sight) {
        if self.known.len() >= SIGHTS_MAX && !self.known.contains_key(&target) {
            // Each is looked at again when it is needed.
            self.known.clear();
            self.queue.clear();
        }
        self.known.insert(target, sight);
    }
}

/// Looks at a segment, and at the slots behind it.
pub async fn look(vault: &Vault, target: Target) -> Vec<Sighting> {
    let Target { log, slot, attempt } = target;
    let first = match at(vault, log, slot).await {
        Ok(Some(found)) if found.attempt == attempt => Sighting::There(target),
        Ok(_) => Sighting::Gone(target),
        Err(error) => {
            tracing::debug!(%log, %slot, %error, "cannot look at a segment; what it holds is stored again");
            Sighting::Unsaid(target)
        }
    };
    let mut found = vec![first];
    if matches!(first, Sighting::There(_)) {
        let behind = (1..=SIGHTS_AHEAD).map(|step| Slot(slot.0.saturating_add(step)));
        let mut behind = stream::iter(behind).map(|slot| at(vault, log, slot)).buffered(4);
        while let Some(next) = behind.next().await {
            found.extend(next.ok().flatten().map(Sighting::There));
        }
    }
    found
}

/// The segment in a slot; none if nothing is there, or what is not one.
async fn at(vault: &Vault, log: LogId, slot: Slot) -> Result<Option<Target>, VaultError> {
    match read_header(vault, log, slot).await {
        Ok(header) => {
            let target = Target { log, slot, attempt: header.attempt() };
            Ok((header.kind == SlotKind::Segment).then_some(target))
        }
        Err(error) if error.is_unavailable() => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::Attempt;

    fn target(slot: u64) -> Target {
        Target { log: LogId([1; 16]), slot: Slot(slot), attempt: Attempt([7; 8]) }
    }

    fn open<const N: usize>(targets: [Target; N]) -> Arc<Condemned> {
        Arc::new(Condemned { open: targets.into(), ..Condemned::default() })
    }

    #[test]
    fn what_was_not_looked_at_is_asked_for_once() {
        let mut sights = Sights::default();
        assert!(!sights.is_there(target(1)) && !sights.is_there(target(1)));
        sights.there(target(2));
        assert!(sights.is_there(target(2)));
        assert_eq!(sights.take(8), [target(1)]);
        assert!(!sights.is_waiting() && !sights.is_there(target(1)), "it was asked for");
        sights.saw(0, Sighting::Unsaid(target(1)));
        assert!(!sights.is_there(target(1)) && sights.is_waiting(), "and again, if nobody said");
        sights.saw(0, Sighting::There(target(1)));
        assert!(sights.is_there(target(1)));
        sights.want(target(5));
        sights.saw(0, Sighting::There(target(5)));
        assert_eq!(sights.take(8), [], "it was seen with another");
        sights.saw(0, Sighting::Gone(target(3)));
        assert!(sights.is_gone(target(3)) && !sights.is_there(target(3)));
    }

    #[test]
    fn what_is_condemned_is_refused_and_then_looked_at_anew() {
        let mut sights = Sights::default();
        sights.there(target(1));
        sights.there(target(2));
        assert!(!sights.is_there(target(3)));
        assert_eq!(sights.take(8), [target(3)]);
        sights.refuse(open([target(1), target(3), target(4)]));
        assert!(!sights.is_there(target(1)) && sights.is_gone(target(1)));
        assert!(sights.is_there(target(2)));
        // It is not looked at, and a look that was under way does not let it in.
        assert!(!sights.is_there(target(4)) && !sights.is_waiting());
        sights.saw(0, Sighting::There(target(3)));
        assert!(!sights.is_there(target(3)));
        // One was spared, the others are deleted.
        sights.refuse(open([target(4)]));
        for slot in [1, 3] {
            assert!(!sights.is_there(target(slot)), "{slot}: nobody looked since");
        }
        assert!(sights.is_there(target(2)), "it was not condemned");
        // A look that began while it was condemned says nothing of what came since.
        sights.saw(0, Sighting::There(target(1)));
        assert!(!sights.is_there(target(1)));
        assert_eq!(sights.take(8), [target(1), target(3)]);
        sights.saw(1, Sighting::There(target(1)));
        sights.saw(1, Sighting::Gone(target(3)));
        assert!(sights.is_there(target(1)) && !sights.is_there(target(3)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut sights = Sights::default();
        (0..SIGHTS_QUEUED_MAX as u64 + 9).for_each(|slot| sights.want(target(slot)));
        assert_eq!(sights.queue.len(), SIGHTS_QUEUED_MAX);
        assert_eq!(sights.known.len(), SIGHTS_QUEUED_MAX, "what has no room is asked for again");
        (0..SIGHTS_MAX as u64 + 9).for_each(|slot| sights.there(target(slot)));
        assert!(sights.known.len() <= SIGHTS_MAX && sights.is_there(target(SIGHTS_MAX as u64)));
    }
}
