//! The object store: requests take time, fail, are lost, or are carried out without anybody hearing.

use crate::tasks::{Alarm, Alarms, Sleep};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_codec::{DataKey, RootKey, VaultKey, WrappingKey};
use farshore_proto::keys::WrapperKind;
use farshore_proto::vault::{DomainKeys, OWN_KEY, VaultObject};
use farshore_proto::{Domain, LogId, VaultId};
use farshore_vault::Vault;
use farshore_vault::layout::{Folder, ObjectName};
use farshore_vault::store::Store;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The vault of every run. Its keys are fixed, so that what depends on them (where chunks are cut)
/// depends on nothing but the seed.
const VAULT: VaultId = VaultId([0xfa; 16]);
const DATA_KEY: [u8; 32] = [0x5a; 32];
const OWN_KEY_BYTES: [u8; 32] = [0x5b; 32];

/// What happens to requests, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreFaults {
    /// Everything fails.
    pub is_down: bool,
    /// It fails without having been carried out.
    pub failed: u32,
    /// It is carried out, and the answer is lost.
    pub unanswered: u32,
    /// It is carried out long after whoever sent it was told that it failed.
    pub belated: u32,
    /// It takes up to this long.
    pub slow_us_max: u64,
    /// A listing leaves out an object.
    pub unlisted: u32,
}

/// Longest that a put of a dead process is held up, in microseconds.
const HELD_UP_US_MAX: u64 = 8_000_000;
/// Longest that one which waited for the next run still takes, in microseconds.
const RUSH_US_MAX: u64 = 30_000;
/// One object in so many comes again after it was deleted …
const AGAIN_ONE_IN: u32 = 3;
/// … and is deleted again, each after so long at most, in microseconds.
const AGAIN_US_MAX: u64 = 12_000_000;
/// Requests end in an error after this.
const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug)]
enum Op {
    Put(Path, PutPayload, PutOptions),
    Get(Path, GetOptions),
    Delete(Path),
}

/// A request on its way.
#[derive(Debug)]
struct Request {
    op: Op,
    /// The object that it makes is deleted so long afterwards: what comes again goes again.
    goes_again: Option<Duration>,
    /// Gone when nobody waits for it any more.
    caller: Weak<()>,
}

#[derive(Debug)]
enum Reply {
    Put(Result<PutResult>),
    Get(Box<Result<GetResult>>),
    Delete(Result<()>),
}

/// Whose requests they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Nodes, which write.
    Writer,
    /// Who reads beside them.
    Reader,
    /// Who lets history go.
    Sweeper,
}

/// How the store is to its reader. Chance is its own: what nodes meet is the same whether somebody reads
/// or not.
#[derive(Debug)]
struct ReaderWay {
    rng: fastrand::Rng,
    /// It reaches nothing, whatever others do.
    is_cut_off: bool,
    /// Its requests that ended in an error.
    failed: u64,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    reader: ReaderWay,
    sweeper: fastrand::Rng,
    /// Decides what comes again.
    again: fastrand::Rng,
    faults: StoreFaults,
    /// Requests are carried out on the spot: before a run begins.
    is_instant: bool,
    next: u64,
    requests: BTreeMap<u64, Request>,
    /// Requests that are held up on their way, and for how long from when they were due; without a
    /// time until the next run of their node has read its log, the worst of moments.
    held_up: BTreeMap<u64, Option<Duration>>,
    replies: BTreeMap<u64, Reply>,
    waiting: BTreeMap<u64, Waker>,
    attempts: Vec<Bytes>,
    puts: u64,
    gets: u64,
}

/// The store of a run; clones share it.
#[derive(Debug, Clone)]
pub struct SimStore {
    state: Arc<Mutex<State>>,
    objects: Arc<InMemory>,
    alarms: Alarms,
    vault: Vault,
    reader: Vault,
    sweeper: Vault,
    direct: Vault,
}

/// The store as processes reach it.
#[derive(Debug, Clone)]
struct Remote {
    caller: Caller,
    state: Arc<Mutex<State>>,
    objects: Arc<InMemory>,
    alarms: Alarms,
}

impl SimStore {
    pub(crate) fn new(rng: fastrand::Rng, alarms: Alarms) -> Self {
        let reader = fastrand::Rng::with_seed(rng.clone().u64(..));
        let state = State {
            rng,
            sweeper: fastrand::Rng::with_seed(reader.clone().u64(..)),
            again: fastrand::Rng::with_seed(!reader.clone().u64(..)),
            reader: ReaderWay { rng: reader, is_cut_off: false, failed: 0 },
            faults: StoreFaults::default(),
            is_instant: true,
            next: 0,
            requests: BTreeMap::new(),
            held_up: BTreeMap::new(),
            replies: BTreeMap::new(),
            waiting: BTreeMap::new(),
            attempts: Vec::new(),
            puts: 0,
            gets: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let objects = Arc::new(InMemory::new());
        let recovery =
            WrappingKey::draw(WrapperKind::Recovery).expect("the system has random bytes");
        make_vault(&objects, &recovery);
        let open = |store: Store| at_once(Vault::open(&store, &recovery)).expect("just made");
        let reached_by = |caller| {
            let (state, objects) = (Arc::clone(&state), Arc::clone(&objects));
            let remote = Remote { caller, state, objects, alarms: alarms.clone() };
            // Logs are short here: a volume is quiet soon.
            open(Store::over(Arc::new(remote), "sim")).with_quiet_slots(2)
        };
        let (vault, reader) = (reached_by(Caller::Writer), reached_by(Caller::Reader));
        let sweeper = reached_by(Caller::Sweeper);
        let direct = open(Store::over(Arc::clone(&objects) as Arc<dyn ObjectStore>, "direct"));
        let store = Self { state, objects, alarms, vault, reader, sweeper, direct };
        store.lock().is_instant = false;
        store
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The vault as processes reach it, for use in [`crate::world::World::spawn`].
    #[must_use]
    pub fn vault(&self) -> Vault {
        self.vault.clone()
    }

    /// The vault as its reader reaches it.
    #[must_use]
    pub fn readers_vault(&self) -> Vault {
        self.reader.clone()
    }

    /// The vault as the sweeper reaches it.
    #[must_use]
    pub fn sweepers_vault(&self) -> Vault {
        self.sweeper.clone()
    }

    /// The reader reaches the store no more, or again.
    pub fn cut_reader_off(&self, is_cut_off: bool) {
        self.lock().reader.is_cut_off = is_cut_off;
    }

    /// The reader's requests that ended in an error.
    #[must_use]
    pub fn failed_reads(&self) -> u64 {
        self.lock().reader.failed
    }

    /// The vault as it really is, for the oracle; its calls end [`at_once`].
    #[must_use]
    pub fn direct(&self) -> Vault {
        self.direct.clone()
    }

    /// Sets what happens to requests from now on.
    pub fn set_faults(&self, faults: StoreFaults) {
        self.lock().faults = faults;
    }

    /// Puts and gets so far.
    #[must_use]
    pub fn requests(&self) -> (u64, u64) {
        let state = self.lock();
        (state.puts, state.gets)
    }

    /// The objects that processes have tried to make since the last call.
    pub(crate) fn take_attempts(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.lock().attempts)
    }

    /// Puts into a log that are on their way.
    #[must_use]
    pub fn puts_on_way(&self, log: LogId) -> usize {
        self.lock().puts_into(log).len()
    }

    /// The writer of a log dies: its puts on the way get lost, are held up, or arrive as if nothing
    /// had happened.
    pub fn writer_died(&self, log: LogId, rng: &mut fastrand::Rng) {
        let mut state = self.lock();
        for request in state.puts_into(log) {
            if state.requests[&request].caller.strong_count() > 0 {
                // Somebody else puts a seal into it.
                continue;
            }
            match rng.u32(0..4) {
                0 => {
                    state.requests.remove(&request);
                }
                1 => {
                    let wait = Duration::from_micros(rng.u64(0..HELD_UP_US_MAX));
                    state.held_up.insert(request, Some(wait));
                }
                2 => {
                    state.held_up.insert(request, None);
                }
                _ => {}
            }
        }
    }

    /// The next run of a dead writer has read its log and is about to go on.
    pub fn writer_goes_on(&self, log: LogId, rng: &mut fastrand::Rng) {
        let mut state = self.lock();
        for request in state.puts_into(log) {
            if state.held_up.get(&request) == Some(&None) {
                state.held_up.remove(&request);
                let wait = Duration::from_micros(rng.u64(0..RUSH_US_MAX));
                self.alarms.set(wait, Alarm::Store(request));
            }
        }
    }

    /// The store carries a request out.
    pub(crate) fn carry_out(&self, request: u64) {
        let held_up = {
            let mut state = self.lock();
            let held_up = state.held_up.get(&request).copied();
            if let Some(Some(_)) = held_up {
                state.held_up.remove(&request);
            }
            held_up
        };
        match held_up {
            Some(Some(wait)) => return self.alarms.set(wait, Alarm::Store(request)),
            Some(None) => return,
            None => {}
        }
        let Some(Request { op, goes_again, caller }) = self.lock().requests.remove(&request) else {
            return;
        };
        let reply = match op {
            Op::Put(path, payload, options) => {
                if let Some(wait) = goes_again {
                    self.send(Op::Delete(path.clone()), None, wait);
                }
                Reply::Put(at_once(self.objects.put_opts(&path, payload, options)))
            }
            Op::Get(path, options) => {
                Reply::Get(Box::new(at_once(self.objects.get_opts(&path, options))))
            }
            Op::Delete(path) => {
                self.comes_again(&path);
                Reply::Delete(at_once(self.objects.delete(&path)))
            }
        };
        if caller.strong_count() == 0 {
            return;
        }
        let waker = {
            let mut state = self.lock();
            state.replies.insert(request, reply);
            state.waiting.remove(&request)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What is deleted was put twice, now and then, and deleted twice. The second put comes at any time, or in the worst of moments: when
    /// the next run of its writer has read its log. The second delete comes behind it.
    fn comes_again(&self, path: &Path) {
        let Some(bytes) = self.object(path.as_ref()) else { return };
        let put = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = Op::Put(path.clone(), bytes.into(), put);
        let (is_again, is_held_up, wait, goes) = {
            let again = &mut self.lock().again;
            let mut wait = || Duration::from_micros(again.u64(0..AGAIN_US_MAX));
            let (wait, goes) = (wait(), wait());
            (again.u32(0..AGAIN_ONE_IN) == 0, again.u32(0..3) > 0, wait, goes)
        };
        if is_again {
            let request = self.send(put, Some(goes), wait);
            if is_held_up {
                self.lock().held_up.insert(request, None);
            }
        }
    }

    /// Sends a request for whose answer nobody waits, so that it arrives after so long.
    fn send(&self, op: Op, goes_again: Option<Duration>, wait: Duration) -> u64 {
        let mut state = self.lock();
        let request = state.next;
        state.next += 1;
        state.requests.insert(request, Request { op, goes_again, caller: Weak::new() });
        drop(state);
        self.alarms.set(wait, Alarm::Store(request));
        request
    }

    /// Names of all objects, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let listed = at_once(self.objects.list(None).collect::<Vec<_>>());
        let mut names: Vec<String> =
            listed.into_iter().flatten().map(|meta| meta.location.to_string()).collect();
        names.sort();
        names
    }

    /// The bytes of an object, if it is there.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<Bytes> {
        let path = Path::from(name);
        at_once(async { self.objects.get(&path).await?.bytes().await }).ok()
    }

    /// Damages an object: one bit of it flips.
    pub fn flip(&self, name: &str, rng: &mut fastrand::Rng) {
        let Some(bytes) = self.object(name) else { return };
        let mut bytes = bytes.to_vec();
        let at = rng.usize(0..bytes.len());
        bytes[at] ^= 1 << rng.u32(0..8);
        self.replace(name, bytes.into());
    }

    /// Puts other bytes in the place of an object, as only a broken store does.
    ///
    /// # Panics
    /// Never: memory takes it.
    pub fn replace(&self, name: &str, bytes: Bytes) {
        at_once(self.objects.put(&Path::from(name), bytes.into())).expect("memory takes it");
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a call that waits for nothing.
///
/// # Panics
/// If it waits.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    // Joined futures yield now and then although they wait for nothing.
    const POLLS_MAX: usize = 100_000;
    let mut work = std::pin::pin!(work);
    (0..POLLS_MAX).find_map(|_| work.as_mut().now_or_never()).expect("nothing here takes time")
}

fn make_vault(objects: &Arc<InMemory>, recovery: &WrappingKey) {
    let store = Store::over(Arc::clone(objects) as Arc<dyn ObjectStore>, "direct");
    let create = |name, bytes: Vec<u8>| {
        at_once(store.create(&name, bytes)).expect("memory takes it");
    };
    let DomainKeys { domain, root, data } = DomainKeys::FIRST;
    let root_key = VaultKey::Root(RootKey::from_bytes(DATA_KEY));
    let data_key = VaultKey::Data(DataKey::from_bytes(DATA_KEY));
    let own_key = VaultKey::Data(DataKey::from_bytes(OWN_KEY_BYTES));
    let keys =
        [(root, domain, root_key), (data, domain, data_key), (OWN_KEY, Domain::OWN, own_key)];
    for (number, domain, key) in keys {
        let object = recovery.wrap(VAULT, number, domain, &key);
        let object = object.expect("the system has random bytes");
        create(ObjectName::key(number, recovery.wrapper().fingerprint), object.encode());
    }
    create(ObjectName::vault(), VaultObject::new(VAULT).encode());
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy)]
struct Fate {
    /// When the store carries it out, if it does.
    there: Option<Duration>,
    /// When an error is reported, if one is.
    error: Option<Duration>,
    /// How long the answer takes.
    back: Duration,
}

impl State {
    /// The puts into a log that are on their way.
    fn puts_into(&self, log: LogId) -> Vec<u64> {
        let folder = Folder::Log(log).to_string();
        let is_of_log = |request: &Request| match &request.op {
            Op::Put(path, ..) => path.as_ref().starts_with(&folder),
            Op::Get(..) | Op::Delete(_) => false,
        };
        let puts = self.requests.iter().filter(|(_, request)| is_of_log(request));
        puts.map(|(request, _)| *request).collect()
    }

    /// The chance that decides about a caller's requests, and whether the store is away for it.
    fn way_of(&mut self, caller: Caller) -> (&mut fastrand::Rng, bool) {
        let is_down = self.faults.is_down;
        match caller {
            Caller::Writer => (&mut self.rng, is_down),
            Caller::Sweeper => (&mut self.sweeper, is_down),
            Caller::Reader => (&mut self.reader.rng, is_down || self.reader.is_cut_off),
        }
    }

    fn fate(&mut self, caller: Caller) -> Fate {
        let faults = self.faults;
        let (rng, is_away) = self.way_of(caller);
        let slowest = 20_000.max(faults.slow_us_max);
        let mut us = |range: std::ops::Range<u64>| Duration::from_micros(rng.u64(range));
        let (there, back) = (us(200..slowest), us(100..5_000));
        let late = us(0..2_000_000);
        let draw = rng.u32(0..1000);
        if is_away || draw < faults.failed {
            return Fate { there: None, error: Some(there), back };
        }
        if draw < faults.failed + faults.unanswered {
            return Fate { there: Some(there), error: Some(TIMEOUT), back };
        }
        if draw < faults.failed + faults.unanswered + faults.belated {
            return Fate { there: Some(TIMEOUT + late), error: Some(TIMEOUT), back };
        }
        Fate { there: Some(there), error: None, back }
    }
}

/// Waits for a reply of the store.
struct Answer<'a> {
    remote: &'a Remote,
    request: u64,
}

impl Future for Answer<'_> {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        let mut state = lock(&self.remote.state);
        if let Some(reply) = state.replies.remove(&self.request) {
            return Poll::Ready(reply);
        }
        state.waiting.insert(self.request, context.waker().clone());
        Poll::Pending
    }
}

fn trouble() -> Error {
    Error::Generic { store: "sim", source: "503: try again".into() }
}

impl Remote {
    async fn sleep(&self, wait: Duration) {
        Sleep::new(self.alarms.clone(), wait).await;
    }

    /// Sends a request; an error may come although it is carried out, now or later.
    async fn request(&self, op: Op) -> Result<Reply> {
        let caller = Arc::new(());
        let (request, fate) = {
            let mut state = lock(&self.state);
            let request = state.next;
            state.next += 1;
            match &op {
                Op::Put(_, payload, _) => {
                    state.puts += 1;
                    state.attempts.push(Bytes::from(payload.clone()));
                }
                Op::Get(..) => state.gets += 1,
                Op::Delete(_) => {}
            }
            let fate = state.fate(self.caller);
            if fate.there.is_some() {
                let caller = Arc::downgrade(&caller);
                state.requests.insert(request, Request { op, goes_again: None, caller });
            }
            (request, fate)
        };
        if let Some(there) = fate.there {
            self.alarms.set(there, Alarm::Store(request));
        }
        if let Some(wait) = fate.error {
            self.sleep(wait).await;
            self.failed();
            return Err(trouble());
        }
        let reply = Answer { remote: self, request }.await;
        self.sleep(fate.back).await;
        drop(caller);
        Ok(reply)
    }

    fn failed(&self) {
        if self.caller == Caller::Reader {
            lock(&self.state).reader.failed += 1;
        }
    }

    fn is_instant(&self) -> bool {
        lock(&self.state).is_instant
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("sim")
    }
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match self.request(Op::Put(path.clone(), payload, options)).await? {
            Reply::Put(done) => done,
            Reply::Get(_) | Reply::Delete(_) => Err(trouble()),
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented {
            operation: "multipart".to_owned(),
            implementer: "sim".to_owned(),
        })
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if self.is_instant() {
            return self.objects.get_opts(path, options).await;
        }
        match self.request(Op::Get(path.clone(), options)).await? {
            Reply::Get(done) => *done,
            Reply::Put(_) | Reply::Delete(_) => Err(trouble()),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let remote = self.clone();
        let deleted = paths.then(move |path| {
            let remote = remote.clone();
            async move {
                let path = path?;
                match remote.request(Op::Delete(path.clone())).await? {
                    Reply::Delete(done) => done.map(|()| path),
                    Reply::Put(_) | Reply::Get(_) => Err(trouble()),
                }
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (state, caller) = (Arc::clone(&self.state), self.caller);
        if lock(&state).way_of(caller).1 {
            self.failed();
            return futures::stream::once(std::future::ready(Err(trouble()))).boxed();
        }
        let is_listed = move |_: &Result<ObjectMeta>| {
            let mut state = lock(&state);
            let unlisted = state.faults.unlisted;
            let is_listed = state.way_of(caller).0.u32(0..1000) >= unlisted;
            std::future::ready(is_listed)
        };
        self.objects.list(prefix).filter(is_listed).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if lock(&self.state).way_of(self.caller).1 {
            self.failed();
            return Err(trouble());
        }
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
