//! Numbers that follow from the seed: the same on every run and every machine.

/// The increment of `splitmix64`: odd, and its multiples spread over all 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finisher of `splitmix64`: every bit of the input changes about half of the output.
#[must_use]
pub fn spread(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number for a purpose, a source and a place in its stream.
#[must_use]
pub fn draw(seed: u64, purpose: &str, source: u64, number: u64) -> u64 {
    let purpose = purpose.bytes().fold(0, |word: u64, byte| word << 8 | u64::from(byte));
    let words = [seed, purpose, source, number];
    words.into_iter().fold(STEP, |state, word| spread(state.wrapping_add(STEP) ^ word))
}

/// Words without end that follow from a key; far apart for keys that differ in one bit.
#[derive(Debug, Clone)]
pub struct Words {
    state: u64,
}

impl Words {
    /// The words of a key.
    #[must_use]
    pub fn of(key: u64) -> Self {
        Self { state: key }
    }

    /// The next word.
    #[inline]
    pub fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        spread(self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_draw_matters_and_nothing_else() {
        let base = draw(1, "a", 2, 3);
        assert_eq!(base, draw(1, "a", 2, 3));
        for other in
            [draw(2, "a", 2, 3), draw(1, "b", 2, 3), draw(1, "a", 3, 3), draw(1, "a", 2, 4)]
        {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_are_even() {
        let mut found = [0_u32; 10];
        for number in 0..10_000 {
            found[usize::try_from(draw(1, "even", 0, number) % 10).unwrap()] += 1;
        }
        assert!(found.iter().all(|count| (900..1100).contains(count)), "{found:?}");
    }
}
