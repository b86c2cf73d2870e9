//! Whether standard output was closed when the program was started.
//!
//! Rust's runtime opens the null device in place of closed standard streams before `main`, and from then
//! on one that was closed looks like one that somebody sent to `/dev/null` on purpose. So it is looked at
//! before the runtime is there.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, fcntl_getfd};

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

#[expect(unsafe_code, reason = "nothing safe runs before Rust's runtime opens closed streams")]
// SAFETY: the C library calls each entry of this section once, on the only thread, before `main`. The
// entry is a function of its ABI (arguments that a function does not take are the caller's to drop); it
// makes one system call, stores a flag, and uses nothing of the runtime that is not there yet.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look;

extern "C" fn look() {
    let is_closed = matches!(fcntl_getfd(rustix::stdio::stdout()), Err(Errno::BADF));
    WAS_CLOSED.store(is_closed, Ordering::Relaxed);
}

/// Whether nobody can ever see what is written to standard output, because the program was started
/// without.
pub(crate) fn was_output_closed() -> bool {
    WAS_CLOSED.load(Ordering::Relaxed)
}
