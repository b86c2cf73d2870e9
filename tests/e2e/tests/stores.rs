//! One suite over every kind of store, and a store that ignores what a vault rests on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::store::{Kind, Server};
use farshore_e2e::{Farshore, Machine, Part, Setting, System, run_with, wait};
use std::time::Duration;

const DENIED: i32 = 77;
const NOT_FOUND: i32 = 66;
const CONFLICT: i32 = 79;
const INVALID: i32 = 65;
const UNAVAILABLE: i32 = 69;
/// From where a store does not believe what time it is.
const CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

fn bare(environment: &[(String, String)], key: &Path) -> Farshore {
    let bare = Farshore::bare().with("FARSHORE_KEY_FILE", key);
    environment.iter().fold(bare, |bare, (name, value)| bare.with(name, value))
}

/// What is tried of a store without a system: it keeps the rules, and mistakes get a sentence.
fn is_understood(server: &Server, folder: &Path) -> Result<()> {
    let key = folder.join("recovery.key");
    let environment = server.environment();
    let farshore = bare(&environment, &key);
    let validated = farshore.json(&format!("vault validate-store {}", server.vault("valid")))?;
    ensure!(validated["holds"] == true, "{validated}");

    let vault = server.vault("mine");
    farshore.ok(&format!("vault init --vault {vault}"))?;
    farshore.ok(&format!("vault verify --vault {vault}"))?;
    let outer = server.vault("");
    farshore.run(&format!("vault init --vault {outer}"))?.refused(CONFLICT, "mine/")?;
    let missing = server.in_bucket("nobody-made-this", "x");
    farshore.run(&format!("vault init --vault {missing}"))?.refused(NOT_FOUND, &missing)?;
    farshore.run(&format!("vault stats --vault {missing}"))?.refused(NOT_FOUND, &missing)?;
    let none = server.vault("none");
    farshore.run(&format!("vault stats --vault {none}"))?.refused(NOT_FOUND, &none)?;

    for (name, value) in server.wrong_credentials() {
        let other = farshore.clone().with(name, value);
        other.run(&format!("vault stats --vault {vault}"))?.refused(DENIED, &vault)?;
    }
    let unset = environment.iter().fold(Farshore::bare(), |bare, (name, _)| bare.with(name, ""));
    let unset = unset.with("FARSHORE_KEY_FILE", &key);
    unset.run(&format!("vault stats --vault {vault}"))?.refused(DENIED, &vault)?;
    let nobody = bare(&server.environment_at(1), &key);
    nobody.run(&format!("vault stats --vault {vault}"))?.refused(UNAVAILABLE, &vault)
}

/// A machine is protected, its node killed, and everything comes back out of the store.
fn carries_a_machine(system: &System) -> Result<()> {
    let machine = Machine::protect(system, "web1", "nbd", (64 * MIB, Content::Mixed(31)))?;
    let mut writer = machine.writer(41)?;
    machine.wait_until_protected()?;
    writer.progress(200, Duration::from_secs(60))?;
    let before = system.pid(Part::Node)?;
    system.kill(Part::Node)?;
    system.wait_for_another(Part::Node, before)?;
    writer.progress(100, Duration::from_secs(60))?;
    writer.stop()?;
    machine.wait_until_protected()?;
    let point = machine.mark()?;
    let (vault, volume) = (system.endpoint("vault")?, machine.volume()?);
    let bare = system.bare()?;
    let file = system.path("restored.raw");
    bare.ok(&format!(
        "vault restore --vault {vault} --volume {volume} --point {point} --to {}",
        file.display()
    ))?;
    image::compare(&machine.disk, &file)?;
    machine.check_older_points(system, &writer, 5)?;
    bare.ok(&format!("vault verify --vault {vault} --read-data"))?;
    let stats = bare.json(&format!("vault stats --vault {vault}"))?;
    ensure!(stats["stored_bytes"].as_u64().context("stored bytes")? > 1 << 20, "{stats}");
    Ok(())
}

fn suite(kind: Kind) {
    let server = Server::start(kind).expect("a store");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_understood(&server, folder.path()).expect("a store that is understood");
    let setting = Setting {
        arguments: vec!["--vault".to_owned(), server.vault("site/one")],
        environment: server.environment(),
        ..Setting::default()
    };
    run_with(setting, |system| {
        carries_a_machine(system)?;
        // It comes up again on what is there.
        system.restart()?;
        let shown = || system.farshore().json("machine show web1");
        wait::until("web1 to be protected again", Duration::from_secs(60), || {
            Ok((shown()?["state"] == "protected").then_some(()))
        })
    });
}

#[test]
fn a_directory_keeps_the_rules_and_carries_a_machine() {
    run_with(Setting::default(), |system| {
        let store = system.path("a-store").display().to_string();
        std::fs::create_dir(&store)?;
        let validated = Farshore::bare().json(&format!("vault validate-store {store}"))?;
        ensure!(validated["holds"] == true, "{validated}");
        carries_a_machine(system)
    });
}

#[test]
fn seaweedfs_keeps_the_rules_and_carries_a_machine() {
    suite(Kind::SeaweedFs);
}

#[test]
fn azurite_keeps_the_rules_and_carries_a_machine() {
    suite(Kind::Azurite);
}

#[test]
fn a_store_that_does_not_believe_the_time_says_so() {
    let server = Server::start(Kind::SeaweedFs).expect("a store");
    let farshore = bare(&server.environment(), Path::new("/nowhere"))
        .with("LD_PRELOAD", CLOCK_LIBRARY)
        .with("FAKETIME", "-2h");
    let vault = server.vault("late");
    let outcome = farshore.run(&format!("vault validate-store {vault}")).expect("an end");
    outcome.refused(UNAVAILABLE, "set its clock right").expect("a sentence");
}

#[test]
fn a_store_that_overwrites_is_refused() {
    let server = Server::start(Kind::Rclone).expect("a store");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let farshore = bare(&server.environment(), &folder.path().join("recovery.key"));
    let vault = server.vault("x");
    let outcome = farshore.run(&format!("vault validate-store {vault} --output json"));
    let outcome = outcome.expect("an end");
    outcome.refused(INVALID, &vault).expect("a sentence");
    let report = outcome.json().expect("a report");
    let first = &report["checks"][0];
    assert!(report["holds"] == false && first["end"] == "failed", "{report}");
    assert!(
        first["detail"].as_str().is_some_and(|text| text.contains("If-None-Match")),
        "{report}"
    );
    // And it gets no vault from somebody who did not ask first.
    let outcome = farshore.run(&format!("vault init --vault {vault}")).expect("an end");
    outcome.refused(INVALID, "If-None-Match").expect("a sentence");
}
