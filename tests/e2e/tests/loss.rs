//! A node that loses its disk: the vault and the agents hold everything (I1, I3).

use anyhow::{Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, System, run};

/// Writes a block that says `n`, sets a point and checks that it equals the disk.
fn goes_on(system: &System, machine: &Machine, n: u8) -> Result<String> {
    machine.wait_until_protected()?;
    let mut client = Client::connect(&machine.nbd_uri()?)?;
    client.write(u64::from(n) * MIB, &[n; 8192], true)?;
    client.disconnect()?;
    let point = machine.mark()?;
    let file = system.path(&format!("point-{n}.raw"));
    machine.export(&point, &file)?;
    image::compare(&machine.disk, &file)?;
    Ok(point)
}

fn epoch(machine: &Machine) -> Result<u64> {
    Ok(machine.show()?["epoch"].as_u64().unwrap_or_default())
}

#[test]
fn a_node_without_its_journal_seals_its_old_log_and_goes_on() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(50)))?;
        goes_on(system, &machine, 1)?;
        let before = epoch(&machine)?;
        system.stop()?;
        std::fs::remove_file(system.path("data/node/state.json"))?;
        std::fs::remove_dir_all(system.path("data/node/journal"))?;
        system.up()?;
        goes_on(system, &machine, 2)?;
        let after = epoch(&machine)?;
        ensure!(after > before, "the epoch is still {after}");
        let vault = system.endpoint("vault")?;
        system.bare()?.ok(&format!("vault verify --vault {vault} --read-data"))?;
        Ok(())
    });
}

#[test]
fn a_new_node_takes_over_what_a_lost_one_had() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(51)))?;
        let first = goes_on(system, &machine, 1)?;
        let lost = machine.show()?["node"].clone();
        system.stop()?;
        std::fs::remove_dir_all(system.path("data/node"))?;
        system.up()?;
        goes_on(system, &machine, 2)?;
        ensure!(machine.show()?["node"] != lost, "the volume is still on the lost node");
        // A point from before the loss is what it was.
        let file = system.path("first.raw");
        machine.export(&first, &file)?;
        image::compare(&system.path("point-1.raw"), &file)?;
        let vault = system.endpoint("vault")?;
        system.bare()?.ok(&format!("vault verify --vault {vault} --read-data"))?;
        Ok(())
    });
}

/// C8: the catalogue is from a time before the volume's newest epochs.
#[test]
fn a_catalogue_from_an_older_copy_raises_its_epochs_by_itself() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(53)))?;
        goes_on(system, &machine, 1)?;
        system.stop()?;
        let (catalogue, copy) = (system.path("data/control/control.db"), system.path("copy.db"));
        std::fs::copy(&catalogue, &copy)?;
        // The node loses its logs, and is given newer epochs.
        std::fs::remove_file(system.path("data/node/state.json"))?;
        std::fs::remove_dir_all(system.path("data/node/journal"))?;
        system.up()?;
        goes_on(system, &machine, 2)?;
        let newest = epoch(&machine)?;
        system.stop()?;
        std::fs::copy(&copy, &catalogue)?;
        for rest in ["control.db-wal", "control.db-shm"] {
            let _ = std::fs::remove_file(system.path(&format!("data/control/{rest}")));
        }
        system.up()?;
        goes_on(system, &machine, 3)?;
        let raised = epoch(&machine)?;
        ensure!(raised > newest, "the epoch is {raised}, the vault's was {newest}");
        let vault = system.endpoint("vault")?;
        system.bare()?.ok(&format!("vault verify --vault {vault} --read-data"))?;
        Ok(())
    });
}

#[test]
fn identities_that_ran_out_while_everything_was_off_come_back_under_their_ids() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(52)))?;
        goes_on(system, &machine, 1)?;
        let ids = |machine: &Machine| -> Result<_> {
            let shown = machine.show()?;
            Ok((shown["agent"].clone(), shown["node"].clone()))
        };
        let before = ids(&machine)?;
        system.stop()?;
        for child in ["agent", "node"] {
            let path = system.path(&format!("data/{child}/identity.json"));
            let mut identity: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
            identity["expires_at_unix_s"] = 1.into();
            std::fs::write(&path, serde_json::to_vec(&identity)?)?;
        }
        system.up()?;
        goes_on(system, &machine, 2)?;
        let after = ids(&machine)?;
        ensure!(before == after, "agent and node were {before:?}, are {after:?}");
        Ok(())
    });
}
