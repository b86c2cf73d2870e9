//! Every way to speak the frame protocol wrongly: one case each, with the sentence of
//! `docs/formats/frame.md` that it breaks and what the node must do about it.

mod connect;
mod header;
mod hello;
mod order;

use std::net::{Ipv4Addr, Shutdown};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;

use crate::frame::{Frame, reason};
use crate::peer::{self, End, Peer, Who};
use crate::site::{Agent, Site, Volume};
use crate::stream::Stream;

/// What a case sees.
#[derive(Debug)]
pub struct View<'a> {
    /// The stream of the agent's own volume. What it gives out is good and will be on the disk.
    pub stream: &'a mut Stream,
    /// The volume of another agent's machine.
    pub other: uuid::Uuid,
}

/// Bytes of a case.
pub type Bytes = fn(&mut View<'_>) -> Vec<u8>;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Bytes without TLS.
    Plain(Bytes),
    /// Bytes without TLS, then the end.
    PlainCut(Bytes),
    /// A handshake as somebody else, then a good request.
    Shake(Who),
    /// Bytes inside TLS in place of the request.
    Request(Bytes),
    /// A good handshake, then goodbye.
    NoRequest,
    /// The request for a volume that is not the agent's, and a good hello for it.
    Foreign(fn(&View<'_>) -> uuid::Uuid),
    /// Bytes in place of the hello.
    First(Bytes),
    /// Bytes after the welcome.
    Later(Bytes),
    /// Bytes after the welcome, then the end of TLS.
    Cut(Bytes),
    /// Bytes after the welcome, then the end of TCP without that of TLS.
    CutRaw(Bytes),
    /// Bytes after the welcome, then a reset.
    Reset(Bytes),
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A refusal with this reason, and nothing behind it.
    Refused(u16),
    /// An HTTP status, and the end.
    Status(u16),
    /// The end, without a word.
    HungUp,
    /// The end; nobody is there to hear why.
    Gone,
}

/// One wrong way.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is wrong.
    pub name: &'static str,
    /// The sentence that says so.
    pub sentence: &'static str,
    /// The field that is wrong, as `table+offset` of the document; empty if it is no field.
    pub field: &'static str,
    /// What is done.
    pub act: Act,
    /// What must come of it.
    pub expect: Expect,
    /// The counter of the node that must grow by one.
    pub counted: &'static str,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> + Clone {
    [connect::CASES, hello::CASES, header::CASES, order::CASES].into_iter().flatten()
}

/// A case with a reason that has a counter of its own word, as most have.
const fn case(
    sentence: &'static str,
    field: &'static str,
    name: &'static str,
    act: Act,
    why: u16,
) -> Case {
    let counted = match why {
        reason::NOT_ASSIGNED => "not_assigned",
        reason::FENCED => "fenced",
        reason::SIZE => "size",
        reason::GAP => "gap",
        reason::UNAVAILABLE => "unavailable",
        reason::LIMIT => "limit",
        _ => "protocol",
    };
    Case { name, sentence, field, act, expect: Expect::Refused(why), counted }
}

/// Does what the case says and checks how the connection ends.
///
/// # Errors
/// If it ends otherwise, or not at all.
pub fn play(
    case: &Case,
    site: &Site<'_>,
    agent: &Agent,
    volume: &Volume,
    view: &mut View<'_>,
) -> Result<()> {
    let end = act(case, site, agent, volume, view)?;
    let is_right = match (case.expect, &end) {
        (Expect::Refused(reason), End::Refused(found, text)) => {
            ensure!(!text.is_empty() && text.len() <= 512, "the refusal says {text:?}");
            reason == *found
        }
        (Expect::Status(status), End::Status(found)) => status == *found,
        (Expect::HungUp, End::HungUp) => true,
        (Expect::Gone, end) => *end != End::Open,
        _ => false,
    };
    ensure!(is_right, "expected {:?}, the end was {end:?}", case.expect);
    Ok(())
}

fn act(
    case: &Case,
    site: &Site<'_>,
    agent: &Agent,
    volume: &Volume,
    view: &mut View<'_>,
) -> Result<End> {
    match case.act {
        Act::Plain(bytes) | Act::PlainCut(bytes) => {
            let mut tcp = peer::connect(Ipv4Addr::LOCALHOST, volume.port)?;
            // The node may hang up before it has read all.
            let _ = std::io::Write::write_all(&mut tcp, &bytes(view));
            if matches!(case.act, Act::PlainCut(_)) {
                let _ = tcp.shutdown(Shutdown::Write);
            }
            peer::hang_up(&mut tcp)
        }
        Act::Shake(who) => {
            let Ok(mut peer) = site.shake(agent, volume, who) else { return Ok(End::HungUp) };
            peer.send(peer::request(&volume.id.to_string()).as_bytes());
            answer(&mut peer)
        }
        Act::Request(bytes) => {
            let mut peer = site.shake(agent, volume, Who::Agent)?;
            peer.send(&bytes(view));
            answer(&mut peer)
        }
        Act::NoRequest => {
            let mut peer = site.shake(agent, volume, Who::Agent)?;
            peer.close_writing();
            answer(&mut peer)
        }
        Act::Foreign(which) => {
            let (id, hello) = (which(view), view.stream.hello());
            let volume = Volume { id, ..volume.clone() };
            let mut peer = site.upgraded(agent, &volume)?;
            peer.send(&crate::frame::Hello { volume: id.into_bytes(), ..hello }.frame().bytes());
            peer.end()
        }
        Act::First(bytes) => {
            let mut peer = site.upgraded(agent, volume)?;
            peer.send(&bytes(view));
            peer.end()
        }
        Act::Later(bytes) | Act::Cut(bytes) | Act::CutRaw(bytes) | Act::Reset(bytes) => {
            let mut peer = site.session(agent, volume, view.stream)?;
            peer.send(&bytes(view));
            match case.act {
                Act::Cut(_) => peer.close_writing(),
                Act::CutRaw(_) => peer.socket().shutdown(Shutdown::Write)?,
                Act::Reset(_) => {
                    set_socket_linger(peer.socket(), Some(Duration::ZERO))?;
                    return Ok(End::HungUp);
                }
                _ => {}
            }
            peer.end()
        }
    }
}

/// How a node ends a connection that is no session.
fn answer(peer: &mut Peer) -> Result<End> {
    match peer.status() {
        Ok(101) => bail!("the node opened a session"),
        Ok(status) => peer.rest().context("the rest of the answer").map(|()| End::Status(status)),
        Err(error) if peer::is_timeout(&error) => Ok(End::Open),
        Err(_) => Ok(End::HungUp),
    }
}

/// A frame that would be good: what a case then breaks.
fn good(view: &View<'_>) -> Frame {
    Frame::zero(view.stream.next, 0, 1)
}

/// The same with a body.
fn write(view: &View<'_>) -> Frame {
    Frame::write(view.stream.next, 0, vec![0xbd; crate::frame::BLOCK_BYTES])
}
