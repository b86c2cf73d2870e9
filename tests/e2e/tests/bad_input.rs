//! What an operator gets wrong: one sentence, a documented exit code, nothing lost.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::command::Farshore;
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::system::free_ports;
use farshore_e2e::{Machine, Setting, System, run, wait};

/// Exit codes of docs/runbooks: what scripts rely on.
mod exit {
    pub(crate) const USAGE: i32 = 64;
    pub(crate) const NOT_FOUND: i32 = 66;
    pub(crate) const UNAVAILABLE: i32 = 69;
    pub(crate) const CONFLICT: i32 = 79;
    pub(crate) const WRONG_KEY: i32 = 81;
}

const DISK: (u64, Content) = (8 * MIB, Content::Mixed(40));

fn protected(system: &System) -> Result<(Machine, String)> {
    let machine = Machine::protect(system, "web1", "scan", DISK)?;
    machine.wait_until_protected()?;
    let point = machine.mark()?;
    Ok((machine, point))
}

#[test]
fn names_that_do_not_exist_are_named() {
    run(|system| {
        let farshore = system.farshore();
        let missing = system.path("missing.raw");
        let missing = missing.display();
        farshore
            .run(&format!("machine protect web1 --disk {missing} --capture scan"))?
            .refused(exit::NOT_FOUND, "missing.raw")?;
        farshore.run("machine show nobody")?.refused(exit::NOT_FOUND, "nobody")?;
        farshore.run("point list nobody")?.refused(exit::NOT_FOUND, "nobody")?;
        let (machine, _) = protected(system)?;
        let point = "019dffff-0000-7000-8000-000000000000";
        let to = system.path("x.raw");
        let to = to.display();
        farshore
            .run(&format!("point export web1 {point} --format raw --to {to}"))?
            .refused(exit::NOT_FOUND, point)?;
        let disk = machine.disk.display();
        farshore
            .run(&format!("machine protect web1 --disk {disk} --capture scan"))?
            .refused(exit::CONFLICT, "web1")?;
        farshore
            .run("machine protect WEB/2 --disk /dev/null --capture scan")?
            .refused(exit::USAGE, "WEB/2")
    });
}

#[test]
fn a_wrong_key_opens_nothing_and_harms_nothing() {
    run(|system| {
        let (machine, point) = protected(system)?;
        let (vault, volume) = (system.endpoint("vault")?, machine.volume()?);
        // A good key, of another vault.
        let wrong = system.path("wrong.key");
        let mut other = System::start(Setting::default())?;
        fs::copy(other.endpoint("key_file")?, &wrong).context("copy the other key")?;
        other.stop()?;
        let stranger = Farshore::bare().with("FARSHORE_KEY_FILE", &wrong);
        let to = system.path("x.raw");
        let restore = format!(
            "vault restore --vault {vault} --volume {volume} --point {point} --to {}",
            to.display()
        );
        stranger.run(&restore)?.refused(exit::WRONG_KEY, "key")?;
        ensure!(!to.exists(), "a refused restore left a file behind");
        stranger.run(&format!("vault verify --vault {vault}"))?.refused(exit::WRONG_KEY, "key")?;
        let keyless = Farshore::bare().with("FARSHORE_KEY_FILE", "/no/such/key");
        keyless.run(&restore)?.refused(exit::NOT_FOUND, "/no/such/key")?;
        system.bare()?.ok(&restore)?;
        image::compare(&machine.disk, &to)
    });
}

#[test]
fn a_mistyped_key_is_told_from_a_wrong_one() {
    run(|system| {
        let vault = system.endpoint("vault")?;
        let key = system.endpoint("key_file")?;
        let mistyped = system.path("mistyped.key");
        fs::copy(&key, &mistyped)?;
        let text = fs::read_to_string(&key)?;
        let at = text.trim_end().len() - 12;
        let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        let text = format!("{}{digit}{}", &text[..at], &text[at + 1..]);
        fs::write(&mistyped, text)?;
        let farshore = Farshore::bare().with("FARSHORE_KEY_FILE", &mistyped);
        let outcome = farshore.run(&format!("vault stats --vault {vault}"))?;
        let code = outcome.code().unwrap_or(0);
        ensure!(![0, exit::WRONG_KEY].contains(&code), "a mistyped key: {outcome}");
        outcome.refused(code, "mistyped.key")
    });
}

#[test]
fn a_port_that_is_taken_is_named() {
    run(|system| {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let port = taken.local_addr()?.port();
        let (free, _) = free_ports()?;
        let data = system.path("second");
        fs::create_dir(&data)?;
        let up = format!("up --data {} ", data.display());
        let farshore = Farshore::on(&data);
        for ports in [
            format!("--control-port {port} --node-port {free}"),
            format!("--control-port {free} --node-port {port}"),
        ] {
            farshore.run(&(up.clone() + &ports))?.refused(exit::UNAVAILABLE, &port.to_string())?;
        }
        Ok(())
    });
}

#[test]
fn a_second_up_on_the_same_folder_is_refused() {
    run(|system| {
        let data = system.data();
        let (a, b) = free_ports()?;
        let line = format!("up --data {} --control-port {a} --node-port {b}", data.display());
        let outcome = system.farshore().run(&line)?;
        ensure!(outcome.code() != Some(0), "a second `up` on the same folder ran: {outcome}");
        outcome.refused(outcome.code().unwrap_or(0), &data.display().to_string())
    });
}

#[test]
fn a_vault_that_is_gone_is_named_and_nothing_is_lost() {
    run(|system| {
        let (machine, point) = protected(system)?;
        let bare = system.bare()?;
        let volume = machine.volume()?;
        let gone = system.path("gone");
        let gone_url = format!("file://{}", gone.display());
        let to = system.path("x.raw");
        let to = to.display();
        bare.run(&format!(
            "vault restore --vault {gone_url} --volume {volume} --point {point} --to {to}"
        ))?
        .refused(exit::NOT_FOUND, "gone")?;
        bare.run(&format!("vault stats --vault {gone_url}"))?.refused(exit::NOT_FOUND, "gone")?;
        ensure!(!gone.exists(), "looking at a vault created it");
        Ok(())
    });
}

#[test]
fn a_vault_that_goes_and_comes_back_loses_nothing() {
    run(|system| {
        system.expect_error("vault");
        let (machine, _) = protected(system)?;
        let vault = system.endpoint("vault")?;
        let folder = vault.strip_prefix("file://").context("the vault is a folder")?.to_owned();
        let away = system.path("away");
        fs::rename(&folder, &away)?;
        let disk = fs::OpenOptions::new().write(true).open(&machine.disk)?;
        std::os::unix::fs::FileExt::write_all_at(&disk, &[9; 100_000], MIB)?;
        // How long the fault lasts, not a wait for something: several marks fall into it.
        std::thread::sleep(Duration::from_secs(3));
        if fs::exists(&folder)? {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&away, &folder)?;
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.disk, &system.path("point.raw"))
    });
}

#[test]
fn without_a_running_system_a_sentence_says_so() {
    run(|system| {
        let nowhere = system.path("nowhere");
        let outcome = Farshore::on(&nowhere).run("machine list")?;
        ensure!(outcome.code() != Some(0), "{outcome}");
        outcome.refused(outcome.code().unwrap_or(0), "nowhere")?;
        system.stop()?;
        let stopped = system.farshore().run("machine list")?;
        ensure!(stopped.code() == Some(exit::UNAVAILABLE), "{stopped}");
        Ok(())
    });
}

#[test]
fn a_disk_that_shrank_is_named_and_its_points_stay() {
    run(|system| {
        system.expect_error("web1.raw");
        let (machine, point) = protected(system)?;
        system.stop()?;
        fs::OpenOptions::new().write(true).open(&machine.disk)?.set_len(DISK.0 / 2)?;
        system.up()?;
        wait::until("the state to tell of the disk", Duration::from_secs(60), || {
            let shown = machine.show()?;
            let detail = shown["state_detail"].as_str().unwrap_or_default();
            Ok((shown["state"] == "error" && detail.contains("web1.raw")).then_some(()))
        })?;
        machine.export(&point, &system.path("point.raw"))?;
        image::compare(&machine.base, &system.path("point.raw"))
    });
}
