//! Which child is started, restarted and stopped when: decisions only, no process and no clock.
//!
//! Children start one after another, each when the one before it is ready, and stop in the reverse
//! order. One that dies is started again after a pause that doubles with every death in a row. A
//! death that a restart cannot mend ends everything with that child's own error.
//!
//! Invariants:
//!   - S1: at most one process per child (checked on every launch).
//!   - S2: nothing is launched once a stop has begun (checked on every launch).
//!   - S3: a child is told to stop only when all that start after it are gone (checked on every
//!     stop).

use std::fmt;

use farshore_api::Exit;
use farshore_proto::Timestamp;

use crate::failure::Failure;

/// Pause before the first restart, in milliseconds; it doubles up to [`BACKOFF_MS_MAX`].
pub(crate) const BACKOFF_MS_MIN: u64 = 200;
/// Longest pause before a restart.
pub(crate) const BACKOFF_MS_MAX: u64 = 5_000;
/// A child that was ready for so long has its earlier deaths forgotten.
pub(crate) const STEADY_MS: u64 = 3_000;
/// Deaths in a row without ever having been ready after which a child is given up.
pub(crate) const FIRST_ATTEMPTS_MAX: u32 = 8;
/// A child that is not ready is spoken of every so often.
pub(crate) const SLOW_START_MS: u64 = 15_000;

/// A process of the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Child {
    /// `farshore-control`
    Control,
    /// `farshore-node`
    Node,
    /// `farshore-agent`
    Agent,
}

impl Child {
    /// All, in the order in which they start.
    pub(crate) const ALL: [Self; 3] = [Self::Control, Self::Node, Self::Agent];

    const fn index(self) -> usize {
        self as usize
    }

    /// Its name: that of its log, its data directory and its place in endpoints.json.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Node => "node",
            Self::Agent => "agent",
        }
    }

    /// Milliseconds that it has to stop in order; then it is killed. The node has the most to put
    /// away: what it has journaled goes to the vault.
    const fn stop_ms(self) -> u64 {
        match self {
            Self::Control | Self::Agent => 10_000,
            Self::Node => 20_000,
        }
    }
}

impl fmt::Display for Child {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    /// Its exit status; none if a signal ended it.
    pub(crate) status: Option<u8>,
    /// What it said last of its own accord, and what it advised.
    pub(crate) last_words: Failure,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The driver is set up: begin.
    Begin,
    /// The child that was to be launched runs.
    Launched { child: Child, pid: u32 },
    /// The child could not be launched. Final: trying again cannot help.
    NotLaunched { child: Child, failure: Failure, is_final: bool },
    /// The process says that it is ready.
    Ready { child: Child, pid: u32 },
    /// The process ended.
    Died { child: Child, pid: u32, death: Death },
    /// The operator wants it to end. Said twice, it ends at once.
    Stop,
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Start the child; answer with `Launched` or `NotLaunched`.
    Launch(Child),
    /// Ask the process to stop.
    Terminate { child: Child, pid: u32 },
    /// End the process.
    Kill { child: Child, pid: u32 },
    /// Write endpoints.json with these processes, in the order of [`Child::ALL`].
    Publish { pids: [u32; 3] },
    /// Everything is up for the first time: tell the operator.
    Announce,
    /// Tell the operator and the log.
    Note { child: Child, note: Note },
    /// All children are gone: end with this.
    Finish(Result<(), Failure>),
}

/// What the operator is told of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// It died and is started again after so many milliseconds.
    Restart { last_words: String, after_ms: u64 },
    /// It is ready again.
    Back,
    /// It has been starting for so long.
    SlowStart { ms: u64 },
    /// It did not stop in time.
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not started yet, or stopped for good.
    Out,
    Launching,
    Starting {
        pid: u32,
        since: Timestamp,
        speak_at: Timestamp,
    },
    Ready {
        pid: u32,
        since: Timestamp,
    },
    Pause {
        until: Timestamp,
    },
    Stopping {
        pid: u32,
        kill_at: Option<Timestamp>,
    },
}

#[derive(Debug)]
struct Slot {
    state: State,
    /// Of the last process that became ready.
    pid: Option<u32>,
    /// Deaths in a row.
    deaths: u32,
}

/// The supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    slots: [Slot; 3],
    is_announced: bool,
    /// Set once everything is to end: with what.
    ending: Option<Result<(), Failure>>,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        let slot = || Slot { state: State::Out, pid: None, deaths: 0 };
        Self { slots: [slot(), slot(), slot()], is_announced: false, ending: None }
    }

    /// Advances by one input, appending to `out` what to do about it.
    pub(crate) fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Begin => self.launch(Child::Control, out),
            Input::Launched { child, pid } => self.launched(now, child, pid, out),
            Input::NotLaunched { child, failure, is_final } => {
                if is_final {
                    self.slots[child.index()].state = State::Out;
                    self.end(now, Err(failure), out);
                } else {
                    self.pause(now, child, failure, out);
                }
            }
            Input::Ready { child, pid } => self.ready(now, child, pid, out),
            Input::Died { child, pid, death } => self.died(now, child, pid, death, out),
            Input::Stop if self.ending.is_some() => self.kill_all(out),
            Input::Stop => self.end(now, Ok(()), out),
            Input::Tick => self.tick(now, out),
        }
    }

    /// When a tick is due.
    pub(crate) fn next_tick(&self) -> Option<Timestamp> {
        let due = |slot: &Slot| match slot.state {
            State::Pause { until } => Some(until),
            State::Starting { speak_at, .. } => Some(speak_at),
            State::Stopping { kill_at, .. } => kill_at,
            State::Out | State::Launching | State::Ready { .. } => None,
        };
        self.slots.iter().filter_map(due).min()
    }

    fn launch(&mut self, child: Child, out: &mut Vec<Output>) {
        assert!(self.ending.is_none(), "S2: launch of {child} while stopping");
        let slot = &mut self.slots[child.index()];
        assert!(
            matches!(slot.state, State::Out | State::Pause { .. }),
            "S1: {child} is {:?} and to be launched",
            slot.state
        );
        slot.state = State::Launching;
        out.push(Output::Launch(child));
    }

    fn launched(&mut self, now: Timestamp, child: Child, pid: u32, out: &mut Vec<Output>) {
        let slot = &mut self.slots[child.index()];
        assert_eq!(slot.state, State::Launching, "S1: {child} was launched unasked");
        let speak_at = now.plus_ms(SLOW_START_MS);
        slot.state = State::Starting { pid, since: now, speak_at };
        // Asked to end while the launch was under way.
        self.stop_next(now, out);
    }

    fn ready(&mut self, now: Timestamp, child: Child, pid: u32, out: &mut Vec<Output>) {
        let slot = &mut self.slots[child.index()];
        // Said by a process that is already being stopped, or by one that is gone.
        if !matches!(slot.state, State::Starting { pid: starting, .. } if starting == pid) {
            return;
        }
        slot.state = State::Ready { pid, since: now };
        if slot.pid.replace(pid).is_some() {
            out.push(Output::Note { child, note: Note::Back });
        }
        let [Some(control), Some(node), Some(agent)] = self.slots.each_ref().map(|slot| slot.pid)
        else {
            return self.launch_next(out);
        };
        out.push(Output::Publish { pids: [control, node, agent] });
        if !self.is_announced {
            self.is_announced = true;
            out.push(Output::Announce);
        }
    }

    /// Launches the first child that never ran, if all before it are ready.
    fn launch_next(&mut self, out: &mut Vec<Output>) {
        let next = Child::ALL
            .into_iter()
            .find(|child| !matches!(self.slots[child.index()].state, State::Ready { .. }));
        if let Some(child) = next
            && self.slots[child.index()].state == State::Out
        {
            self.launch(child, out);
        }
    }

    fn died(
        &mut self,
        now: Timestamp,
        child: Child,
        pid: u32,
        death: Death,
        out: &mut Vec<Output>,
    ) {
        let slot = &mut self.slots[child.index()];
        match slot.state {
            State::Starting { pid: current, .. } if current == pid => {}
            State::Ready { pid: current, since } if current == pid => {
                if now.since_ms(since) >= STEADY_MS {
                    slot.deaths = 0;
                }
            }
            State::Stopping { pid: current, .. } if current == pid => {
                slot.state = State::Out;
                return self.stop_next(now, out);
            }
            _ => return,
        }
        slot.state = State::Out;
        if self.is_beyond_restart(child, death.status) {
            self.end(now, Err(death.last_words), out);
        } else {
            self.pause(now, child, death.last_words, out);
        }
    }

    /// Whether starting the child again would only fail again.
    fn is_beyond_restart(&self, child: Child, status: Option<u8>) -> bool {
        let is = |exits: &[Exit]| {
            status.is_some_and(|status| exits.iter().any(|exit| exit.code() == status))
        };
        if is(&[Exit::Usage, Exit::WrongKey]) {
            return true;
        }
        // Once it ran, what is missing now was there: it may come back.
        let slot = &self.slots[child.index()];
        if slot.pid.is_some() {
            return false;
        }
        if slot.deaths + 1 >= FIRST_ATTEMPTS_MAX {
            return true;
        }
        let are_others_ready = self.slots[..child.index()]
            .iter()
            .all(|slot| matches!(slot.state, State::Ready { .. }));
        // It may have missed a child before it that is just being started again.
        is(&[Exit::Unavailable, Exit::Denied]) && are_others_ready
            || is(&[
                Exit::DataInvalid,
                Exit::NotFound,
                Exit::SystemMissing,
                Exit::CannotCreate,
                Exit::Conflict,
                Exit::NoSpace,
                Exit::Corrupt,
            ])
    }

    fn pause(&mut self, now: Timestamp, child: Child, why: Failure, out: &mut Vec<Output>) {
        if self.ending.is_some() {
            self.slots[child.index()].state = State::Out;
            return self.stop_next(now, out);
        }
        let slot = &mut self.slots[child.index()];
        let after_ms = BACKOFF_MS_MIN
            .saturating_mul(1_u64.checked_shl(slot.deaths).unwrap_or(u64::MAX))
            .min(BACKOFF_MS_MAX);
        slot.deaths = slot.deaths.saturating_add(1);
        slot.state = State::Pause { until: now.plus_ms(after_ms) };
        let note = Note::Restart { last_words: why.message, after_ms };
        out.push(Output::Note { child, note });
    }

    fn end(&mut self, now: Timestamp, result: Result<(), Failure>, out: &mut Vec<Output>) {
        if self.ending.is_none() {
            self.ending = Some(result);
        }
        for slot in &mut self.slots {
            if matches!(slot.state, State::Pause { .. }) {
                slot.state = State::Out;
            }
        }
        self.stop_next(now, out);
    }

    /// Stops the last child that still runs; ends when there is none.
    fn stop_next(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let Some(ending) = &self.ending else { return };
        for child in Child::ALL.into_iter().rev() {
            let slot = &mut self.slots[child.index()];
            match slot.state {
                State::Out => {}
                State::Starting { pid, .. } | State::Ready { pid, .. } => {
                    let kill_at = Some(now.plus_ms(child.stop_ms()));
                    slot.state = State::Stopping { pid, kill_at };
                    out.push(Output::Terminate { child, pid });
                    self.check_stop_order(child);
                    return;
                }
                // Its end, or the answer to its launch, goes on from here.
                State::Stopping { .. } | State::Launching | State::Pause { .. } => return,
            }
        }
        out.push(Output::Finish(ending.clone()));
    }

    fn check_stop_order(&self, child: Child) {
        let later = &self.slots[child.index() + 1..];
        assert!(
            later.iter().all(|slot| slot.state == State::Out),
            "S3: {child} is stopped before {later:?}"
        );
    }

    fn kill_all(&mut self, out: &mut Vec<Output>) {
        for child in Child::ALL.into_iter().rev() {
            let slot = &mut self.slots[child.index()];
            if let State::Starting { pid, .. }
            | State::Ready { pid, .. }
            | State::Stopping { pid, .. } = slot.state
            {
                slot.state = State::Stopping { pid, kill_at: None };
                out.push(Output::Kill { child, pid });
            }
        }
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        for child in Child::ALL {
            let slot = &mut self.slots[child.index()];
            match slot.state {
                State::Pause { until } if until <= now => self.launch(child, out),
                State::Starting { pid, since, speak_at } if speak_at <= now => {
                    let speak_at = now.plus_ms(SLOW_START_MS);
                    slot.state = State::Starting { pid, since, speak_at };
                    let note = Note::SlowStart { ms: now.since_ms(since) };
                    out.push(Output::Note { child, note });
                }
                State::Stopping { pid, kill_at: Some(kill_at) } if kill_at <= now => {
                    slot.state = State::Stopping { pid, kill_at: None };
                    out.push(Output::Kill { child, pid });
                    out.push(Output::Note { child, note: Note::Killed });
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
