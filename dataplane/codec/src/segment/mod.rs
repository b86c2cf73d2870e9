//! Building and opening segments and seals. Layout: `farshore_proto::segment`.
//!
//! What is bound to what:
//! - The object's key comes from the data key, the salt, and the place: vault, log and slot.
//! - The table's AAD is the object's header, all of it. Its nonce is `Table` 0.
//! - A frame's AAD is its place and shape (56 bytes: vault 16, log 16, slot 8, frame 4, bytes before
//!   compression 4, compression 1, zeros 7). Its nonce is `Frame` and the frame's number.
//! - A chunk's bytes hash to its id, which the table holds.
//!
//! So an object, a table or a frame put in another's place does not open.

mod build;
mod open;

pub use build::{Built, Load, SegmentBuilder, seal_object};
pub use open::{Opener, chunk_of};

use crate::error::Place;
use farshore_proto::segment::{Compression, SegmentFrame};
use farshore_proto::wire::Put;
use farshore_proto::{LogId, Slot, VaultId};

const FRAME_AAD_BYTES: usize = 56;

/// The place of an object in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct At {
    vault: VaultId,
    log: LogId,
    slot: Slot,
}

impl At {
    fn place(self) -> Place {
        Place::Slot { vault: self.vault, log: self.log, slot: self.slot }
    }

    /// Calls `with` with the context that the object's key is derived in.
    fn with_context<T>(self, with: impl FnOnce(&[&[u8]]) -> T) -> T {
        with(&[&self.vault.0, &self.log.0, &self.slot.0.to_le_bytes()])
    }

    fn frame_aad(self, number: u32, frame: &SegmentFrame) -> Vec<u8> {
        let mut aad = Vec::with_capacity(FRAME_AAD_BYTES);
        aad.put_bytes(&self.vault.0);
        aad.put_bytes(&self.log.0);
        aad.put_u64(self.slot.0);
        aad.put_u32(number);
        aad.put_u32(frame.raw_bytes);
        aad.put_u8(match frame.compression {
            Compression::Raw => 0,
            Compression::Zstd => 1,
        });
        aad.put_zeros(FRAME_AAD_BYTES - aad.len());
        aad
    }
}

#[cfg(test)]
mod tests;
