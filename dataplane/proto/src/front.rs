//! What the plain objects of a vault (identity, wrapped keys) begin and end with.
//!
//! ```text
//! magic 4, version 2, header length 2, must understand 4, may ignore 4, vault 16, body length 4
//! fields of the kind, then fields of later programs, up to the header length
//! body
//! CRC32C of all before it 4
//! ```

use crate::error::DecodeError;
use crate::ids::VaultId;
use crate::limits::OBJECT_HEADER_BYTES_MAX;
use crate::wire::{Put, Reader, check_crc};

const VERSION: u16 = 2;
/// Bytes in front of the fields of the kind.
const FRONT_BYTES: usize = 36;
const CRC_BYTES: usize = 4;

/// An object taken apart. Its checksum fits, and it is of no version or feature that is not known.
#[derive(Debug)]
pub(crate) struct Front<'a> {
    pub(crate) vault: VaultId,
    pub(crate) may_ignore: u32,
    /// The fields of the kind that this program knows.
    pub(crate) fields: Reader<'a>,
    /// Those of later programs.
    pub(crate) more: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl<'a> Front<'a> {
    /// Reads an object whose header has `known` bytes or more.
    pub(crate) fn read(
        what: &'static str,
        magic: [u8; 4],
        known: usize,
        object: &'a [u8],
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(what, object);
        reader.magic(magic)?;
        reader.version(VERSION)?;
        let header_bytes = usize::from(reader.u16()?);
        let mut features = Reader::new(what, reader.take(8)?);
        let vault = VaultId(reader.array()?);
        let body_bytes = reader.u32()? as usize;
        let needed = header_bytes.max(known).saturating_add(body_bytes).saturating_add(CRC_BYTES);
        if object.len() < needed {
            return Err(DecodeError::Truncated { what, needed, have: object.len() });
        }
        check_crc(what, object)?;
        let may_ignore = features.feature_bits()?;
        if header_bytes > OBJECT_HEADER_BYTES_MAX {
            let (value, max) = (header_bytes as u64, OBJECT_HEADER_BYTES_MAX as u64);
            return Err(DecodeError::Limit { what, value, max });
        }
        if header_bytes < known || !header_bytes.is_multiple_of(8) || object.len() > needed {
            return Err(DecodeError::Range { what, value: header_bytes as u64 });
        }
        let (header, rest) = object.split_at(header_bytes);
        let (header, more) = header.split_at(known);
        let fields = Reader::new(what, &header[FRONT_BYTES..]);
        let body = &rest[..body_bytes];
        Ok(Self { vault, may_ignore, fields, more, body })
    }
}

/// Lays out the front of an object whose header and body have so many bytes.
pub(crate) fn put(
    out: &mut Vec<u8>,
    magic: [u8; 4],
    header_bytes: usize,
    may_ignore: u32,
    vault: VaultId,
    body_bytes: usize,
) {
    out.put_bytes(&magic);
    out.put_u16(VERSION);
    out.put_u16(u16::try_from(header_bytes).expect("a header has at most 512 bytes"));
    out.put_u32(0);
    out.put_u32(may_ignore);
    out.put_bytes(&vault.0);
    out.put_u32(u32::try_from(body_bytes).expect("small objects have small bodies"));
}
