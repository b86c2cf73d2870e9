//! Revisions of a vault: what its write-once object cannot say, as it was not so when the vault was made.
//!
//! Layout and rules: `docs/formats/revision.md`.

use crate::error::DecodeError;
use crate::ids::{KeyNumber, VaultId};
use crate::limits::{DOMAINS_MAX, ERASED_KEYS_MAX, KEY_NUMBER_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::vault::{DomainKeys, put_domain, take_domains};
use crate::wire::{Put, Reader};
use std::ops::RangeInclusive;

const HEAD: SectionKind = SectionKind { number: 1, stride: 24, max: 1, what: "revision head" };
const DOMAINS: SectionKind =
    SectionKind { number: 2, stride: 16, max: DOMAINS_MAX, what: "domains of a revision" };
const ERASED: SectionKind =
    SectionKind { number: 3, stride: 8, max: ERASED_KEYS_MAX, what: "erased keys" };

/// The place of the revision of a vault with a number, from 1.
#[must_use]
pub fn place(vault: VaultId, number: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Revision, vault, subject: vault.0, number, part: 0 }
}

/// What a revision says. It stands for all in front of it, and for what the object `vault` says of keys and domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionBody {
    /// The writer's wall clock; shown to people, never used for order.
    pub time_unix_ms: u64,
    /// The vault's own data key that new objects go by.
    pub own_key: KeyNumber,
    /// The highest number of a key that may be used: all up to it are wrapped by whatever opens the vault, but for
    /// those that were erased.
    pub last_key: KeyNumber,
    /// The dedup domains, in ascending order, each with the data key that new objects of it go by; the first is 1.
    pub domains: Vec<DomainKeys>,
    /// Numbers of the keys that were erased on purpose, in ascending order, none of them the vault's own.
    pub erased: Vec<RangeInclusive<u32>>,
}

impl RevisionBody {
    /// Whether a key was erased on purpose.
    #[must_use]
    pub fn is_erased(&self, key: KeyNumber) -> bool {
        let at = self.erased.partition_point(|numbers| *numbers.end() < key.0);
        self.erased.get(at).is_some_and(|numbers| numbers.contains(&key.0))
    }

    /// The keys that are to be there.
    pub fn keys(&self) -> impl Iterator<Item = KeyNumber> {
        (1..=self.last_key.0).map(KeyNumber).filter(|key| !self.is_erased(*key))
    }

    /// Lays the body out.
    ///
    /// # Panics
    /// If there is more of something than its limit: the caller asks first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(128);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.time_unix_ms);
            out.put_u32(self.own_key.0);
            out.put_u32(self.last_key.0);
            out.put_zeros(8);
        });
        out.put(&DOMAINS, self.domains.len(), |out| {
            self.domains.iter().for_each(|keys| put_domain(out, keys));
        });
        out.put(&ERASED, self.erased.len(), |out| {
            for numbers in &self.erased {
                out.put_u32(*numbers.start());
                out.put_u32(*numbers.end());
            }
        });
        out.finish()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; `Range` for a key that is not there, and for one of the
    /// vault's own that was erased; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read("revision body", bytes, &[HEAD, DOMAINS, ERASED])?;
        let mut head = sections.record(&HEAD)?;
        let time_unix_ms = head.u64()?;
        let (own_key, last_key) = (KeyNumber(head.u32()?), KeyNumber(head.u32()?));
        head.reserved(8)?;
        if last_key.0 > KEY_NUMBER_MAX {
            let (value, max) = (last_key.0.into(), KEY_NUMBER_MAX.into());
            return Err(DecodeError::Limit { what: "keys of a revision", value, max });
        }
        let domains = take_domains(&sections, &DOMAINS, own_key)?;
        let erased = take_erased(sections.records(&ERASED), last_key)?;
        let body = Self { time_unix_ms, own_key, last_key, domains, erased };
        let firsts = body.domains.iter().flat_map(|keys| [keys.root, keys.data]);
        if let Some(key) = firsts.chain([own_key]).find(|key| *key > last_key) {
            return Err(DecodeError::Range { what: "key of a revision", value: key.0.into() });
        }
        if body.is_erased(own_key) {
            return Err(DecodeError::Range { what: "erased keys", value: own_key.0.into() });
        }
        Ok(body)
    }
}

fn take_erased<'a>(
    records: impl Iterator<Item = Reader<'a>>,
    last_key: KeyNumber,
) -> Result<Vec<RangeInclusive<u32>>, DecodeError> {
    let mut erased: Vec<RangeInclusive<u32>> = Vec::new();
    for mut record in records {
        let (first, last) = (record.u32()?, record.u32()?);
        // Ranges that meet would be one: there is one way to say it.
        let floor = erased.last().map_or(1, |before| before.end().saturating_add(2));
        if first < floor || last < first || last > last_key.0 {
            return Err(DecodeError::Range { what: "erased keys", value: first.into() });
        }
        erased.push(first..=last);
    }
    Ok(erased)
}
