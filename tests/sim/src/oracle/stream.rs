//! One volume's stream as it was written: which frames the logs of its holders have, which of them were
//! sent and taken, and what each mark promises.
//!
//! A volume has one holder, its server's agent; while a copy of the server runs as well, two. Each has a
//! disk and a log of its own. A mark promises the log of the holder that set it, so a point is the disk of
//! one holder, whoever else sent.

use crate::disk::{Tag, index};
use farshore_proto::{Epoch, PointId, Seq};
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
    /// Whose log it is in.
    holder: usize,
}

/// What one holder's log was given.
#[derive(Debug)]
struct Held {
    /// By seq, since the volume began.
    log: BTreeMap<Seq, Changes>,
    /// What was sent last at each seq.
    sent: BTreeMap<Seq, Changes>,
    /// The log, folded.
    image: Vec<Tag>,
    /// The log as it was when a snapshot was taken of the server.
    snapshot: BTreeMap<Seq, Changes>,
}

/// The stream of one volume.
#[derive(Debug)]
pub struct Stream {
    blocks: u64,
    holders: BTreeMap<usize, Held>,
    /// What a node took last at each seq, and under which epoch: all that a node can have.
    taken: BTreeMap<Seq, (Epoch, Changes)>,
    promises: BTreeMap<PointId, Promise>,
    committed: Seq,
}

impl Held {
    fn new(log: BTreeMap<Seq, Changes>, blocks: u64) -> Self {
        let (sent, snapshot) = (BTreeMap::new(), BTreeMap::new());
        let mut held = Self { log, sent, image: Vec::new(), snapshot };
        held.fold(blocks);
        held
    }

    fn last(&self) -> Seq {
        self.log.last_key_value().map_or(Seq(0), |(seq, _)| *seq)
    }

    fn fold(&mut self, blocks: u64) {
        self.image = vec![0; index(blocks)];
        for (block, tag) in self.log.values().flat_map(|changes| changes.iter()) {
            self.image[index(*block)] = *tag;
        }
    }
}

impl Stream {
    pub(super) fn new(holder: usize, blocks: u64) -> Self {
        Self {
            blocks,
            holders: BTreeMap::from([(holder, Held::new(BTreeMap::new(), blocks))]),
            taken: BTreeMap::new(),
            promises: BTreeMap::new(),
            committed: Seq(0),
        }
    }

    fn held(&mut self, holder: usize) -> &mut Held {
        self.holders.get_mut(&holder).expect("a holder of this volume")
    }

    /// A holder's log, folded.
    ///
    /// # Panics
    /// If it is none of this volume's.
    #[must_use]
    pub fn image(&self, holder: usize) -> &[Tag] {
        &self.holders[&holder].image
    }

    /// Highest seq that a holder appended.
    ///
    /// # Panics
    /// If it is none of this volume's.
    #[must_use]
    pub fn last(&self, holder: usize) -> Seq {
        self.holders[&holder].last()
    }

    /// The changes of a frame, if a holder appended it.
    #[must_use]
    pub fn changes(&self, holder: usize, seq: Seq) -> Option<&[(u64, Tag)]> {
        self.holders.get(&holder)?.log.get(&seq).map(|changes| &**changes)
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

    /// Whether a holder's last change is committed, and a mark of its behind it too. A mark that is not in its
    /// log any more, set before the server went back, counts for nothing.
    ///
    /// # Panics
    /// If it is none of this volume's.
    #[must_use]
    pub fn is_safe(&self, holder: usize) -> bool {
        let held = &self.holders[&holder];
        let mut frames = held.log.iter().rev();
        let change =
            frames.find(|(_, changes)| !changes.is_empty()).map_or(Seq(0), |(seq, _)| *seq);
        let mut marks = self.promises.values().filter(|mark| mark.holder == holder);
        marks.any(|mark| {
            let is_behind = mark.seq >= change && mark.seq <= self.committed;
            is_behind && mark.seq <= held.last() && mark.image[..] == held.image[..]
        })
    }

    /// A holder's server was copied: the copy has its log.
    pub(super) fn copied(&mut self, holder: usize, copy: usize) {
        let held = Held::new(self.held(holder).log.clone(), self.blocks);
        self.holders.insert(copy, held);
    }

    pub(super) fn opened(&mut self, holder: usize, last: Seq) {
        let blocks = self.blocks;
        let held = self.held(holder);
        if last < held.last() {
            held.log.split_off(&last.next());
            held.fold(blocks);
        }
    }

    pub(super) fn append(
        &mut self,
        holder: usize,
        seq: Seq,
        changes: &[(u64, Tag)],
    ) -> Result<(), String> {
        let held = self.held(holder);
        let expected = held.last().next();
        if seq != expected {
            return Err(format!("seq {seq} is appended, {expected} is next"));
        }
        for (block, tag) in changes {
            held.image[index(*block)] = *tag;
        }
        held.log.insert(seq, changes.into());
        Ok(())
    }

    pub(super) fn sent(&mut self, holder: usize, seq: Seq) {
        let held = self.held(holder);
        if let Some(changes) = held.log.get(&seq) {
            held.sent.insert(seq, Rc::clone(changes));
        }
    }

    /// A node took a frame that a holder sent. An epoch begins behind what counts of those before it: what
    /// their nodes take afterwards is nobody's.
    pub(super) fn taken(&mut self, holder: usize, epoch: Epoch, seq: Seq) {
        let is_over = self.taken.get(&seq).is_some_and(|(newer, _)| *newer > epoch);
        if let Some(changes) = self.held(holder).sent.get(&seq).cloned()
            && !is_over
        {
            self.taken.insert(seq, (epoch, changes));
        }
    }

    /// A holder's log goes on at `next`: whatever was taken before it, of whomever, is the stream. What was
    /// taken behind it stays known: a log that was lost goes on at 1 before its agent hears what the node has.
    pub(super) fn restart(&mut self, holder: usize, next: Seq) {
        let taken = self.taken.range(..next);
        let log = taken.map(|(seq, (_, changes))| (*seq, Rc::clone(changes))).collect();
        let blocks = self.blocks;
        let held = self.held(holder);
        held.log = log;
        held.fold(blocks);
    }

    pub(super) fn snapshot_taken(&mut self, holder: usize) {
        let held = self.held(holder);
        held.snapshot.clone_from(&held.log);
    }

    /// The log is what it was then; what was sent since is the node's all the same.
    pub(super) fn went_back(&mut self, holder: usize) {
        let blocks = self.blocks;
        let held = self.held(holder);
        held.log.clone_from(&held.snapshot);
        held.fold(blocks);
    }

    pub(super) fn mark(&mut self, holder: usize, seq: Seq, point: PointId) {
        let image = self.image(holder).into();
        self.promises.insert(point, Promise { seq, image, holder });
    }

    pub(super) fn commit(&mut self, seq: Seq) {
        self.committed = self.committed.max(seq);
    }
}
