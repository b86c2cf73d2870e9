//! Which log a shard writes, and how it begins with it: when its node starts, and when its log was sealed.
//!
//! The driver reads, stores and keeps the journal; what follows from that is decided here.
//!
//! Invariants:
//!   - T1: a log is read only after what the journal holds for it was made durable and looked through: a
//!     volume that nothing but the journal knows is this log's too.
//!   - T2: a log that is sealed is never gone on with; the next one is opened only under a name that is
//!     durable, and only when nothing writes the journal for the old one any more.
//!   - T3: what was asked for a log that the shard has left changes nothing.
//!   - T4: the files of a left log are deleted unread, and no file number is used twice.

use crate::batch::Entry;
use crate::ledger::Ledger;
use crate::log::LogEnd;
use crate::shard;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::RefusalReason;
use farshore_proto::limits::SHARD_VOLUMES_MAX;
use farshore_proto::{Epoch, LogId, Seq, Slot, Stamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// A volume that the shard's log owns, and how far the vault holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveredVolume {
    /// Its newest epoch.
    pub epoch: Epoch,
    /// Its size.
    pub size_bytes: u64,
    /// Last seq in the vault.
    pub committed: Seq,
    /// Of the frame there.
    pub stamp: Stamp,
}

/// How far a log got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveredLog {
    /// The slot it goes on at.
    pub next_slot: Slot,
    /// Slots beyond that which are taken already.
    pub void: BTreeSet<Slot>,
    /// The incarnation to go on with: at least the one asked for, and above all in the log. A node
    /// whose count of starts went back (an old copy of its directory) would put void segments.
    pub incarnation: u64,
    /// The volumes whose newest epoch is in it.
    pub volumes: BTreeMap<VolumeId, RecoveredVolume>,
    /// How far all its volumes got, whoever owns them now.
    pub ledger: Ledger,
}

/// A frame of the journal that the vault does not hold.
#[derive(Debug, Clone, Copy)]
pub struct JournaledEntry {
    /// The frame.
    pub entry: Entry,
    /// The journal file it is in.
    pub file: u64,
}

/// How a shard begins with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The log.
    pub log: LogId,
    /// The run of its writer, for its segments.
    pub incarnation: u64,
    /// The slot it goes on at.
    pub next_slot: Slot,
    /// Slots beyond that which are taken already.
    pub void: BTreeSet<Slot>,
    /// How far the volumes of the log got.
    pub ledger: Ledger,
    /// Number of the first journal file that is written.
    pub first_file: u64,
    volumes: Vec<(VolumeId, RecoveredVolume)>,
    files: Vec<u64>,
}

impl Opening {
    /// The writing end of the log.
    #[must_use]
    pub fn log_end(&self) -> LogEnd {
        LogEnd::new(self.next_slot, self.incarnation, self.void.clone(), self.ledger.clone())
    }

    /// What the shard's engine is told before it serves, in this order. `replayed` are the frames that the
    /// journal holds for this log, in journal order.
    pub fn inputs(
        self,
        replayed: impl IntoIterator<Item = JournaledEntry>,
    ) -> impl Iterator<Item = shard::Input> {
        let volumes = self.volumes.into_iter().map(|(volume, known)| {
            let RecoveredVolume { epoch, size_bytes, committed, stamp } = known;
            shard::Input::Recovered { volume, epoch, size_bytes, committed: (committed, stamp) }
        });
        let replayed = replayed
            .into_iter()
            .map(|JournaledEntry { entry, file }| shard::Input::Replay { entry, file });
        let files = shard::Input::Replayed { files: self.files };
        volumes.chain(replayed).chain(std::iter::once(files))
    }
}

/// What a put of a segment has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutEnd {
    /// The segment is there.
    There,
    /// The log was sealed.
    Sealed,
    /// Something that this run did not put is in its slot.
    Taken,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Before anything else: the node starts, and this is the shard's log by what it stored.
    Start {
        /// The log.
        log: LogId,
        /// The count of starts, durable by now.
        incarnation: u64,
    },
    /// The end of a [`Output::SeeJournal`].
    JournalSeen {
        /// The volumes of which the journal holds frames for the log.
        volumes: BTreeSet<VolumeId>,
    },
    /// The end of a [`Output::ReadLog`].
    LogRead {
        /// How far it got; nothing if it was sealed.
        found: Option<RecoveredLog>,
    },
    /// The end of a [`Output::ReadJournal`].
    JournalRead {
        /// The volumes of which there is something to replay.
        volumes: BTreeSet<VolumeId>,
        /// The numbers of all its files.
        files: Vec<u64>,
    },
    /// The end of a [`Output::Renew`].
    Renewed {
        /// The new log.
        log: LogId,
        /// The numbers of all files in the journal.
        files: Vec<u64>,
    },
    /// The end of a [`Output::Retire`]: nothing writes the journal any more.
    AtRest,
    /// A put of a segment ended.
    PutEnded {
        /// The log it was for.
        log: LogId,
        /// The slot.
        slot: Slot,
        /// How.
        end: PutEnd,
    },
    /// A put of a checkpoint ended.
    CheckpointEnded {
        /// The log it is of.
        log: LogId,
        /// The slot it is at.
        slot: Slot,
        /// Whether it is in the vault.
        is_there: bool,
    },
    /// A claim of a volume ended.
    ClaimEnded {
        /// The log it was for.
        log: LogId,
        /// The volume.
        volume: VolumeId,
        /// What the vault holds of it, and the stamp of the frame there; or why it cannot be written.
        outcome: Result<(Seq, Stamp), (RefusalReason, String)>,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Output {
    /// Make what the journal holds durable, and say of which volumes of the log that is.
    SeeJournal {
        /// The log.
        log: LogId,
    },
    /// Fence off what earlier runs still have on its way into the log, and read it.
    ReadLog {
        /// The log.
        log: LogId,
        /// The count of starts.
        incarnation: u64,
        /// Volumes of which the journal holds frames.
        journaled: BTreeSet<VolumeId>,
    },
    /// Read the frames of the log that the vault does not hold.
    ReadJournal {
        /// The log.
        log: LogId,
        /// What the vault holds of its volumes.
        volumes: BTreeMap<VolumeId, RecoveredVolume>,
    },
    /// Draw a new log and store it as this shard's, durably.
    Renew {
        /// The log that was sealed.
        sealed: LogId,
    },
    /// Make an engine for this log, tell it [`Opening::inputs`], and serve.
    Open(Opening),
    /// Tell the engine.
    Tell(shard::Input),
    /// End all sessions, and stop writing the journal.
    Retire,
    /// The node cannot go on: a slot of its log is taken, and it must find out by what.
    Taken {
        /// The log.
        log: LogId,
        /// The slot.
        slot: Slot,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Not started.
    New,
    /// The journal is made durable and looked through.
    SeeingJournal,
    /// The log is read.
    ReadingLog,
    /// The journal is read.
    ReadingJournal(RecoveredLog),
    /// It serves.
    Open,
    /// The log was sealed; something may still write the journal.
    Retiring,
    /// A new log is stored.
    Renewing,
}

/// The state machine of one shard's hold on its log.
#[derive(Debug)]
pub struct Tenure {
    log: LogId,
    incarnation: u64,
    /// The log that was found sealed, until the next one is open.
    sealed: Option<LogId>,
    state: State,
}

impl Default for Tenure {
    fn default() -> Self {
        Self { log: LogId([0; 16]), incarnation: 0, sealed: None, state: State::New }
    }
}

impl Tenure {
    /// The log that it writes, or is about to.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Whether the log takes anything: what an engine asks for when it does not is dropped.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If the driver answers what it was not asked: a bug.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start { log, incarnation } => {
                self.go_from(&State::New, State::SeeingJournal);
                (self.log, self.incarnation) = (log, incarnation);
                out.push(Output::SeeJournal { log });
            }
            Input::JournalSeen { volumes } => {
                self.go_from(&State::SeeingJournal, State::ReadingLog);
                let journaled = if is_on(Bug::JournalUnseen) { BTreeSet::new() } else { volumes };
                let (log, incarnation) = (self.log, self.incarnation);
                out.push(Output::ReadLog { log, incarnation, journaled });
            }
            Input::LogRead { found: Some(found) } => {
                let volumes = found.volumes.clone();
                self.go_from(&State::ReadingLog, State::ReadingJournal(found));
                out.push(Output::ReadJournal { log: self.log, volumes });
            }
            Input::LogRead { found: None } => {
                // Nothing serves yet, and nothing writes the journal.
                self.go_from(&State::ReadingLog, State::Retiring);
                self.renew(out);
            }
            Input::JournalRead { volumes, files } => self.journal_read(&volumes, files, out),
            Input::Renewed { log, files } => self.renewed(log, files, out),
            Input::AtRest => self.renew(out),
            Input::PutEnded { log, slot, end } => self.put_ended(log, slot, end, out),
            Input::CheckpointEnded { log, slot, is_there } => {
                if self.serves(log) {
                    out.push(Output::Tell(shard::Input::Checkpointed { slot, is_there }));
                }
            }
            Input::ClaimEnded { log, volume, outcome } => {
                if self.serves(log) || (self.is_open() && is_on(Bug::LeftLogAnswers)) {
                    out.push(Output::Tell(shard::Input::Claimed { volume, outcome }));
                }
            }
        }
        self.check();
    }

    fn go_from(&mut self, from: &State, to: State) {
        assert!(self.state == *from, "{:?} was not asked for, but {from:?} was ended", self.state);
        self.state = to;
    }

    /// Whether answers for a log still count (T3).
    fn serves(&self, log: LogId) -> bool {
        self.is_open() && log == self.log
    }

    fn put_ended(&mut self, log: LogId, slot: Slot, end: PutEnd, out: &mut Vec<Output>) {
        match end {
            PutEnd::There if self.serves(log) => {
                out.push(Output::Tell(shard::Input::PutDone { slot }));
            }
            PutEnd::Sealed if self.serves(log) => {
                self.state = State::Retiring;
                out.push(Output::Retire);
            }
            PutEnd::There | PutEnd::Sealed => {}
            PutEnd::Taken => out.push(Output::Taken { log, slot }),
        }
    }

    fn journal_read(
        &mut self,
        journaled: &BTreeSet<VolumeId>,
        files: Vec<u64>,
        out: &mut Vec<Output>,
    ) {
        let State::ReadingJournal(found) = std::mem::replace(&mut self.state, State::Open) else {
            panic!("the journal is read after the log");
        };
        let RecoveredLog { next_slot, void, incarnation, volumes, ledger } = found;
        let incarnation = incarnation.max(self.incarnation);
        let volumes = in_room(volumes, journaled);
        out.push(Output::Open(Opening {
            log: self.log,
            incarnation,
            next_slot,
            void,
            ledger,
            first_file: behind(&files),
            volumes,
            files,
        }));
    }

    /// The log was sealed and nothing writes for it: others own its volumes now.
    fn renew(&mut self, out: &mut Vec<Output>) {
        self.go_from(&State::Retiring, State::Renewing);
        self.sealed = Some(self.log);
        out.push(Output::Renew { sealed: self.log });
    }

    /// What the journal holds was fenced off with the old log: agents keep it until it is committed, and send
    /// it to whoever has their volume now.
    fn renewed(&mut self, log: LogId, files: Vec<u64>, out: &mut Vec<Output>) {
        self.go_from(&State::Renewing, State::Open);
        assert!(self.sealed.take() != Some(log), "T2: a sealed log is not gone on with");
        self.log = log;
        out.push(Output::Open(Opening {
            log,
            incarnation: self.incarnation,
            next_slot: Slot(0),
            void: BTreeSet::new(),
            ledger: Ledger::default(),
            first_file: behind(&files),
            volumes: Vec::new(),
            files,
        }));
    }

    fn check(&self) {
        assert!((self.sealed.is_some()) == (self.state == State::Renewing), "T2");
        assert!(self.state == State::New || self.incarnation > 0, "T2: a start is counted first");
    }
}

/// The number behind those of all files (T4).
fn behind(files: &[u64]) -> u64 {
    files.iter().max().map_or(0, |last| last + 1)
}

/// The volumes that the shard begins with: those of which the journal holds frames first. A log may have more
/// than a shard holds at a time, when volumes have come and gone; the others are claimed anew when their
/// agents come, in the place of one that nobody came for.
fn in_room(
    volumes: BTreeMap<VolumeId, RecoveredVolume>,
    journaled: &BTreeSet<VolumeId>,
) -> Vec<(VolumeId, RecoveredVolume)> {
    let (mut first, rest): (Vec<_>, Vec<_>) =
        volumes.into_iter().partition(|(volume, _)| journaled.contains(volume));
    first.extend(rest);
    first.truncate(SHARD_VOLUMES_MAX);
    first
}

#[cfg(test)]
mod tests;
