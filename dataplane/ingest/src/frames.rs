//! Frames in memory: from arrival until they are committed.

use crate::limits::SPARE_BYTES_MAX;
use farshore_engine::batch::Handle;
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: [u8; FRAME_HEADER_BYTES],
    /// Its body, as long as the header says.
    pub body: Vec<u8>,
}

/// All frames that a shard holds, by handle. What bounds them is the shard's cache (H3).
#[derive(Debug, Default)]
pub struct Frames {
    next: u64,
    held: HashMap<Handle, Rc<Frame>>,
    spare: Spare,
}

impl Frames {
    /// A buffer of `bytes` for the body of a frame that is about to come. In it may be what is left of
    /// another frame: fill all of it, or drop it.
    #[must_use]
    pub fn buffer(&mut self, bytes: usize) -> Vec<u8> {
        self.spare.take(bytes).unwrap_or_else(|| vec![0; bytes])
    }

    /// Keeps a frame.
    pub fn insert(&mut self, frame: Frame) -> Handle {
        let handle = Handle(self.next);
        self.next += 1;
        self.held.insert(handle, Rc::new(frame));
        handle
    }

    /// A frame that the engine still holds.
    ///
    /// # Panics
    /// If it was released: a bug in the caller.
    #[must_use]
    pub fn get(&self, handle: Handle) -> Rc<Frame> {
        Rc::clone(self.held.get(&handle).expect("the engine names only frames it holds"))
    }

    /// Lets a frame go.
    ///
    /// # Panics
    /// If it was released before: a bug in the caller.
    pub fn release(&mut self, handle: Handle) {
        let frame = self.held.remove(&handle).expect("the engine releases a frame once");
        if let Some(frame) = Rc::into_inner(frame) {
            self.spare.keep(frame.body);
        }
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// Bodies of frames that were let go, to be filled again: memory that is new to the process costs a page
/// fault for every block, and clearing it a second look at each byte.
#[derive(Debug, Default)]
struct Spare {
    by_capacity: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Capacity of all of them.
    bytes: usize,
}

impl Spare {
    /// A buffer of this length; none that would waste more than it holds.
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        if bytes < BLOCK_BYTES {
            return None;
        }
        let mut fitting = self.by_capacity.range_mut(bytes..=2 * bytes);
        let mut buffer = fitting.find_map(|(_, buffers)| buffers.pop())?;
        self.bytes -= buffer.capacity();
        buffer.resize(bytes, 0);
        Some(buffer)
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity >= BLOCK_BYTES && self.bytes + capacity <= SPARE_BYTES_MAX {
            self.bytes += capacity;
            self.by_capacity.entry(capacity).or_default().push(buffer);
        }
        assert!(self.bytes <= SPARE_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: Vec<u8>) -> Frame {
        Frame { header: [0; FRAME_HEADER_BYTES], body }
    }

    #[test]
    fn the_memory_of_a_frame_that_was_let_go_holds_the_next() {
        let mut frames = Frames::default();
        let body = frames.buffer(3 * BLOCK_BYTES);
        let place = body.as_ptr();
        let handle = frames.insert(frame(body));
        frames.release(handle);
        let small = frames.buffer(BLOCK_BYTES);
        assert!(small.as_ptr() != place, "more than half would be wasted");
        let body = frames.buffer(2 * BLOCK_BYTES);
        assert_eq!((body.as_ptr(), body.len()), (place, 2 * BLOCK_BYTES));
        // It is nobody else's now.
        let other = frames.buffer(2 * BLOCK_BYTES);
        assert!(other.as_ptr() != place);
        let handle = frames.insert(frame(body));
        frames.release(handle);
        let body = frames.buffer(3 * BLOCK_BYTES);
        assert_eq!((body.as_ptr(), body.len()), (place, 3 * BLOCK_BYTES));
    }

    #[test]
    fn a_frame_that_is_still_looked_at_keeps_its_memory() {
        let mut frames = Frames::default();
        let handle = frames.insert(frame(vec![7; BLOCK_BYTES]));
        let seen = frames.get(handle);
        frames.release(handle);
        let other = frames.buffer(BLOCK_BYTES);
        assert!(other.as_ptr() != seen.body.as_ptr());
        assert!(seen.body.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn spare_memory_is_bounded_and_small_bodies_are_not_worth_it() {
        let mut frames = Frames::default();
        let count = 2 * SPARE_BYTES_MAX / (64 << 10);
        let handles: Vec<Handle> =
            (0..count).map(|_| frames.insert(frame(vec![1; 64 << 10]))).collect();
        handles.into_iter().for_each(|handle| frames.release(handle));
        assert_eq!(frames.spare.bytes, SPARE_BYTES_MAX);
        let mut small = Frames::default();
        let handle = small.insert(frame(vec![1; 16]));
        small.release(handle);
        assert_eq!(small.spare.bytes, 0);
        assert_eq!(small.buffer(16), [0; 16]);
    }
}
