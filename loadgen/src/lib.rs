//! Open-loop load on Farshore's nodes: many sources, each an enrolled agent with a volume of its own,
//! write at a fixed rate whatever comes back, and measure from when a write was due until its acks.
//!
//! It speaks the agents' protocol with the codecs of `farshore-proto`, sets its marks by the rule of
//! `farshore-engine` that agents go by, and links nothing of a node, so what it measures is what an agent sees.
//!
//! | module | holds |
//! |---|---|
//! | [`plan`], [`amount`], [`mix`] | what a run is to do, and its words on the command line |
//! | [`timetable`], [`content`], [`random`] | when each write is due and what it holds, from the seed |
//! | [`marks`] | when each mark is due, by the node's word, and which are sent |
//! | [`stream`] | seqs, watermarks, the window, what has to be sent again |
//! | [`source`], [`dial`], [`wire`] | one source and its connections |
//! | [`site`], [`operator`], [`enrol`] | the control plane: identities, machines, places |
//! | [`run`], [`progress`] | a whole run |
//! | [`tally`], [`report`], [`histograms`], [`cpu`] | what was found |
//! | [`limits`] | every limit |

#![forbid(unsafe_code)]

pub mod amount;
pub mod content;
pub mod cpu;
pub mod dial;
pub mod enrol;
pub mod histograms;
pub mod limits;
pub mod marks;
pub mod mix;
pub mod operator;
pub mod plan;
pub mod progress;
pub mod random;
pub mod report;
pub mod run;
pub mod site;
pub mod source;
pub mod stream;
pub mod tally;
pub mod timetable;
pub mod wire;
