//! Threads with an executor that was made before anything is given to it: a shard whose executor cannot be
//! made would be one that answers nobody, while its node says that it is ready.

use super::{Ring, RtKind, Threads};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use futures::future::LocalBoxFuture;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a thread runs; made on that thread.
pub(super) type Main = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// A thread whose executor is made, and waits for what to run. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Prepared {
    begin: Sender<Main>,
    thread: JoinHandle<()>,
}

/// What such a thread has of whoever prepares it.
#[derive(Debug)]
pub(super) struct Preparer {
    said: Sender<io::Result<()>>,
    main: Receiver<Main>,
}

impl Preparer {
    /// Says that the executor works, and waits for what to run; none if nobody wants it any more. Blocks.
    pub(super) fn main(&self) -> Option<Main> {
        self.said.send(Ok(())).ok()?;
        self.main.recv().ok()
    }

    /// Says that there is no executor.
    pub(super) fn fail(&self, error: io::Error) {
        // Whoever prepares may have waited long enough.
        let _ = self.said.send(Err(error));
    }
}

impl Prepared {
    /// Starts a thread, which makes its executor, and waits for its word.
    ///
    /// # Errors
    /// `TimedOut` if that takes longer than `patience`; what the thread says.
    pub(super) fn spawn(
        name: &str,
        patience: Duration,
        body: impl FnOnce(Preparer) + Send + 'static,
    ) -> io::Result<Self> {
        let (begin, main) = bounded::<Main>(1);
        let (said, made) = bounded(1);
        let body = move || body(Preparer { said, main });
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        match made.recv_timeout(patience) {
            Ok(Ok(())) => Ok(Self { begin, thread }),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the thread ended before its executor was made"))
            }
        }
    }

    /// Runs `main` on the thread.
    ///
    /// # Errors
    /// If the thread has ended.
    pub(crate) fn run<F: Future<Output = ()> + 'static>(
        self,
        main: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let main: Main = Box::new(move || Box::pin(main()));
        match self.begin.send(main) {
            Ok(()) => Ok(self.thread),
            Err(_) => Err(io::Error::other("the thread has ended")),
        }
    }
}

/// The executor that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the executor of {name}{}: {error}", on(*cpu))]
pub(crate) struct Unmade {
    name: String,
    cpu: Option<usize>,
    #[source]
    error: io::Error,
}

fn on(cpu: Option<usize>) -> String {
    cpu.map_or_else(String::new, |cpu| format!(" on CPU {cpu}"))
}

/// Makes the executors of so many shards: all of them, or none. With `Auto` they are of plain threads if
/// not all of the rings can be had.
///
/// # Errors
/// The first that cannot be made.
pub(crate) fn prepare(kind: RtKind, shards: usize) -> Result<(RtKind, Vec<Prepared>), Unmade> {
    prepare_with(kind, shards, Ring::prepare)
}

fn prepare_with(
    kind: RtKind,
    shards: usize,
    ring: impl Fn(&str, Option<usize>) -> io::Result<Prepared>,
) -> Result<(RtKind, Vec<Prepared>), Unmade> {
    if kind != RtKind::Threads {
        match rings(shards, ring) {
            Ok(rings) => return Ok((RtKind::Ring, rings)),
            Err(error) if kind == RtKind::Ring => return Err(error),
            Err(error) => tracing::warn!(%error, "shards run on plain threads, without io_uring"),
        }
    }
    let threads = (0..shards).map(|shard| {
        let name = format!("shard-{shard}");
        Threads::prepare(&name).map_err(|error| Unmade { name, cpu: None, error })
    });
    Ok((RtKind::Threads, threads.collect::<Result<_, _>>()?))
}

fn rings(
    shards: usize,
    ring: impl Fn(&str, Option<usize>) -> io::Result<Prepared>,
) -> Result<Vec<Prepared>, Unmade> {
    let cpus = cpus();
    let rings = (0..shards).map(|shard| {
        let name = format!("shard-{shard}");
        let cpu = cpus.get(shard % cpus.len().max(1)).copied();
        ring(&name, cpu).map_err(|error| Unmade { name, cpu, error })
    });
    rings.collect()
}

/// The CPUs that this process may use, by their numbers: of a machine's, a container has any. None if the
/// system does not say.
fn cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot find out which CPUs there are; shards are not pinned");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{CpuSet, sched_setaffinity};
    use std::time::Instant;

    /// Each shard says on which CPUs it may run.
    fn run(prepared: Vec<Prepared>) -> Vec<Vec<usize>> {
        let (said, listening) = bounded(prepared.len());
        let threads: Vec<JoinHandle<()>> = prepared
            .into_iter()
            .map(|thread| {
                let said = said.clone();
                thread.run(move || async move { said.send(cpus()).unwrap() }).unwrap()
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(said);
        listening.iter().collect()
    }

    /// As `taskset` and a container's cpuset do, without the first CPU where there are others.
    #[test]
    fn shards_are_pinned_to_the_cpus_that_there_are() {
        let last = *cpus().last().unwrap();
        let mut set = CpuSet::new();
        set.set(last);
        sched_setaffinity(None, &set).unwrap();
        assert_eq!(cpus(), [last]);
        let (kind, prepared) = prepare(RtKind::Auto, 3).unwrap();
        let is_ring = kind == RtKind::Ring;
        let ran = run(prepared);
        assert_eq!(ran, vec![vec![last]; 3], "on {kind:?}");
        if !is_ring {
            println!("io_uring is not allowed here: tried with plain threads only");
        }
    }

    #[test]
    fn a_ring_on_a_cpu_that_there_is_not_is_an_error_at_once() {
        let missing = cpus().last().unwrap() + 1;
        let begin = Instant::now();
        let error = Ring::prepare("nowhere", Some(missing)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(1), "{error}");
    }

    #[test]
    fn rings_that_cannot_all_be_made_are_an_error_at_once() {
        // A ring takes descriptors: for some there are enough.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let whole = getrlimit(Resource::Nofile);
        let few = Rlimit { current: Some(open + 14), ..whole };
        setrlimit(Resource::Nofile, few).unwrap();
        let begin = Instant::now();
        let error = prepare(RtKind::Ring, 64).unwrap_err();
        setrlimit(Resource::Nofile, whole).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(error.to_string().starts_with("cannot make the executor of shard-"), "{error}");
    }

    #[test]
    fn where_not_all_rings_can_be_had_all_shards_run_on_plain_threads() {
        let made = std::cell::Cell::new(0);
        let ring = |name: &str, _: Option<usize>| {
            made.set(made.get() + 1);
            match made.get() {
                3 => Err(io::Error::other("no more rings")),
                _ => Threads::prepare(name),
            }
        };
        let (kind, prepared) = prepare_with(RtKind::Auto, 4, ring).unwrap();
        assert_eq!((kind, made.get(), run(prepared).len()), (RtKind::Threads, 3, 4));
        made.set(0);
        let error = prepare_with(RtKind::Ring, 4, ring).unwrap_err();
        assert!(error.to_string().contains("shard-2"), "{error}");
        assert!(error.to_string().ends_with("no more rings"), "{error}");
    }
}
