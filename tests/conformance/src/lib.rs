//! Hostile peers against a real node: who may not speak, what may not be said, and what may not take
//! for ever.
//!
//! [`frame`] lays frames out by hand, any field wrong. [`cases`] is the table of all wrong ways, each
//! with the sentence of `docs/formats/frame.md` that it breaks. [`site`] starts a real system with
//! agents of which the test holds the keys. [`source`] is the good source beside, [`crowd`] the ten
//! thousand sockets.

#![forbid(unsafe_code)]

pub mod cases;
pub mod crowd;
pub mod frame;
pub mod peer;
pub mod site;
pub mod source;
pub mod stream;
