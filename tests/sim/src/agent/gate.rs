//! The gate in front of the disk, as `agent/src/capture/gate.rs` drives it: intents are set in the map
//! when the engine says so, cleared once it is noted how far the log is durable, written by one errand
//! at a time, in order.

use farshore_agent::capture::gate::Durable;
use farshore_agent::capture::intent::{Changes, IntentMap, Recovered};
use farshore_engine::doubt::{Doubt, Input, Output, Regions, Settings, Ticket};
use farshore_proto::Timestamp;
use std::collections::VecDeque;
use std::io;

/// Why the intent file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Errand {
    /// Writes into these regions wait for it: durably.
    Persist(Vec<u64>),
    /// These regions need no intent: whenever.
    Clear(Vec<u64>),
}

/// What the gate asks of whoever drives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// A write may go ahead.
    Go(Ticket),
    /// A flush is wanted.
    Flush,
    /// The lane has work.
    Lane,
    /// Note what is durable of the log; then these regions may be cleared.
    Note(Vec<u64>, Durable),
}

/// The gate of one disk.
#[derive(Debug)]
pub(super) struct Gate {
    doubt: Doubt,
    map: IntentMap,
    next_ticket: u64,
    errands: VecDeque<Errand>,
    in_lane: Option<(Errand, Changes)>,
    /// What the last good flush made durable of the log.
    durable: Durable,
    /// Notes under way.
    notes: u64,
}

impl Gate {
    pub(super) fn new(
        now: Timestamp,
        regions: u64,
        regions_max: u64,
        intents: (IntentMap, Recovered),
    ) -> Self {
        let (map, recovered) = intents;
        let settings = Settings { clear_ms: 1_000, regions_max, ahead: 1 };
        let mut doubt = Doubt::new(settings, regions, recovered.regions);
        if map.is_void() {
            doubt.step(now, Input::Voided, &mut Vec::new());
        }
        Self {
            doubt,
            map,
            next_ticket: 1,
            errands: VecDeque::new(),
            in_lane: None,
            durable: Durable::default(),
            notes: 0,
        }
    }

    /// Gives the engine one input and carries out what it says.
    pub(super) fn step(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.doubt.step(now, input, &mut out);
        let mut effects = Vec::new();
        for output in out {
            effects.push(match output {
                Output::Go { ticket } => Effect::Go(ticket),
                Output::Flush => Effect::Flush,
                Output::PersistIntent { regions } => {
                    self.map.set(&regions);
                    self.errands.push_back(Errand::Persist(regions));
                    Effect::Lane
                }
                Output::ClearIntent { regions } => {
                    self.notes += 1;
                    Effect::Note(regions, self.durable)
                }
            });
        }
        effects
    }

    /// How a flush ended: what it made durable of the log, if disk and log took it.
    pub(super) fn flushed(&mut self, now: Timestamp, durable: Option<Durable>) -> Vec<Effect> {
        let Some(durable) = durable else { return self.step(now, Input::FlushFailed) };
        self.durable = durable;
        self.step(now, Input::Flushed)
    }

    /// What the last good flush made durable of the log.
    pub(super) fn durable(&self) -> Durable {
        self.durable
    }

    /// What is durable of the log was noted, or not: then the regions keep their intents.
    pub(super) fn noted(&mut self, regions: Vec<u64>, is_noted: bool) {
        self.notes -= 1;
        if is_noted {
            self.errands.push_back(Errand::Clear(regions));
        }
    }

    /// A write into these regions wants to begin.
    pub(super) fn enter(&mut self, now: Timestamp, regions: Regions) -> (Ticket, Vec<Effect>) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        (ticket, self.step(now, Input::Writing { ticket, regions }))
    }

    /// Begins the next errand, if the lane is free: true if one was begun.
    pub(super) fn begin_errand(&mut self) -> bool {
        if self.in_lane.is_some() {
            return false;
        }
        let Some(errand) = self.errands.pop_front() else { return false };
        let changes = match &errand {
            Errand::Clear(regions) => {
                // What was written meanwhile has its intent again.
                let regions = regions.iter().copied();
                let cleared: Vec<u64> =
                    regions.filter(|region| !self.doubt.has_intent(*region)).collect();
                self.map.clear(&cleared);
                self.map.take_cleared()
            }
            Errand::Persist(_) => self.map.take_changes(),
        };
        self.in_lane = Some((errand, changes));
        true
    }

    /// Writes the sectors of the errand under way.
    pub(super) fn write_errand(&mut self) -> Option<(Errand, io::Result<()>)> {
        let (errand, changes) = self.in_lane.take()?;
        let written = changes.write();
        Some((errand, written))
    }

    /// Intents cannot be had: that is noted, then all count as had.
    pub(super) fn void(&mut self, now: Timestamp) -> (io::Result<()>, Vec<Effect>) {
        let noted = self.map.void().write();
        (noted, self.step(now, Input::Voided))
    }

    /// Tries to end that intents are void.
    pub(super) fn mend(&mut self, now: Timestamp) -> Vec<Effect> {
        if !self.doubt.is_void() || self.in_lane.is_some() {
            return Vec::new();
        }
        match self.map.lay_out(0xff).write() {
            Ok(file) => {
                self.map.mended(file);
                self.step(now, Input::Mended)
            }
            Err(_) => Vec::new(),
        }
    }

    pub(super) fn is_void(&self) -> bool {
        self.doubt.is_void()
    }

    /// Whether nothing is to be written into the intent file.
    pub(super) fn is_idle(&self) -> bool {
        self.in_lane.is_none() && self.errands.is_empty() && self.notes == 0
    }

    pub(super) fn in_doubt(&self) -> u64 {
        self.doubt.in_doubt()
    }

    pub(super) fn next_in_doubt(&self) -> Option<u64> {
        self.doubt.next_in_doubt()
    }

    pub(super) fn is_in_doubt(&self, region: u64) -> bool {
        self.doubt.is_in_doubt(region)
    }

    pub(super) fn intents(&self) -> u64 {
        self.doubt.intents()
    }

    /// The orderly stop: everything that needs no intent any more loses it, durably.
    pub(super) fn stop(&mut self, now: Timestamp) -> io::Result<()> {
        if self.is_void() {
            return Err(io::Error::other("the intents are void"));
        }
        let mut out = Vec::new();
        self.doubt.step(now, Input::Stopped, &mut out);
        for output in out {
            if let Output::ClearIntent { regions } = output {
                self.map.clear(&regions);
            }
        }
        self.map.take_changes().write()
    }
}
