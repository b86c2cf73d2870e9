//! zstd over slices: reused contexts, incompressible bytes left alone, no bombs.

use crate::error::CodecError;
use farshore_proto::segment::Compression;
use std::cell::RefCell;
use std::fmt;
use std::io::Cursor;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, ResetDirective};

/// Compressed bytes are kept only if they save at least one part in this many.
const SAVING_PARTS: usize = 16;

/// No window of ours is larger: the largest thing compressed is a table of 16 MiB.
const WINDOW_LOG_MAX: u32 = 24;

/// Bytes that the probe looks at, in runs spread over the input.
const PROBE_BYTES: usize = 4096;
const PROBE_RUN_BYTES: usize = 64;

/// Chi-squared of the probe's byte counts below which the bytes look random. For random bytes it is
/// 255 ± 23; compressed files stay below 400, machine code and text are far above 1000.
const PROBE_CHI_SQUARED_MAX: u64 = 400;

/// Compresses with one level and one zstd context, used again and again.
pub struct Compressor {
    context: CCtx<'static>,
    level: i32,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor of a level; levels that zstd does not know become the nearest it does.
    ///
    /// # Panics
    /// If memory for the context runs out.
    #[must_use]
    pub fn new(level: i32) -> Self {
        let mut compressor = Self { context: CCtx::create(), level: 0 };
        compressor.set_level(level);
        compressor
    }

    /// The level in use.
    #[must_use]
    pub fn level(&self) -> i32 {
        self.level
    }

    /// Changes the level for what comes next.
    ///
    /// # Panics
    /// If zstd refuses a level within its own bounds.
    pub fn set_level(&mut self, level: i32) {
        self.level = level.clamp(zstd_safe::min_c_level(), zstd_safe::max_c_level());
        self.context
            .set_parameter(CParameter::CompressionLevel(self.level))
            .expect("the level was clamped to what zstd knows");
    }

    /// Appends `raw` to `out`, compressed if that saves at least 1/16, and says which.
    ///
    /// Bytes that look random in a sample are not even tried: about 4 µs in place of the time zstd
    /// takes to find out.
    ///
    /// # Errors
    /// `Internal` if zstd fails; `out` is as before then.
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Compression, CodecError> {
        let start = out.len();
        if !looks_random(raw) {
            out.reserve(zstd_safe::compress_bound(raw.len()));
            let mut cursor = Cursor::new(std::mem::take(out));
            cursor.set_position(start as u64);
            let result = self.context.compress2(&mut cursor, raw);
            *out = cursor.into_inner();
            let Ok(bytes) = result else {
                out.truncate(start);
                // A failed frame stays open in the context; resetting the session cannot fail.
                let _ = self.context.reset(ResetDirective::SessionOnly);
                return Err(CodecError::Compressor { bytes: raw.len() });
            };
            out.truncate(start + bytes);
            if bytes <= raw.len() - raw.len().div_ceil(SAVING_PARTS) {
                return Ok(Compression::Zstd);
            }
            out.truncate(start);
        }
        out.extend_from_slice(raw);
        Ok(Compression::Raw)
    }
}

/// Whether a sample of the bytes is spread as evenly as random bytes are.
fn looks_random(raw: &[u8]) -> bool {
    if raw.len() < PROBE_BYTES {
        return false;
    }
    let mut counts = [0_u64; 256];
    let runs = PROBE_BYTES / PROBE_RUN_BYTES;
    for run in 0..runs {
        let at = (raw.len() - PROBE_RUN_BYTES) * run / (runs - 1);
        for byte in &raw[at..at + PROBE_RUN_BYTES] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let expected = (PROBE_BYTES / 256) as u64;
    let squares: u64 = counts.iter().map(|count| count.abs_diff(expected).pow(2)).sum();
    squares / expected < PROBE_CHI_SQUARED_MAX
}

thread_local! {
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Appends to `out` the `raw_bytes` bytes that `stored` holds.
///
/// `raw_bytes` was recorded beside the bytes and bounded by its decoder; `max` is the limit of the
/// thing being opened and is checked again. `what` names it in errors.
///
/// Nothing is allocated before the compressed bytes themselves say that they are one zstd frame of
/// exactly `raw_bytes`, with a window within ours, and nothing behind it.
///
/// # Errors
/// `Limit` if `raw_bytes` is over `max`; `Corrupt` if the bytes are not what was recorded. `out` is
/// as before then.
pub fn decompress(
    what: &'static str,
    compression: Compression,
    stored: &[u8],
    raw_bytes: usize,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    if raw_bytes > max {
        return Err(CodecError::Limit { what, value: raw_bytes as u64, max: max as u64 });
    }
    match compression {
        Compression::Raw if stored.len() == raw_bytes => {
            out.extend_from_slice(stored);
            Ok(())
        }
        Compression::Raw => {
            Err(CodecError::Length { what, expected: raw_bytes as u64, found: stored.len() as u64 })
        }
        Compression::Zstd => {
            check_frame(what, stored, raw_bytes)?;
            let start = out.len();
            out.reserve_exact(raw_bytes);
            let mut cursor = Cursor::new(std::mem::take(out));
            cursor.set_position(start as u64);
            let result = CONTEXT.with_borrow_mut(|context| context.decompress(&mut cursor, stored));
            *out = cursor.into_inner();
            if result == Ok(raw_bytes) && out.len() == start + raw_bytes {
                return Ok(());
            }
            out.truncate(start);
            Err(CodecError::Compressed { what })
        }
    }
}

/// Checks that `stored` says it is one zstd frame of `raw_bytes` and nothing else.
fn check_frame(what: &'static str, stored: &[u8], raw_bytes: usize) -> Result<(), CodecError> {
    let damaged = CodecError::Compressed { what };
    let Ok(Some(claimed)) = zstd_safe::get_frame_content_size(stored) else {
        return Err(damaged);
    };
    if claimed != raw_bytes as u64 {
        return Err(CodecError::Length { what, expected: raw_bytes as u64, found: claimed });
    }
    if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
        return Err(damaged);
    }
    // RFC 8878 §3.1.1.1: byte 4 is the frame header descriptor; its bit 5 says that the content
    // is its own window, else byte 5 holds the window's exponent above 10 in its high five bits.
    let (Some(descriptor), Some(window)) = (stored.get(4), stored.get(5)) else {
        return Err(damaged);
    };
    let window_log = 10 + u32::from(window >> 3);
    if descriptor & 0x20 == 0 && window_log > WINDOW_LOG_MAX {
        return Err(CodecError::Limit { what, value: 1 << window_log, max: 1 << WINDOW_LOG_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
