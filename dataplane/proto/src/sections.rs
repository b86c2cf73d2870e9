//! Sections: how the body of an object is divided, so that later programs can add to it.
//!
//! Layout and rules: `docs/formats/object.md`.

use crate::error::DecodeError;
use crate::limits::SECTIONS_MAX;
use crate::wire::{Put, Reader};

/// Bytes in front of the records of a section.
pub const SECTION_HEAD_BYTES: usize = 16;
const MUST_UNDERSTAND: u16 = 1;

/// What a reader knows of a kind of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionKind {
    /// Its number.
    pub number: u16,
    /// Bytes of a record as this program writes it.
    pub stride: usize,
    /// Most records.
    pub max: usize,
    /// Its name, for errors.
    pub what: &'static str,
}

/// Lays out sections, in the order of their kinds.
#[derive(Debug, Default)]
pub struct SectionWriter {
    out: Vec<u8>,
    last: Option<u16>,
}

impl SectionWriter {
    /// Without sections, with room for `bytes`.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: Vec::with_capacity(bytes), last: None }
    }

    /// Adds a section that a reader must understand; nothing if it has no records.
    ///
    /// # Panics
    /// If kinds do not ascend, or `put` does not give `count` whole records within the limit: bugs in the caller.
    pub fn put(&mut self, kind: &SectionKind, count: usize, put: impl FnOnce(&mut Vec<u8>)) {
        assert!(self.last.is_none_or(|last| last < kind.number), "sections ascend");
        assert!(count <= kind.max, "{} have a limit", kind.what);
        if count == 0 {
            return;
        }
        self.last = Some(kind.number);
        let narrow = |value: usize| u32::try_from(value).expect("limits fit 32 bits");
        self.out.put_u16(kind.number);
        self.out.put_u16(MUST_UNDERSTAND);
        self.out.put_u32(narrow(kind.stride));
        self.out.put_u32(narrow(count));
        self.out.put_zeros(4);
        let start = self.out.len();
        put(&mut self.out);
        assert_eq!(self.out.len() - start, kind.stride * count, "whole {}", kind.what);
    }

    /// The body.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// The records of a section.
#[derive(Debug, Clone, Copy)]
struct Section<'a> {
    number: u16,
    stride: usize,
    count: usize,
    bytes: &'a [u8],
}

/// The sections of a body that are known.
#[derive(Debug, Clone)]
pub struct Sections<'a> {
    what: &'static str,
    found: Vec<Section<'a>>,
}

impl<'a> Sections<'a> {
    /// Reads the heads of all sections of `body`, which is that of a `what`, knowing these kinds.
    ///
    /// # Errors
    /// `Newer` for one that is not known and must be understood; by the field that is wrong.
    pub fn read(
        what: &'static str,
        body: &'a [u8],
        known: &[SectionKind],
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(what, body);
        let mut found: Vec<Section<'a>> = Vec::with_capacity(known.len());
        let mut last = None;
        let mut sections = 0;
        while reader.left() > 0 {
            sections += 1;
            if sections > SECTIONS_MAX {
                let max = SECTIONS_MAX as u64;
                return Err(DecodeError::Limit { what: "sections", value: max + 1, max });
            }
            let number = reader.u16()?;
            if last.is_some_and(|last| number <= last) {
                return Err(DecodeError::Range { what: "section order", value: number.into() });
            }
            last = Some(number);
            let flags = reader.u16()?;
            if flags & !MUST_UNDERSTAND != 0 {
                return Err(DecodeError::Reserved { what: "section flags" });
            }
            let stride = reader.u32()? as usize;
            let count = reader.u32()? as usize;
            reader.reserved(4)?;
            let bytes = stride.checked_mul(count).filter(|_| stride > 0);
            let Some(bytes) = bytes else {
                return Err(DecodeError::Range { what: "section stride", value: stride as u64 });
            };
            let bytes = reader.take(bytes)?;
            match known.iter().find(|kind| kind.number == number) {
                Some(kind) => {
                    check(kind, flags, stride, count)?;
                    found.push(Section { number, stride, count, bytes });
                }
                None if flags & MUST_UNDERSTAND != 0 => {
                    let bit = number.into();
                    return Err(DecodeError::Newer { what, feature: "section", bit });
                }
                None => {}
            }
        }
        Ok(Self { what, found })
    }

    /// The records of a section, each a reader over all that this program knows of it; none if the section is
    /// not there.
    pub fn records(
        &self,
        kind: &SectionKind,
    ) -> impl ExactSizeIterator<Item = Reader<'a>> + use<'a> {
        let section = self.found.iter().find(|section| section.number == kind.number);
        let (bytes, stride, count) =
            section.map_or((&[][..], kind.stride, 0), |s| (s.bytes, s.stride, s.count));
        let (known, what) = (kind.stride, kind.what);
        (0..count).map(move |at| Reader::new(what, &bytes[at * stride..][..known]))
    }

    /// The only record of a section that has exactly one.
    ///
    /// # Errors
    /// `Range` if it has another number of them.
    pub fn record(&self, kind: &SectionKind) -> Result<Reader<'a>, DecodeError> {
        let mut records = self.records(kind);
        match (records.next(), records.len()) {
            (Some(record), 0) => Ok(record),
            _ => Err(DecodeError::Range { what: self.what, value: kind.number.into() }),
        }
    }

    /// All bytes of a section of single bytes.
    #[must_use]
    pub fn bytes(&self, kind: &SectionKind) -> Vec<u8> {
        debug_assert_eq!(kind.stride, 1, "single bytes");
        let section = self.found.iter().find(|section| section.number == kind.number);
        section.map_or_else(Vec::new, |section| {
            section.bytes.iter().step_by(section.stride).copied().collect()
        })
    }
}

fn check(kind: &SectionKind, flags: u16, stride: usize, count: usize) -> Result<(), DecodeError> {
    // All that are known have it; without it there would be two ways to write one.
    if flags != MUST_UNDERSTAND {
        return Err(DecodeError::Range { what: "section flags", value: flags.into() });
    }
    if stride < kind.stride {
        return Err(DecodeError::Range { what: kind.what, value: stride as u64 });
    }
    if count > kind.max {
        let (value, max) = (count as u64, kind.max as u64);
        return Err(DecodeError::Limit { what: kind.what, value, max });
    }
    // An empty one is written by leaving it out.
    if count == 0 {
        return Err(DecodeError::Range { what: kind.what, value: 0 });
    }
    Ok(())
}
