//! The whole way, with real processes: what the node uses for an image, and what the vault holds then.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use farshore_e2e::{Part, Setting, System, wait};
use serde_json::Value;

use crate::cpu::{self, Used};
use crate::folder::bytes_below;

const LIMIT: Duration = Duration::from_secs(900);

/// What one image cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) node: Used,
    /// The agent's CPU time: reading, comparing, sealing for the way.
    pub(crate) agent: Duration,
    /// All objects of the vault after it.
    pub(crate) stored_bytes: u64,
}

/// A Farshore with a vault in a directory, on release binaries.
pub(crate) struct Ingest {
    system: System,
}

impl Ingest {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) fn start() -> Result<Self> {
        // It logs what it did to its own folder, which goes away with it.
        Ok(Self { system: System::start(Setting::default())? })
    }

    /// Protects an image as a disk and waits until everything of it is committed.
    ///
    /// # Errors
    /// If that fails or takes too long.
    pub(crate) fn take(&self, name: &str, image: &Path) -> Result<Cost> {
        let disk = self.system.path(&format!("{name}.raw"));
        fs::copy(image, &disk).with_context(|| format!("copy {}", image.display()))?;
        let (node, agent) = (self.system.pid(Part::Node)?, self.system.pid(Part::Agent)?);
        let (node_before, agent_before) = (cpu::of_process(node)?, cpu::of_process(agent)?);
        let farshore = self.system.farshore();
        farshore.ok(&format!("machine protect {name} --disk {} --capture scan", disk.display()))?;
        let mut last = Value::Null;
        wait::until(&format!("{name} to be protected"), LIMIT, || {
            last = farshore.json(&format!("machine show {name}"))?;
            Ok((last["state"] == "protected").then_some(()))
        })
        .with_context(|| last.to_string())?;
        let (node_now, agent_now) = (cpu::of_process(node)?, cpu::of_process(agent)?);
        let vault = self.system.data().join("vault");
        let stored_bytes = bytes_below(&vault)?;
        Ok(Cost {
            node: Used { cpu: node_now.cpu - node_before.cpu, peak_bytes: node_now.peak_bytes },
            agent: agent_now.cpu - agent_before.cpu,
            stored_bytes,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end in order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.system.stop()
    }
}
