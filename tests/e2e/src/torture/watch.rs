//! What the operator sees, asked for all the time; and what must not be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::Farshore;
use crate::wait;

/// Time between two questions.
const ASK_PAUSE: Duration = Duration::from_millis(150);

/// Milliseconds since 1970, as agents stamp their marks.
pub(super) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Clocks are set wrong by three hours: a time that is so far from now is of such a clock.
const DOUBT_MS: u64 = 90 * 60 * 1000;

/// When a point was set. If an agent's clock was wrong then, the control plane tells; if its own was, the
/// agent.
pub(super) fn set_ms(point: &Value) -> Option<u64> {
    let told = point["time_unix_ms"].as_u64()?;
    let is_doubtful = told.abs_diff(unix_ms()) > DOUBT_MS;
    let known = point["at_unix_ms"].as_u64();
    Some(known.filter(|_| is_doubtful).unwrap_or(told))
}

/// What was seen that must not be.
#[derive(Debug, Default)]
pub(super) struct Violations(Mutex<Vec<String>>);

impl Violations {
    pub(super) fn note(&self, text: String) {
        eprintln!("VIOLATED: {text}");
        lock(&self.0).push(text);
    }

    /// Fails once something was noted.
    pub(super) fn check(&self) -> Result<()> {
        match lock(&self.0).first() {
            Some(text) => bail!("{text}"),
            None => Ok(()),
        }
    }

    pub(super) fn all(&self) -> Vec<String> {
        lock(&self.0).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine as `machine list` showed it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) state: String,
    pub(super) detail: String,
    pub(super) node: String,
    pub(super) epoch: u64,
    pub(super) committed: u64,
    /// When the newest committed point was set.
    pub(super) point_ms: u64,
    pub(super) rpo_seconds: Option<f64>,
}

impl Seen {
    fn of(shown: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            state: text(&shown["state"]),
            detail: text(&shown["state_detail"]),
            node: text(&shown["node"]),
            epoch: shown["epoch"].as_u64().unwrap_or_default(),
            committed: shown["volumes"][0]["committed_seq"].as_u64().unwrap_or_default(),
            point_ms: set_ms(&shown["last_point"]).unwrap_or_default(),
            rpo_seconds: shown["rpo_seconds"].as_f64(),
        }
    }

    /// Whether it is protected and a point set after `since_ms` is in the vault.
    pub(super) fn is_good_since(&self, since_ms: u64) -> bool {
        self.state == "protected" && self.point_ms > since_ms
    }
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<String, Seen>,
    asked_at: Option<Instant>,
    /// Longest RPO since it was last taken.
    worst_rpo: f64,
    /// How often a machine was seen on another node than before.
    moves: usize,
    /// Whether what is seen may go back.
    may_go_back: bool,
}

#[derive(Debug)]
struct Shared {
    farshore: Farshore,
    state: Mutex<State>,
    is_stopping: AtomicBool,
    violations: Arc<Violations>,
}

/// Asks in the background.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(farshore: Farshore, violations: &Arc<Violations>) -> Result<Self> {
        let shared = Arc::new(Shared {
            farshore,
            state: Mutex::default(),
            is_stopping: AtomicBool::new(false),
            violations: Arc::clone(violations),
        });
        let asking = Arc::clone(&shared);
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || {
            while !asking.is_stopping.load(Ordering::SeqCst) {
                let asked_at = Instant::now();
                // While the control plane is away there is no answer.
                if let Ok(listed) = asking.farshore.json("machine list") {
                    asking.take(asked_at, &listed);
                }
                thread::sleep(ASK_PAUSE);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// All machines as they were seen last.
    pub(super) fn machines(&self) -> BTreeMap<String, Seen> {
        lock(&self.shared.state).machines.clone()
    }

    /// The longest RPO since this was last called, in seconds.
    pub(super) fn take_worst_rpo(&self) -> f64 {
        std::mem::take(&mut lock(&self.shared.state).worst_rpo)
    }

    /// How often a machine was seen on another node than before.
    pub(super) fn moves(&self) -> usize {
        lock(&self.shared.state).moves
    }

    /// From now on what is seen may go back or not: a catalogue that was put back knows of less.
    pub(super) fn let_go_back(&self, may_go_back: bool) {
        lock(&self.shared.state).may_go_back = may_go_back;
    }

    /// Waits until what is seen is as wanted, by an answer to a question asked from now on.
    pub(super) fn until(
        &self,
        what: &str,
        limit: Duration,
        mut is_wanted: impl FnMut(&BTreeMap<String, Seen>) -> bool,
    ) -> Result<()> {
        let since = Instant::now();
        wait::until(what, limit, || {
            self.shared.violations.check()?;
            let state = lock(&self.shared.state);
            let is_new = state.asked_at.is_some_and(|at| at >= since);
            Ok((is_new && is_wanted(&state.machines)).then_some(()))
        })
        .with_context(|| format!("last seen: {:?}", self.machines()))
    }

    pub(super) fn stop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // One that panicked asks no more, which the next wait tells.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn take(&self, asked_at: Instant, listed: &Value) {
        let mut state = lock(&self.state);
        for shown in listed["machines"].as_array().into_iter().flatten() {
            let name = shown["name"].as_str().unwrap_or_default();
            let mut seen = Seen::of(shown);
            let before = state.machines.get(name).cloned().unwrap_or_default();
            state.worst_rpo = state.worst_rpo.max(seen.rpo_seconds.unwrap_or_default());
            let is_strict = !state.may_go_back;
            if is_strict && before.point_ms > 0 && seen.rpo_seconds.is_none() {
                self.violations.note(format!("{name}: a machine with points shows no RPO"));
            }
            // An agent that has just started does not know yet what is committed.
            if seen.committed == 0 {
                seen.committed = before.committed;
            }
            for (what, before, now) in [
                ("epoch", before.epoch, seen.epoch),
                ("newest point's time", before.point_ms, seen.point_ms),
                ("committed seq", before.committed, seen.committed),
            ] {
                if is_strict && now < before {
                    let text = format!("{name}: the {what} went from {before} back to {now}");
                    self.violations.note(text);
                }
            }
            let is_moved = !before.node.is_empty() && before.node != seen.node;
            state.moves += usize::from(is_strict && is_moved);
            state.machines.insert(name.to_owned(), seen);
        }
        state.asked_at = Some(asked_at);
    }
}
