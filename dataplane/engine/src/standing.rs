//! Whose session goes on: whether what its peer showed when the connection began still stands.
//!
//! Who somebody is, is found out when a connection begins; sessions last for weeks. So each is looked at
//! again and again: its certificate may have ended, or its agent may have been revoked or enrolled again.
//! Other volumes and agents say nothing here: those are refused by the shard.

use farshore_proto::VolumeId;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::RefusalReason;

/// Time between two looks at all sessions.
pub const LOOK_EVERY_MS: u64 = 1_000;

/// The certificate that a peer showed. `A` is who an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<A> {
    /// Its agent.
    pub agent: A,
    /// Its generation: each renewal and enrolment has a higher one.
    pub generation: u64,
    /// When it ends, in seconds of Unix time.
    pub ends_s: u64,
}

/// What the control plane says of the agent that may send a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed<A> {
    /// The agent.
    pub agent: A,
    /// Certificates of lower generations are over; of a revoked agent all are.
    pub generation_min: u64,
}

/// Why a holder may not have a session any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The identity was revoked, or has newer certificates.
    Revoked,
    /// The certificate has ended, and there was time to renew it.
    Ended,
}

impl Over {
    /// For counters and logs, and for the peer.
    #[must_use]
    pub fn reasons(self) -> (&'static str, RefusalReason) {
        match self {
            Self::Revoked => ("revoked", RefusalReason::NotAssigned),
            Self::Ended => ("expired", RefusalReason::Unavailable),
        }
    }

    /// What the peer is told.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Revoked => {
                "the certificate is over: the agent was revoked, or enrolled again since"
            }
            Self::Ended => "the certificate has ended; come back with the renewed one",
        }
    }
}

/// Whose session it is, for which volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder<A> {
    /// The volume.
    pub volume: VolumeId,
    /// What the holder showed.
    pub shown: Shown<A>,
}

impl<A: PartialEq + Copy> Holder<A> {
    /// One who says hello for a volume. `takes` says whether a certificate is taken that ends or ended
    /// then: its holder may have been unable to renew it.
    ///
    /// # Errors
    /// Why it may not have a session.
    pub fn enter(
        volume: VolumeId,
        shown: Shown<A>,
        allowed: Option<Allowed<A>>,
        takes: impl FnOnce(u64) -> bool,
    ) -> Result<Self, Over> {
        let holder = Self { volume, shown };
        match holder.judge(allowed, takes) {
            Some(over) => Err(over),
            None => Ok(holder),
        }
    }

    /// Why its session ends now, if it does.
    #[must_use]
    pub fn over(
        &self,
        allowed: Option<Allowed<A>>,
        takes: impl FnOnce(u64) -> bool,
    ) -> Option<Over> {
        self.judge(allowed.filter(|_| !is_on(Bug::RevokedGoesOn)), takes)
    }

    fn judge(&self, allowed: Option<Allowed<A>>, takes: impl FnOnce(u64) -> bool) -> Option<Over> {
        let Shown { agent, generation, ends_s } = self.shown;
        let allowed = allowed.filter(|allowed| allowed.agent == agent);
        if allowed.is_some_and(|allowed| generation < allowed.generation_min) {
            Some(Over::Revoked)
        } else if takes(ends_s) {
            None
        } else {
            Some(Over::Ended)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn shown(agent: u8, generation: u64) -> Shown<u8> {
        Shown { agent, generation, ends_s: 100 }
    }

    fn allowed(generation_min: u64) -> Option<Allowed<u8>> {
        Some(Allowed { agent: 9, generation_min })
    }

    /// At the hello and afterwards.
    fn both(shown: Shown<u8>, allowed: Option<Allowed<u8>>, now_s: u64) -> Option<Over> {
        let takes = |ends_s| now_s <= ends_s;
        let entered = Holder::enter(VOLUME, shown, allowed, takes);
        let later = Holder { volume: VOLUME, shown }.over(allowed, takes);
        assert_eq!(entered.err(), later, "an open session stands like a new one");
        later
    }

    #[test]
    fn old_certificates_and_those_of_revoked_agents_are_over() {
        assert_eq!(both(shown(9, 3), allowed(3), 0), None);
        assert_eq!(both(shown(9, 4), allowed(3), 0), None);
        assert_eq!(both(shown(9, 2), allowed(3), 0), Some(Over::Revoked), "an older generation");
        assert_eq!(both(shown(9, 1_000), allowed(u64::MAX), 0), Some(Over::Revoked), "revoked");
        assert_eq!(both(shown(8, 1), allowed(u64::MAX), 0), None, "another agent");
        assert_eq!(both(shown(9, 1), None, 0), None, "nobody says anything of the volume");
    }

    #[test]
    fn a_certificate_that_ended_is_over_unless_it_is_taken_and_revoked_comes_first() {
        assert_eq!(both(shown(9, 3), allowed(3), 100), None);
        assert_eq!(both(shown(9, 3), allowed(3), 101), Some(Over::Ended));
        assert_eq!(both(shown(9, 3), None, 101), Some(Over::Ended));
        assert_eq!(both(shown(9, 2), allowed(3), 101), Some(Over::Revoked));
        let holder = Holder { volume: VOLUME, shown: shown(9, 3) };
        assert_eq!(holder.over(allowed(3), |_| true), None, "it could not be renewed");
    }
}
