use super::*;
use crate::store::{Access, Store};
use farshore_proto::ErrorKind;
use std::fs;
use std::path::PathBuf;

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
    recovery: WrappingKey,
    vault: Vault,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), Access::Make).unwrap();
        let recovery = drawn(WrapperKind::Recovery);
        let vault = Vault::init(&store, &recovery).await.unwrap();
        Self { folder, store, recovery, vault }
    }

    fn file(&self, number: u32, key: &WrappingKey) -> PathBuf {
        self.folder.path().join(format!("keys/{number}/{}", key.wrapper().fingerprint))
    }

    async fn problems(&self) -> Vec<String> {
        let report = crate::verify::verify(&self.vault, false, |_| {}).await.unwrap();
        report
            .problems
            .iter()
            .map(|problem| format!("{} {}", problem.object, problem.what))
            .collect()
    }
}

fn drawn(kind: WrapperKind) -> WrappingKey {
    WrappingKey::draw(kind).unwrap()
}

/// A node opens the vault with its own key and never needs that of the operator.
#[tokio::test]
async fn a_node_key_that_was_added_opens_the_same_vault() {
    let bench = Bench::new().await;
    let node = drawn(WrapperKind::Node);
    let error = Vault::open(&bench.store, &node).await.unwrap_err();
    assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains(&format!("the {} is no key", node.wrapper())), "{error}");
    assert_eq!(add(&bench.vault, &node).await.unwrap(), 3);
    let opened = Vault::open(&bench.store, &node).await.unwrap();
    assert_eq!(opened.wrapper(), node.wrapper());
    let (ours, theirs) = (bench.vault.ring(), opened.ring());
    for ((number, domain, key), other) in ours.keys().zip(theirs.keys()) {
        assert_eq!((number, domain), (other.0, other.1));
        assert!(key.is(other.2));
    }
    assert_eq!(opened.hasher().id(b"x"), bench.vault.hasher().id(b"x"));
    assert_eq!(add(&bench.vault, &node).await.unwrap(), 0, "done once");
    assert_eq!(bench.problems().await, Vec::<String>::new());
}

/// Cut short anywhere, adding leaves a key that opens nothing and says so; done again, it is finished.
#[tokio::test]
async fn adding_a_key_is_finished_wherever_it_was_cut_short() {
    let bench = Bench::new().await;
    let node = drawn(WrapperKind::Node);
    add(&bench.vault, &node).await.unwrap();
    fs::remove_file(bench.file(1, &node)).unwrap();
    let error = Vault::open(&bench.store, &node).await.unwrap_err();
    assert!(matches!(error, VaultError::Lost { .. }), "{error}");
    let problems = bench.problems().await;
    let name = ObjectName::key(KeyNumber(1), node.wrapper().fingerprint);
    assert!(
        problems.len() == 1 && problems[0].starts_with(&format!("{name} is missing")),
        "{problems:?}"
    );
    assert_eq!(add(&bench.vault, &node).await.unwrap(), 1);
    Vault::open(&bench.store, &node).await.unwrap();
}

#[tokio::test]
async fn adding_a_key_overwrites_nothing_that_is_not_its_own() {
    let bench = Bench::new().await;
    let node = drawn(WrapperKind::Node);
    let other = VaultKey::Data(farshore_codec::DataKey::draw().unwrap());
    let object = node.wrap(bench.vault.id(), KeyNumber(2), Domain::FIRST, &other).unwrap().encode();
    fs::create_dir_all(bench.file(2, &node).parent().unwrap()).unwrap();
    fs::write(bench.file(2, &node), &object).unwrap();
    let error = add(&bench.vault, &node).await.unwrap_err();
    assert!(matches!(error, VaultError::NotThatKey { .. }), "{error}");
    assert_eq!(fs::read(bench.file(2, &node)).unwrap(), object);
    assert!(!bench.file(1, &node).exists());
}

#[tokio::test]
async fn keys_are_listed_with_what_wraps_them_and_what_is_damaged() {
    let bench = Bench::new().await;
    let node = drawn(WrapperKind::Node);
    add(&bench.vault, &node).await.unwrap();
    let listed = list(&bench.vault).await.unwrap();
    let roles: Vec<_> = listed.iter().map(|key| (key.number.0, key.role)).collect();
    let role = |kind| Some((Domain::FIRST, kind));
    let own = Some((Domain::OWN, KeyKind::Data));
    assert_eq!(roles, [(1, role(KeyKind::Root)), (2, role(KeyKind::Data)), (3, own)]);
    for key in &listed {
        let mut kinds: Vec<_> = key
            .wrappers
            .iter()
            .map(|found| Wrapper {
                kind: *found.kind.as_ref().unwrap(),
                fingerprint: found.fingerprint,
            })
            .collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [bench.recovery.wrapper(), node.wrapper()]);
    }
    // The objects of two keys swapped, and one of another vault.
    fs::copy(bench.file(2, &bench.recovery), bench.file(2, &node)).unwrap();
    let foreign =
        node.wrap(farshore_proto::VaultId([9; 16]), KeyNumber(1), Domain::FIRST, &data()).unwrap();
    fs::write(bench.file(1, &node), foreign.encode()).unwrap();
    let listed = list(&bench.vault).await.unwrap();
    for (key, is_expected) in listed.iter().zip([
        (|error| matches!(error, VaultError::Mixed { .. })) as fn(&VaultError) -> bool,
        |error| matches!(error, VaultError::NotThatKey { .. }),
    ]) {
        let broken =
            key.wrappers.iter().find(|found| found.fingerprint == node.wrapper().fingerprint);
        let error = broken.unwrap().kind.as_ref().unwrap_err();
        assert!(is_expected(error), "{error}");
    }
    assert_eq!(bench.problems().await.len(), 2);
}

fn data() -> VaultKey {
    VaultKey::Data(farshore_codec::DataKey::from_bytes([1; 32]))
}

#[tokio::test]
async fn a_key_that_was_removed_opens_nothing_and_the_others_go_on() {
    let bench = Bench::new().await;
    let (node, kept) = (drawn(WrapperKind::Node), drawn(WrapperKind::Node));
    add(&bench.vault, &node).await.unwrap();
    add(&bench.vault, &kept).await.unwrap();
    let found = removal(&bench.vault, node.wrapper().fingerprint).await.unwrap();
    assert_eq!((found.kind, found.objects.len()), (Some(WrapperKind::Node), 3));
    assert!(bench.file(1, &node).exists(), "looked up, not removed");
    // Cut short behind its first object.
    fs::remove_file(bench.file(1, &node)).unwrap();
    assert_eq!(bench.problems().await.len(), 1);
    let rest = removal(&bench.vault, node.wrapper().fingerprint).await.unwrap();
    assert_eq!(rest.objects.len(), 2);
    remove(&bench.vault, &found).await.unwrap();
    assert_eq!(bench.problems().await, Vec::<String>::new());
    let error = Vault::open(&bench.store, &node).await.unwrap_err();
    assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
    for key in [&kept, &bench.recovery] {
        Vault::open(&bench.store, key).await.unwrap();
    }
    let error = removal(&bench.vault, node.wrapper().fingerprint).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// I15: whoever removes the last recovery key makes a vault that nobody will ever read.
#[tokio::test]
async fn the_last_recovery_key_is_not_removed() {
    let bench = Bench::new().await;
    let (node, second) = (drawn(WrapperKind::Node), drawn(WrapperKind::Recovery));
    add(&bench.vault, &node).await.unwrap();
    let first = bench.recovery.wrapper().fingerprint;
    let by_node = Vault::open(&bench.store, &node).await.unwrap();
    for vault in [&bench.vault, &by_node] {
        let error = removal(vault, first).await.unwrap_err();
        assert!(matches!(error, VaultError::LastRecoveryKey { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    // Who opened it with a node key cannot tell that a recovery key is whole, but sees that there is one.
    removal(&by_node, node.wrapper().fingerprint).await.unwrap();
    add(&bench.vault, &second).await.unwrap();
    fs::remove_file(bench.file(1, &second)).unwrap();
    removal(&bench.vault, first).await.expect_err("the second was cut short");
    add(&bench.vault, &second).await.unwrap();
    remove(&bench.vault, &removal(&bench.vault, first).await.unwrap()).await.unwrap();
    assert!(Vault::open(&bench.store, &second).await.is_ok());
}
