//! The bitmap of an overlay in memory.

use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of bitmap that are written to `flushed` together.
pub(super) const PAGE_BYTES: usize = BLOCK_BYTES;
const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// One bit per block, set once and never cleared.
#[derive(Debug)]
pub(super) struct Bits {
    words: Vec<AtomicU64>,
    /// Pages with bits that are not in `flushed` yet.
    changed: Mutex<BTreeSet<usize>>,
}

/// Pages of a bitmap: byte offset and content.
pub(super) type Pages = Vec<(u64, Vec<u8>)>;

/// Bytes of the bitmap of a volume, whole pages.
pub(super) fn bitmap_bytes(size_bytes: u64) -> u64 {
    (size_bytes / BLOCK_BYTES as u64).div_ceil(8).next_multiple_of(PAGE_BYTES as u64)
}

impl Bits {
    /// The bitmap of bytes that were read from the map.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let words = bytes.chunks_exact(8).map(|word| {
            AtomicU64::new(u64::from_le_bytes(word.try_into().expect("chunks of eight")))
        });
        Self { words: words.collect(), changed: Mutex::default() }
    }

    pub(super) fn is_set(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words[word].load(Ordering::Acquire) & bit != 0
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Whether all bits of a range are set.
    pub(super) fn holds_all(&self, range: BlockRange) -> bool {
        (range.block..range.end()).all(|block| self.is_set(block))
    }

    /// Sets the bits of a range.
    pub(super) fn set(&self, range: BlockRange) {
        let mut pages = BTreeSet::new();
        for block in range.block..range.end() {
            let (word, bit) = place(block);
            // A rewritten block must be synced again, but its bit is in the file already.
            if self.words[word].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                pages.insert(word / PAGE_WORDS);
            }
        }
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut pages);
    }

    /// Notes that all pages with a set bit differ from `flushed`.
    pub(super) fn change_all(&self) {
        let is_used =
            |page: &[AtomicU64]| page.iter().any(|word| word.load(Ordering::Relaxed) != 0);
        let used = self.words.chunks(PAGE_WORDS).enumerate().filter(|(_, page)| is_used(page));
        let mut used = used.map(|(page, _)| page).collect();
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut used);
    }

    /// The pages that changed since the last call, as they are now.
    pub(super) fn take_changed(&self) -> Pages {
        let changed =
            std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        let pages = changed.into_iter().map(|page| {
            let from = page * PAGE_WORDS;
            ((page * PAGE_BYTES) as u64, self.bytes(from, from + PAGE_WORDS))
        });
        pages.collect()
    }

    /// The words that hold a range, with its bits set: byte offset and content.
    pub(super) fn words_with(&self, range: BlockRange) -> (u64, Vec<u8>) {
        let (from, _) = place(range.block);
        let (last, _) = place(range.end() - 1);
        let mut bytes = self.bytes(from, last + 1);
        for block in range.block..range.end() {
            let at = block - (from * 64) as u64;
            bytes[usize::try_from(at / 8).expect("inside the words")] |= 1 << (at % 8);
        }
        ((from * 8) as u64, bytes)
    }

    fn bytes(&self, from: usize, to: usize) -> Vec<u8> {
        let words = self.words[from..to].iter();
        words.flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect()
    }
}

fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).expect("a volume has fewer blocks"), 1 << (block % 64))
}
