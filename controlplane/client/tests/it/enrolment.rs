//! From a token to an identity.

use crate::authority::{Authority, HOUR};
use crate::server::{Answer, Request, Server, error, ok};
use farshore_api::error::ErrorCode;
use farshore_api::identity::{EnrolRequest, EnrolmentToken, Role};
use farshore_client::{
    ClientError, ControlClient, Identity, IdentityError, Tokens, establish, go_on,
    renew_until_dropped,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(7);
const DAY_BEGINS: (std::time::Duration, std::time::Duration) = (HOUR, HOUR.saturating_mul(23));

/// A directory for an identity, and a token beside it.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn with(token: &EnrolmentToken) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.token(), format!("{token}\n")).unwrap();
        place
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.0.path().join("new/data")
    }

    fn token(&self) -> PathBuf {
        self.0.path().join("token")
    }

    pub(crate) async fn establish(&self, url: &str, role: Role) -> Result<Identity, IdentityError> {
        establish(&self.dir(), url, Some(&self.token()), role).await
    }

    fn is_enrolled(&self) -> bool {
        self.dir().join("identity.json").exists()
    }
}

/// Signs what the request asks for.
pub(crate) fn enrols(authority: Arc<Authority>, role: Role) -> impl FnMut(&Request) -> Answer {
    move |request| {
        let request: EnrolRequest = serde_json::from_str(&request.body).unwrap();
        ok(&authority.issue((role, ID), &request.csr_pem, DAY_BEGINS))
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_pinned_control_plane_enrols() {
    let authority = Arc::new(Authority::new());
    let tls = authority.server(&authority.certificate());
    let server = Server::start(tls, enrols(Arc::clone(&authority), Role::Agent));
    let token = authority.token(Role::Agent);
    let place = Place::with(&token);

    let identity = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert_eq!(identity.id(), ID);
    assert_eq!(*identity.ca(), authority.certificate());
    assert!(!identity.is_expired());

    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path, "/api/v1/enrol");
    let request: EnrolRequest = serde_json::from_str(&requests[0].body).unwrap();
    assert_eq!(request.token, token.to_string());
    assert!(!requests[0].body.contains("PRIVATE"), "the key never leaves its directory");

    let dir = place.dir();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("identity.key")), 0o600);
    assert_eq!(mode(&dir.join("identity.json")), 0o600);
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["identity.json", "identity.key"], "nothing is left lying around");

    // The next start needs neither the control plane nor the token.
    drop(server);
    let again = place.establish("https://127.0.0.1:1", Role::Agent).await.unwrap();
    assert_eq!(again.id(), ID);
    assert!(Arc::ptr_eq(&again.certified(), &again.certified()));
    assert_eq!(again.certified().cert, identity.certified().cert);
}

#[tokio::test]
async fn another_ca_never_sees_the_token() {
    let (ours, other) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    // It shows its own CA; and it shows ours, which did not sign its certificate.
    for shown in [other.certificate(), ours.certificate()] {
        let server = Server::start(other.server(&shown), enrols(Arc::clone(&ours), Role::Node));
        let place = Place::with(&ours.token(Role::Node));
        let error = place.establish(&server.url(), Role::Node).await.unwrap_err();
        let IdentityError::Control(ClientError::Untrusted { url, .. }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*url, server.url());
        assert!(error.to_string().contains("check --control"), "{error}");
        assert!(server.requests().is_empty(), "the token stays here");
        assert!(!place.is_enrolled());
    }
}

#[tokio::test]
async fn a_refused_token_is_final() {
    let authority = Authority::new();
    let tls = authority.server(&authority.certificate());
    let server = Server::start(tls, |_| error(ErrorCode::TokenRefused));
    let place = Place::with(&authority.token(Role::Agent));
    let error = place.establish(&server.url(), Role::Agent).await.unwrap_err();
    let IdentityError::Control(ClientError::Refused { code, message, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((code, message.as_str()), (ErrorCode::TokenRefused, "as the test wants"));
    assert_eq!(server.requests().len(), 1, "asking again would not help");
    assert!(!place.is_enrolled());
}

#[tokio::test]
async fn a_control_plane_that_is_not_ready_is_asked_again() {
    let authority = Arc::new(Authority::new());
    let tls = authority.server(&authority.certificate());
    let mut enrols = enrols(Arc::clone(&authority), Role::Agent);
    let mut not_yet = [error(ErrorCode::Unavailable), (502, "<html>".to_owned())].into_iter();
    let server =
        Server::start(tls, move |request| not_yet.next().unwrap_or_else(|| enrols(request)));
    let place = Place::with(&authority.token(Role::Agent));
    place.establish(&server.url(), Role::Agent).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.body == requests[0].body), "for one key");
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_is_not_kept() {
    let (ours, other) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    let wants = [
        // For another role, by another CA, for somebody else's key, nonsense.
        ok(&ours.certify((Role::Node, ID), &rcgen::KeyPair::generate().unwrap(), DAY_BEGINS)),
        ok(&other.certify((Role::Agent, ID), &rcgen::KeyPair::generate().unwrap(), DAY_BEGINS)),
        ok(&ours.certify((Role::Agent, ID), &rcgen::KeyPair::generate().unwrap(), DAY_BEGINS)),
        (200, "{}".to_owned()),
    ];
    for answer in wants {
        let told = answer.clone();
        let tls = ours.server(&ours.certificate());
        let server = Server::start(tls, move |_| told.clone());
        let place = Place::with(&ours.token(Role::Agent));
        let error = place.establish(&server.url(), Role::Agent).await.unwrap_err();
        assert!(
            matches!(
                error,
                IdentityError::Answer { .. }
                    | IdentityError::Control(ClientError::Strange { status: 200, .. })
            ),
            "{answer:?}: {error:?}"
        );
        assert!(!place.is_enrolled());
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_told_without_asking_anybody() {
    let nowhere = "https://127.0.0.1:1";
    let place = Place::with(&Authority::new().token(Role::Node));
    let error = place.establish(nowhere, Role::Agent).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the token enrols nodes, not agents; make one with `farshore agent token`"
    );

    fs::write(place.token(), "fse1.00").unwrap();
    let error = place.establish(nowhere, Role::Agent).await.unwrap_err();
    assert!(matches!(error, IdentityError::Token { .. }), "{error:?}");
    assert!(error.to_string().contains("token"), "{error}");

    fs::remove_file(place.token()).unwrap();
    let error = place.establish(nowhere, Role::Node).await.unwrap_err();
    assert!(matches!(error, IdentityError::NotEnrolled { .. }), "{error:?}");
    assert!(error.to_string().contains("`farshore node token`"), "{error}");
    assert!(!place.dir().exists());
}

#[tokio::test]
async fn an_address_that_cannot_be_asked_is_told_at_once() {
    let token = Authority::new().token(Role::Agent);
    for address in ["http://127.0.0.1:9442", "127.0.0.1:9442", "control"] {
        let error = Place::with(&token).establish(address, Role::Agent).await.unwrap_err();
        let is_told = matches!(error, IdentityError::Control(ClientError::Address { .. }));
        assert!(is_told, "{address}: {error:?}");
    }
}

#[tokio::test]
async fn a_token_of_another_control_plane_enrols_again_with_the_same_key() {
    let (first, second) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    let place = Place::with(&first.token(Role::Agent));
    let server =
        Server::start(first.server(&first.certificate()), enrols(Arc::clone(&first), Role::Agent));
    place.establish(&server.url(), Role::Agent).await.unwrap();
    let key = fs::read(place.dir().join("identity.key")).unwrap();

    // A token that is not needed does no harm, whatever it is.
    fs::write(place.token(), "leftover").unwrap();
    let held = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert_eq!(*held.ca(), first.certificate());
    assert_eq!(server.requests().len(), 1);

    fs::write(place.token(), second.token(Role::Agent).to_string()).unwrap();
    let server = Server::start(
        second.server(&second.certificate()),
        enrols(Arc::clone(&second), Role::Agent),
    );
    let moved = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert_eq!(*moved.ca(), second.certificate());
    assert_eq!(fs::read(place.dir().join("identity.key")).unwrap(), key);
}

#[tokio::test]
async fn an_expired_identity_enrols_again_if_there_is_a_token() {
    let authority = Arc::new(Authority::new());
    let issuer = Arc::clone(&authority);
    let mut lives = [(HOUR * 25, std::time::Duration::ZERO), DAY_BEGINS].into_iter();
    let server = Server::start(authority.server(&authority.certificate()), move |request| {
        let request: EnrolRequest = serde_json::from_str(&request.body).unwrap();
        let (age, left) = lives.next().unwrap();
        // One that ends now has ended by the time it is looked at, whole seconds as they are.
        ok(&issuer.issue((Role::Agent, ID), &request.csr_pem, (age, left)))
    });
    let place = Place::with(&authority.token(Role::Agent));
    assert!(place.establish(&server.url(), Role::Agent).await.unwrap().is_expired());
    let without = establish(&place.dir(), &server.url(), None, Role::Agent).await.unwrap();
    assert!(without.is_expired(), "there is no better one");
    assert!(!place.establish(&server.url(), Role::Agent).await.unwrap().is_expired());
}

/// C2: the clock was ahead when the certificate was issued, and was put right since.
#[tokio::test]
async fn an_identity_that_is_not_valid_yet_enrols_again_if_there_is_a_token() {
    let authority = Arc::new(Authority::new());
    let issuer = Arc::clone(&authority);
    let mut ahead = [HOUR * 48, std::time::Duration::ZERO].into_iter();
    let server = Server::start(authority.server(&authority.certificate()), move |request| {
        let request: EnrolRequest = serde_json::from_str(&request.body).unwrap();
        let ahead = ahead.next().unwrap();
        ok(&issuer.issue_ahead((Role::Agent, ID), &request.csr_pem, ahead, HOUR * 24))
    });
    let place = Place::with(&authority.token(Role::Agent));
    let early = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert!(early.trouble().unwrap().contains("is not valid yet"));
    let without = establish(&place.dir(), &server.url(), None, Role::Agent).await.unwrap();
    assert!(without.trouble().is_some(), "there is no better one");
    let again = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert_eq!(again.trouble(), None);
    assert_eq!(again.id(), ID);
}

/// I10: who serves disks goes on with what it has, and a token that appears later is used by itself.
#[tokio::test]
async fn an_expired_identity_goes_on_and_takes_a_token_when_one_comes() {
    let authority = Arc::new(Authority::new());
    let issuer = Arc::clone(&authority);
    let mut lives = [(HOUR * 25, std::time::Duration::ZERO), DAY_BEGINS].into_iter();
    let server = Server::start(authority.server(&authority.certificate()), move |request| {
        if request.path != "/api/v1/enrol" {
            return error(ErrorCode::Unauthenticated);
        }
        let request: EnrolRequest = serde_json::from_str(&request.body).unwrap();
        let life = lives.next().unwrap();
        ok(&issuer.issue((Role::Agent, ID), &request.csr_pem, life))
    });
    let place = Place::with(&authority.token(Role::Agent));
    place.establish(&server.url(), Role::Agent).await.unwrap();
    fs::remove_file(place.token()).unwrap();
    // Nothing of this needs the control plane.
    let nowhere = "https://127.0.0.1:1";
    let (held, first) =
        go_on(&place.dir(), nowhere, Some(&place.token()), Role::Agent).await.unwrap();
    assert!(first.is_none());
    let trouble = held.trouble().unwrap();
    for part in ["has expired", "this machine's clock says", "valid from", "check the clock"] {
        assert!(trouble.contains(part), "{trouble}");
    }
    assert!(trouble.contains(&format!("farshore agent token --id {ID}")), "{trouble}");
    let held = Arc::new(held);
    let client = ControlClient::new(&server.url(), &held).unwrap();
    let tokens = Tokens::new(&server.url(), &place.token(), first);
    let renewing = tokio::spawn(renew_until_dropped(Arc::clone(&held), client, Some(tokens)));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.requests().len() < 2 {
        assert!(std::time::Instant::now() < deadline, "it does not try to renew");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(held.trouble().is_some(), "nothing brought another certificate");
    fs::write(place.token(), authority.token(Role::Agent).to_string()).unwrap();
    while held.trouble().is_some() {
        assert!(std::time::Instant::now() < deadline, "the token is not used");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    renewing.abort();
    assert!(Identity::load(&place.dir()).unwrap().unwrap().trouble().is_none(), "it is kept");
}

/// C2: a certificate that is not valid yet is a wrong clock, and is told as such.
#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_names_both_times() {
    let authority = Arc::new(Authority::new());
    let issuer = Arc::clone(&authority);
    let server = Server::start(authority.server(&authority.certificate()), move |request| {
        let request: EnrolRequest = serde_json::from_str(&request.body).unwrap();
        ok(&issuer.issue((Role::Agent, ID), &request.csr_pem, DAY_BEGINS))
    });
    let place = Place::with(&authority.token(Role::Agent));
    let identity = place.establish(&server.url(), Role::Agent).await.unwrap();
    assert!(identity.trouble().is_none());
    // As if the clock had been set back by two hours.
    let then = std::time::SystemTime::now() - HOUR * 2;
    let trouble = identity.trouble_at(then).unwrap();
    assert!(
        trouble.contains("is not valid yet") && trouble.contains("check the clock"),
        "{trouble}"
    );
}
