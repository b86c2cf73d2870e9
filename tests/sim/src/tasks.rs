//! The executor under the vault's `async` calls: tasks run when a timer or another task woke them,
//! one at a time, in an order that only the seed decides.

use crate::world::{Event, Process};
use farshore_vault::Timer;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Work = Pin<Box<dyn Future<Output = Event> + Send>>;

struct Task {
    owner: (Process, u64),
    work: Work,
}

/// All tasks of all processes.
#[derive(Default)]
pub(crate) struct Tasks {
    next: u64,
    running: BTreeMap<u64, Task>,
    ready: Arc<Mutex<VecDeque<u64>>>,
    /// Woken while their process was stopped.
    held: Vec<u64>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tasks").field("running", &self.running.len()).finish()
    }
}

struct Wakeup {
    task: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).push_back(self.task);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        owner: (Process, u64),
        work: impl Future<Output = Event> + Send + 'static,
    ) {
        let task = self.next;
        self.next += 1;
        self.running.insert(task, Task { owner, work: Box::pin(work) });
        lock(&self.ready).push_back(task);
    }

    /// Drops what a process was doing.
    pub(crate) fn abort(&mut self, process: Process) {
        self.running.retain(|_, task| task.owner.0 != process);
    }

    /// A process that was stopped goes on: so do its tasks.
    pub(crate) fn resume(&mut self) {
        lock(&self.ready).extend(self.held.drain(..));
    }

    /// Runs what can run, except for stopped processes; returns what ended.
    pub(crate) fn poll(
        &mut self,
        is_stopped: impl Fn(Process) -> bool,
    ) -> Vec<((Process, u64), Event)> {
        let mut done = Vec::new();
        loop {
            let Some(number) = lock(&self.ready).pop_front() else { return done };
            let Some(task) = self.running.get_mut(&number) else { continue };
            if is_stopped(task.owner.0) {
                self.held.push(number);
                continue;
            }
            let wakeup = Wakeup { task: number, ready: Arc::clone(&self.ready) };
            let waker = Waker::from(Arc::new(wakeup));
            if let Poll::Ready(event) = task.work.as_mut().poll(&mut Context::from_waker(&waker)) {
                done.push((task.owner, event));
                self.running.remove(&number);
            }
        }
    }
}

/// What waits for a moment.
#[derive(Debug)]
pub(crate) enum Alarm {
    /// Wake a task.
    Wake(Waker),
    /// The store carries a request out.
    Store(u64),
}

/// Alarms set by tasks; the world moves them into its queue, and tells the time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarms {
    set: Arc<Mutex<Vec<(Duration, Alarm)>>>,
    now_us: Arc<AtomicU64>,
}

impl Alarms {
    pub(crate) fn set(&self, after: Duration, alarm: Alarm) {
        lock(&self.set).push((after, alarm));
    }

    pub(crate) fn take(&self) -> Vec<(Duration, Alarm)> {
        std::mem::take(&mut *lock(&self.set))
    }

    /// The moment.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_micros(self.now_us.load(Ordering::Relaxed))
    }

    /// It is so late now.
    pub(crate) fn tell_time(&self, now_us: u64) {
        self.now_us.store(now_us, Ordering::Relaxed);
    }
}

/// Virtual time for who waits inside the vault's code.
#[derive(Debug)]
pub(crate) struct VirtualTimer(pub(crate) Alarms);

impl Timer for VirtualTimer {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        Sleep::new(self.0.clone(), wait).boxed()
    }
}

/// Ready after some virtual time, and not before, however often it is polled: a task that gave up on other calls is still woken by them.
#[derive(Debug)]
pub struct Sleep {
    alarms: Alarms,
    wait: Duration,
    /// When it is over; none before it was polled.
    until: Option<Duration>,
}

impl Sleep {
    pub(crate) fn new(alarms: Alarms, wait: Duration) -> Self {
        Self { alarms, wait, until: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = self.alarms.now();
        match self.until {
            Some(until) if now >= until => Poll::Ready(()),
            Some(_) => Poll::Pending,
            None => {
                let us = u64::try_from(self.wait.as_micros()).expect("waits are short");
                self.until = Some(now + Duration::from_micros(us));
                self.alarms.set(self.wait, Alarm::Wake(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}
