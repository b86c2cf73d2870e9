//! Checksums put right, as an attacker would, or an accident that a checksum does not find.

/// Writes the CRC32C of everything before it into the four bytes that end at `end`.
pub(crate) fn put_right(bytes: &mut [u8], end: usize) {
    let crc = crc32c::crc32c(&bytes[..end - 4]);
    bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
}

/// Calls `with` with the bytes as they are and, if they reach to `end`, with the checksum there put
/// right.
pub(crate) fn both(bytes: &[u8], end: usize, with: impl Fn(&[u8])) {
    with(bytes);
    if bytes.len() >= end {
        let mut right = bytes.to_vec();
        put_right(&mut right, end);
        with(&right);
    }
}
