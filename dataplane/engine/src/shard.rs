//! One shard of a node: sessions in, journal groups and segments out, two watermarks back.
//!
//! The driver gives it frames (as handles), journal and put completions and time; it answers with
//! what to write, build, put, acknowledge and delete. It never sees payload bytes.
//!
//! Invariants:
//!   - H1: a frame is acknowledged *journaled* only after its group is durable, and *committed* only
//!     after its segment and all before it in the log are in the vault.
//!   - H2: a journal file is dropped only when every frame in it is committed.
//!   - H3: held memory is the sum of all frames not yet committed; at the limit reading stops.
//!   - H5: no volume holds back another: when the cache runs full, one that has more than an equal share
//!     of it is not read from while the others are. When more waits than a segment holds, each has its share of it.
//!   - H6: segments that are not full are half a mark interval apart, whoever sets marks when; one that
//!     somebody waits for comes between two of them. A mark that an agent kept makes none with what comes behind it.
//!   - H4: frames are taken only from the session that holds the volume, under its epoch.

mod admit;
mod answer;
mod checkpoint;
mod contest;
mod due;
mod settings;
mod share;

pub use contest::CONTEST_MS;
pub use settings::{BATCH_AGE_MS_MAX, CHECKPOINT_SLOTS, LINGER_MS_MAX, SPACING_MS_MAX, Settings};

use crate::batch::{Change, Entry, Handle, Held, SpanPlan};
use crate::gathering::gathers_in_ms;
use crate::log::{CommittedPoint, CommittedSegment, LogEnd};
use crate::stream::Stream;
use crate::waiting::Waiting;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::frame::Link;
use farshore_proto::frame::{Ack, Hello, RefusalReason, Welcome};
use farshore_proto::limits::{
    BLOCK_BYTES, JOURNAL_ENTRY_PREFIX_BYTES, JOURNAL_GROUP_BYTES_MAX, SHARD_VOLUMES_MAX,
    WINDOW_BYTES,
};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use farshore_proto::register::At;
use farshore_proto::segment::SlotWriter;
use farshore_proto::{Epoch, Imprint, Seq, Slot, Stamp, Timestamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Of the cache, volumes share so much; the rest is for those that hold nothing yet.
const SHARED_OF_CACHE: (usize, usize) = (3, 4);

/// One connection, as the driver numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Before anything else: a volume that the shard's own log holds.
    Recovered {
        /// The volume.
        volume: VolumeId,
        /// Its newest epoch.
        epoch: Epoch,
        /// Its size.
        size_bytes: u64,
        /// What the vault holds of it, and the stamp of the frame there.
        committed: (Seq, Stamp),
    },
    /// After those: a frame found in the journal of an earlier run, in journal order.
    Replay {
        /// The frame.
        entry: Entry,
        /// The journal file it is in.
        file: u64,
    },
    /// The replay is over; these journal files exist.
    Replayed {
        /// Their numbers.
        files: Vec<u64>,
    },
    /// A session's first frame.
    Hello {
        /// The session.
        session: SessionId,
        /// What it says.
        hello: Hello,
        /// The epoch under which the control plane gave the volume to this node and that agent.
        assigned: Option<Epoch>,
        /// Who and where the agent is, for people.
        from: String,
    },
    /// The end of a [`Output::Claim`].
    Claimed {
        /// The volume.
        volume: VolumeId,
        /// What the vault holds of it, and the stamp of the frame there; or why it cannot be written.
        outcome: Result<(Seq, Stamp), (RefusalReason, String)>,
    },
    /// A stream frame, checked by the codec.
    Frame {
        /// The session.
        session: SessionId,
        /// Its place in the stream.
        seq: Seq,
        /// What its header says of the intents that it was made under.
        stamp: Stamp,
        /// Which frame it is, and behind which.
        link: Link,
        /// What it does.
        change: Change,
        /// Where the driver keeps it.
        handle: Handle,
        /// Bytes of its body.
        bytes: usize,
    },
    /// A session has nothing to send, and says that it is there.
    Alive {
        /// The session.
        session: SessionId,
    },
    /// The connection is gone.
    Gone {
        /// The session.
        session: SessionId,
    },
    /// The control plane took the volume away or gave it a newer epoch.
    Revoked {
        /// The volume.
        volume: VolumeId,
    },
    /// A journal group is durable.
    GroupDone {
        /// Its number.
        group: u64,
        /// The journal file it is in; never lower than before.
        file: u64,
    },
    /// A segment is in the vault.
    PutDone {
        /// Its slot.
        slot: Slot,
    },
    /// The end of an [`Output::Checkpoint`].
    Checkpointed {
        /// The slot it is at.
        slot: Slot,
        /// Whether it is in the vault.
        is_there: bool,
    },
    /// The vault's register is applied: nothing that is looked up from now on is condemned by it.
    Applied {
        /// The newest entry that is.
        at: At,
        /// The newest condemnation that waits for the log to say that it applied it; 0 if none does.
        asked: u64,
    },
    /// Ship what is there without waiting for more: the node is stopping.
    Ship,
    /// Time went by.
    Tick,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Make the epoch object of a volume and find out what the vault holds of it.
    Claim {
        /// The volume.
        volume: VolumeId,
        /// The epoch to claim.
        epoch: Epoch,
        /// The volume's size.
        size_bytes: u64,
        /// No earlier slot of this shard's log can hold the volume under this epoch.
        first_slot: Slot,
    },
    /// Answer a hello.
    Welcome {
        /// The session.
        session: SessionId,
        /// The answer.
        welcome: Welcome,
    },
    /// Say why and close; frames of the session that are still to come are ignored.
    Refuse {
        /// The session.
        session: SessionId,
        /// For programs and counters.
        reason: RefusalReason,
        /// For people.
        text: String,
    },
    /// The volume is further than the epoch that the control plane gives it now, whose agent is fenced off
    /// and waits for a newer one: only the control plane can give that, and does not know.
    Passed {
        /// The volume.
        volume: VolumeId,
        /// Its newest epoch here.
        newest: Epoch,
    },
    /// Two living agents claim a volume, as the text says; without a text not any more.
    Contested {
        /// The volume.
        volume: VolumeId,
        /// For people.
        text: Option<String>,
    },
    /// Write these frames as one group and make them durable.
    Journal {
        /// Number of the group.
        group: u64,
        /// The frames, in order.
        entries: Vec<Entry>,
    },
    /// Tell the agent.
    Ack {
        /// The session.
        session: SessionId,
        /// The watermarks.
        ack: Ack,
    },
    /// Build a segment and put it into this slot, until it is there.
    Build {
        /// The slot.
        slot: Slot,
        /// Who builds it, and what it knows of the log.
        writer: SlotWriter,
        /// Its spans.
        spans: Vec<SpanPlan>,
    },
    /// Put a checkpoint of the log beside the work, and say whether it is there.
    Checkpoint {
        /// The slot it is at.
        slot: Slot,
        /// What it says.
        body: CheckpointBody,
    },
    /// The log's prefix now ends with this segment.
    Committed {
        /// Its slot.
        slot: Slot,
        /// Last seq of each volume in it.
        lasts: BTreeMap<VolumeId, Seq>,
        /// Its marks: recovery points from now on.
        points: Vec<CommittedPoint>,
        /// Frames that are not needed any more.
        release: Vec<Handle>,
    },
    /// Delete a journal file.
    DropJournal {
        /// Its number.
        file: u64,
    },
    /// Forget a frame that was not taken.
    Drop {
        /// The frame.
        handle: Handle,
    },
    /// Stop reading from all sessions: the cache is full.
    Pause,
    /// Read on from all sessions but those that are held.
    Resume,
    /// Stop reading from one session: its volume has its share of the cache.
    Hold {
        /// The session.
        session: SessionId,
    },
    /// Read on from it.
    Release {
        /// The session.
        session: SessionId,
    },
}

#[derive(Debug)]
struct Volume {
    stream: Stream,
    /// Of the newest frame received; nothing if that is not known.
    stamp: Stamp,
    /// Which frame that is; nothing if only the vault has it.
    imprint: Imprint,
    session: Option<SessionId>,
    /// Who had the last session.
    holder: Option<contest::Holder>,
    contest: Option<contest::Contest>,
    /// Time between two marks.
    interval_ms: u64,
    /// When the last one came: while none do, nothing waits for one.
    marked_at: Option<Timestamp>,
    /// Whether its newest journaled frame is a mark, as far as is known.
    is_still: bool,
    linger_ms: u64,
    spacing_ms: u64,
    /// Wire bytes of its frames that wait for the journal.
    unjournaled_bytes: usize,
    /// Memory of its frames that are not committed.
    held_bytes: usize,
    /// Whether its session is not read from.
    is_held: bool,
    /// The control plane took it away: it is forgotten once nothing of it is held.
    is_revoked: bool,
}

impl Volume {
    /// With what the vault holds of it; `stamp` says whose its newest frame is.
    fn new(stream: Stream, stamp: Stamp) -> Self {
        Self {
            stream,
            stamp,
            imprint: Imprint::default(),
            session: None,
            holder: None,
            contest: None,
            interval_ms: 0,
            marked_at: None,
            is_still: false,
            linger_ms: 0,
            spacing_ms: 0,
            unjournaled_bytes: 0,
            held_bytes: 0,
            is_held: false,
            is_revoked: false,
        }
    }

    /// Within how many milliseconds its next mark ships what waits; 0 if none is to be expected, as in a first copy.
    fn until_marked_ms(&self, now: Timestamp) -> u64 {
        let is_marked = self.marked_at.is_some_and(|at| now.since_ms(at) <= 2 * self.interval_ms);
        if is_marked { self.interval_ms + self.linger_ms } else { 0 }
    }
}

/// A claim under way.
#[derive(Debug)]
struct Claim {
    /// Who asked for it, unless it is gone.
    session: Option<SessionId>,
    /// With what.
    hello: Hello,
    /// Who and where that is.
    from: String,
    /// The control plane took the volume away meanwhile: nobody is let in by it.
    is_revoked: bool,
}

/// The state machine of one shard.
#[derive(Debug)]
pub struct Shard {
    settings: Settings,
    /// Of the input that is being taken.
    now: Timestamp,
    volumes: BTreeMap<VolumeId, Volume>,
    sessions: BTreeMap<SessionId, VolumeId>,
    claims: BTreeMap<VolumeId, Claim>,
    pending: VecDeque<Entry>,
    group: Option<(u64, Vec<Entry>)>,
    groups: u64,
    waiting: Waiting,
    deadline: Option<Timestamp>,
    /// When marks behind marks want to be on their way, that nothing of their volumes came behind.
    kept: BTreeMap<VolumeId, Timestamp>,
    /// Whether the shard stops: everything goes at once.
    is_shipping: bool,
    /// When the last batch was closed, and the last one with a mark that somebody waited for.
    closed_at: Option<Timestamp>,
    awaited_at: Option<Timestamp>,
    log: LogEnd,
    /// No checkpoint is written before the log is here: one is on its way, or could not be written.
    checkpoint_from: Slot,
    files: BTreeMap<u64, usize>,
    file: Option<u64>,
    held_bytes: usize,
    is_paused: bool,
    /// Volumes that hold something, and those of them that are held.
    holding: BTreeSet<VolumeId>,
    held: BTreeSet<VolumeId>,
}

impl Shard {
    /// A shard that goes on at the end of its log.
    ///
    /// # Panics
    /// If a setting is over its limit: a bug in the driver.
    #[must_use]
    pub fn new(settings: Settings, log: LogEnd) -> Self {
        settings.check();
        Self {
            settings,
            now: Timestamp(0),
            volumes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            claims: BTreeMap::new(),
            pending: VecDeque::new(),
            group: None,
            groups: 0,
            waiting: Waiting::new(settings.batch),
            deadline: None,
            kept: BTreeMap::new(),
            is_shipping: false,
            closed_at: None,
            awaited_at: None,
            log,
            checkpoint_from: Slot(0),
            files: BTreeMap::new(),
            file: None,
            held_bytes: 0,
            is_paused: false,
            holding: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }

    /// When the next [`Input::Tick`] is needed, if at all.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.batch_due()
    }

    /// Bytes of memory that frames hold (H3).
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// All volumes that it knows, with their watermarks.
    pub fn streams(&self) -> impl Iterator<Item = (VolumeId, Stream)> + '_ {
        self.volumes.iter().map(|(volume, known)| (*volume, known.stream))
    }

    /// The volume that a session holds, if it was let in and has not ended.
    #[must_use]
    pub fn volume_of(&self, session: SessionId) -> Option<VolumeId> {
        self.sessions.get(&session).copied()
    }

    /// Journal files that hold frames not yet committed, or are being written.
    pub fn journal_files(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.keys().copied()
    }

    /// Whether it has asked not to be given frames.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether it has asked not to be given frames of this session.
    #[must_use]
    pub fn is_held(&self, session: SessionId) -> bool {
        let volume = self.sessions.get(&session).and_then(|volume| self.volumes.get(volume));
        self.is_paused || volume.is_some_and(|volume| volume.is_held)
    }

    /// The watermarks of a volume, if the shard knows it.
    #[must_use]
    pub fn stream(&self, volume: VolumeId) -> Option<Stream> {
        self.volumes.get(&volume).map(|volume| volume.stream)
    }

    /// Whether something of the volume may still reach the vault: somebody may send it, it is being
    /// claimed, or what was taken is not committed.
    #[must_use]
    pub fn holds(&self, volume: VolumeId) -> bool {
        let is_taken = |known: &Volume| known.session.is_some() || known.held_bytes > 0;
        self.claims.contains_key(&volume) || self.volumes.get(&volume).is_some_and(is_taken)
    }

    /// Whether everything it took is in the vault.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.held_bytes == 0
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If the driver breaks the order that the inputs describe: a bug.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        self.now = now;
        match input {
            Input::Recovered { volume, epoch, size_bytes, committed } => {
                let (committed, stamp) = committed;
                let stream = Stream::new(epoch, size_bytes, committed);
                self.volumes.insert(volume, Volume::new(stream, stamp));
            }
            Input::Replay { entry, file } => self.replay(now, entry, file, out),
            Input::Replayed { files } => self.replayed(&files, out),
            Input::Hello { session, hello, assigned, from } => {
                self.hello(now, session, (&hello, &from), assigned, out);
            }
            Input::Claimed { volume, outcome } => self.claimed(volume, outcome, out),
            Input::Frame { session, seq, stamp, link, change, handle, bytes } => {
                self.frame(session, (seq, stamp, link), change, (handle, bytes), out);
            }
            Input::Alive { session } => self.alive(session, out),
            Input::Gone { session } => self.gone(session),
            Input::Revoked { volume } => self.revoked(now, volume, out),
            Input::GroupDone { group, file } => self.group_done(now, group, file, out),
            Input::PutDone { slot } => self.put_done(slot, out),
            Input::Checkpointed { slot, is_there } => self.checkpointed(slot, is_there),
            Input::Applied { at, asked } => self.applied(at, asked, out),
            Input::Ship => {
                self.is_shipping = true;
                self.deadline = Some(now);
            }
            Input::Tick => {}
        }
        self.write_group(out);
        self.close_batches(now, out);
        self.checkpoint(out);
        self.apply_backpressure(out);
        self.check();
    }

    fn replay(&mut self, now: Timestamp, entry: Entry, file: u64, out: &mut Vec<Output>) {
        // The vault does not say which its newest frame is, and in segments of before stamps not even whose: an
        // epoch's seq is one frame.
        if let Some(volume) = self.volumes.get_mut(&entry.volume)
            && volume.stream.received() == entry.seq
            && volume.stream.epoch() == entry.epoch
        {
            if volume.stamp == Stamp::default() {
                volume.stamp = entry.stamp;
            }
            if volume.stamp == entry.stamp {
                volume.imprint = entry.imprint;
            }
        }
        let expected = self.volumes.get(&entry.volume).map(|volume| volume.stream.expected());
        let epoch = self.volumes.get(&entry.volume).map(|volume| volume.stream.epoch());
        // Below: committed before the crash. Unknown volume, other epoch or a later seq: an older
        // epoch's rest that a newer epoch made void; its data never joins the stream.
        if expected != Some(entry.seq) || epoch != Some(entry.epoch) {
            out.push(Output::Drop { handle: entry.handle });
            return;
        }
        let Some(volume) = self.volumes.get_mut(&entry.volume) else { return };
        volume.stream.receive(entry.seq);
        volume.stream.journal(entry.seq);
        (volume.stamp, volume.imprint) = (entry.stamp, entry.imprint);
        self.hold(&entry);
        self.take_journaled(now, &entry, file, out);
    }

    fn replayed(&mut self, files: &[u64], out: &mut Vec<Output>) {
        for file in files {
            if !self.files.contains_key(file) {
                out.push(Output::DropJournal { file: *file });
            }
        }
    }

    fn frame(
        &mut self,
        session: SessionId,
        (seq, stamp, link): (Seq, Stamp, Link),
        change: Change,
        (handle, bytes): (Handle, usize),
        out: &mut Vec<Output>,
    ) {
        let entry = match self.admit_frame(session, (seq, stamp, link), change, bytes) {
            Ok((volume, epoch)) => {
                let imprint = link.imprint;
                Entry { volume, epoch, seq, stamp, imprint, change, handle, bytes }
            }
            Err(refusal) => {
                out.push(Output::Drop { handle });
                if let Some((reason, text)) = refusal {
                    self.refuse(session, reason, text, out);
                }
                return;
            }
        };
        self.hold(&entry);
        self.pending.push_back(entry);
    }

    /// Starts the next group when none is being written: whatever waits, up to the limit.
    fn write_group(&mut self, out: &mut Vec<Output>) {
        if self.group.is_some() || self.pending.is_empty() {
            return;
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.pending.front() {
            let cost = JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + entry.bytes;
            if !entries.is_empty() && bytes + cost > self.settings.group_bytes {
                break;
            }
            bytes += cost;
            entries.extend(self.pending.pop_front());
        }
        self.groups += 1;
        self.group = Some((self.groups, entries.clone()));
        if is_on(Bug::AckBeforeFlush) {
            self.journaled(&entries, out);
        }
        out.push(Output::Journal { group: self.groups, entries });
    }

    /// Moves the journaled watermarks and says so.
    fn journaled(&mut self, entries: &[Entry], out: &mut Vec<Output>) {
        let mut touched = BTreeSet::new();
        for entry in entries {
            if let Some(volume) = self.volumes.get_mut(&entry.volume) {
                volume.stream.journal(entry.seq);
                touched.insert(entry.volume);
            }
        }
        touched.into_iter().for_each(|volume| self.ack(volume, out));
    }

    fn group_done(&mut self, now: Timestamp, group: u64, file: u64, out: &mut Vec<Output>) {
        let (number, entries) = self.group.take().expect("one group is being written");
        assert_eq!(number, group, "groups end in order");
        assert!(self.file.is_none_or(|before| before <= file), "journal files only grow");
        self.file = Some(file);
        for entry in &entries {
            if let Some(volume) = self.volumes.get_mut(&entry.volume) {
                volume.unjournaled_bytes -= FRAME_HEADER_BYTES + entry.bytes;
            }
            self.take_journaled(now, entry, file, out);
        }
        if !is_on(Bug::AckBeforeFlush) {
            self.journaled(&entries, out);
        }
        self.drop_files(out);
    }

    fn close_batches(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        // Nothing is chosen before it can be put. While the store is slow segments are fewer and larger, and what
        // came last is in the next one.
        while self.log.has_room() && self.is_batch_due(now) {
            let (mut spans, held) = self.close_batch(now).close();
            if is_on(Bug::JournalDroppedEarly) {
                self.release_files(&held);
                self.drop_files(out);
            }
            let writer = self.log.writer();
            let slot = self.log.begin(&mut spans, held);
            out.push(Output::Build { slot, writer, spans });
        }
    }

    fn put_done(&mut self, slot: Slot, out: &mut Vec<Output>) {
        for segment in self.log.put_done(slot) {
            for (volume, last) in &segment.lasts {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.stream.commit(*last);
                }
            }
            self.let_go(&segment.held);
            if !is_on(Bug::JournalDroppedEarly) {
                self.release_files(&segment.held);
            }
            let release = segment.held.iter().map(|held| held.handle).collect();
            let volumes: Vec<VolumeId> = segment.lasts.keys().copied().collect();
            let CommittedSegment { slot, lasts, points, .. } = segment;
            out.push(Output::Committed { slot, lasts, points, release });
            volumes.into_iter().for_each(|volume| {
                self.ack(volume, out);
                self.forget_if_revoked(volume);
            });
        }
        self.drop_files(out);
    }

    /// These frames need their journal files no more.
    fn release_files(&mut self, held: &[Held]) {
        for held in held {
            let left = self.files.get_mut(&held.file).expect("H2: counted when taken");
            *left -= 1;
        }
    }

    fn drop_files(&mut self, out: &mut Vec<Output>) {
        let current = self.file;
        self.files.retain(|file, left| {
            let is_done = *left == 0 && Some(*file) != current;
            if is_done {
                out.push(Output::DropJournal { file: *file });
            }
            !is_done
        });
    }

    fn ack(&self, volume: VolumeId, out: &mut Vec<Output>) {
        if let Some(Volume { stream, session: Some(session), interval_ms, linger_ms, .. }) =
            self.volumes.get(&volume)
        {
            let often = (*interval_ms, *linger_ms);
            let gathers_in_ms = gathers_in_ms(self.now, volume, often);
            let (journaled, committed) = (stream.journaled(), stream.committed());
            let ack = Ack { journaled, committed, gathers_in_ms };
            out.push(Output::Ack { session: *session, ack });
        }
    }

    fn apply_backpressure(&mut self, out: &mut Vec<Output>) {
        self.share_out(out);
        if !self.is_paused && self.held_bytes >= self.settings.cache_bytes {
            self.is_paused = true;
            out.push(Output::Pause);
        } else if self.is_paused && self.held_bytes < self.settings.cache_bytes / 4 * 3 {
            self.is_paused = false;
            out.push(Output::Resume);
        }
        // What is full can only shrink by being shipped, whatever its deadline says.
        let is_waiting = self.is_paused || !self.held.is_empty();
        if is_waiting && !self.waiting.is_empty() {
            self.deadline = Some(Timestamp(0));
        }
    }

    fn check(&self) {
        assert!(self.volumes.len() <= SHARD_VOLUMES_MAX);
        if cfg!(debug_assertions) {
            // Too long for production: it grows with the sessions.
            for (session, volume) in &self.sessions {
                let holder = self.volumes.get(volume).and_then(|volume| volume.session);
                assert_eq!(holder, Some(*session), "H4: a session without its volume");
            }
        }
        if self.held_bytes == 0 {
            assert!(self.waiting.is_empty() && self.log.holds_nothing(), "H3");
        }
        let has_time = self.deadline.is_some() || !self.kept.is_empty();
        assert!(self.waiting.is_empty() || has_time, "what waits has its time");
    }
}

const _: () = {
    assert!(
        JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX
            <= JOURNAL_GROUP_BYTES_MAX
    );
    assert!(WINDOW_BYTES <= u32::MAX as usize && BLOCK_BYTES > 0);
};

#[cfg(test)]
mod tests;
