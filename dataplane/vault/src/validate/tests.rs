use super::*;
use crate::store::Access;
use crate::testing::{Fault, Faulty};
use std::sync::Arc;

async fn report(fault: Fault) -> (Report, Store) {
    let store = Store::over(Arc::new(Faulty::new(fault)), "memory");
    (validate(&store, |_| {}).await, store)
}

/// The checks that fail, with their words.
fn failed(report: &Report) -> Vec<(Check, String)> {
    let broken = |tried: &Tried| Some((tried.check, tried.end.as_ref().err()?.to_string()));
    report.tried.iter().filter_map(broken).collect()
}

#[tokio::test]
async fn a_good_store_passes_and_is_left_as_it_was() {
    let (report, store) = report(Fault::None).await;
    assert!(report.holds() && report.left.is_none(), "{report:?}");
    assert_eq!(store.list(Folder::Whole).count().await, 0);
}

#[tokio::test]
async fn a_directory_passes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Write).unwrap();
    let mut heard = Vec::new();
    let report = validate(&store, |tried| heard.push(tried.check)).await;
    assert!(report.holds(), "{report:?}");
    assert_eq!(heard, Check::ALL);
}

#[tokio::test]
async fn each_broken_rule_is_found_by_its_check() {
    for (fault, check, word) in [
        (Fault::Overwrites, Check::WriteOnce, "ignores If-None-Match"),
        (Fault::SaysCreated, Check::WriteOnce, "ignores If-None-Match"),
        (Fault::LooksThenWrites, Check::Races, "more than one won"),
        (Fault::NoRanges, Check::Ranges, "asked for bytes 0..1"),
        (Fault::OnePage, Check::Listing, "of 1050 new objects are not listed"),
    ] {
        let (report, _) = report(fault).await;
        assert!(!report.holds());
        let failed = failed(&report);
        let (first, text) = failed.first().unwrap();
        assert_eq!(*first, check, "{fault:?}: {failed:?}");
        assert!(text.contains(word), "{fault:?}: {text}");
    }
}

#[tokio::test]
async fn a_request_that_fails_ends_the_validation() {
    for (fault, check) in
        [(Fault::Remembers, Check::ReadAfterWrite), (Fault::Small, Check::LargestSegment)]
    {
        let (report, _) = report(fault).await;
        assert!(!report.holds());
        let last = report.tried.last().unwrap();
        assert_eq!(last.check, check);
        assert!(matches!(last.end, Err(Broken::Store(_))), "{report:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_removed_is_named() {
    let (report, _) = report(Fault::NoDelete).await;
    assert!(report.holds());
    let (folder, error) = report.left.unwrap();
    assert!(folder.starts_with("validate/"), "{folder}");
    assert!(error.to_string().contains("delete"), "{error}");
}
