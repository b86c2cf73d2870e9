//! Learning of a disk's changes and putting them into the volume's log.
//!
//! Two ways: the [`splitter`] sits in front of the disk as an NBD server and sees every write; the
//! [`scan`] reads the whole disk again and again. Both put whole 4 KiB blocks into the log, and both
//! keep to one promise: a mark is set only where the log, up to it, is the disk.

pub mod blocks;
pub mod change;
pub mod copy;
mod flush;
pub mod gate;
pub mod hashes;
pub mod intent;
pub mod prints;
pub mod progress;
pub mod ranges;
pub mod sample;
pub mod scan;
pub mod splitter;
mod steps;
#[cfg(test)]
mod testing;
mod underway;
pub mod unknown;
mod void_note;

pub use steps::{Call, Step, Steps};
