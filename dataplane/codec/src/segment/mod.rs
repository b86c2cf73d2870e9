//! Building and opening segments, fills and seals. Layout: `farshore_proto::segment`.
//!
//! What is bound to what:
//! - The object's key comes from the data key, the salt, and the place: vault, log and slot.
//! - Header and table are those of any object (`crate::object`).
//! - A frame's AAD is its place and shape (56 bytes: vault 16, log 16, slot 8, frame 4, bytes before
//!   compression 4, compression 1, zeros 7). Its nonce is `Frame` and the frame's number. Behind it in the object
//!   is the salt, so that who knows its place needs nothing else of the segment.
//! - A chunk's bytes hash to its id, which the table holds.
//!
//! So an object, a table or a frame put in another's place does not open.

mod build;
pub(crate) mod frame;
mod open;

pub use build::{Built, SegmentBuilder, slot_without_data};
pub use frame::open_frame_at;
pub use open::{Opener, chunk_of};

#[cfg(test)]
mod tests;
