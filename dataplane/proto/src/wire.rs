//! Little-endian reading and writing over slices, bounds checked.

use crate::error::DecodeError;
use crate::ids::{Seq, Slot, Stamp};
use crate::limits::SLOT_MAX;

/// Reads fields from a slice in order; every read names the layout for its error.
#[derive(Debug)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`, which hold the layout `what`.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Truncated` if fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(DecodeError::Truncated {
                what: self.what,
                needed: self.at.saturating_add(count),
                have: self.bytes.len(),
            });
        };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// `Truncated` if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A byte.
    ///
    /// # Errors
    /// `Truncated` at the end.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// `Truncated` at the end.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Three bytes.
    ///
    /// # Errors
    /// `Truncated` at the end.
    pub fn u24(&mut self) -> Result<u32, DecodeError> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// `Truncated` at the end.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// `Truncated` at the end.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes that are a place in a stream, or 0: one that has a next.
    ///
    /// # Errors
    /// `Truncated` at the end, `Range` for 2^64 - 1, which no stream reaches.
    pub fn seq(&mut self, what: &'static str) -> Result<Seq, DecodeError> {
        match self.u64()? {
            u64::MAX => Err(DecodeError::Range { what, value: u64::MAX }),
            value => Ok(Seq(value)),
        }
    }

    /// Eight bytes that are a place in a log: one that has others behind it.
    ///
    /// # Errors
    /// `Truncated` at the end, `Range` above [`SLOT_MAX`], which no log reaches.
    pub fn slot(&mut self, what: &'static str) -> Result<Slot, DecodeError> {
        match Slot(self.u64()?) {
            slot if slot > SLOT_MAX => Err(DecodeError::Range { what, value: slot.0 }),
            slot => Ok(slot),
        }
    }

    /// Four bytes that count something, at most `max`.
    ///
    /// # Errors
    /// `Truncated` at the end, `Limit` above `max`.
    pub fn count(&mut self, what: &'static str, max: usize) -> Result<usize, DecodeError> {
        let value = self.u32()?;
        if value as usize > max {
            return Err(DecodeError::Limit { what, value: value.into(), max: max as u64 });
        }
        Ok(value as usize)
    }

    /// Eight bytes of a stamp.
    ///
    /// # Errors
    /// `Truncated` at the end, `Range` for a generation of no life.
    pub fn stamp(&mut self, what: &'static str) -> Result<Stamp, DecodeError> {
        let stamp = Stamp { life: self.u32()?, generation: self.u32()? };
        if stamp.life == 0 && stamp.generation != 0 {
            return Err(DecodeError::Range { what, value: stamp.to_u64() });
        }
        Ok(stamp)
    }

    /// `count` bytes that must be zero.
    ///
    /// # Errors
    /// `Truncated` at the end, `Reserved` if one is not zero.
    pub fn reserved(&mut self, count: usize) -> Result<(), DecodeError> {
        let what = self.what;
        if self.take(count)?.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::Reserved { what });
        }
        Ok(())
    }

    /// The magic of the layout.
    ///
    /// # Errors
    /// `Truncated` at the end, `Magic` if it differs.
    pub fn magic(&mut self, magic: [u8; 4]) -> Result<(), DecodeError> {
        let what = self.what;
        if self.array::<4>()? != magic {
            return Err(DecodeError::Magic { what });
        }
        Ok(())
    }

    /// The version of the layout, which must be `expected`.
    ///
    /// # Errors
    /// `Truncated` at the end, `Version` if it differs.
    pub fn version(&mut self, expected: u16) -> Result<(), DecodeError> {
        let what = self.what;
        let found = self.u16()?;
        if found != expected {
            return Err(DecodeError::Version { what, found });
        }
        Ok(())
    }

    /// Eight bytes of bits for what later programs add: those that a reader must understand, of which this one
    /// knows none, and those that it may ignore, which it gives.
    ///
    /// # Errors
    /// `Truncated` at the end, `Newer` with the lowest bit that must be understood.
    pub fn feature_bits(&mut self) -> Result<u32, DecodeError> {
        let what = self.what;
        let must = self.u32()?;
        if must != 0 {
            let bit = must.trailing_zeros();
            return Err(DecodeError::Newer { what, feature: "feature", bit });
        }
        self.u32()
    }

    /// A byte of flags of a `what`, all of it: the lower half a reader must understand, and this one knows `known`;
    /// the upper it may ignore.
    ///
    /// # Errors
    /// `Truncated` at the end, `Newer` with the lowest bit that must be understood and is not known.
    pub fn flags(&mut self, what: &'static str, known: u8) -> Result<u8, DecodeError> {
        let flags = self.u8()?;
        let unknown = flags & 0x0f & !known;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            return Err(DecodeError::Newer { what, feature: "flag", bit });
        }
        Ok(flags)
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// `Range` with the number of bytes left over.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            left => Err(DecodeError::Range { what: self.what, value: left as u64 }),
        }
    }
}

/// Appends little-endian fields to a vector.
pub trait Put {
    /// Appends one byte.
    fn put_u8(&mut self, value: u8);
    /// Appends two bytes.
    fn put_u16(&mut self, value: u16);
    /// Appends the three low bytes of a number below 2^24.
    fn put_u24(&mut self, value: u32);
    /// Appends four bytes.
    fn put_u32(&mut self, value: u32);
    /// Appends eight bytes.
    fn put_u64(&mut self, value: u64);
    /// Appends a stamp.
    fn put_stamp(&mut self, stamp: Stamp);
    /// Appends the bits of what later programs add: none.
    fn put_feature_bits(&mut self);
    /// Appends bytes as they are.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Appends `count` zero bytes.
    fn put_zeros(&mut self, count: usize);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u24(&mut self, value: u32) {
        let [low @ .., high] = value.to_le_bytes();
        assert_eq!(high, 0, "limits are below");
        self.extend_from_slice(&low);
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_stamp(&mut self, stamp: Stamp) {
        self.put_u32(stamp.life);
        self.put_u32(stamp.generation);
    }

    fn put_feature_bits(&mut self) {
        self.put_zeros(8);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn put_zeros(&mut self, count: usize) {
        self.resize(self.len() + count, 0);
    }
}

/// Appends CRC32C of everything in `bytes` from `from` on.
pub fn put_crc(bytes: &mut Vec<u8>, from: usize) {
    let crc = crc32c::crc32c(&bytes[from..]);
    bytes.put_u32(crc);
}

/// Checks that the last four of `bytes` are CRC32C of those before.
///
/// # Errors
/// `Truncated` under four bytes, `Checksum` if it differs.
pub fn check_crc(what: &'static str, bytes: &[u8]) -> Result<(), DecodeError> {
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(DecodeError::Truncated { what, needed: 4, have: bytes.len() });
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(DecodeError::Checksum { what });
    }
    Ok(())
}
