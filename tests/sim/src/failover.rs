//! Unplanned failovers: a volume is taken from every writer while its node goes on, hangs or is dead, its
//! end is read, and some time later it goes back. The fence is the vault's own
//! ([`farshore_vault::fence`]), and so is what every writer makes of it; the steps around it are those of the
//! control plane.
//!
//! No node says here that it let the volume go: its log is sealed each time.

use crate::control::volume_of;
use crate::world::{self, Process, World};
use farshore_proto::{Epoch, ErrorKind};
use farshore_vault::fence::{FenceError, Fenced, fence_volume};
use std::ops::Range;

/// What happens to the failover of a server's volume.
#[derive(Debug)]
pub enum Event {
    /// The vault is asked for the fence.
    Fence(usize),
    /// How that ended.
    Ended(usize, Epoch, Box<Result<Fenced, FenceError>>),
    /// It is cleaned up: the volume goes back to a node.
    CleanUp(usize),
}

/// How long the node has to let the volume go, in microseconds.
const LETTING_GO_US: Range<u64> = 0..4_000_000;
/// Between two tries, in microseconds.
const AGAIN_US: Range<u64> = 200_000..1_500_000;
/// How long what was failed over is used, in microseconds.
const USED_US: Range<u64> = 100_000..8_000_000;

impl World {
    /// The volume of a server is failed over, unless it is already or nobody can be asked for it.
    pub fn fail_over(&mut self, machine: usize) {
        let Some(epoch) = self.fence_in_catalogue(machine) else { return };
        self.tell("control", || format!("volume {machine} is fenced under epoch {epoch}"));
        self.failover_soon(LETTING_GO_US, Event::Fence(machine));
    }

    fn failover_soon(&mut self, wait: Range<u64>, event: Event) {
        let wait = self.us(wait);
        self.after(wait, world::Event::Failover(event));
    }

    /// Carries out an event of a failover.
    pub fn handle_failover(&mut self, event: Event) {
        if self.control.is_away() {
            // The next start of the control plane, or the next round of it, goes on.
            return self.failover_soon(AGAIN_US, event);
        }
        match event {
            Event::Fence(machine) => self.fence_in_vault(machine),
            Event::Ended(machine, epoch, ended) => self.fence_ended(machine, epoch, *ended),
            Event::CleanUp(machine) => self.clean_up(machine),
        }
    }

    fn fence_in_vault(&mut self, machine: usize) {
        let Some(epoch) = self.control.fence(machine) else { return };
        let vault = self.store.vault();
        self.spawn(Process::Failover, async move {
            let ended = fence_volume(&vault, volume_of(machine), epoch, None).await;
            world::Event::Failover(Event::Ended(machine, epoch, Box::new(ended)))
        });
    }

    fn fence_ended(&mut self, machine: usize, epoch: Epoch, ended: Result<Fenced, FenceError>) {
        match ended {
            Ok(Fenced { end, sealed }) => {
                self.tell("control", || {
                    format!(
                        "volume {machine} ends at {} under epoch {epoch}: {sealed:?}",
                        end.last_seq
                    )
                });
                self.oracle.fenced(machine, epoch, end.last_seq);
                self.failover_soon(USED_US, Event::CleanUp(machine));
            }
            Err(FenceError::Epoch { newest, .. }) => {
                self.control.raise_fence(machine, newest.next());
                self.failover_soon(AGAIN_US, Event::Fence(machine));
            }
            // Nothing of it is in the vault yet: there is nothing to fail over.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.failover_soon(AGAIN_US, Event::CleanUp(machine));
            }
            Err(error) => {
                self.tell("control", || format!("volume {machine} is not fenced: {error:?}"));
                self.failover_soon(AGAIN_US, Event::Fence(machine));
            }
        }
    }

    fn clean_up(&mut self, machine: usize) {
        if self.control.end_fence(machine) {
            let node = self.control.owner(machine).node;
            self.assign(machine, node);
        }
    }
}
