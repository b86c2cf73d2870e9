//! Capture by the agent's NBD server: the exact stream of writes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, run};

const DISK: (u64, Content) = (64 * MIB, Content::Mixed(7));
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_point_is_exactly_what_was_written_at_its_mark() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        let mut writer = machine.writer(1)?;
        machine.wait_until_protected()?;
        let mut marks = Vec::new();
        for _ in 0..5 {
            writer.progress(150, PROGRESS_LIMIT)?;
            let from = writer.log().acked();
            let point = machine.mark()?;
            marks.push((point, from, writer.log().issued()));
        }
        writer.progress(150, PROGRESS_LIMIT)?;
        writer.stop()?;
        let log = writer.log();
        ensure!(log.acked() == log.issued(), "a write was refused");
        log.check_disk(&machine.disk, &machine.base)?;
        for (point, from, to) in &marks {
            let file = system.path(&format!("{point}.raw"));
            machine.export(point, &file)?;
            let standing = log.check_point(&file, &machine.base, *from, *to)?;
            println!("point {point}: version {} of {from}..={to}", standing.version);
        }
        let last = machine.mark()?;
        machine.export(&last, &system.path("last.raw"))?;
        image::compare(&machine.disk, &system.path("last.raw"))?;
        let vault = system.endpoint("vault")?;
        system.bare()?.ok(&format!("vault verify --vault {vault} --read-data"))?;
        Ok(())
    });
}

#[test]
fn writes_during_the_initial_copy_are_in_the_first_point() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (256 * MIB, Content::Mixed(8)))?;
        let mut writer = machine.writer(2)?;
        writer.progress(100, PROGRESS_LIMIT)?;
        machine.wait_until_protected()?;
        writer.stop()?;
        let point = machine.mark()?;
        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.disk, &system.path("point.raw"))
    });
}

#[test]
fn reads_see_writes_and_bad_requests_are_refused() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (8 * MIB, Content::Mixed(9)))?;
        machine.wait_until_protected()?;
        let mut client = Client::connect(&machine.nbd_uri()?)?;
        ensure!(client.size == 8 * MIB, "the export has {} bytes", client.size);
        // Whole sectors, but not whole blocks: across the border of two.
        let text = [b"sector".as_slice(); 256].concat();
        client.write(MIB + 3584, &text[..1024], true)?;
        let mut bytes = [0; 1024];
        client.read(MIB + 3584, &mut bytes)?;
        ensure!(bytes == text[..1024], "read other bytes than were written");
        let behind = client.write(8 * MIB - 512, &[0; 4096], false);
        ensure!(behind.is_err(), "a write behind the end was taken");
        client.flush()?;
        client.disconnect()?;
        let point = machine.mark()?;
        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.disk, &system.path("point.raw"))
    });
}

#[test]
fn other_clients_copy_the_same_bytes() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", (16 * MIB, Content::Mixed(10)))?;
        machine.wait_until_protected()?;
        let (uri, copy) = (machine.nbd_uri()?, system.path("copy.raw"));
        let copied = Command::new("nbdcopy").arg(&uri).arg(&copy).output().context("nbdcopy")?;
        ensure!(copied.status.success(), "nbdcopy: {}", String::from_utf8_lossy(&copied.stderr));
        image::compare(&machine.disk, &copy)?;
        let script = ["write -P 0x5a 1M 64k", "write -z 2M 128k", "flush", "read -P 0x5a 1M 64k"];
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "raw"]);
        for line in script {
            qemu.args(["-c", line]);
        }
        let done = qemu.arg(&uri).output().context("qemu-io")?;
        ensure!(done.status.success(), "qemu-io: {}", String::from_utf8_lossy(&done.stdout));
        let point = machine.mark()?;
        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.disk, &system.path("point.raw"))
    });
}

#[test]
fn a_disk_is_served_on_a_port_too() {
    run(|system| {
        let disk = system.path("web1.raw");
        image::make(&disk, 8 * MIB, Content::Mixed(11))?;
        let port = farshore_e2e::system::free_ports()?.0;
        system.farshore().ok(&format!(
            "machine protect web1 --disk {} --capture nbd --nbd-port {port} --wait",
            disk.display()
        ))?;
        let shown = system.farshore().json("machine show web1")?;
        let uri = shown["volumes"][0]["nbd_uri"].as_str().unwrap_or_default().to_owned();
        ensure!(uri.starts_with(&format!("nbd://127.0.0.1:{port}/")), "the URI is {uri}");
        let mut client = Client::connect(&uri)?;
        client.write(MIB, &[7; 4096], true)?;
        client.disconnect()?;
        let written = std::fs::read(&disk)?;
        ensure!(written[1 << 20..][..4096].iter().all(|byte| *byte == 7), "not on the disk");
        Ok(())
    });
}
