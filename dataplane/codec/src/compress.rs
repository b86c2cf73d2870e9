//! zstd over slices: reused contexts, incompressible bytes left alone, no bombs.

use crate::error::CodecError;
use farshore_proto::object::Compression;
use std::cell::RefCell;
use std::fmt;
use std::io::Cursor;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, InBuffer, OutBuffer, ResetDirective};

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

/// What is compressed in one step of a [`Pass`]: as much as a block of zstd holds.
const STEP_BYTES: usize = 128 << 10;

/// A compression that is done in steps: half a megabyte at once takes longer than an ack may.
#[derive(Debug)]
pub struct Pass {
    /// Where the output begins.
    start: usize,
    /// Input that zstd has taken.
    taken: usize,
    is_tried: bool,
}

impl Pass {
    /// Length of the output before this pass.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }
}

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

    /// Room that `raw_bytes` may take in the output, whatever they are.
    #[must_use]
    pub fn bound(raw_bytes: usize) -> usize {
        zstd_safe::compress_bound(raw_bytes)
    }

    /// Appends `raw` to `out`, compressed if that saves at least 1/16, and says which.
    ///
    /// Bytes that look random in a sample are not even tried: about 4 µs in place of the time zstd
    /// takes to find out.
    ///
    /// # Errors
    /// `Internal` if zstd fails; `out` is as before then.
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Compression, CodecError> {
        let mut pass = self.begin(raw, out)?;
        loop {
            if let Some(compression) = self.step(&mut pass, raw, out)? {
                return Ok(compression);
            }
        }
    }

    /// Begins what [`Self::compress`] does at once. A pass that was begun before is given up.
    ///
    /// # Errors
    /// As [`Self::compress`].
    pub fn begin(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Pass, CodecError> {
        let pass = Pass { start: out.len(), taken: 0, is_tried: !looks_random(raw) };
        if pass.is_tried {
            out.reserve(Self::bound(raw.len()));
            let begun = self.context.reset(ResetDirective::SessionOnly).and_then(|_| {
                // Readers want the size in the frame.
                self.context.set_pledged_src_size(Some(raw.len() as u64))
            });
            begun.map_err(|_| CodecError::Compressor { bytes: raw.len() })?;
        }
        Ok(pass)
    }

    /// Compresses some more of `raw` onto `out`, both as they were left; says how it ended when that was
    /// the last of it.
    ///
    /// # Errors
    /// As [`Self::compress`].
    pub fn step(
        &mut self,
        pass: &mut Pass,
        raw: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Compression>, CodecError> {
        if pass.is_tried {
            let end = raw.len().min(pass.taken + STEP_BYTES);
            if self.feed(&raw[pass.taken..end], end == raw.len(), out).is_none() {
                out.truncate(pass.start);
                return Err(CodecError::Compressor { bytes: raw.len() });
            }
            pass.taken = end;
            if end < raw.len() {
                return Ok(None);
            }
            if out.len() - pass.start <= raw.len() - raw.len().div_ceil(SAVING_PARTS) {
                return Ok(Some(Compression::Zstd));
            }
            out.truncate(pass.start);
        }
        out.extend_from_slice(raw);
        Ok(Some(Compression::Raw))
    }

    /// Has zstd take `bytes`, the last of a frame or not; `None` if it fails.
    fn feed(&mut self, bytes: &[u8], is_last: bool, out: &mut Vec<u8>) -> Option<()> {
        let mut input = InBuffer::around(bytes);
        let directive = if is_last {
            ZSTD_EndDirective::ZSTD_e_end
        } else {
            ZSTD_EndDirective::ZSTD_e_continue
        };
        loop {
            let at = out.len();
            let mut output = OutBuffer::around_pos(out, at);
            let left = self.context.compress_stream2(&mut output, &mut input, directive).ok()?;
            let is_done = if is_last { left == 0 } else { input.pos == bytes.len() };
            if is_done {
                return Some(());
            }
            // The bound of the whole is reserved; a zstd that wants more than that gets it.
            out.reserve(STEP_BYTES);
        }
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
