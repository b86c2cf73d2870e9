//! The object `vault`: who a vault is, what its data is made with, and its dedup domains.
//!
//! Layout and rules: `docs/formats/vault.md`.

use crate::error::DecodeError;
use crate::front::{self, Front};
use crate::ids::{Domain, KeyNumber, VaultId};
use crate::keys::KeyKind;
use crate::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, CHUNK_BLOCKS_MIN, CHUNK_CUT_BLOCKS, DOMAINS_MAX,
    SEGMENT_FRAME_BYTES,
};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader, put_crc};

const WHAT: &str = "vault object";
const MAGIC: [u8; 4] = *b"FSVT";
/// Bytes of the header of a vault object of this program.
pub const VAULT_HEADER_BYTES: usize = 48;
const PARAMETERS: SectionKind =
    SectionKind { number: 1, stride: 32, max: 1, what: "parameters of the vault" };
const DOMAINS: SectionKind =
    SectionKind { number: 2, stride: 16, max: DOMAINS_MAX, what: "domains of the vault" };

/// What the data of a vault is made with: for as long as the vault lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Shortest chunk that a cut makes, in blocks.
    pub chunk_blocks_min: u32,
    /// One block in this many ends a chunk.
    pub chunk_cut_blocks: u32,
    /// Longest chunk, in blocks.
    pub chunk_blocks_max: u32,
    /// Bytes of chunks that close a frame.
    pub frame_bytes: u32,
    /// How chunk ids are made: 1 BLAKE3-256, keyed.
    pub hash: u8,
    /// How bytes are sealed: 1 AES-256-GCM.
    pub aead: u8,
    /// How they are compressed: 1 zstd.
    pub compression: u8,
    /// The year in the contexts that keys are derived under.
    pub context_year: u16,
    /// The version in them.
    pub context_version: u16,
}

/// A limit of this program as a parameter; evaluated when it is built.
const fn narrow(value: u64) -> u32 {
    assert!(value < 1 << 32, "parameters have 32 bits");
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl Parameters {
    /// Those that this program works with.
    pub const THIS: Self = Self {
        block_bytes: narrow(BLOCK_BYTES as u64),
        chunk_blocks_min: narrow(CHUNK_BLOCKS_MIN as u64),
        chunk_cut_blocks: narrow(CHUNK_CUT_BLOCKS),
        chunk_blocks_max: narrow(CHUNK_BLOCKS_MAX as u64),
        frame_bytes: narrow(SEGMENT_FRAME_BYTES as u64),
        hash: 1,
        aead: 1,
        compression: 1,
        context_year: 2026,
        context_version: 2,
    };

    /// Each by its name.
    fn named(self) -> [(&'static str, u32); 10] {
        [
            ("block bytes", self.block_bytes),
            ("shortest chunk", self.chunk_blocks_min),
            ("blocks for each cut", self.chunk_cut_blocks),
            ("longest chunk", self.chunk_blocks_max),
            ("frame bytes", self.frame_bytes),
            ("hash", self.hash.into()),
            ("cipher", self.aead.into()),
            ("compression", self.compression.into()),
            ("year of key contexts", self.context_year.into()),
            ("version of key contexts", self.context_version.into()),
        ]
    }

    /// Whether this program works with them.
    ///
    /// # Errors
    /// `Parameter` naming the first that is another.
    pub fn check(self) -> Result<(), DecodeError> {
        for ((name, found), (_, expected)) in self.named().into_iter().zip(Self::THIS.named()) {
            if found != expected {
                return Err(DecodeError::Parameter { what: WHAT, name, found, expected });
            }
        }
        Ok(())
    }

    fn put(self, out: &mut Vec<u8>) {
        out.put_u32(self.block_bytes);
        out.put_u32(self.chunk_blocks_min);
        out.put_u32(self.chunk_cut_blocks);
        out.put_u32(self.chunk_blocks_max);
        out.put_u32(self.frame_bytes);
        out.put_u8(self.hash);
        out.put_u8(self.aead);
        out.put_u8(self.compression);
        out.put_zeros(1);
        out.put_u16(self.context_year);
        out.put_u16(self.context_version);
        out.put_zeros(4);
    }

    fn read(mut record: Reader<'_>) -> Result<Self, DecodeError> {
        let mut parameters = Self {
            block_bytes: record.u32()?,
            chunk_blocks_min: record.u32()?,
            chunk_cut_blocks: record.u32()?,
            chunk_blocks_max: record.u32()?,
            frame_bytes: record.u32()?,
            hash: record.u8()?,
            aead: record.u8()?,
            compression: record.u8()?,
            context_year: 0,
            context_version: 0,
        };
        record.reserved(1)?;
        parameters.context_year = record.u16()?;
        parameters.context_version = record.u16()?;
        record.reserved(4)?;
        Ok(parameters)
    }
}

/// A dedup domain of a vault, and the keys that it began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainKeys {
    /// The domain.
    pub domain: Domain,
    /// The key that its chunk ids and cuts come from.
    pub root: KeyNumber,
    /// Its first data key.
    pub data: KeyNumber,
}

impl DomainKeys {
    /// Those of the domain that each vault has.
    pub const FIRST: Self = Self { domain: Domain::FIRST, root: KeyNumber(1), data: KeyNumber(2) };

    /// What each of its keys is for.
    #[must_use]
    pub fn roles(&self) -> [(KeyNumber, (Domain, KeyKind)); 2] {
        [(self.root, (self.domain, KeyKind::Root)), (self.data, (self.domain, KeyKind::Data))]
    }
}

/// The number of the first data key of a new vault's own.
pub const OWN_KEY: KeyNumber = KeyNumber(3);

/// The vault object: written once when the vault is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultObject {
    /// Identity of the vault.
    pub vault: VaultId,
    /// The first data key of its own: what is of no domain is sealed under it, and what says of anything in the vault
    /// whether it is authentic comes from it.
    pub own_key: KeyNumber,
    /// What its data is made with.
    pub parameters: Parameters,
    /// Its dedup domains, in ascending order; the first is 1.
    pub domains: Vec<DomainKeys>,
}

impl VaultObject {
    /// That of a new vault.
    #[must_use]
    pub fn new(vault: VaultId) -> Self {
        let (parameters, domains) = (Parameters::THIS, vec![DomainKeys::FIRST]);
        Self { vault, own_key: OWN_KEY, parameters, domains }
    }

    /// The keys that it names: which domain each is of, and what for.
    pub fn roles(&self) -> impl Iterator<Item = (KeyNumber, (Domain, KeyKind))> {
        let own = (self.own_key, (Domain::OWN, KeyKind::Data));
        std::iter::once(own).chain(self.domains.iter().flat_map(DomainKeys::roles))
    }

    /// The highest number of a key that it names: all up to it are there.
    #[must_use]
    pub fn last_key(&self) -> KeyNumber {
        self.roles().map(|(number, _)| number).fold(self.own_key, KeyNumber::max)
    }

    /// Lays the object out.
    ///
    /// # Panics
    /// If it has more domains than a vault may have: the caller checks that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = SectionWriter::with_capacity(128);
        body.put(&PARAMETERS, 1, |out| self.parameters.put(out));
        body.put(&DOMAINS, self.domains.len(), |out| {
            self.domains.iter().for_each(|keys| put_domain(out, keys));
        });
        let body = body.finish();
        let mut out = Vec::with_capacity(VAULT_HEADER_BYTES + body.len() + 4);
        front::put(&mut out, MAGIC, VAULT_HEADER_BYTES, 0, self.vault, body.len());
        out.put_u32(self.own_key.0);
        out.put_zeros(VAULT_HEADER_BYTES - out.len());
        out.put_bytes(&body);
        put_crc(&mut out, 0);
        out
    }

    /// Reads the object.
    ///
    /// # Errors
    /// `Version`, `Newer` and `Parameter` for that of a vault which this program does not know how to
    /// use; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut front = Front::read(WHAT, MAGIC, VAULT_HEADER_BYTES, bytes)?;
        let own_key = KeyNumber(front.fields.u32()?);
        front.fields.reserved(front.fields.left())?;
        let sections = Sections::read(WHAT, front.body, &[PARAMETERS, DOMAINS])?;
        let parameters = Parameters::read(sections.record(&PARAMETERS)?)?;
        parameters.check()?;
        let domains = take_domains(&sections, &DOMAINS, own_key)?;
        Ok(Self { vault: front.vault, own_key, parameters, domains })
    }
}

/// Lays one domain out.
pub(crate) fn put_domain(out: &mut Vec<u8>, keys: &DomainKeys) {
    out.put_u32(keys.domain.0);
    out.put_u32(keys.root.0);
    out.put_u32(keys.data.0);
    out.put_zeros(4);
}

/// Reads the domains of a section: they ascend from the first, and none has the vault's own key.
pub(crate) fn take_domains(
    sections: &Sections<'_>,
    section: &SectionKind,
    own_key: KeyNumber,
) -> Result<Vec<DomainKeys>, DecodeError> {
    let mut domains: Vec<DomainKeys> = Vec::with_capacity(1);
    for mut record in sections.records(section) {
        let keys = DomainKeys {
            domain: Domain(record.u32()?),
            root: KeyNumber(record.u32()?),
            data: KeyNumber(record.u32()?),
        };
        record.reserved(4)?;
        check_domain(domains.last(), &keys, own_key)?;
        domains.push(keys);
    }
    if domains.is_empty() {
        return Err(DecodeError::Range { what: section.what, value: 0 });
    }
    Ok(domains)
}

fn check_domain(
    last: Option<&DomainKeys>,
    keys: &DomainKeys,
    own_key: KeyNumber,
) -> Result<(), DecodeError> {
    let is_next = match last {
        None => keys.domain == Domain::FIRST,
        Some(last) => keys.domain > last.domain,
    };
    if !is_next {
        return Err(DecodeError::Range { what: "order of domains", value: keys.domain.0.into() });
    }
    let numbers = [own_key, keys.root, keys.data];
    let is_twice = keys.root == keys.data || numbers[1..].contains(&own_key);
    if numbers.iter().any(|number| number.0 == 0) || is_twice {
        return Err(DecodeError::Range { what: "keys of a domain", value: keys.data.0.into() });
    }
    Ok(())
}
