//! A control plane that starts with a wrong clock, by libfaketime.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::faults::{EVIDENCE_LIMIT, Struck};
use super::reverts::while_dead;
use super::site::Site;
use super::watch::unix_ms;
use crate::command::binaries;
use crate::system::Part;
use crate::wait;

/// Debian's package `libfaketime`.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Why the fault cannot be done.
const NOT_TRIED: &str = "it needs the Debian package libfaketime";
/// How wrong the clock is, one after the other: more than certificates bear, either way.
const STEPS: [&str; 2] = ["+3h", "-3h"];

/// The clock that the control plane starts with.
#[derive(Debug)]
pub(super) struct Clock {
    /// Says how wrong it is; right if it is not there.
    file: PathBuf,
    /// The programs that look at it.
    pub(super) programs: PathBuf,
}

impl Clock {
    /// Makes programs of which the control plane has this clock; nothing without the library.
    pub(super) fn prepare(folder: &Path) -> Result<Option<Self>> {
        if !Path::new(LIBRARY).exists() {
            return Ok(None);
        }
        let clock = Self { file: folder.join("clock"), programs: folder.join("programs") };
        let built = binaries()?;
        fs::create_dir(&clock.programs).context("make a folder for programs")?;
        fs::copy(built.join("farshore"), clock.programs.join("farshore"))
            .context("copy farshore")?;
        for part in [Part::Control, Part::Node, Part::Agent] {
            let name = format!("farshore-{}", part.name());
            let script = clock.script(&built.join(&name), part);
            let path = clock.programs.join(&name);
            fs::write(&path, script).context("write a program")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .context("write a program")?;
        }
        Ok(Some(clock))
    }

    /// Time that passes is measured by another clock, which nobody sets.
    fn script(&self, program: &Path, part: Part) -> String {
        let (file, program) = (self.file.display(), program.display());
        let clock = format!(
            "if [ -f {file} ]; then export LD_PRELOAD={LIBRARY} FAKETIME=\"$(cat {file})\" \
             FAKETIME_DONT_FAKE_MONOTONIC=1; fi"
        );
        let clock = if part == Part::Control { clock } else { String::new() };
        format!("#!/bin/sh\n{clock}\nexec {program} \"$@\"\n")
    }

    fn set(&self, offset: &str) -> Result<()> {
        fs::write(&self.file, offset).context("set the clock")
    }

    fn set_right(&self) -> Result<()> {
        fs::remove_file(&self.file).context("set the clock right")
    }
}

impl Site {
    /// The control plane is started with a clock that is ahead, then with one that is behind, then
    /// with the right one (C1, C5, C7): guests are served, no volume moves, and no point goes.
    pub(super) fn clock_stepped(&self, hold: Duration) -> Result<Struck> {
        let begun_ms = unix_ms();
        let Some(clock) = &self.clock else {
            return Ok(Struck { not_tried: Some(NOT_TRIED), ..Struck::since(begun_ms) });
        };
        let before = self.watch.machines();
        let wrong = STEPS.iter().try_for_each(|step| self.live_with(clock, step, hold));
        while_dead(&self.system, Part::Control, || clock.set_right())?;
        wrong?;
        let struck = Struck::since(begun_ms);
        self.check_unmoved(&before, "a wrong clock of the control plane")?;
        // What a wrong clock says of how old a point is says nothing.
        self.watch.take_worst_rpo();
        Ok(struck)
    }

    fn live_with(&self, clock: &Clock, step: &str, hold: Duration) -> Result<()> {
        while_dead(&self.system, Part::Control, || clock.set(step))?;
        let is_wrong = wait::until("the wrong clock", EVIDENCE_LIMIT, || {
            // It may not be there yet, or be a shell that is about to become it.
            let Ok(pid) = self.system.pid(Part::Control) else { return Ok(None) };
            let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero()));
            let maps = maps.unwrap_or_default();
            Ok(maps.contains("libfaketime").then_some(()))
        });
        is_wrong.with_context(|| format!("the control plane does not start with {step}"))?;
        thread::sleep(hold);
        self.guests.iter().try_for_each(|guest| {
            let went_on = guest.jobs.progress(5, EVIDENCE_LIMIT);
            went_on.with_context(|| format!("{} waits for a clock", guest.machine.name))
        })
    }
}
