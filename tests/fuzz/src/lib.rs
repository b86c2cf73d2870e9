//! One fuzz target per decoder of bytes that come from outside, and what drives them.
//!
//! A target is a function over any bytes. It decodes them as its decoder's callers would and panics
//! if the decoder does what no decoder may: panic, read on behind the end, take two encodings for
//! one value, return something that a checksum or seal should have refused. Where bytes are under a
//! checksum, a target tries them as they are and once more with the checksum put right, so that a
//! fuzzer gets behind it.
//!
//! The same targets run in three ways:
//!
//! - `tests/corpus.rs`, with every `cargo xtask test`: the kept corpus, then some thousands of
//!   mutations of it ([`mutate`]), the same ones every time, with a bound on memory.
//! - `cargo xtask fuzz TARGET`: guided by coverage, with libFuzzer, for as long as one likes.
//! - `cargo xtask fuzz TARGET --replay FILE`: one input again.
//!
//! What they found is kept in `corpus/TARGET/`.

#![forbid(unsafe_code)]

mod checksum;
mod later;
pub mod mutate;
mod targets;

pub use targets::TARGETS;

use std::cell::Cell;
use std::path::PathBuf;

thread_local! {
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// Says that a decoder took what it was given; a target that never comes here tests refusals only.
fn taken() {
    TAKEN.set(true);
}

/// Longest input that is worth trying, in bytes.
pub const INPUT_BYTES_MAX: usize = 16 << 10;

/// Whether a decoder took anything since the last call.
#[must_use]
pub fn was_taken() -> bool {
    TAKEN.take()
}

/// One decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Decodes any bytes.
    pub run: fn(&[u8]),
    /// Good bytes to begin with.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Most memory that one input may take, in bytes, besides the input itself. It covers what the
    /// target needs to check the result.
    pub memory_bytes_max: usize,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Target {
    /// The target of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.iter().find(|target| target.name == name).copied()
    }

    /// Its folder in the kept corpus.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).join(self.name)
    }
}
