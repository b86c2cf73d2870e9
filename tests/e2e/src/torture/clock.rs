//! Processes that start with a wrong clock, by libfaketime.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::faults::{EVIDENCE_LIMIT, Struck};
use super::reverts::while_dead;
use super::site::{Site, Which};
use super::watch::unix_ms;
use crate::system::Part;
use crate::wait;

/// Debian's package `libfaketime`.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Why the fault cannot be done.
const NOT_TRIED: &str = "it needs the Debian package libfaketime";
/// How wrong the clock is, one after the other: more than certificates bear, either way.
const STEPS: [&str; 2] = ["+3h", "-3h"];

/// No point is so old here by a clock that is right.
const AGE_SECONDS_MAX: f64 = 3600.0;

/// Whose clock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Control,
    Agent,
    Node(Which),
}

impl Whose {
    /// As its program is called.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Control => "farshore-control",
            Self::Agent => "farshore-agent",
            Self::Node(Which::First) => "farshore-node",
            Self::Node(Which::Second) => "farshore-node-b",
        }
    }
}

/// The clocks that processes start with.
#[derive(Debug)]
pub(super) struct Clocks {
    folder: PathBuf,
}

impl Clocks {
    /// Clocks that are right; none without the library.
    pub(super) fn prepare(folder: &Path) -> Option<Self> {
        Path::new(LIBRARY).exists().then(|| Self { folder: folder.to_path_buf() })
    }

    /// Says how wrong it is; right if it is not there.
    fn file(&self, whose: Whose) -> PathBuf {
        self.folder.join(format!("{}.clock", whose.name()))
    }

    /// Words of a shell that give the program that it becomes this clock. Time that passes is measured
    /// by another clock, which nobody sets.
    pub(super) fn words(&self, whose: Whose) -> String {
        let file = self.file(whose).display().to_string();
        format!(
            "if [ -f {file} ]; then export LD_PRELOAD={LIBRARY} FAKETIME=\"$(cat {file})\" \
             FAKETIME_DONT_FAKE_MONOTONIC=1; fi\n"
        )
    }

    fn set(&self, whose: Whose, offset: &str) -> Result<()> {
        fs::write(self.file(whose), offset).context("set the clock")
    }

    fn set_right(&self, whose: Whose) -> Result<()> {
        fs::remove_file(self.file(whose)).context("set the clock right")
    }
}

impl Site {
    /// The control plane is started with a clock that is ahead, then with one that is behind, then
    /// with the right one (C1, C5, C7): guests are served, no volume moves, and no point goes.
    pub(super) fn clock_stepped(&self, hold: Duration) -> Result<Struck> {
        let before = self.watch.machines();
        let struck = self.live_with_clocks(Whose::Control, hold)?;
        if struck.not_tried.is_none() {
            self.check_unmoved(&before, "a wrong clock of the control plane")?;
            // What a wrong clock says of how old a point is says nothing.
            self.watch.take_worst_rpo();
        }
        Ok(struck)
    }

    /// The same with the agent (C1, C2, C4): guests are served, also while no node lets it in, and
    /// points keep their order, whatever times they say.
    pub(super) fn agent_clock_stepped(&self, hold: Duration) -> Result<Struck> {
        let struck = self.live_with_clocks(Whose::Agent, hold)?;
        if struck.not_tried.is_none() {
            // What a wrong clock says of how old a point is says nothing.
            self.watch.until("ages of points by the right clock", EVIDENCE_LIMIT, |machines| {
                machines
                    .values()
                    .all(|seen| seen.rpo_seconds.is_some_and(|age| age < AGE_SECONDS_MAX))
            })?;
            self.watch.take_worst_rpo();
        }
        // Its log may run full while no node lets it in. Killed then, it has noted nothing of the last
        // writes, and reads the disk again.
        Ok(Struck { is_read_again: struck.not_tried.is_none(), ..struck })
    }

    /// The same with the node that has most of the volumes (C1, C2): guests are served, and where it
    /// is let in by nobody, others may have its volumes.
    pub(super) fn node_clock_stepped(&self, hold: Duration) -> Result<Struck> {
        self.live_with_clocks(Whose::Node(self.busy()), hold)
    }

    fn live_with_clocks(&self, whose: Whose, hold: Duration) -> Result<Struck> {
        let begun_ms = unix_ms();
        let Some(clocks) = &self.clocks else {
            return Ok(Struck { not_tried: Some(NOT_TRIED), ..Struck::since(begun_ms) });
        };
        let wrong = STEPS.iter().try_for_each(|step| self.live_with(clocks, whose, step, hold));
        self.while_away(whose, || clocks.set_right(whose))?;
        wrong?;
        Ok(Struck::since(begun_ms))
    }

    fn live_with(&self, clocks: &Clocks, whose: Whose, step: &str, hold: Duration) -> Result<()> {
        self.while_away(whose, || clocks.set(whose, step))?;
        let is_wrong = wait::until("the wrong clock", EVIDENCE_LIMIT, || {
            // It may not be there yet, or be a shell that is about to become it.
            let Some(pid) = self.process(whose) else { return Ok(None) };
            let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero()));
            let maps = maps.unwrap_or_default();
            Ok(maps.contains("libfaketime").then_some(()))
        });
        is_wrong.with_context(|| format!("{} does not start with {step}", whose.name()))?;
        thread::sleep(hold);
        self.guests.iter().try_for_each(|guest| {
            let went_on = guest.jobs.progress(5, EVIDENCE_LIMIT);
            went_on.with_context(|| format!("{} waits for a clock", guest.machine.name))
        })
    }

    fn process(&self, whose: Whose) -> Option<Pid> {
        match whose {
            Whose::Control => self.system.pid(Part::Control).ok(),
            Whose::Agent => self.system.pid(Part::Agent).ok(),
            Whose::Node(which) => self.node_pid(which),
        }
    }

    /// Does something while a process is dead, and waits until another one runs.
    fn while_away(&self, whose: Whose, work: impl FnOnce() -> Result<()>) -> Result<()> {
        match whose {
            Whose::Control => while_dead(&self.system, Part::Control, work),
            Whose::Agent => while_dead(&self.system, Part::Agent, work),
            Whose::Node(Which::First) => while_dead(&self.system, Part::Node, work),
            Whose::Node(Which::Second) => {
                let before = self.second.starts();
                self.second.keep_away();
                let done = work();
                self.second.come_back();
                done?;
                wait::until("the second node to run", EVIDENCE_LIMIT, || {
                    Ok((self.second.starts() > before).then_some(()))
                })
            }
        }
    }
}
