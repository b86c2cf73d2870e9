//! D22 of the fault model: what a restore does on a file system that lacks something.
//!
//! The kernel itself says so here: a seccomp filter of the thread that restores, and of all threads that
//! it starts, hands each call that a file system may lack to a second thread, which refuses it with the
//! error of such a file system or lets it go on.

use crate::loops::Disk;
use crate::world::{World, memory, open, recovery_key};
use crate::write::image_bytes;
use bytes::Bytes;
use farshore_codec::segment::slot_without_data;
use farshore_export::restore::{RestoreError, RestoreOptions, RestoreReport, restore};
use farshore_proto::epoch::EpochBody;
use farshore_proto::machine::{DiskRole, Firmware};
use farshore_proto::segment::{SlotKind, SlotWriter};
use farshore_proto::{Epoch, LogId, MachineId, PointId, Seq, Slot, Stamp, VolumeId};
use farshore_vault::epoch::{Claim, claim_behind};
use farshore_vault::layout::ObjectName;
use farshore_vault::log::{PutOutcome, put_segment, seal};
use farshore_vault::machine::{self, Revise};
use farshore_vault::testing::machines::{self as testing, disk};
use farshore_vault::{Access, PointSelector, Store, Vault, VolumeView};
use futures::future::BoxFuture;
use libc::{c_int, c_long, seccomp_data, seccomp_notif, seccomp_notif_resp};
use libc::{sock_filter, sock_fprog};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Calls that are handed over.
const CALLS: [c_long; 5] =
    [libc::SYS_flock, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_fsync, libc::SYS_fallocate];
/// A test that hangs fails after so long.
const CALL_MS_MAX: c_int = 30_000;

/// What a file system may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Lock,
    /// A rename that replaces nothing.
    RenameAnew,
    Link,
    SyncFile,
    SyncDirectory,
    /// Making holes, or zeros.
    Allocate,
}

impl Call {
    fn of(asked: &seccomp_data) -> Option<Self> {
        match c_long::from(asked.nr) {
            libc::SYS_flock => Some(Self::Lock),
            libc::SYS_renameat2 if asked.args[4] != 0 => Some(Self::RenameAnew),
            libc::SYS_linkat => Some(Self::Link),
            libc::SYS_fsync => {
                // Both threads have the same descriptors.
                let open = fs::metadata(format!("/proc/self/fd/{}", asked.args[0]));
                let is_directory = open.is_ok_and(|open| open.is_dir());
                Some(if is_directory { Self::SyncDirectory } else { Self::SyncFile })
            }
            libc::SYS_fallocate => Some(Self::Allocate),
            _ => None,
        }
    }
}

fn last_error<T>(what: &str) -> T {
    panic!("{what}: {}", io::Error::last_os_error())
}

/// Hands the calls of this thread, and of those that it starts, to whoever has what it returns.
fn hand_over() -> OwnedFd {
    let statement =
        |code: u32, k: u32| sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in CALLS {
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
    // SAFETY: the program lives until the call returns; the filter is that of this thread and its own.
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

/// The next call that waits for an answer; none once the threads have ended.
fn next(listener: &OwnedFd) -> Option<seccomp_notif> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, CALL_MS_MAX) };
    assert_eq!(ready, 1, "the threads neither call nor end");
    if poll.revents & libc::POLLIN == 0 {
        return None;
    }
    // SAFETY: all of it are numbers.
    let mut asked: seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills what the request says.
    let got = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked)
    };
    if got == 0 { Some(asked) } else { last_error("receive") }
}

/// Refuses a call with an error, or lets it go on.
fn answer(listener: &OwnedFd, asked: &seccomp_notif, refusal: Option<c_int>) {
    let go_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap();
    let (error, flags) = refusal.map_or((0, go_on), |errno| (-errno, 0));
    let mut answer = seccomp_notif_resp { id: asked.id, val: 0, error, flags };
    // SAFETY: the kernel reads what the request says.
    let sent = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
    };
    if sent != 0 {
        last_error("send")
    }
}

/// Does `work` where the calls of `lacks` are refused; what came of it, and which calls came. `before` is
/// run while a call waits for its answer.
fn without<T: Send + 'static>(
    lacks: &[(Call, c_int)],
    mut before: impl FnMut(Call),
    work: impl FnOnce() -> T + Send + 'static,
) -> (T, BTreeSet<Call>) {
    let lacks: BTreeMap<Call, c_int> = lacks.iter().copied().collect();
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let working = std::thread::spawn(move || {
        sender.send(hand_over()).unwrap();
        work()
    });
    let listener = receiver.recv().expect("seccomp works for a thread without rights");
    let mut seen = BTreeSet::new();
    while let Some(asked) = next(&listener) {
        let call = Call::of(&asked.data);
        if let Some(call) = call {
            before(call);
            seen.insert(call);
        }
        answer(&listener, &asked, call.and_then(|call| lacks.get(&call).copied()));
    }
    (working.join().unwrap(), seen)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A vault and one of its points, of a volume with data and holes.
struct Sample {
    objects: BTreeMap<String, Bytes>,
    volume: VolumeId,
    point: PointId,
    image: Vec<u8>,
}

impl Sample {
    fn new() -> Self {
        let world = runtime().block_on(World::new());
        let mut points = world.writer.points.iter();
        let is_mixed = |image: &[u32]| image.contains(&0) && image.iter().any(|seed| *seed != 0);
        let point = points.rfind(|point| is_mixed(&point.image)).unwrap();
        let (volume, image) = (world.volume(point.volume), image_bytes(&point.image));
        Self { point: point.id, volume, image, objects: world.objects }
    }

    fn restore(
        &self,
        (to, options): (&Path, &RestoreOptions),
        lacks: &[(Call, c_int)],
        before: impl FnMut(Call),
    ) -> (Result<RestoreReport, RestoreError>, BTreeSet<Call>) {
        let (to, options, objects) = (to.to_owned(), options.clone(), self.objects.clone());
        let (volume, selector) = (self.volume, PointSelector::Point(self.point));
        without(lacks, before, move || {
            runtime().block_on(async move {
                let vault = open(&memory(&objects).await).await;
                let view = VolumeView::open(&vault, volume, selector).await.unwrap();
                restore(&view, &to, options, |_| {}).await
            })
        })
    }
}

fn replacing() -> RestoreOptions {
    RestoreOptions { may_replace: true, ..RestoreOptions::default() }
}

/// All files of a directory, those with a dot too.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// M6: what is in a vault in a directory is acknowledged, so it must be on the disk before.
#[test]
fn an_object_and_its_name_are_synced_before_they_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault").into_os_string().into_string().unwrap();
    let name = ObjectName::slot(LogId([7; 16]), Slot(3));
    let opened = |access| Store::open(&path, access).unwrap();
    opened(Access::Make);
    let syncs = |work: fn(Store, ObjectName) -> BoxFuture<'static, ()>| {
        let (store, name) = (opened(Access::Write), name.clone());
        let mut seen = Vec::new();
        let ((), _) =
            without(&[], |call| seen.push(call), move || runtime().block_on(work(store, name)));
        seen.retain(|call| matches!(call, Call::SyncFile | Call::SyncDirectory));
        seen
    };
    let put = syncs(|store, name| {
        Box::pin(async move {
            store.create(&name, Bytes::from_static(b"sealed")).await.map(drop).unwrap()
        })
    });
    let file = put.iter().position(|call| *call == Call::SyncFile).expect("the bytes");
    assert!(put[file..].contains(&Call::SyncDirectory), "and then the name: {put:?}");
    // Whoever finds an object may be the first who knows that its name is durable: up to the root.
    let settled = syncs(|store, name| Box::pin(async move { store.settle(&name).await.unwrap() }));
    let depth = name.to_string().split('/').count();
    assert_eq!(settled, vec![Call::SyncDirectory; depth], "{name}");
}

/// What an attempt puts: the object, and the attempt.
type Attempt = (ObjectName, Arc<dyn Fn(Vault) -> BoxFuture<'static, ()> + Send + Sync>);

fn attempts(vault: &Vault) -> [Attempt; 4] {
    let (volume, log, machine) = (VolumeId([1; 16]), LogId([7; 16]), MachineId([5; 16]));
    let body = EpochBody {
        epoch: Epoch(1),
        log,
        first_slot: Slot(0),
        first_seq: Seq(1),
        size_bytes: 1 << 20,
        stamp: Stamp::default(),
        label: String::new(),
        ended: None,
        base: None,
    };
    let claim = move |vault: Vault| -> BoxFuture<'static, ()> {
        let body = body.clone();
        Box::pin(async move {
            let claimed = claim_behind(&vault, volume, 0, &body).await.unwrap();
            assert_eq!(claimed, Claim::Claimed { ordinal: 1 });
        })
    };
    let keys = vault.seal_keys();
    let (at, writer) = ((vault.id(), log, Slot(3)), SlotWriter::of_run(1));
    let object = Bytes::from(slot_without_data(SlotKind::Fill, at, writer, keys).unwrap());
    let segment = move |vault: Vault| -> BoxFuture<'static, ()> {
        let object = object.clone();
        Box::pin(async move {
            let put = put_segment(&vault, log, Slot(3), object).await.unwrap();
            assert_eq!(put, PutOutcome::Committed);
        })
    };
    let seal = move |vault: Vault| -> BoxFuture<'static, ()> {
        Box::pin(async move { assert!(seal(&vault, log, Slot(0)).await.unwrap().is_sealed) })
    };
    let disk = disk(0, Some(volume), DiskRole::Boot);
    let body = testing::machine("m", Firmware::Unknown, vec![disk]);
    let revision = move |vault: Vault| -> BoxFuture<'static, ()> {
        let body = body.clone();
        Box::pin(async move {
            let put = machine::put(&vault, machine, 0, &body).await.unwrap();
            assert_eq!(put, Revise::Put { revision: 1 });
        })
    };
    [
        (ObjectName::epoch(volume, 1), Arc::new(claim)),
        (ObjectName::slot(log, Slot(3)), Arc::new(segment)),
        (ObjectName::slot(log, Slot(0)), Arc::new(seal)),
        (ObjectName::machine(machine, 1), Arc::new(revision)),
    ]
}

/// M6: who finds what another attempt put may be the first who relies on it.
#[test]
fn what_another_attempt_put_is_synced_before_it_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault");
    let store = Store::open(path.to_str().unwrap(), Access::Make).unwrap();
    let vault = runtime().block_on(Vault::init(&store, &recovery_key())).unwrap();
    for (name, attempt) in attempts(&vault) {
        runtime().block_on(attempt(vault.clone()));
        let file = path.join(name.to_string());
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        // What the first attempt put arrives between what the second one reads and what it puts.
        let mut seen = Vec::new();
        let arrive = |call| match call {
            Call::Link => {
                fs::write(&file, &bytes).unwrap();
                seen.clear();
            }
            call => seen.push(call),
        };
        let vault = vault.clone();
        let ((), _) = without(&[], arrive, move || runtime().block_on(attempt(vault)));
        let depth = name.to_string().split('/').count();
        assert_eq!(seen, vec![Call::SyncDirectory; depth], "{name}");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_restore_does_without_what_its_file_system_lacks() {
    use Call::{Link, Lock, RenameAnew, SyncDirectory};
    let sample = Sample::new();
    let cases: [&[(Call, c_int)]; 10] = [
        &[(Lock, libc::ENOLCK)],
        &[(Lock, libc::EOPNOTSUPP)],
        &[(Lock, libc::ENOSYS)],
        &[(RenameAnew, libc::EINVAL)],
        &[(RenameAnew, libc::ENOSYS)],
        &[(RenameAnew, libc::EINVAL), (Link, libc::EPERM)],
        &[(RenameAnew, libc::EOPNOTSUPP), (Link, libc::EOPNOTSUPP)],
        &[(SyncDirectory, libc::EINVAL)],
        &[(SyncDirectory, libc::EOPNOTSUPP)],
        &[
            (Lock, libc::ENOLCK),
            (RenameAnew, libc::EINVAL),
            (Link, libc::EPERM),
            (SyncDirectory, libc::EINVAL),
        ],
    ];
    for lacks in cases {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("disk.img");
        let (restored, seen) = sample.restore((&to, &RestoreOptions::default()), lacks, |_| {});
        restored.unwrap_or_else(|error| panic!("{lacks:?}: {error}: {:?}", names(folder.path())));
        assert!(lacks.iter().all(|(call, _)| seen.contains(call)), "{lacks:?} of {seen:?}");
        assert!(fs::read(&to).unwrap() == sample.image, "{lacks:?}");
        assert_eq!(names(folder.path()), ["disk.img"], "{lacks:?}");
        fs::write(&to, "old").unwrap();
        let (restored, _) = sample.restore((&to, &replacing()), lacks, |_| {});
        restored.unwrap_or_else(|error| panic!("{lacks:?}, to replace: {error}"));
        assert!(fs::read(&to).unwrap() == sample.image, "{lacks:?}");
        assert_eq!(names(folder.path()), ["disk.img"], "{lacks:?}");
    }
}

#[test]
fn a_name_that_somebody_takes_meanwhile_stays_his() {
    use Call::{Link, Lock, RenameAnew};
    let sample = Sample::new();
    let cases: [&[(Call, c_int)]; 4] = [
        &[],
        &[(RenameAnew, libc::EINVAL)],
        &[(RenameAnew, libc::EINVAL), (Link, libc::EPERM)],
        &[(RenameAnew, libc::EINVAL), (Link, libc::EPERM), (Lock, libc::ENOLCK)],
    ];
    for lacks in cases {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("disk.img");
        let take = |call: Call| {
            if call == RenameAnew {
                fs::write(&to, "precious").unwrap();
            }
        };
        let (restored, seen) = sample.restore((&to, &RestoreOptions::default()), lacks, take);
        let error = restored.expect_err(&format!("{lacks:?}"));
        assert!(seen.contains(&RenameAnew), "{lacks:?}");
        assert!(
            matches!(&error, RestoreError::Io { verb: "finish it", source, .. }
                if source.kind() == io::ErrorKind::AlreadyExists),
            "{lacks:?}: {error:?}"
        );
        assert_eq!(fs::read(&to).unwrap(), b"precious", "{lacks:?}");
        // Without locks nobody could take up what was written, so it is not kept.
        let has_locks = !lacks.iter().any(|(call, _)| *call == Lock);
        assert_eq!(names(folder.path()).len(), if has_locks { 3 } else { 1 }, "{lacks:?}");
        let (restored, _) = sample.restore((&to, &replacing()), lacks, |_| {});
        assert_eq!(restored.unwrap().resumed_bytes > 0, has_locks, "{lacks:?}");
        assert!(fs::read(&to).unwrap() == sample.image, "{lacks:?}");
        assert_eq!(names(folder.path()), ["disk.img"], "{lacks:?}");
    }
}

#[test]
fn what_cannot_be_made_durable_is_told_and_leaves_nothing_beside_it() {
    use Call::{SyncDirectory, SyncFile};
    let sample = Sample::new();
    // Of a directory, the name was given by then.
    for (lacks, words, left) in [
        ((SyncFile, libc::EINVAL), "make it durable", &[][..]),
        ((SyncDirectory, libc::EIO), "finish it", &["disk.img"][..]),
    ] {
        let lacks = &[lacks];
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("disk.img");
        let (restored, _) = sample.restore((&to, &RestoreOptions::default()), lacks, |_| {});
        let error = restored.expect_err(&format!("{lacks:?}")).to_string();
        assert!(error.contains(words) && error.contains("disk.img"), "{error}");
        assert_eq!(names(folder.path()), left, "{lacks:?}");
    }
}

#[test]
fn a_device_that_makes_no_holes_is_written_with_zeros() {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, vec![0xee; sample.image.len()]).unwrap();
    let Some(disk) = Disk::of(&file) else { return };
    let lacks = [(Call::Allocate, libc::EOPNOTSUPP)];
    let (restored, seen) = sample.restore((&disk.0, &replacing()), &lacks, |_| {});
    restored.unwrap();
    assert!(seen.contains(&Call::Allocate), "the point has no holes: {seen:?}");
    assert!(fs::read(&disk.0).unwrap() == sample.image);
}
