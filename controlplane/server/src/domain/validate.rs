//! Whether a request is acceptable.

use std::net::{IpAddr, SocketAddr};

use farshore_api::agent::RegisterAgent;
use farshore_api::failover::{CreateFailover, ExportListen, FailoverKind};
use farshore_api::limits;
use farshore_api::machine::{Capture, CreateMachine};
use farshore_api::node::{NodeReport, RegisterNode};
use farshore_api::policy::{CreatePolicy, FAILBACK_SUFFIX, UpdatePolicy};
use farshore_api::text::{cleaned, is_printable};

use crate::error::ControlError;

fn invalid(field: &'static str, why: impl Into<String>) -> ControlError {
    ControlError::Invalid { field, why: why.into() }
}

fn range<N: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: N,
    min: N,
    max: N,
) -> Result<(), ControlError> {
    if value < min || value > max {
        return Err(invalid(field, format!("is {value}; it must be {min} to {max}")));
    }
    Ok(())
}

fn mark_interval(value: u64) -> Result<(), ControlError> {
    range("mark_interval_ms", value, limits::MARK_INTERVAL_MS_MIN, limits::MARK_INTERVAL_MS_MAX)
}

fn name(value: &str) -> Result<(), ControlError> {
    if !limits::is_valid_name(value) {
        return Err(invalid(
            "name",
            "must be 1 to 63 of a-z, 0-9, dot, dash and underscore, and start with a letter or digit",
        ));
    }
    Ok(())
}

/// An absolute path without surprises.
fn absolute_path(field: &'static str, value: &str) -> Result<(), ControlError> {
    if !value.starts_with('/') {
        return Err(invalid(field, "must be an absolute path"));
    }
    if value.len() > limits::DISK_PATH_BYTES_MAX || !is_printable(value) {
        return Err(invalid(field, "must be at most 4096 bytes without control characters"));
    }
    Ok(())
}

/// What people will read: no longer than text may be, and nothing that steers a terminal.
fn readable(field: &'static str, value: &str) -> Result<(), ControlError> {
    if value.len() > limits::TEXT_BYTES_MAX || !is_printable(value) {
        let max = limits::TEXT_BYTES_MAX;
        return Err(invalid(
            field,
            format!("must be at most {max} bytes without control characters"),
        ));
    }
    Ok(())
}

/// Checks an agent's registration.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn agent_registration(request: &RegisterAgent) -> Result<(), ControlError> {
    readable("hostname", &request.hostname)?;
    readable("version", &request.version)
}

/// Checks a node's registration, made from the address `from`. Returns where agents are to connect.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn node_registration(
    request: &RegisterNode,
    from: Option<IpAddr>,
) -> Result<SocketAddr, ControlError> {
    readable("version", &request.version)?;
    let address: SocketAddr = request
        .address
        .parse()
        .map_err(|_| invalid("address", "must be ip:port, as agents are to connect to it"))?;
    let ip = address.ip().to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    // Only who is on this machine itself means this machine by such an address.
    let is_here = from.is_some_and(|from| from.to_canonical().is_loopback());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast || address.port() == 0 {
        let why = "is where no agent can connect; start the node with --advertise IP:PORT";
        return Err(invalid("address", format!("{address} {why}")));
    }
    if ip.is_loopback() && !is_here {
        let why = "is every agent's own machine; start the node with --advertise IP:PORT";
        return Err(invalid("address", format!("{address} {why}")));
    }
    Ok(address)
}

/// Checks a new machine, except for what only the database knows.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn machine(request: &CreateMachine) -> Result<(), ControlError> {
    name(&request.name)?;
    absolute_path("disk", &request.disk)?;
    if request.capture == Capture::Unknown {
        return Err(invalid("capture", "must be `scan` or `nbd`"));
    }
    if request.nbd_port.is_some() && request.capture != Capture::Nbd {
        return Err(invalid("nbd_port", "is for capture nbd only"));
    }
    if request.nbd_port == Some(0) {
        return Err(invalid("nbd_port", "is 0; clients need a port that stays"));
    }
    request.mark_interval_ms.map_or(Ok(()), mark_interval)
}

/// Checks a new policy.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn policy(request: &CreatePolicy) -> Result<(), ControlError> {
    name(&request.name)?;
    if request.name.ends_with(FAILBACK_SUFFIX)
        || request.name.len() + FAILBACK_SUFFIX.len() > limits::NAME_BYTES_MAX
    {
        return Err(invalid("name", "must be at most 54 bytes and not end in `-failback`"));
    }
    mark_interval(request.mark_interval_ms)?;
    request.retention_hours.map_or(Ok(()), retention)
}

/// Checks a change of a policy.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn policy_update(request: &UpdatePolicy) -> Result<(), ControlError> {
    request.mark_interval_ms.map_or(Ok(()), mark_interval)?;
    request.retention_hours.map_or(Ok(()), retention)
}

fn retention(hours: u32) -> Result<(), ControlError> {
    range("retention_hours", hours, 1, 87_600)
}

/// Checks a new failover, except for what only the database knows.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn failover(request: &CreateFailover) -> Result<(), ControlError> {
    if request.kind == FailoverKind::Unknown {
        return Err(invalid("kind", "must be `drill` or `unplanned`"));
    }
    if request.listen == ExportListen::Unknown {
        return Err(invalid("listen", "must be `unix` or `tcp`"));
    }
    request.memory_mib.map_or(Ok(()), |value| range("memory_mib", value, 64, 1_048_576))?;
    request.cpus.map_or(Ok(()), |value| range("cpus", value, 1, 64))?;
    request.firmware.as_deref().map_or(Ok(()), |path| absolute_path("firmware", path))
}

/// The life of an enrolment token in seconds.
///
/// # Errors
/// `Invalid` if it is out of range.
pub fn token_ttl(asked: Option<u64>) -> Result<u64, ControlError> {
    let seconds = asked.unwrap_or(limits::TOKEN_TTL_SECONDS_DEFAULT);
    range("ttl_seconds", seconds, 1, limits::TOKEN_TTL_SECONDS_MAX)?;
    Ok(seconds)
}

/// Checks how much a report carries.
///
/// # Errors
/// `Invalid` if it carries more than the limits allow.
pub fn report_size(volumes: usize, points: usize) -> Result<(), ControlError> {
    range("volumes", volumes, 0, limits::REPORT_VOLUMES_MAX)?;
    range("points", points, 0, limits::REPORT_POINTS_MAX)
}

/// Checks a node's report.
///
/// # Errors
/// `Invalid` with the first value that is not acceptable.
pub fn node_report(report: &NodeReport) -> Result<(), ControlError> {
    report_size(report.volumes.len(), report.points.len())?;
    range("epochs_wanted", report.epochs_wanted.len(), 0, limits::REPORT_VOLUMES_MAX)?;
    range("let_go", report.let_go.len(), 0, limits::REPORT_VOLUMES_MAX)?;
    range("epochs_seen", report.epochs_seen.len(), 0, limits::REPORT_VOLUMES_MAX)?;
    let newest = report.epochs_seen.iter().map(|seen| seen.epoch).max();
    range("epoch", newest.unwrap_or(0), 0, limits::EPOCH_SEEN_MAX)?;
    range("counters", report.counters.len(), 0, limits::REPORT_COUNTERS_MAX)?;
    let is_plain = |name: &String| {
        (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
    };
    if let Some(name) = report.counters.keys().find(|name| !is_plain(name)) {
        let shown: String = name.chars().take(64).collect();
        return Err(invalid("counters", format!("has the name {shown:?}; use [a-z0-9_.]{{1,64}}")));
    }
    if !(report.uptime_seconds.is_finite() && report.cpu_seconds.is_finite()) {
        return Err(invalid("uptime_seconds", "and `cpu_seconds` must be numbers"));
    }
    Ok(())
}

/// Cleans free text of what steers a terminal, and cuts it to its limit, at a character's edge.
#[must_use]
pub fn cut(text: &str) -> String {
    let mut text = cleaned(text);
    let mut end = text.len().min(limits::TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CreateMachine {
        CreateMachine {
            name: "web".into(),
            disk: "/dev/vda".into(),
            capture: Capture::Scan,
            policy: None,
            mark_interval_ms: None,
            nbd_port: None,
            agent_id: None,
        }
    }

    #[test]
    fn machines_need_a_plain_name_and_an_absolute_disk() {
        assert!(machine(&request()).is_ok());
        assert!(machine(&CreateMachine { name: "../x".into(), ..request() }).is_err());
        assert!(machine(&CreateMachine { disk: "vda".into(), ..request() }).is_err());
        assert!(machine(&CreateMachine { disk: "/a\nb".into(), ..request() }).is_err());
        assert!(machine(&CreateMachine { mark_interval_ms: Some(999), ..request() }).is_err());
        let nbd = CreateMachine { capture: Capture::Nbd, ..request() };
        assert!(machine(&CreateMachine { nbd_port: Some(0), ..nbd }).is_err());
        let scan = CreateMachine { nbd_port: Some(10_809), ..request() };
        assert!(machine(&scan).is_err(), "a scanned disk is not served");
        assert!(machine(&CreateMachine { capture: Capture::Nbd, ..scan }).is_ok());
    }

    #[test]
    fn text_is_cut_between_characters() {
        let long = "ä".repeat(limits::TEXT_BYTES_MAX);
        assert_eq!(cut(&long).len(), limits::TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), limits::TEXT_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn text_of_others_does_not_steer_terminals() {
        let hostile = "ok\u{1b}[2K\u{1b}[1A";
        assert!(is_printable(&cut(hostile)));
        assert!(cut(&"\u{1b}".repeat(limits::TEXT_BYTES_MAX)).len() <= limits::TEXT_BYTES_MAX);
        let agent = |hostname: &str, version: &str| {
            let (hostname, version) = (hostname.into(), version.into());
            agent_registration(&RegisterAgent { hostname, version, local: false })
        };
        assert!(agent("größer", "0.1.0").is_ok());
        for bad in [hostile, "a\nb", "\u{9b}31m", "\u{202e}x", &"x".repeat(1025)] {
            assert!(agent(bad, "0").is_err() && agent("x", bad).is_err(), "{bad:?}");
        }
        assert!(machine(&CreateMachine { disk: "/a\u{202e}b".into(), ..request() }).is_err());
        assert!(machine(&CreateMachine { disk: "/a\u{7f}".into(), ..request() }).is_err());
    }

    #[test]
    fn nodes_are_where_agents_can_reach_them() {
        let here: Option<IpAddr> = Some([127, 0, 0, 1].into());
        let far: Option<IpAddr> = Some([192, 0, 2, 7].into());
        let register = |address: &str, from| {
            let request = RegisterNode { address: address.into(), shards: 1, version: "0".into() };
            node_registration(&request, from).is_ok()
        };
        for good in ["192.0.2.7:9443", "[2001:db8::1]:9443"] {
            assert!(register(good, far) && register(good, here), "{good}");
        }
        for local in ["127.0.0.1:9443", "[::1]:9443", "127.9.9.9:1", "[::ffff:127.0.0.1]:9443"] {
            assert!(register(local, here), "{local}");
            assert!(!register(local, far) && !register(local, None), "{local}");
        }
        for bad in [
            "0.0.0.0:9443",
            "[::]:9443",
            "[::ffff:0.0.0.0]:9443",
            "192.0.2.7:0",
            "224.0.0.1:9443",
            "[ff02::1]:9443",
            "255.255.255.255:9443",
            "node.example:9443",
            "192.0.2.7",
            "",
        ] {
            assert!(!register(bad, here) && !register(bad, far), "{bad}");
        }
    }

    #[test]
    fn nodes_ask_for_a_bounded_number_of_epochs() {
        let wanted = |number| NodeReport {
            epochs_wanted: vec![uuid::Uuid::nil(); number],
            ..NodeReport::default()
        };
        assert!(node_report(&wanted(limits::REPORT_VOLUMES_MAX)).is_ok());
        assert!(node_report(&wanted(limits::REPORT_VOLUMES_MAX + 1)).is_err());
    }

    #[test]
    fn counters_have_plain_names() {
        let mut report = NodeReport::default();
        report.counters.insert("journal.bytes_total".into(), 1);
        assert!(node_report(&report).is_ok());
        report.counters.insert("bad name".into(), 1);
        assert!(node_report(&report).is_err());
    }
}
