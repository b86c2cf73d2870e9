//! The io_uring backend: glommio, one executor per core.

use super::prepared::{Prepared, Preparer};
use super::{Rt, Socket, only_no_space};
use farshore_ingest::journal::JournalFile;
use futures::{AsyncReadExt, AsyncWriteExt};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use glommio::net::TcpStream;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

/// Completions of the ring are looked at after so long, also when tasks are always ready: a shard that
/// is busy must not find out late that a group is durable or that a frame has come.
const TURN_MAX: Duration = Duration::from_millis(1);

/// A timer is what makes glommio look at its rings; this one has run out when it does.
const BREATH: Duration = Duration::from_micros(20);

/// From outside, an executor is made to look around so often. glommio (0.9) may fall asleep over a task that was
/// woken: where its own timer runs out, or a wake is told late, between the look at the rings and the run of the
/// tasks, it takes that for nothing to do. Whoever wakes that task again says nothing new, so only another
/// event ends it; and a timer of the executor's own would be slept over, too.
const PULSE: Duration = Duration::from_millis(20);

/// An executor that has not run its first task by now has fallen asleep over it, and nobody can wake it,
const BEGIN_MAX: Duration = Duration::from_secs(2);
/// so another one is made, so many times.
const BEGIN_TRIES: u32 = 8;

/// glommio.
#[derive(Debug)]
pub(crate) struct Ring;

impl Ring {
    /// Makes an executor on a thread of its own, pinned to a CPU that the process may use.
    ///
    /// # Errors
    /// What the kernel says: rings are limited, and the CPU may be taken away.
    pub(super) fn prepare(name: &str, cpu: Option<usize>) -> io::Result<Prepared> {
        let mut tries = 0;
        loop {
            tries += 1;
            let thread = name.to_owned();
            let prepared =
                Prepared::spawn(name, BEGIN_MAX, move |preparer| match executor(&thread, cpu) {
                    Ok(executor) => executor.run(begin(preparer, thread)),
                    Err(error) => preparer.fail(error),
                });
            match prepared {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && tries < BEGIN_TRIES => {
                    tracing::warn!(name, tries, "an executor does not begin: another is made");
                }
                prepared => return prepared,
            }
        }
    }
}

/// The builder's own spawn returns a handle of glommio, and tells an error to whoever joins it. Its own pinning
/// reads the machine's topology, and panics where that cannot be read.
fn executor(name: &str, cpu: Option<usize>) -> io::Result<LocalExecutor> {
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    let builder = LocalExecutorBuilder::new(Placement::Unbound).name(name).preempt_timer(TURN_MAX);
    builder.make().map_err(io::Error::from)
}

/// The first task of an executor: that it runs is what whoever prepares waits for.
async fn begin(preparer: Preparer, name: String) {
    // Nothing else is there that it could keep waiting.
    let Some(main) = preparer.main() else { return };
    let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let pulse = std::thread::Builder::new().name(format!("{name}-pulse")).spawn(move || {
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(PULSE);
            waker.wake_by_ref();
        }
    });
    if let Err(error) = &pulse {
        tracing::warn!(name, %error, "an executor has no pulse: it may answer late");
    }
    main().await;
    is_over.store(true, Ordering::Relaxed);
    // Its waker is this executor's, which must not be gone before.
    drop(pulse.map(std::thread::JoinHandle::join));
}

/// Keeps this thread on a CPU.
fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

impl Rt for Ring {
    type Socket = RingSocket;
    type File = RingFile;

    fn spawn(task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        glommio::timer::sleep(duration)
    }

    async fn yield_now() {
        glommio::executor().yield_now().await;
    }

    fn breathe() -> impl Future<Output = ()> {
        glommio::timer::sleep(BREATH)
    }

    fn adopt(socket: std::net::TcpStream) -> io::Result<RingSocket> {
        socket.set_nonblocking(true)?;
        // SAFETY: the descriptor is open and owned by us alone; ownership moves to the stream.
        let stream = unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) };
        Ok(RingSocket(stream))
    }

    /// Write-only on purpose. glommio tries with a read whether a device can be polled, and takes every
    /// device of these kernels for one that can; where it has no queues for that, the thread then turns at
    /// full speed until the write is done. A read that is not allowed says no, once and for all files of the
    /// device. It logs an error about that, which is none: errors of the open itself come back.
    async fn create(path: &Path) -> io::Result<RingFile> {
        let mut options = OpenOptions::new();
        let open = options.write(true).create_new(true).dma_open(path);
        Ok(RingFile(open.with_subscriber(NoSubscriber::default()).await?))
    }
}

/// A socket on the ring.
#[derive(Debug)]
pub(crate) struct RingSocket(TcpStream);

impl Socket for RingSocket {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }
}

/// An O_DIRECT file on the ring.
#[derive(Debug)]
pub(crate) struct RingFile(DmaFile);

/// A DMA buffer as a slice.
#[derive(Debug)]
pub(crate) struct RingBuffer(DmaBuffer);

impl AsMut<[u8]> for RingBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

impl JournalFile for RingFile {
    type Buffer = RingBuffer;

    fn buffer(&self, bytes: usize) -> RingBuffer {
        RingBuffer(self.0.alloc_dma_buffer(bytes))
    }

    async fn write_at(&self, buffer: RingBuffer, offset: u64) -> io::Result<()> {
        let bytes = buffer.0.len();
        let written = self.0.write_at(buffer.0, offset).await?;
        if written != bytes {
            let text = format!("wrote {written} of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::WriteZero, text));
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.fdatasync().await.map_err(Into::into)
    }

    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        only_no_space(self.0.pre_allocate(bytes, true).await.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mail, mailbox};
    use super::*;
    use crossbeam::channel::bounded;
    use rustix::thread::sched_getaffinity;
    use rustix::time::{ClockId, Timespec, clock_gettime};
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    const WRITES: u64 = 24;
    const WRITE_BYTES: usize = 4 << 20;

    fn on_cpu() -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(tv_sec.try_into().unwrap(), tv_nsec.try_into().unwrap())
    }

    /// CPU time of the shard's thread and time that went by while it waited for `WRITES` of them.
    async fn waits(path: &Path) -> (Duration, Duration) {
        let file = Ring::create(path).await.unwrap();
        let (mut busy, mut passed) = (Duration::ZERO, Duration::ZERO);
        for n in 0..WRITES {
            let mut buffer = file.buffer(WRITE_BYTES);
            buffer.as_mut().fill(1);
            let (cpu, begin) = (on_cpu(), Instant::now());
            file.write_at(buffer, n * WRITE_BYTES as u64).await.unwrap();
            file.sync().await.unwrap();
            busy += on_cpu() - cpu;
            passed += begin.elapsed();
        }
        (busy, passed)
    }

    /// A disk without queues for polling, which is nearly every one, must not cost a core.
    #[test]
    fn a_shard_that_waits_for_its_disk_rests() {
        // Beside the test's program: a file in memory would not wait.
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = dir.path().join("journal");
        let (said, listening) = bounded(1);
        let main = move || async move { said.send(waits(&path).await).unwrap() };
        Ring::prepare("waiting", None).unwrap().run(main).unwrap().join().unwrap();
        let (busy, passed) = listening.recv().unwrap();
        assert!(2 * busy < passed, "{busy:?} on the CPU in {passed:?} of waiting");
    }

    /// P43: a message to a shard arrives, however close it comes to the shard's falling asleep.
    #[test]
    fn a_shard_that_is_about_to_sleep_misses_no_message() {
        let (post, inbox) = mailbox::<u64>(1);
        let heard = Arc::new(AtomicU64::new(0));
        let hearing = Arc::clone(&heard);
        let main = move || async move {
            while let Mail::Message(number) = inbox.next().await {
                hearing.store(number, Ordering::SeqCst);
            }
        };
        let shard = Ring::prepare("about to sleep", None).unwrap().run(main).unwrap();
        let begin = Instant::now();
        let mut number = 0_u64;
        while begin.elapsed() < Duration::from_secs(10) {
            number += 1;
            post.try_send(number).unwrap();
            let sent = Instant::now();
            while heard.load(Ordering::SeqCst) < number {
                let waited = sent.elapsed();
                assert!(waited < Duration::from_secs(5), "it sleeps over message {number}");
                if waited > Duration::from_millis(1) {
                    std::thread::yield_now();
                }
            }
            // The next comes at any point of its way to sleep.
            for _ in 0..number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53 {
                std::hint::spin_loop();
            }
        }
        drop(post);
        shard.join().unwrap();
    }

    /// P43: so is the first task of all, also where many others keep it from its CPU.
    #[test]
    fn a_shard_that_is_started_begins() {
        let set = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).rev().find(|cpu| set.is_set(*cpu)).unwrap();
        let begin = Instant::now();
        let starters = [(); 8].map(|()| {
            std::thread::spawn(move || {
                let mut started = 0;
                while begin.elapsed() < Duration::from_secs(10) || started == 0 {
                    let (said, listening) = bounded(1);
                    let main = move || async move { said.send(()).unwrap() };
                    let shard = Ring::prepare("started", Some(cpu)).unwrap().run(main).unwrap();
                    let heard = listening.recv_timeout(Duration::from_secs(20));
                    assert_eq!(heard, Ok(()), "after {started} others");
                    shard.join().unwrap();
                    started += 1;
                }
                started
            })
        });
        let started: u32 = starters.into_iter().map(|starter| starter.join().unwrap()).sum();
        println!("{started} were started");
    }
}
