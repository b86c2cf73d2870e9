//! One volume's stream as the node sees it: what came, what is journaled, what is committed.
//!
//! Invariants:
//!   - S1: frames are accepted in seq order without a gap, under one epoch.
//!   - S2: committed ≤ journaled ≤ received.
//!   - S3: no watermark moves back.

use farshore_proto::limits::blocks_of;
use farshore_proto::{Epoch, Seq};

/// Watermarks of one volume under one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    epoch: Epoch,
    size_bytes: u64,
    received: Seq,
    journaled: Seq,
    committed: Seq,
}

impl Stream {
    /// A stream whose vault holds everything up to `committed`.
    #[must_use]
    pub fn new(epoch: Epoch, size_bytes: u64, committed: Seq) -> Self {
        Self { epoch, size_bytes, received: committed, journaled: committed, committed }
    }

    /// The epoch whose frames it takes.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Size of the volume.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of the volume in blocks; the last one may be held in part.
    #[must_use]
    pub fn size_blocks(&self) -> u64 {
        blocks_of(self.size_bytes)
    }

    /// Highest seq that came.
    #[must_use]
    pub fn received(&self) -> Seq {
        self.received
    }

    /// Highest seq safe in the journal.
    #[must_use]
    pub fn journaled(&self) -> Seq {
        self.journaled
    }

    /// Highest seq safe in the vault.
    #[must_use]
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// Whether everything received is safe in the vault.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.received == self.committed
    }

    /// The next seq that it accepts.
    #[must_use]
    pub fn expected(&self) -> Seq {
        self.received.next()
    }

    /// Takes the next frame.
    ///
    /// # Panics
    /// If `seq` is not the expected one (S1): the shard refuses such frames before.
    pub fn receive(&mut self, seq: Seq) {
        assert_eq!(seq, self.expected(), "S1: gap in the stream");
        self.received = seq;
        self.check();
    }

    /// Everything up to `seq` is safe in the journal.
    ///
    /// # Panics
    /// If that was never received or moves back: a bug in the shard.
    pub fn journal(&mut self, seq: Seq) {
        assert!(seq >= self.journaled, "S3");
        self.journaled = seq;
        self.check();
    }

    /// Everything up to `seq` is safe in the vault.
    ///
    /// # Panics
    /// If that was never journaled or moves back: a bug in the shard.
    pub fn commit(&mut self, seq: Seq) {
        assert!(seq >= self.committed, "S3");
        self.committed = seq;
        self.check();
    }

    fn check(&self) {
        assert!(self.committed <= self.journaled, "S2");
        assert!(self.journaled <= self.received, "S2");
    }
}
