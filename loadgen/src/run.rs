//! A run from the enrolment to the report.

use crate::content::Content;
use crate::dial::{Dial, Route, TlsDial};
use crate::enrol::{EnrolError, Enrolment, Member, machine_name, remove, route_of};
use crate::limits::{CONNECTING_MAX, ENROL_THREADS, ENROLLING_MAX, START_MARGIN, START_TIME_MAX};
use crate::operator::{Operator, OperatorError};
use crate::plan::{Plan, PlanError};
use crate::progress::{Lines, Steps};
use crate::report::{Findings, Report, Snapshot};
use crate::source::{Load, Locate, Outcome, Source};
use crate::tally::{Tally, Times};
use crate::timetable::Timetable;
use farshore_client::{ControlClient, Identity, Peer, client_config};
use futures::future::BoxFuture;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Between two looks at how many writes wait.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Descriptors that the process needs beside one for each source.
const OWN_DESCRIPTORS: u64 = 128;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The plan is not possible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The control plane did not do its part.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// A source could not be enrolled.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The system is out of something.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// Too few descriptors.
    #[error(
        "{sources} sources need {needed} open files, but this process may have {limit}: raise the \
        limit with `ulimit -n {needed}`"
    )]
    Descriptors {
        /// Number of sources.
        sources: u32,
        /// What they need.
        needed: u64,
        /// What there is.
        limit: u64,
    },
    /// TLS cannot be set up.
    #[error("{machine}: cannot set up TLS: {error}")]
    Tls {
        /// The machine.
        machine: String,
        /// Why.
        error: rustls::Error,
    },
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |error| RunError::System { doing, error }
}

/// Does a whole run. Without a folder for identities it makes new ones in a temporary folder, and
/// removes their machines at the end. Blocks.
///
/// # Errors
/// [`RunError`] if it could not begin; what fails later is in the report.
pub fn run(
    plan: &Plan,
    operator: &Operator,
    identities: Option<PathBuf>,
) -> Result<(Report, Times), RunError> {
    plan.check()?;
    raise_descriptors(plan.members())?;
    let began = Instant::now();
    let temporary = match identities {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(system("make a temporary folder"))?),
    };
    let folder = identities.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned()));
    let folder = folder.unwrap_or_default();
    let enrolled = enrol(plan, operator, folder, temporary.is_some())?;
    let enrol = began.elapsed();
    let runtime = threads(plan.threads)?;
    let carried = runtime.block_on(carry(plan, operator.url(), &enrolled.members));
    drop(runtime);
    let (mut found, load) = carried?;
    if temporary.is_some() {
        withdraw(operator, &enrolled.made)?;
    }
    (found.enrol, found.wall) = (enrol, began.elapsed());
    Ok((Report::of(&found, &load.tally), load.tally.times()))
}

fn threads(count: usize) -> Result<Runtime, RunError> {
    let runtime = Builder::new_multi_thread().worker_threads(count).enable_all().build();
    runtime.map_err(system("start the event loop"))
}

/// Raises the limit of open files if it has to be.
fn raise_descriptors(sources: u32) -> Result<(), RunError> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let needed = u64::from(sources) + OWN_DESCRIPTORS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < needed) {
        return Err(RunError::Descriptors { sources, needed, limit: maximum });
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|error| RunError::System {
        doing: "raise the limit of open files",
        error: error.into(),
    })
}

struct Enrolled {
    members: Vec<Member>,
    /// Machines that this run protected.
    made: Vec<String>,
}

/// Enrols on threads of its own: identities are written to the disk in between.
fn enrol(
    plan: &Plan,
    operator: &Operator,
    folder: PathBuf,
    is_temporary: bool,
) -> Result<Enrolled, RunError> {
    let runtime = threads(ENROL_THREADS)?;
    let (enrolled, made) = runtime.block_on(async {
        let enrolment = Enrolment::new(operator.clone(), folder, plan.mark_interval).await?;
        let made: Vec<_> = (0..plan.members())
            .map(machine_name)
            .filter(|machine| !enrolment.exists(machine))
            .collect();
        let steps = Steps::of("enrol", plan.members().into());
        let members = enrolment.all(plan.members(), || steps.step()).await;
        steps.finish();
        Ok::<_, RunError>((members, made))
    })?;
    drop(runtime);
    match enrolled {
        Ok(members) => Ok(Enrolled { members, made }),
        Err(error) => {
            if is_temporary {
                // Some of them were not made yet; the first error is the one to tell.
                let _ = withdraw(operator, &made);
            }
            Err(error.into())
        }
    }
}

/// Ends the protection of machines whose identities nobody keeps.
fn withdraw(operator: &Operator, made: &[String]) -> Result<(), RunError> {
    if made.is_empty() {
        return Ok(());
    }
    let steps = Steps::of("unprotect", made.len() as u64);
    let removed = threads(1)?.block_on(remove(operator, made, &|_| steps.step()));
    steps.finish();
    Ok(removed?)
}

/// Asks the control plane again, with the source's own certificate.
struct Ask {
    url: String,
    member: Member,
    places: Arc<Semaphore>,
}

impl Locate for Ask {
    fn locate(&self) -> BoxFuture<'static, Result<Route, String>> {
        let (url, member) = (self.url.clone(), self.member.clone());
        let places = Arc::clone(&self.places);
        Box::pin(async move {
            // It is never closed.
            let _place = places.acquire().await;
            let identity: &Arc<Identity> = &member.identity;
            let failed = |_| "control plane: no client".to_owned();
            let control = ControlClient::new(&url, identity).map_err(failed)?;
            match route_of(&control, &member.machine).await {
                Ok(Some(route)) => Ok(route),
                Ok(None) => Err("control plane: not placed".to_owned()),
                Err(error) => Err(format!("control plane: {:?}", error.kind())),
            }
        })
    }
}

/// All sources of a run while they are on their way.
struct Fleet {
    load: Arc<Load>,
    tables: Vec<Timetable>,
    tasks: JoinSet<Outcome>,
    outcomes: Vec<Outcome>,
    lines: Lines,
    last: (u64, u64, u64),
    backlog_max: u64,
}

async fn carry(
    plan: &Plan,
    url: &str,
    members: &[Member],
) -> Result<(Findings, Arc<Load>), RunError> {
    let load = Arc::new(Load {
        content: Content::new(plan.recipe()),
        interval: plan.interval(),
        end: plan.run_time(),
        mark_interval: plan.mark_interval,
        tally: Tally::new(plan.window()),
        connecting: Semaphore::new(CONNECTING_MAX),
    });
    let (starter, start) = watch::channel(None);
    let (ready, mut welcomed) = mpsc::channel(members.len().max(1));
    let places = Arc::new(Semaphore::new(ENROLLING_MAX));
    let mut tasks = JoinSet::new();
    for (number, member) in (0_u32..).zip(members) {
        let tls = client_config(&member.identity, Peer::Node)
            .map_err(|error| RunError::Tls { machine: member.machine.clone(), error })?;
        let ask = Ask { url: url.to_owned(), member: member.clone(), places: places.clone() };
        let dial: Arc<dyn Dial> = Arc::new(TlsDial::new(Arc::new(tls)));
        let (load, ready, start) = (Arc::clone(&load), ready.clone(), start.clone());
        let (route, locate) = (member.route.clone(), Arc::new(ask));
        let source = Source { number, load, route, dial, locate, ready, start };
        tasks.spawn(source.run());
    }
    drop((ready, start));
    let tables: Vec<_> = (0..plan.members()).map(|source| load.timetable(source)).collect();
    let connecting = Instant::now();
    let mut fleet = Fleet {
        load: Arc::clone(&load),
        tables,
        tasks,
        outcomes: Vec::new(),
        lines: Lines::new(),
        last: (0, 0, 0),
        backlog_max: 0,
    };
    let is_interrupted = gather(&mut welcomed, plan.members()).await;
    let connect = connecting.elapsed();
    let begin = Instant::now() + START_MARGIN;
    let began_unix =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + START_MARGIN;
    starter.send_replace(Some(begin));
    let (window, is_interrupted) =
        if is_interrupted { (None, true) } else { fleet.until_the_end(begin).await };
    fleet.tasks.abort_all();
    let now = Snapshot::of(&load.tally);
    let counted = load.tally.window;
    let in_window = |table: &Timetable| {
        // `due_by` counts its instant too; the window does not hold its end.
        let before = |at: Duration| table.due_by(at.saturating_sub(Duration::from_nanos(1)));
        let early = if counted.begin.is_zero() { 0 } else { before(counted.begin) };
        before(counted.end) - early
    };
    let found = Findings {
        asked: plan.asked(),
        unfinished: u64::from(plan.members()) - fleet.outcomes.len() as u64,
        is_interrupted,
        offered_writes: fleet.tables.iter().map(in_window).sum(),
        writes_due: fleet.tables.iter().map(Timetable::writes).sum(),
        window: window.unwrap_or((now, now)),
        backlog_of_all_max: fleet.backlog_max,
        outcomes: fleet.outcomes,
        began_unix,
        connect,
        enrol: Duration::ZERO,
        wall: Duration::ZERO,
    };
    Ok((found, load))
}

/// Waits until every source was welcomed or never will be. True if somebody interrupts.
async fn gather(welcomed: &mut mpsc::Receiver<Result<(), String>>, sources: u32) -> bool {
    let steps = Steps::of("connect", sources.into());
    let limit = Instant::now() + START_TIME_MAX;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    for _ in 0..sources {
        tokio::select! {
            told = timeout_at(limit, welcomed.recv()) => match told {
                Ok(Some(_)) => steps.step(),
                // Whoever is late begins late: its clock runs all the same.
                Ok(None) | Err(_) => break,
            },
            _ = interrupt.as_mut() => return true,
        }
    }
    steps.finish();
    false
}

impl Fleet {
    /// Lets the sources run. Returns the sums when the window began and ended, and whether somebody
    /// interrupted.
    async fn until_the_end(&mut self, start: Instant) -> (Option<(Snapshot, Snapshot)>, bool) {
        let window = self.load.tally.window;
        let mut begin = None;
        let mut end = None;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut look = start;
        while !self.tasks.is_empty() {
            let elapsed = Instant::now().saturating_duration_since(start);
            if begin.is_none() && elapsed >= window.begin {
                begin = Some(Snapshot::of(&self.load.tally));
            }
            if end.is_none() && elapsed >= window.end {
                end = Some(Snapshot::of(&self.load.tally));
            }
            self.look(elapsed);
            look = (look + LOOK_EVERY).max(Instant::now());
            let edges = [window.begin, window.end].map(|edge| start + edge);
            let next = edges.into_iter().filter(|edge| *edge > Instant::now()).min();
            let until = next.map_or(look, |edge| edge.min(look));
            loop {
                tokio::select! {
                    ended = self.tasks.join_next() => match ended {
                        Some(Ok(outcome)) => self.outcomes.push(outcome),
                        // A source that panicked has no outcome and counts as failed.
                        Some(Err(_)) => {}
                        None => break,
                    },
                    () = sleep_until(until) => break,
                    _ = interrupt.as_mut() => return (begin.zip(end), true),
                }
            }
        }
        let now = || Snapshot::of(&self.load.tally);
        (Some((begin.unwrap_or_else(now), end.unwrap_or_else(now))), false)
    }

    /// Counts what waits, and tells how it goes.
    fn look(&mut self, elapsed: Duration) {
        let sums = &self.load.tally.sums;
        let due: u64 = self.tables.iter().map(|table| table.due_by(elapsed)).sum();
        let waiting = due.saturating_sub(sums.sent_writes.load(Relaxed));
        self.backlog_max = self.backlog_max.max(waiting);
        let Some(since) = self.lines.due() else { return };
        let now = (
            sums.sent_bytes.load(Relaxed),
            sums.journaled_bytes.load(Relaxed),
            sums.committed_bytes.load(Relaxed),
        );
        #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
        let rate = |now: u64, last: u64| (now - last) as f64 / since.as_secs_f64() / 1e6;
        let p99 = Duration::from_micros(self.load.tally.journaled_at(99.0)).as_secs_f64() * 1e3;
        farshore_program::tell!(
            "{:>5.0} s: sent {:.1}, journaled {:.1}, committed {:.1} MB/s; journaled p99 {p99:.1} ms; \
             {waiting} writes wait",
            elapsed.as_secs_f64(),
            rate(now.0, self.last.0),
            rate(now.1, self.last.1),
            rate(now.2, self.last.2),
        );
        self.last = now;
    }
}
