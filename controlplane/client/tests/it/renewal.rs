//! From one certificate to the next.

use crate::authority::{Authority, HOUR};
use crate::server::{Answer, Server, error, ok};
use farshore_api::error::ErrorCode;
use farshore_api::identity::{Certificate, RenewRequest, Role};
use farshore_client::{ClientError, ControlClient, Identity, IdentityError, renew_until_dropped};
use rcgen::KeyPair;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

const ME: (Role, Uuid) = (Role::Node, Uuid::from_u128(11));
const FRESH: (Duration, Duration) = (Duration::ZERO, HOUR.saturating_mul(24));
const DUE: (Duration, Duration) = (HOUR.saturating_mul(13), HOUR.saturating_mul(11));

fn holds(authority: &Authority, life: (Duration, Duration)) -> (TempDir, Arc<Identity>) {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = authority.certify(ME, &key, life);
    let json = serde_json::to_string(&certificate).unwrap();
    fs::write(dir.path().join("identity.json"), json).unwrap();
    fs::write(dir.path().join("identity.key"), key.serialize_pem()).unwrap();
    let identity = Arc::new(Identity::load(dir.path()).unwrap().unwrap());
    (dir, identity)
}

/// A control plane that renews, and answers anything else with what it was asked.
fn renews(authority: &Arc<Authority>) -> Server {
    let issuer = Arc::clone(authority);
    let tls = authority.server(&authority.certificate());
    Server::start(tls, move |request| {
        if request.path != "/api/v1/renew" {
            return ok(&request.path);
        }
        let request: RenewRequest = serde_json::from_str(&request.body).unwrap();
        ok(&issuer.issue(ME, &request.csr_pem, FRESH))
    })
}

fn answers(authority: &Authority, answer: Answer) -> Server {
    Server::start(authority.server(&authority.certificate()), move |_| answer.clone())
}

fn on_disk(dir: &Path) -> Certificate {
    serde_json::from_slice(&fs::read(dir.join("identity.json")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_kept_and_shown() {
    let authority = Arc::new(Authority::new());
    let (dir, identity) = holds(&authority, DUE);
    let server = renews(&authority);
    let client = ControlClient::new(&server.url(), &identity).unwrap();
    let key = fs::read(dir.path().join("identity.key")).unwrap();
    let old = identity.certified();
    assert_eq!(identity.until_renewal(), Duration::ZERO);
    // What a crash in the middle of a renewal leaves behind.
    fs::write(dir.path().join("identity.json.new"), "half").unwrap();
    fs::set_permissions(dir.path().join("identity.json.new"), fs::Permissions::from_mode(0o644))
        .unwrap();

    client.renew(&identity).await.unwrap();
    let until = identity.until_renewal();
    assert!((HOUR * 11..=HOUR * 12).contains(&until), "half of a day, not {until:?}");
    assert_ne!(identity.certified().cert, old.cert);

    let again = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(again.certified().cert, identity.certified().cert, "it is on the disk");
    let mode = fs::metadata(dir.path().join("identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.path().join("identity.json.new").exists());
    assert_eq!(fs::read(dir.path().join("identity.key")).unwrap(), key, "the key stays");

    // The client was made before, and shows the new certificate all the same.
    let path: String = client.get("/api/v1/anything", Duration::ZERO).await.unwrap();
    assert_eq!(path, "/api/v1/anything");
    let shown: Vec<_> = server.requests().into_iter().map(|request| request.peer).collect();
    assert_eq!(shown, [Some(old.cert[0].clone()), Some(identity.certified().cert[0].clone())]);
}

#[tokio::test]
async fn a_renewal_that_cannot_be_kept_changes_nothing() {
    let authority = Arc::new(Authority::new());
    let (dir, identity) = holds(&authority, DUE);
    let (old, before) = (identity.certified(), on_disk(dir.path()));
    let server = renews(&authority);
    let client = ControlClient::new(&server.url(), &identity).unwrap();
    fs::create_dir(dir.path().join("identity.json.new")).unwrap();
    let error = client.renew(&identity).await.unwrap_err();
    assert!(matches!(error, IdentityError::File { action: "write", .. }), "{error:?}");
    assert_eq!(identity.certified().cert, old.cert);
    assert_eq!(on_disk(dir.path()), before);
}

#[tokio::test]
async fn a_renewal_that_is_of_no_use_changes_nothing() {
    let authority = Arc::new(Authority::new());
    let (dir, identity) = holds(&authority, DUE);
    let (old, before) = (identity.certified(), on_disk(dir.path()));
    let stranger = KeyPair::generate().unwrap();
    let someone = (Role::Node, Uuid::from_u128(12));
    let wants = [
        ok(&authority.certify(ME, &stranger, FRESH)),
        ok(&authority.certify(someone, &stranger, FRESH)),
        ok(&Certificate { certificate_pem: String::new(), ..before.clone() }),
        (200, "[]".to_owned()),
        error(ErrorCode::Forbidden),
    ];
    for answer in wants {
        let server = answers(&authority, answer.clone());
        let client = ControlClient::new(&server.url(), &identity).unwrap();
        let error = client.renew(&identity).await.unwrap_err();
        assert!(
            matches!(error, IdentityError::Answer { .. } | IdentityError::Control(_)),
            "{answer:?}: {error:?}"
        );
        assert_eq!(identity.certified().cert, old.cert);
        assert_eq!(on_disk(dir.path()), before);
    }
}

#[tokio::test]
async fn a_renewal_does_not_change_the_ca() {
    let (authority, other) = (Arc::new(Authority::new()), Authority::new());
    let (dir, identity) = holds(&authority, DUE);
    let issuer = Arc::clone(&authority);
    let other_ca = other.certify(ME, &KeyPair::generate().unwrap(), FRESH).ca_pem;
    let server = Server::start(authority.server(&authority.certificate()), move |request| {
        let request: RenewRequest = serde_json::from_str(&request.body).unwrap();
        let issued = issuer.issue(ME, &request.csr_pem, FRESH);
        ok(&Certificate { ca_pem: other_ca.clone(), ..issued })
    });
    let client = ControlClient::new(&server.url(), &identity).unwrap();
    client.renew(&identity).await.unwrap();
    let again = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(*again.ca(), authority.certificate());
}

#[tokio::test]
async fn a_certificate_past_half_of_its_life_is_renewed_by_itself() {
    let authority = Arc::new(Authority::new());
    let server = renews(&authority);
    let (_young_dir, young) = holds(&authority, FRESH);
    let (_dir, due) = holds(&authority, DUE);
    let tasks = [&young, &due].map(|identity| {
        let client = ControlClient::new(&server.url(), identity).unwrap();
        tokio::spawn(renew_until_dropped(Arc::clone(identity), client, None))
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while due.until_renewal().is_zero() {
        assert!(Instant::now() < deadline, "it was not renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(server.requests().len(), 1, "only the one that was due");
}

/// H8: a machine that was set back within a minute is taken for a copy first. Let in again, it must have a
/// certificate newer than the one that nodes know, and not only at half of its life.
#[tokio::test]
async fn a_certificate_that_is_taken_after_it_was_refused_is_renewed_at_once() {
    // Mostly it is past half of its life, or there would be no newer one: then renewals were refused already.
    for (life, refused_renewals) in [(FRESH, 0), (DUE, 1)] {
        let authority = Arc::new(Authority::new());
        let issuer = Arc::clone(&authority);
        let is_refused = Arc::new(AtomicBool::new(true));
        let refuses = Arc::clone(&is_refused);
        let server = Server::start(authority.server(&authority.certificate()), move |request| {
            if refuses.load(Ordering::SeqCst) {
                return error(ErrorCode::Unauthenticated);
            }
            if request.path != "/api/v1/renew" {
                return ok(&request.path);
            }
            let request: RenewRequest = serde_json::from_str(&request.body).unwrap();
            ok(&issuer.issue(ME, &request.csr_pem, FRESH))
        });
        let renewals =
            || server.requests().iter().filter(|request| request.path == "/api/v1/renew").count();
        let (_dir, identity) = holds(&authority, life);
        let client = ControlClient::new(&server.url(), &identity).unwrap();
        let task = tokio::spawn(renew_until_dropped(Arc::clone(&identity), client.clone(), None));
        let old = identity.certified();
        until("the renewal that is refused", || renewals() == refused_renewals).await;
        for _report in 0..2 {
            client.get::<String>("/report", Duration::ZERO).await.unwrap_err();
        }
        assert_eq!(identity.until_renewal().is_zero(), life == DUE, "it would be refused as well");
        is_refused.store(false, Ordering::SeqCst);
        client.get::<String>("/report", Duration::ZERO).await.unwrap();
        until("the renewal", || !Arc::ptr_eq(&identity.certified(), &old)).await;
        assert!(!identity.until_renewal().is_zero(), "once is enough");
        client.get::<String>("/report", Duration::ZERO).await.unwrap();
        task.abort();
        assert_eq!(renewals(), refused_renewals + 1);
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// C2: with a clock that is a day ahead every certificate is over, the new one too.
#[tokio::test]
async fn a_certificate_that_is_over_when_it_comes_is_not_asked_for_again_and_again() {
    const OVER: (Duration, Duration) = (HOUR, Duration::ZERO);
    const OLD: (Duration, Duration) = (HOUR.saturating_mul(20), HOUR.saturating_mul(4));
    for life in [OVER, OLD] {
        let authority = Arc::new(Authority::new());
        let issuer = Arc::clone(&authority);
        let server = Server::start(authority.server(&authority.certificate()), move |request| {
            let request: RenewRequest = serde_json::from_str(&request.body).unwrap();
            ok(&issuer.issue(ME, &request.csr_pem, life))
        });
        let (_dir, due) = holds(&authority, DUE);
        let client = ControlClient::new(&server.url(), &due).unwrap();
        let task = tokio::spawn(renew_until_dropped(Arc::clone(&due), client, None));
        let deadline = Instant::now() + Duration::from_secs(20);
        while server.requests().is_empty() {
            assert!(Instant::now() < deadline, "it was not renewed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A slow machine sees less of what must not happen, and nothing else.
        tokio::time::sleep(Duration::from_secs(1)).await;
        task.abort();
        assert_eq!(server.requests().len(), 1, "{life:?}");
    }
}

#[tokio::test]
async fn what_is_not_the_apis_is_told_by_its_kind() {
    use farshore_api::ErrorKind;
    let authority = Authority::new();
    let (_dir, identity) = holds(&authority, FRESH);
    let cases = [
        ((200, "not json".to_owned()), ErrorKind::Internal),
        ((200, " ".repeat((16 << 20) + 1)), ErrorKind::Internal),
        ((404, "<html>".to_owned()), ErrorKind::Internal),
        ((302, String::new()), ErrorKind::Internal),
        ((502, "<html>".to_owned()), ErrorKind::Unavailable),
        (error(ErrorCode::Unavailable), ErrorKind::Unavailable),
        (error(ErrorCode::TooManyRequests), ErrorKind::Throttled),
        (error(ErrorCode::Fenced), ErrorKind::Fenced),
    ];
    for ((status, body), kind) in cases {
        let server = answers(&authority, (status, body));
        let client = ControlClient::new(&server.url(), &identity).unwrap();
        let error = client.get::<String>("/x", Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
    }
    let client = ControlClient::new("https://127.0.0.1:1", &identity).unwrap();
    let error = client.get::<String>("/x", Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "the reason is told: {error}");
}

#[tokio::test]
async fn a_control_plane_of_another_ca_is_not_talked_to() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (_dir, identity) = holds(&ours, FRESH);
    let server = Server::start(other.server(&ours.certificate()), |_| ok(&"hello"));
    let client = ControlClient::new(&server.url(), &identity).unwrap();
    let error = client.get::<String>("/x", Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    assert!(server.requests().is_empty());
}
