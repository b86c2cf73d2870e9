//! A protected disk that grows (D35): its guest reads and writes on, older points restore at their own size,
//! newer ones at the new one.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, run, wait};

const OLD: u64 = 16 * MIB + 512;
const NEW: u64 = 27 * MIB + 1024;
const DISK: (u64, Content) = (OLD, Content::Mixed(40));
const GROWN: Duration = Duration::from_secs(60);

#[test]
fn a_served_disk_grows_under_its_guest_and_points_keep_their_sizes() {
    run(|system| {
        // A cut or longer file cannot be told from a written one: all of it is read again.
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        machine.wait_until_protected()?;
        let mut guest = Client::connect(&machine.nbd_uri()?)?;
        guest.write(4096, &[7; 8192], true)?;
        let before = machine.mark()?;
        let then = system.path("then.raw");
        fs::copy(&machine.disk, &then)?;

        fs::OpenOptions::new().write(true).open(&machine.disk)?.set_len(NEW)?;
        wait::until("the volume to grow", GROWN, || {
            // Whoever was there before goes on.
            guest.write(65_536, &[8; 4096], false)?;
            let mut read = [0; 4096];
            guest.read(65_536, &mut read)?;
            ensure!(read == [8; 4096], "the guest reads what it wrote");
            let shown = machine.show()?;
            let size = shown["volumes"][0]["size_bytes"].as_u64();
            Ok((size == Some(NEW) && shown["epoch"].as_u64() > Some(1)).then_some(()))
        })?;
        machine.wait_until_protected()?;
        // Who comes now sees all of it.
        let mut larger = Client::connect(&machine.nbd_uri()?)?;
        larger.write(NEW - 4096, &[9; 4096], true)?;
        guest.write(12_288, &[10; 4096], true)?;
        let after = machine.mark()?;
        larger.disconnect()?;
        guest.disconnect()?;

        let out = system.path("point.raw");
        for (point, disk) in [(&after, &machine.disk), (&before, &then)] {
            machine.export(point, &out)?;
            ensure!(out.metadata()?.len() == disk.metadata()?.len(), "another size");
            image::compare(disk, &out)?;
            fs::remove_file(&out)?;
        }
        // Everybody remembers, and the next points are as large.
        system.restart()?;
        machine.wait_until_protected()?;
        let later = machine.mark()?;
        machine.export(&later, &out)?;
        ensure!(out.metadata()?.len() == NEW, "another size");
        image::compare(&machine.disk, &out)
    });
}
