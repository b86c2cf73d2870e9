//! Sizes of writes and how often each is drawn.

use crate::amount::{Bytes, NotAnAmount};
use crate::limits::{MIX_SIZES_MAX, WRITE_BYTES_MAX};
use farshore_proto::limits::BLOCK_BYTES;
use std::fmt;
use std::str::FromStr;

/// Sizes of writes and the share of each among all writes, in percent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// Blocks and percent of each size.
    parts: Vec<(u32, u32)>,
}

/// Why a text is no mix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MixError {
    /// A size cannot be read.
    #[error("block size: {0}")]
    Amount(#[from] NotAnAmount),
    /// A size that the protocol does not carry.
    #[error(
        "a block size of {size} cannot be sent: choose a multiple of {BLOCK_BYTES} up to \
         {}",
        Bytes(WRITE_BYTES_MAX)
    )]
    Size {
        /// The size.
        size: Bytes,
    },
    /// A share that is no percentage.
    #[error("`{text}` is not a share: write whole percent from 1 to 100, as in 4KiB:70,64KiB:30")]
    Share {
        /// What was given.
        text: String,
    },
    /// The shares do not make a whole.
    #[error("the shares of the block sizes add up to {sum}, not to 100")]
    Sum {
        /// What they add up to.
        sum: u32,
    },
    /// Too many sizes.
    #[error("{count} block sizes are more than {MIX_SIZES_MAX}")]
    Count {
        /// How many there are.
        count: usize,
    },
}

impl Mix {
    /// Mean bytes of a write.
    #[must_use]
    pub fn mean_bytes(&self) -> f64 {
        let weighted: u64 =
            self.parts.iter().map(|(blocks, share)| u64::from(*blocks) * u64::from(*share)).sum();
        // Below 2^53 by far: 256 blocks and 100 percent.
        #[expect(clippy::cast_precision_loss, reason = "the sum is small")]
        let mean = weighted as f64 * BLOCK_BYTES as f64 / 100.0;
        mean
    }

    /// Blocks of the largest write.
    #[must_use]
    pub fn blocks_max(&self) -> u32 {
        self.parts.iter().map(|(blocks, _)| *blocks).max().unwrap_or(1)
    }

    /// Blocks of a write, by a number that was drawn from 0 to 99.
    #[must_use]
    pub fn draw(&self, percent: u32) -> u32 {
        let mut below = 0;
        for (blocks, share) in &self.parts {
            below += share;
            if percent < below {
                return *blocks;
            }
        }
        self.parts.last().map_or(1, |(blocks, _)| *blocks)
    }
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, MixError> {
        let pieces: Vec<&str> = text.split(',').collect();
        if pieces.len() > MIX_SIZES_MAX {
            return Err(MixError::Count { count: pieces.len() });
        }
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let (size, share) = match piece.split_once(':') {
                Some((size, share)) => (size, percent(share)?),
                None if pieces.len() == 1 => (*piece, 100),
                None => return Err(MixError::Share { text: (*piece).to_owned() }),
            };
            parts.push((blocks(size.parse()?)?, share));
        }
        match parts.iter().map(|(_, share)| share).sum() {
            100 => Ok(Self { parts }),
            sum => Err(MixError::Sum { sum }),
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (blocks, share)) in self.parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let size = Bytes(u64::from(*blocks) * BLOCK_BYTES as u64);
            write!(formatter, "{comma}{size}")?;
            if self.parts.len() > 1 {
                write!(formatter, ":{share}")?;
            }
        }
        Ok(())
    }
}

fn percent(text: &str) -> Result<u32, MixError> {
    let share = text.trim().trim_end_matches('%').parse().ok();
    share
        .filter(|share| (1..=100).contains(share))
        .ok_or_else(|| MixError::Share { text: text.to_owned() })
}

fn blocks(size: Bytes) -> Result<u32, MixError> {
    let is_legal =
        size.0 > 0 && size.0 <= WRITE_BYTES_MAX && size.0.is_multiple_of(BLOCK_BYTES as u64);
    let blocks = u32::try_from(size.0 / BLOCK_BYTES as u64).ok();
    blocks.filter(|_| is_legal).ok_or(MixError::Size { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_size_is_all_writes() {
        let mix: Mix = "16KiB".parse().unwrap();
        assert_eq!((mix.draw(0), mix.draw(99), mix.blocks_max()), (4, 4, 4));
        assert!((mix.mean_bytes() - 16_384.0).abs() < 1e-9);
        assert_eq!(mix.to_string(), "16KiB");
    }

    #[test]
    fn each_size_is_drawn_as_often_as_its_share_says() {
        let mix: Mix = "4KiB:70,64KiB:25%,1MiB:5".parse().unwrap();
        let drawn: Vec<u32> = (0..100).map(|percent| mix.draw(percent)).collect();
        for (blocks, share) in [(1, 70), (16, 25), (256, 5)] {
            assert_eq!(drawn.iter().filter(|drawn| **drawn == blocks).count(), share);
        }
        assert!((mix.mean_bytes() - 4096.0 * (0.7 + 16.0 * 0.25 + 256.0 * 0.05)).abs() < 1e-6);
        assert_eq!(mix.to_string().parse::<Mix>().unwrap(), mix);
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for bad in ["0", "512", "5000", "1025KiB", "2MiB"] {
            assert!(matches!(bad.parse::<Mix>(), Err(MixError::Size { .. })), "{bad}");
        }
        assert!(matches!("x".parse::<Mix>(), Err(MixError::Amount(_))));
        for bad in ["4KiB:0,8KiB:100", "4KiB:101", "4KiB:x", "4KiB,8KiB:50"] {
            assert!(matches!(bad.parse::<Mix>(), Err(MixError::Share { .. })), "{bad}");
        }
        assert_eq!("4KiB:70,64KiB:31".parse::<Mix>(), Err(MixError::Sum { sum: 101 }));
        assert_eq!("4KiB:70".parse::<Mix>(), Err(MixError::Sum { sum: 70 }));
        let many = vec!["4KiB:1"; MIX_SIZES_MAX + 1].join(",");
        assert!(matches!(many.parse::<Mix>(), Err(MixError::Count { .. })));
    }
}
