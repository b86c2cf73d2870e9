//! Standard output: what was asked for, so that failing to write it is a failure.

use std::fmt;
use std::io::{self, Write};

use crate::closed::was_output_closed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, major, minor};

/// Writes text to standard output and flushes it.
///
/// # Errors
/// What the system says; `BrokenPipe` if the reader went away; that it was closed from the start.
pub fn print(text: &str) -> io::Result<()> {
    if was_output_closed() {
        return Err(io::Error::other("it is closed"));
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Tells whoever started this program that it serves. One that does not listen is no reason to end.
pub fn announce(line: fmt::Arguments<'_>) {
    if let Err(error) = print(&format!("{line}\n")) {
        crate::tell!("cannot write `{line}` to standard output: {error}");
    }
}

/// Why nobody would see what is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// It is closed.
    Closed,
    /// It is the null device.
    Discarded,
    /// Its reader has gone away.
    NoReader,
}

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "it is closed",
            Self::Discarded => "it goes to /dev/null",
            Self::NoReader => "its reader has gone away",
        })
    }
}

/// Whether something that is said only once can be said on standard output at all.
///
/// # Errors
/// Why not, as far as it can be seen before writing.
pub fn check_heard() -> Result<(), Unheard> {
    if was_output_closed() {
        return Err(Unheard::Closed);
    }
    let out = rustix::stdio::stdout();
    let Ok(stat) = fstat(out) else { return Err(Unheard::Closed) };
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3) {
        return Err(Unheard::Discarded);
    }
    let mut polled = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    // What cannot be asked is seen when it is written.
    let _ = poll(&mut polled, Some(&Timespec::default()));
    if polled[0].revents().intersects(gone) { Err(Unheard::NoReader) } else { Ok(()) }
}
