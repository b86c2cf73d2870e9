//! What must be true, judged from outside: processes tell what they did, the oracle says whether they
//! may. It never tells them anything.
//!
//! | invariant | how it is judged |
//! |---|---|
//! | I1 | every ack *committed* is compared with what the vault really holds, and every point that the control plane was told of is there in the end; after each start of a node its *journaled* watermark with what it acked before |
//! | I2 | at each mark the log, folded, is the disk; every point of the vault restores to that fold, also while others write |
//! | I3 | each seq of a volume lies in the log of one epoch, below its seal; committed acks come with the volume's newest epoch or one that still counts |
//! | I5 | whatever is read from the vault is right or an error, also after objects were damaged |
//! | I6 | wall clocks jump all the time; everything above holds all the same; *latest* is the last in the stream of what the control plane knows, no point goes that is not old in truth, and the last never |
//! | I7 | what a shard holds, a log's length, the puts on their way have bounds |
//! | I12 | the end that a failover finds has all that was acked committed before; nothing behind it is acked under an epoch before the fence |
//! | revoked | no frame is taken from an agent whose certificate its node has known to be over for two looks |
//! | P31 | a node that was told of two holders takes no frame of either until one has been away for a minute |
//! | I9 | no two different objects or journal groups are sealed under one salt |

mod contest;
mod fences;
mod points;
mod reads;
mod stream;
mod vault;

pub use stream::Stream;

use crate::disk::Tag;
use crate::sweeper::Did;
use crate::world::{Size, World};
use bytes::Bytes;
use farshore_proto::frame::Ack;
use farshore_proto::{Epoch, LogId, PointId, Seq, Timestamp};
use farshore_vault::gc::Step;
use std::collections::{BTreeMap, BTreeSet};

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub rule: &'static str,
    /// What happened, in words.
    pub what: String,
}

/// What was judged, for the summary of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Marks set, each compared with its disk.
    pub marks: u64,
    /// Points of the vault that were read and compared.
    pub points_read: u64,
    /// Maps that nodes wrote.
    pub maps: u64,
    /// Checkpoints of logs that nodes wrote.
    pub checkpoints: u64,
    /// Bases of volumes made.
    pub bases: u64,
    /// Horizons of logs made.
    pub horizons: u64,
    /// Segments that verdicts named, and were deleted.
    pub deleted: u64,
    /// Those that were condemned, and spared.
    pub spared: u64,
    /// Acks judged.
    pub acks: u64,
    /// Objects whose salts were compared.
    pub objects: u64,
    /// Reads of damaged objects that ended in an error.
    pub damage_found: u64,
    /// Volumes that failovers took.
    pub fences: u64,
    /// Reads beside the writers that came to their end.
    pub reads: u64,
    /// Those that ended because the store was away.
    pub reads_away: u64,
    /// Points that the control plane was told of.
    pub points_told: u64,
    /// Those that it dropped because they were old.
    pub points_dropped: u64,
}

/// The oracle of one run.
#[derive(Debug)]
pub struct Oracle {
    streams: Vec<Stream>,
    /// The server of each agent; copies come behind those that were copied.
    machines: Vec<usize>,
    contests: contest::Contests,
    catalogue: points::Catalogue,
    violation: Option<Violation>,
    /// Highest *journaled* that a node acked out of a log's journal, by log and volume.
    journaled: BTreeMap<(LogId, usize), (Epoch, Seq)>,
    /// Logs that two journals belong to: what one of them holds says nothing of the other.
    copied: BTreeSet<LogId>,
    /// Salts, and a digest of what was sealed under them.
    salts: BTreeMap<Vec<u8>, u64>,
    /// Highest seq acked committed, by server and epoch.
    acked: BTreeMap<(usize, Epoch), Seq>,
    /// Volumes that were taken from their writers.
    fences: Vec<fences::Fence>,
    /// What was judged.
    pub counts: Counts,
}

impl Oracle {
    /// The sweeper did something.
    pub fn swept(&mut self, did: &Did) {
        match did {
            Did::Base(made) => self.counts.bases += u64::from(made.is_some()),
            Did::Horizons(moved) => self.counts.horizons += moved,
            Did::Step(Step::Swept { segments, .. }) => self.counts.deleted += *segments as u64,
            Did::Step(Step::Judged { spared, .. }) => self.counts.spared += *spared as u64,
            Did::Step(_) => {}
        }
    }

    pub(crate) fn new(size: &Size) -> Self {
        Self {
            streams: (0..size.machines).map(|machine| Stream::new(machine, size.blocks)).collect(),
            machines: (0..size.machines).collect(),
            contests: contest::Contests::default(),
            catalogue: points::Catalogue::default(),
            violation: None,
            journaled: BTreeMap::new(),
            copied: BTreeSet::new(),
            salts: BTreeMap::new(),
            acked: BTreeMap::new(),
            fences: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The first rule that was broken.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// A rule is broken.
    pub fn violate(&mut self, rule: &'static str, what: String) {
        self.violation.get_or_insert(Violation { rule, what });
    }

    /// The stream of a server's volume.
    #[must_use]
    pub fn stream(&self, machine: usize) -> &Stream {
        &self.streams[machine]
    }

    fn machine(&self, holder: usize) -> usize {
        self.machines[holder]
    }

    fn stream_of(&mut self, holder: usize) -> &mut Stream {
        let machine = self.machine(holder);
        &mut self.streams[machine]
    }

    // What agents tell: `holder` is the agent's number, that of its server unless it is a copy's.

    /// The server of an agent was copied, its agent's directory included; the copy's agent has the next number.
    ///
    /// # Panics
    /// If it has another one.
    pub fn server_copied(&mut self, holder: usize, copy: usize) {
        self.machines.push(self.machine(holder));
        assert_eq!(self.machines.len(), copy + 1, "numbers are given in order");
        self.stream_of(holder).copied(holder, copy);
    }

    /// An agent has opened its log, which ends with `last`.
    pub fn log_opened(&mut self, holder: usize, last: Seq) {
        self.stream_of(holder).opened(holder, last);
    }

    /// A frame was appended to the log: blocks and their new content; none for a mark.
    pub fn appended(&mut self, holder: usize, seq: Seq, changes: &[(u64, Tag)]) {
        if let Err(what) = self.stream_of(holder).append(holder, seq, changes) {
            self.violate("stream", format!("agent {holder}: {what}"));
        }
    }

    /// A frame was found in a log that was opened.
    pub fn found(&mut self, holder: usize, seq: Seq, changes: &[(u64, Tag)]) {
        let stream = self.stream_of(holder);
        if seq > stream.last(holder) {
            return self.appended(holder, seq, changes);
        }
        if stream.changes(holder, seq).is_some_and(|known| known != changes) {
            let what = format!("agent {holder}: frame {seq} of the log is not what was appended");
            self.violate("I5", what);
        }
    }

    /// A frame was given to the network.
    pub fn sent(&mut self, holder: usize, seq: Seq) {
        self.stream_of(holder).sent(holder, seq);
    }

    /// A snapshot was taken of a server.
    pub fn snapshot_taken(&mut self, holder: usize) {
        self.stream_of(holder).snapshot_taken(holder);
    }

    /// A server went back to its snapshot.
    pub fn went_back(&mut self, holder: usize) {
        self.stream_of(holder).went_back(holder);
    }

    /// The log was emptied and goes on at `next`.
    pub fn restarted(&mut self, holder: usize, next: Seq) {
        self.stream_of(holder).restart(holder, next);
    }

    /// A mark was appended at `seq`. `disk` is the disk as reads see it; `busy` blocks have a write
    /// between disk and log.
    pub fn marked(
        &mut self,
        holder: usize,
        (seq, point): (Seq, PointId),
        disk: &[Tag],
        busy: &BTreeSet<u64>,
    ) {
        self.judge_mark(holder, seq, disk, busy);
        self.mark_taken(holder, seq, point);
    }

    /// A mark that was judged is in the log, at its end.
    pub fn mark_taken(&mut self, holder: usize, seq: Seq, point: PointId) {
        self.counts.marks += 1;
        self.stream_of(holder).mark(holder, seq, point);
    }

    /// A mark was found in a log that was opened: if nobody told of it, a crash came before.
    pub fn mark_found(&mut self, holder: usize, seq: Seq, point: PointId) {
        let stream = self.stream_of(holder);
        if stream.promise(point).is_none() && seq == stream.last(holder) {
            stream.mark(holder, seq, point);
        }
    }

    /// The log up to `seq` is said to be the disk.
    pub fn judge_mark(&mut self, holder: usize, seq: Seq, disk: &[Tag], busy: &BTreeSet<u64>) {
        let stream = self.stream_of(holder);
        let wrong = (0..)
            .zip(stream.image(holder))
            .zip(disk)
            .find(|((block, log), disk)| log != disk && !busy.contains(block));
        if let Some(((block, log), disk)) = wrong {
            let what = format!(
                "agent {holder}: at the mark at seq {seq} block {block} of the disk holds \
                 {disk:#x}, the log says {log:#x}"
            );
            self.violate("I2", what);
        }
    }

    /// A node of a test, which has no vault, acked committed.
    #[cfg(test)]
    pub(crate) fn committed_in_test(&mut self, machine: usize, seq: Seq) {
        self.streams[machine].commit(seq);
    }

    /// An agent trims its log.
    pub fn trimmed(&mut self, holder: usize, to: Seq) {
        let committed = self.stream_of(holder).committed();
        if to > committed {
            let what =
                format!("agent {holder} trims its log up to {to}, acked committed is {committed}");
            self.violate("I1", what);
        }
    }

    // What nodes tell.

    /// A node took a frame that an agent sent.
    pub fn taken(&mut self, at: (usize, Timestamp), (holder, epoch): (usize, Epoch), seq: Seq) {
        self.judge_holder(at, (holder, epoch));
        self.stream_of(holder).taken(holder, epoch, seq);
    }

    /// A shard opened or went on with a log; what it recovered of a volume.
    pub fn recovered(&mut self, log: LogId, machine: usize, epoch: Epoch, journaled: Seq) {
        if let Some((acked_epoch, acked)) = self.journaled.get(&(log, machine)).copied()
            && acked_epoch == epoch
            && journaled < acked
            && !self.copied.contains(&log)
        {
            let what = format!(
                "volume {machine}: {acked} was acked journaled, after the start only {journaled} \
                 is there"
            );
            self.violate("I1", what);
        }
    }

    /// A node's journal was lost or damaged on purpose: its journaled acks promise nothing any more.
    pub fn journal_lost(&mut self, log: LogId) {
        self.journaled.retain(|(of, _), _| *of != log);
    }

    /// A node was copied with its journal.
    pub fn log_copied(&mut self, log: LogId) {
        self.copied.insert(log);
    }

    /// What a shard holds after a step, and what it may hold.
    pub fn held(&mut self, what: &str, bytes: usize, bytes_max: usize) {
        if bytes > bytes_max {
            self.violate("I7", format!("{what}: {bytes} bytes are held, {bytes_max} are allowed"));
        }
    }

    /// Something was sealed under a salt: an attempt to make an object, or a file of a journal.
    pub fn sealed(&mut self, purpose: &str, salt: &[u8], content: &[u8]) {
        self.counts.objects += 1;
        let digest = digest(content);
        let mut key = purpose.as_bytes().to_vec();
        key.extend_from_slice(salt);
        let before = self.salts.insert(key, digest);
        if before.is_some_and(|before| before != digest) {
            self.violate("I9", format!("two {purpose}s are sealed under one salt"));
        }
    }

    /// A put was sent to the store.
    pub(crate) fn object_attempted(&mut self, bytes: &Bytes) {
        let Some((purpose, salt)) = vault::salt_of(bytes) else { return };
        self.sealed(purpose, &salt, bytes);
    }
}

/// FNV-1a: enough to tell two objects apart, the same in every run.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl World {
    /// A node acks.
    pub fn judge_ack(&mut self, log: LogId, machine: usize, epoch: Epoch, ack: Ack) {
        self.oracle.counts.acks += 1;
        let entry = self.oracle.journaled.entry((log, machine)).or_insert((epoch, Seq(0)));
        *entry = if entry.0 == epoch {
            (epoch, entry.1.max(ack.journaled))
        } else {
            (epoch, ack.journaled)
        };
        self.oracle.acked_committed(machine, epoch, ack.committed);
        let stream = &mut self.oracle.streams[machine];
        if ack.committed > stream.committed() {
            stream.commit(ack.committed);
            self.judge_committed(machine, epoch, ack.committed);
        }
    }
}
