//! The agent's log: a file header, then write, zero and mark frames in stream order.
//!
//! Layout and order of operations: `docs/formats/hrl.md`.

use crate::bugs::{Bug, is_on};
use crate::error::DecodeError;
use crate::frame::FrameHeader;
use crate::ids::{Seq, VolumeId};
use crate::limits::{FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use crate::wire::{Put, Reader, check_crc, put_crc};

const MAGIC: [u8; 4] = *b"FSHL";
/// Number of the key of bodies that are as they are.
const OPEN: u32 = 0;
const VERSION: u16 = 2;

/// Header of one `.hrl` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HrlHeader {
    /// The volume whose stream this is.
    pub volume: VolumeId,
    /// Seq of the first frame in the file.
    pub first_seq: Seq,
}

impl HrlHeader {
    /// Lays the header out.
    ///
    /// # Panics
    /// Never: the fields add up to the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HRL_HEADER_BYTES] {
        let mut out = Vec::with_capacity(HRL_HEADER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_zeros(2);
        out.put_feature_bits();
        out.put_bytes(&self.volume.0);
        out.put_u64(self.first_seq.0);
        out.put_u32(OPEN);
        out.put_zeros(HRL_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out.try_into().expect("the fields add up to the header")
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Newer` for what a later program asks for; by the field that is wrong.
    pub fn decode(bytes: &[u8; HRL_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("hrl header", bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        check_crc("hrl header", bytes)?;
        reader.reserved(2)?;
        reader.feature_bits()?;
        let header =
            Self { volume: VolumeId(reader.array()?), first_seq: reader.seq("hrl first seq")? };
        let key = reader.u32()?;
        if key != OPEN {
            return Err(DecodeError::Newer { what: "hrl header", feature: "key", bit: key });
        }
        if header.first_seq == Seq(0) {
            return Err(DecodeError::Range { what: "hrl first seq", value: 0 });
        }
        Ok(header)
    }
}

/// Reads the frame at the front of `bytes`: its header and body.
///
/// # Errors
/// `Truncated` if the frame is not whole (the torn tail of a crash), otherwise by the field that
/// is wrong. Frames that are not part of a stream are refused.
pub fn frame_at(bytes: &[u8]) -> Result<(FrameHeader, &[u8]), DecodeError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(DecodeError::Truncated {
            what: "log frame",
            needed: FRAME_HEADER_BYTES,
            have: bytes.len(),
        });
    };
    let header = FrameHeader::decode(header)?;
    if !header.kind.is_stream() {
        return Err(DecodeError::Range { what: "log frame kind", value: 0 });
    }
    let Some(body) = rest.get(..header.body_bytes) else {
        return Err(DecodeError::Truncated {
            what: "log frame",
            needed: FRAME_HEADER_BYTES + header.body_bytes,
            have: bytes.len(),
        });
    };
    if !is_on(Bug::HrlTrustsTornTail) {
        header.check_body(body)?;
    }
    Ok((header, body))
}
