//! Standard output: what was asked for, so that failing to write it is a failure.

use std::fmt;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, major, minor};

/// Writes text to standard output and flushes it.
///
/// # Errors
/// What the system says; `BrokenPipe` if the reader went away.
pub fn print(text: &str) -> io::Result<()> {
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
    /// It is closed or the null device, which cannot be told apart from inside.
    Discarded,
    /// Its reader has gone away.
    NoReader,
}

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discarded => "it is closed, or goes to /dev/null",
            Self::NoReader => "its reader has gone away",
        })
    }
}

/// Whether something that is said only once can be said on standard output at all.
///
/// # Errors
/// Why not, as far as it can be seen before writing.
pub fn check_heard() -> Result<(), Unheard> {
    let out = rustix::stdio::stdout();
    let Ok(stat) = fstat(out) else { return Err(Unheard::Discarded) };
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
