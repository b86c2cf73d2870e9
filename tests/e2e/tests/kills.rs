//! SIGKILL of each part, again and again, while a disk is written to (I1, I2, I3).

use std::time::Duration;

use anyhow::{Context, Result};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::{Machine, Part, System, run};

const KILLS: usize = 20;
const DISK: (u64, Content) = (64 * MIB, Content::Mixed(20));
/// Writes that must be acknowledged between two kills, so that each kill meets work.
const WRITES_BETWEEN: usize = 60;
/// A kill may hold writes up for as long as starting the part again takes.
const PROGRESS_LIMIT: Duration = Duration::from_secs(90);

/// Kills `part` during writes; then the last point must equal the disk, and the disk must hold
/// every acknowledged write. Points from in between must be prefixes of the stream.
fn survives(system: &System, part: Part, seed: u64) -> Result<()> {
    let machine = Machine::protect(system, "web1", "nbd", DISK)?;
    let mut writer = machine.writer(seed)?;
    machine.wait_until_protected()?;
    for kill in 1..=KILLS {
        // Not at the same moment of the stream each time.
        let writes = WRITES_BETWEEN + kill * 7 % 40;
        let context = || format!("kill {kill} of {KILLS} of {part:?}");
        writer.progress(writes, PROGRESS_LIMIT).with_context(context)?;
        let before = system.pid(part).with_context(context)?;
        system.kill(part).with_context(context)?;
        system.wait_for_another(part, before).with_context(context)?;
    }
    writer.progress(WRITES_BETWEEN, PROGRESS_LIMIT)?;
    writer.stop()?;
    machine.wait_until_protected()?;
    let point = machine.mark()?;
    let file = system.path("point.raw");
    machine.export(&point, &file)?;
    {
        let log = writer.log();
        let standing = log.check_disk(&machine.disk, &machine.base)?;
        println!("{KILLS} kills of {part:?}: {} writes, {standing:?}", log.issued());
    }
    image::compare(&machine.disk, &file)?;
    machine.check_older_points(system, &writer, 5)?;
    let vault = system.endpoint("vault")?;
    system.bare()?.ok(&format!("vault verify --vault {vault} --read-data"))?;
    Ok(())
}

#[test]
fn twenty_kills_of_the_agent_lose_nothing() {
    run(|system| survives(system, Part::Agent, 101));
}

#[test]
fn twenty_kills_of_the_node_lose_nothing() {
    run(|system| survives(system, Part::Node, 102));
}

#[test]
fn twenty_kills_of_the_control_plane_lose_nothing() {
    run(|system| survives(system, Part::Control, 103));
}

#[test]
fn all_three_at_once_lose_nothing() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "scan", (16 * MIB, Content::Mixed(21)))?;
        machine.wait_until_protected()?;
        let before = machine.mark()?;
        for part in [Part::Agent, Part::Node, Part::Control] {
            let pid = system.pid(part)?;
            system.kill(part)?;
            system.wait_for_another(part, pid)?;
        }
        machine.wait_until_protected()?;
        let after = machine.mark()?;
        for point in [before, after] {
            let file = system.path(&format!("{point}.raw"));
            machine.export(&point, &file)?;
            image::compare(&machine.disk, &file)?;
        }
        Ok(())
    });
}
