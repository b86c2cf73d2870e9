//! What a failover does next.
//!
//! | state | event | next | then |
//! |---|---|---|---|
//! | requested | begin, drill | exporting | start the export |
//! | requested | begin, unplanned | fencing | fence |
//! | fencing | fenced | exporting | start the export |
//! | exporting | exported, serve only | running | watch |
//! | exporting | exported | booting | start the machine |
//! | booting | booted | running | watch |
//! | running | commit, unplanned | committed | watch |
//! | requested … booting | broken | failed | stop the processes |
//! | failed | retry | requested | begin again, on the overlay that is there |
//! | booting, once its firmware ran | lost | recovering | bring back what is gone |
//! | running, committed | lost | recovering | bring back what is gone |
//! | recovering | recovered | running; committed if it was | watch |
//! | running, committed | retry, the machine is down | recovering | boot it |
//! | all of these before a commit | clean up | cleaning_up | clear |
//! | all of these after a commit | clean up by force | cleaning_up | clear |
//! | cleaning_up | cleared | cleaned_up | – |
//!
//! What ran once never fails for good: its overlay may hold the only copy of what was written, and is
//! served again as soon as it can be. Only what never came up fails, and can be tried again.
//!
//! What is to be done follows from the state alone ([`Failover::command`]), so that a control plane
//! that was killed goes on where the database says it was: every command may be carried out twice.
//! Events that come too late (an export that is ready when clean-up has begun) change nothing.

use farshore_api::failover::{FailoverKind, FailoverState as State};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver took it up.
    Begin,
    /// The volume's epoch is raised: no writer is told of it any more.
    Fenced,
    /// The export serves.
    Exported,
    /// The machine was seen to run more than its firmware.
    Booted,
    /// It does not come up.
    Broken,
    /// It ran, and something of it is gone or stands still.
    Lost,
    /// Everything that is wanted of it runs again.
    Recovered,
    /// The operator wants it tried again.
    Retry,
    /// The operator keeps it.
    Commit,
    /// The operator ends it; `force` even if it is committed.
    CleanUp {
        /// Give up what the machine wrote.
        force: bool,
    },
    /// Processes and files are gone.
    Cleared,
}

/// What to do now. Each may be carried out again after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Take it up: apply [`Event::Begin`].
    Begin,
    /// Raise the epoch and let no writer have the volume.
    Fence,
    /// Start the export unless it runs, and wait until it serves.
    StartExport,
    /// Start the machine unless it runs, and wait until it was seen to run.
    StartMachine,
    /// Do what of both is missing, on the overlay that is there, again and again.
    Recover,
    /// Look after the processes.
    Watch,
    /// Stop the processes; keep the files for whoever looks into it.
    Stop,
    /// Stop the processes and remove the files.
    Clear,
}

/// Why an event is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Drills are never kept.
    #[error("is a drill and cannot be committed; clean it up, and start an unplanned failover")]
    DrillCommit,
    /// Only what runs can be kept.
    #[error("does not run; only a running failover can be committed")]
    NotRunning,
    /// Nothing of it is gone.
    #[error("runs as it should; there is nothing to try again")]
    NothingToRetry,
    /// It is ended.
    #[error("is being cleaned up or was; start another")]
    Ended,
    /// A newer version began it.
    #[error("is what only a newer version knows; use the version that began it")]
    Unknown,
    /// The running machine would be lost.
    #[error("is committed; cleaning it up loses what its machine wrote: say force to do so")]
    CommittedCleanUp,
}

/// The decisive part of a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// Drill or unplanned.
    pub kind: FailoverKind,
    /// Whether no machine is started.
    pub serve_only: bool,
    /// Where it stands.
    pub state: State,
    /// Whether it was ever committed.
    pub committed: bool,
    /// Whether its machine has shut itself down.
    pub is_down: bool,
}

impl Failover {
    /// Takes in one event. Returns whether the state changed.
    ///
    /// # Errors
    /// [`Refusal`] if the operator asked for something that the state does not allow. Nothing has
    /// changed then.
    pub fn step(&mut self, event: Event) -> Result<bool, Refusal> {
        let before = self.state;
        self.state = self.next(event)?;
        self.committed |= self.state == State::Committed;
        if event == Event::Retry {
            self.is_down = false;
        }
        self.check();
        Ok(self.state != before)
    }

    fn next(&self, event: Event) -> Result<State, Refusal> {
        if self.kind == FailoverKind::Unknown || self.state == State::Unknown {
            return Err(Refusal::Unknown);
        }
        let is_drill = self.kind == FailoverKind::Drill;
        Ok(match (self.state, event) {
            (State::Requested, Event::Begin) if is_drill => State::Exporting,
            (State::Requested, Event::Begin) => State::Fencing,
            (State::Fencing, Event::Fenced) => State::Exporting,
            (State::Exporting, Event::Exported) if self.serve_only => self.up(),
            (State::Exporting, Event::Exported) => State::Booting,
            (State::Booting, Event::Booted) => self.up(),
            (
                State::Requested | State::Fencing | State::Exporting | State::Booting,
                Event::Broken,
            ) => State::Failed,
            (State::Booting | State::Running | State::Committed, Event::Lost) => State::Recovering,
            (State::Recovering, Event::Recovered) => self.up(),
            (State::Failed, Event::Retry) => State::Requested,
            (State::Running | State::Committed, Event::Retry) if self.is_down => State::Recovering,
            (State::Running | State::Committed, Event::Retry) => {
                return Err(Refusal::NothingToRetry);
            }
            (State::CleaningUp | State::CleanedUp, Event::Retry) => return Err(Refusal::Ended),
            (_, Event::Commit) if is_drill => return Err(Refusal::DrillCommit),
            (State::Running | State::Committed, Event::Commit) => State::Committed,
            (_, Event::Commit) => return Err(Refusal::NotRunning),
            (State::CleaningUp | State::CleanedUp, Event::CleanUp { .. }) => self.state,
            (_, Event::CleanUp { force: false }) if self.committed => {
                return Err(Refusal::CommittedCleanUp);
            }
            (_, Event::CleanUp { .. }) => State::CleaningUp,
            (State::CleaningUp, Event::Cleared) => State::CleanedUp,
            (state, _) => state,
        })
    }

    /// The state of one that came up.
    fn up(&self) -> State {
        if self.committed { State::Committed } else { State::Running }
    }

    /// What to do in this state; `None` when nothing is left to do.
    #[must_use]
    pub fn command(&self) -> Option<Command> {
        // What a newer version began is not carried on by a guess.
        if self.kind == FailoverKind::Unknown {
            return None;
        }
        match self.state {
            State::Requested => Some(Command::Begin),
            State::Fencing => Some(Command::Fence),
            State::Exporting => Some(Command::StartExport),
            State::Booting => Some(Command::StartMachine),
            State::Running | State::Committed => Some(Command::Watch),
            State::Recovering => Some(Command::Recover),
            State::Failed => Some(Command::Stop),
            State::CleaningUp => Some(Command::Clear),
            _ => None,
        }
    }

    /// Whether its machine is to run.
    #[must_use]
    pub fn wants_machine(&self) -> bool {
        !self.serve_only && !self.is_down
    }

    /// Whether clearing it gives the machine back to replication: an unplanned failover that was
    /// never committed leaves the source as the only copy.
    #[must_use]
    pub fn resumes_replication(&self) -> bool {
        self.kind == FailoverKind::Unplanned && !self.committed
    }

    fn check(&self) {
        assert!(
            self.kind != FailoverKind::Drill || !(self.committed || self.state == State::Fencing),
            "a drill neither fences nor commits"
        );
        assert!(!(self.serve_only && self.state == State::Booting), "serve only boots nothing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failover(kind: FailoverKind, serve_only: bool) -> Failover {
        Failover { kind, serve_only, state: State::Requested, committed: false, is_down: false }
    }

    fn run(failover: &mut Failover, events: &[Event]) -> Vec<State> {
        events
            .iter()
            .map(|event| {
                failover.step(*event).unwrap();
                failover.state
            })
            .collect()
    }

    #[test]
    fn a_drill_exports_without_fencing() {
        let mut drill = failover(FailoverKind::Drill, true);
        let states = run(
            &mut drill,
            &[Event::Begin, Event::Exported, Event::CleanUp { force: false }, Event::Cleared],
        );
        assert_eq!(states, [State::Exporting, State::Running, State::CleaningUp, State::CleanedUp]);
        assert!(!drill.resumes_replication());
    }

    #[test]
    fn an_unplanned_failover_fences_before_it_exports() {
        let mut unplanned = failover(FailoverKind::Unplanned, false);
        let states = run(
            &mut unplanned,
            &[Event::Begin, Event::Fenced, Event::Exported, Event::Booted, Event::Commit],
        );
        assert_eq!(
            states,
            [State::Fencing, State::Exporting, State::Booting, State::Running, State::Committed]
        );
        assert!(!unplanned.resumes_replication());
    }

    #[test]
    fn a_committed_failover_is_cleaned_up_only_by_force() {
        let mut unplanned = failover(FailoverKind::Unplanned, true);
        run(&mut unplanned, &[Event::Begin, Event::Fenced, Event::Exported, Event::Commit]);
        let refused = unplanned.step(Event::CleanUp { force: false });
        assert_eq!(refused, Err(Refusal::CommittedCleanUp));
        run(&mut unplanned, &[Event::Lost]);
        let refused = unplanned.step(Event::CleanUp { force: false });
        assert_eq!(refused, Err(Refusal::CommittedCleanUp), "its overlay is the only copy");
        assert_eq!(run(&mut unplanned, &[Event::CleanUp { force: true }]), [State::CleaningUp]);
    }

    #[test]
    fn drills_cannot_be_committed_and_nothing_is_before_it_runs() {
        let mut drill = failover(FailoverKind::Drill, true);
        run(&mut drill, &[Event::Begin, Event::Exported]);
        assert_eq!(drill.step(Event::Commit), Err(Refusal::DrillCommit));
        let mut unplanned = failover(FailoverKind::Unplanned, true);
        assert_eq!(unplanned.step(Event::Commit), Err(Refusal::NotRunning));
    }

    #[test]
    fn late_events_change_nothing() {
        let mut drill = failover(FailoverKind::Drill, false);
        run(&mut drill, &[Event::Begin, Event::CleanUp { force: false }]);
        let late = [Event::Begin, Event::Fenced, Event::Exported, Event::Booted, Event::Broken];
        for late in late.into_iter().chain([Event::Lost, Event::Recovered]) {
            assert_eq!(drill.step(late), Ok(false), "{late:?}");
        }
        assert_eq!(drill.step(Event::Retry), Err(Refusal::Ended));
    }

    #[test]
    fn what_ran_once_is_brought_back_and_never_fails() {
        for commits in [false, true] {
            let mut unplanned = failover(FailoverKind::Unplanned, false);
            run(&mut unplanned, &[Event::Begin, Event::Fenced, Event::Exported, Event::Booted]);
            if commits {
                run(&mut unplanned, &[Event::Commit]);
            }
            assert_eq!(run(&mut unplanned, &[Event::Lost]), [State::Recovering]);
            assert_eq!(unplanned.command(), Some(Command::Recover));
            assert_eq!(unplanned.step(Event::Broken), Ok(false), "it is tried again and again");
            assert_eq!(unplanned.step(Event::Commit), Err(Refusal::NotRunning));
            let up = if commits { State::Committed } else { State::Running };
            assert_eq!(run(&mut unplanned, &[Event::Recovered]), [up]);
            assert_eq!(unplanned.step(Event::Retry), Err(Refusal::NothingToRetry));
            unplanned.is_down = true;
            assert!(!unplanned.wants_machine(), "a machine that shut itself down stays down");
            assert_eq!(run(&mut unplanned, &[Event::Retry]), [State::Recovering]);
            assert!(unplanned.wants_machine());
        }
    }

    /// H32: a machine that was seen in its firmware came up, and is brought back.
    #[test]
    fn what_is_lost_while_it_boots_is_brought_back() {
        let mut drill = failover(FailoverKind::Drill, false);
        run(&mut drill, &[Event::Begin, Event::Exported]);
        assert_eq!(run(&mut drill, &[Event::Lost]), [State::Recovering]);
        assert_eq!(run(&mut drill, &[Event::Recovered]), [State::Running]);
    }

    #[test]
    fn what_did_not_come_up_is_tried_again_or_rolled_back() {
        let mut unplanned = failover(FailoverKind::Unplanned, true);
        run(&mut unplanned, &[Event::Begin, Event::Fenced, Event::Broken]);
        assert_eq!(run(&mut unplanned, &[Event::Retry]), [State::Requested]);
        run(&mut unplanned, &[Event::Begin, Event::Fenced, Event::Broken]);
        assert!(unplanned.resumes_replication(), "a clean-up undoes the fence");
        run(&mut unplanned, &[Event::CleanUp { force: false }, Event::Cleared]);
        assert_eq!(unplanned.state, State::CleanedUp);
    }

    /// Every state and event, in every order up to six long: the checks hold, operators are the
    /// only ones refused, and whatever happened a forced clean-up leads to `cleaned_up`.
    #[test]
    fn every_path_can_be_cleaned_up() {
        let events = [
            Event::Begin,
            Event::Fenced,
            Event::Exported,
            Event::Booted,
            Event::Broken,
            Event::Lost,
            Event::Recovered,
            Event::Retry,
            Event::Commit,
            Event::CleanUp { force: false },
            Event::Cleared,
        ];
        for kind in [FailoverKind::Drill, FailoverKind::Unplanned] {
            for serve_only in [false, true] {
                let mut reached = vec![failover(kind, serve_only)];
                let mut index = 0;
                while index < reached.len() {
                    for event in events {
                        let mut next = reached[index];
                        if next.step(event).is_ok() && !reached.contains(&next) {
                            reached.push(next);
                        }
                    }
                    index += 1;
                }
                for mut state in reached {
                    run(&mut state, &[Event::CleanUp { force: true }, Event::Cleared]);
                    assert_eq!(state.state, State::CleanedUp);
                    assert_eq!(state.command(), None);
                }
            }
        }
    }
}
