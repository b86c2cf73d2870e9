//! Fixed newstyle negotiation: from the greeting to the agreement on an export.
//!
//! [`Negotiation::answer`] decides, option by option, without I/O; [`negotiate`] drives it.

use std::io;

use bytes::{Buf, BufMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::counters::{Ledger, Refusal};
use crate::incoming::Incoming;
use crate::limits::{BLOCK_BYTES_PREFERRED, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX, block_bytes_min};
use crate::wire::{
    GREETING_MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, context, export_flag,
    handshake, info, option, option_reply,
};

/// What is exported; its size is that of when a connection came.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) is_read_only: bool,
    pub(crate) can_multi_conn: bool,
    pub(crate) is_zeroing_fast: bool,
}

impl Export {
    /// Whether a client means this export. The empty name stands for the default, and there is one only.
    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    fn flags(&self, agreed: Agreed) -> u16 {
        use export_flag as f;
        let mut flags = f::HAS_FLAGS | f::SEND_FLUSH | f::SEND_FUA | f::SEND_CACHE;
        if self.is_read_only {
            flags |= f::READ_ONLY;
        } else {
            flags |= f::SEND_TRIM | f::SEND_WRITE_ZEROES | f::SEND_FAST_ZERO;
        }
        if self.can_multi_conn {
            flags |= f::CAN_MULTI_CONN;
        }
        if agreed.structured {
            flags |= f::SEND_DF;
        }
        flags
    }
}

/// What the two sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Structured replies.
    pub(crate) structured: bool,
    /// BLOCK_STATUS with the context `base:allocation`; implies `structured`.
    pub(crate) allocation: bool,
}

/// How the conversation goes on after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// With another option.
    Option,
    /// With requests.
    Transmission,
    /// Not at all.
    Close,
}

/// State of one connection's negotiation.
#[derive(Debug)]
pub(crate) struct Negotiation<'e> {
    export: &'e Export,
    no_zeroes: bool,
    agreed: Agreed,
}

/// Says hello.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.put_u64(GREETING_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    out
}

impl<'e> Negotiation<'e> {
    /// Begins with the flags that the client answered the greeting with.
    pub(crate) fn begin(export: &'e Export, client_flags: u32) -> Result<Self, Refusal> {
        let offered = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if client_flags & !offered != 0 {
            return Err(Refusal::ClientFlagsUnknown);
        }
        let no_zeroes = client_flags & u32::from(handshake::NO_ZEROES) != 0;
        Ok(Self { export, no_zeroes, agreed: Agreed::default() })
    }

    /// Answers one option into `out`; a refusal is to be counted, whatever comes next.
    pub(crate) fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> (Next, Option<Refusal>) {
        let answered = match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                reply(out, option, option_reply::ACK, &[]);
                return (Next::Close, None);
            }
            option::LIST => self.list(data, out),
            option::INFO => self.info(option, data, out).map(|()| Next::Option),
            option::GO => self.info(option, data, out).map(|()| Next::Transmission),
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, out)
            }
            _ => Err(Refusal::OptionUnsupported),
        };
        match answered {
            Ok(next) => (next, None),
            Err(refusal) => {
                let (kind, text) = match refusal {
                    Refusal::ExportUnknown => (option_reply::ERR_UNKNOWN, "no such export here"),
                    Refusal::OptionUnsupported => {
                        (option_reply::ERR_UNSUP, "this option is not supported")
                    }
                    _ => (option_reply::ERR_INVALID, "the option's data make no sense"),
                };
                reply(out, option, kind, text.as_bytes());
                (Next::Option, Some(refusal))
            }
        }
    }

    /// The oldest way to choose an export: no error can be told, and no reply header precedes the answer.
    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> (Next, Option<Refusal>) {
        if !self.export.is_called(name) {
            return (Next::Close, Some(Refusal::ExportUnknown));
        }
        out.put_u64(self.export.size_bytes);
        out.put_u16(self.export.flags(self.agreed));
        if !self.no_zeroes {
            out.put_bytes(0, handshake::EXPORT_NAME_ZEROES);
        }
        (Next::Transmission, None)
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(Refusal::OptionInvalid);
        }
        let mut server = Vec::new();
        server.put_u32(length_of(self.export.name.as_bytes()));
        server.put_slice(self.export.name.as_bytes());
        reply(out, option::LIST, option_reply::SERVER, &server);
        reply(out, option::LIST, option_reply::ACK, &[]);
        Ok(Next::Option)
    }

    fn info(&self, option: u32, mut data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let name = take_string(&mut data)?;
        let count = data.try_get_u16().map_err(|_| Refusal::OptionInvalid)?;
        if data.len() != usize::from(count) * 2 {
            return Err(Refusal::OptionInvalid);
        }
        if !self.export.is_called(name) {
            return Err(Refusal::ExportUnknown);
        }
        let mut wants_name = false;
        while data.has_remaining() {
            wants_name |= data.get_u16() == info::NAME;
        }

        let mut about = Vec::new();
        about.put_u16(info::EXPORT);
        about.put_u64(self.export.size_bytes);
        about.put_u16(self.export.flags(self.agreed));
        reply(out, option, option_reply::INFO, &about);

        // Told even if not asked for: the smallest request here is not the 1 byte that clients would assume.
        about.clear();
        about.put_u16(info::BLOCK_SIZE);
        about.put_u32(block_bytes_min(self.export.size_bytes));
        about.put_u32(BLOCK_BYTES_PREFERRED);
        about.put_u32(PAYLOAD_BYTES_MAX);
        reply(out, option, option_reply::INFO, &about);

        if wants_name {
            about.clear();
            about.put_u16(info::NAME);
            about.put_slice(self.export.name.as_bytes());
            reply(out, option, option_reply::INFO, &about);
        }
        reply(out, option, option_reply::ACK, &[]);
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(Refusal::OptionInvalid);
        }
        self.agreed.structured = true;
        reply(out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
        Ok(Next::Option)
    }

    fn meta_context(
        &mut self,
        option: u32,
        mut data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Next, Refusal> {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // Every SET replaces what was set before, a failed one too.
            self.agreed.allocation = false;
        }
        if !self.agreed.structured {
            return Err(Refusal::OptionInvalid);
        }
        let name = take_string(&mut data)?;
        let count = data.try_get_u32().map_err(|_| Refusal::OptionInvalid)?;
        let mut is_asked = !sets && count == 0;
        for _ in 0..count {
            // Ends early on a lying count: each query takes at least its four bytes of length.
            let query = take_string(&mut data)?;
            is_asked |= query == context::ALLOCATION.as_bytes();
            is_asked |= !sets && query == context::NAMESPACE.as_bytes();
        }
        if data.has_remaining() {
            return Err(Refusal::OptionInvalid);
        }
        if !self.export.is_called(name) {
            return Err(Refusal::ExportUnknown);
        }
        if is_asked {
            let mut found = Vec::new();
            found.put_u32(if sets { context::ALLOCATION_ID } else { 0 });
            found.put_slice(context::ALLOCATION.as_bytes());
            reply(out, option, option_reply::META_CONTEXT, &found);
            self.agreed.allocation |= sets;
        }
        reply(out, option, option_reply::ACK, &[]);
        Ok(Next::Option)
    }
}

/// Takes a string with its length before it.
fn take_string<'d>(data: &mut &'d [u8]) -> Result<&'d [u8], Refusal> {
    let length = data.try_get_u32().map_err(|_| Refusal::OptionInvalid)? as usize;
    let (string, rest) = data.split_at_checked(length).ok_or(Refusal::OptionInvalid)?;
    *data = rest;
    Ok(string)
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(length_of(data));
    out.put_slice(data);
}

fn length_of(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("replies hold a name and a few words")
}

/// Negotiates until there are requests to serve; `None` if the connection ends before that.
///
/// # Errors
/// The socket's, also if the client closes it inside an option.
pub(crate) async fn negotiate<R, W>(
    incoming: &mut Incoming<R>,
    writer: &mut W,
    export: &Export,
    ledger: &Ledger,
) -> io::Result<Option<Agreed>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    writer.write_all(&greeting()).await?;
    let Some(client_flags) = incoming.array::<4>().await? else { return Ok(None) };
    let mut negotiation = match Negotiation::begin(export, u32::from_be_bytes(client_flags)) {
        Ok(negotiation) => negotiation,
        Err(refusal) => {
            ledger.refuse(refusal);
            return Ok(None);
        }
    };
    let mut out = Vec::new();
    loop {
        let Some(header) = incoming.array::<OPTION_HEADER_BYTES>().await? else {
            return Ok(None);
        };
        let (option, length) = match decode_option(&header) {
            Ok(decoded) => decoded,
            Err(refusal) => {
                ledger.refuse(refusal);
                return Ok(None);
            }
        };
        let data = incoming.bytes(length).await?;
        out.clear();
        let (next, refusal) = negotiation.answer(option, &data, &mut out);
        if let Some(refusal) = refusal {
            ledger.refuse(refusal);
        }
        let written = writer.write_all(&out).await;
        match next {
            Next::Option => written?,
            Next::Transmission => {
                written?;
                return Ok(Some(negotiation.agreed));
            }
            // The client may be gone already, which is as good.
            Next::Close => return Ok(None),
        }
    }
}

fn decode_option(header: &[u8; OPTION_HEADER_BYTES]) -> Result<(u32, usize), Refusal> {
    let mut header = header.as_slice();
    if header.get_u64() != OPTION_MAGIC {
        return Err(Refusal::OptionMagicWrong);
    }
    let option = header.get_u32();
    let length = header.get_u32();
    if length > OPTION_BYTES_MAX {
        return Err(Refusal::OptionTooLong);
    }
    Ok((option, length as usize))
}

#[cfg(test)]
mod tests;
