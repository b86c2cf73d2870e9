//! Children of an earlier `up` on the same directory that was killed: they were told to stop by the
//! kernel and may still be at it. Nothing new is started before they are gone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use farshore_api::Exit;
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, Outcome};

use super::site::{Site, program_name};
use super::supervisor::Child;

/// Time to stop in order.
const STOP: Duration = Duration::from_secs(20);
/// Time to be gone after a kill.
const KILL: Duration = Duration::from_secs(5);
/// Time for the last threads of a killed process to be gone.
const DYING: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until no process of an earlier run is left, and ends those that stay.
///
/// The caller holds the directory's lock, so whatever runs on it belongs to nobody.
///
/// # Errors
/// `Conflict` naming a process that cannot be ended.
pub(super) async fn clear(site: &Site) -> Outcome {
    let left = find(site);
    if left.is_empty() {
        wait_for_dying().await;
        return Ok(());
    }
    farshore_program::tell!("waiting for {} of an earlier run to stop", list(&left));
    for (signal, patience) in [(Signal::TERM, STOP), (Signal::KILL, KILL)] {
        for &(_, pid) in &find(site) {
            // One that is gone by now is what is wanted; one of another user is told of below.
            let _ = kill_process(pid, signal);
        }
        let since = Instant::now();
        while since.elapsed() < patience {
            if find(site).is_empty() {
                wait_for_dying().await;
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let left = find(site);
    if left.is_empty() {
        return Ok(());
    }
    let data = site.data().display();
    let message = format!("{} of an earlier run on {data} cannot be ended", list(&left));
    Err(Failure::new(Exit::Conflict, message).hint("end it by hand, then try again"))
}

/// Waits until no process of the programs is on its way out, or for long enough: what one of them
/// still holds is told by whoever wants it.
async fn wait_for_dying() {
    let since = Instant::now();
    while since.elapsed() < DYING && is_any_dying() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_any_dying() -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|entry| {
        let path = entry.path();
        let read = |name: &str| std::fs::read(path.join(name)).ok();
        let Some((command_line, stat)) = read("cmdline").zip(read("stat")) else { return false };
        let threads = std::fs::read_dir(path.join("task")).map_or(0, Iterator::count);
        is_dying(&command_line, &stat, threads)
    })
}

/// Whether a process of one of the programs has lost its command line, but not yet its last thread,
/// and with it what it has open. Which directory it worked in cannot be told any more.
fn is_dying(command_line: &[u8], stat: &[u8], threads: usize) -> bool {
    // `pid (name) state …`; the kernel keeps 15 bytes of a name.
    let stat = String::from_utf8_lossy(stat);
    let Some((name, rest)) = stat.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") "))
    else {
        return false;
    };
    let is_ours = Child::ALL.into_iter().any(|child| {
        let program = program_name(child);
        program.get(..15).unwrap_or(&program) == name
    });
    let holds_nothing = rest.starts_with('Z') && threads <= 1;
    is_ours && command_line.is_empty() && !holds_nothing
}

fn list(processes: &[(Child, Pid)]) -> String {
    let names: Vec<String> = processes
        .iter()
        .map(|(child, pid)| format!("{} (pid {})", program_name(*child), pid.as_raw_nonzero()))
        .collect();
    names.join(", ")
}

/// Processes of the children's programs that work in the children's directories.
fn find(site: &Site) -> Vec<(Child, Pid)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(pid)
    });
    pids.filter_map(|pid| {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        // A zombie has no command line and holds nothing.
        let command_line = std::fs::read(path).ok()?;
        let child = Child::ALL
            .into_iter()
            .find(|child| is_child(&command_line, *child, &site.child(*child)))?;
        Some((child, pid))
    })
    .collect()
}

fn is_child(command_line: &[u8], child: Child, directory: &Path) -> bool {
    let words: Vec<&OsStr> = command_line.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
    let program = program_name(child);
    let is_program = |word: &&OsStr| Path::new(word).file_name() == Some(OsStr::new(&program));
    // The second word where an interpreter runs the program.
    words.iter().take(2).any(is_program)
        && words.windows(2).any(|pair| pair[0] == "--data" && pair[1] == directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dying_until_its_last_thread_is_gone() {
        let stat = b"71 (farshore-contro) Z 1 71".as_slice();
        assert!(is_dying(b"", stat, 2), "its first thread is gone, another is not");
        assert!(!is_dying(b"", stat, 1), "nobody has asked for its end yet, that is all");
        assert!(is_dying(b"", b"71 (farshore-node) R 1 71", 1));
        assert!(!is_dying(b"/usr/bin/farshore-node\0serve\0", b"71 (farshore-node) R 1 71", 1));
        assert!(!is_dying(b"", b"12 (kworker/0:1) I 2 0", 1));
        assert!(!is_dying(b"", b"", 0));
    }

    #[test]
    fn only_the_right_program_on_the_right_directory_is_a_leftover() {
        let line = b"/usr/bin/farshore-node\0serve\0--data\0/d/node\0--listen\0x\0";
        let is = |child, directory: &str| is_child(line, child, Path::new(directory));
        assert!(is(Child::Node, "/d/node"));
        assert!(!is(Child::Node, "/other/node"));
        assert!(!is(Child::Agent, "/d/node"));
        assert!(!is_child(b"", Child::Node, Path::new("/d/node")));
        assert!(!is_child(b"vi\0/d/node\0--data\0/d/node\0", Child::Node, Path::new("/d/node")));
    }
}
