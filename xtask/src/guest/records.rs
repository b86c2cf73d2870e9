//! The records that the demo's guest writes: fixed size, numbered, checksummed.
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | `FARSHREC` |
//! | 8 | 8 | number, little-endian, from 1 without a gap |
//! | 16 | 8 | guest time in ms since 1970, little-endian |
//! | 24 | 4068 | payload: text that follows from the number |
//! | 4092 | 4 | CRC-32C of all before, little-endian |

/// Bytes of one record: one block of the file system, so that a record is there or not.
pub(crate) const RECORD_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"FARSHREC";
const PAYLOAD: std::ops::Range<usize> = 24..RECORD_BYTES - 4;

/// Lays out record `number`, written at `now_ms`.
pub(crate) fn record(number: u64, now_ms: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&now_ms.to_le_bytes());
    fill(number, &mut bytes[PAYLOAD]);
    let sum = crc32c::crc32c(&bytes[..PAYLOAD.end]);
    bytes[PAYLOAD.end..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads the number of a record, or nothing when any of its bytes is not as written.
pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
    let word = |at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
    };
    (*bytes == record(word(8), word(16))).then(|| word(8))
}

/// Writes lines such as an application's log would have: some repetition, some noise.
fn fill(number: u64, payload: &mut [u8]) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut at = 0;
    while at < payload.len() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let line = format!("order={number} item={state:016x} status=accepted\n");
        let part = line.len().min(payload.len() - at);
        payload[at..at + part].copy_from_slice(&line.as_bytes()[..part]);
        at += part;
    }
}

/// What a file of records holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Whole records whose bytes are all as written.
    pub(crate) records: u64,
    /// Number of the last of them, 0 when there is none.
    pub(crate) last: u64,
    /// How often a number was not the one before plus 1.
    pub(crate) gaps: u64,
    /// Records that are there in part or with other bytes.
    pub(crate) torn: u64,
}

/// Reads a file of records.
pub(crate) fn tally(file: &[u8]) -> Tally {
    let mut tally = Tally::default();
    for bytes in file.chunks(RECORD_BYTES) {
        let Some(number) = number(bytes) else {
            tally.torn += 1;
            continue;
        };
        tally.records += 1;
        tally.gaps += u64::from(number != tally.last + 1);
        tally.last = number;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| record(*number, 7)).collect()
    }

    #[test]
    fn counts_what_is_there() {
        let seen = tally(&file(&[1, 2, 3]));
        assert_eq!(seen, Tally { records: 3, last: 3, gaps: 0, torn: 0 });
        assert_eq!(tally(&[]), Tally::default());
    }

    #[test]
    fn finds_a_missing_and_a_repeated_record() {
        assert_eq!(tally(&file(&[1, 3])).gaps, 1);
        assert_eq!(tally(&file(&[1, 1])).gaps, 1);
        assert_eq!(tally(&file(&[2])).gaps, 1);
    }

    #[test]
    fn finds_a_torn_record() {
        let mut whole = file(&[1, 2]);
        assert_eq!(tally(&whole[..whole.len() - 1]).torn, 1);
        whole[RECORD_BYTES + 100] ^= 1;
        assert_eq!(tally(&whole), Tally { records: 1, last: 1, gaps: 0, torn: 1 });
    }
}
