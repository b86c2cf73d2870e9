//! The simulator: agent, node and vault protocol on a simulated network, disk, store and clock.
//!
//! One seed is one run. Everything happens on one thread, in an order that only the seed decides:
//!
//! - [`world::World`] has the clock, the queue of events, the random numbers, and what processes share:
//!   [`net`], the object [`store`], the [`oracle`], the [`trace`]. Time is virtual: it jumps from
//!   event to event.
//! - A *process* ([`agent::Agent`], [`node::Node`]) is a driver around the production engines. It has
//!   one door, `handle(&mut self, world, event)`, does a little and returns; whatever takes time it
//!   puts into the queue as an event for itself. Between any two events it can be killed, paused, or
//!   lose its power. Events of an earlier *life* of a process are dropped by the world.
//! - Durable things live on a [`disk::Disk`], which knows what was synced. A kill keeps everything
//!   written, a power cut keeps what was synced and a random part of the rest.
//! - Calls of the vault are `async`: [`world::World::spawn`] runs them on the world's own executor, and
//!   what they return comes back as an event. A request that has reached the store happens there even
//!   if whoever sent it is dead by then.
//! - The [`reader`] opens views of volumes while all of that goes on, as a restore or an export does.
//! - The [`catalog`] keeps the points that are told of, by clocks that step.
//! - [`faults`] breaks things for a while, then stops; [`run`] waits until the system has converged, and
//!   [`oracle`] has judged every step meanwhile.

#![forbid(unsafe_code)]

pub mod agent;
pub mod campaign;
pub mod catalog;
pub mod control;
pub mod disk;
pub mod failover;
pub mod faults;
pub mod guest;
pub mod net;
pub mod node;
pub mod oracle;
pub mod reader;
pub mod run;
pub mod store;
pub mod sweeper;
mod tasks;
pub mod trace;
pub mod world;
