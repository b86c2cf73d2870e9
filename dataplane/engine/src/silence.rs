//! Which sessions end because their peers say too little: no hello, no frame, or one that never becomes
//! whole.
//!
//! A connection whose other end is gone looks like one whose peer has nothing to say. So a peer says at
//! least that it lives; who does not is taken for gone, and what it held goes to others. A peer cannot be
//! blamed while it is the shard that does not read.
//!
//! Invariants: **Q1** a frame that arrives has its place, so it waits for none; **Q2** nothing arrives
//! before the session began, and nobody is heard before that.

use farshore_proto::Timestamp;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::RefusalReason;

/// How patient a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The hello may take so long.
    pub hello_ms: u64,
    /// A frame that takes longer to arrive, while others wait for its place, is not waited for.
    pub arrival_ms: u64,
    /// Peers say something whole at least so often, or with every third mark if that is less often.
    pub idle_ms: u64,
}

/// Marks that may be due before a peer is called silent.
const MARKS: u64 = 3;
/// Least and most time between two looks at all sessions.
const LOOK_MS: (u64, u64) = (250, 10_000);

impl Patience {
    /// Time between two looks at all sessions.
    #[must_use]
    pub fn look_every_ms(&self) -> u64 {
        (self.idle_ms / 12).clamp(LOOK_MS.0, LOOK_MS.1)
    }
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No hello came for so long.
    NoHello(u64),
    /// A frame has been arriving for so long, and others wait.
    Stalled(u64),
    /// Nothing whole came for so long.
    Silent(u64),
}

impl Cause {
    /// For counters and logs, and for the peer.
    #[must_use]
    pub fn reasons(self) -> (&'static str, RefusalReason) {
        match self {
            Self::NoHello(_) => ("slow", RefusalReason::Limit),
            Self::Stalled(_) => ("slow", RefusalReason::Unavailable),
            Self::Silent(_) => ("idle", RefusalReason::Unavailable),
        }
    }

    /// What the peer is told.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::NoHello(ms) => format!("no hello within {} s", ms / 1000),
            Self::Stalled(ms) => format!("a frame took {} s, and others wait", ms / 1000),
            Self::Silent(ms) => format!("no frame within {} s", ms / 1000),
        }
    }
}

/// What is known of the peer of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    began: Timestamp,
    /// When something whole came; before the hello, when the session began.
    heard: Timestamp,
    /// How often it sets marks; none before the hello.
    mark_interval_ms: Option<u64>,
    /// Since when a frame that is not whole yet has had its place.
    arriving: Option<Timestamp>,
    /// It is the shard that does not read.
    is_waiting: bool,
}

impl Peer {
    /// One that has just come.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { began: now, heard: now, ..Self::default() }
    }

    /// Its hello was taken. How often it sets marks is the operator's word, not its own.
    pub fn greeted(&mut self, now: Timestamp, mark_interval_ms: u64) {
        self.heard = now;
        self.mark_interval_ms = Some(mark_interval_ms);
        self.check();
    }

    /// A frame has to wait until the shard reads on.
    pub fn waits(&mut self) {
        self.is_waiting = true;
        self.check();
    }

    /// The shard takes its frame, which may have waited, and the peer could say nothing behind it.
    pub fn arrives(&mut self, now: Timestamp) {
        if self.is_waiting {
            self.heard = now;
            self.is_waiting = is_on(Bug::SilenceExcused);
        }
        self.arriving = Some(now);
        self.check();
    }

    /// A frame is whole.
    pub fn whole(&mut self, now: Timestamp) {
        self.heard = now;
        self.arriving = None;
        self.check();
    }

    /// Why its session ends now, if it does. A shard `is_crowded` while frames wait for the place of others.
    #[must_use]
    pub fn end(&self, now: Timestamp, patience: &Patience, is_crowded: bool) -> Option<Cause> {
        let Some(mark_interval_ms) = self.mark_interval_ms else {
            let waited = now.since_ms(self.began);
            return (waited > patience.hello_ms).then_some(Cause::NoHello(waited));
        };
        let arriving = self.arriving.filter(|_| is_crowded).map(|began| now.since_ms(began));
        if let Some(arriving) = arriving.filter(|ms| *ms > patience.arrival_ms) {
            return Some(Cause::Stalled(arriving));
        }
        let silent = now.since_ms(self.heard);
        let allowed = patience.idle_ms.max(mark_interval_ms.saturating_mul(MARKS));
        (silent > allowed && !self.is_waiting).then_some(Cause::Silent(silent))
    }

    fn check(&self) {
        let may_wait = self.arriving.is_none() || is_on(Bug::SilenceExcused);
        assert!(!self.is_waiting || may_wait, "Q1: a frame arrives and waits");
        assert!(self.heard >= self.began, "Q2");
        assert!(self.arriving.is_none_or(|at| at >= self.began), "Q2");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Patience = Patience { hello_ms: 10_000, arrival_ms: 5_000, idle_ms: 60_000 };

    fn end(peer: &Peer, now: u64) -> Option<Cause> {
        peer.end(Timestamp(now), &PATIENCE, false)
    }

    fn greeted(at: u64, mark_interval_ms: u64) -> Peer {
        let mut peer = Peer::new(Timestamp(at));
        peer.greeted(Timestamp(at), mark_interval_ms);
        peer
    }

    #[test]
    fn who_says_no_hello_ends_and_who_said_it_does_not() {
        let mut peer = Peer::new(Timestamp(1_000));
        assert_eq!(end(&peer, 11_000), None);
        assert_eq!(end(&peer, 11_001), Some(Cause::NoHello(10_001)));
        peer.greeted(Timestamp(11_000), 0);
        assert_eq!(end(&peer, 71_000), None);
        assert_eq!(end(&peer, 71_001), Some(Cause::Silent(60_001)));
    }

    #[test]
    fn a_frame_or_a_rare_mark_keeps_a_session() {
        let mut peer = greeted(0, 1_000);
        peer.arrives(Timestamp(59_000));
        peer.whole(Timestamp(60_000));
        assert_eq!(end(&peer, 120_000), None);
        assert!(end(&peer, 120_001).is_some());
        let peer = greeted(0, 40_000);
        assert_eq!(end(&peer, 120_000), None, "three marks");
        assert!(end(&peer, 120_001).is_some());
        assert_eq!(end(&greeted(0, u64::MAX), u64::MAX), None, "whatever was told");
    }

    /// I7: bytes that never become a frame are no word.
    #[test]
    fn a_frame_that_is_never_whole_is_silence_and_ends_sooner_where_others_wait() {
        let mut peer = greeted(0, 0);
        peer.arrives(Timestamp(100));
        let crowded = |now| peer.end(Timestamp(now), &PATIENCE, true);
        assert_eq!(crowded(5_100), None);
        assert_eq!(crowded(5_101), Some(Cause::Stalled(5_001)));
        assert_eq!(end(&peer, 60_000), None);
        assert_eq!(end(&peer, 60_001), Some(Cause::Silent(60_001)));
    }

    #[test]
    fn nobody_is_blamed_while_the_shard_does_not_read_but_afterwards() {
        let mut peer = greeted(0, 0);
        peer.waits();
        assert_eq!(end(&peer, 1_000_000), None);
        peer.arrives(Timestamp(1_000_000));
        assert_eq!(end(&peer, 1_060_000), None);
        assert!(end(&peer, 1_060_001).is_some(), "what it waited before counts no more");
    }

    #[test]
    fn looks_are_neither_rare_nor_all_the_time() {
        let every = |idle_ms| Patience { idle_ms, ..PATIENCE }.look_every_ms();
        assert_eq!([0, 60_000, 3_600_000].map(every), [250, 5_000, 10_000]);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Wait,
        Frame,
        Begin,
    }

    proptest! {
        /// Whatever came before: who has not to wait and says nothing whole is ended, and not before its time.
        #[test]
        fn silence_ends_every_session_in_time(
            steps in prop::collection::vec(
                (0_u64..100_000, prop::sample::select(vec![Step::Wait, Step::Frame, Step::Begin])),
                0..20,
            ),
        ) {
            let mut peer = greeted(0, 5_000);
            let mut now = 0;
            for (after, step) in steps {
                now += after;
                match step {
                    Step::Wait if peer.arriving.is_none() => peer.waits(),
                    Step::Wait => {}
                    Step::Begin => peer.arrives(Timestamp(now)),
                    Step::Frame => {
                        peer.arrives(Timestamp(now));
                        peer.whole(Timestamp(now));
                    }
                }
            }
            if !peer.is_waiting {
                let last = peer.heard.0;
                prop_assert!(last <= now && end(&peer, last + 60_000).is_none());
                prop_assert!(end(&peer, now + 60_001).is_some());
            }
        }
    }
}
