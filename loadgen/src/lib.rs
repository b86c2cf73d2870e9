//! x
pub mod amount;
pub mod content;
pub mod limits;
pub mod mix;
pub mod random;
pub mod stream;
pub mod tally;
pub mod timetable;
