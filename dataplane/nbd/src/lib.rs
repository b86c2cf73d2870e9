//! The NBD protocol, server side, over tokio. What is served is a [`Backend`]: the agent's write splitter, or
//! a recovery point with its overlay.
//!
//! # The subset
//!
//! | part | here |
//! | --- | --- |
//! | negotiation | fixed newstyle, `NO_ZEROES`; options EXPORT_NAME, GO, INFO (EXPORT, BLOCK_SIZE, NAME), LIST, ABORT, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT; any other is answered `ERR_UNSUP` and negotiation goes on |
//! | exports | one per server; the empty name means it too |
//! | sizes | 512 bytes minimum and granularity, 4 KiB preferred, 32 MiB maximum for READ and WRITE; the other commands up to 4 GiB |
//! | commands | READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, DISC |
//! | flags | FUA on every command; DF, NO_HOLE, FAST_ZERO, REQ_ONE where they belong; any other is `EINVAL` |
//! | replies | structured if negotiated: OFFSET_DATA, OFFSET_HOLE, NONE, BLOCK_STATUS, ERROR with a sentence; simple otherwise. Out of order |
//! | metadata | `base:allocation` |
//! | several connections | announced if the backend says that a flush on one covers all |
//! | not here | oldstyle, STARTTLS (loopback and Unix sockets only), extended headers, other metadata contexts, resizing |
//!
//! # What a client gets for a mistake
//!
//! | mistake | answer |
//! | --- | --- |
//! | unknown command or flag, off the 512-byte grid, read, query or trim past the end, flush with a range | `EINVAL` |
//! | write of data or zeroes past the end | `ENOSPC` |
//! | change of a read-only export | `EPERM` |
//! | READ over 32 MiB | `EOVERFLOW` |
//! | WRITE over 32 MiB, wrong magic, option over 16 KiB, unknown handshake flag, EXPORT_NAME of nothing | the connection ends, after the replies to its other requests |
//! | negotiation not over in 10 s, 17th connection | the connection ends |
//! | a request of no bytes inside the disk | success |
//!
//! Each is counted under its name ([`Refusal`], [`Counters`]) and logged once per connection; other connections do not
//! notice.
//!
//! All limits are in [`limits`].
#![forbid(unsafe_code)]

mod address;
mod backend;
mod counters;
mod incoming;
pub mod limits;
mod negotiate;
mod reply;
mod request;
mod server;
mod transmit;
mod wire;

pub use address::{Address, BindError, MalformedAddress};
pub use backend::{Backend, BackendError, Extent, Holds, Piece};
pub use counters::{Counters, Refusal};
pub use server::{Server, converse};
