//! The HTTP/1.1 request that turns a connection into a session.

use farshore_proto::VolumeId;
use uuid::Uuid;

const HEADERS_MAX: usize = 32;

/// Bytes that are no such request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("not an HTTP/1.1 request: {0}")]
    Http(#[from] httparse::Error),
    #[error("the request is not an upgrade to farshore/2 of a volume's stream")]
    Other,
}

/// Reads a request at the front of `bytes`: the volume it names and its length; nothing while it is
/// not complete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(VolumeId, usize)>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(used) = request.parse(bytes)? else { return Ok(None) };
    let has = |name: &str, value: &str| {
        request.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case(name)
                && header.value.eq_ignore_ascii_case(value.as_bytes())
        })
    };
    let volume = request
        .path
        .and_then(|path| path.strip_prefix("/v1/volumes/"))
        .and_then(|rest| rest.strip_suffix("/stream"))
        .and_then(|id| Uuid::parse_str(id).ok());
    match volume {
        Some(volume)
            if request.method == Some("GET")
                && request.version == Some(1)
                && has("upgrade", "farshore/2")
                && has("connection", "upgrade") =>
        {
            Ok(Some((volume.into(), used)))
        }
        _ => Err(RequestError::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "6a1f0000-0000-4000-8000-000000000001";

    fn request(path: &str, upgrade: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n"
        )
    }

    fn ask(path: &str, upgrade: &str) -> Result<Option<(VolumeId, usize)>, RequestError> {
        parse(request(path, upgrade).as_bytes())
    }

    #[test]
    fn reads_the_volume_of_an_upgrade() {
        let (volume, _) = ask(&format!("/v1/volumes/{VOLUME}/stream"), "farshore/2")
            .unwrap()
            .expect("the request is complete");
        assert_eq!(volume.to_string(), VOLUME);
    }

    #[test]
    fn waits_for_the_rest_of_a_request_wherever_it_is_cut() {
        let whole = request(&format!("/v1/volumes/{VOLUME}/stream"), "farshore/2");
        for end in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..end]).unwrap().is_none(), "cut at {end}");
        }
        let behind = [whole.as_bytes(), b"FSF2"].concat();
        assert_eq!(parse(&behind).unwrap().map(|(_, used)| used), Some(whole.len()));
    }

    #[test]
    fn refuses_other_requests() {
        let stream = format!("/v1/volumes/{VOLUME}/stream");
        for (path, upgrade) in [
            ("/", "farshore/2"),
            ("/v1/volumes/../../etc/passwd/stream", "farshore/2"),
            (&stream[..], "websocket"),
            (&stream[..], "farshore/1"),
        ] {
            assert!(ask(path, upgrade).is_err(), "{path} {upgrade}");
        }
        let good = request(&stream, "farshore/2");
        for bad in [
            good.replace("HTTP/1.1", "HTTP/1.0"),
            good.replace("GET", "POST"),
            good.replace("Connection: Upgrade\r\n", ""),
            good.replace("Host: node\r\n", &"X: y\r\n".repeat(HEADERS_MAX)),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"\x16\x03\x01\x02\x00\x01").is_err());
    }
}
