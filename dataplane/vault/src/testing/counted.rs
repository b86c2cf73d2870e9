//! A store that counts what is read from it, remembers the order of its calls, refuses to read what it is told to, goes away when it is
//! told to, and has others put between any two of its calls.

use crate::layout::ObjectName;
use crate::store::Store;
use crate::vault::Vault;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::watch;

/// Counts the GETs of the store below it; what is put and asked for is remembered.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn ObjectStore>,
    trail: Mutex<Vec<(Call, Path)>>,
    /// Objects below this folder can be neither read nor listed.
    refused: OnceLock<Path>,
    /// What a writer puts while a reader looks.
    growth: OnceLock<Growth>,
    /// Objects of which some GETs, counted from 0, find nothing.
    lapses: Mutex<BTreeMap<Path, (u64, Range<u64>)>>,
    /// Files that somebody else writes just before an object is put for the first time.
    rivals: Mutex<BTreeMap<Path, (PathBuf, Vec<u8>)>>,
    /// Whether puts are carried out and then made again, as after an answer that was lost.
    loses_answers: AtomicBool,
    /// Directories to rename just before the next put: from, to.
    leaving: Mutex<Option<(PathBuf, PathBuf)>>,
    /// What others put, and how many calls of all kinds there were.
    others: Mutex<(u64, Vec<OthersPut>)>,
    /// What happens just before a call of those that `others` counts.
    act: Mutex<Option<(u64, Act)>>,
}

/// What somebody does beside whoever is under test.
struct Act(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Act")
    }
}

/// A call that names an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It was asked for, or for a range of it.
    Get,
    /// It was put, by a put of one piece.
    Put,
}

/// A put of somebody else, create-if-absent, just before a call.
#[derive(Debug, Clone)]
pub struct OthersPut {
    /// Before which call, from 0.
    pub call: u64,
    /// The file of the object.
    pub file: PathBuf,
    /// What it gets.
    pub bytes: Vec<u8>,
    /// Whether it won, once it was made.
    pub won: Option<bool>,
}

/// Objects that are put right after one was found missing, before any behind that is looked at.
#[derive(Debug)]
struct Growth {
    missed: Path,
    files: Vec<(PathBuf, Vec<u8>)>,
    is_done: watch::Sender<bool>,
}

impl Counted {
    /// Counts what goes to `inner`.
    pub fn over(inner: Arc<dyn ObjectStore>) -> Self {
        let (refused, leaving) = (OnceLock::new(), Mutex::default());
        let (growth, lapses, others) = (OnceLock::new(), Mutex::default(), Mutex::default());
        let (trail, rivals, loses_answers) = (Mutex::default(), Mutex::default(), false.into());
        let act = Mutex::default();
        Self { inner, trail, refused, growth, lapses, rivals, loses_answers, leaving, others, act }
    }

    /// Has something done just before call number `call`, from 0, of those that come from now on.
    pub fn before_call(&self, call: u64, act: impl FnOnce() + Send + 'static) {
        self.others_put(Vec::new());
        *self.act.lock().unwrap() = Some((call, Act(Box::new(act))));
    }

    /// Has others put.
    pub fn others_put(&self, puts: Vec<OthersPut>) {
        *self.others.lock().unwrap() = (0, puts);
    }

    /// How many calls there were since then, and what became of the puts.
    pub fn what_others_put(&self) -> (u64, Vec<OthersPut>) {
        self.others.lock().unwrap().clone()
    }

    /// A call is about to be made.
    fn let_others_put(&self) {
        let mut others = self.others.lock().unwrap();
        let (call, puts) = &mut *others;
        let act = self.act.lock().unwrap().take_if(|(at, _)| *at == *call);
        if let Some((_, Act(act))) = act {
            act();
        }
        for put in puts.iter_mut().filter(|put| put.call == *call) {
            // All of it or nothing, as every store does.
            let whole = put.file.with_extension("others");
            std::fs::write(&whole, &put.bytes).unwrap();
            put.won = Some(std::fs::hard_link(&whole, &put.file).is_ok());
            std::fs::remove_file(&whole).unwrap();
        }
        *call += 1;
    }

    /// Writes the files as soon as the first of them was looked for and not found; whoever looks for another of
    /// them waits until then.
    pub fn grow(&self, missed: &ObjectName, files: Vec<(PathBuf, Vec<u8>)>) {
        let missed = Path::from(missed.to_string());
        self.growth.set(Growth { missed, files, is_done: watch::Sender::new(false) }).unwrap();
    }

    /// Of the GETs of an object from now on, those that are counted by `range` find nothing.
    pub fn lapse(&self, name: &ObjectName, range: Range<u64>) {
        let path = Path::from(name.to_string());
        self.lapses.lock().unwrap().insert(path, (0, range));
    }

    /// Whether this GET finds nothing.
    fn lapses(&self, location: &Path) -> bool {
        let mut lapses = self.lapses.lock().unwrap();
        let Some((count, range)) = lapses.get_mut(location) else { return false };
        let number = *count;
        *count += 1;
        range.contains(&number)
    }

    /// Whether that has happened.
    pub fn has_grown(&self) -> bool {
        *self.growth.get().unwrap().is_done.borrow()
    }

    async fn get_while_it_grows(
        &self,
        growth: &Growth,
        location: &Path,
        options: GetOptions,
    ) -> Result<GetResult> {
        let is_missed = *location == growth.missed;
        let name = location.filename();
        let is_put = |(file, _): &(PathBuf, Vec<u8>)| {
            file.file_name().and_then(|file| file.to_str()) == name
        };
        let is_behind = !is_missed && growth.files.iter().any(is_put);
        if is_behind {
            growth.is_done.subscribe().wait_for(|is_done| *is_done).await.unwrap();
        }
        let found = self.inner.get_opts(location, options).await;
        if is_missed && found.is_err() {
            for (path, bytes) in &growth.files {
                std::fs::write(path, bytes).unwrap();
            }
            growth.is_done.send_replace(true);
        }
        found
    }

    /// Has somebody else put an object just before it is put here.
    pub fn outrun(&self, name: &ObjectName, file: PathBuf, bytes: Vec<u8>) {
        self.rivals.lock().unwrap().insert(Path::from(name.to_string()), (file, bytes));
    }

    /// From now on the answer of each put is lost, and its second request finds what the first one put.
    pub fn lose_answers(&self) {
        self.loses_answers.store(true, Ordering::Relaxed);
    }

    /// Takes a directory away just before the next put reaches the store.
    pub fn leave(&self, from: PathBuf, to: PathBuf) {
        *self.leaving.lock().unwrap() = Some((from, to));
    }

    /// GETs so far.
    pub fn count(&self) -> u64 {
        let trail = self.trail.lock().unwrap();
        trail.iter().filter(|(call, _)| *call == Call::Get).count() as u64
    }

    /// What was put and asked for so far, in the order in which the calls were made.
    pub fn trail(&self) -> Vec<(Call, Path)> {
        self.trail.lock().unwrap().clone()
    }

    fn note(&self, call: Call, location: &Path) {
        self.trail.lock().unwrap().push((call, location.clone()));
    }

    /// From now on nothing below the folder can be read or listed.
    pub fn refuse(&self, folder: &str) {
        self.refused.set(Path::from(folder)).unwrap();
    }

    fn check(&self, path: Option<&Path>) -> Result<()> {
        let is_refused = |folder: &Path| path.is_some_and(|path| path.prefix_matches(folder));
        match self.refused.get() {
            Some(folder) if is_refused(folder) => {
                let (path, source) = (folder.to_string(), "refused".into());
                Err(object_store::Error::PermissionDenied { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// The store of a vault, counted from now on.
pub fn counted(vault: &Vault) -> (Store, Arc<Counted>) {
    let inner = Arc::clone(vault.store().backend());
    let counted = Arc::new(Counted::over(inner));
    (Store::over(Arc::clone(&counted) as Arc<dyn ObjectStore>, "counted"), counted)
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counted")
    }
}

impl ObjectStore for Counted {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.note(Call::Put, location);
        self.let_others_put();
        if let Some((from, to)) = self.leaving.lock().unwrap().take() {
            std::fs::rename(from, to).unwrap();
        }
        if let Some((file, bytes)) = self.rivals.lock().unwrap().remove(location) {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, bytes).unwrap();
        }
        if !self.loses_answers.load(Ordering::Relaxed) {
            return self.inner.put_opts(location, payload, options);
        }
        Box::pin(async move {
            self.inner.put_opts(location, payload.clone(), options.clone()).await?;
            self.inner.put_opts(location, payload, options).await
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.note(Call::Get, location);
        self.let_others_put();
        if self.lapses(location) {
            let (path, source) = (location.to_string(), "it lapsed".into());
            return Box::pin(async { Err(object_store::Error::NotFound { path, source }) });
        }
        match (self.check(Some(location)), self.growth.get()) {
            (Ok(()), Some(growth)) => Box::pin(self.get_while_it_grows(growth, location, options)),
            (Ok(()), None) => self.inner.get_opts(location, options),
            (Err(error), _) => Box::pin(async { Err(error) }),
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check(prefix) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.inner.copy_opts(from, to, options)
    }
}
