//! What a process uses, by `/proc`.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

/// Resident memory in bytes: now, and the most there ever was.
///
/// # Errors
/// If the process is gone.
pub fn memory(pid: Pid) -> Result<(u64, u64)> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).with_context(|| format!("{path} has no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// TCP connections of this machine that a process holds at a port of its own; those that the system
/// alone still looks after are not among them.
///
/// # Errors
/// If the system's table cannot be read.
pub fn connections(port: u16) -> Result<usize> {
    const LISTENING: &str = "0A";
    let path = "/proc/net/tcp";
    let table = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    ensure!(table.contains("inode"), "{path} has another form");
    let local = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(rows
        .filter(|row| row.len() > 9 && row[1].ends_with(&local))
        .filter(|row| row[3] != LISTENING && row[9] != "0")
        .count())
}

/// Open files and sockets. The kernel (6.2 or newer) tells their number as the size of the folder; to list
/// thousands of them would hold up whoever shares the core.
///
/// # Errors
/// If the process is gone, or the kernel tells nothing.
pub fn descriptors(pid: Pid) -> Result<usize> {
    let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let count = fs::metadata(&path).with_context(|| format!("look at {path}"))?.len();
    ensure!(count > 0, "{path} has no size: a kernel before 6.2");
    Ok(usize::try_from(count)?)
}
