//! Loop devices for tests, and what is said where there are none.

use std::path::Path;
use std::process::{Command, Stdio};

/// Says that this machine has no loop devices, file systems to mount and the like.
const NO_DEVICES: &str = "FARSHORE_NO_DEVICES";

/// What a command wrote; none if it cannot be run, or failed.
pub(crate) fn run(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A test ends here, or leaves something out, for that something cannot be had. Only a machine that is said
/// to have none may pass without: else a test would pass for ever that nobody runs.
pub(crate) fn not_tried(why: &str) {
    let is_told = std::env::var(NO_DEVICES).is_ok_and(|told| told == "1");
    assert!(is_told, "{why}: run as root, or set {NO_DEVICES}=1 to leave it out on this machine");
    println!("not tried: {why}");
}

/// A loop device, detached when dropped.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    /// None on a machine that is said to have none.
    pub(crate) fn over(path: &Path) -> Option<Self> {
        Self::over_with(path, &[])
    }

    pub(crate) fn over_with(path: &Path, options: &[&str]) -> Option<Self> {
        let mut attach = Command::new("losetup");
        let found = run(attach.args(["--find", "--show"]).args(options).arg(path));
        if found.is_none() {
            not_tried("no loop device can be had");
        }
        found.map(Self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0]));
    }
}
