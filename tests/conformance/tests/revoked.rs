//! Identities that end (T14): sessions that are open end with them within seconds, others go on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use farshore_conformance::frame::{Said, reason};
use farshore_conformance::peer::{End, Peer};
use farshore_conformance::site::Site;
use farshore_conformance::stream::Stream;
use farshore_e2e::run;

/// From the operator's command to the end of the session.
const SECONDS: Duration = Duration::from_secs(5);

/// Whether a write is acknowledged.
fn goes_on(peer: &mut Peer, stream: &mut Stream) -> Result<()> {
    let seq = stream.next;
    let write = stream.some_write();
    peer.send(&write);
    loop {
        match peer.said()? {
            Some(Said::Ack { journaled, .. }) if journaled >= seq => return Ok(()),
            Some(Said::Ack { .. }) => {}
            other => anyhow::bail!("no acknowledgement of {seq} but {other:?}"),
        }
    }
}

#[test]
fn a_revoked_agents_session_ends_within_seconds_and_nobody_elses() {
    run(|system| {
        let site = Site::over(system)?;
        let (bad, good) = (site.enrol("bad")?, site.enrol("good")?);
        let (taken, kept) = (site.protect(&bad, "disk")?, site.protect(&good, "disk")?);
        let stream = |volume: &farshore_conformance::site::Volume| {
            Stream::new(volume.id.into_bytes(), volume.epoch, 256)
        };
        let (mut taken_stream, mut kept_stream) = (stream(&taken), stream(&kept));
        let mut ended = site.session(&bad, &taken, &taken_stream)?;
        let mut open = site.session(&good, &kept, &kept_stream)?;
        goes_on(&mut ended, &mut taken_stream)?;
        goes_on(&mut open, &mut kept_stream)?;

        let id = bad.identity.id();
        let farshore = system.farshore();
        let told = farshore.ok(&format!("agent revoke {id} --dry-run"))?;
        ensure!(told.stderr.contains(&taken.machine), "what stops is named: {}", told.stderr);
        goes_on(&mut ended, &mut taken_stream)?;

        let begin = Instant::now();
        farshore.ok(&format!("agent revoke {id} --yes"))?;
        ended.patience(SECONDS)?;
        match ended.end()? {
            End::Refused(reason::NOT_ASSIGNED, text) => {
                ensure!(text.contains("revoked"), "it says why: {text}");
            }
            other => anyhow::bail!("the session ended with {other:?}"),
        }
        ensure!(begin.elapsed() < 2 * SECONDS, "it took {:?}", begin.elapsed());
        let mut again = site.upgraded(&bad, &taken)?;
        again.send(&taken_stream.hello().frame().bytes());
        let said = again.said()?;
        let is_refused = matches!(said, Some(Said::Refusal { reason: reason::NOT_ASSIGNED, .. }));
        ensure!(is_refused, "a new session was answered with {said:?}");
        goes_on(&mut open, &mut kept_stream)?;

        let listed = farshore.ok("agent list")?.stdout;
        ensure!(listed.lines().any(|l| l.contains(&id.to_string()) && l.contains("revoked")));
        farshore.ok("audit verify")?;
        let entries = farshore.ok("audit list")?.stdout;
        ensure!(entries.contains("identity.revoke"), "{entries}");
        Ok(())
    });
}
