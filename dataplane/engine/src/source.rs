//! The sending side of one volume's session: what is sent, what is acked, what is sent again.
//!
//! Four watermarks run through the volume's log: *appended* (in the agent's log), *sent* (given to
//! the transport), *journaled* and *committed* (acked by the node). After a reconnect sending goes
//! on behind what the node says it received. Where the node's stream and the agent's log do not
//! join, the log starts again behind the node's last seq and the driver sends the disk anew.
//!
//! Invariants:
//!   - S1: committed ≤ journaled ≤ sent ≤ appended (checked after every step).
//!   - S2: bytes sent beyond journaled stay within the node's window, unless a single run is larger
//!     than the window (checked after every step).
//!   - S3: a point is reported once, and only when its seq is committed.
//!   - S4: nothing is trimmed above committed.

mod breach;

use crate::lineage::Lineage;
use crate::source::Phase::{Connecting, Greeted, Halted, Idle, Restarting, Streaming, Waiting};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::{Ack, RefusalReason, Welcome};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{Imprint, Seq, Stamp, Timestamp};
use std::collections::VecDeque;

pub use breach::Breach;

/// Largest frame on the wire.
const FRAME_BYTES_MAX: u64 = (FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX) as u64;

/// Marks on their way to the vault that are remembered. More than this are outstanding only after
/// most of a day without a node at the shortest interval; the node reports those that are skipped.
pub const MARKS_MAX: usize = 1 << 16;

/// A source that has nothing to send says so at least as often: a node ends sessions that are silent for 120 s.
pub const ALIVE_MS_MAX: u64 = 30_000;
/// And no more often than this.
const ALIVE_MS_MIN: u64 = 1000;

/// How long a source whose marks are so far apart may have nothing to say.
#[must_use]
pub fn alive_ms(mark_interval_ms: u64) -> u64 {
    mark_interval_ms.saturating_mul(2).clamp(ALIVE_MS_MIN, ALIVE_MS_MAX)
}

/// How patient a source is.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Wait after the first failure in a row.
    pub backoff_ms_min: u64,
    /// Wait after many failures in a row.
    pub backoff_ms_max: u64,
    /// Time to connect, and then again to be welcomed.
    pub handshake_ms_max: u64,
    /// Time without an ack while something is in flight, after which the peer counts as lost.
    pub stall_ms_max: u64,
    /// Time without an ack while nothing is in flight, after which it says that it is there.
    pub alive_ms: u64,
    /// Time after a refusal for good, after which it asks again.
    pub halted_ms: u64,
    /// Most bytes asked for in one [`Output::SendFrom`].
    pub run_bytes_max: u64,
    /// Spreads the reconnects of many volumes; any number.
    pub jitter: u64,
}

impl Default for Settings {
    /// Values picked by eye: quick after a node's restart, gentle to one that stays away.
    fn default() -> Self {
        Self {
            backoff_ms_min: 100,
            backoff_ms_max: 5_000,
            handshake_ms_max: 10_000,
            stall_ms_max: 120_000,
            alive_ms: ALIVE_MS_MAX,
            halted_ms: 60_000,
            run_bytes_max: 2 * FRAME_BYTES_MAX,
            jitter: 0,
        }
    }
}

/// What the agent's log held when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Highest seq in the log; 0 if it never held one.
    pub last: Seq,
    /// Highest seq that the node can have from this log. Below `last` if frames were appended
    /// after an unclean stop and no session has joined since.
    pub floor: Seq,
    /// Under which intents the frame `floor` was made; unknown if the log does not hold it.
    pub floor_stamp: Stamp,
    /// What the log descends from, as it was at the first start since a session joined.
    pub lineage: Lineage,
    /// The life of this run.
    pub life: u32,
    /// Whether another took the volume over since the stream joined last.
    pub is_shared: bool,
    /// Which sending of the whole disk the log is of, counted modulo 2^31.
    pub sending: u32,
}

/// What happens to a source.
#[derive(Debug, Clone)]
pub enum Input {
    /// The volume was placed, or its node, address or epoch changed: connect anew.
    Assigned,
    /// Nothing was written since the mark at `seq`, the last of the log: the point is as good as one set at
    /// `at`.
    Unchanged {
        /// The place of the mark.
        seq: Seq,
        /// When that was so, on this machine's clock.
        at: Timestamp,
    },
    /// The log holds everything up to `last`.
    Appended {
        /// Highest seq in the log.
        last: Seq,
    },
    /// A mark lies in the log at `seq` and is at the node or about to be sent.
    Marked {
        /// Place in the stream.
        seq: Seq,
        /// The mark.
        mark: Mark,
        /// When it was set, on this machine's clock.
        at: Timestamp,
    },
    /// The transport is up; the log holds `first..=last`, or nothing if `first` is `last + 1`.
    Connected {
        /// Lowest seq in the log.
        first: Seq,
        /// Highest seq in the log.
        last: Seq,
    },
    /// The node answered the hello.
    Welcomed {
        /// What it has.
        welcome: Welcome,
        /// Whose and which the log's own frame of the number `welcome.received` is, if the log still holds it.
        held: Option<(Stamp, Imprint)>,
    },
    /// The log was emptied as [`Output::Restart`] said.
    Restarted,
    /// The frames up to `last` have been read from the log and are being given to the transport.
    Sending {
        /// Last seq of the run.
        last: Seq,
        /// Bytes of the run on the wire.
        bytes: u64,
    },
    /// The transport took the run.
    Ready,
    /// The node acked.
    Acked(Ack),
    /// The node ended the session.
    Refused(RefusalReason),
    /// The transport failed, could not be had, or carried something illegal.
    Lost,
    /// Time passed.
    Tick,
}

/// Why a source gave its node up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It took the connection, or was being sent to, and said nothing for so long.
    Silent {
        /// The patience that ran out.
        ms: u64,
    },
    /// What it says that it has cannot be.
    Impossible,
}

impl Fault {
    /// In words, for reports.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Silent { ms } => format!(
                "the node has not answered for {} s: it hangs, or what is between drops everything",
                ms / 1000
            ),
            Self::Impossible => "the node says that it has what was never sent to it".to_owned(),
        }
    }
}

/// What a source asks of its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a transport to the node; answer with `Connected` or `Lost`.
    Connect,
    /// Send a hello with these seqs.
    Hello {
        /// Lowest seq that can be sent.
        first: Seq,
        /// Highest seq in the log.
        last: Seq,
        /// Whether the last session was ended by another that took the volume over.
        is_overtaken: bool,
    },
    /// Drop the transport. No `Lost` follows.
    Close,
    /// As `Close`, for what the node did or did not do; to be told.
    GiveUp(Fault),
    /// The stream joins: first good welcome since the log was opened.
    Joined,
    /// Another took the volume over, or the stream joins behind it: to be known after a restart of the agent.
    Shared {
        /// Which of the two.
        is_shared: bool,
    },
    /// Empty the log, continue it at `next`, put the disk in doubt; answer with `Restarted`.
    Restart {
        /// Seq of the next frame.
        next: Seq,
        /// How much is in doubt.
        breach: Breach,
    },
    /// Send whole frames from `seq` on, at most `bytes_max` bytes but at least one frame; answer
    /// with `Sending` and `Ready`.
    SendFrom {
        /// First seq to send.
        seq: Seq,
        /// Most bytes to send, unless the first frame alone is larger.
        bytes_max: u64,
    },
    /// Say that it is there; answer with `Ready`.
    SayAlive,
    /// Frames up to `seq` are not needed any more.
    TrimTo {
        /// Committed watermark.
        seq: Seq,
    },
    /// A recovery point is in the vault.
    PointCommitted {
        /// Its place in the stream.
        seq: Seq,
        /// The mark.
        mark: Mark,
    },
}

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not assigned.
    Idle,
    /// Waits until the next attempt.
    Waiting {
        /// When that is.
        until: Timestamp,
    },
    /// The transport is being opened.
    Connecting {
        /// Since when.
        since: Timestamp,
    },
    /// The hello is out.
    Greeted {
        /// Since when.
        since: Timestamp,
    },
    /// Waits for the driver to empty the log.
    Restarting,
    /// Frames and acks flow.
    Streaming,
    /// The node refused for good: a new assignment helps. It is asked again now and then all the same: a node or
    /// a control plane that went back to what it was before does not know that somebody waits for its word.
    Halted {
        /// Its reason.
        reason: RefusalReason,
        /// Since when.
        since: Timestamp,
    },
}

#[derive(Debug, Clone, Copy)]
struct Run {
    last: Seq,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    seq: Seq,
    mark: Mark,
    at: Timestamp,
}

/// The sending side of one volume.
#[derive(Debug)]
pub struct Source {
    settings: Settings,
    phase: Phase,
    appended: Seq,
    sent: Seq,
    journaled: Seq,
    committed: Seq,
    /// Highest seq that the node can have from this log.
    known: Seq,
    /// Of the highest frame that the node could have when the log was opened.
    floor_stamp: Stamp,
    lineage: Lineage,
    life: u32,
    /// Which sending of the whole disk the log was of when it was opened.
    sending: u32,
    /// What the node had when the stream joined last.
    joined_at: (Seq, Stamp),
    /// The node ended the last session for another that took the volume over.
    is_overtaken: bool,
    /// Another took the volume over since the stream joined last: what the node has may be its.
    is_shared: bool,
    has_joined: bool,
    /// The next hello says that the log is empty: the answer to a gap.
    declare_empty: bool,
    /// What the welcome said, while the log is being emptied.
    welcome: Welcome,
    window_bytes: u64,
    in_flight: VecDeque<Run>,
    in_flight_bytes: u64,
    is_sending: bool,
    /// When the node was heard last, or began to owe an ack.
    heard: Timestamp,
    /// When it said that it is there, until the node answers.
    asked: Option<Timestamp>,
    /// When the node gathers marks, by what it said last.
    gathers_at: Option<Timestamp>,
    failures: u32,
    refusal: Option<RefusalReason>,
    marks: VecDeque<Pending>,
    newest_point: Option<(Seq, Timestamp)>,
}

impl Source {
    /// A source over a log as it was opened; idle until assigned.
    ///
    /// # Panics
    /// If the floor is above the last seq: a bug in the caller.
    #[must_use]
    pub fn new(settings: Settings, opened: Opened) -> Self {
        assert!(opened.floor <= opened.last, "the floor is part of the log");
        let zero = Seq(0);
        let stamp = Stamp::default();
        let (received, journaled, committed, imprint) = (zero, zero, zero, Imprint::default());
        let welcome = Welcome { received, journaled, committed, window_bytes: 0, stamp, imprint };
        Self {
            settings,
            phase: Idle,
            appended: opened.last,
            sent: Seq(0),
            journaled: Seq(0),
            committed: Seq(0),
            known: opened.floor,
            floor_stamp: opened.floor_stamp,
            lineage: opened.lineage,
            life: opened.life,
            sending: opened.sending,
            joined_at: (zero, stamp),
            is_overtaken: false,
            is_shared: opened.is_shared,
            has_joined: false,
            declare_empty: false,
            welcome,
            window_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            is_sending: false,
            heard: Timestamp(0),
            asked: None,
            gathers_at: None,
            failures: 0,
            refusal: None,
            marks: VecDeque::new(),
            newest_point: None,
        }
    }

    /// Advances by one input, appending to `out` what to do about it.
    ///
    /// # Panics
    /// If an input does not fit the phase or breaks the order of the stream: bugs in the driver.
    /// What the node says is judged, never trusted.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Assigned => self.assigned(now, out),
            Input::Appended { last } => {
                assert!(last >= self.appended, "the log does not shrink");
                self.appended = last;
            }
            Input::Marked { seq, mark, at } => self.marked(seq, mark, at, out),
            Input::Unchanged { seq, at } => self.unchanged(seq, at),
            Input::Connected { first, last } => self.connected(now, first, last, out),
            Input::Welcomed { welcome, held } => self.welcomed(now, welcome, held, out),
            Input::Restarted => self.restarted(now, out),
            Input::Sending { last, bytes } => self.sending(now, last, bytes),
            Input::Ready => self.is_sending = false,
            Input::Acked(ack) => self.acked(now, ack, out),
            Input::Refused(reason) => self.refused(now, reason, out),
            Input::Lost => self.back_off(now),
            Input::Tick => self.tick(now, out),
        }
        self.send_more(out);
        self.check();
    }

    fn assigned(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.has_transport() {
            out.push(Output::Close);
        }
        self.failures = 0;
        self.refusal = None;
        // Another node's, or another epoch's.
        self.is_overtaken = false;
        self.connect(now, out);
    }

    fn connect(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        self.forget_flight();
        self.phase = Connecting { since: now };
        out.push(Output::Connect);
    }

    fn connected(&mut self, now: Timestamp, first: Seq, last: Seq, out: &mut Vec<Output>) {
        assert!(matches!(self.phase, Connecting { .. }), "connected without a connect");
        assert_eq!(last, self.appended, "the hello names the log's end");
        assert!(first > Seq(0) && first <= last.next(), "the log's bounds are in order");
        self.phase = Greeted { since: now };
        let (first, last) = if self.declare_empty { (Seq(1), Seq(0)) } else { (first, last) };
        out.push(Output::Hello { first, last, is_overtaken: self.is_overtaken });
    }

    fn welcomed(
        &mut self,
        now: Timestamp,
        welcome: Welcome,
        held: Option<(Stamp, Imprint)>,
        out: &mut Vec<Output>,
    ) {
        let in_order =
            welcome.committed <= welcome.journaled && welcome.journaled <= welcome.received;
        if !matches!(self.phase, Greeted { .. }) || !in_order {
            self.give_up(now, Fault::Impossible, out);
            return;
        }
        self.welcome = welcome;
        self.refusal = None;
        self.is_overtaken = false;
        match self.breach(welcome, held) {
            Some(breach) => {
                let kept = if breach == Breach::TailLost { self.known } else { Seq(0) };
                self.marks.retain(|pending| pending.seq <= kept);
                self.phase = Restarting;
                out.push(Output::Restart { next: welcome.received.next(), breach });
            }
            None => self.join(now, out),
        }
    }

    fn restarted(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        assert_eq!(self.phase, Restarting, "restarted without a restart");
        let received = self.welcome.received;
        self.declare_empty = false;
        (self.appended, self.known) = (received, received);
        self.committed = self.welcome.committed;
        self.journaled = self.committed;
        self.join(now, out);
    }

    fn join(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        self.phase = Streaming;
        if std::mem::take(&mut self.is_shared) {
            out.push(Output::Shared { is_shared: false });
        }
        self.heard = now;
        self.forget_flight();
        self.sent = self.welcome.received;
        self.joined_at = (self.welcome.received, self.welcome.stamp);
        self.known = self.known.max(self.sent);
        self.journaled = self.committed.max(self.welcome.journaled);
        self.window_bytes = self.welcome.window_bytes.into();
        if self.journaled < self.sent {
            // The node holds bytes that it has not journaled; how many is not known here. Half a
            // window stands for them until the next ack.
            let run = Run { last: self.sent, bytes: self.window_bytes / 2 };
            self.in_flight_bytes = run.bytes;
            self.in_flight.push_back(run);
        }
        if !self.has_joined {
            self.has_joined = true;
            out.push(Output::Joined);
        }
        self.advance_committed(self.welcome.committed, out);
    }

    fn sending(&mut self, now: Timestamp, last: Seq, bytes: u64) {
        assert_eq!(self.phase, Streaming, "frames are sent while streaming");
        assert!(self.is_sending, "a run is sent when it was asked for");
        assert!(last > self.sent && last <= self.appended, "a run goes on behind what was sent");
        assert!(bytes > 0);
        if self.in_flight.is_empty() {
            self.heard = now;
        }
        self.sent = last;
        self.known = self.known.max(last);
        self.in_flight.push_back(Run { last, bytes });
        self.in_flight_bytes += bytes;
    }

    fn acked(&mut self, now: Timestamp, ack: Ack, out: &mut Vec<Output>) {
        let legal = ack.committed <= ack.journaled && ack.journaled <= self.sent;
        if self.phase != Streaming || !legal {
            self.give_up(now, Fault::Impossible, out);
            return;
        }
        self.heard = now;
        self.asked = None;
        self.failures = 0;
        self.gathers_at = ack.gathers_in_ms.map(|ms| now.plus_ms(ms.into())).or(self.gathers_at);
        self.journaled = self.journaled.max(ack.journaled);
        if is_on(Bug::TrimAtJournaled) {
            out.push(Output::TrimTo { seq: self.journaled });
        }
        while let Some(run) = self.in_flight.front()
            && run.last <= self.journaled
        {
            self.in_flight_bytes -= run.bytes;
            self.in_flight.pop_front();
        }
        self.advance_committed(ack.committed, out);
    }

    fn advance_committed(&mut self, committed: Seq, out: &mut Vec<Output>) {
        if committed > self.committed {
            self.committed = committed;
            out.push(Output::TrimTo { seq: committed });
        }
        while let Some(pending) = self.marks.front().copied()
            && pending.seq <= self.committed
        {
            self.marks.pop_front();
            self.newest_point = Some((pending.seq, pending.at));
            out.push(Output::PointCommitted { seq: pending.seq, mark: pending.mark });
        }
    }

    fn marked(&mut self, seq: Seq, mark: Mark, at: Timestamp, out: &mut Vec<Output>) {
        let newest = self.marks.back().map(|pending| pending.seq);
        let reported = self.newest_point.map(|(seq, _)| seq);
        let is_known = newest.max(reported).is_some_and(|known| seq <= known);
        if is_known || self.marks.len() >= MARKS_MAX {
            return;
        }
        self.marks.push_back(Pending { seq, mark, at });
        if self.has_joined {
            self.advance_committed(self.committed, out);
        }
    }

    fn unchanged(&mut self, seq: Seq, at: Timestamp) {
        if let Some(pending) = self.marks.back_mut() {
            if pending.seq == seq {
                pending.at = pending.at.max(at);
            }
        } else if let Some((point, known)) = &mut self.newest_point
            && *point == seq
        {
            *known = at.max(*known);
        }
    }

    fn refused(&mut self, now: Timestamp, reason: RefusalReason, out: &mut Vec<Output>) {
        if self.has_transport() {
            out.push(Output::Close);
        }
        self.refusal = Some(reason);
        match reason {
            RefusalReason::Fenced | RefusalReason::Size => {
                self.forget_flight();
                self.phase = Halted { reason, since: now };
            }
            RefusalReason::Gap => {
                self.declare_empty = true;
                self.back_off(now);
            }
            // Nothing changes soon by itself: the longest wait.
            RefusalReason::Protocol | RefusalReason::Limit => {
                self.failures = u32::MAX;
                self.back_off(now);
            }
            RefusalReason::Overtaken => {
                self.is_overtaken = true;
                self.is_shared = true;
                out.push(Output::Shared { is_shared: true });
                self.back_off(now);
            }
            RefusalReason::NotAssigned | RefusalReason::Unavailable | RefusalReason::Contested => {
                self.back_off(now);
            }
        }
    }

    fn give_up(&mut self, now: Timestamp, fault: Fault, out: &mut Vec<Output>) {
        if self.has_transport() {
            out.push(Output::GiveUp(fault));
            self.back_off(now);
        }
    }

    fn back_off(&mut self, now: Timestamp) {
        self.forget_flight();
        if matches!(self.phase, Idle | Halted { .. }) {
            return;
        }
        let (min, max) = (self.settings.backoff_ms_min, self.settings.backoff_ms_max);
        let delay = min.saturating_mul(1_u64 << self.failures.min(20)).min(max);
        let spread = self.settings.jitter.wrapping_add(self.failures.into()) % (delay / 4 + 1);
        self.failures = self.failures.saturating_add(1);
        self.phase = Waiting { until: now.plus_ms(delay - spread) };
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match self.phase {
            Waiting { .. } | Halted { .. } => self.connect(now, out),
            Streaming if self.in_flight.is_empty() && self.asked.is_none() => {
                // What is being sent is a sign of life too.
                if !self.is_sending {
                    self.is_sending = true;
                    out.push(Output::SayAlive);
                }
                self.asked = Some(now);
            }
            Streaming => {
                self.give_up(now, Fault::Silent { ms: self.settings.stall_ms_max }, out);
            }
            _ => self.give_up(now, Fault::Silent { ms: self.settings.handshake_ms_max }, out),
        }
    }

    fn send_more(&mut self, out: &mut Vec<Output>) {
        if self.phase != Streaming || self.is_sending || self.sent >= self.appended {
            return;
        }
        let room = self.window_bytes.saturating_sub(self.in_flight_bytes);
        if room < FRAME_BYTES_MAX && !self.in_flight.is_empty() {
            return;
        }
        self.is_sending = true;
        let bytes_max = room.min(self.settings.run_bytes_max);
        out.push(Output::SendFrom { seq: self.sent.next(), bytes_max });
    }

    fn forget_flight(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.is_sending = false;
        self.asked = None;
    }

    fn has_transport(&self) -> bool {
        matches!(self.phase, Connecting { .. } | Greeted { .. } | Restarting | Streaming)
    }

    fn check(&self) {
        assert!(self.committed <= self.journaled, "S1: committed beyond journaled");
        assert!(self.journaled <= self.sent, "S1: journaled beyond sent");
        assert!(self.sent <= self.appended || self.phase == Restarting, "S1: sent beyond appended");
        assert!(
            self.in_flight_bytes <= self.window_bytes || self.in_flight.len() <= 1,
            "S2: more in flight than the window"
        );
        assert!(self.in_flight.is_empty() || self.phase == Streaming);
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why the node refused for good, until the next welcome or assignment; also while it is asked again.
    #[must_use]
    pub fn halted(&self) -> Option<RefusalReason> {
        let is_final =
            |reason: &RefusalReason| matches!(reason, RefusalReason::Fenced | RefusalReason::Size);
        self.refusal.filter(is_final)
    }

    /// Why the node ended the last session, until the next welcome or assignment.
    #[must_use]
    pub fn refusal(&self) -> Option<RefusalReason> {
        self.refusal
    }

    /// Highest seq given to the node.
    #[must_use]
    pub fn sent(&self) -> Seq {
        self.sent
    }

    /// Highest seq safe at the node.
    #[must_use]
    pub fn journaled(&self) -> Seq {
        self.journaled
    }

    /// Highest seq safe in the vault.
    #[must_use]
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// Whether the log is known to join what the node has.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.has_joined
    }

    /// When a `Tick` changes something; none if never.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.phase {
            Idle | Restarting => None,
            Halted { since, .. } => Some(since.plus_ms(self.settings.halted_ms)),
            Waiting { until } => Some(until),
            Connecting { since } | Greeted { since } => {
                Some(since.plus_ms(self.settings.handshake_ms_max))
            }
            Streaming if self.in_flight.is_empty() => Some(match self.asked {
                None => self.heard.plus_ms(self.settings.alive_ms),
                Some(asked) => asked.plus_ms(self.settings.stall_ms_max),
            }),
            Streaming => Some(self.heard.plus_ms(self.settings.stall_ms_max)),
        }
    }

    /// When the node gathers marks, and every interval from then on; none if no node has said.
    #[must_use]
    pub fn gathers_at(&self) -> Option<Timestamp> {
        self.gathers_at
    }

    /// When the newest point in the vault was the disk, as far as is known; none before the first.
    #[must_use]
    pub fn point_at(&self) -> Option<Timestamp> {
        self.newest_point.map(|(_, at)| at)
    }

    /// Age of the newest point in the vault; none before the first.
    #[must_use]
    pub fn rpo_ms(&self, now: Timestamp) -> Option<u64> {
        self.newest_point.map(|(_, at)| now.since_ms(at))
    }
}

#[cfg(test)]
mod tests;
