//! Who lets history go: makes bases that keep some points, moves horizons, condemns and deletes what nothing needs, again and again, beside
//! writers, takeovers, readers and trouble of the store. All of it is the vault's own; it is killed and stopped like any other, and
//! begins anew. Chance is its own.

use crate::control::volume_of;
use crate::store::at_once;
use crate::world::{self, Process, World};
use farshore_proto::{PointId, Slot};
use farshore_vault::view::Point;
use farshore_vault::{Vault, VaultError, base, gc, horizon, register};
use std::ops::Range;
use std::time::Duration;

/// What happens to the sweeper.
#[derive(Debug)]
pub enum Event {
    /// It may go on.
    Go,
    /// It is stopped, for so long.
    Stopped(Duration),
    /// It goes on.
    GoesOn,
    /// What it did, or why it could not.
    Done(Result<Did, VaultError>),
}

/// What a turn came to.
#[derive(Debug)]
pub enum Did {
    /// A base was made, or could not be yet.
    Base(Option<u64>),
    /// Horizons were moved.
    Horizons(u64),
    /// A step of a deletion.
    Step(gc::Step),
}

/// The sweeper.
#[derive(Debug)]
pub struct Sweeper {
    rng: fastrand::Rng,
    is_busy: bool,
    is_over: bool,
}

/// Between two turns, in microseconds.
const PAUSE_US: Range<u64> = 50_000..900_000;
/// How long it is stopped, in microseconds.
const STOPPED_US: Range<u64> = 100_000..9_000_000;
/// Steps at the end of a run.
const STEPS_MAX: usize = 12;

/// Whether the policy keeps a point; the newest that a base covers is kept all the same.
#[must_use]
pub fn is_kept(point: PointId) -> bool {
    point.0.iter().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte)) % 4 == 0
}

impl Sweeper {
    /// A sweeper that has done nothing.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), is_busy: false, is_over: false }
    }

    /// No further turns.
    pub fn stop(&mut self) {
        self.is_over = true;
    }

    fn us(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range))
    }

    /// Carries out an event.
    pub fn handle(&mut self, world: &mut World, event: Event) {
        let process = Process::Sweeper;
        match event {
            Event::Go => {
                if !self.is_busy && !self.is_over {
                    self.turn(world);
                }
                let pause = self.us(PAUSE_US);
                world.after(pause, world::Event::Sweeper(Event::Go));
            }
            Event::Stopped(time) => {
                if !self.is_over {
                    world.tell(process, || format!("is stopped for {time:?}"));
                    world.pause(process);
                    world.after(time, world::Event::Sweeper(Event::GoesOn));
                }
            }
            Event::GoesOn => world.resume(process),
            Event::Done(done) => {
                self.is_busy = false;
                world.tell(process, || format!("{done:?}"));
                if let Ok(did) = &done {
                    world.oracle.swept(did);
                }
            }
        }
    }

    fn turn(&mut self, world: &mut World) {
        self.is_busy = true;
        let (vault, machine) =
            (world.store.sweepers_vault(), self.rng.usize(0..world.size.machines));
        let what = self.rng.u32(0..8);
        world.spawn(Process::Sweeper, async move {
            let done = match what {
                0 | 1 => {
                    let keeps = |point: &Point| is_kept(point.id);
                    base::renew(&vault, volume_of(machine), keeps).await.map(Did::Base)
                }
                2 | 3 => let_go(&vault).await.map(Did::Horizons),
                _ => gc::step(&vault).await.map(Did::Step),
            };
            world::Event::Sweeper(Event::Done(done))
        });
        // What it has read grows old while it is stopped.
        if self.rng.u32(0..8) == 0 {
            let (wait, time) = (self.us(0..400_000), self.us(STOPPED_US));
            world.after(wait, world::Event::Sweeper(Event::Stopped(time)));
        }
    }
}

/// Moves the horizons of all logs as far as they may.
async fn let_go(vault: &Vault) -> Result<u64, VaultError> {
    let mut moved = 0;
    for log in register::newest(vault, 0).await?.state.logs.into_keys() {
        let to = horizon::let_go(vault, log, Slot(u64::MAX)).await?;
        moved += u64::from(matches!(to, horizon::Moved::To(_)));
    }
    Ok(moved)
}

impl World {
    /// At the end of a run, past every fault: what may go goes.
    pub fn sweep(&mut self) {
        let vault = self.store.direct();
        for machine in 0..self.size.machines {
            let keeps = |point: &Point| is_kept(point.id);
            match at_once(base::renew(&vault, volume_of(machine), keeps)) {
                Ok(number) => self.oracle.swept(&Did::Base(number)),
                Err(error) => {
                    return self.oracle.violate("I4", format!("no base is made: {error}"));
                }
            }
        }
        match at_once(let_go(&vault)) {
            Ok(moved) => self.oracle.swept(&Did::Horizons(moved)),
            Err(error) => {
                return self.oracle.violate("I4", format!("no horizon is moved: {error}"));
            }
        }
        for _ in 0..STEPS_MAX {
            match at_once(gc::step(&vault)) {
                Ok(step) => {
                    let is_over = matches!(step, gc::Step::Nothing | gc::Step::Waiting { .. });
                    self.tell(Process::Sweeper, || format!("{step:?}"));
                    self.oracle.swept(&Did::Step(step));
                    if is_over {
                        return;
                    }
                }
                Err(error) => {
                    return self.oracle.violate("I4", format!("nothing is deleted: {error}"));
                }
            }
        }
    }
}
