//! Files of a node by the real writers, and what is left of them when their bytes are damaged: the
//! journal, and the index of known chunks. Covers D1, D2, D3 and D6 of `docs/fault-model.md`; the
//! outcomes are those of `docs/damage.md`.
#![allow(clippy::unwrap_used, reason = "test code")]

mod index;
mod journal;
