use super::*;
use crate::store::Access;
use farshore_proto::ErrorKind;
use std::fs;

async fn made() -> (tempfile::TempDir, Store, RecoveryKey, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Make).unwrap();
    let recovery = RecoveryKey::draw().unwrap();
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
    assert_eq!(again.newest_key().0, VaultKeys::ROOT);
    let error = Vault::init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::AlreadyAVault { .. }), "{error}");
    assert_eq!(Vault::open_or_init(&store, &recovery).await.unwrap().id(), vault.id());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn the_wrong_recovery_key_is_said_to_be_wrong_and_changes_nothing() {
    let (_folder, store, _, _) = made().await;
    let wrong = RecoveryKey::draw().unwrap();
    for error in [
        Vault::open(&store, &wrong).await.unwrap_err(),
        Vault::open_or_init(&store, &wrong).await.unwrap_err(),
    ] {
        assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("the recovery key is not the one of this vault"));
    }
}

#[tokio::test]
async fn a_store_without_a_vault_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), Access::Read).unwrap();
    let error = Vault::open(&store, &RecoveryKey::draw().unwrap()).await.unwrap_err();
    assert!(matches!(error, VaultError::NotAVault { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn making_a_vault_is_finished_after_it_was_cut_short() {
    let (folder, store, recovery, vault) = made().await;
    fs::remove_file(folder.path().join("vault")).unwrap();
    // Another key cannot take over what the first attempt left.
    let error = Vault::init(&store, &RecoveryKey::draw().unwrap()).await.unwrap_err();
    assert!(matches!(error, VaultError::WrongKey { .. }), "{error}");
    let finished = Vault::open_or_init(&store, &recovery).await.unwrap();
    assert_eq!(finished.id(), vault.id());
}

#[tokio::test]
async fn a_vault_of_another_version_is_left_alone() {
    let (folder, store, recovery, _) = made().await;
    let file = folder.path().join("vault");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let error = Vault::open_or_init(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::Version { .. }), "{error}");
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[tokio::test]
async fn a_missing_key_is_named() {
    let (folder, store, recovery, _) = made().await;
    fs::remove_file(folder.path().join("keys/1")).unwrap();
    let error = Vault::open(&store, &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("object keys/1 is missing"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// A node asks this before it writes (S9): a store may have begun to overwrite since the vault was made.
#[tokio::test]
async fn a_store_that_overwrites_is_refused_before_and_after_a_vault_is_made() {
    use crate::testing::{Fault, Faulty};
    let over = |fault| Store::over(Arc::new(Faulty::new(fault)), "memory");
    let recovery = RecoveryKey::draw().unwrap();
    let error = Vault::init(&over(Fault::Overwrites), &recovery).await.unwrap_err();
    assert!(matches!(error, VaultError::NotWriteOnce { .. }), "{error}");
    let vault = Vault::init(&over(Fault::None), &recovery).await.unwrap();
    vault.check_write_once().await.unwrap();
    let (bad, object) = (over(Fault::Overwrites), vault.identity().encode());
    for name in [ObjectName::key(VaultKeys::ROOT), ObjectName::vault()] {
        let bytes = vault.store().get(&name, 4096).await.unwrap();
        bad.create(&name, bytes).await.unwrap();
    }
    assert_eq!(bad.get(&ObjectName::vault(), 4096).await.unwrap(), object[..]);
    let opened = Vault::open(&bad, &recovery).await.unwrap();
    let error = opened.check_write_once().await.unwrap_err();
    assert!(matches!(error, VaultError::NotWriteOnce { .. }), "{error}");
}
