//! One part with a wrong clock, by libfaketime: nothing is lost, and what is wrong is said (C1, C2).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::command::binaries;
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, Part, System, run, wait};

/// Debian's package `libfaketime`.
const CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

const LIMIT: Duration = Duration::from_secs(60);

/// The clock of one part, which can be set while it runs.
struct Clock {
    file: std::path::PathBuf,
}

impl Clock {
    /// All is started again; the clock of `part` is this one from then on, and right.
    fn of(system: &mut System, part: Part) -> Result<Self> {
        let clock = Self { file: system.path("clock") };
        clock.set("+0")?;
        system.restart_with(clock.programs(system, part)?)?;
        Ok(clock)
    }

    /// Programs of which that of `part` alone has this clock. Time that passes is measured by another
    /// clock, which nobody sets.
    fn programs(&self, system: &System, part: Part) -> Result<std::path::PathBuf> {
        let (folder, built) = (system.path("programs"), binaries()?);
        fs::create_dir(&folder).context("make a folder for programs")?;
        fs::copy(built.join("farshore"), folder.join("farshore")).context("copy farshore")?;
        for other in [Part::Control, Part::Node, Part::Agent] {
            let clock = format!(
                "export LD_PRELOAD={CLOCK_LIBRARY} FAKETIME_TIMESTAMP_FILE={} \
                 FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
                self.file.display()
            );
            let clock = if other == part { clock } else { String::new() };
            let name = format!("farshore-{}", other.name());
            let program = built.join(&name);
            let script = format!("#!/bin/sh\n{clock}\nexec {} \"$@\"\n", program.display());
            fs::write(folder.join(&name), script).context("write a program")?;
            let may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(folder.join(&name), may_run).context("write a program")?;
        }
        Ok(folder)
    }

    fn set(&self, offset: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{offset}\n")).context("set the clock")?;
        fs::rename(&new, &self.file).context("set the clock")
    }
}

/// Ids of the points, oldest first.
fn points(system: &System) -> Result<Vec<String>> {
    let listed = system.farshore().json("point list web1 --limit 1000")?;
    let points = listed["points"].as_array().context("no list of points")?;
    points
        .iter()
        .filter(|point| point["state"] == "committed")
        .map(|point| point["point"].as_str().map(str::to_owned).context("a point without an id"))
        .collect()
}

/// Two more points, each asked for when the one before was in the vault: nothing is written here, and what
/// did not change gets no point by itself.
fn two_more_points(system: &System) -> Result<Vec<String>> {
    for _ in 0..2 {
        // A control plane that has just been started may not answer yet.
        wait::until("a point that was asked for", LIMIT, || {
            let marked = system.farshore().run("point mark web1 --wait --timeout 20s")?;
            Ok((marked.code() == Some(0)).then_some(()))
        })?;
    }
    points(system)
}

/// Waits until some log has a line of these words that it did not have before.
fn until_said(system: &System, seen: usize, words: &str) -> Result<()> {
    wait::until(&format!("`{words}` in a log"), LIMIT, || {
        Ok((said(system, words)? > seen).then_some(()))
    })
}

fn said(system: &System, words: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(system.path("data/logs")).context("list the logs")? {
        let log = fs::read(entry?.path()).context("read a log")?;
        count += String::from_utf8_lossy(&log).lines().filter(|line| line.contains(words)).count();
    }
    Ok(count)
}

/// Lets the clock of a part be wrong by each of `offsets` while the guest writes. Where the offset is
/// one that certificates do not bear, `other` is killed, so that it has to be let in anew, and somebody
/// says how far the clocks are apart.
fn is_borne(
    system: &mut System,
    machine: &Machine,
    part: Part,
    (other, offsets): (Part, &[(&str, Option<&str>)]),
) -> Result<()> {
    let clock = Clock::of(system, part)?;
    machine.wait_until_protected()?;
    let uri = machine.nbd_uri()?;
    for (number, (offset, apart)) in offsets.iter().enumerate() {
        let before = two_more_points(system)?;
        clock.set(offset)?;
        let seen = apart.map_or(Ok(0), |apart| said(system, apart))?;
        // The guest is served, whatever the clocks say, and whoever was started again since.
        let content = [u8::try_from(number)? + 1; 8192];
        let offset_bytes = (number as u64 + 1) * MIB;
        write(&uri, offset_bytes, &content)?;
        if apart.is_some() {
            system.kill(other)?;
            write(&uri, offset_bytes + 8192, &content)?;
        }
        if let Some(apart) = apart {
            until_said(system, seen, apart)?;
        }
        clock.set("+0")?;
        let after = two_more_points(system)?;
        // What was there keeps its place, and what came while the clock was wrong is behind it.
        ensure!(after.starts_with(&before), "{part:?} {offset}: {before:?} became {after:?}");
        let latest = system.farshore().json("point show web1 latest")?;
        let newest = points(system)?;
        let at = newest.iter().position(|id| latest["point"] == id.as_str());
        ensure!(at >= Some(after.len() - 1), "{part:?} {offset}: latest is {latest}");
        let file = system.path("latest.raw");
        machine.export("latest", &file)?;
        image::compare(&machine.disk, &file)
            .with_context(|| format!("{part:?} with a clock of {offset}"))?;
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// Writes as a guest that connects when it can.
fn write(uri: &str, offset: u64, content: &[u8]) -> Result<()> {
    let attempt = || -> Result<()> {
        let mut client = Client::connect(uri)?;
        client.write(offset, content, true)?;
        client.disconnect().context("leave the disk")
    };
    wait::until("the disk to be served", LIMIT, || Ok(attempt().ok()))
}

fn tried(part: Part, other: Part, offsets: &[(&str, Option<&str>)]) {
    if !Path::new(CLOCK_LIBRARY).exists() {
        println!("not tried: it needs the Debian package libfaketime");
        return;
    }
    run(|system| {
        system.expect_error("clock");
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(60)))?;
        is_borne(system, &machine, part, (other, offsets))
    });
}

#[test]
fn a_control_plane_whose_clock_is_wrong_loses_nothing_and_says_how_wrong() {
    let offsets = [("+1h", None), ("+2d", Some("hours later")), ("-2d", Some("hours later"))];
    tried(Part::Control, Part::Node, &offsets);
}

#[test]
fn an_agent_whose_clock_is_wrong_loses_nothing_and_says_how_wrong() {
    tried(Part::Agent, Part::Agent, &[("-1h", None), ("+2d", Some("hours away"))]);
}

#[test]
fn a_node_whose_clock_is_wrong_loses_nothing_and_says_how_wrong() {
    tried(Part::Node, Part::Control, &[("+1h", None), ("-2d", Some("hours later"))]);
}
