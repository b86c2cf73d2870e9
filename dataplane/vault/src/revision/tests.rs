use super::*;
use crate::PointSelector;
use crate::log::{LogScan, find_end};
use crate::store::Access;
use crate::testing::World;
use crate::verify::verify;
use crate::view::VolumeView;
use crate::wrappers;
use farshore_codec::seal_bytes;
use farshore_codec::{DataKey, VaultKey, WrappingKey};
use farshore_proto::keys::WrapperKind;
use farshore_proto::revision::place;
use farshore_proto::vault::DomainKeys;
use farshore_proto::{Domain, ErrorKind, Slot};
use std::fs;

/// The first number behind those of a new vault.
const NEXT: KeyNumber = KeyNumber(4);

/// Wraps another key of the vault, for whatever opens it.
fn wrap(world: &World, number: KeyNumber, domain: Domain, wrapper: &WrappingKey) {
    let key = VaultKey::Data(DataKey::draw().unwrap());
    let object = wrapper.wrap(world.vault.id(), number, domain, &key).unwrap();
    let file = world.file(&ObjectName::key(number, wrapper.wrapper().fingerprint));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, object.encode()).unwrap();
}

/// With so many keys of which none is erased; new objects go by the same as before.
fn of_keys(last: u32) -> RevisionBody {
    RevisionBody {
        time_unix_ms: 7,
        own_key: KeyNumber(3),
        last_key: KeyNumber(last),
        domains: vec![DomainKeys::FIRST],
        erased: Vec::new(),
    }
}

/// The same, but new objects of the domain go by its next key.
fn rotated(last: u32) -> RevisionBody {
    let domains = vec![DomainKeys { data: NEXT, ..DomainKeys::FIRST }];
    RevisionBody { domains, ..of_keys(last) }
}

async fn open_again(world: &World) -> Result<Vault, VaultError> {
    let path = world.file(&ObjectName::vault());
    let store = Store::open(path.parent().unwrap().to_str().unwrap(), Access::Make).unwrap();
    Vault::open(&store, &world.recovery).await
}

async fn problems(vault: &Vault) -> Vec<String> {
    let report = verify(vault, false, |_| {}).await.unwrap();
    let told = |problem: &crate::verify::Problem| format!("{} {}", problem.object, problem.what);
    report.problems.iter().map(told).collect()
}

/// A key that is wrapped is nothing that anybody uses, until the vault says that all have it, and that it is the one.
#[tokio::test]
async fn keys_are_used_from_the_revision_on_that_says_so() {
    let world = World::new(1, 1).await;
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    wrap(&world, KeyNumber(5), Domain::OWN, &world.recovery);
    let opened = open_again(&world).await.unwrap();
    assert_eq!((opened.revision().number(), opened.ring().role(NEXT)), (0, None));
    assert_eq!(put(&opened, &of_keys(5)).await.unwrap(), 1);
    assert_eq!(put(&opened, &of_keys(5)).await.unwrap(), 1, "the same is there");
    let opened = open_again(&world).await.unwrap();
    let going_by = |vault: &Vault| (vault.seal_keys().own.0.0, vault.seal_keys().data.0.0);
    assert_eq!((opened.revision().number(), going_by(&opened)), (1, (3, 2)));
    let second = RevisionBody { own_key: KeyNumber(5), ..rotated(5) };
    let error = put(&world.vault, &second).await.unwrap_err();
    assert!(matches!(error, VaultError::Revised { number: 1, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(put(&opened, &second).await.unwrap(), 2);
    let opened = open_again(&world).await.unwrap();
    assert_eq!(going_by(&opened), (5, 4));
    assert_eq!(problems(&opened).await, Vec::<String>::new());
    // The next one goes by the key of the vault's own that only the one before names.
    let third = RevisionBody { time_unix_ms: 8, ..second };
    assert_eq!(put(&opened, &third).await.unwrap(), 3);
    let opened = open_again(&world).await.unwrap();
    assert_eq!(opened.revision().body(), Some(&third));
    let object = fs::read(world.file(&ObjectName::revision(3))).unwrap();
    assert_eq!(key_of_revision(&object).unwrap(), KeyNumber(5));
    // Somebody has a key that was replaced, and may put: the vault does not go back to it.
    let file = world.file(&ObjectName::revision(4));
    let forged = seal_revision(world.vault.id(), 4, world.vault.seal_keys(), &of_keys(5)).unwrap();
    fs::write(&file, forged).unwrap();
    let error = open_again(&world).await.unwrap_err();
    assert!(matches!(error, VaultError::NotThatKey { .. }), "{error}");
    assert!(error.to_string().contains("revisions/0000000004"), "{error}");
}

/// What came once stays, and nothing is taken that the vault opens by.
#[tokio::test]
async fn a_revision_that_takes_back_is_not_put() {
    let world = World::new(1, 1).await;
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    put(&world.vault, &RevisionBody { erased: vec![2..=2], ..rotated(4) }).await.unwrap();
    let opened = open_again(&world).await.unwrap();
    let own = DomainKeys { root: KeyNumber(1), data: NEXT, ..DomainKeys::FIRST };
    for bad in [
        rotated(4),
        RevisionBody { erased: vec![2..=2], ..of_keys(4) },
        RevisionBody { erased: vec![2..=2, 4..=4], ..rotated(4) },
        RevisionBody {
            erased: vec![2..=2],
            domains: vec![DomainKeys { root: KeyNumber(2), ..own }],
            ..rotated(4)
        },
    ] {
        let error = put(&opened, &bad).await.unwrap_err();
        assert!(matches!(error, VaultError::BadRevision { number: 2, .. }), "{bad:?}: {error}");
    }
    let error = put(&world.vault, &of_keys(3)).await.unwrap_err();
    assert!(matches!(error, VaultError::Revised { number: 1, .. }), "{error}");
}

/// Else something could be sealed under a key that one of those who open the vault does not have.
#[tokio::test]
async fn no_key_is_said_to_be_there_that_is_not_wrapped_for_all() {
    let world = World::new(1, 1).await;
    let node = WrappingKey::draw(WrapperKind::Node).unwrap();
    wrappers::add(&world.vault, &node).await.unwrap();
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    let error = put(&world.vault, &of_keys(4)).await.unwrap_err();
    let name = ObjectName::key(NEXT, node.wrapper().fingerprint);
    assert!(error.to_string().contains(&format!("object {name} is missing")), "{error}");
    wrap(&world, NEXT, Domain::FIRST, &node);
    put(&world.vault, &of_keys(4)).await.unwrap();
}

/// A recovery key that lacks one of the keys is not the last that may stay.
#[tokio::test]
async fn the_last_key_that_has_all_is_not_removed() {
    let world = World::new(1, 1).await;
    let other = WrappingKey::draw(WrapperKind::Recovery).unwrap();
    wrappers::add(&world.vault, &other).await.unwrap();
    let late = Vault::open(world.vault.store(), &other).await.unwrap();
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    wrap(&world, NEXT, Domain::FIRST, &other);
    put(&world.vault, &of_keys(4)).await.unwrap();
    let ours = world.recovery.wrapper().fingerprint;
    let error = wrappers::removal(&late, ours).await.unwrap_err();
    assert!(matches!(error, VaultError::Revised { .. }), "{error}");
    let late = Vault::open(world.vault.store(), &other).await.unwrap();
    wrappers::removal(&late, ours).await.unwrap();
    let name = ObjectName::key(NEXT, other.wrapper().fingerprint);
    let kept = fs::read(world.file(&name)).unwrap();
    let none = other.wrap(world.vault.id(), NEXT, Domain::FIRST, &VaultKey::Withheld).unwrap();
    for lacking in [None, Some(none.encode())] {
        fs::remove_file(world.file(&name)).unwrap();
        if let Some(bytes) = lacking {
            fs::write(world.file(&name), bytes).unwrap();
        }
        for (vault, key) in [(&other, ours), (&world.recovery, ours)] {
            let opened = Vault::open(world.vault.store(), vault).await.unwrap();
            let error = wrappers::removal(&opened, key).await.unwrap_err();
            assert!(matches!(error, VaultError::LastRecoveryKey { .. }), "{error}");
        }
        fs::write(world.file(&name), &kept).unwrap();
    }
}

/// Whoever may delete cannot set a vault back to the keys of before: what the revision names is missed.
#[tokio::test]
async fn a_key_that_a_revision_names_and_that_is_gone_is_lost() {
    let world = World::new(1, 1).await;
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    put(&world.vault, &of_keys(4)).await.unwrap();
    let name = ObjectName::key(NEXT, world.recovery.wrapper().fingerprint);
    fs::remove_file(world.file(&name)).unwrap();
    // What there is reads, but nobody writes.
    let opened = open_again(&world).await.unwrap();
    let error = opened.check_write_once().await.unwrap_err();
    assert!(error.to_string().contains(&format!("object {name} is missing")), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(problems(&opened).await, [format!("{name} is missing")]);
    // One that the vault was made with is needed to open it.
    let first = ObjectName::key(KeyNumber(2), world.recovery.wrapper().fingerprint);
    fs::remove_file(world.file(&first)).unwrap();
    let error = open_again(&world).await.unwrap_err();
    assert!(error.to_string().contains(&format!("object {first} is missing")), "{error}");
}

/// The data is gone, and that is no loss; who walks the log gets to its end all the same, as it must to seal it.
#[tokio::test]
async fn what_was_sealed_under_an_erased_key_is_gone_and_not_lost() {
    let mut world = World::new(1, 1).await;
    world.write(0, 3, 2, 7);
    world.end_span(0, true);
    let slot = world.commit(0).await;
    wrap(&world, NEXT, Domain::FIRST, &world.recovery);
    put(&world.vault, &rotated(4)).await.unwrap();
    let body = RevisionBody { erased: vec![2..=2], ..rotated(4) };
    put(&open_again(&world).await.unwrap(), &body).await.unwrap();
    let key = ObjectName::key(KeyNumber(2), world.recovery.wrapper().fingerprint);
    let opened = open_again(&world).await.unwrap();
    assert_eq!(opened.ring().role(KeyNumber(2)), None, "though it is still there");
    let told = problems(&opened).await;
    assert!(told.iter().any(|told| told.starts_with(&format!("{key} was erased"))), "{told:?}");
    fs::remove_file(world.file(&key)).unwrap();
    let opened = open_again(&world).await.unwrap();
    let log = world.logs[0].id;
    let mut scan = LogScan::new(&opened, log, Slot(0));
    let error = scan.next().await.unwrap_err();
    assert!(matches!(&error, VaultError::Erased { key: KeyNumber(2), .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(find_end(&opened, log, Slot(0)).await.unwrap().next, slot.next());
    // Who changes a header makes nothing that looks erased.
    let name = ObjectName::slot(log, slot);
    let whole = fs::read(world.file(&name)).unwrap();
    let mut forged = whole.clone();
    forged[84] = 2;
    let end = usize::from(u16::from_le_bytes([forged[6], forged[7]]));
    let mut head = forged[..end - 4].to_vec();
    farshore_proto::wire::put_crc(&mut head, 0);
    forged[..end].copy_from_slice(&head);
    fs::write(world.file(&name), forged).unwrap();
    let error = LogScan::new(&opened, log, slot).next().await.unwrap_err();
    assert!(matches!(error, VaultError::Damaged { .. }), "{error}");
    fs::write(world.file(&name), whole).unwrap();
    let volume = world.volumes[0].id;
    let error =
        VolumeView::open(&opened, volume, PointSelector::Latest).await.map(drop).unwrap_err();
    assert!(matches!(error, VaultError::Erased { .. }), "{error}");
    // What comes behind goes by the new key.
    assert_eq!(opened.seal_keys().data.0, NEXT);
}

/// A later program says first that things lie elsewhere. Who had the vault open finds that out before it says that
/// something is lost.
#[tokio::test]
async fn nothing_is_said_to_be_lost_of_a_vault_that_a_newer_version_revised() {
    let mut world = World::sample().await;
    let vault = open_again(&world).await.unwrap();
    let volume = world.volumes[0].id;
    world.remove(0, Slot(0));
    let name = ObjectName::slot(world.logs[0].id, Slot(0));
    let missed = || async {
        let error = vault.store().get(&name, 1 << 20).await.unwrap_err();
        vault.lost(error.into(), name.clone(), &ObjectName::volume(volume)).await
    };
    let error = missed().await;
    assert!(matches!(error, VaultError::Lost { .. }), "{error}");
    let revision = ObjectName::revision(1);
    let at = place(vault.id(), 1);
    let mut body = of_keys(3).encode();
    // A section that must be understood.
    body.extend([60_u32 | 1 << 16, 4, 1, 0, 7].map(u32::to_le_bytes).concat());
    fs::create_dir_all(world.file(&revision).parent().unwrap()).unwrap();
    fs::write(world.file(&revision), seal_bytes(at, vault.seal_keys(), &body).unwrap()).unwrap();
    let error = missed().await;
    assert!(matches!(error, VaultError::Version { .. }), "{error}");
    let error = open_again(&world).await.unwrap_err();
    assert!(matches!(error, VaultError::Version { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // One that may be ignored is, but nothing is put behind it, which would lose it.
    fs::remove_file(world.file(&revision)).unwrap();
    world.outgrow(&revision, at, of_keys(3).encode());
    let opened = open_again(&world).await.unwrap();
    let error = put(&opened, &of_keys(3)).await.unwrap_err();
    assert!(matches!(error, VaultError::Outgrown { .. }), "{error}");
    let error = missed().await;
    assert!(matches!(error, VaultError::Revised { number: 1, .. }), "{error}");
}

/// A key of a later program's kind is kept for who recovers the vault, and kept from nodes.
#[tokio::test]
async fn keys_of_kinds_that_are_not_known_are_not_given_to_nodes() {
    let world = World::new(1, 1).await;
    let fingerprint = world.recovery.wrapper().fingerprint;
    wrap(&world, NEXT, Domain::OWN, &world.recovery);
    // What it is sealed as says its kind: it is wrapped as what it is.
    let other = VaultKey::other(200, [9; 32]);
    let object = world.recovery.wrap(world.vault.id(), NEXT, Domain::OWN, &other).unwrap();
    fs::write(world.file(&ObjectName::key(NEXT, fingerprint)), object.encode()).unwrap();
    put(&world.vault, &of_keys(4)).await.unwrap();
    let opened = open_again(&world).await.unwrap();
    assert_eq!(opened.seal_keys().own.0, KeyNumber(3), "it seals nothing");
    for (kind, is_given) in [(WrapperKind::Node, false), (WrapperKind::Recovery, true)] {
        let key = WrappingKey::draw(kind).unwrap();
        assert_eq!(wrappers::add(&opened, &key).await.unwrap(), 4);
        assert_eq!(wrappers::add(&opened, &key).await.unwrap(), 0);
        let theirs = Vault::open(opened.store(), &key).await.unwrap();
        let (.., found) = theirs.ring().keys().next_back().unwrap();
        assert_eq!(found.is(&other), is_given, "{kind}");
        assert_eq!(found.is(&VaultKey::Withheld), !is_given, "{kind}");
    }
    assert_eq!(problems(&opened).await, Vec::<String>::new());
}
