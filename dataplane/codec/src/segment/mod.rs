//! Building and opening segments, fills and seals. Layout: `farshore_proto::segment`.
//!
//! What is bound to what:
//! - The object's key comes from the data key, the salt, and the place: vault, log and slot.
//! - Header and table are those of any object (`crate::object`).
//! - A frame's AAD is its place and shape (56 bytes: vault 16, log 16, slot 8, frame 4, bytes before
//!   compression 4, compression 1, zeros 7). Its nonce is `Frame` and the frame's number.
//! - A chunk's bytes hash to its id, which the table holds.
//!
//! So an object, a table or a frame put in another's place does not open.

mod build;
mod open;

pub use build::{Built, SegmentBuilder, slot_without_data};
pub use open::{Opener, chunk_of};

use farshore_proto::object::ObjectPlace;
use farshore_proto::segment::SegmentFrame;
use farshore_proto::wire::Put;

const FRAME_AAD_BYTES: usize = 56;

fn frame_aad(place: &ObjectPlace, number: u32, frame: &SegmentFrame) -> Vec<u8> {
    let mut aad = Vec::with_capacity(FRAME_AAD_BYTES);
    aad.put_bytes(&place.vault.0);
    aad.put_bytes(&place.subject);
    aad.put_u64(place.number);
    aad.put_u32(number);
    aad.put_u32(frame.raw_bytes);
    aad.put_u8(frame.compression.code());
    aad.put_zeros(FRAME_AAD_BYTES - aad.len());
    aad
}

#[cfg(test)]
mod tests;
