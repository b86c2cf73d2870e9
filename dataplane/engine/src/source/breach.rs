//! Whether the agent's log joins what the node has, by what `docs/adr/0012-lineage.md` says.

use super::Source;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::Welcome;
use farshore_proto::{Imprint, Stamp};

/// Why the agent's log does not join what the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// The node has more than the log held when it was opened, and all of it was made on this line, behind
    /// what the log holds, under intents that are still there: the end of the log was lost in a power cut. What was
    /// written since the log's last flush is in doubt.
    TailLost,
    /// The log begins after what the node has. The whole disk is in doubt.
    Gap,
    /// The node has what was not sent from here (the server was rolled back, or there is a copy of it),
    /// or nobody knows who sent it, or the node lost what it had committed. The whole disk is in doubt.
    Foreign,
}

impl Source {
    /// Why the log does not join what the node has, if it does not.
    pub(super) fn breach(
        &self,
        welcome: Welcome,
        held: Option<(Stamp, Imprint)>,
    ) -> Option<Breach> {
        if self.declare_empty {
            return Some(Breach::Gap);
        }
        if welcome.received > self.known {
            // The end of this log came behind all that it still holds.
            let is_tail = !self.has_joined
                && self.lineage.covers(welcome.stamp)
                && !self.lineage.may_precede(welcome.stamp, self.floor_stamp);
            return Some(if is_tail { Breach::TailLost } else { Breach::Foreign });
        }
        let is_lost = welcome.received < self.committed;
        let (held, imprint) = held.unwrap_or_default();
        // The node's newest frame is the log's own, or it is not.
        let is_anothers = if imprint.is_known() && welcome.imprint.is_known() {
            imprint != welcome.imprint
        } else if held.is_known() && welcome.stamp.is_known() {
            held != welcome.stamp
        } else {
            self.may_be_anothers(welcome)
        };
        let is_anothers = is_anothers && !is_on(Bug::OthersFramesJoin);
        (is_lost || is_anothers).then_some(Breach::Foreign)
    }

    /// As many frames as were sent from here, or fewer, and the log holds the newest of them no more: whether
    /// it may be another's, because a branch of this stream went on elsewhere.
    fn may_be_anothers(&self, welcome: Welcome) -> bool {
        let is_this_run = self.has_joined && welcome.stamp.life == self.life;
        let is_own = is_this_run || self.lineage.covers(welcome.stamp);
        let is_as_joined = self.has_joined && self.joined_at == (welcome.received, welcome.stamp);
        // The run before this one may have said whose its last frames were, and no more.
        let is_line = !self.has_joined && self.lineage.is_newest(welcome.stamp, self.sending);
        let is_known = welcome.stamp.is_known() || self.is_shared;
        is_known && !is_own && !is_line && !is_as_joined
    }
}
