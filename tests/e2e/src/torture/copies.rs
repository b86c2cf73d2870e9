//! Copies of an agent's or node's folder that run beside the original.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::faults::{EVIDENCE_LIMIT, Struck};
use super::reverts::{copy_folder, while_still};
use super::site::Site;
use super::watch::{Seen, unix_ms};
use crate::command::binary;
use crate::system::{Part, free_ports};
use crate::wait;

/// What a machine's state says while two agents have its volume.
const CONTESTED: &str = "two agents claim volume";

/// A process on a copied folder; it and the folder are gone when it is dropped.
struct Twin {
    child: Child,
    folder: PathBuf,
    log: PathBuf,
    /// Bytes of the log that are of those before it.
    log_before: u64,
}

impl Twin {
    fn start(program: &str, folder: &Path, words: &[String]) -> Result<Self> {
        let log = folder.with_extension("copy.log");
        let log_before = fs::metadata(&log).map_or(0, |found| found.len());
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = binary(program)?
            .args(words)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start a second {program}"))?;
        Ok(Self { child, folder: folder.to_path_buf(), log, log_before })
    }

    /// What it has said.
    fn said(&self) -> Result<String> {
        let log = fs::read(&self.log).context("read the log of a copy")?;
        let from = usize::try_from(self.log_before)?;
        Ok(String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned())
    }

    /// Whether it has ended by itself.
    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look at a copy")?.is_some())
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // One that has ended by itself is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

impl Site {
    /// An agent runs on a copy of the agent's folder, on the same server, for `hold` (P31): it is
    /// refused each disk, because the living one has it, and offers the node the log that it has. So two
    /// claim each volume, which is said, and nothing is replicated until one is left; guests go on, and
    /// then the disks are read again.
    pub(super) fn agent_cloned(&self, hold: Duration) -> Result<Struck> {
        let (from, folder) = (self.system.data().join("agent"), self.system.path("agent-copy"));
        let begun_ms = unix_ms();
        private(&folder)?;
        let pid = self.system.pid(Part::Agent)?;
        while_still(pid, || copy_folder(&from, &folder))?;
        let words = words(&[
            ("--data", folder.display().to_string()),
            ("--control", self.system.endpoint("control")?),
        ]);
        let mut twin = Twin::start("farshore-agent", &folder, &words)?;
        wait::until("the copy to be refused each disk", EVIDENCE_LIMIT, || {
            self.violations.check()?;
            ensure!(!twin.has_ended()?, "the copy ended: {}", twin.said()?);
            let said = twin.said()?;
            let is_refused = |disk: &Path| {
                said.contains(&format!("disk {} is captured already", disk.display()))
            };
            let mut disks = self.guests.iter().map(|guest| guest.machine.disk.as_path());
            Ok(disks.all(is_refused).then_some(()))
        })?;
        // Both agents report, in turns: what is said of one machine need not be there with the other's.
        let mut told = BTreeSet::new();
        self.watch.until("the copy to be told of", EVIDENCE_LIMIT, |machines| {
            let is_told = |seen: &Seen| seen.detail.contains(CONTESTED);
            told.extend(
                machines.iter().filter(|(_, seen)| is_told(seen)).map(|(name, _)| name.clone()),
            );
            told.len() == machines.len()
        })?;
        thread::sleep(hold);
        ensure!(!twin.has_ended()?, "the copy ended: {}", twin.said()?);
        for guest in &self.guests {
            guest.jobs.progress(5, EVIDENCE_LIMIT).context("beside a copy of the agent")?;
        }
        drop(twin);
        Ok(Struck { is_read_again: true, ..Struck::since(begun_ms) })
    }

    /// A node runs on a copy of the folder of the node that has most of the volumes, for `hold` (M7,
    /// H8): it writes the same logs. Whoever finds its slot taken stops, and is started again if it is
    /// the original; nothing that was acknowledged is lost, and when the copy is gone the original
    /// goes on.
    pub(super) fn node_cloned(&self, hold: Duration) -> Result<Struck> {
        let which = self.busy();
        let (from, folder) = (self.node_data(which), self.system.path("node-copy"));
        let begun_ms = unix_ms();
        private(&folder)?;
        let pid = self.node_pid(which).context("the node does not run")?;
        while_still(pid, || copy_folder(&from, &folder))?;
        let run = self.run_of(which);
        let (port, _) = free_ports()?;
        let mut words = words(&[
            ("--data", folder.display().to_string()),
            ("--listen", format!("127.0.0.1:{port}")),
            ("--vault", self.system.endpoint("vault")?),
            ("--key-file", self.system.endpoint("key_file")?),
            ("--control", self.system.endpoint("control")?),
        ]);
        words.insert(0, "serve".to_owned());
        let mut twin = Twin::start("farshore-node", &folder, &words)?;
        let met = wait::until("the node and its copy to meet", EVIDENCE_LIMIT, || {
            self.violations.check()?;
            let is_stopped = twin.has_ended()? || self.run_of(which) != run;
            Ok(is_stopped.then_some(()))
        });
        met.with_context(|| format!("the copy said: {}", twin.said().unwrap_or_default()))?;
        thread::sleep(hold);
        for guest in &self.guests {
            guest.jobs.progress(5, EVIDENCE_LIMIT).context("beside a copy of the node")?;
        }
        drop(twin);
        Ok(Struck::since(begun_ms))
    }
}

/// Makes a folder that others may not look into.
fn private(folder: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(folder).context("make a folder for a copy")
}

fn words(pairs: &[(&str, String)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect()
}
