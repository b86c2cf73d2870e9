//! CPU time and memory, by the system's own accounting.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread so far, the system's share included.
pub(crate) fn of_thread() -> Duration {
    by(ClockId::ThreadCPUTime)
}

/// The same of this process: finer than [`of_process`], which counts ticks.
pub(crate) fn of_this_process() -> Duration {
    by(ClockId::ProcessCPUTime)
}

fn by(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// In user mode and in the kernel.
    pub(crate) cpu: Duration,
    /// Most memory that was resident, in bytes.
    pub(crate) peak_bytes: u64,
}

/// What a running process has used so far; threads included, children not.
///
/// # Errors
/// If it is gone.
pub(crate) fn of_process(pid: Pid) -> Result<Used> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may hold spaces; fields are counted from behind it.
    let (_, rest) = stat.rsplit_once(") ").with_context(|| format!("{path} has another form"))?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    let cpu = Duration::from_secs_f64(ticks as f64 / per_second as f64);
    let (_, peak_bytes) = farshore_e2e::process::memory(pid)?;
    Ok(Used { cpu, peak_bytes })
}

/// Runs a program under GNU time, which asks the kernel what it and its children have used.
///
/// # Errors
/// If it cannot be started or fails.
pub(crate) fn of_command(command: &Command) -> Result<Used> {
    let report = tempfile::NamedTempFile::new()?;
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["--quiet", "-f", "%U %S %M", "-o"]).arg(report.path());
    timed.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        timed.current_dir(folder);
    }
    let output = timed.output().context("run /usr/bin/time: install the package time")?;
    ensure!(ended_well(output.status), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(report.path())?;
    let mut numbers = text.split_whitespace();
    let mut next = || numbers.next().with_context(|| format!("time printed {text:?}"));
    let (user, system) = (next()?.parse::<f64>()?, next()?.parse::<f64>()?);
    let peak_bytes = next()?.parse::<u64>()? << 10;
    Ok(Used { cpu: Duration::from_secs_f64(user + system), peak_bytes })
}

fn ended_well(status: ExitStatus) -> bool {
    status.success() && status.signal().is_none()
}
