//! What the log's frames are stamped with: the intents that are durable now.

use farshore_proto::Stamp;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The stamp of the next frame; told by whoever keeps the intents, read under the log's lock.
#[derive(Debug, Default)]
pub struct Stamps {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Inner {
    stamp: Stamp,
    /// How often it was forgotten.
    forgotten: u64,
    /// Which sending of the whole disk the log is of, modulo 2^31.
    sending: u32,
}

impl Inner {
    fn unsaid(&self, life: u32) -> Stamp {
        Stamp::unsaid(life, self.sending)
    }
}

/// Intents on their way to the disk; see [`Stamps::begin`].
#[derive(Debug, Clone, Copy)]
pub struct Underway {
    forgotten: u64,
}

impl Stamps {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stamp of a frame that is appended now.
    #[must_use]
    pub fn now(&self) -> Stamp {
        self.lock().stamp
    }

    /// Before intents are written.
    #[must_use]
    pub fn begin(&self) -> Underway {
        Underway { forgotten: self.lock().forgotten }
    }

    /// The intents that were begun are durable under this stamp.
    pub fn durable(&self, begun: Underway, stamp: Stamp) {
        let mut inner = self.lock();
        let is_current = inner.forgotten == begun.forgotten;
        inner.stamp = if is_current { stamp } else { inner.unsaid(stamp.life) };
    }

    /// Which sending of the whole disk the log is of, from here on.
    pub fn sends(&self, sending: u64) {
        self.lock().sending = sending_number(sending);
    }

    /// From here on intents count for nothing, or the whole disk is sent again. Until other intents are durable
    /// nothing is said of any: an earlier state of this directory, which knows nothing of that, may have the same
    /// ones. Whose the frames are is said all the same: a copy of this agent would take them for its own.
    pub fn forget(&self) {
        let mut inner = self.lock();
        inner.forgotten += 1;
        inner.stamp = inner.unsaid(inner.stamp.life);
    }
}

/// As it is said in a stamp.
#[must_use]
pub fn sending_number(sending: u64) -> u32 {
    let [a, b, c, d, ..] = sending.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) % Stamp::UNSAID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_when_it_was_forgotten_is_not_said() {
        let stamps = Stamps::default();
        let stamp = |generation| Stamp { life: 7, generation };
        stamps.durable(stamps.begin(), stamp(1));
        assert_eq!(stamps.now(), stamp(1));
        let begun = stamps.begin();
        stamps.forget();
        stamps.durable(begun, stamp(2));
        assert_eq!(stamps.now(), Stamp::unsaid(7, 0));
        stamps.sends((1 << 31) + 5);
        stamps.forget();
        assert_eq!(stamps.now(), Stamp::unsaid(7, 5));
        stamps.durable(stamps.begin(), stamp(3));
        assert_eq!(stamps.now(), stamp(3));
    }
}
