//! The index run: sorted chunk ids and where the vault holds the chunks. Derived.
//!
//! Layout and rules: `docs/formats/index-run.md`.

use crate::error::DecodeError;
use crate::ids::{RunId, VaultId};
use crate::limits::{INDEX_RUN_CHUNKS_MAX, REGISTER_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::register::At;
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::targets::{STORED, StoredChunk, TARGETS, put_stored, take_stored};

/// The place of a run.
#[must_use]
pub fn place(vault: VaultId, run: RunId) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::IndexRun, vault, subject: run.0, number: 0, part: 0 }
}

const HEAD: SectionKind = SectionKind { number: 1, stride: 16, max: 1, what: "index run head" };

/// Body of an index run, opened: chunks of committed segments, each id once, in order of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexRun {
    /// No verdict of the vault's register up to this entry names a segment of it.
    pub applied: At,
    /// The chunks.
    pub chunks: Vec<StoredChunk>,
}

impl IndexRun {
    /// Lays the body out.
    ///
    /// # Panics
    /// If a number or a count is over its limit or the ids are not in order: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.chunks.len() <= INDEX_RUN_CHUNKS_MAX, "a run holds so many chunks");
        assert!(self.chunks.is_sorted_by(|a, b| a.id < b.id), "each id once, in order");
        assert!(self.applied.number <= REGISTER_MAX, "entries of the register have a limit");
        let mut out = SectionWriter::with_capacity(96 + self.chunks.len() * 48);
        out.put(&HEAD, 1, |out| self.applied.put(out));
        put_stored(&mut out, &self.chunks);
        out.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read("index run body", bytes, &[HEAD, TARGETS, STORED])?;
        let applied = At::take(&mut sections.record(&HEAD)?, "index run applied")?;
        let chunks = take_stored(&sections, INDEX_RUN_CHUNKS_MAX)?;
        if !chunks.is_sorted_by(|a, b| a.id < b.id) {
            return Err(DecodeError::Range { what: "index run order", value: 0 });
        }
        Ok(Self { applied, chunks })
    }
}
