//! Standard error, to which a program may lose words but nothing else.

use std::fmt::{Arguments, Write as _};
use std::io::{self, IoSlice, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

/// How long a reader that does not read may keep a program from its work, once.
const PATIENCE: Duration = Duration::from_millis(200);

/// A pipe that can be written takes this much at once (PIPE_BUF).
const PIECE: usize = 4096;

/// What is known of standard error.
#[derive(Debug)]
struct State {
    /// Writes that were lost since the last one that was not.
    lost: u64,
    /// Nobody read for long: from now on nothing waits, until somebody reads.
    is_stuck: bool,
}

static STATE: Mutex<State> = Mutex::new(State { lost: 0, is_stuck: false });

/// A writer to standard error that never fails and never waits for long.
///
/// A descriptor that is closed, full or without a reader swallows what is written. A reader that is stuck
/// (a pager, a stopped terminal) is waited for once and then passed over, until it reads again; then it
/// is told how much it missed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Errors;

/// Makes an [`Errors`]: where tracing's lines go.
#[must_use]
pub fn errors() -> Errors {
    Errors
}

impl Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.write(rustix::stdio::stderr(), bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a text and what ends it to standard error, in one piece.
pub fn write_error(text: Arguments<'_>, end: &str) {
    let mut line = String::new();
    // Only a `Display` that fails makes this fail, and then what it wrote before is all there is.
    let _ = line.write_fmt(text);
    line.push_str(end);
    // It never fails.
    let _ = Errors.write_all(line.as_bytes());
}

impl State {
    fn write(&mut self, to: BorrowedFd<'_>, bytes: &[u8]) {
        if self.lost > 0 {
            let note = format!("({} earlier lines could not be written here)\n", self.lost);
            if self.try_write(to, note.as_bytes()).is_err() {
                self.lost = self.lost.saturating_add(1);
                return;
            }
            self.lost = 0;
        }
        if self.try_write(to, bytes).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn try_write(&mut self, to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            self.wait(to)?;
            match write_piece(to, &bytes[..bytes.len().min(PIECE)]) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => bytes = &bytes[count..],
                // Others filled it, or made it non-blocking: as if it were full.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something can be written, or the reader has had its time.
    fn wait(&mut self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let patience = if self.is_stuck { Duration::ZERO } else { PATIENCE };
        let begin = Instant::now();
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            let mut polled = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
            match poll(&mut polled, Some(&timeout)) {
                // What is wrong with it, the write says.
                Ok(1..) => {
                    self.is_stuck = false;
                    return Ok(());
                }
                Ok(0) => {
                    self.is_stuck = true;
                    return Err(Errno::AGAIN);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes what there is room for. Other processes may write to the same pipe, and fill it after it was looked
/// at: nobody waits for its reader here.
fn write_piece(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let kind = FileType::from_raw_mode(fstat(to)?.st_mode);
    if kind != FileType::Fifo {
        return rustix::io::write(to, bytes);
    }
    match pwritev2(to, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        // An old kernel, whose pipes cannot be asked like that.
        Err(Errno::OPNOTSUPP) => rustix::io::write(to, bytes),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn state() -> State {
        State { lost: 0, is_stuck: false }
    }

    #[test]
    fn a_full_device_and_a_pipe_without_a_reader_cost_words_only() {
        let mut state = state();
        let full = File::options().write(true).open("/dev/full").unwrap();
        state.write(full.as_fd(), b"one\n");
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        state.write(writer.as_fd(), b"two\n");
        assert_eq!(state.lost, 2);
        let (mut reader, writer) = io::pipe().unwrap();
        state.write(writer.as_fd(), b"three\n");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "(2 earlier lines could not be written here)\nthree\n");
        assert_eq!(state.lost, 0);
    }

    #[test]
    fn a_reader_that_does_not_read_is_waited_for_once() {
        let mut state = state();
        let (mut reader, writer) = io::pipe().unwrap();
        let begin = Instant::now();
        let line = [b'x'; 1000];
        for _ in 0..1000 {
            state.write(writer.as_fd(), &line);
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert!(state.is_stuck && state.lost > 900, "{state:?}");
        // It reads again, and hears of all that it missed.
        let mut read = vec![0; 64 << 10];
        let count = reader.read(&mut read).unwrap();
        assert!(count > 0);
        state.write(writer.as_fd(), b"again\n");
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("earlier lines could not be written here)\nagain\n"), "{rest}");
    }

    #[test]
    fn a_pipe_that_others_filled_since_it_was_looked_at_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut filled = 0;
        let ended = loop {
            match write_piece(writer.as_fd(), &[b'z'; PIECE]) {
                Ok(count) => filled += count,
                Err(error) => break error,
            }
        };
        assert_eq!(ended, Errno::AGAIN);
        let mut read = vec![0; filled];
        reader.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == b'z'));
    }

    #[test]
    fn long_lines_arrive_whole() {
        let mut state = state();
        let (mut reader, writer) = io::pipe().unwrap();
        let line = vec![b'y'; 300 << 10];
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        state.write(writer.as_fd(), &line);
        drop(writer);
        assert_eq!(reading.join().unwrap(), line);
    }
}
