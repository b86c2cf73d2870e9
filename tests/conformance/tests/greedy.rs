//! An enrolled agent that wants more than its share (N3, N6): more than its window, or more memory
//! while the vault is away. What it can make the node hold is bounded.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use farshore_conformance::frame::{Frame, Said, reason};
use farshore_conformance::peer::{self, Peer};

use farshore_conformance::site::Site;
use farshore_conformance::source::Source;
use farshore_conformance::stream::Stream;
use farshore_e2e::{Part, Setting, process, run, run_with, wait};

const MIB: u64 = 1 << 20;
const BLOCKS: usize = 4096;
/// Of `docs/formats/frame.md`.
const WINDOW: u64 = 8 * MIB;
/// Blocks of the largest write: a mebibyte.
const LARGE: u64 = 256;
/// A journal that takes no group for so long takes none.
const PATIENCE: Duration = Duration::from_secs(4);

fn large(seq: u64) -> Frame {
    let fill = seq.to_le_bytes()[0];
    Frame::write(seq, (seq * LARGE) % BLOCKS as u64, vec![fill; 1 << 20])
}

/// Whether the journal can be outrun depends on the machine: either the node refuses, or it never had
/// more than two windows to wait for. `dataplane/engine/src/shard/tests/hostile.rs` holds the rule on
/// every machine.
#[test]
fn an_agent_that_ignores_its_window_is_refused_or_harmless() {
    const SENT: u64 = 384;
    run(|system| {
        let site = Site::over(system)?;
        let agent = site.enrol("greedy")?;
        let volume = site.protect(&agent, "disk")?;
        let mut stream = Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
        drop(site.session(&agent, &volume, &stream)?);
        let node = system.pid(Part::Node)?;
        let before = site.counters()?;
        let source = Source::connect(&agent, &volume, stream.clone())?;
        let end = source.push((1..=SENT).map(|seq| large(seq).bytes()), SENT)?;

        let mut peer = site.upgraded(&agent, &volume)?;
        peer.send(&stream.hello().frame().bytes());
        let Some(Said::Welcome { received, .. }) = peer.said()? else { bail!("no welcome") };
        drop(peer);
        println!("{received} of {SENT} MiB taken, the end was {end:?}");
        let after = site.counters()?;
        let count = |counters: &std::collections::BTreeMap<String, u64>| {
            counters.get("refused.limit").copied().unwrap_or(0)
        };
        match &end {
            None => ensure!(received == SENT && count(&after) == count(&before)),
            Some((reason::LIMIT, text)) => {
                ensure!(received < SENT && count(&after) == count(&before) + 1, "{after:?}");
                ensure!(text.contains(&WINDOW.to_string()), "{text}");
            }
            other => bail!("the end was {other:?}"),
        }
        // What was taken is the beginning of what was sent, and all of it is there.
        (1..=received).for_each(|seq| stream.taken(large(seq).block, &large(seq).body));
        site.restores(&agent, &volume, &mut stream)?;
        site.same_node(node)
    });
}

/// While the vault is away the cache fills and the node stops reading. Coming again and again must
/// not get another mebibyte in each time.
#[test]
fn reconnects_do_not_grow_a_node_that_has_stopped_reading() {
    const COMES_AGAIN: u64 = 150;
    let environment = vec![("FARSHORE_NODE_CACHE_MIB".to_owned(), "16".to_owned())];
    run_with(Setting { environment, ..Setting::default() }, |system| {
        let site = Site::over(system)?;
        let agent = site.enrol("greedy")?;
        let volume = site.protect(&agent, "disk")?;
        let mut stream = Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
        site.restores(&agent, &volume, &mut stream)?;
        let node = system.pid(Part::Node)?;
        let (vault, away) = (system.path("data/vault"), system.path("data/away"));
        fs::rename(&vault, &away)?;
        // A file in its place: no directory can be made there.
        fs::write(&vault, "")?;

        let mut peer = site.session(&agent, &volume, &stream)?;
        let begin = stream.next;
        loop {
            let (mut next, seq) = (stream.clone(), stream.next);
            peer.send(&next.write((seq * LARGE) % stream.blocks(), LARGE));
            if !is_journaled(&mut peer, seq)? {
                break;
            }
            stream = next;
            ensure!(stream.next - begin < 64, "it takes more and more with a cache of 16 MiB");
        }
        let held = stream.next - begin;
        ensure!(held >= 8, "it took no more than {held} MiB with a cache of 16");

        let (before, _) = process::memory(node)?;
        for _ in 0..COMES_AGAIN {
            // A welcome each time, and it has what it had.
            let mut peer = site.session(&agent, &volume, &stream)?;
            peer.send(&stream.clone().write(0, LARGE));
        }
        let last = site.session(&agent, &volume, &stream)?;
        let (after, _) = process::memory(node)?;
        let grown = after.saturating_sub(before) / MIB;
        println!("{held} MiB taken; {COMES_AGAIN} more that came anew grew it by {grown} MiB");
        ensure!(grown < COMES_AGAIN / 4, "the node grew by {grown} MiB");
        drop((peer, last));
        wait::until("the node to let go", Duration::from_secs(20), || {
            Ok((process::connections(system.node_port)? <= 2).then_some(()))
        })?;

        fs::remove_file(&vault)?;
        fs::rename(&away, &vault)?;
        site.restores(&agent, &volume, &mut stream)?;
        site.same_node(node)
    });
}

/// Whether a seq is journaled in time.
fn is_journaled(peer: &mut Peer, seq: u64) -> Result<bool> {
    let begin = Instant::now();
    peer.patience(PATIENCE)?;
    while begin.elapsed() < PATIENCE {
        match peer.said() {
            Ok(Some(Said::Ack { journaled, .. })) if journaled >= seq => return Ok(true),
            Ok(Some(Said::Ack { .. })) => {}
            Ok(other) => bail!("the node said {other:?}"),
            Err(error) if peer::is_timeout(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Headers of large frames and all of their bodies but the last byte: what is not whole has a bound too, and
/// does not keep an honest source out for good.
#[test]
fn frames_that_are_never_whole_do_not_grow_a_node() {
    const VOLUMES: usize = 40;
    let environment = vec![
        ("FARSHORE_NODE_CACHE_MIB".to_owned(), "16".to_owned()),
        ("FARSHORE_NODE_IDLE".to_owned(), "60".to_owned()),
    ];
    run_with(Setting { environment, ..Setting::default() }, |system| {
        let site = Site::over(system)?;
        let agent = site.enrol("greedy")?;
        let disks = (0..VOLUMES).map(|number| format!("disk{number}")).collect::<Vec<_>>();
        // At once: each waits for an agent's word that does not come.
        let (shared, owner) = (&site, &agent);
        let volumes = std::thread::scope(|scope| {
            let threads: Vec<_> =
                disks.iter().map(|disk| scope.spawn(move || shared.protect(owner, disk))).collect();
            let joined = threads.into_iter().map(|one| one.join().expect("it does not panic"));
            joined.collect::<Result<Vec<_>>>()
        })?;
        let honest = site.protect(&agent, "honest")?;
        let stream_of = |volume: &farshore_conformance::site::Volume| {
            Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS)
        };
        let node = system.pid(Part::Node)?;
        let mut peers = Vec::new();
        for volume in &volumes {
            peers.push(site.session(&agent, volume, &stream_of(volume))?);
        }
        let (before, _) = process::memory(node)?;
        let frame = large(1).bytes();
        let cut = &frame[..frame.len() - 1];
        // Threads, since a node that does not read lets who sends wait.
        let sending = peers.into_iter().map(|mut peer| {
            let cut = cut.to_vec();
            std::thread::spawn(move || {
                peer.send(&cut);
                peer
            })
        });
        let sending: Vec<_> = sending.collect();
        let mut stream = stream_of(&honest);
        let mut peer = site.session(&agent, &honest, &stream)?;
        let seq = stream.next;
        peer.send(&stream.write(0, LARGE));
        let limit = Instant::now() + Duration::from_secs(300);
        while !is_journaled(&mut peer, seq)? {
            ensure!(Instant::now() < limit, "an honest source is kept out");
        }
        let (after, _) = process::memory(node)?;
        let grown = after.saturating_sub(before) / MIB;
        println!("{VOLUMES} frames of a mebibyte that were not whole grew it by {grown} MiB");
        ensure!(grown < VOLUMES as u64 * 3 / 5, "the node grew by {grown} MiB");
        drop(sending);
        site.same_node(node)
    });
}
