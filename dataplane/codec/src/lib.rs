//! The CPU work of Farshore's data plane: cutting, hashing, compressing, sealing, and building and
//! opening the sealed objects of the vault.
//!
//! Everything here works on slices: no I/O, no clock, no threads. Layouts come from
//! `farshore_proto`; what is authenticated by what is in `docs/formats/`.
//!
//! Rules that the types hold up:
//! - **A nonce is used once under a key (I9).** Only a [`seal::Sealer`] seals. It draws its own
//!   salt, so its key is new; it owns its counters; it cannot be cloned or remade from a salt.
//!   A key made from a salt that was read ([`seal::OpenKey`]) can only open.
//! - **Nothing that was not authenticated is returned.** Objects are opened for a place (vault,
//!   log, slot, volume) that the caller names, never for the one that the object claims.
//! - **Nothing is allocated on the word of unauthenticated bytes** beyond the limits of
//!   `farshore_proto::limits`.

#![forbid(unsafe_code)]

pub mod base;
pub mod checkpoint;
pub mod chunk;
pub mod compress;
pub mod digest;
pub mod epoch;
mod error;
pub mod group;
pub mod horizon;
pub mod id;
pub mod index_run;
pub mod journal;
pub mod kek;
pub mod keys;
pub mod machine;
pub mod map;
mod object;
pub mod register;
pub mod revision;
pub mod seal;
pub mod segment;
pub mod zero;

pub use chunk::Chunker;
pub use compress::Compressor;
pub use error::{CodecError, Place};
pub use id::ChunkHasher;
pub use kek::{KekError, WrappingKey};
pub use keys::{
    ChunkKey, DataKey, IdKey, KeyRing, OtherKey, RootKey, SealKeys, VaultKey, VaultKeys,
};
pub use object::seal_bytes;
pub use segment::{Built, Opener, SegmentBuilder};
