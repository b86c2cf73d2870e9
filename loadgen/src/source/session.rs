//! One connection of a source, from the hello to its end.

use super::Source;
use crate::dial::{Route, Transport};
use crate::limits::{IN_BYTES, OUT_BYTES, STALL_TIME_MAX};
use crate::marks::Marks;
use crate::stream::{Item, MARK_FRAME_BYTES, Misfit, Moved, Stream};
use crate::tally::Stage;
use crate::timetable::Timetable;
use crate::wire::{FormatError, Outbox, Said, take_said};
use farshore_engine::source::alive_ms;
use farshore_proto::frame::{Control, Refusal, RefusalReason};
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{MarkKind, Seq};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// All is committed.
    Done,
    /// The run was given up before all was committed.
    Late,
    /// The connection is gone or was never had, for this reason: try again.
    Lost(String),
    /// The node refused: try again, after the longest pause if it says that nothing changes soon.
    Refused {
        /// The word of the reason.
        word: String,
        /// Whether to wait long.
        is_patient: bool,
    },
    /// Trying again cannot help.
    Fatal(String),
}

/// A connection and what is on its way in it.
pub(super) struct Session {
    reader: ReadHalf<Box<dyn Transport>>,
    writer: WriteHalf<Box<dyn Transport>>,
    incoming: Vec<u8>,
    outbox: Outbox,
    acks: u64,
    heard: Instant,
    /// When it said that it is there, until the node answers.
    asked: Option<Instant>,
}

impl Session {
    pub(super) fn over(transport: Box<dyn Transport>) -> Self {
        let (reader, writer) = split(transport);
        let (incoming, outbox) = (Vec::new(), Outbox::default());
        Self { reader, writer, incoming, outbox, acks: 0, heard: Instant::now(), asked: None }
    }

    /// Whether the node acked anything on this connection.
    pub(super) fn was_acked(&self) -> bool {
        self.acks > 0
    }

    /// Says hello and takes the welcome.
    pub(super) async fn greet(
        &mut self,
        source: &Source,
        route: &Route,
        stream: &mut Stream,
    ) -> Result<(), End> {
        let load = &source.load;
        let size = load.content.recipe().volume_blocks * BLOCK_BYTES as u64;
        let hello = stream.hello(route.volume, route.epoch, size, mark_ms(load.mark_interval));
        self.outbox.push_control(&Control::Hello(hello));
        self.outbox.write_to(&mut self.writer).await.map_err(|error| lost("hello", &error))?;
        loop {
            match take_said(&mut self.incoming).map_err(|error| broken(&error))? {
                Some(Said::Welcome(welcome)) => {
                    let is_first = !stream.has_joined();
                    let moved = stream.welcomed(&welcome).map_err(misfit)?;
                    if is_first {
                        load.tally.sums.welcomed.fetch_add(1, Relaxed);
                        let continues = u64::from(welcome.received > Seq(0));
                        load.tally.sums.continued.fetch_add(continues, Relaxed);
                    } else if let Some(start) = *source.start.borrow() {
                        note(source, &moved, start.elapsed());
                    }
                    return Ok(());
                }
                Some(Said::Refusal(refusal)) => return Err(refused(&refusal)),
                Some(Said::Ack(_)) => {
                    return Err(End::Lost("an ack before the welcome".to_owned()));
                }
                None => self.read().await?,
            }
        }
    }

    /// Reads some bytes. May be dropped at any time.
    async fn read(&mut self) -> Result<(), End> {
        read_some(&mut self.reader, &mut self.incoming).await
    }

    /// Writes by the timetable until all is committed or the connection ends.
    pub(super) async fn carry(
        &mut self,
        source: &Source,
        table: &Timetable,
        stream: &mut Stream,
        marks: &mut Marks,
        start: Instant,
    ) -> End {
        self.heard = Instant::now();
        let give_up = start + source.load.give_up();
        let mut lane = Lane { source, table, stream, marks, start };
        let mut timer = std::pin::pin!(sleep_until(give_up));
        loop {
            if let Err(end) = self.hear(&mut lane) {
                return end;
            }
            let due = if self.outbox.is_empty() { lane.fill(&mut self.outbox) } else { None };
            if self.outbox.is_empty() && lane.is_over() && lane.stream.is_settled() {
                return End::Done;
            }
            let now = Instant::now();
            if now >= give_up {
                return End::Late;
            }
            let stall = self.stall(lane.stream);
            if stall.is_some_and(|stall| now >= stall) {
                return End::Lost("no ack in time".to_owned());
            }
            let alive = self.say_alive(now, &lane);
            let wake = [Some(give_up), stall, due, alive].into_iter().flatten().min();
            timer.as_mut().reset(wake.unwrap_or(give_up));
            tokio::select! {
                read = read_some(&mut self.reader, &mut self.incoming) => {
                    if let Err(end) = read {
                        return end;
                    }
                }
                written = self.outbox.write_to(&mut self.writer), if !self.outbox.is_empty() => {
                    if let Err(error) = written {
                        return self.last_words(&error).await;
                    }
                }
                () = timer.as_mut() => {}
            }
        }
    }

    /// When a node that owes an answer counts as lost.
    fn stall(&self, stream: &Stream) -> Option<Instant> {
        let since = stream.is_owed().then_some(self.heard).or(self.asked);
        since.map(|since| since + STALL_TIME_MAX)
    }

    /// Says that it is there, as an agent does that has had nothing to say for a while; or when it will.
    fn say_alive(&mut self, now: Instant, lane: &Lane<'_>) -> Option<Instant> {
        if self.asked.is_some() || !lane.stream.is_journaled() {
            return None;
        }
        let interval_ms = mark_ms(lane.source.load.mark_interval);
        let due = self.heard + Duration::from_millis(alive_ms(interval_ms.into()));
        if now < due {
            return Some(due);
        }
        self.outbox.push_control(&Control::Alive);
        self.asked = Some(now);
        None
    }

    /// Takes every whole frame that has come.
    fn hear(&mut self, lane: &mut Lane<'_>) -> Result<(), End> {
        loop {
            match take_said(&mut self.incoming).map_err(|error| broken(&error))? {
                Some(Said::Ack(ack)) => {
                    self.acks += 1;
                    (self.heard, self.asked) = (Instant::now(), None);
                    lane.marks.told(lane.start.elapsed(), ack.gathers_in_ms);
                    let moved = lane.stream.acked(&ack, |write| lane.source.bytes(write));
                    let elapsed = lane.start.elapsed();
                    note(lane.source, &moved.map_err(misfit)?, elapsed);
                }
                Some(Said::Refusal(refusal)) => return Err(refused(&refusal)),
                Some(Said::Welcome(_)) => {
                    return Err(End::Lost("a second welcome".to_owned()));
                }
                None => return Ok(()),
            }
        }
    }

    /// A node that hung up may have said why.
    async fn last_words(&mut self, error: &io::Error) -> End {
        let until = Instant::now() + Duration::from_millis(100);
        loop {
            match take_said(&mut self.incoming) {
                Ok(Some(Said::Refusal(refusal))) => return refused(&refusal),
                Ok(Some(_)) => {}
                Err(_) => return lost("write", error),
                Ok(None) => match tokio::time::timeout_at(until, self.read()).await {
                    Ok(Ok(())) => {}
                    _ => return lost("write", error),
                },
            }
        }
    }
}

/// What is next in a source's stream.
enum Next {
    Write(u64),
    Mark,
}

/// What a source puts into its stream, and when.
struct Lane<'a> {
    source: &'a Source,
    table: &'a Timetable,
    stream: &'a mut Stream,
    marks: &'a mut Marks,
    start: Instant,
}

impl Lane<'_> {
    /// Whether the timetable is over and nothing of it is left to be said.
    fn is_over(&self) -> bool {
        self.marks.due().is_none()
    }

    /// What is next in the order of due times, and when it is due; none after the last mark.
    fn next(&self) -> Option<(Next, Duration)> {
        let mark = self.marks.due()?;
        let write = self.stream.next_write();
        let due = self.table.due(write);
        let is_write = write < self.table.writes() && due <= mark;
        Some(if is_write { (Next::Write(write), due) } else { (Next::Mark, mark) })
    }

    /// Fills the outbox with what has to be sent again and what is due. Returns when the next is due,
    /// if it is time that is waited for and not the node.
    fn fill(&mut self, outbox: &mut Outbox) -> Option<Instant> {
        let elapsed = self.start.elapsed();
        let mut wait = None;
        while outbox.len() < OUT_BYTES {
            if let Some((_, item)) = self.stream.to_resend() {
                if !self.send(item, outbox) {
                    break;
                }
                self.source.load.tally.sums.resent_frames.fetch_add(1, Relaxed);
                continue;
            }
            let Some((next, due)) = self.next() else { break };
            if due > elapsed {
                wait = Some(self.start + due);
                break;
            }
            let is_taken = match next {
                Next::Write(write) => self.write(write, due, elapsed, outbox),
                Next::Mark => self.mark(elapsed, outbox),
            };
            if !is_taken {
                break;
            }
        }
        let waiting = self.table.due_by(elapsed).saturating_sub(self.stream.next_write());
        self.source.load.tally.note_backlog(waiting);
        wait
    }

    /// Takes the next write into the stream, if it has room, behind the mark that was kept.
    fn write(&mut self, write: u64, due: Duration, elapsed: Duration, outbox: &mut Outbox) -> bool {
        if let Some(mark) = self.marks.kept() {
            if !self.append(Item::Mark(mark), outbox) {
                return false;
            }
            self.marks.kept_is_sent();
        }
        if !self.append(Item::Write(write), outbox) {
            return false;
        }
        self.marks.wrote();
        let of_write = std::iter::once((due, self.source.bytes(write)));
        self.source.load.tally.note(Stage::Sent, elapsed, of_write);
        true
    }

    /// Takes the mark that is due into the stream, if it has room, or keeps it.
    fn mark(&mut self, elapsed: Duration, outbox: &mut Outbox) -> bool {
        let mark = fresh_mark();
        if self.marks.is_still() {
            self.marks.keep(mark, elapsed);
            return true;
        }
        let is_set = self.append(Item::Mark(mark), outbox);
        if is_set {
            self.marks.set(elapsed);
        }
        is_set
    }

    fn append(&mut self, item: Item, outbox: &mut Outbox) -> bool {
        self.stream.may_append() && self.send(item, outbox)
    }

    /// Appends an item to the outbox, if the window has room for it.
    fn send(&mut self, item: Item, outbox: &mut Outbox) -> bool {
        match item {
            Item::Write(number) => {
                let content = &self.source.load.content;
                let write = content.write(self.source.number, number);
                let bytes = (FRAME_HEADER_BYTES + write.bytes()) as u64;
                if !self.stream.has_room(bytes) {
                    return false;
                }
                let seq = self.stream.send(&item, bytes);
                outbox.push_write(seq, &write, content);
            }
            Item::Mark(mark) => {
                if !self.stream.has_room(MARK_FRAME_BYTES) {
                    return false;
                }
                let seq = self.stream.send(&item, MARK_FRAME_BYTES);
                outbox.push_control(&Control::Mark(seq, mark));
            }
        }
        true
    }
}

fn fresh_mark() -> Mark {
    let time_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Mark {
        point: Uuid::now_v7().into(),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: u64::try_from(time_unix_ms.as_millis()).unwrap_or(u64::MAX),
        group: MarkGroup::ALONE,
    }
}

fn mark_ms(interval: Duration) -> u32 {
    u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
}

impl Source {
    /// Bytes of one of its writes.
    fn bytes(&self, write: u64) -> u64 {
        self.load.content.write(self.number, write).bytes() as u64
    }
}

async fn read_some(
    reader: &mut ReadHalf<Box<dyn Transport>>,
    incoming: &mut Vec<u8>,
) -> Result<(), End> {
    incoming.reserve(IN_BYTES.saturating_sub(incoming.capacity() - incoming.len()));
    match reader.read_buf(incoming).await {
        Ok(0) => Err(End::Lost("the node hung up".to_owned())),
        Ok(_) => Ok(()),
        Err(error) => Err(lost("read", &error)),
    }
}

fn note(source: &Source, moved: &Moved, elapsed: Duration) {
    let table = source.load.timetable(source.number);
    for (stage, (from, to)) in
        [(Stage::Journaled, moved.journaled), (Stage::Committed, moved.committed)]
    {
        if from < to {
            let writes = (from..to).map(|write| (table.due(write), source.bytes(write)));
            source.load.tally.note(stage, elapsed, writes);
        }
    }
}

fn lost(doing: &str, error: &io::Error) -> End {
    End::Lost(format!("{doing}: {}", error.kind()))
}

fn broken(error: &FormatError) -> End {
    End::Lost(format!("the node breaks the format: {error}"))
}

fn misfit(misfit: Misfit) -> End {
    match misfit {
        Misfit::Order { .. } => End::Lost(misfit.to_string()),
        Misfit::Lost { .. } | Misfit::Foreign { .. } => End::Fatal(misfit.to_string()),
    }
}

fn refused(refusal: &Refusal) -> End {
    let word = refusal.reason.word();
    match refusal.reason {
        RefusalReason::Size => End::Fatal(format!(
            "the node refused: {}; say the --volume-size of the run before, or make the machines anew \
             with `farshore-loadgen clean`",
            refusal.text
        )),
        RefusalReason::Gap => {
            End::Fatal(format!("the node lost what it had committed: {}", refusal.text))
        }
        reason => {
            let is_patient = matches!(reason, RefusalReason::Protocol | RefusalReason::Limit);
            End::Refused { word: word.to_owned(), is_patient }
        }
    }
}
