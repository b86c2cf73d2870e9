//! A vault by the real writers, and what is left of it when its bytes are damaged: flipped, cut,
//! grown, swapped, put in each other's places, taken away.
//!
//! After every damage every recovery point either reads as the model says, or its reading ends in an
//! error that names the damaged object and the offset; a point that does not need what is damaged
//! reads; `verify` names object and offset. Covers D1, D2, D3 and S5 of `docs/fault-model.md`; the
//! outcomes are those of `docs/damage.md`. Here and not beside the vault, because restores and exports of
//! the same vault are held to it too.
//!
//! Of the same vault: what a restore does on a file system that lacks something, D22.
#![allow(clippy::unwrap_used, reason = "test code")]

mod check;
mod flips;
mod lacking;
mod local;
mod loops;
mod losses;
mod needs;
mod places;
mod world;
mod write;
