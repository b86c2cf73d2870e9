//! Sans-IO state machines of the data plane.
//!
//! Each machine is a plain struct with one door, `step(now, input, &mut out)`: it does no I/O, reads
//! no clock, sees no payload bytes, and ends with `check()`. The drivers in `node` and `agent` carry
//! out what it says; the simulator is another driver.

#![forbid(unsafe_code)]

pub mod assignments;
pub mod batch;
pub mod claims;
pub mod doubt;
pub mod gathering;
pub mod ledger;
pub mod lineage;
pub mod log;
pub mod maps;
pub mod register;
pub mod sampler;
pub mod shard;
pub mod silence;
pub mod source;
pub mod standing;
pub mod stream;
pub mod tenure;
pub mod waiting;
