//! Steps that many scenarios share: protect a disk, wait, mark, export.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::Farshore;
use crate::image::{self, Content};
use crate::system::System;
use crate::wait;
use crate::writer::Writer;

/// How long an initial copy of a test's disk may take.
pub const COPY_LIMIT: Duration = Duration::from_secs(120);

/// A protected machine with one disk.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its disk.
    pub disk: PathBuf,
    /// What the disk held before all writes.
    pub base: PathBuf,
    farshore: Farshore,
}

impl Machine {
    /// Makes a disk and protects it.
    ///
    /// # Errors
    /// If the disk cannot be made or the command refuses.
    pub fn protect(
        system: &System,
        name: &str,
        capture: &str,
        disk: (u64, Content),
    ) -> Result<Self> {
        let machine = Self {
            name: name.to_owned(),
            disk: system.path(&format!("{name}.raw")),
            base: system.path(&format!("{name}.base")),
            farshore: system.farshore(),
        };
        image::make(&machine.disk, disk.0, disk.1)?;
        std::fs::copy(&machine.disk, &machine.base).context("copy the disk")?;
        let disk = machine.disk.display();
        machine.farshore.ok(&format!(
            "machine protect {name} --disk {disk} --capture {capture} --mark-interval 1s"
        ))?;
        Ok(machine)
    }

    /// What `machine show` says.
    ///
    /// # Errors
    /// If the command refuses.
    pub fn show(&self) -> Result<Value> {
        self.farshore.json(&format!("machine show {}", self.name))
    }

    /// Waits until the initial copy (or a resync) is committed.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_until_protected(&self) -> Result<Value> {
        let mut last = Value::Null;
        wait::until(&format!("{} to be protected", self.name), COPY_LIMIT, || {
            // While the control plane is away there is no answer; that is no reason to give up.
            let Ok(shown) = self.show() else { return Ok(None) };
            last = shown;
            Ok((last["state"] == "protected").then(|| last.clone()))
        })
        .with_context(|| format!("`machine show` says {last}"))
    }

    /// Where the splitter serves the disk.
    ///
    /// # Errors
    /// If there is no URI in time.
    pub fn nbd_uri(&self) -> Result<String> {
        wait::until("nbd_uri", COPY_LIMIT, || {
            let shown = self.show()?;
            Ok(shown["volumes"][0]["nbd_uri"].as_str().map(str::to_owned))
        })
    }

    /// Id of its one volume.
    ///
    /// # Errors
    /// If it has none.
    pub fn volume(&self) -> Result<String> {
        let shown = self.show()?;
        let id = shown["volumes"][0]["id"].as_str();
        id.map(str::to_owned).context("`machine show` names no volume")
    }

    /// Sets a mark and waits until it is committed; returns the point.
    ///
    /// # Errors
    /// If the command refuses.
    pub fn mark(&self) -> Result<String> {
        let marked = self.farshore.json(&format!("point mark {} --wait", self.name))?;
        let point = marked["point"].as_str();
        point.map(str::to_owned).with_context(|| format!("`point mark` printed {marked}"))
    }

    /// Exports a point to a raw file.
    ///
    /// # Errors
    /// If the command refuses.
    pub fn export(&self, point: &str, to: &Path) -> Result<()> {
        let line = format!("point export {} {point} --format raw --to {}", self.name, to.display());
        self.farshore.ok(&line).map(|_| ())
    }

    /// Starts a writer on the splitter; after a break it asks where the export is now.
    ///
    /// # Errors
    /// If there is no export or nothing answers there.
    pub fn writer(&self, seed: u64) -> Result<Writer> {
        let before = self.nbd_uri()?;
        let (farshore, name) = (self.farshore.clone(), self.name.clone());
        Writer::start(seed, move || {
            let shown = farshore.json(&format!("machine show {name}")).unwrap_or_default();
            let now = shown["volumes"][0]["nbd_uri"].as_str();
            Ok(now.unwrap_or(&before).to_owned())
        })
    }

    /// Checks that every `step`th point of those kept is a prefix of the stream of writes.
    ///
    /// # Errors
    /// If one is not, or there are none.
    pub fn check_older_points(&self, system: &System, writer: &Writer, step: usize) -> Result<()> {
        let points = self.farshore.json(&format!("point list {}", self.name))?;
        let points = points["points"].as_array().context("no list of points")?;
        ensure!(!points.is_empty(), "no points");
        let log = writer.log();
        for point in points.iter().step_by(step) {
            let id = point["point"].as_str().context("a point without an id")?;
            let file = system.path("older.raw");
            self.export(id, &file)?;
            log.check_point(&file, &self.base, 0, log.issued())
                .with_context(|| format!("point {id}"))?;
            std::fs::remove_file(&file)?;
        }
        Ok(())
    }
}
