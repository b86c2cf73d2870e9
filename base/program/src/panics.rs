//! How a process ends that went wrong.

use std::backtrace::{Backtrace, BacktraceStatus};

/// From now on a panic on any thread and in any task ends the process with SIGABRT, in every build
/// profile, after it was reported.
///
/// A task that went wrong must not leave the rest acknowledging, or reporting that all is well: the
/// disk is the truth that the next start begins with.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        let has_backtrace = backtrace.status() == BacktraceStatus::Captured;
        let backtrace = if has_backtrace { format!("\n{backtrace}") } else { String::new() };
        let name = thread.name().unwrap_or("without a name");
        // Neither a reader that is gone nor one that is stuck keeps the process from ending.
        crate::tell!("thread {name}: {panic}{backtrace}");
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Makes this test the process that panics.
    const PANICS: &str = "FARSHORE_TEST_PANICS";
    const SIGABRT: i32 = 6;

    #[test]
    fn a_panic_on_any_thread_ends_the_process() {
        if std::env::var_os(PANICS).is_some() {
            abort_on_panic();
            let _caught = std::thread::spawn(|| panic!("as wanted")).join();
            return;
        }
        let itself = std::env::current_exe().unwrap();
        let name = "panics::tests::a_panic_on_any_thread_ends_the_process";
        let mut command = Command::new(itself);
        let ended = command.args(["--exact", name, "--nocapture"]).env(PANICS, "1").output();
        let ended = ended.unwrap();
        assert_eq!(ended.status.signal(), Some(SIGABRT), "{}", ended.status);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(told.contains("as wanted"), "the reason is told: {told}");
    }
}
