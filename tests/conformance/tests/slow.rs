//! Peers that take their time (N5): each connection ends at its deadline, whatever drips in meanwhile,
//! and leaves nothing behind.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore_conformance::frame::{Frame, Hello, Mark, reason};
use farshore_conformance::peer::{self, End, Peer, Who};

use farshore_conformance::site::{Agent, Site, Volume};
use farshore_conformance::stream::Stream;
use farshore_e2e::{Part, Setting, process, run_with, wait};

/// As in `docs/formats/frame.md`: for the request, and again for the hello.
const GREETING: Duration = Duration::from_secs(10);
/// In place of the 120 s of `docs/formats/frame.md`, by the node's setting.
const IDLE: Duration = Duration::from_secs(6);
/// Deadlines are kept this well: a busy machine, and the node's look at idle sessions.
const LATE: Duration = Duration::from_secs(4);
/// Between two bytes of those who drip: much less than any deadline, and many more bytes to come than
/// fit before it.
const DRIP: Duration = Duration::from_millis(400);

/// How a peer is slow, and what it must come to.
struct Slow {
    name: &'static str,
    begin: fn(&Site<'_>, &Agent, &Volume) -> Result<Stalled>,
    deadline: Duration,
    end: Option<u16>,
    counted: &'static str,
}

/// A connection that got so far, and what is left to say a byte at a time.
struct Stalled {
    link: Link,
    rest: Vec<u8>,
}

enum Link {
    Bare(std::net::TcpStream),
    Tls(Box<Peer>),
}

fn bare(said: &[u8], rest: &[u8], volume: &Volume) -> Result<Stalled> {
    let mut tcp = peer::connect(Ipv4Addr::LOCALHOST, volume.port)?;
    std::io::Write::write_all(&mut tcp, said)?;
    Ok(Stalled { link: Link::Bare(tcp), rest: rest.to_vec() })
}

fn inside(mut peer: Peer, said: &[u8], rest: &[u8]) -> Stalled {
    peer.send(said);
    Stalled { link: Link::Tls(Box::new(peer)), rest: rest.to_vec() }
}

fn stream(volume: &Volume) -> Stream {
    Stream::new(volume.id.into_bytes(), volume.epoch, 256)
}

fn hello(volume: &Volume) -> Vec<u8> {
    let hello: Hello = stream(volume).hello();
    hello.frame().bytes()
}

fn welcomed(site: &Site<'_>, agent: &Agent, volume: &Volume) -> Result<Peer> {
    site.session(agent, volume, &stream(volume))
}

/// A write of the largest size: a mebibyte a byte at a time takes for ever.
fn large() -> Vec<u8> {
    Frame::write(1, 0, vec![0x51; 1 << 20]).bytes()
}

const fn stranger(
    name: &'static str,
    begin: fn(&Site<'_>, &Agent, &Volume) -> Result<Stalled>,
) -> Slow {
    Slow { name, begin, deadline: GREETING, end: None, counted: "slow" }
}

const fn undecided(
    name: &'static str,
    begin: fn(&Site<'_>, &Agent, &Volume) -> Result<Stalled>,
) -> Slow {
    Slow { end: Some(reason::LIMIT), ..stranger(name, begin) }
}

const fn silent(
    name: &'static str,
    begin: fn(&Site<'_>, &Agent, &Volume) -> Result<Stalled>,
) -> Slow {
    Slow { name, begin, deadline: IDLE, end: Some(reason::UNAVAILABLE), counted: "idle" }
}

const SLOW: &[Slow] = &[
    stranger("TCP alone", |_, _, volume| bare(&[], &[], volume)),
    stranger("half a client hello", |_, _, volume| {
        let hello = peer::client_hello()?;
        bare(&hello[..hello.len() / 2], &[], volume)
    }),
    stranger("a client hello and no more", |_, _, volume| {
        bare(&peer::client_hello()?, &[], volume)
    }),
    stranger("a client hello, byte by byte", |_, _, volume| {
        bare(&[], &peer::client_hello()?, volume)
    }),
    stranger("TLS without a request", |site, agent, volume| {
        Ok(inside(site.shake(agent, volume, Who::Agent)?, &[], &[]))
    }),
    stranger("half a request", |site, agent, volume| {
        let peer = site.shake(agent, volume, Who::Agent)?;
        Ok(inside(peer, b"GET /v1/volumes/", &[]))
    }),
    stranger("a request, byte by byte", |site, agent, volume| {
        let peer = site.shake(agent, volume, Who::Agent)?;
        Ok(inside(peer, &[], peer::request(&volume.id.to_string()).as_bytes()))
    }),
    undecided("an upgrade without a hello", |site, agent, volume| {
        Ok(inside(site.upgraded(agent, volume)?, &[], &[]))
    }),
    undecided("half a hello", |site, agent, volume| {
        Ok(inside(site.upgraded(agent, volume)?, &hello(volume)[..50], &[]))
    }),
    undecided("a hello, byte by byte", |site, agent, volume| {
        Ok(inside(site.upgraded(agent, volume)?, &[], &hello(volume)))
    }),
    silent("a hello and silence", |site, agent, volume| {
        Ok(inside(welcomed(site, agent, volume)?, &[], &[]))
    }),
    silent("a header without its body", |site, agent, volume| {
        Ok(inside(welcomed(site, agent, volume)?, &large()[..48], &[]))
    }),
    silent("a header, byte by byte", |site, agent, volume| {
        Ok(inside(welcomed(site, agent, volume)?, &[], &large()[..48]))
    }),
    silent("a body, byte by byte", |site, agent, volume| {
        Ok(inside(welcomed(site, agent, volume)?, &large()[..1000], &large()[1000..]))
    }),
    silent("a mark, and then half of another", |site, agent, volume| {
        let mut stream = stream(volume);
        let mark = stream.mark(&Mark::prompt());
        let half = stream.mark(&Mark::prompt())[..60].to_vec();
        Ok(inside(welcomed(site, agent, volume)?, &[mark, half].concat(), &[]))
    }),
];

/// Waits for the end while the rest drips; returns it and how long it took.
fn wait_it_out(stalled: Stalled, limit: Duration) -> Result<(End, Duration)> {
    let begin = Instant::now();
    let Stalled { link, rest } = stalled;
    let mut drops = rest.iter();
    let end = match link {
        Link::Bare(mut tcp) => loop {
            tcp.set_read_timeout(Some(DRIP))?;
            match peer::hang_up(&mut tcp)? {
                End::Open if begin.elapsed() < limit => {
                    // A node that hung up is found out by the next look.
                    let byte = drops.next().map(std::slice::from_ref).unwrap_or_default();
                    let _ = std::io::Write::write_all(&mut tcp, byte);
                }
                end => break end,
            }
        },
        Link::Tls(mut peer) => loop {
            peer.patience(DRIP)?;
            match peer.end()? {
                End::Open if begin.elapsed() < limit => {
                    peer.send(drops.next().map(std::slice::from_ref).unwrap_or_default());
                }
                end => break end,
            }
        },
    };
    let is_all_said = drops.next().is_none() && !rest.is_empty();
    ensure!(!is_all_said, "everything was said before the deadline");
    Ok((end, begin.elapsed()))
}

fn judge(slow: &Slow, end: &End, took: Duration) -> Result<()> {
    let is_right = match (slow.end, end) {
        (None, End::HungUp) => true,
        (Some(reason), End::Refused(found, _)) => reason == *found,
        _ => false,
    };
    ensure!(is_right, "ended with {end:?}");
    let is_early = took + Duration::from_millis(500) < slow.deadline;
    let is_late = took > slow.deadline + LATE;
    ensure!(!is_early && !is_late, "ended after {took:?}, the deadline is {:?}", slow.deadline);
    Ok(())
}

#[test]
fn every_slow_peer_is_ended_at_its_deadline() {
    let idle = IDLE.as_secs().to_string();
    let environment = vec![("FARSHORE_NODE_IDLE".to_owned(), idle)];
    run_with(Setting { environment, ..Setting::default() }, |system| {
        let site = Site::over(system)?;
        let agent = site.enrol("slow")?;
        // A session has its volume for itself: those that get so far need one each.
        let disks = (0..SLOW.len()).map(|number| site.protect(&agent, &format!("disk{number}")));
        let volumes = disks.collect::<Result<Vec<_>>>()?;
        let node = system.pid(Part::Node)?;
        let before = site.counters()?;

        let ends = thread::scope(|scope| {
            let waiting: Vec<_> = SLOW
                .iter()
                .zip(&volumes)
                .map(|(slow, volume)| {
                    let stalled = (slow.begin)(&site, &agent, volume).context(slow.name)?;
                    let limit = slow.deadline + 2 * LATE;
                    Ok(scope.spawn(move || wait_it_out(stalled, limit)))
                })
                .collect::<Result<_>>()?;
            let ends = waiting.into_iter().map(|thread| thread.join().expect("no panic"));
            ends.collect::<Result<Vec<_>>>()
        })?;
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for (slow, (end, took)) in SLOW.iter().zip(&ends) {
            println!("{:32} {:5.1} s  {end:?}", slow.name, took.as_secs_f64());
            judge(slow, end, *took).context(slow.name)?;
            *expected.entry(format!("refused.{}", slow.counted)).or_default() += 1;
        }
        wait::until("the node to let go of them", LATE, || {
            Ok((process::connections(system.node_port)? == 0).then_some(()))
        })?;
        let after = site.counters()?;
        let mut grown: BTreeMap<String, u64> = after
            .into_iter()
            .filter(|(name, _)| name.starts_with("refused."))
            .map(|(name, count)| (name.clone(), count - before.get(&name).copied().unwrap_or(0)))
            .collect();
        grown.retain(|_, count| *count > 0);
        ensure!(grown == expected, "the node counted {grown:?}, not {expected:?}");
        site.same_node(node)
    });
}

/// A peer that sends and never reads: its session ends, and the node does not wait for ever to say
/// so.
#[test]
fn a_peer_that_never_reads_is_let_go() {
    let environment = vec![("FARSHORE_NODE_IDLE".to_owned(), "2".to_owned())];
    run_with(Setting { environment, ..Setting::default() }, |system| {
        let site = Site::over(system)?;
        let agent = site.enrol("deaf")?;
        let volume = site.protect(&agent, "disk")?;
        let node = system.pid(Part::Node)?;
        let mut stream = stream(&volume);
        let mut peer = site.session(&agent, &volume, &stream)?;
        ensure!(process::connections(system.node_port)? > 0, "the session is not seen");
        // Acks come back for all of this until nothing fits between the two any more.
        let begin = Instant::now();
        let mut sent = 0;
        while begin.elapsed() < Duration::from_secs(5) {
            let frames: Vec<u8> = (0..64).flat_map(|_| stream.zero(0, 1)).collect();
            if !peer.try_send(&frames) {
                break;
            }
            sent += 64;
        }
        // Three marks of a second, and the idle time, then five seconds to say goodbye.
        wait::until("the node to let go", Duration::from_secs(20), || {
            Ok((process::connections(system.node_port)? == 0).then_some(()))
        })
        .with_context(|| format!("{sent} frames were sent, and nothing read"))?;
        drop(peer);
        println!("{sent} frames sent by a peer that never reads");
        site.same_node(node)
    });
}
