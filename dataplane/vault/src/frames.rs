//! Frames in memory: from arrival until they are committed.

use farshore_engine::batch::Handle;
use farshore_proto::limits::FRAME_HEADER_BYTES;
use std::collections::HashMap;
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
}

impl Frames {
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
        self.held.remove(&handle).expect("the engine releases a frame once");
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
