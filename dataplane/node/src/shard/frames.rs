//! Frames in memory: from arrival until they are committed.

use farshore_engine::batch::Handle;
use farshore_proto::limits::FRAME_HEADER_BYTES;
use std::collections::HashMap;
use std::rc::Rc;

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: [u8; FRAME_HEADER_BYTES],
    pub(crate) body: Vec<u8>,
}

/// All frames that a shard holds, by handle.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    next: u64,
    held: HashMap<Handle, Rc<Frame>>,
}

impl Frames {
    /// Keeps a frame.
    pub(crate) fn insert(&mut self, frame: Frame) -> Handle {
        let handle = Handle(self.next);
        self.next += 1;
        self.held.insert(handle, Rc::new(frame));
        handle
    }

    /// A frame that the engine still holds.
    pub(crate) fn get(&self, handle: Handle) -> Rc<Frame> {
        Rc::clone(self.held.get(&handle).expect("the engine names only frames it holds"))
    }

    /// Lets a frame go.
    pub(crate) fn release(&mut self, handle: Handle) {
        self.held.remove(&handle).expect("the engine releases a frame once");
    }
}
