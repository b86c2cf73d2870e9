use super::*;
use crate::layout::ObjectName;
use crate::testing::Counted;
use farshore_proto::keys::Fingerprint;
use farshore_proto::{ErrorKind, KeyNumber, LogId, Slot};
use std::fs;

fn open(folder: &Path, access: Access) -> Result<Store, StoreError> {
    Store::open(folder.to_str().unwrap(), access)
}

fn name(slot: u64) -> ObjectName {
    ObjectName::slot(LogId([3; 16]), Slot(slot))
}

#[tokio::test]
async fn an_object_is_created_once_and_read_back_whole_and_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Access::Write).unwrap();
    let first = Bytes::from_static(b"0123456789");
    assert_eq!(store.create(&name(1), first.clone()).await.unwrap(), Put::Created);
    assert_eq!(store.create(&name(1), Bytes::from_static(b"x")).await.unwrap(), Put::Exists);
    store.settle(&name(1)).await.unwrap();
    assert_eq!(store.get(&name(1), 10).await.unwrap(), first);
    let error = store.get(&name(1), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let part = store.get_range(&name(1), 8..100).await.unwrap();
    assert_eq!((&part.bytes[..], part.object_bytes), (&b"89"[..], 10));
    let part = store.get_range(&name(1), 10..20).await.unwrap();
    assert_eq!((part.bytes.len(), part.object_bytes), (0, 10));
    assert_eq!(store.size(&name(1)).await.unwrap(), 10);
    assert!(!store.exists(&name(2)).await.unwrap());
    let error = store.get_range(&name(2), 0..1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("logs/03030303-"), "{error}");
}

#[tokio::test]
async fn listings_name_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Access::Write).unwrap();
    assert!(store.children(Folder::Logs).await.unwrap().is_empty());
    assert_eq!(store.list(Folder::Logs).count().await, 0);
    for slot in 0..3 {
        store.create(&name(slot), Bytes::from_static(b"abc")).await.unwrap();
    }
    store
        .create(&ObjectName::key(KeyNumber(1), Fingerprint([7; 8])), Bytes::from_static(b"k"))
        .await
        .unwrap();
    assert_eq!(
        store.children(Folder::Logs).await.unwrap(),
        ["03030303-0303-0303-0303-030303030303"]
    );
    let found: Vec<_> = store.list(Folder::Log(LogId([3; 16]))).collect().await;
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|item| item.as_ref().unwrap().bytes == 3));
    assert_eq!(store.list(Folder::Whole).count().await, 4);
}

#[tokio::test]
async fn a_directory_that_goes_away_is_neither_empty_nor_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault");
    fs::create_dir(&path).unwrap();
    let store = open(&path, Access::Write).unwrap();
    store.create(&name(1), Bytes::from_static(b"abc")).await.unwrap();
    fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    let error = store.get(&name(1), 10).await.unwrap_err();
    assert!(matches!(error, StoreError::DirectoryGone { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = store.create(&name(2), Bytes::from_static(b"abc")).await.unwrap_err();
    assert!(matches!(error, StoreError::DirectoryGone { .. }), "{error}");
    assert!(!path.exists());
    // An empty mount point in its place is not the vault either.
    fs::create_dir(&path).unwrap();
    let error = store.size(&name(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::DirectoryGone { .. }), "{error}");
}

/// The directory is back before anybody looks whether it was away (S13).
#[tokio::test]
async fn what_a_directory_missed_while_it_was_away_is_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), Access::Write).unwrap();
    let counted = Arc::new(Counted::over(Arc::clone(opened.backend())));
    let store = Store { inner: Arc::clone(&counted) as Arc<dyn ObjectStore>, ..opened };
    store.create(&name(1), Bytes::from_static(b"abc")).await.unwrap();
    counted.lapse(&name(1), 0..1);
    assert_eq!(store.get(&name(1), 10).await.unwrap(), "abc");
    counted.lapse(&name(1), 0..1);
    assert_eq!(store.get_range(&name(1), 1..3).await.unwrap().bytes, "bc");
    counted.lapse(&name(1), 0..1);
    assert_eq!(store.size(&name(1)).await.unwrap(), 3);
    // It comes and goes: nobody knows.
    counted.lapse(&name(1), 0..100);
    let error = store.get(&name(1), 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(matches!(store.get(&name(2), 10).await, Err(StoreError::NotFound { .. })));
}

/// The directory goes between the look at it and the put (S4, I1).
#[tokio::test]
async fn a_put_into_a_directory_that_is_just_going_away_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault");
    fs::create_dir(&path).unwrap();
    let opened = open(&path, Access::Write).unwrap();
    let counted = Arc::new(Counted::over(Arc::clone(opened.backend())));
    let store = Store { inner: Arc::clone(&counted) as Arc<dyn ObjectStore>, ..opened };
    store.create(&name(1), Bytes::from_static(b"abc")).await.unwrap();
    counted.leave(path.clone(), folder.path().join("elsewhere"));
    let error = store.create(&name(2), Bytes::from_static(b"abc")).await.unwrap_err();
    assert!(matches!(error, StoreError::DirectoryGone { .. }), "{error}");
    // The put itself went well, into a directory that it made.
    assert!(path.join("logs").exists());
}

#[test]
fn what_cannot_be_opened_is_said_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"x").unwrap();
    let gone = folder.path().join("gone");
    let text = |url: &str, access| Store::open(url, access).unwrap_err().to_string();
    assert!(text(gone.to_str().unwrap(), Access::Write).contains("does not exist"));
    assert!(text(file.to_str().unwrap(), Access::Read).contains("is not a directory"));
    assert!(text("gs://bucket/x", Access::Read).contains("scheme \"gs\" are not supported"));
    assert!(text("", Access::Read).contains("not a vault URL"));
    assert!(text("file://host/x", Access::Read).contains("not a vault URL"));
    let below_a_file = file.join("vault");
    assert!(text(below_a_file.to_str().unwrap(), Access::Make).contains("is not writable"));
}

#[test]
fn a_file_url_and_its_path_are_the_same_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("with space");
    let url = format!("file://{}", path.to_str().unwrap().replace(' ', "%20"));
    let store = Store::open(&url, Access::Make).unwrap();
    assert_eq!(store.local_root().unwrap(), path.canonicalize().unwrap());
    assert_eq!(store.url(), url);
    open(&path, Access::Read).unwrap();
}

#[test]
fn a_full_store_is_recognised_behind_the_backends_errors() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Access::Write).unwrap();
    let error = |kind: io::ErrorKind| {
        let inner = io::Error::from(kind);
        let source = object_store::Error::NotSupported { source: Box::new(inner) };
        let source = object_store::Error::Generic { store: "x", source: Box::new(source) };
        store.error(&name(1), "create", source)
    };
    assert!(error(io::ErrorKind::StorageFull).is_no_space());
    assert!(error(io::ErrorKind::QuotaExceeded).is_no_space());
    let text = error(io::ErrorKind::StorageFull).to_string();
    assert!(text.contains("no space is left to write object logs/03030303-"), "{text}");
    assert!(matches!(error(io::ErrorKind::ReadOnlyFilesystem), StoreError::Denied { .. }));
    let other = error(io::ErrorKind::TimedOut);
    assert!(!other.is_no_space());
    assert_eq!(other.kind(), ErrorKind::Unavailable);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_for_writing_only() {
    let path = Path::new("/proc/self");
    assert!(matches!(open(path, Access::Write), Err(StoreError::NotWritable { .. })));
    open(path, Access::Read).unwrap();
}
