//! Signals as the parent has left them.
//!
//! Ignored and blocked signals are inherited. A shell starts what runs in the background with SIGINT
//! ignored, `trap ''` and some supervisors ignore others; a parent that ignores SIGCHLD has the system
//! throw away how a child ended. A program that catches SIGTERM must get it, and one with children must
//! hear of their ends, whoever started it.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_HANGUP_IGNORED: AtomicBool = AtomicBool::new(false);

/// Called first in `main`, before there is a second thread.
///
/// SIGTERM and SIGCHLD get their usual meaning back, whatever the parent ignored, and no signal is
/// blocked. SIGINT is left to who catches it ([`crate::StopSignals`]): a command in the background of a script is
/// not meant by a Ctrl-C. SIGHUP stays ignored if it was: that is what `nohup` asks for. SIGXFSZ is ignored, so that a
/// file that reaches the limit of its size is an error of that write and not the end of the process.
/// (SIGPIPE is ignored by Rust's runtime.)
pub fn begin() {
    IS_HANGUP_IGNORED.store(is_ignored(libc::SIGHUP), Ordering::Relaxed);
    unblock();
    for signal in [libc::SIGTERM, libc::SIGCHLD] {
        set(signal, libc::SIG_DFL);
    }
    set(libc::SIGXFSZ, libc::SIG_IGN);
}

/// Whether the program was started with SIGHUP ignored (`nohup`): the end of its terminal is then no
/// reason to stop. Only after [`begin`].
#[must_use]
pub fn is_hangup_ignored() -> bool {
    IS_HANGUP_IGNORED.load(Ordering::Relaxed)
}

#[expect(unsafe_code, reason = "no safe interface to the dispositions of signals exists")]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: a zeroed `sigaction` is a valid one to be overwritten; with no new action the call only
    // reads, and `signal` is a constant that exists.
    let (asked, old) = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &raw mut old), old)
    };
    asked == 0 && old.sa_sigaction == libc::SIG_IGN
}

#[expect(unsafe_code, reason = "no safe interface to the dispositions of signals exists")]
fn set(signal: libc::c_int, action: libc::sighandler_t) {
    // SAFETY: only SIG_DFL and SIG_IGN are passed: no code of ours ever runs in a handler. The signals
    // exist and may be changed, so the call cannot fail.
    unsafe {
        libc::signal(signal, action);
    }
}

#[expect(unsafe_code, reason = "no safe interface to the mask of signals exists")]
fn unblock() {
    // SAFETY: the set is made before it is read; there is no other thread yet whose mask could differ.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Makes this test the process that is looked at.
    const LOOKS: &str = "FARSHORE_TEST_LOOKS";

    /// A line of /proc/thread-self/status, as a number.
    fn mask(name: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    }

    fn bit(signal: libc::c_int) -> u64 {
        1 << (signal - 1)
    }

    #[test]
    fn what_the_parent_ignored_and_blocked_works_again() {
        if std::env::var_os(LOOKS).is_some() {
            begin();
            let ignored = mask("SigIgn");
            for signal in [libc::SIGTERM, libc::SIGCHLD] {
                assert_eq!(ignored & bit(signal), 0, "{signal} is ignored");
            }
            assert_ne!(ignored & bit(libc::SIGHUP), 0, "nohup is respected");
            assert_ne!(ignored & bit(libc::SIGXFSZ), 0);
            assert!(is_hangup_ignored());
            // With SIGCHLD ignored the system would keep no status.
            let ended = Command::new("/bin/sh").args(["-c", "exit 7"]).status().unwrap();
            assert_eq!(ended.code(), Some(7));
            return;
        }
        let itself = std::env::current_exe().unwrap();
        let name = "signals::tests::what_the_parent_ignored_and_blocked_works_again";
        let script = "trap '' TERM INT HUP CHLD; exec env --block-signal=TERM,INT,CHLD \"$@\"";
        let ended = Command::new("/bin/bash")
            .args(["-c", script, "bash"])
            .arg(itself)
            .args(["--exact", name, "--nocapture"])
            .env(LOOKS, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{}: {told}", ended.status);
    }

    #[test]
    fn nothing_stays_blocked() {
        let itself = std::env::current_exe().unwrap();
        if std::env::var_os(LOOKS).is_some() {
            // Tests run on threads of their own, with the mask of the thread that started them.
            begin();
            assert_eq!(mask("SigBlk"), 0);
            return;
        }
        let ended = Command::new("/usr/bin/env")
            .args(["--block-signal=TERM"])
            .arg(itself)
            .args(["--exact", "signals::tests::nothing_stays_blocked", "--nocapture"])
            .env(LOOKS, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{}: {told}", ended.status);
    }
}
