//! Which disk it is, and who else writes it (D11–D14), and what is said before anybody knows (P10).
//!
//! Loop devices and mounts take root and `/dev/loop-control`; a machine without them sets
//! `FARSHORE_NO_DEVICES=1`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::{Machine, System, run, wait};

const BYTES: u64 = 16 * MIB;
const DISK: (u64, Content) = (BYTES, Content::Mixed(40));
/// A change of a disk that nobody announced must be told by then.
const NOTICED: Duration = Duration::from_secs(3);
/// The agent or the system says no; nothing is registered.
const REFUSED: i32 = 1;

/// A command's standard output; none, with the reason told, if it cannot be run here.
fn try_run(line: &[&str]) -> Option<String> {
    let output = Command::new(line[0]).args(&line[1..]).output().ok()?;
    if !output.status.success() {
        println!("{line:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Ends a test that lacks something: well only on a machine that is said to lack it.
fn not_tried() -> Result<()> {
    let is_told = std::env::var("FARSHORE_NO_DEVICES").is_ok_and(|told| told == "1");
    ensure!(is_told, "no loop device or mount: run as root, or set FARSHORE_NO_DEVICES=1");
    Ok(())
}

/// Undoes a loop device or a mount, however the test ends.
struct Undo(Vec<String>);

impl Drop for Undo {
    fn drop(&mut self) {
        let line: Vec<&str> = self.0.iter().map(String::as_str).collect();
        try_run(&line);
    }
}

fn attach(file: &Path) -> Option<(String, Undo)> {
    let device = try_run(&["losetup", "--find", "--show", file.to_str()?])?;
    let undo = ["losetup", "--detach", &device].map(str::to_owned).to_vec();
    Some((device, Undo(undo)))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a test's path is text")
}

fn machines(system: &System) -> Result<usize> {
    let listed = system.farshore().json("machine list")?;
    listed["machines"].as_array().map(Vec::len).context("a list of machines")
}

fn until_state(system: &System, name: &str, state: &str) -> Result<String> {
    wait::until(&format!("{name} to be {state}"), Duration::from_secs(60), || {
        let shown = system.farshore().json(&format!("machine show {name}"))?;
        let detail = shown["state_detail"].as_str().unwrap_or_default().to_owned();
        Ok((shown["state"] == state).then_some(detail))
    })
}

#[test]
fn a_mounted_device_is_refused_by_its_holder_and_leaves_nothing_behind() {
    run(|system| {
        let file = system.path("mounted.raw");
        image::make(&file, BYTES, Content::Zeros)?;
        let Some((device, _detach)) = attach(&file) else { return not_tried() };
        let at = system.path("mounted");
        fs::create_dir(&at)?;
        if try_run(&["mkfs.ext4", "-q", &device]).is_none()
            || try_run(&["mount", &device, text(&at)?]).is_none()
        {
            return not_tried();
        }
        let _unmount = Undo(["umount", text(&at)?].map(str::to_owned).to_vec());
        system.expect_error("is in use");
        let farshore = system.farshore();
        for disk in [device.as_str(), text(&file)?] {
            let refused =
                farshore.run(&format!("machine protect m --disk {disk} --capture nbd"))?;
            refused.refused(REFUSED, "is mounted at")?;
            ensure!(refused.stderr.contains(text(&at)?), "{refused}");
            ensure!(machines(system)? == 0, "a machine that was refused is registered");
        }
        // A scan reads it beside its users.
        farshore.ok(&format!("machine protect m --disk {device} --capture scan"))?;
        until_state(system, "m", "protected").map(|_| ())
    });
}

#[test]
fn a_link_is_kept_as_it_is_given_and_leads_to_no_other_disk() {
    run(|system| {
        let (first, second) = (system.path("a.raw"), system.path("b.raw"));
        fs::write(&first, vec![b'A'; usize::try_from(BYTES)?])?;
        fs::write(&second, vec![b'B'; usize::try_from(BYTES)?])?;
        let Some((letter, detach)) = attach(&first) else { return not_tried() };
        let link = system.path("by-id");
        std::os::unix::fs::symlink(&letter, &link)?;
        let farshore = system.farshore();
        let by_id = link.display();
        farshore
            .ok(&format!("machine protect m --disk {by_id} --capture nbd --mark-interval 1s"))?;
        until_state(system, "m", "protected")?;
        let shown = farshore.json("machine show m")?;
        ensure!(shown["volumes"][0]["disk"] == text(&link)?, "{shown}");
        system.stop()?;
        // The other disk has the letter now, most likely, and the link leads to it.
        drop(detach);
        let Some((other, _detach)) = attach(&second) else { return not_tried() };
        fs::remove_file(&link)?;
        std::os::unix::fs::symlink(&other, &link)?;
        system.expect_error("is another one");
        system.up()?;
        let detail = until_state(system, "m", "error")?;
        ensure!(detail.contains("expected loop device over"), "{detail}");
        let shown = farshore.json("machine show m")?;
        ensure!(shown["volumes"][0]["nbd_uri"].is_null(), "another disk is served: {shown}");
        // The disk itself, under another letter: the link finds it, and it goes on.
        let Some((moved, _moved)) = attach(&first) else { return not_tried() };
        fs::remove_file(&link)?;
        std::os::unix::fs::symlink(&moved, &link)?;
        until_state(system, "m", "protected")?;
        let point = farshore.json("point mark m --wait")?;
        let point = point["point"].as_str().context("a point")?.to_owned();
        let to = system.path("point.raw");
        farshore.ok(&format!("point export m {point} --format raw --to {}", to.display()))?;
        ensure!(fs::read(&to)?.iter().all(|byte| *byte == b'A'), "the point holds another disk");
        system.stop()
    });
}

#[test]
fn a_second_name_of_a_disk_is_refused() {
    run(|system| {
        let machine = Machine::protect(system, "first", "nbd", DISK)?;
        machine.wait_until_protected()?;
        let (hard, soft) = (system.path("hard.raw"), system.path("soft.raw"));
        fs::hard_link(&machine.disk, &hard)?;
        std::os::unix::fs::symlink(&machine.disk, &soft)?;
        let mut names = vec![hard, soft];
        let attached = attach(&machine.disk);
        if attached.is_none() {
            not_tried()?;
        }
        names.extend(attached.as_ref().map(|(device, _)| device.into()));
        system.expect_error("is captured already");
        for (name, capture) in names.iter().flat_map(|name| [(name, "nbd"), (name, "scan")]) {
            let line =
                format!("machine protect again --disk {} --capture {capture}", name.display());
            let refused = system.farshore().run(&line)?;
            refused.refused(REFUSED, "is captured already")?;
            ensure!(refused.stderr.contains("first.raw"), "{refused}");
        }
        ensure!(machines(system)? == 1, "a machine that was refused is registered");
        Ok(())
    });
}

#[test]
fn a_byte_written_past_the_agent_is_told_and_read_again() {
    run(|system| {
        let machine = Machine::protect(system, "web", "nbd", DISK)?;
        machine.wait_until_protected()?;
        let mut writer = machine.writer(7)?;
        wait::until("writes", NOTICED, || Ok((writer.log().issued() > 50).then_some(())))?;
        writer.stop()?;
        fs::OpenOptions::new().write(true).open(&machine.disk)?.write_all_at(&[0xee], 12_345)?;
        let written = Instant::now();
        let detail = wait::until("the write to be told", NOTICED, || {
            let shown = machine.show()?;
            let detail = shown["state_detail"].as_str().unwrap_or_default().to_owned();
            Ok((shown["state"] == "degraded").then_some(detail))
        })?;
        println!("told after {:?}: {detail}", written.elapsed());
        ensure!(detail.contains("wrote to the disk past"), "{detail}");
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        let to = system.path("point.raw");
        machine.export(&point, &to)?;
        image::compare(&machine.disk, &to)
    });
}

/// P10: after everything was killed nothing is called protected that is not served again.
#[test]
fn nothing_is_protected_before_its_agent_was_heard() {
    run(|system| {
        let machine = Machine::protect(system, "web", "nbd", DISK)?;
        machine.wait_until_protected()?;
        system.kill_all()?;
        let aside = system.path("aside.raw");
        fs::rename(&machine.disk, &aside)?;
        system.expect_error("is missing");
        system.up()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let shown = machine.show()?;
            ensure!(shown["state"] != "protected", "its disk is away: {shown}");
            ensure!(shown["volumes"][0]["nbd_uri"].is_null(), "nothing is served: {shown}");
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::rename(&aside, &machine.disk)?;
        machine.wait_until_protected()?;
        Ok(())
    });
}
