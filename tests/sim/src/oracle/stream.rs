//! One volume's stream as it was written: which frames its log holds, which were sent, and what each
//! mark promises.

use crate::disk::{Tag, index};
use farshore_proto::{PointId, Seq};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A frame's changes: blocks and their new content.
type Changes = Rc<[(u64, Tag)]>;

/// What a mark promises.
#[derive(Debug, Clone)]
pub struct Promise {
    /// Its place.
    pub seq: Seq,
    /// The volume up to it.
    pub image: Rc<[Tag]>,
}

/// The stream of one volume.
#[derive(Debug)]
pub struct Stream {
    blocks: u64,
    /// What the agent's log was given since the volume began, by seq.
    log: BTreeMap<Seq, Changes>,
    /// What was sent last at each seq: all that a node can have.
    sent: BTreeMap<Seq, Changes>,
    /// The log, folded.
    image: Vec<Tag>,
    promises: BTreeMap<PointId, Promise>,
    committed: Seq,
    /// The log as it was when a snapshot was taken of the server.
    snapshot: BTreeMap<Seq, Changes>,
}

impl Stream {
    pub(super) fn new(blocks: u64) -> Self {
        Self {
            blocks,
            log: BTreeMap::new(),
            sent: BTreeMap::new(),
            image: vec![0; index(blocks)],
            promises: BTreeMap::new(),
            committed: Seq(0),
            snapshot: BTreeMap::new(),
        }
    }

    /// The log, folded.
    #[must_use]
    pub fn image(&self) -> &[Tag] {
        &self.image
    }

    /// Highest seq appended.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.log.last_key_value().map_or(Seq(0), |(seq, _)| *seq)
    }

    /// The changes of a frame, if it was appended.
    #[must_use]
    pub fn changes(&self, seq: Seq) -> Option<&[(u64, Tag)]> {
        self.log.get(&seq).map(|changes| &**changes)
    }

    /// Highest seq that was ever acked committed.
    #[must_use]
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// What a point promises; none if no such mark was ever set.
    #[must_use]
    pub fn promise(&self, point: PointId) -> Option<&Promise> {
        self.promises.get(&point)
    }

    /// Whether the last change is committed, and a mark behind it too.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        let mut frames = self.log.iter().rev();
        let change =
            frames.find(|(_, changes)| !changes.is_empty()).map_or(Seq(0), |(seq, _)| *seq);
        self.promises.values().any(|mark| mark.seq >= change && mark.seq <= self.committed)
    }

    pub(super) fn opened(&mut self, last: Seq) {
        if last < self.last() {
            self.log.split_off(&last.next());
            self.fold();
        }
    }

    pub(super) fn append(&mut self, seq: Seq, changes: &[(u64, Tag)]) -> Result<(), String> {
        let expected = self.last().next();
        if seq != expected {
            return Err(format!("seq {seq} is appended, {expected} is next"));
        }
        for (block, tag) in changes {
            self.image[index(*block)] = *tag;
        }
        self.log.insert(seq, changes.into());
        Ok(())
    }

    pub(super) fn sent(&mut self, first: Seq, last: Seq) {
        let run = self.log.range(first..=last).map(|(seq, changes)| (*seq, Rc::clone(changes)));
        self.sent.extend(run.collect::<Vec<_>>());
    }

    /// The log goes on at `next`: whatever was sent before it is the stream. What was sent behind it stays
    /// known: a log that was lost goes on at 1 before its agent hears what the node has.
    pub(super) fn restart(&mut self, next: Seq) {
        self.log = self.sent.range(..next).map(|(seq, sent)| (*seq, Rc::clone(sent))).collect();
        self.fold();
    }

    pub(super) fn snapshot_taken(&mut self) {
        self.snapshot.clone_from(&self.log);
    }

    /// The log is what it was then; what was sent since is the node's all the same.
    pub(super) fn went_back(&mut self) {
        self.log.clone_from(&self.snapshot);
        self.fold();
    }

    pub(super) fn mark(&mut self, seq: Seq, point: PointId) {
        let image = self.image.clone().into();
        self.promises.insert(point, Promise { seq, image });
    }

    pub(super) fn commit(&mut self, seq: Seq) {
        self.committed = self.committed.max(seq);
    }

    fn fold(&mut self) {
        self.image = vec![0; index(self.blocks)];
        for (block, tag) in self.log.values().flat_map(|changes| changes.iter()) {
            self.image[index(*block)] = *tag;
        }
    }
}
