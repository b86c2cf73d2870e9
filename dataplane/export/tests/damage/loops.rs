//! A file shown as a disk.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Says that this machine has no loop devices.
const NO_DEVICES: &str = "FARSHORE_NO_DEVICES";

/// A file shown as a disk, until it is dropped.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    /// None on a machine that is said to have no loop devices: elsewhere a test must not pass without.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        if let Ok(made) = &made
            && made.status.success()
        {
            return Some(Self(PathBuf::from(String::from_utf8_lossy(&made.stdout).trim())));
        }
        let is_told = std::env::var(NO_DEVICES).is_ok_and(|told| told == "1");
        assert!(is_told, "no loop device: run as root, or set {NO_DEVICES}=1 ({made:?})");
        println!("not tried: no loop device can be had: {made:?}");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap();
    }
}
