//! Connections between agents and nodes: frames arrive late, in order, once — unless a fault says
//! otherwise. A connection carries whole frames, as the codec cuts them.

use crate::world::{Event, Process, World};
use crate::{agent, node};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn(pub u64);

/// What the network tells a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// To an agent: its connection is up.
    Connected(Conn),
    /// To an agent: this connection is not to be had.
    Unreachable(Conn),
    /// To a node: an agent has connected.
    Accepted {
        /// The connection.
        conn: Conn,
        /// The agent's process.
        agent: usize,
        /// The server that its certificate names.
        machine: usize,
        /// The generation of that certificate.
        generation: u64,
    },
    /// A frame.
    Frame(Conn, Bytes),
    /// The other end closed, or the connection was reset.
    Closed(Conn),
}

#[derive(Debug)]
struct Link {
    agent: usize,
    /// The server whose name the agent has.
    machine: usize,
    node: usize,
    /// When the last frame arrives, at the node and at the agent.
    last_us: [u64; 2],
}

/// What may happen to frames on their way, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetFaults {
    /// It never arrives.
    pub lost: u32,
    /// It arrives twice.
    pub twice: u32,
    /// It overtakes those before it.
    pub early: u32,
    /// A bit flips.
    pub flipped: u32,
    /// It and all behind it are late by up to this.
    pub late_us_max: u64,
    /// The connection is reset instead.
    pub reset: u32,
}

/// All connections.
#[derive(Debug, Default)]
pub struct Net {
    next: u64,
    links: BTreeMap<Conn, Link>,
    /// Pairs of server and node that cannot reach each other.
    pub cut: BTreeSet<(usize, usize)>,
    /// What happens to frames.
    pub faults: NetFaults,
    /// Frames delivered.
    pub frames: u64,
}

impl Net {
    /// Connections that are up.
    #[must_use]
    pub fn open(&self) -> usize {
        self.links.len()
    }
}

/// Time of flight, without faults.
const FLIGHT_US: std::ops::Range<u64> = 50..2_000;
/// A connection attempt to nowhere ends after this.
const UNREACHABLE: Duration = Duration::from_secs(3);

impl World {
    /// An agent asks for a connection to a node; [`Arrival::Connected`] or
    /// [`Arrival::Unreachable`] follows.
    pub fn connect(&mut self, agent: usize, to: usize) -> Conn {
        let machine = self.control.server(agent);
        let conn = Conn(self.net.next);
        self.net.next += 1;
        let is_cut = self.net.cut.contains(&(machine, to));
        if is_cut || !self.control.is_up(to) {
            let wait = if is_cut { UNREACHABLE } else { self.us(FLIGHT_US) };
            let event = agent::Event::Net(Arrival::Unreachable(conn));
            self.after(wait, Event::Agent(agent, event));
            return conn;
        }
        self.net.links.insert(conn, Link { agent, machine, node: to, last_us: [0, 0] });
        let wait = self.us(FLIGHT_US);
        let generation = self.control.certificate(machine);
        let accepted = Arrival::Accepted { conn, agent, machine, generation };
        let at_node = self.arrival_us(conn, 0, wait);
        self.after(at_node, Event::Node(to, node::Event::Net(accepted)));
        let more = self.us(FLIGHT_US);
        let at_agent = self.arrival_us(conn, 1, at_node + more);
        self.after(at_agent, Event::Agent(agent, agent::Event::Net(Arrival::Connected(conn))));
        conn
    }

    /// Time until something sent now arrives behind everything sent before.
    fn arrival_us(&mut self, conn: Conn, way: usize, flight: Duration) -> Duration {
        let now = self.now_us();
        let Some(link) = self.net.links.get_mut(&conn) else { return flight };
        let flight_us = u64::try_from(flight.as_micros()).expect("a flight is short");
        let at = (now + flight_us).max(link.last_us[way] + 1);
        link.last_us[way] = at;
        Duration::from_micros(at - now)
    }

    /// Sends one frame from a process at one end; nothing happens if the connection is gone.
    pub fn send(&mut self, conn: Conn, from: Process, frame: Bytes) {
        let Some(link) = self.net.links.get(&conn) else { return };
        let (agent, machine, to) = (link.agent, link.machine, link.node);
        let faults = self.net.faults;
        if self.net.cut.contains(&(machine, to)) || self.chance(faults.lost) {
            return self.tell("net", || format!("a frame from {from} is lost"));
        }
        if self.chance(faults.reset) {
            self.tell("net", || format!("the connection of agent {agent} and node {to} is reset"));
            return self.reset(conn);
        }
        let mut frame = frame;
        if self.chance(faults.flipped) && !frame.is_empty() {
            let mut bytes = frame.to_vec();
            let at = self.rng.usize(0..bytes.len());
            bytes[at] ^= 1 << self.rng.u32(0..8);
            frame = bytes.into();
            self.tell("net", || format!("a bit of a frame from {from} flips"));
        }
        self.net.frames += 1;
        let way = usize::from(matches!(from, Process::Node(_)));
        let copies = 1 + usize::from(self.chance(faults.twice));
        for _ in 0..copies {
            let mut flight = self.us(FLIGHT_US);
            if faults.late_us_max > 0 && self.chance(100) {
                flight += self.us(0..faults.late_us_max);
            }
            let wait =
                if self.chance(faults.early) { flight } else { self.arrival_us(conn, way, flight) };
            let arrival = Arrival::Frame(conn, frame.clone());
            self.after(wait, Self::arrival(agent, to, way, arrival));
        }
    }

    fn arrival(agent: usize, to: usize, way: usize, arrival: Arrival) -> Event {
        if way == 0 {
            Event::Node(to, node::Event::Net(arrival))
        } else {
            Event::Agent(agent, agent::Event::Net(arrival))
        }
    }

    /// Closes a connection from one end; the other hears of it behind everything sent before.
    pub fn hang_up(&mut self, conn: Conn, from: Process) {
        let way = usize::from(matches!(from, Process::Node(_)));
        let flight = self.us(FLIGHT_US);
        let wait = self.arrival_us(conn, way, flight);
        let Some(link) = self.net.links.remove(&conn) else { return };
        if !self.net.cut.contains(&(link.machine, link.node)) {
            let event = Self::arrival(link.agent, link.node, way, Arrival::Closed(conn));
            self.after(wait, event);
        }
    }

    /// Resets a connection: both ends hear of it.
    pub fn reset(&mut self, conn: Conn) {
        let Some(link) = self.net.links.remove(&conn) else { return };
        for way in 0..2 {
            let wait = self.us(FLIGHT_US);
            self.after(wait, Self::arrival(link.agent, link.node, way, Arrival::Closed(conn)));
        }
    }

    /// Resets every connection that is up.
    pub fn reset_all(&mut self) {
        let open: Vec<Conn> = self.net.links.keys().copied().collect();
        open.into_iter().for_each(|conn| self.reset(conn));
    }

    /// The connections of a process that died: the other ends hear of it.
    pub(crate) fn drop_connections(&mut self, process: Process) {
        let is_of = |link: &Link| match process {
            Process::Agent(number) => link.agent == number,
            Process::Node(number) => link.node == number,
            Process::Reader | Process::Failover | Process::Sweeper => false,
        };
        let gone: Vec<Conn> =
            self.net.links.iter().filter(|(_, link)| is_of(link)).map(|(conn, _)| *conn).collect();
        gone.into_iter().for_each(|conn| self.hang_up(conn, process));
    }
}
