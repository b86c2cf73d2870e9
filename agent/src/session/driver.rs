//! Drives [`farshore_engine::source`] over a transport.

use super::dial::{Dial, DialError, Target, Transport};
use super::wire::{Said, WireError, read_said};
use crate::clock::Clock;
use crate::hrl::{Cursor, LogError, Run};
use crate::stream::{RestartError, Stream};
use farshore_engine::source::{Input, Opened, Output, Phase, Settings, Source, alive_ms};
use farshore_proto::frame::{Control, Hello, RefusalReason};
use farshore_proto::mark::Mark;
use farshore_proto::{Epoch, Seq};
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Frames from the node that wait for the driver.
const SAID_MAX: usize = 16;

/// Between two attempts to note that the stream joins.
const JOIN_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a log is trimmed again.
const TRIM_PAUSE: Duration = Duration::from_secs(1);

/// Where the control plane wants a volume's stream to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The node.
    pub target: Target,
    /// Goes into the hello.
    pub epoch: Epoch,
    /// Size of the disk under that epoch.
    pub size_bytes: u64,
    /// Time between two marks, for the node's planning.
    pub mark_interval_ms: u32,
}

/// Where a session stands, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The engine's phase.
    pub phase: Phase,
    /// Highest seq given to the node.
    pub sent: Seq,
    /// Highest seq safe at the node.
    pub journaled: Seq,
    /// Highest seq safe in the vault.
    pub committed: Seq,
    /// When the newest point in the vault was set, on the agent's clock.
    pub point_at: Option<farshore_proto::Timestamp>,
    /// When the node gathers marks, on the agent's clock, and every interval from then on.
    pub gathers_at: Option<farshore_proto::Timestamp>,
    /// Blocks that this point lacks, because they could not be read; 0 if this run has not seen one.
    pub point_lacks_blocks: u32,
    /// Why the last session ended, in words; none while it streams.
    pub trouble: Option<String>,
    /// Whether another living agent claims the volume.
    pub is_contested: bool,
    /// Why the node refused it for good; none while it has not.
    pub halted: Option<RefusalReason>,
    /// The size under which the node welcomed it last; 0 before.
    pub size_bytes: u64,
}

/// Told of every point that reaches the vault.
pub type OnPoint = Box<dyn FnMut(Epoch, Seq, Mark) + Send>;

/// What a session is made of.
pub struct Session {
    /// The stream that it carries.
    pub stream: Arc<Stream>,
    /// What the log held when it was opened.
    pub opened: Opened,
    /// The marks in the log when it was opened.
    pub marks: Vec<(Seq, Mark)>,
    /// Opens transports.
    pub dial: Arc<dyn Dial>,
    /// Where to send; a new value means a new session.
    pub route: watch::Receiver<Route>,
    /// Where it stands is told here.
    pub standing: watch::Sender<Option<Standing>>,
    /// The agent's clock.
    pub clock: Clock,
    /// Told of every point.
    pub on_point: OnPoint,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Session {
    /// Carries the stream until dropped.
    pub async fn run(self) {
        Driver::new(self).run().await;
    }
}

/// A connection and what is happening on it.
struct Link {
    said: mpsc::Receiver<Result<Said, WireError>>,
    reader: JoinHandle<()>,
    /// Absent while a run is being written.
    writer: Option<WriteHalf<Box<dyn Transport>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What the driver waits for besides the node.
enum Work {
    Connected(Result<Box<dyn Transport>, DialError>),
    Read(Result<(Run, Cursor, Vec<u8>), LogError>),
    Written(io::Result<WriteHalf<Box<dyn Transport>>>, Vec<u8>),
}

struct Driver {
    session: Session,
    source: Source,
    todo: VecDeque<Output>,
    link: Option<Link>,
    work: Option<BoxFuture<'static, Work>>,
    cursor: Cursor,
    buffer: Vec<u8>,
    trouble: Option<String>,
    /// Of the last hello: what is acknowledged is committed under it, or was under one before.
    epoch: Epoch,
    /// When to try again to note that the stream joins.
    join_at: Option<Instant>,
    /// What the log could not be trimmed to, and when to try again: nothing more may ever commit.
    trim_again: Option<(Seq, Instant)>,
    /// The size in the last hello, and in the last one that was welcomed.
    said_bytes: u64,
    welcomed_bytes: u64,
    /// The mark over a stream that has not changed since, and its newest time.
    kept: Option<(Seq, u64)>,
    /// Blocks that the newest point in the vault lacks.
    point_lacks_blocks: u32,
}

impl Driver {
    fn new(session: Session) -> Self {
        let jitter = u64::from(session.stream.volume.0[15]);
        let interval_ms = u64::from(session.route.borrow().mark_interval_ms);
        let alive_ms = alive_ms(interval_ms);
        let settings = Settings { jitter, alive_ms, ..Settings::default() };
        let mut driver = Self {
            source: Source::new(settings, session.opened),
            session,
            todo: VecDeque::new(),
            link: None,
            work: None,
            cursor: Cursor::at(Seq(1)),
            buffer: Vec::new(),
            trouble: None,
            epoch: Epoch(0),
            join_at: None,
            trim_again: None,
            said_bytes: 0,
            welcomed_bytes: 0,
            kept: None,
            point_lacks_blocks: 0,
        };
        for (seq, mark) in std::mem::take(&mut driver.session.marks) {
            driver.feed_mark(seq, mark);
        }
        driver
    }

    async fn run(mut self) {
        self.feed(Input::Assigned);
        loop {
            let last = self.session.stream.log.last();
            self.feed(Input::Appended { last });
            self.feed_kept();
            while let Some(output) = self.todo.pop_front() {
                self.perform(output).await;
            }
            self.tell();
            self.wait().await;
        }
    }

    /// That nothing was written since a mark, once each time it is said: how old that word is comes from a wall
    /// clock, and one that was set back would make it younger each time.
    fn feed_kept(&mut self) {
        let kept = self.session.stream.log.kept_mark();
        let kept = kept.map(|(seq, mark)| (seq, mark.time_unix_ms));
        if self.kept == kept {
            return;
        }
        self.kept = kept;
        if let Some((seq, time_unix_ms)) = kept {
            let at = self.session.clock.at_wall(time_unix_ms);
            self.feed(Input::Unchanged { seq, at });
        }
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.source.step(self.session.clock.now(), input, &mut out);
        self.todo.extend(out);
    }

    fn feed_mark(&mut self, seq: Seq, mark: Mark) {
        let at = self.session.clock.at_wall(mark.time_unix_ms);
        self.feed(Input::Marked { seq, mark, at });
    }

    /// Waits for the next thing to happen and feeds it.
    async fn wait(&mut self) {
        let clock = self.session.clock;
        let deadline = self.source.deadline().map(|at| tokio::time::sleep_until(clock.instant(at)));
        let said = self.link.as_mut().map(|link| link.said.recv());
        let work = self.work.as_mut();
        let join_again = self.join_at.map(tokio::time::sleep_until);
        let trim_again = self.trim_again.map(|(_, at)| tokio::time::sleep_until(at));
        tokio::select! {
            Some(done) = OptionFuture::from(work) => {
                self.work = None;
                self.finish(done);
            }
            Some(said) = OptionFuture::from(said) => self.hear(said).await,
            () = self.session.stream.log.appended() => {}
            Some(()) = OptionFuture::from(deadline) => self.feed(Input::Tick),
            Some(()) = OptionFuture::from(join_again) => {
                self.join_at = None;
                self.todo.push_back(Output::Joined);
            }
            Some(()) = OptionFuture::from(trim_again) => {
                self.todo.extend(self.trim_again.take().map(|(seq, _)| Output::TrimTo { seq }));
            }
            Ok(()) = self.session.route.changed() => self.feed(Input::Assigned),
        }
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::Connect => {
                let target = self.session.route.borrow_and_update().target.clone();
                let dialing = self.session.dial.dial(target);
                self.work = Some(dialing.map(Work::Connected).boxed());
            }
            Output::Hello { first, last, is_overtaken } => {
                self.say_hello(first, last, is_overtaken).await;
            }
            Output::Close => self.hang_up(),
            Output::GiveUp(fault) => self.leave(fault.text()),
            Output::Joined => self.join().await,
            Output::Shared { is_shared } => self.share(is_shared).await,
            Output::Restart { next, breach } => {
                self.trim_again = None;
                let stream = Arc::clone(&self.session.stream);
                let task = tokio::task::spawn_blocking(move || stream.restart(next, breach)).await;
                self.restarted(
                    task.unwrap_or_else(|error| Err(RestartError::State(io::Error::other(error)))),
                );
            }
            Output::SendFrom { seq, bytes_max } => self.read_log(seq, bytes_max),
            Output::TrimTo { seq } => self.trim(seq).await,
            Output::SayAlive => self.write(Control::Alive.encode()),
            Output::PointCommitted { seq, mark } => {
                self.point_lacks_blocks = mark.unknown_blocks;
                (self.session.on_point)(self.epoch, seq, mark);
            }
        }
    }

    /// Trims the log, and if that fails tries again later. Waited for: a trim that came after a restart would
    /// take what is not committed.
    async fn trim(&mut self, seq: Seq) {
        let stream = Arc::clone(&self.session.stream);
        let volume = stream.volume;
        let trimmed = tokio::task::spawn_blocking(move || {
            stream.log.trim(seq).map_err(|error| error.to_string())
        });
        let trimmed = trimmed.await.unwrap_or_else(|error| Err(error.to_string()));
        self.trim_again = None;
        if let Err(error) = trimmed {
            tracing::warn!(%volume, error, "the log is not trimmed");
            self.trim_again = Some((seq, Instant::now() + TRIM_PAUSE));
        }
    }

    /// Notes that the stream joins. If that cannot be done, frames flow all the same, but no intent is
    /// cleared and nothing is copied until it is.
    async fn join(&mut self) {
        let stream = Arc::clone(&self.session.stream);
        let volume = stream.volume;
        let joined = tokio::task::spawn_blocking(move || stream.join()).await;
        match joined.map_err(io::Error::other).flatten() {
            Ok(()) => tracing::info!(%volume, "the stream joins"),
            Err(error) => {
                tracing::warn!(%volume, %error, "that the stream joins is not noted");
                self.join_at = Some(Instant::now() + JOIN_PAUSE);
            }
        }
    }

    /// Notes that another took the volume over, or that it is this agent's again. What is not noted costs a read
    /// of the disk, or is not known if this run ends and the next node knows not who sent what it has.
    async fn share(&mut self, is_shared: bool) {
        let stream = Arc::clone(&self.session.stream);
        let volume = stream.volume;
        let noted = tokio::task::spawn_blocking(move || stream.share(is_shared)).await;
        if let Err(error) = noted.map_err(io::Error::other).flatten() {
            tracing::warn!(%volume, is_shared, %error, "that another agent took it over is not noted");
        }
    }

    fn restarted(&mut self, restarted: Result<(), RestartError>) {
        match restarted {
            Ok(()) => self.feed(Input::Restarted),
            Err(error) => self.lose(error.to_string()),
        }
    }

    /// Writes the hello at once: it is smaller than any socket's buffer.
    async fn say_hello(&mut self, first: Seq, last: Seq, is_overtaken: bool) {
        let route = self.session.route.borrow().clone();
        self.epoch = route.epoch;
        let hello = Hello {
            volume: self.session.stream.volume,
            epoch: route.epoch,
            size_bytes: route.size_bytes,
            first_seq: first,
            last_seq: last,
            mark_interval_ms: route.mark_interval_ms,
            life: self.session.stream.life,
            is_overtaken,
        };
        self.said_bytes = route.size_bytes;
        let bytes = Control::Hello(hello).encode();
        let Some(writer) = self.link.as_mut().and_then(|link| link.writer.as_mut()) else { return };
        let written = match writer.write_all(&bytes).await {
            Ok(()) => writer.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            self.lose(format!("the connection to the node broke: {error}"));
        }
    }

    /// Begins to read a run of frames from the log.
    fn read_log(&mut self, seq: Seq, bytes_max: u64) {
        let mut cursor = self.cursor;
        if cursor.next() != seq {
            cursor = Cursor::at(seq);
        }
        let log = Arc::clone(&self.session.stream.log);
        let mut buffer = std::mem::take(&mut self.buffer);
        let task = tokio::task::spawn_blocking(move || {
            let run = log.read_run(&mut cursor, bytes_max, &mut buffer)?;
            Ok((run, cursor, buffer))
        });
        let read = task.map(|done| match done {
            Ok(read) => Work::Read(read),
            Err(error) => Work::Read(Err(LogError::Io {
                action: "read",
                path: "the log".into(),
                source: io::Error::other(error),
            })),
        });
        self.work = Some(read.boxed());
    }

    /// Begins to write bytes to the node.
    fn write(&mut self, bytes: Vec<u8>) {
        let Some(mut writer) = self.link.as_mut().and_then(|link| link.writer.take()) else {
            return;
        };
        let writing = async move {
            let written = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            let written = written.await;
            Work::Written(written.map(|()| writer), bytes)
        };
        self.work = Some(writing.boxed());
    }

    fn finish(&mut self, done: Work) {
        match done {
            Work::Connected(Ok(transport)) => self.connected(transport),
            Work::Connected(Err(error)) => self.lose(error.to_string()),
            Work::Read(Ok((run, cursor, buffer))) => {
                self.cursor = cursor;
                // The run may hold what was appended since the log was looked at.
                let last = self.session.stream.log.last();
                self.feed(Input::Appended { last });
                for (seq, mark) in &run.marks {
                    self.feed_mark(*seq, *mark);
                }
                self.feed(Input::Sending { last: run.last, bytes: buffer.len() as u64 });
                self.write(buffer);
            }
            Work::Read(Err(error)) => self.log_failed(&error),
            Work::Written(Ok(writer), buffer) => {
                if let Some(link) = &mut self.link {
                    link.writer = Some(writer);
                }
                self.buffer = buffer;
                self.feed(Input::Ready);
            }
            Work::Written(Err(error), _) => {
                self.lose(format!("the connection to the node broke: {error}"));
            }
        }
    }

    /// A log that cannot be read back is treated like one that was lost: the disk is the truth.
    fn log_failed(&mut self, error: &LogError) {
        let volume = self.session.stream.volume;
        match error {
            LogError::Io { .. } => self.lose(error.to_string()),
            LogError::Damaged { .. } | LogError::Missing { .. } => {
                tracing::error!(%volume, %error, "the log is damaged: the whole disk is sent again");
                self.trouble = Some(error.to_string());
                self.hang_up();
                self.feed(Input::Refused(RefusalReason::Gap));
            }
        }
    }

    fn connected(&mut self, transport: Box<dyn Transport>) {
        let (reader, writer) = tokio::io::split(transport);
        let (sender, said) = mpsc::channel(SAID_MAX);
        let reader = tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            loop {
                let said = read_said(&mut reader).await;
                let is_over = said.is_err();
                if sender.send(said).await.is_err() || is_over {
                    return;
                }
            }
        });
        self.link = Some(Link { said, reader, writer: Some(writer) });
        let place = self.session.stream.log.place();
        self.feed(Input::Appended { last: place.last });
        self.feed(Input::Connected { first: place.first, last: place.last });
    }

    async fn hear(&mut self, said: Option<Result<Said, WireError>>) {
        match said {
            Some(Ok(Said::Welcome(welcome))) => {
                self.trouble = None;
                self.welcomed_bytes = self.said_bytes;
                let stream = Arc::clone(&self.session.stream);
                let held = tokio::task::spawn_blocking(move || stream.held(welcome.received));
                match held.await {
                    Ok(held) => {
                        // Sending goes on there: what was passed over is not read again.
                        self.cursor = held.map_or(self.cursor, |held| held.behind);
                        let held = held.map(|held| (held.stamp, held.imprint));
                        self.feed(Input::Welcomed { welcome, held });
                    }
                    Err(error) => self.lose(format!("the log cannot be read: {error}")),
                }
            }
            Some(Ok(Said::Ack(ack))) => self.feed(Input::Acked(ack)),
            Some(Ok(Said::Refusal(refusal))) => {
                let volume = self.session.stream.volume;
                let reason = refusal.reason.word();
                tracing::warn!(%volume, reason, text = refusal.text, "the node ended the session");
                self.trouble = Some(format!("the node ended the session: {}", refusal.text));
                self.hang_up();
                self.feed(Input::Refused(refusal.reason));
            }
            Some(Err(error)) => {
                if error.kind() != farshore_proto::ErrorKind::Unavailable {
                    tracing::warn!(volume = %self.session.stream.volume, %error, "bad frame");
                }
                self.lose(error.to_string());
            }
            None => self.lose("the connection to the node broke".to_owned()),
        }
    }

    fn lose(&mut self, why: String) {
        self.leave(why);
        self.feed(Input::Lost);
    }

    /// Ends the session, and tells why.
    fn leave(&mut self, why: String) {
        if self.trouble.is_none() {
            tracing::info!(volume = %self.session.stream.volume, why, "no session");
        }
        self.trouble = Some(why);
        self.hang_up();
    }

    fn hang_up(&mut self) {
        self.link = None;
        self.work = None;
        // What was asked of the lost transport is void; what concerns others is not.
        self.todo.retain(|output| {
            !matches!(
                output,
                Output::SendFrom { .. }
                    | Output::SayAlive
                    | Output::Hello { .. }
                    | Output::Close
                    | Output::GiveUp(_)
            )
        });
    }

    fn tell(&mut self) {
        let standing = Standing {
            phase: self.source.phase(),
            sent: self.source.sent(),
            journaled: self.source.journaled(),
            committed: self.source.committed(),
            point_at: self.source.point_at(),
            gathers_at: self.source.gathers_at(),
            trouble: self.trouble.clone(),
            is_contested: self.source.refusal() == Some(RefusalReason::Contested),
            halted: self.source.halted(),
            size_bytes: self.welcomed_bytes,
            point_lacks_blocks: self.point_lacks_blocks,
        };
        self.session.standing.send_if_modified(|told| {
            let is_new = told.as_ref() != Some(&standing);
            if is_new {
                *told = Some(standing);
            }
            is_new
        });
    }
}
