//! One server against a node of a few lines: the whole has [`crate::run`].

use super::*;
use crate::control::machine_of;
use crate::disk::{Tag, Trouble};
use crate::guest::{self, Guest};
use crate::net::{Conn, NetFaults};
use crate::node;
use crate::trace::Trace;
use crate::world::Size;
use bytes::Bytes;
use farshore_proto::frame::{
    Ack, Control, FrameHeader, FrameKind, Hello, Refusal, RefusalReason, Welcome,
};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use farshore_proto::mark::Mark;
use farshore_proto::{Epoch, PointId, Timestamp};
use volume::changes_of;

/// Frames by seq, with the mark if it is one.
type Frames = std::collections::BTreeMap<Seq, (Vec<(u64, Tag)>, Option<PointId>)>;

/// A node: takes frames in order, journals and commits them at its own pace, forgets when told.
#[derive(Default)]
struct FakeNode {
    conn: Option<Conn>,
    frames: Frames,
    journaled: Seq,
    committed: Seq,
    points: u64,
}

impl FakeNode {
    fn received(&self) -> Seq {
        self.frames.last_key_value().map_or(Seq(0), |(seq, _)| *seq)
    }

    fn say(&self, world: &mut World, conn: Conn, control: &Control) {
        world.send(conn, Process::Node(0), control.encode().into());
    }

    fn refuse(&mut self, world: &mut World, conn: Conn, reason: RefusalReason) {
        let refusal = Refusal { reason, text: "no".to_owned() };
        self.say(world, conn, &Control::Refusal(refusal));
        world.hang_up(conn, Process::Node(0));
        self.conn = None;
    }

    fn handle(&mut self, world: &mut World, arrival: Arrival) {
        match arrival {
            Arrival::Accepted { conn, .. } => {
                if let Some(old) = self.conn.replace(conn) {
                    world.hang_up(old, Process::Node(0));
                }
            }
            Arrival::Frame(conn, frame) if self.conn == Some(conn) => {
                self.hear(world, conn, &frame)
            }
            Arrival::Closed(conn) if self.conn == Some(conn) => self.conn = None,
            _ => {}
        }
    }

    fn hear(&mut self, world: &mut World, conn: Conn, frame: &Bytes) {
        let head = frame.first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let body = &frame[FRAME_HEADER_BYTES..];
        let Ok(header) = FrameHeader::decode(head) else {
            return self.refuse(world, conn, RefusalReason::Protocol);
        };
        if header.check_body(body).is_err() {
            return self.refuse(world, conn, RefusalReason::Protocol);
        }
        match header.kind {
            FrameKind::Hello => match Control::decode(&header, body) {
                Ok(Control::Hello(hello)) => self.greet(world, conn, &hello),
                _ => unreachable!("checked by the header"),
            },
            kind if kind.is_stream() => {
                if header.seq != self.received().next() {
                    return self.refuse(world, conn, RefusalReason::Protocol);
                }
                let point = match header.kind {
                    FrameKind::Mark => match Control::decode(&header, body) {
                        Ok(Control::Mark(_, Mark { point, .. })) => Some(point),
                        _ => unreachable!("checked by the header"),
                    },
                    _ => None,
                };
                let changes = changes_of(frame).remove(0).1;
                self.frames.insert(header.seq, (changes, point));
                world.oracle.taken((0, world.now()), (0, Epoch(1)), header.seq);
                if let Some(point) = point {
                    self.judge(world, header.seq, point);
                }
            }
            _ => self.refuse(world, conn, RefusalReason::Protocol),
        }
    }

    fn greet(&mut self, world: &mut World, conn: Conn, hello: &Hello) {
        assert_eq!(machine_of(hello.volume), 0);
        let (received, is_empty) = (self.received(), hello.last_seq == Seq(0));
        if hello.first_seq > received.next() && !is_empty {
            return self.refuse(world, conn, RefusalReason::Gap);
        }
        let (journaled, committed) = (self.journaled, self.committed);
        let welcome = Welcome {
            imprint: farshore_proto::Imprint::default(),
            received,
            journaled,
            committed,
            window_bytes: 2 << 20,
            stamp: farshore_proto::Stamp::default(),
        };
        self.say(world, conn, &Control::Welcome(welcome));
    }

    /// The stream up to a mark is what the mark promised.
    fn judge(&mut self, world: &mut World, at: Seq, point: PointId) {
        let promise = world.oracle.stream(0).promise(point).expect("the mark was set").clone();
        assert_eq!(promise.seq, at);
        let image = self.image(world.size.blocks);
        assert!(image[..] == promise.image[..], "the stream up to {at} is not what was promised");
        self.points += 1;
    }

    fn image(&self, blocks: u64) -> Vec<Tag> {
        let mut image = vec![0; crate::disk::index(blocks)];
        for (block, tag) in self.frames.values().flat_map(|(changes, _)| changes) {
            image[crate::disk::index(*block)] = *tag;
        }
        image
    }

    /// Journals and commits some more, and says so.
    fn move_on(&mut self, world: &mut World) {
        self.journaled = Seq(world.rng.u64(self.journaled.0..=self.received().0));
        if world.chance(400) {
            self.committed = Seq(world.rng.u64(self.committed.0..=self.journaled.0));
            if world.chance(700) {
                self.committed = self.journaled;
            }
            world.oracle.committed_in_test(0, self.committed);
        }
        if let Some(conn) = self.conn {
            let ack =
                Ack { journaled: self.journaled, committed: self.committed, gathers_in_ms: None };
            self.say(world, conn, &Control::Ack(ack));
        }
    }

    /// Forgets everything above a seq, as a restart does.
    fn forget(&mut self, world: &mut World, kept: Seq) {
        self.frames.split_off(&kept.next());
        self.journaled = self.journaled.min(kept);
        if let Some(conn) = self.conn.take() {
            world.reset(conn);
        }
    }
}

struct Bench {
    world: World,
    agent: Agent,
    guest: Guest,
    node: FakeNode,
    starts_at: Option<u64>,
}

impl Bench {
    fn new(seed: u64, trace: Trace) -> Self {
        let size = Size { machines: 1, nodes: 1, shards: 1, blocks: 192 };
        let mut world = World::new(seed, size, trace);
        let tags = (0..192).map(|block| if block % 3 == 0 { 0 } else { 1 << 50 | block }).collect();
        world.control.set_up(0, Some(world.now()));
        let node = FakeNode::default();
        let (agent, guest) = (Agent::new(0, GuestDisk::new(tags)), Guest::new(0));
        let mut bench = Self { world, agent, guest, node, starts_at: Some(0) };
        bench.world.after(Duration::ZERO, world::Event::Guest(0, guest::Event::Go));
        bench
    }

    fn start(&mut self) {
        self.starts_at = None;
        self.agent.start(&mut self.world);
        let assignment = Assignment { node: 0, epoch: Epoch(1), generation_min: 0 };
        let event = world::Event::Agent(0, Event::Assigned(assignment));
        self.world.after(Duration::ZERO, event);
    }

    fn end(&mut self, is_cut: bool) {
        self.world.end_life(Process::Agent(0));
        self.agent.end();
        self.guest.cut_off();
        if is_cut || self.agent.was_cut() {
            let mut rng = self.world.rng.fork();
            self.agent.cut_power(&mut rng);
            let disk = self.agent.disk();
            for (block, tag) in self.guest.flushed() {
                assert_eq!(
                    disk.seen[crate::disk::index(*block)],
                    *tag,
                    "block {block} was flushed"
                );
            }
            self.guest.power_back();
        }
        self.starts_at = Some(self.world.now().0 + self.world.rng.u64(0..2_000));
    }

    fn go_on(&mut self, ms: u64) {
        let until = Timestamp(self.world.now().0 + ms);
        while self.world.now() < until {
            if self.starts_at.is_some_and(|at| at <= self.world.now().0) {
                self.start();
            }
            let next = Timestamp((self.world.now().0 + 10).min(until.0));
            while let Some(event) = self.world.next(next) {
                match event {
                    world::Event::Agent(_, event) => self.agent.handle(&mut self.world, event),
                    world::Event::Guest(_, event) => {
                        let is_served = self.agent.is_serving();
                        self.guest.handle(&mut self.world, event, is_served);
                    }
                    world::Event::Node(_, node::Event::Net(arrival)) => {
                        self.node.handle(&mut self.world, arrival);
                    }
                    _ => {}
                }
                if !self.world.take_exits().is_empty() {
                    self.end(false);
                }
                let violation = self.world.oracle.violation();
                assert_eq!(violation, None);
            }
            if self.world.chance(200) {
                self.node.move_on(&mut self.world);
            }
        }
    }

    fn strike(&mut self) {
        let doom = Doom {
            changes: self.world.rng.u64(0..30),
            tear_per_mille: self.world.rng.u32(0..1000),
            is_cut: self.world.rng.bool(),
        };
        let which = self.world.rng.u32(0..16);
        self.world.tell("FAULT", || format!("{which}"));
        match which {
            0 | 1 if self.agent.is_running() => self.end(false),
            2 | 3 if self.agent.is_running() => self.end(true),
            4 | 5 => self.agent.set_doom(Some(doom)),
            6 => self.node.forget(&mut self.world, self.node.journaled),
            7 => self.node.forget(&mut self.world, self.node.committed),
            8 => self.world.reset_all(),
            9 => {
                let mut rng = self.world.rng.fork();
                self.world.net.faults = crate::faults::frame_faults(&mut rng);
            }
            10 => self.world.net.faults = NetFaults::default(),
            11 => self.agent.files().set_trouble(Trouble::Full),
            12 => self.agent.files().set_trouble(Trouble::None),
            13 => self.agent.stop(&mut self.world),
            14 | 15 if self.agent.is_running() => {
                self.end(which == 15);
                let mut rng = self.world.rng.fork();
                let path = self.agent.files().flip(&mut rng);
                self.world.tell("FAULT", || format!("a bit of {path:?} flips"));
            }
            _ => {}
        }
    }

    /// Waits until the log is the disk and at the node, and marked.
    fn converge(&mut self) {
        self.world.net.faults = NetFaults::default();
        self.agent.files().set_trouble(Trouble::None);
        self.agent.set_doom(None);
        self.go_on(2_000);
        self.guest.stop();
        for _ in 0..240 {
            let is_marked = self.agent.newest_mark() == Some(self.agent.last());
            if self.guest.is_quiet() && self.agent.is_settled() && is_marked {
                let image = self.node.image(self.world.size.blocks);
                assert!(image == self.agent.disk().seen, "the node has the disk");
                return;
            }
            self.go_on(500);
        }
        panic!("it did not converge: {}", self.agent.standing());
    }
}

fn run(seed: u64, trace: Trace) -> (u64, u64, Vec<String>) {
    let mut bench = Bench::new(seed, trace);
    for _ in 0..bench.world.rng.u64(3..25) {
        let wait = bench.world.rng.u64(10..3_000);
        bench.go_on(wait);
        bench.strike();
    }
    bench.converge();
    (bench.node.points, bench.guest.done, bench.world.trace.into_lines())
}

#[test]
fn replicates_a_disk_that_is_written() {
    let mut bench = Bench::new(1, Trace::off());
    bench.go_on(20_000);
    bench.converge();
    assert!(bench.node.points > 10 && bench.guest.done > 100);
}

#[test]
fn two_runs_of_a_seed_are_the_same() {
    let (first, second) = (run(7, Trace::kept()), run(7, Trace::kept()));
    assert!(first.2.len() > 100 && first == second);
}

/// P1, M4, D5, N1: kills, power cuts and full disks at every moment, and a node that forgets.
#[test]
fn whatever_strikes_every_mark_is_the_disk() {
    let seeds = std::env::var("AGENT_SEEDS").unwrap_or_else(|_| "0..40".to_owned());
    let (from, to) = seeds.split_once("..").unwrap();
    let (mut points, mut requests) = (0, 0);
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        println!("seed {seed}");
        let trace =
            if std::env::var("AGENT_TRACE").is_ok() { Trace::printed() } else { Trace::off() };
        let run = run(seed, trace);
        points += run.0;
        requests += run.1;
    }
    println!("{points} points, {requests} requests");
    assert!(points > 0 && requests > 0);
}
