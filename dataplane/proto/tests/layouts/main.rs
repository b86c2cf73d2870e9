//! The byte layouts of the data plane from outside: pinned bytes, round trips, damage.
//!
//! Covers D1, D2 and N3 of `docs/fault-model.md` and T3, T5 of `docs/threat-model.md`, as far as a
//! decoder can.

mod bases;
mod bodies;
mod canonical;
mod checkpoints;
mod damage;
mod derived;
mod golden;
mod identity;
mod later;
mod machines;
mod maps;
mod newer;
mod registers;
mod revisions;
mod roundtrip;
mod samples;
mod tables;
