//! Buffers that `O_DIRECT` can read into, used again and again.

use super::READ_BYTES_MAX;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of address, offset and length.
pub(super) const ALIGN: usize = 4096;
/// Buffers kept for the next read.
const KEPT_MAX: usize = 16;

/// Buffers that wait for their next read: fresh memory costs a fault for each page of it, which is
/// more than hashing it costs.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    kept: Arc<Mutex<Vec<Memory>>>,
}

impl Pool {
    /// A buffer of so many bytes, a positive multiple of 4096 and at most [`READ_BYTES_MAX`]. What it
    /// holds is of no meaning.
    pub(super) fn take(&self, length: usize) -> Buffer {
        assert!(length > 0 && length.is_multiple_of(ALIGN) && length <= READ_BYTES_MAX);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = Some(kept.unwrap_or_else(Memory::zeroed));
        Buffer { memory, length, pool: self.clone() }
    }

    fn give_back(&self, memory: Memory) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(memory);
        }
    }
}

/// [`READ_BYTES_MAX`] bytes at an aligned address.
#[derive(Debug)]
struct Memory(NonNull<u8>);

// SAFETY: it owns its memory alone; nothing about it belongs to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared references only read.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed() -> Self {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(Self::layout()) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(Self::layout()) };
        Self(start)
    }

    fn layout() -> Layout {
        Layout::from_size_align(READ_BYTES_MAX, ALIGN).expect("the constants are a layout")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, and not freed before.
        unsafe { dealloc(self.0.as_ptr(), Self::layout()) }
    }
}

/// Bytes at an aligned address.
#[derive(Debug)]
pub struct Buffer {
    /// There until the buffer is dropped.
    memory: Option<Memory>,
    length: usize,
    pool: Pool,
}

impl Buffer {
    fn start(&self) -> *mut u8 {
        self.memory.as_ref().expect("it is there until the buffer is dropped").0.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes from the start are allocated and initialised for the buffer's life.
        unsafe { std::slice::from_raw_parts(self.start(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the reference is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.length) }
    }
}

// SAFETY: the memory is on the heap: moving the buffer does not move it, and it is initialised.
unsafe impl tokio_uring::buf::IoBuf for Buffer {
    fn stable_ptr(&self) -> *const u8 {
        self.start()
    }

    fn bytes_init(&self) -> usize {
        self.length
    }

    fn bytes_total(&self) -> usize {
        self.length
    }
}

// SAFETY: as for `IoBuf`; all bytes are initialised from the start, so there is nothing to note.
unsafe impl tokio_uring::buf::IoBufMut for Buffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}
