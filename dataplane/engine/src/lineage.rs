//! What a run of an agent descends from: whether frames that its log lost can have been its own.
//!
//! Each start of an agent draws a *life*; each durable write of its intents raises the *generation*.
//! Every frame says under which of both it was made, never below the generation that made its
//! region's intent durable. The agent keeps, in the intent file, the lives that it descends from and
//! the generation that each had reached.
//!
//! A node that has more than the log held either got it from this line before a power cut, or from one
//! that went on elsewhere: from before a rollback, or from a copy of the agent. The two differ in the
//! newest frame's stamp; `docs/adr/0012-lineage.md` has the argument.

use farshore_proto::Stamp;
use farshore_proto::bugs::{Bug, is_on};

/// Lives that are remembered. An agent that starts more often without one frame getting through reads
/// its whole disk again if it then loses the end of its log.
pub const LIVES_MAX: usize = 8;

/// The lives that a run descends from, each with the generation that it had reached; oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lineage {
    stamps: [Stamp; LIVES_MAX],
}

impl Lineage {
    /// From what was kept; empty places are 0 and come first.
    #[must_use]
    pub fn from_kept(kept: [u64; LIVES_MAX]) -> Self {
        Self { stamps: kept.map(Stamp::from_u64) }
    }

    /// What is to be kept.
    #[must_use]
    pub fn to_kept(self) -> [u64; LIVES_MAX] {
        self.stamps.map(Stamp::to_u64)
    }

    /// The newest life and its generation; nothing if there was none.
    #[must_use]
    pub fn newest(&self) -> Stamp {
        self.stamps[LIVES_MAX - 1]
    }

    /// Goes on in a life; nothing changes if it is the newest already.
    pub fn begin(&mut self, life: u32) {
        if self.newest().life != life {
            self.stamps.rotate_left(1);
            self.stamps[LIVES_MAX - 1] = Stamp { life, generation: 0 };
        }
    }

    /// Raises the generation; false if the life has had them all and another must begin.
    pub fn raise(&mut self) -> bool {
        let newest = &mut self.stamps[LIVES_MAX - 1];
        let raised = newest.generation.checked_add(1).filter(|next| *next < Stamp::UNSAID);
        newest.generation = raised.unwrap_or(newest.generation);
        raised.is_some()
    }

    /// Whether a frame that says nothing of intents is of the newest life, in this sending of the whole disk:
    /// after a later one the same numbers are other frames.
    #[must_use]
    pub fn is_newest(&self, stamp: Stamp, sending: u32) -> bool {
        stamp.life != 0 && stamp == Stamp::unsaid(self.newest().life, sending)
    }

    /// Whether a frame with this stamp was made on this line, under intents that it still has.
    #[must_use]
    pub fn covers(&self, stamp: Stamp) -> bool {
        if is_on(Bug::RollbackTakenForCrash) {
            return true;
        }
        let is_ancestor =
            |known: &Stamp| known.life == stamp.life && stamp.generation <= known.generation;
        stamp.life != 0 && self.stamps.iter().any(is_ancestor)
    }

    /// Whether a frame with this stamp may have been made before one of `held`, which lies in the log: then it is of a
    /// branch that this line has left, or of a server that was set back. Within a life it is not told when frames that
    /// say nothing of intents were made.
    #[must_use]
    pub fn may_precede(&self, stamp: Stamp, held: Stamp) -> bool {
        if is_on(Bug::LeftBranchTakenForTail) || !held.is_known() {
            return false;
        }
        if stamp.life == held.life {
            return stamp.generation < held.generation;
        }
        // A life that is not among them is older than all that are, or nobody's.
        let place = |life| self.stamps.iter().position(|known| known.life == life);
        place(stamp.life) < place(held.life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(life: u32, generation: u32) -> Stamp {
        Stamp { life, generation }
    }

    fn line(lives: &[(u32, u32)]) -> Lineage {
        let mut lineage = Lineage::default();
        for (life, generations) in lives {
            lineage.begin(*life);
            (0..*generations).for_each(|_| assert!(lineage.raise()));
        }
        lineage
    }

    /// The cases of `docs/adr/0012-lineage.md`.
    #[test]
    fn only_what_was_made_on_this_line_under_known_intents_is_its_own() {
        let at_snapshot = line(&[(7, 3), (9, 5)]);
        // A power cut: the intents are at least as new as every frame.
        assert!(at_snapshot.covers(stamp(9, 5)) && at_snapshot.covers(stamp(9, 0)));
        // An earlier life's last frames, when the newest sent none.
        assert!(at_snapshot.covers(stamp(7, 3)));
        // A rollback: intents were written after the snapshot.
        assert!(!at_snapshot.covers(stamp(9, 6)));
        // A rollback beyond a start, or a copy of the agent.
        assert!(!at_snapshot.covers(stamp(11, 0)));
        // Another branch that began at an older snapshot and reached the same number.
        let branch = line(&[(7, 3), (8, 5)]);
        assert!(!branch.covers(stamp(9, 5)));
        // Nobody knows: a node without its journal, frames without intents, no intent file.
        assert!(!at_snapshot.covers(Stamp::default()));
        assert!(!Lineage::default().covers(Stamp::default()));
        assert!(!Lineage::default().covers(stamp(9, 0)));
        // Frames that say nothing of intents, of the newest life and of others.
        let unsaid = Stamp::unsaid(9, 2);
        assert!(!at_snapshot.covers(unsaid) && at_snapshot.is_newest(unsaid, 2));
        assert!(!at_snapshot.is_newest(unsaid, 1), "numbers were given a second time");
        assert!(!at_snapshot.is_newest(Stamp::unsaid(7, 2), 2));
        assert!(!at_snapshot.is_newest(stamp(9, 5), 2));
        assert!(!Lineage::default().is_newest(Stamp::unsaid(0, 0), 0));
    }

    #[test]
    fn what_was_made_before_the_logs_newest_frame_is_not_its_tail() {
        let here = line(&[(7, 3), (9, 5)]);
        assert!(!here.may_precede(stamp(9, 4), stamp(9, 4)));
        assert!(
            !here.may_precede(stamp(9, 5), stamp(9, 4))
                && here.may_precede(stamp(9, 3), stamp(9, 4))
        );
        assert!(
            !here.may_precede(stamp(9, 0), stamp(7, 3))
                && here.may_precede(stamp(7, 3), stamp(9, 0))
        );
        // The whole disk was being sent again when the log's newest frame was made.
        assert!(here.may_precede(stamp(9, 5), Stamp::unsaid(9, 1)));
        // A life that was forgotten is older than those that were not.
        assert!(
            here.may_precede(stamp(5, 1), stamp(7, 0))
                && !here.may_precede(stamp(7, 0), stamp(5, 1))
        );
        // The log holds none.
        assert!(!here.may_precede(stamp(7, 0), Stamp::default()));
    }

    #[test]
    fn a_line_is_kept_and_bounded() {
        let lineage = line(&[(1, 1), (2, 0), (3, 2)]);
        assert_eq!(Lineage::from_kept(lineage.to_kept()), lineage);
        let mut long = lineage;
        (10..18).for_each(|life| long.begin(life));
        assert!(!long.covers(stamp(3, 0)) && long.covers(stamp(10, 0)));
        long.begin(17);
        assert!(long.covers(stamp(10, 0)), "the same life does not begin twice");
        let of = |generation| Lineage::from_kept([stamp(1, generation).to_u64(); LIVES_MAX]);
        assert!(of(Stamp::UNSAID - 2).raise());
        let is_raised = of(Stamp::UNSAID - 1).raise();
        assert!(!is_raised, "the next number would say that the frame says nothing of intents");
    }
}
