//! One source: it writes when its timetable says, whatever comes back, and reconnects as agents do.

mod session;

use crate::content::Content;
use crate::dial::{Dial, Route};
use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, DRAIN_TIME_MAX, FAILURE_BYTES_MAX};
use crate::marks::Marks;
use crate::random::draw;
use crate::stream::Stream;
use crate::tally::Tally;
use crate::timetable::{Timetable, first_mark};
use futures::future::BoxFuture;
use session::{End, Session};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// What all sources of a run have in common.
#[derive(Debug)]
pub struct Load {
    /// What they write.
    pub content: Content,
    /// Time between two writes of one source.
    pub interval: Duration,
    /// When the timetable ends, counted from the start.
    pub end: Duration,
    /// Time between two marks of one source.
    pub mark_interval: Duration,
    /// Where they put what they find.
    pub tally: Tally,
    /// Limits how many connect at the same time.
    pub connecting: Semaphore,
}

impl Load {
    /// When whatever is not committed counts as lost, counted from the start.
    #[must_use]
    pub fn give_up(&self) -> Duration {
        self.end + self.mark_interval + DRAIN_TIME_MAX
    }

    /// The timetable of a source; those behind the ones that the recipe counts are idle.
    #[must_use]
    pub fn timetable(&self, source: u32) -> Timetable {
        let recipe = self.content.recipe();
        if source < recipe.sources {
            Timetable::new(recipe.seed, source, self.interval, self.end)
        } else {
            Timetable::once(recipe.seed, source, self.mark_interval, self.end)
        }
    }

    fn marks(&self, source: u32) -> Marks {
        let first = first_mark(self.content.recipe().seed, source, self.mark_interval);
        Marks::new(first, self.mark_interval, self.end)
    }
}

/// Asks the control plane where a source's volume is now.
pub trait Locate: Send + Sync + 'static {
    /// The route; the error says why there is none.
    fn locate(&self) -> BoxFuture<'static, Result<Route, String>>;
}

/// How a source ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its number.
    pub source: u32,
    /// Writes that its timetable had.
    pub due: u64,
    /// Writes that are committed.
    pub committed: u64,
    /// Writes that were journaled at least once.
    pub journaled: u64,
    /// Why it cannot go on, if it could not.
    pub failure: Option<String>,
}

/// One source.
pub struct Source {
    /// Its number, from 0.
    pub number: u32,
    /// What it has in common with the others.
    pub load: Arc<Load>,
    /// Where its volume was placed.
    pub route: Route,
    /// Opens connections.
    pub dial: Arc<dyn Dial>,
    /// Asks where the volume is now.
    pub locate: Arc<dyn Locate>,
    /// Told once: that it was welcomed, or why it never will be.
    pub ready: mpsc::Sender<Result<(), String>>,
    /// The start of the run, when it is known.
    pub start: watch::Receiver<Option<Instant>>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Source").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Waits longer after each failure in a row; spread over the sources.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn pause(&mut self, source: u32) -> Duration {
        let pause = (BACKOFF_MIN * (1 << self.failures.min(10))).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let spread = draw(0, "backoff", source.into(), self.failures.into()) % 256;
        // By up to a quarter shorter.
        pause - pause / 4 * u32::try_from(spread).unwrap_or(0) / 256
    }
}

impl Source {
    /// Connects, waits for the start, writes by the timetable, waits until all is committed.
    pub async fn run(self) -> Outcome {
        let table = self.load.timetable(self.number);
        let mut stream = Stream::new();
        let failure = self.carry(table, &mut stream).await.err();
        let (journaled, committed) = stream.acked_writes();
        let failure = failure.map(|mut text| {
            text.truncate(text.floor_char_boundary(FAILURE_BYTES_MAX));
            text
        });
        let (source, due) = (self.number, table.writes());
        Outcome { source, due, committed, journaled, failure }
    }

    /// One connection after the other.
    async fn carry(&self, table: Timetable, stream: &mut Stream) -> Result<(), String> {
        let (load, tally) = (&self.load, &self.load.tally);
        let mut route = self.route.clone();
        let mut backoff = Backoff::default();
        let mut sessions = 0_u64;
        // Survives connections, as the stream does.
        let mut marks = load.marks(self.number);
        loop {
            let deadline = self.start.borrow().map(|start| start + load.give_up());
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err("no session until the end of the run".to_owned());
            }
            let opened = self.open(&route, stream).await;
            let end = match opened {
                Ok(mut session) => {
                    sessions += 1;
                    if sessions > 1 {
                        tally.reconnected();
                    } else {
                        // Nobody listens any more if the others took too long.
                        let _ = self.ready.send(Ok(())).await;
                    }
                    let start = self.started().await;
                    let end = session.carry(self, &table, stream, &mut marks, start).await;
                    if session.was_acked() {
                        backoff = Backoff::default();
                    }
                    end
                }
                Err(end) => end,
            };
            match end {
                End::Done => return Ok(()),
                End::Fatal(text) => {
                    if sessions == 0 {
                        let _ = self.ready.send(Err(text.clone())).await;
                    }
                    return Err(text);
                }
                End::Late => return Ok(()),
                End::Lost(reason) => tally.failed(&reason),
                End::Refused { word, is_patient } => {
                    tally.refused(&word);
                    if is_patient {
                        backoff.failures = u32::MAX;
                    }
                }
            }
            self.pause(&mut backoff, deadline).await;
            // The volume may have been given to another node, or to a newer epoch.
            match self.locate.locate().await {
                Ok(found) => route = found,
                Err(reason) => tally.failed(&reason),
            }
        }
    }

    async fn pause(&self, backoff: &mut Backoff, deadline: Option<Instant>) {
        let pause = backoff.pause(self.number);
        match deadline {
            Some(deadline) => sleep_until((Instant::now() + pause).min(deadline)).await,
            None => sleep(pause).await,
        }
    }

    /// Connects and is welcomed.
    async fn open(&self, route: &Route, stream: &mut Stream) -> Result<Session, End> {
        // It is never closed.
        let _place = self.load.connecting.acquire().await;
        let dialed = self.dial.dial(route.clone()).await;
        let transport = dialed.map_err(|error| End::Lost(error.word()))?;
        let mut session = Session::over(transport);
        let limit = Instant::now() + crate::limits::WELCOME_TIME_MAX;
        let greeting = timeout_at(limit, session.greet(self, route, stream)).await;
        greeting.unwrap_or_else(|_| Err(End::Lost("no welcome in time".to_owned())))?;
        Ok(session)
    }

    /// Waits until the start is known.
    async fn started(&self) -> Instant {
        let mut start = self.start.clone();
        let known = start.wait_for(Option::is_some).await;
        // If the run is gone this task is too, in a moment.
        known.ok().and_then(|known| *known).unwrap_or_else(Instant::now)
    }
}

#[cfg(test)]
mod tests;
