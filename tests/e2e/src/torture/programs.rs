//! The programs of the run: the built ones, each behind a script that gives it its clock and its way to
//! the control plane.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::clock::{Clocks, Whose};
use super::relay::Relays;
use super::site::Which;
use crate::command::binaries;

/// A folder with programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) folder: PathBuf,
}

impl Programs {
    /// Makes the scripts.
    pub(super) fn make(at: &Path, clocks: Option<&Clocks>, relays: &Relays) -> Result<Self> {
        let programs = Self { folder: at.join("programs") };
        let built = binaries()?;
        fs::create_dir(&programs.folder).context("make a folder for programs")?;
        fs::copy(built.join("farshore"), programs.folder.join("farshore"))
            .context("copy farshore")?;
        let nodes = [Which::First, Which::Second].map(Whose::Node);
        for whose in [Whose::Control, Whose::Agent].into_iter().chain(nodes) {
            let program = match whose {
                Whose::Node(_) => built.join("farshore-node"),
                Whose::Control | Whose::Agent => built.join(whose.name()),
            };
            let clock = clocks.map(|clocks| clocks.words(whose)).unwrap_or_default();
            let way = relays.of(whose).map(|relay| way_over(relay.port)).unwrap_or_default();
            let script = format!("#!/bin/sh\n{clock}{way}exec {} \"$@\"\n", program.display());
            let path = programs.of(whose);
            fs::write(&path, script).context("write a program")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .context("write a program")?;
        }
        Ok(programs)
    }

    /// The program of a process.
    pub(super) fn of(&self, whose: Whose) -> PathBuf {
        self.folder.join(whose.name())
    }
}

/// Words of a shell that put another address behind `--control`.
fn way_over(port: u16) -> String {
    format!(
        "for word; do\n  shift\n  if [ \"$before\" = --control ]; then \
         word=https://127.0.0.1:{port}; fi\n  before=$word\n  set -- \"$@\" \"$word\"\ndone\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn nothing_but_the_address_of_the_control_plane_is_another() {
        let script = format!("{}printf '%s,' \"$@\"", way_over(7));
        let said = Command::new("sh")
            .args(["-c", &script, "sh", "serve", "--control", "https://127.0.0.1:1", "a  b"])
            .output()
            .unwrap();
        assert_eq!(said.stdout, b"serve,--control,https://127.0.0.1:7,a  b,");
    }
}
