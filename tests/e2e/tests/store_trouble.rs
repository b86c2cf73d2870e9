//! Trouble on the way to the store: the pipeline waits, says why, and goes on; nothing is lost.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::store::proxy::{Proxy, Trouble};
use farshore_e2e::store::{Kind, Server};
use farshore_e2e::{Machine, Part, Setting, System, process, run_with, wait};

/// Bytes a second of a store that dawdles.
const SLOW: u32 = 300_000;
/// A trouble lasts for so many requests at least, and until it is told where it is to be told.
const REQUESTS: u64 = 6;
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// From the end of the trouble to a recovery point of now.
const RPO_AFTER: Duration = Duration::from_secs(10);
/// Of each shard's frames that are not in the vault yet; there are two shards at most here.
const CACHE_MIB: u64 = 32;
/// Two caches, what is put and built of them at the same time, and the program.
const RESIDENT_MAX: u64 = (2 * CACHE_MIB + 2 * 4 * 64 + 64) << 20;

/// What a machine's owner reads of a trouble; nothing if replication goes on all the same.
fn words(trouble: Trouble) -> Option<&'static str> {
    match trouble {
        Trouble::None | Trouble::ResetAfterWrite | Trouble::Slow(_) => None,
        Trouble::Unavailable => Some("could not create object"),
        Trouble::NoRoute => Some("was answered with 404"),
        Trouble::Silence => Some("does not answer in time"),
        Trouble::ReadOnly => Some("is denied"),
    }
}

/// One trouble: it is there, it is told, it ends, and soon there is a recovery point again.
fn passes(system: &System, machine: &Machine, proxy: &Proxy, trouble: Trouble) -> Result<()> {
    let before = proxy.troubled();
    proxy.set(trouble);
    if let Some(words) = words(trouble) {
        wait::until(&format!("the machine to say {words:?}"), TOLD_WITHIN, || {
            let shown = machine.show()?;
            let detail = shown["state_detail"].as_str().unwrap_or_default();
            Ok((shown["state"] == "degraded" && detail.contains(words)).then_some(()))
        })?;
    }
    let is_over = || Ok((proxy.troubled() >= before + REQUESTS).then_some(()));
    wait::until("requests that meet the trouble", TOLD_WITHIN, is_over)?;
    proxy.set(Trouble::None);
    let ended = Instant::now();
    machine.mark()?;
    let took = ended.elapsed();
    let (now, peak) = process::memory(system.pid(Part::Node)?)?;
    println!(
        "{trouble:?}: {} requests, a recovery point {took:?} after its end, resident {} MiB, at most \
         {} MiB",
        proxy.troubled() - before,
        now >> 20,
        peak >> 20
    );
    ensure!(took <= RPO_AFTER, "a recovery point only {took:?} after the end of {trouble:?}");
    ensure!(peak <= RESIDENT_MAX, "the node grew to {} MiB", peak >> 20);
    machine.wait_until_protected().map(drop)
}

fn rides_out(kind: Kind) {
    let server = Server::start(kind).expect("a store");
    let proxy = Proxy::to(server.port).expect("a proxy");
    let mut environment = server.environment_at(proxy.port);
    for (name, value) in [("FARSHORE_STORE_TIMEOUT", 4), ("FARSHORE_NODE_CACHE_MIB", CACHE_MIB)] {
        environment.push((name.to_owned(), value.to_string()));
    }
    let arguments = vec!["--vault".to_owned(), server.vault("site")];
    run_with(Setting { arguments, environment, ..Setting::default() }, |system| {
        let machine = Machine::protect(system, "web1", "nbd", (64 * MIB, Content::Mixed(51)))?;
        machine.wait_until_protected()?;
        let mut writer = machine.writer(61)?;
        let node = system.pid(Part::Node)?;
        for trouble in [
            Trouble::Unavailable,
            Trouble::NoRoute,
            Trouble::ResetAfterWrite,
            Trouble::Slow(SLOW),
            Trouble::Silence,
            Trouble::ReadOnly,
        ] {
            passes(system, &machine, &proxy, trouble).with_context(|| format!("{trouble:?}"))?;
            writer.progress(100, TOLD_WITHIN)?;
        }
        writer.stop()?;
        ensure!(system.pid(Part::Node)? == node, "the node was started anew");
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        let file = system.path("point.raw");
        machine.export(&point, &file)?;
        image::compare(&machine.disk, &file)?;
        machine.check_older_points(system, &writer, 10)?;
        let vault = system.endpoint("vault")?;
        let found = system.bare()?.json(&format!("vault verify --vault {vault} --read-data"))?;
        ensure!(found["whole"] == true && found["holes"] == serde_json::json!([]), "{found}");
        troubles_are_events(system)
    });
}

/// Each trouble that was told is an event, and so is its end; and they are few.
fn troubles_are_events(system: &System) -> Result<()> {
    let listed = system.farshore().json("events --limit 1000")?;
    let events = listed["events"].as_array().context("a list of events")?;
    let count = |action: &str| events.iter().filter(|event| event["action"] == action).count();
    let (troubles, ends) = (count("node.trouble"), count("node.recovered"));
    println!("{troubles} events of trouble, {ends} of its end");
    ensure!(troubles >= 3 && ends >= 3, "{troubles} troubles and {ends} ends in {listed}");
    ensure!(troubles <= 30, "{troubles} events of 6 troubles");
    Ok(())
}

/// How long the store is away while an export is read.
const AWAY: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 1 << 20;
/// What the failover says meanwhile.
const WAITING: &str = "the export is waiting";

/// Reads all of an export into a file; the first piece before anything is wrong.
fn download(uri: &str, to: &Path, at_trouble: impl FnOnce()) -> Result<()> {
    let mut client = Client::connect(uri)?;
    let mut bytes = vec![0; usize::try_from(client.size)?];
    let mut pieces = (0_u64..).zip(bytes.chunks_mut(READ_BYTES));
    let (_, first) = pieces.next().context("an export of no bytes")?;
    client.read(0, first)?;
    at_trouble();
    for (number, piece) in pieces {
        client.read(number * READ_BYTES as u64, piece)?;
    }
    client.disconnect()?;
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}

/// The store goes away under a client that reads, and comes back when the failover has said so for long enough.
fn reads_through(system: &System, proxy: &Proxy, machine: &Machine) -> Result<()> {
    let point = machine.mark()?;
    let drill = format!("failover drill web1 --point {point} --serve-only");
    let drill = system.farshore().json(&drill)?;
    let text = |name: &str| {
        let text = drill[name].as_str().map(str::to_owned);
        text.with_context(|| format!("the drill has no {name}: {drill}"))
    };
    let (id, uri, copy) = (text("id")?, text("nbd_uri")?, system.path("drill.raw"));
    let detail = || -> Result<String> {
        let shown = system.farshore().json(&format!("failover show {id}"))?;
        Ok(shown["detail"].as_str().unwrap_or_default().to_owned())
    };
    let (away, is_away) = mpsc::sync_channel(1);
    let at_trouble = move || {
        proxy.set(Trouble::Unavailable);
        // Nobody listens only if the test has failed already.
        let _ = away.send(Instant::now());
    };
    thread::scope(|scope| {
        let (uri, to) = (&uri, &copy);
        let reading = scope.spawn(move || download(uri, to, at_trouble));
        let begun = is_away.recv_timeout(TOLD_WITHIN).context("wait for the first read");
        let waited = begun.and_then(|begun| {
            wait::until("a read to have waited for the store", TOLD_WITHIN, || {
                ensure!(!reading.is_finished(), "the reader did not wait for the store");
                let is_told = detail()?.contains(WAITING);
                Ok((is_told && begun.elapsed() >= AWAY).then_some(()))
            })
        });
        proxy.set(Trouble::None);
        let read = reading.join().map_err(|_| anyhow!("the reader panicked"))?;
        read.and(waited)
    })?;
    image::compare(&machine.disk, &copy)?;
    wait::until("the failover to say no more of it", TOLD_WITHIN, || {
        Ok((!detail()?.contains(WAITING)).then_some(()))
    })?;
    system.farshore().ok(&format!("failover cleanup {id} --yes")).map(drop)
}

#[test]
fn the_reads_of_an_export_outlast_the_absence_of_its_store() {
    let server = Server::start(Kind::SeaweedFs).expect("a store");
    let proxy = Proxy::to(server.port).expect("a proxy");
    let environment = server.environment_at(proxy.port);
    let arguments = vec!["--vault".to_owned(), server.vault("site")];
    run_with(Setting { arguments, environment, ..Setting::default() }, |system| {
        let machine = Machine::protect(system, "web1", "nbd", (64 * MIB, Content::Mixed(52)))?;
        machine.wait_until_protected()?;
        reads_through(system, &proxy, &machine)
    });
}

#[test]
fn replication_rides_out_the_troubles_of_an_s3_store() {
    rides_out(Kind::SeaweedFs);
}

#[test]
fn replication_rides_out_the_troubles_of_an_azure_store() {
    rides_out(Kind::Azurite);
}
