//! Disk images: made from a seed, compared byte for byte.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::random::Random;

/// Bytes of a block, the unit of capture and of the oracle.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// What an image holds.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// Nothing but zeros, as a sparse file.
    Zeros,
    /// Bytes that do not compress.
    Random(u64),
    /// Text that compresses.
    Text(u64),
    /// By turns 256 KiB of random bytes, of text, of zeros and of what was there before.
    Mixed(u64),
}

const STRETCH_BYTES: usize = 256 << 10;

/// Writes an image of `bytes`.
///
/// # Errors
/// If the file cannot be written.
pub fn make(path: &Path, bytes: u64, content: Content) -> Result<()> {
    let context = || format!("write {}", path.display());
    let file = File::create(path).with_context(context)?;
    if matches!(content, Content::Zeros) {
        return file.set_len(bytes).with_context(context);
    }
    let mut out = BufWriter::new(file);
    let mut left = bytes;
    let mut number = 0;
    while left > 0 {
        let stretch = stretch(content, number);
        let part = left.min(stretch.len() as u64);
        out.write_all(&stretch[..usize::try_from(part)?]).with_context(context)?;
        left -= part;
        number += 1;
    }
    out.into_inner().with_context(context)?.sync_all().with_context(context)
}

fn stretch(content: Content, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; STRETCH_BYTES];
    match (content, number % 4) {
        (Content::Random(seed), _) | (Content::Mixed(seed), 0) => {
            Random::new(seed ^ (number << 20)).fill(&mut bytes);
        }
        (Content::Text(seed), _) | (Content::Mixed(seed), 1) => {
            text(&mut Random::new(seed ^ (number << 20)), &mut bytes);
        }
        (Content::Mixed(_), 3) => return stretch(content, number - 3),
        (Content::Zeros | Content::Mixed(_), _) => {}
    }
    bytes
}

/// Fills with lines such as a log has.
pub fn text(random: &mut Random, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let line = format!("GET /item/{} 200 {}ms\n", random.below(10_000), random.below(300));
        let part = line.len().min(bytes.len() - at);
        bytes[at..at + part].copy_from_slice(&line.as_bytes()[..part]);
        at += part;
    }
}

/// Compares two files.
///
/// # Errors
/// If they differ, saying where and how much; or if one cannot be read.
pub fn compare(left: &Path, right: &Path) -> Result<()> {
    let size = |path: &Path| {
        path.metadata().map(|m| m.len()).with_context(|| format!("look at {}", path.display()))
    };
    let (left_bytes, right_bytes) = (size(left)?, size(right)?);
    let (mut a, mut b) = (blocks(left)?, blocks(right)?);
    let (mut differing, mut first) = (0_u64, None);
    for number in 0_u64.. {
        let (block_a, block_b) = (next(&mut a)?, next(&mut b)?);
        if block_a.is_empty() || block_b.is_empty() {
            break;
        }
        if block_a != block_b {
            differing += 1;
            first.get_or_insert(number);
        }
    }
    if left_bytes != right_bytes || differing > 0 {
        bail!(
            "{} ({left_bytes} bytes) and {} ({right_bytes} bytes) differ in {differing} blocks of \
             {BLOCK_BYTES}, the first is {first:?}",
            left.display(),
            right.display()
        );
    }
    Ok(())
}

/// Opens a file to be read block by block with [`next`].
///
/// # Errors
/// If it cannot be opened.
pub fn blocks(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

/// The next block: whole, or shorter at the end, or empty behind it.
///
/// # Errors
/// If it cannot be read.
pub fn next(reader: &mut impl Read) -> Result<Vec<u8>> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    reader.take(BLOCK_BYTES as u64).read_to_end(&mut block).context("read a block")?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_follow_from_their_seed_and_differences_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        make(&path("a"), 3 * MIB + 4096, Content::Mixed(5)).unwrap();
        make(&path("b"), 3 * MIB + 4096, Content::Mixed(5)).unwrap();
        make(&path("c"), 3 * MIB + 4096, Content::Mixed(6)).unwrap();
        compare(&path("a"), &path("b")).unwrap();
        assert!(compare(&path("a"), &path("c")).unwrap_err().to_string().contains("differ"));
        make(&path("d"), 3 * MIB, Content::Mixed(5)).unwrap();
        assert!(compare(&path("a"), &path("d")).is_err());
    }
}
