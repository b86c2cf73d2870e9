//! D25 of the fault model: a system call that a signal interrupted is no error.
//!
//! The kernel itself interrupts here: a seccomp filter of the test's thread hands each call that may
//! be interrupted to a second thread, which answers the first of every kind with `EINTR` and lets the
//! others go on. Agent and export are tried in one place because they share nothing else.

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use farshore_agent::disk::{Access, Disk, Recorded};
use farshore_agent::files::{Files, OsFiles};
use farshore_export::overlay::{Overlay, OverlayBase};
use farshore_proto::{BlockRange, Seq, VolumeId};
use libc::{seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const CALLS: [(libc::c_long, &str); 11] = [
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_preadv2, "preadv2"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_statfs, "statfs"),
    (libc::SYS_fstatfs, "fstatfs"),
];

fn last_error<T>(what: &str) -> T {
    panic!("{what}: {}", io::Error::last_os_error())
}

/// Hands the calls of this thread to whoever has what it returns.
fn hand_over() -> OwnedFd {
    let statement =
        |code: u32, k: u32| sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (call, _) in CALLS {
        let call = u32::try_from(call).unwrap();
        let is_it = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call);
        program.push(sock_filter { jf: 1, ..is_it });
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter =
        sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: plain flags; the call changes this thread only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return last_error("no_new_privs");
    }
    // SAFETY: the program lives until the call returns; the filter is this thread's alone.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    match i32::try_from(listener) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(listener) if listener >= 0 => unsafe { OwnedFd::from_raw_fd(listener) },
        _ => last_error("seccomp"),
    }
}

/// Answers until the thread has ended; how often each call came.
fn answer(listener: &OwnedFd) -> BTreeMap<libc::c_long, u64> {
    let mut seen = BTreeMap::new();
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives until the call returns.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 30_000) };
        assert_eq!(ready, 1, "the thread neither calls nor ends");
        if poll.revents & libc::POLLIN == 0 {
            return seen;
        }
        // SAFETY: all of it are numbers.
        let mut asked: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills what the request says.
        let got = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked)
        };
        if got != 0 {
            return last_error("receive");
        }
        let count = seen.entry(libc::c_long::from(asked.data.nr)).or_insert(0);
        *count += 1;
        let (error, flags) = match *count {
            1 => (-libc::EINTR, 0),
            _ => (0, u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap()),
        };
        let mut answer = seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // SAFETY: the kernel reads what the request says.
        let sent = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
        };
        if sent != 0 {
            return last_error("send");
        }
    }
}

/// Runs `work` with the first call of every kind interrupted; names those that came.
fn interrupted(work: impl FnOnce() + Send + 'static) -> Vec<&'static str> {
    let (sender, receiver) = crossbeam::channel::bounded(1);
    let working = std::thread::spawn(move || {
        sender.send(hand_over()).unwrap();
        work();
    });
    let seen = answer(&receiver.recv().expect("seccomp works for a thread without rights"));
    working.join().unwrap();
    CALLS.iter().filter(|(call, _)| seen.contains_key(call)).map(|(_, name)| *name).collect()
}

#[test]
fn the_agent_tries_again_what_a_signal_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let home = dir.path().to_owned();
    let seen = interrupted(move || {
        let disk = Disk::open(&path, Access::Write, &Recorded::default()).unwrap();
        disk.write(&[7; 65_536], 0).unwrap();
        disk.zero(4096, 8192, true).unwrap();
        disk.sync().unwrap();
        disk.sync_all().unwrap();
        let mut bytes = vec![1; 65_536];
        assert!(disk.read_cached(&mut bytes, 0), "it was written just now");
        disk.read(&mut bytes, 0).unwrap();
        assert!(bytes[4096..12_288].iter().all(|byte| *byte == 0));
        assert!(bytes[..4096].iter().chain(&bytes[12_288..]).all(|byte| *byte == 7));
        let file = OsFiles.create(&home.join("file")).unwrap();
        file.write_vectored_at(&mut [IoSlice::new(&[1]), IoSlice::new(&[2])], 0).unwrap();
        file.set_len(1).unwrap();
        drop(farshore_agent::DataDir::lock(&home.join("data")).unwrap());
    });
    for call in ["fallocate", "preadv2", "pread64", "pwrite64", "pwritev", "fsync", "fdatasync"] {
        assert!(seen.contains(&call), "{call} was not tried: {seen:?}");
    }
    assert!(seen.contains(&"flock") && seen.contains(&"ftruncate"), "{seen:?}");
}

#[test]
fn the_overlay_tries_again_what_a_signal_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overlay");
    let seen = interrupted(move || {
        let base = OverlayBase { volume: VolumeId([1; 16]), seq: Seq(1), size_bytes: 1 << 20 };
        let overlay = Overlay::open(&path, base).unwrap();
        overlay.write(0, &[7; 8192]).unwrap();
        overlay.zero(BlockRange { block: 1, count: 1 }).unwrap();
        overlay.flush().unwrap();
    });
    for call in ["fallocate", "pwrite64", "fdatasync", "flock"] {
        assert!(seen.contains(&call), "{call} was not tried: {seen:?}");
    }
}
