//! x
pub mod amount;
pub mod content;
pub mod dial;
pub mod limits;
pub mod mix;
pub mod random;
pub mod source;
pub mod stream;
pub mod tally;
pub mod timetable;
pub mod wire;
