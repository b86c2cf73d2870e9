use super::*;
use crate::store::Access;
use farshore_proto::keys::{KeyKind, WrapperKind};
use farshore_proto::vault::DomainKeys;
use farshore_proto::{Domain, ErrorKind};
use std::fs;

fn drawn(kind: WrapperKind) -> WrappingKey {
    WrappingKey::draw(kind).unwrap()
}

async fn made() -> (tempfile::TempDir, Store, WrappingKey, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Make).unwrap();
    let recovery = drawn(WrapperKind::Recovery);
    let vault = Vault::init(&store, &recovery).await.unwrap();
    (folder, store, recovery, vault)
}

#[tokio::test]
async fn a_vault_is_made_once_and_opened_again() {
    let (folder, store, recovery, vault) = made().await;
    let again = Vault::open(&store, &recovery).await.unwrap();
    assert_eq!(again.id(), vault.id());
    let bytes = b"the same keys give the same ids";
    assert_eq!(again.hasher().id(bytes), vault.hasher().id(bytes));
    assert_eq!(again.newest_key().0, DomainKeys::FIRST.data);
    assert_eq!(vault.ring().role(KeyNumber(1)), Some((Domain::FIRST, KeyKind::Root)));
    assert_eq!(vault.wrapper(), recovery.wrapper());
    let error = Vault::init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::AlreadyAVault { .. }), "{error}");
    assert_eq!(Vault::open_or_init(&store, &recovery).await.unwrap().id(), vault.id());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn the_wrong_recovery_key_is_said_to_be_wrong_and_changes_nothing() {
    let (_folder, store, recovery, _) = made().await;
    let wrong = drawn(WrapperKind::Recovery);
    for error in [
        Vault::open(&store, &wrong).await.unwrap_err(),
        Vault::open_or_init(&store, &wrong).await.unwrap_err(),
    ] {
        assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let (given, there) =
            (wrong.wrapper().to_string(), recovery.wrapper().fingerprint.to_string());
        let text = error.to_string();
        assert!(text.contains(&given) && text.contains(&there), "{text}");
    }
}

#[tokio::test]
async fn a_store_without_a_vault_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Read).unwrap();
    let error = Vault::open(&store, &drawn(WrapperKind::Recovery)).await.unwrap_err();
    assert!(matches!(error, VaultError::NotAVault { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Whatever of the four objects was made, the next attempt makes the rest, and of the same vault.
#[tokio::test]
async fn making_a_vault_is_finished_wherever_it_was_cut_short() {
    let (folder, store, recovery, vault) = made().await;
    let second = format!("keys/2/{}", recovery.wrapper().fingerprint);
    let root =
        fs::read(folder.path().join(format!("keys/1/{}", recovery.wrapper().fingerprint))).unwrap();
    let third = format!("keys/3/{}", recovery.wrapper().fingerprint);
    for lost in [&["vault"][..], &["vault", &third], &["vault", &second, &third]] {
        for name in lost {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        // Another key cannot take over what the first attempt left.
        let error = Vault::init(&store, &drawn(WrapperKind::Recovery)).await.unwrap_err();
        assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
        let finished = Vault::open_or_init(&store, &recovery).await.unwrap();
        assert_eq!(finished.id(), vault.id());
        assert_eq!(&finished.wrapped_keys()[0].1[..], root);
    }
}

#[tokio::test]
async fn keys_left_by_an_attempt_that_are_not_its_own_are_refused() {
    let (folder, store, recovery, vault) = made().await;
    let fingerprint = recovery.wrapper().fingerprint;
    let file = |number: u32| folder.path().join(format!("keys/{number}/{fingerprint}"));
    fs::remove_file(folder.path().join("vault")).unwrap();
    let whole = fs::read(file(2)).unwrap();
    // Of another vault, under the other number, of the other kind.
    let data = |id, number| {
        let key = VaultKey::Data(DataKey::draw().unwrap());
        recovery.wrap(id, KeyNumber(number), Domain::FIRST, &key).unwrap().encode()
    };
    fs::write(file(2), data(VaultId([9; 16]), 2)).unwrap();
    let error = Vault::init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::Mixed { .. }), "{error}");
    fs::write(file(2), data(vault.id(), 3)).unwrap();
    let error = Vault::init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::Key { .. }), "{error}");
    fs::write(file(2), whole).unwrap();
    fs::write(file(1), data(vault.id(), 1)).unwrap();
    let error = Vault::init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::NotThatKey { .. }), "{error}");
    assert!(!folder.path().join("vault").exists());
}

#[tokio::test]
async fn a_vault_is_made_with_the_recovery_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Make).unwrap();
    let error = Vault::init(&store, &drawn(WrapperKind::Node)).await.unwrap_err();
    assert!(matches!(error, VaultError::NotRecovery { .. }), "{error}");
    assert!(error.to_string().contains("is the node key "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The object with a change, and a checksum that fits again.
fn changed(file: &std::path::Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_vault_of_another_version_is_left_alone_and_says_why() {
    let (folder, store, recovery, vault) = made().await;
    let key = format!("keys/1/{}", recovery.wrapper().fingerprint);
    for (name, at, value, part) in [
        ("vault", 4, 3, "version 3"),
        ("vault", 8, 4, "feature 2 is not known"),
        // The longest chunk of the parameters.
        (
            "vault",
            64 + 12,
            64,
            "longest chunk: 64 is recorded, this version of Farshore works with 32",
        ),
        (&*key, 4, 3, "version 3"),
        (&*key, 8, 1, "feature 0 is not known"),
        (&*key, 44, 9, "key kind 9 is not known"),
    ] {
        let file = folder.path().join(name);
        let whole = fs::read(&file).unwrap();
        changed(&file, |bytes| bytes[at] = value);
        let error = Vault::open_or_init(&store, &recovery).await.unwrap_err();
        assert!(matches!(error, VaultError::Version { .. }), "{name} {at}: {error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(part), "{error}");
        fs::write(&file, whole).unwrap();
    }
    // What a reader may pass over, it passes over.
    changed(&folder.path().join("vault"), |bytes| bytes[12] = 1);
    assert_eq!(Vault::open(&store, &recovery).await.unwrap().id(), vault.id());
}

#[tokio::test]
async fn a_missing_key_is_named() {
    let (folder, store, recovery, _) = made().await;
    let key = |number: u32| format!("keys/{number}/{}", recovery.wrapper().fingerprint);
    for name in [key(3), key(2), key(1)] {
        let file = folder.path().join(&name);
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let error = Vault::open(&store, &recovery).await.unwrap_err();
        assert!(matches!(error, VaultError::Lost { .. }), "{error}");
        assert!(error.to_string().contains(&format!("object {name} is missing")), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        fs::write(&file, whole).unwrap();
    }
}

/// Nobody makes the root key of a vault one that things are sealed under.
#[tokio::test]
async fn keys_that_are_not_what_the_vault_says_are_refused() {
    let (folder, store, recovery, vault) = made().await;
    let key = VaultKey::Data(DataKey::draw().unwrap());
    let object = recovery.wrap(vault.id(), KeyNumber(1), Domain::FIRST, &key).unwrap();
    let name = format!("keys/1/{}", recovery.wrapper().fingerprint);
    fs::write(folder.path().join(name), object.encode()).unwrap();
    let error = Vault::open(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::NotThatKey { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// A node asks this before it writes (S9): a store may have begun to overwrite since the vault was made.
#[tokio::test]
async fn a_store_that_overwrites_is_refused_before_and_after_a_vault_is_made() {
    use crate::testing::{Fault, Faulty};
    let over = |fault| Store::over(Arc::new(Faulty::new(fault)), "memory");
    let recovery = drawn(WrapperKind::Recovery);
    let error = Vault::init(&over(Fault::Overwrites), &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::NotWriteOnce { .. }), "{error}");
    let vault = Vault::init(&over(Fault::None), &recovery).await.unwrap();
    vault.check_write_once().await.unwrap();
    let (bad, object) = (over(Fault::Overwrites), vault.identity_bytes().clone());
    let key = |number| ObjectName::key(KeyNumber(number), recovery.wrapper().fingerprint);
    for name in [key(1), key(2), key(3), ObjectName::vault()] {
        let bytes = vault.store().get(&name, 4096).await.unwrap();
        bad.create(&name, bytes).await.unwrap();
    }
    assert_eq!(bad.get(&ObjectName::vault(), 4096).await.unwrap(), object[..]);
    let opened = Vault::open(&bad, &recovery).await.unwrap();
    let error = opened.check_write_once().await.unwrap_err();
    assert!(matches!(error, VaultError::NotWriteOnce { .. }), "{error}");
}
