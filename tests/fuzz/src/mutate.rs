//! Changes to good bytes that find bad decoders: flipped bits, fields at the borders of what is
//! legal, runs lost, doubled, moved and joined with those of other inputs.
//!
//! Everything follows from a seed: the same seed makes the same inputs on every machine.

/// A generator of numbers that follow from a seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

/// What lies at a border of something in some format.
const BORDERS: [u64; 24] = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    511,
    512,
    4095,
    4096,
    1 << 20,
    (1 << 34) - 1,
    1 << 46,
    u64::MAX - 1,
    u64::MAX,
];

impl Dice {
    /// Begins a series; equal seeds begin equal series.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and none may be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d | 1)
    }

    /// The next number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        usize::try_from(value).unwrap_or(usize::MAX) % sides
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap_or_default()
    }

    /// A place in something of `length`, and how much of it from there on: at most 64.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.roll(length);
        let most = (length - start).min(64);
        start..start + 1 + self.roll(most)
    }
}

/// One to four changes to `base`; `other` is what runs are taken from.
pub fn mutate(dice: &mut Dice, base: &[u8], other: &[u8], bytes_max: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=dice.roll(4) {
        change(dice, &mut bytes, other);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    let length = bytes.len();
    match dice.roll(11) {
        0 | 1 => bytes[dice.roll(length)] ^= 1 << dice.roll(8),
        2 => {
            let at = dice.roll(length);
            bytes[at] = dice.byte();
        }
        3 | 4 => put_border(dice, bytes),
        5 => {
            let at = dice.roll(length);
            let by = dice.byte() % 16 + 1;
            bytes[at] = if dice.roll(2) == 0 {
                bytes[at].wrapping_add(by)
            } else {
                bytes[at].wrapping_sub(by)
            };
        }
        6 => {
            bytes.drain(dice.range(length));
        }
        7 => {
            let run = bytes[dice.range(length)].to_vec();
            let at = dice.roll(length + 1);
            bytes.splice(at..at, run);
        }
        8 => {
            let run = dice.range(length);
            let to = dice.roll(length - run.len() + 1);
            bytes.copy_within(run, to);
        }
        9 => bytes.truncate(dice.roll(length)),
        _ => {
            if !other.is_empty() {
                let run = dice.range(other.len());
                let at = dice.roll(length + 1);
                let end = (at + dice.roll(2) * run.len()).min(length);
                bytes.splice(at..end, other[run].iter().copied());
            }
        }
    }
}

/// A field of 1, 2, 4 or 8 bytes, in either order of bytes, set to a border or next to one.
fn put_border(dice: &mut Dice, bytes: &mut [u8]) {
    let width = 1 << dice.roll(4);
    let value = BORDERS[dice.roll(BORDERS.len())].wrapping_add(dice.roll(3) as u64).wrapping_sub(1);
    let at = dice.roll(bytes.len()) & !(width - 1);
    let end = (at + width).min(bytes.len());
    let little = value.to_le_bytes();
    let big = value.to_be_bytes();
    let field = if dice.roll(4) == 0 { &big[8 - width..] } else { &little[..width] };
    bytes[at..end].copy_from_slice(&field[..end - at]);
}
