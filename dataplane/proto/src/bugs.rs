//! Seeded bugs: mistakes that the simulator, or a test, switches on to show that it finds them.
//!
//! They exist only with the cargo feature `seeded-bugs`; without it [`is_on`] is a constant and the
//! switches leave nothing in the program. The state is per thread: the simulator runs one world per
//! thread, and so does a test.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// The node acknowledges frames when their journal group is begun, not when it is durable.
    AckBeforeFlush,
    /// The agent trims its log at the journaled watermark.
    TrimAtJournaled,
    /// An older epoch is taken for the current one, by the shard and when a volume is claimed.
    EpochCheckDropped,
    /// Of two writes to a block in one batch the first counts.
    FirstWriterWins,
    /// A mark does not end its span: what was written around it is coalesced, the mark is lost.
    MarkCoalescedAway,
    /// Zeros that an agent sent as such do not reach the segment.
    ZeroExtentLost,
    /// Segments commit in the order in which their puts end.
    WatermarkPastHole,
    /// A slot that a crashed run left behind a hole is read like any other.
    VoidSlotCounted,
    /// A put that finds a seal in its slot counts as done.
    SealIgnored,
    /// A volume is taken over without sealing the log of its old owner.
    ClaimWithoutSeal,
    /// The salt of an object is derived from its place instead of drawn.
    SaltReused,
    /// Of a chunk id only the first byte counts.
    IdTruncated,
    /// A journal file is deleted when its frames are built into segments, not when those are in the
    /// vault.
    JournalDroppedEarly,
    /// The last group of a journal file is not replayed.
    ReplaySkipsTail,
    /// A journal group counts as durable when it is written, without a sync.
    GroupNotSynced,
    /// The name of a new journal file is not made durable.
    JournalNameNotSynced,
    /// A put that ends with an error counts as done.
    AmbiguousPutAsSuccess,
    /// Chunks are found by every log as soon as their segment is built, before it is committed.
    DedupBeforeCommit,
    /// A start does not fill the slots that puts of the run before may still reach.
    LatePutsNotFenced,
    /// A write into a region goes ahead while its intent is still being made durable.
    WriteBeforeIntent,
    /// A flush clears intents of regions that are being written.
    IntentClearedUnderWrite,
    /// A region whose write did not fit the log is not put in doubt.
    DoubtForgottenOnOverflow,
    /// After a crash of the agent the regions with an intent are not read again.
    RestartWithoutDoubt,
    /// The agent takes the end of its log for whole without looking at the checksums.
    HrlTrustsTornTail,
    /// Nobody compares the bytes of a frame with its checksum.
    FrameChecksumIgnored,
    /// What the node has and the agent's log has not is taken for what a power cut took, whoever sent it.
    RollbackTakenForCrash,
    /// What the node has of this line beyond the agent's log is taken for the log's lost end, also when the log holds a
    /// newer frame.
    LeftBranchTakenForTail,
    /// A reader goes on behind a checkpoint as if a quiet volume had nothing in front of it.
    QuietSpansPassedOver,
    /// A start reads the log without the volumes that only its journal knows.
    JournalUnseen,
    /// The end of a claim for a log that the shard has left counts for the log that it has now.
    LeftLogAnswers,
    /// A newer epoch that the vault has is not said to the control plane.
    NewerEpochUnsaid,
    /// A peer that once had to wait for the shard may be silent for ever.
    SilenceExcused,
    /// The open session of an agent that was revoked goes on.
    RevokedGoesOn,
    /// A store that is away while a log is read for a view ends the log.
    AwayTakenForEnd,
    /// What a store that is away does not give is read as zeros.
    AwayReadAsZeros,
    /// The first node that gets through again after nobody did is a witness that the others are gone.
    AnyWitnessCounts,
    /// A start goes on under the number of another run of its log that begins at the same time.
    RunsUnderOneNumber,
    /// A failover reads a volume's end, and seals the log of its writer only then.
    EndBeforeSeal,
    /// A node that is told of two holders of a volume takes frames of both in turns.
    ContestIgnored,
    /// An agent takes frames that another sent in the place of its own for its own.
    OthersFramesJoin,
    /// Of the points that the control plane knows the latest is the one whose agent's clock says so.
    LatestByTime,
    /// Points go by the wall clock of the control plane.
    PruneByWall,
    /// A point counts as heard of when the wall clock says so, though more time has passed since the last look.
    HeardByWall,
    /// A checkpoint says what was handed out, not what is committed.
    CheckpointAhead,
    /// A checkpoint leaves out the volumes of which nothing came since the one before.
    CheckpointForgetsIdle,
    /// The end of a log is where the search found nothing: what lies in front of that is not looked at.
    EndWhereNothingIs,
    /// A delta of a map does not say what became zero.
    DeltaWithoutZeros,
    /// A map where there is no mark is taken for the point that it names.
    UnmarkedTakenForPoint,
    /// Points grow old by the clock of their agent.
    AgeByAgentsClock,
    /// A device is served whoever has it: mounted, swapped to, under a mapping, opened by others.
    MountedIsServed,
    /// A file is served while others have it open for writing.
    WrittenIsServed,
    /// What a name leads to is the disk that was protected under it.
    NameIsIdentity,
    /// A disk that is captured is captured again under another name.
    SecondNameIsServed,
    /// Nobody looks whether others write a disk that is served.
    OthersWritesUnseen,
    /// What was found of a log counts though its horizon moved meanwhile.
    HorizonNotReadAgain,
    /// What the maps of kept points refer to is not needed.
    KeptPointsForgotten,
    /// What bases need is read before what slots refer to.
    BasesReadBeforeSlots,
    /// A verdict deletes all that was condemned.
    VerdictSparesNothing,
    /// A verdict is made before all logs have answered.
    VerdictWithoutAnswers,
    /// A seal below the horizon counts.
    SealBelowHorizon,
    /// Fills below the horizon count.
    FillBelowHorizon,
    /// Who reads a volume goes on at the horizon whatever was in front of it.
    HorizonPassedOver,
    /// A horizon moves over what no base covers.
    HorizonOverUncovered,
    /// A slot that is lost ends its log.
    LossTakenForEnd,
    /// Whoever refers to a segment takes any that is at its slot.
    AttemptNotCompared,
    /// What fences is swept like what holds data.
    FencesSwept,
    /// What logs refer to that no register knows does not hold a deletion up.
    UnbornOverlooked,
    /// A point of several disks is complete if it has as many marks as members.
    MembersCounted,
    /// A node that starts does not know what was swept while it was down.
    SweptFoundAgain,
    /// What a log states to have applied is whatever entry has its number.
    AnswerByNumber,
}

/// All of them in the order of the list above, each with its name on a command line.
const NAMED: [(Bug, &str); 70] = [
    (Bug::AckBeforeFlush, "ack-before-flush"),
    (Bug::TrimAtJournaled, "trim-at-journaled"),
    (Bug::EpochCheckDropped, "epoch-check-dropped"),
    (Bug::FirstWriterWins, "first-writer-wins"),
    (Bug::MarkCoalescedAway, "mark-coalesced-away"),
    (Bug::ZeroExtentLost, "zero-extent-lost"),
    (Bug::WatermarkPastHole, "watermark-past-hole"),
    (Bug::VoidSlotCounted, "void-slot-counted"),
    (Bug::SealIgnored, "seal-ignored"),
    (Bug::ClaimWithoutSeal, "claim-without-seal"),
    (Bug::SaltReused, "salt-reused"),
    (Bug::IdTruncated, "id-truncated"),
    (Bug::JournalDroppedEarly, "journal-dropped-early"),
    (Bug::ReplaySkipsTail, "replay-skips-tail"),
    (Bug::GroupNotSynced, "group-not-synced"),
    (Bug::JournalNameNotSynced, "journal-name-not-synced"),
    (Bug::AmbiguousPutAsSuccess, "ambiguous-put-as-success"),
    (Bug::DedupBeforeCommit, "dedup-before-commit"),
    (Bug::LatePutsNotFenced, "late-puts-not-fenced"),
    (Bug::WriteBeforeIntent, "write-before-intent"),
    (Bug::IntentClearedUnderWrite, "intent-cleared-under-write"),
    (Bug::DoubtForgottenOnOverflow, "doubt-forgotten-on-overflow"),
    (Bug::RestartWithoutDoubt, "restart-without-doubt"),
    (Bug::HrlTrustsTornTail, "hrl-trusts-torn-tail"),
    (Bug::FrameChecksumIgnored, "frame-checksum-ignored"),
    (Bug::RollbackTakenForCrash, "rollback-taken-for-crash"),
    (Bug::LeftBranchTakenForTail, "left-branch-taken-for-tail"),
    (Bug::QuietSpansPassedOver, "quiet-spans-passed-over"),
    (Bug::JournalUnseen, "journal-unseen"),
    (Bug::LeftLogAnswers, "left-log-answers"),
    (Bug::NewerEpochUnsaid, "newer-epoch-unsaid"),
    (Bug::SilenceExcused, "silence-excused"),
    (Bug::RevokedGoesOn, "revoked-goes-on"),
    (Bug::AwayTakenForEnd, "away-taken-for-end"),
    (Bug::AwayReadAsZeros, "away-read-as-zeros"),
    (Bug::AnyWitnessCounts, "any-witness-counts"),
    (Bug::RunsUnderOneNumber, "runs-under-one-number"),
    (Bug::EndBeforeSeal, "end-before-seal"),
    (Bug::ContestIgnored, "contest-ignored"),
    (Bug::OthersFramesJoin, "others-frames-join"),
    (Bug::LatestByTime, "latest-by-time"),
    (Bug::PruneByWall, "prune-by-wall"),
    (Bug::HeardByWall, "heard-by-wall"),
    (Bug::CheckpointAhead, "checkpoint-ahead"),
    (Bug::CheckpointForgetsIdle, "checkpoint-forgets-idle"),
    (Bug::EndWhereNothingIs, "end-where-nothing-is"),
    (Bug::DeltaWithoutZeros, "delta-without-zeros"),
    (Bug::UnmarkedTakenForPoint, "unmarked-taken-for-point"),
    (Bug::AgeByAgentsClock, "age-by-agents-clock"),
    (Bug::MountedIsServed, "mounted-is-served"),
    (Bug::WrittenIsServed, "written-is-served"),
    (Bug::NameIsIdentity, "name-is-identity"),
    (Bug::SecondNameIsServed, "second-name-is-served"),
    (Bug::OthersWritesUnseen, "others-writes-unseen"),
    (Bug::HorizonNotReadAgain, "horizon-not-read-again"),
    (Bug::KeptPointsForgotten, "kept-points-forgotten"),
    (Bug::BasesReadBeforeSlots, "bases-read-before-slots"),
    (Bug::VerdictSparesNothing, "verdict-spares-nothing"),
    (Bug::VerdictWithoutAnswers, "verdict-without-answers"),
    (Bug::SealBelowHorizon, "seal-below-horizon"),
    (Bug::FillBelowHorizon, "fill-below-horizon"),
    (Bug::HorizonPassedOver, "horizon-passed-over"),
    (Bug::HorizonOverUncovered, "horizon-over-uncovered"),
    (Bug::LossTakenForEnd, "loss-taken-for-end"),
    (Bug::AttemptNotCompared, "attempt-not-compared"),
    (Bug::FencesSwept, "fences-swept"),
    (Bug::UnbornOverlooked, "unborn-overlooked"),
    (Bug::MembersCounted, "members-counted"),
    (Bug::SweptFoundAgain, "swept-found-again"),
    (Bug::AnswerByNumber, "answer-by-number"),
];

impl Bug {
    /// All of them, in the order of the list above.
    pub const ALL: [Self; NAMED.len()] = {
        let mut all = [Self::AckBeforeFlush; NAMED.len()];
        let mut number = 0;
        while number < all.len() {
            all[number] = NAMED[number].0;
            number += 1;
        }
        all
    };

    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMED[self as usize].1
    }

    /// Whether the simulator finds it. It has no SQL and no devices, and what it meets once in a thousand seeds is not
    /// hunted: that is found by tests beside the code.
    #[must_use]
    pub fn is_simulated(self) -> bool {
        !matches!(
            self,
            Self::AgeByAgentsClock
                | Self::LeftBranchTakenForTail
                | Self::RunsUnderOneNumber
                | Self::HorizonNotReadAgain
                | Self::BasesReadBeforeSlots
                | Self::VerdictWithoutAnswers
                | Self::SealBelowHorizon
                | Self::FillBelowHorizon
                | Self::HorizonPassedOver
                | Self::LossTakenForEnd
                | Self::AttemptNotCompared
                | Self::FencesSwept
                | Self::UnbornOverlooked
                | Self::MembersCounted
                | Self::SweptFoundAgain
                | Self::AnswerByNumber
                | Self::MountedIsServed
                | Self::WrittenIsServed
                | Self::NameIsIdentity
                | Self::SecondNameIsServed
                | Self::OthersWritesUnseen
        )
    }

    /// The bug of a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}

#[cfg(feature = "seeded-bugs")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<u128> = const { Cell::new(0) };
    }

    const _: () = assert!(Bug::ALL.len() <= 128, "a bit each");

    fn bit(bug: Bug) -> u128 {
        1 << bug as u128
    }

    /// Switches exactly these bugs on, for this thread.
    pub fn switch_on(bugs: &[Bug]) {
        ON.set(bugs.iter().fold(0, |all, bug| all | bit(*bug)));
    }

    /// Whether the bug is switched on in this thread.
    #[must_use]
    pub fn is_on(bug: Bug) -> bool {
        ON.get() & bit(bug) != 0
    }
}

#[cfg(feature = "seeded-bugs")]
pub use switch::{is_on, switch_on};

/// Whether the bug is switched on: never, in a build without the feature `seeded-bugs`.
#[cfg(not(feature = "seeded-bugs"))]
#[must_use]
#[inline]
pub const fn is_on(_: Bug) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bug_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Bug::ALL.into_iter().map(Bug::name).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        assert!(Bug::ALL.into_iter().all(|bug| Bug::of_name(bug.name()) == Some(bug)));
        assert!(Bug::ALL.windows(2).all(|pair| pair[0] < pair[1]), "listed once, in order");
    }

    #[cfg(not(feature = "seeded-bugs"))]
    #[test]
    fn none_is_in_an_ordinary_build() {
        assert!(!Bug::ALL.into_iter().any(is_on));
    }
}
