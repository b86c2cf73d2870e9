//! Ten thousand sockets that lead nowhere (N6): the node's memory and descriptors stay bounded, come
//! back, and a good source beside them hardly notices.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore_conformance::cases::{self, Act, View};
use farshore_conformance::crowd::{Count, Crowd, give_way};

use farshore_conformance::site::{Agent, Site, Volume};
use farshore_conformance::source::{Latencies, Source};
use farshore_conformance::stream::Stream;
use farshore_e2e::{Part, System, process, run, run_in_memory, wait};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};

const CROWD: usize = 10_000;
/// Of `docs/formats/frame.md`: places of one shard for connections before their hello.
const STRANGERS_MAX: u64 = 1024;
/// What one may cost that has not come through the handshake: a buffer of 4 KiB, and TLS.
const STRANGER_BYTES_MAX: u64 = 48 << 10;
/// What else may come and go meanwhile: the good source's batches, and pages that the allocator keeps.
const SLACK_BYTES: u64 = 48 << 20;

/// Writes a second of the good source.
const RATE: u32 = 250;
const QUIET: Duration = Duration::from_secs(4);
/// Longer than the crowd takes to arrive.
const LOUD: Duration = Duration::from_secs(6);
/// Half of what is promised of the journaled ack: below it, a crowd on the same two cores may cost more
/// than a factor of 2.
const FLOOR: Duration = Duration::from_millis(5);
/// The median of the rounds decides: what else the machine does comes in bursts.
const ROUNDS: usize = 5;
/// A good agent that comes while the crowd is there is welcomed within this.
const WELCOME_MAX: Duration = Duration::from_secs(5);
/// Of `docs/formats/frame.md`, and a busy machine.
const DEADLINE: Duration = Duration::from_secs(10 + 10);
/// A socket that found the queue full before the node's thread got to run is made on one side only, until the system
/// says so again: after 1, 3, 7 and 15 s.
const PUT_OFF: Duration = Duration::from_secs(15);
const BLOCKS: usize = 4096;

/// Wants room for the crowd on this side.
fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let room = limit.maximum.is_none_or(|most| most > CROWD as u64 + 500);
    ensure!(room, "only {:?} descriptors for {CROWD} sockets", limit.maximum);
    Ok(())
}

/// What was seen of one loud phase.
struct Loud {
    latencies: Latencies,
    count: Count,
    descriptors_max: usize,
    welcomed_after: Duration,
    misbehaved: usize,
}

/// Who is there besides the crowd.
struct Stage<'a> {
    site: &'a Site<'a>,
    node: Pid,
    /// Sends all the time.
    source: Source,
    good: &'a Agent,
    /// A good agent's other volume: it comes when the crowd is there.
    late: (&'a Volume, Stream),
    /// Breaks every rule, again and again.
    hostile: (&'a Agent, &'a Volume, Stream),
}

impl Stage<'_> {
    fn loud(&mut self) -> Result<Loud> {
        let (site, node, good, late) = (self.site, self.node, self.good, &self.late);
        let crowd = Crowd::gather(site.system.node_port, CROWD, true)?;
        let (is_over, descriptors_max) = (AtomicBool::new(false), AtomicUsize::new(0));
        let hostile = &mut self.hostile;
        let source = &mut self.source;
        let (latencies, welcomed_after, misbehaved) = thread::scope(|scope| {
            let breaking = scope.spawn(|| {
                give_way()?;
                misbehave(site, hostile, &is_over)
            });
            let watching = scope.spawn(|| -> Result<()> {
                give_way()?;
                while !is_over.load(Ordering::Relaxed) {
                    descriptors_max.fetch_max(process::descriptors(node)?, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            });
            let coming = scope.spawn(|| -> Result<Duration> {
                let is_there = || Ok((crowd.opened() >= CROWD / 2).then_some(()));
                wait::until("the crowd", DEADLINE, is_there)?;
                let begin = Instant::now();
                wait::until("a welcome beside the crowd", WELCOME_MAX, || {
                    // It comes again when it is sent away, as agents do.
                    Ok(site.session(good, late.0, &late.1).ok().map(drop))
                })?;
                Ok(begin.elapsed())
            });
            let latencies = source.run_while(RATE, LOUD, || crowd.opened() < CROWD);
            is_over.store(true, Ordering::Relaxed);
            let misbehaved = breaking.join().expect("no panic")?;
            watching.join().expect("no panic")?;
            let welcomed_after = coming.join().expect("no panic").context("a good agent")?;
            anyhow::Ok((latencies?, welcomed_after, misbehaved))
        })?;
        let count = crowd.leave()?;
        let descriptors_max = descriptors_max.into_inner();
        Ok(Loud { latencies, count, descriptors_max, welcomed_after, misbehaved })
    }

    /// Quiet and loud by turns.
    fn compare(&mut self, open: usize) -> Result<()> {
        let (mut quiet, mut noisy) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let calm = self.source.run(RATE, QUIET)?;
            let seen = self.loud()?;
            let (now, peak) = process::memory(self.node)?;
            println!(
                "round {round}: p99 {:?} alone, {:?} beside {:?} and {} broken rules; a good agent was \
                 welcomed after {:?}; descriptors {open} to {}; resident {} MiB, at most {} MiB",
                p99(&calm),
                p99(&seen.latencies),
                seen.count,
                seen.misbehaved,
                seen.welcomed_after,
                seen.descriptors_max,
                now >> 20,
                peak >> 20
            );
            ensure!(seen.count.opened >= CROWD, "only {:?}", seen.count);
            let_go(self.node, open)?;
            quiet.push(p99(&calm));
            noisy.push(p99(&seen.latencies));
        }
        let (alone, beside) = (median(quiet), median(noisy));
        println!("median p99: {alone:?} alone, {beside:?} beside");
        let is_fair = beside <= FLOOR.max(2 * alone);
        ensure!(is_fair, "p99 {beside:?} beside the crowd, {alone:?} alone");
        Ok(())
    }
}

/// Breaks one rule after the other until it is over; returns how many.
fn misbehave(
    site: &Site<'_>,
    (agent, volume, stream): &mut (&Agent, &Volume, Stream),
    is_over: &AtomicBool,
) -> Result<usize> {
    let inside = |act: &Act| matches!(act, Act::Later(_) | Act::Request(_));
    let cases = cases::all().filter(|case| inside(&case.act)).cycle();
    for (count, case) in cases.enumerate() {
        if is_over.load(Ordering::Relaxed) {
            return Ok(count);
        }
        let mut play = || {
            let mut view = View { stream, other: uuid::Uuid::nil() };
            cases::play(case, site, agent, volume, &mut view).context(case.name)
        };
        // Among ten thousand it may be sent away itself before it gets so far.
        play().or_else(|_| play())?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(0)
}

fn p99(latencies: &Latencies) -> Duration {
    Duration::from_micros(latencies.value_at_quantile(0.99))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn let_go(node: Pid, open: usize) -> Result<()> {
    wait::until("the node to let go of the crowd", DEADLINE, || {
        // Its own files and connections come and go by a few.
        Ok((process::descriptors(node)? <= open + 8).then_some(()))
    })
}

fn counted(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, reason: &str) -> u64 {
    let count = |counters: &BTreeMap<String, u64>| {
        counters.get(&format!("refused.{reason}")).copied().unwrap_or(0)
    };
    count(after) - count(before)
}

fn shards(system: &System) -> Result<u64> {
    let listed = system.farshore().json("node list")?;
    listed["nodes"][0]["shards"].as_u64().context("the node's shards")
}

#[test]
fn a_crowd_of_ten_thousand_costs_a_good_source_little() {
    raise_descriptors().unwrap();
    run_in_memory(|system| {
        let site = Site::over(system)?;
        let (good, hostile) = (site.enrol("good")?, site.enrol("hostile")?);
        let volumes = [
            site.protect(&good, "steady")?,
            site.protect(&good, "late")?,
            site.protect(&hostile, "disk")?,
        ];
        let [mut steady, mut late, mut broken] = volumes
            .each_ref()
            .map(|volume| Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS));
        for (agent, volume, stream) in [
            (&good, &volumes[0], &mut steady),
            (&good, &volumes[1], &mut late),
            (&hostile, &volumes[2], &mut broken),
        ] {
            site.restores(agent, volume, stream)?;
        }
        let node = system.pid(Part::Node)?;
        let mut source = Source::connect(&good, &volumes[0], steady)?;
        source.run(RATE, Duration::from_secs(2))?;
        let before = site.counters()?;
        let (open, (resident, _)) = (process::descriptors(node)?, process::memory(node)?);

        let (late, hostile) = ((&volumes[1], late), (&hostile, &volumes[2], broken));
        let mut stage = Stage { site: &site, node, source, good: &good, late, hostile };
        stage.compare(open)?;

        let bound = shards(system)? * STRANGERS_MAX * STRANGER_BYTES_MAX + SLACK_BYTES;
        let (_, peak) = process::memory(node)?;
        let grown = peak.saturating_sub(resident);
        ensure!(grown <= bound, "the node grew by {} MiB of {} MiB", grown >> 20, bound >> 20);
        let after = site.counters()?;
        ensure!(counted(&before, &after, "crowd") > 0, "nobody was one too many");
        println!("grew by {} MiB of {} MiB; {after:?}", grown >> 20, bound >> 20);

        let Stage { source: Source { mut stream, .. }, mut late, mut hostile, .. } = stage;
        site.restores(&good, &volumes[0], &mut stream)?;
        site.restores(&good, late.0, &mut late.1)?;
        site.restores(hostile.0, hostile.1, &mut hostile.2)?;
        site.same_node(node)
    });
}

/// Nobody leaves by themselves: the node ends all of them at the deadline, and counts each.
#[test]
fn a_crowd_that_stays_is_sent_away_at_the_deadline() {
    raise_descriptors().unwrap();
    run(|system| {
        let site = Site::over(system)?;
        let node = system.pid(Part::Node)?;
        let (before, open) = (site.counters()?, process::descriptors(node)?);
        let crowd = Crowd::gather(system.node_port, CROWD, false)?;
        let opened = || Ok((crowd.opened() == CROWD).then_some(()));
        wait::until("the crowd", DEADLINE, opened)?;
        let begin = Instant::now();
        wait::until("everybody to be sent away", DEADLINE + PUT_OFF, || {
            Ok((crowd.open() == 0).then_some(()))
        })?;
        let took = begin.elapsed();
        let_go(node, open)?;
        let count = crowd.leave()?;
        let after = site.counters()?;
        let [slow, crowded] = ["slow", "crowd"].map(|reason| counted(&before, &after, reason));
        println!("{count:?}; slow {slow}, crowd {crowded}; the last went after {took:?}");
        ensure!(slow + crowded == CROWD as u64, "{slow} slow and {crowded} too many of {CROWD}");
        let places = shards(system)? * STRANGERS_MAX;
        ensure!(slow <= 2 * places, "{slow} were listened to, there are {places} places");
        site.same_node(node)
    });
}

/// I8: without a descriptor there is no next journal file, and without that no node. The crowd must
/// never get the last ones.
#[test]
fn a_node_with_few_descriptors_keeps_its_own() {
    const FEW: u64 = 700;
    // What this process may have at most, its children have too.
    let limit = Rlimit { current: Some(FEW), maximum: Some(FEW) };
    setrlimit(Resource::Nofile, limit).expect("a soft limit may rise to the hard one");
    run(|system| {
        let site = Site::over(system)?;
        let agent = site.enrol("good")?;
        let volume = site.protect(&agent, "disk")?;
        let mut stream = Stream::new(volume.id.into_bytes(), volume.epoch, BLOCKS);
        site.restores(&agent, &volume, &mut stream)?;
        let node = system.pid(Part::Node)?;
        let mut source = Source::connect(&agent, &volume, stream)?;
        let (before, quiet) = (site.counters()?, process::descriptors(node)?);
        let crowd = Crowd::gather(system.node_port, 550, true)?;
        source.run(RATE, LOUD)?;
        let open = process::descriptors(node)?;
        let count = crowd.leave()?;
        // Until then there may be none for a new session either.
        let_go(node, quiet)?;
        let after = site.counters()?;
        let refused = counted(&before, &after, "descriptors");
        println!("{count:?}; {open} of {FEW} descriptors; {refused} without one");
        ensure!(refused > 0, "the crowd had all that it wanted");
        ensure!(counted(&before, &after, "accept") == 0, "the last descriptor was used");
        let mut stream = source.stream;
        site.restores(&agent, &volume, &mut stream)?;
        site.same_node(node)
    });
}
