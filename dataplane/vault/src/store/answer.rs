//! What a store answered when it did not do what was asked.
//!
//! S3 and Azure say so in XML with a code; the codes are a closed vocabulary, the words around them
//! are not. Behind a directory it is the operating system's kind of error.

use super::place::Service;
use std::error::Error;
use std::fmt;
use std::io;

/// What an error of a store means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    NotFound,
    BucketMissing,
    /// Something says that there is nothing there, but not in the words that the store has for that.
    Unworded,
    NoCredential,
    Credential,
    Clock,
    Denied,
    /// Somebody else answered in place of the store.
    WebPage,
    /// The bucket is somewhere else.
    Elsewhere,
    /// The object is kept where it cannot be read at once.
    Archived,
    /// There was no way to the store.
    Unreachable(&'static str),
    Full,
    Other,
}

/// A code and its explanation, as the store said them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    code: String,
    message: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store says {}", self.code)?;
        match self.message.as_str() {
            "" => Ok(()),
            message => write!(f, " ({message})"),
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The store answered with a code.
    #[error("{0}")]
    Answer(Answer),
    /// A web page came in place of an answer.
    #[error("a web page came in place of the store's answer")]
    Page,
    /// There was no such answer.
    #[error(transparent)]
    Backend(Box<object_store::Error>),
}

/// Longest explanation that is passed on.
const MESSAGE_CHARS_MAX: usize = 300;

impl Reason {
    /// What an error of a store of some kind means, and what is told of it.
    pub(super) fn of(service: Service, error: object_store::Error) -> (Verdict, Self) {
        let text = words(&error);
        let answer = Answer::find(&text);
        let verdict = match &answer {
            Some(answer) => of_code(&answer.code, &text).unwrap_or_else(|| of_kind(&error, &text)),
            // Before the status: the page of a proxy that says 404 says nothing about an object.
            None if is_web_page(&text) => return (Verdict::WebPage, Self::Page),
            None => of_kind(&error, &text),
        };
        // What is absent ends a log. A status alone does not say so: whatever stands in front of a store
        // answers 404 to a path that it does not know. Only the store's own code is believed.
        let code = answer.as_ref().map(|answer| answer.code.as_str());
        let verdict = match service.absence() {
            Some(own) if verdict == Verdict::NotFound && code != Some(own) => Verdict::Unworded,
            _ => verdict,
        };
        let reason = match answer {
            Some(answer) => Self::Answer(answer),
            None => Self::Backend(Box::new(error)),
        };
        (verdict, reason)
    }
}

impl Answer {
    fn find(text: &str) -> Option<Self> {
        let code = element(text, "Code")?;
        let is_code = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_code {
            return None;
        }
        let message = element(text, "Message").unwrap_or_default();
        let message = unescaped(message.lines().next().unwrap_or_default().trim());
        let message = message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect();
        Some(Self { code: code.to_owned(), message })
    }
}

/// The text of an XML element as a person reads it.
fn unescaped(text: &str) -> String {
    let names = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&apos;", "'")];
    let text =
        names.iter().fold(text.replace("&#39;", "'"), |text, (name, c)| text.replace(name, c));
    // Last, so that nothing is read twice.
    text.replace("&amp;", "&")
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content)
}

/// The error with all that is behind it.
fn words(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push('\n');
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What a code means; none for codes that say no more than the status.
fn of_code(code: &str, text: &str) -> Option<Verdict> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled" => {
            Verdict::BucketMissing
        }
        "RequestTimeTooSkewed" | "RequestExpired" => Verdict::Clock,
        "AuthenticationFailed" if text.contains("date header too old") => Verdict::Clock,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException" => Verdict::Elsewhere,
        "AuthorizationHeaderMalformed" if text.contains("region") => Verdict::Elsewhere,
        "InvalidObjectState" | "BlobArchived" | "BlobBeingRehydrated" => Verdict::Archived,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired"
        | "AuthorizationHeaderMalformed"
        | "AuthenticationFailed"
        | "AuthorizationFailure"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation" => Verdict::Credential,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "AccountIsDisabled"
        | "AuthorizationPermissionMismatch"
        | "InsufficientAccountPermissions"
        | "MethodNotAllowed" => Verdict::Denied,
        "QuotaExceeded" | "InsufficientStorage" | "StorageFull" | "XMinioStorageFull" => {
            Verdict::Full
        }
        _ => return None,
    })
}

fn of_kind(error: &object_store::Error, text: &str) -> Verdict {
    use object_store::Error as Store;
    const FULL: [io::ErrorKind; 2] = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    const DENIED: [io::ErrorKind; 2] =
        [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    if let Store::NotFound { .. } = error {
        return Verdict::NotFound;
    }
    match io_kind_of(error) {
        Some(kind) if FULL.contains(&kind) => return Verdict::Full,
        Some(kind) if DENIED.contains(&kind) => return Verdict::Denied,
        _ => {}
    }
    match error {
        Store::Unauthenticated { .. } => Verdict::Credential,
        Store::PermissionDenied { .. } => Verdict::Denied,
        _ if text.contains("507 Insufficient Storage") => Verdict::Full,
        // Nothing named a credential, and this machine is no virtual machine that has one.
        _ if text.contains("169.254.169.254") => Verdict::NoCredential,
        _ if text.contains("Received redirect without LOCATION") => Verdict::Elsewhere,
        _ => unreachable_because(error, text).map_or(Verdict::Other, Verdict::Unreachable),
    }
}

/// Whether a store refused a range because it begins behind the object's end.
pub(super) fn is_behind_end(service: Service, error: &object_store::Error) -> bool {
    // A directory and a test check the range themselves, each in its own words; so does the library where a
    // store answers with another range than was asked for.
    let said = ["416 Range Not Satisfiable", "Wanted range starting at"];
    let words = words(error);
    service.absence().is_none() || said.iter().any(|said| words.contains(said))
}

/// Whether a text holds a web page: no store answers with one.
fn is_web_page(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["<html", "<!doctype html"].iter().any(|mark| text.contains(mark))
}

/// What stands in the way to the store, in words that say what to do. The libraries below tell these apart in
/// words only, but for the system's own kinds.
fn unreachable_because(error: &object_store::Error, text: &str) -> Option<&'static str> {
    use io::ErrorKind as Io;
    let text = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if has(&["dns error", "failed to lookup address"]) {
        return Some(
            "its name cannot be resolved: check the endpoint, and the DNS of this machine",
        );
    }
    if has(&["invalid peer certificate", "certificate"]) {
        return Some(
            "its certificate is not trusted: check the endpoint and the clock; a private authority goes into \
             SSL_CERT_FILE",
        );
    }
    if has(&["corrupt message", "invalid message", "handshake eof"]) {
        return Some(
            "it does not speak TLS: check https:// or http:// and the port of the endpoint",
        );
    }
    match io_kind_of(error) {
        Some(Io::ConnectionRefused) => {
            Some("nothing listens there: check address and port of the endpoint, and that it runs")
        }
        Some(Io::HostUnreachable | Io::NetworkUnreachable) => {
            Some("there is no way to it: check the network and the endpoint")
        }
        _ if has(&["operation timed out", "deadline has elapsed"]) => Some(
            "it does not answer in time: check the network; FARSHORE_STORE_TIMEOUT gives a slow store more time",
        ),
        _ => None,
    }
}

/// The kind of the operating system's error behind an error of a local store.
fn io_kind_of(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = at {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        at = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> (Verdict, String) {
        let error = object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        let (verdict, reason) = Reason::of(Service::S3, error);
        (verdict, reason.to_string())
    }

    #[test]
    fn codes_decide_and_are_passed_on_in_short() {
        let (verdict, words) = answered(
            "Error performing PUT http://x/y in 3ms - Server returned non-2xx status code: 403 \
             Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><Message>The \
             key doesn&#39;t &amp;lt; exist.</Message><RequestId>1</RequestId></Error>",
        );
        assert_eq!(verdict, Verdict::Credential);
        assert_eq!(words, "the store says InvalidAccessKeyId (The key doesn't &lt; exist.)");
        for (code, expected) in [
            ("NoSuchBucket", Verdict::BucketMissing),
            ("ContainerNotFound", Verdict::BucketMissing),
            ("RequestTimeTooSkewed", Verdict::Clock),
            ("AccessDenied", Verdict::Denied),
            ("QuotaExceeded", Verdict::Full),
            ("SlowDown", Verdict::Other),
            ("PermanentRedirect", Verdict::Elsewhere),
            ("InvalidObjectState", Verdict::Archived),
            ("BlobArchived", Verdict::Archived),
        ] {
            assert_eq!(answered(&format!("<Error><Code>{code}</Code></Error>")).0, expected);
        }
    }

    #[test]
    fn a_missing_object_and_a_missing_bucket_are_not_the_same() {
        let missing = |service, text: &str| {
            let source = text.to_owned().into();
            Reason::of(service, object_store::Error::NotFound { path: "a".to_owned(), source }).0
        };
        let s3 = |text| missing(Service::S3, text);
        let azure = |text| missing(Service::Azure, text);
        assert_eq!(s3("<Error><Code>NoSuchKey</Code></Error>"), Verdict::NotFound);
        assert_eq!(azure("<Error><Code>BlobNotFound</Code></Error>"), Verdict::NotFound);
        assert_eq!(s3("<Error><Code>NoSuchBucket</Code></Error>"), Verdict::BucketMissing);
        assert_eq!(azure("<Error><Code>ContainerNotFound</Code></Error>"), Verdict::BucketMissing);
        // The page of a proxy says nothing about an object.
        assert_eq!(s3("404 Not Found: <!DOCTYPE html><html>no"), Verdict::WebPage);
        // A directory has no words but the system's.
        assert_eq!(missing(Service::Directory, ""), Verdict::NotFound);
    }

    #[test]
    fn only_the_stores_own_word_for_it_says_that_an_object_is_absent() {
        let texts = [
            "",
            "404 page not found",
            "default backend - 404",
            "{\"code\":\"NoSuchKey\"}",
            "<Error><Code>NotFound</Code></Error>",
            "<Error><Code>ResourceNotFound</Code></Error>",
            "<Error><Code>NoSuchUpload</Code></Error>",
            "<Error><Code>no such key</Code></Error>",
        ];
        let other = ["<Code>BlobNotFound</Code>", "<Code>NoSuchKey</Code>"];
        for (service, other) in [(Service::S3, other[0]), (Service::Azure, other[1])] {
            for text in texts.into_iter().chain([other]) {
                let source = text.to_owned().into();
                let error = object_store::Error::NotFound { path: "a".to_owned(), source };
                assert_eq!(Reason::of(service, error).0, Verdict::Unworded, "{service:?}: {text}");
            }
        }
    }

    #[test]
    fn what_is_no_code_is_not_taken_for_one() {
        let (verdict, words) = answered("<Code></Code>");
        assert_eq!(verdict, Verdict::Other);
        assert!(words.contains("<Code></Code>"), "{words}");
        let long = "m".repeat(10_000);
        let (_, words) = answered(&format!("<Code>SlowDown</Code><Message>{long}</Message>"));
        assert!(words.len() < 400, "{}", words.len());
    }
}
