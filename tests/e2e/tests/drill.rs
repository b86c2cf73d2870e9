//! A drill serves a point read-write and changes nothing of it.

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, System, run};
use serde_json::Value;

const DISK: (u64, Content) = (32 * MIB, Content::Mixed(30));

fn drill(system: &System, point: &str) -> Result<(String, String)> {
    let drill: Value =
        system.farshore().json(&format!("failover drill web1 --point {point} --serve-only"))?;
    let text = |name: &str| {
        let text = drill[name].as_str().map(str::to_owned);
        text.with_context(|| format!("the drill has no {name}: {drill}"))
    };
    Ok((text("id")?, text("nbd_uri")?))
}

/// Reads a whole export into a file.
fn download(uri: &str, to: &std::path::Path) -> Result<()> {
    let mut client = Client::connect(uri)?;
    let mut bytes = vec![0; usize::try_from(client.size)?];
    for (number, part) in bytes.chunks_mut(1 << 20).enumerate() {
        client.read(number as u64 * MIB, part)?;
    }
    client.disconnect()?;
    std::fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}

#[test]
fn a_drill_serves_the_point_and_leaves_it_as_it_is() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        let (id, uri) = drill(system, &point)?;
        download(&uri, &system.path("drill.raw"))?;
        image::compare(&machine.disk, &system.path("drill.raw"))?;

        let mut client = Client::connect(&uri)?;
        client.write(3 * MIB + 512, &[0x77; 9216], true)?;
        client.write_zeroes(7 * MIB, 1 << 20)?;
        client.flush()?;
        let mut bytes = vec![0; 9216];
        client.read(3 * MIB + 512, &mut bytes)?;
        ensure!(bytes == [0x77; 9216], "the overlay lost a write");
        client.disconnect()?;

        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.disk, &system.path("point.raw"))?;
        // Replication went on meanwhile.
        let mut source = Client::connect(&machine.nbd_uri()?)?;
        source.write(0, &[0x5a; 512], true)?;
        source.disconnect()?;
        let later = machine.mark()?;
        machine.export(&later, &system.path("later.raw"))?;
        image::compare(&machine.disk, &system.path("later.raw"))?;

        system.farshore().ok(&format!("failover cleanup {id} --yes"))?;
        ensure!(Client::connect(&uri).is_err(), "the export outlived its cleanup");
        Ok(())
    });
}

#[test]
fn a_second_drill_starts_from_the_point_again() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "scan", DISK)?;
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        let (first, uri) = drill(system, &point)?;
        let mut client = Client::connect(&uri)?;
        client.write(0, &[1; 4096], true)?;
        client.disconnect()?;
        system.farshore().ok(&format!("failover cleanup {first} --yes"))?;
        let (second, uri) = drill(system, &point)?;
        download(&uri, &system.path("drill.raw"))?;
        image::compare(&machine.disk, &system.path("drill.raw"))?;
        system.farshore().ok(&format!("failover cleanup {second} --yes"))?;
        Ok(())
    });
}
