//! The workload of a protected server: writes, zeros, flushes, several at a time, some of them on
//! the same blocks, some with bytes that are elsewhere on the disk.

use crate::agent;
use crate::disk::Tag;
use crate::world::{self, World};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A request of the guest to its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Blocks with content.
    Write {
        /// First block.
        block: u64,
        /// What to write.
        tags: Vec<Tag>,
        /// Durable before the answer.
        fua: bool,
    },
    /// Blocks of zeros.
    Zero {
        /// First block.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// Durable before the answer.
        fua: bool,
    },
    /// Everything answered before this is durable before the answer.
    Flush,
}

/// What happens to a guest.
#[derive(Debug)]
pub enum Event {
    /// It may send a request.
    Go,
    /// A request was answered.
    Answered {
        /// Its number.
        id: u64,
    },
    /// A request failed: some of it may have happened.
    Failed {
        /// Its number.
        id: u64,
    },
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    machine: usize,
    next_id: u64,
    next_tag: Tag,
    /// What was written lately, to be written again: as who restores a file does.
    lately: VecDeque<Vec<Tag>>,
    is_stopped: bool,
    /// Requests sent and not answered.
    pending: BTreeMap<u64, Request>,
    /// Last tag that was durable for sure, by block; gone while a newer write is on its way.
    flushed: BTreeMap<u64, Tag>,
    /// Answered writes since the last flush, and those before a flush that is on its way.
    answered: BTreeMap<u64, Tag>,
    covered: BTreeMap<u64, BTreeMap<u64, Tag>>,
    /// Blocks of a request that another one, on its way at the same time, writes too: whichever is answered last,
    /// either may have come last.
    unsure: BTreeMap<u64, BTreeSet<u64>>,
    /// Requests answered.
    pub done: u64,
}

const PENDING_MAX: usize = 4;
/// Writes that a guest remembers.
const LATELY_MAX: usize = 600;
/// Tags below this are the same on every disk.
const SHARED_TAGS: Tag = 40;

impl Guest {
    /// A guest that has sent nothing.
    #[must_use]
    pub fn new(machine: usize) -> Self {
        Self {
            machine,
            next_id: 1,
            next_tag: SHARED_TAGS + ((machine as u64) << 40),
            lately: VecDeque::new(),
            is_stopped: false,
            pending: BTreeMap::new(),
            flushed: BTreeMap::new(),
            answered: BTreeMap::new(),
            covered: BTreeMap::new(),
            unsure: BTreeMap::new(),
            done: 0,
        }
    }

    /// No further requests.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Whether everything sent was answered.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// Its disk's server is gone: what was on its way may have happened or not.
    pub fn cut_off(&mut self) {
        self.pending.clear();
        self.covered.clear();
        self.unsure.clear();
    }

    /// What must be on the disk after a power cut, by block.
    #[must_use]
    pub fn flushed(&self) -> &BTreeMap<u64, Tag> {
        &self.flushed
    }

    /// The power came back: what is on the disk now is durable, whatever it is.
    pub fn power_back(&mut self) {
        self.answered.clear();
    }

    /// Its disk is what it was at some earlier time: nothing is certain about it.
    pub fn went_back(&mut self) {
        self.cut_off();
        self.flushed.clear();
        self.answered.clear();
    }

    /// Carries out an event.
    pub fn handle(&mut self, world: &mut World, event: Event, is_served: bool) {
        match event {
            Event::Go => {
                if !self.is_stopped {
                    if is_served && self.pending.len() < PENDING_MAX {
                        self.send(world);
                    }
                    let wait = world.us(2_000..120_000);
                    world.after(wait, world::Event::Guest(self.machine, Event::Go));
                }
            }
            Event::Answered { id } => self.answered(id),
            Event::Failed { id } => {
                self.pending.remove(&id);
                self.covered.remove(&id);
            }
        }
    }

    fn send(&mut self, world: &mut World) {
        let request = self.request(world);
        let id = self.next_id;
        self.next_id += 1;
        match &request {
            Request::Flush => {
                self.covered.insert(id, std::mem::take(&mut self.answered));
            }
            Request::Write { block, tags, .. } => {
                for at in *block..*block + tags.len() as u64 {
                    self.forget(id, at);
                }
            }
            Request::Zero { block, count, .. } => {
                for at in *block..*block + count {
                    self.forget(id, at);
                }
            }
        }
        self.pending.insert(id, request.clone());
        let machine = self.machine;
        world.tell(format!("guest {machine}"), || format!("request {id}: {request:?}"));
        let event = agent::Event::Guest { id, request };
        world.after(Duration::ZERO, world::Event::Agent(machine, event));
    }

    /// A newer write into a block is on its way: nothing is certain about it any more.
    fn forget(&mut self, id: u64, block: u64) {
        for (other, request) in &self.pending {
            if request.touches(block) {
                self.unsure.entry(*other).or_default().insert(block);
                self.unsure.entry(id).or_default().insert(block);
            }
        }
        self.flushed.remove(&block);
        self.answered.remove(&block);
        self.covered.values_mut().for_each(|covered| {
            covered.remove(&block);
        });
    }

    fn request(&mut self, world: &mut World) -> Request {
        let blocks = world.size.blocks;
        // Half of all requests go to an eighth of the disk.
        let space = if world.rng.bool() { blocks / 8 } else { blocks };
        let block = world.rng.u64(0..space);
        let count = world.rng.u64(1..=12).min(blocks - block);
        let fua = world.rng.u32(0..10) == 0;
        match world.rng.u32(0..20) {
            0 | 1 => Request::Flush,
            2 | 3 => {
                let count = (count * 4).min(blocks - block);
                Request::Zero { block, count, fua }
            }
            _ => {
                let again = world.rng.usize(0..LATELY_MAX * 4);
                let tags: Vec<Tag> = if let Some(tags) = self.lately.get(again) {
                    let fits = usize::try_from(blocks - block).expect("disks are small");
                    tags[..tags.len().min(fits)].to_vec()
                } else {
                    let is_shared = world.rng.u32(0..4) == 0;
                    (0..count).map(|_| self.tag(world, is_shared)).collect()
                };
                self.lately.push_back(tags.clone());
                if self.lately.len() > LATELY_MAX {
                    self.lately.pop_front();
                }
                Request::Write { block, tags, fua }
            }
        }
    }

    fn tag(&mut self, world: &mut World, is_shared: bool) -> Tag {
        if is_shared {
            return world.rng.u64(1..SHARED_TAGS);
        }
        self.next_tag += 1;
        self.next_tag
    }

    fn answered(&mut self, id: u64) {
        let Some(request) = self.pending.remove(&id) else { return };
        self.done += 1;
        let unsure = self.unsure.remove(&id).unwrap_or_default();
        let changed: Vec<(u64, Tag)> = match &request {
            Request::Write { block, tags, .. } => (*block..).zip(tags.iter().copied()).collect(),
            Request::Zero { block, count, .. } => {
                (*block..*block + count).map(|block| (block, 0)).collect()
            }
            Request::Flush => Vec::new(),
        };
        let is_fua =
            matches!(request, Request::Write { fua: true, .. } | Request::Zero { fua: true, .. });
        for (block, tag) in changed {
            if !unsure.contains(&block) {
                let certain = if is_fua { &mut self.flushed } else { &mut self.answered };
                certain.insert(block, tag);
            }
        }
        if let Some(covered) = self.covered.remove(&id) {
            self.flushed.extend(covered);
        }
    }
}

impl Request {
    fn touches(&self, at: u64) -> bool {
        match self {
            Self::Write { block, tags, .. } => (*block..*block + tags.len() as u64).contains(&at),
            Self::Zero { block, count, .. } => (*block..*block + count).contains(&at),
            Self::Flush => false,
        }
    }
}

impl World {
    /// The agent answers a request of its guest.
    pub fn answer_guest(&mut self, machine: usize, id: u64) {
        let wait = self.us(5..200);
        self.after(wait, world::Event::Guest(machine, Event::Answered { id }));
    }

    /// The agent answers a request of its guest with an error.
    pub fn fail_guest(&mut self, machine: usize, id: u64) {
        let wait = self.us(5..200);
        self.after(wait, world::Event::Guest(machine, Event::Failed { id }));
    }
}
