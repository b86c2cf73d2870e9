//! Ids, units, limits and byte layouts of Farshore's data plane.
//!
//! Every byte that crosses a wire or reaches a disk is laid out here by hand, little-endian, with
//! its version readable before anything else is decoded. The documents are in `docs/formats/`; the
//! bytes are pinned by the golden files in `testdata/`. This crate does no I/O, knows no other
//! crate of the workspace and allocates only what a checked length allows.

#![forbid(unsafe_code)]

pub mod base;
pub mod bugs;
pub mod checkpoint;
pub mod epoch;
pub mod error;
pub mod frame;
mod front;
pub mod group;
pub mod horizon;
pub mod hrl;
pub mod ids;
pub mod index_run;
pub mod journal;
pub mod keys;
pub mod limits;
pub mod machine;
pub mod map;
pub mod mark;
pub mod object;
pub mod register;
pub mod revision;
pub mod sections;
pub mod segment;
pub mod targets;
pub mod vault;
pub mod wire;

pub use error::{DecodeError, ErrorKind};
pub use ids::{
    Attempt, BlockRange, ChunkId, Domain, Epoch, GroupId, Imprint, KeyNumber, LogId, MachineId,
    MapAttempt, MarkAttempt, MarkKind, OtherKind, Place, PointId, RunId, Seq, Slot, Stamp,
    Timestamp, VaultId, VolumeId,
};
pub use targets::Target;
