//! What is told while a run goes on: a bar or a line each second on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Between two lines on a terminal, and elsewhere.
const LINE_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Counts the steps of something that many sources do.
#[derive(Debug)]
pub struct Steps {
    bar: ProgressBar,
    what: &'static str,
    told: Mutex<Instant>,
}

impl Steps {
    /// For so many steps.
    ///
    /// # Panics
    /// Never: the template is a constant that is right.
    #[must_use]
    pub fn of(what: &'static str, steps: u64) -> Self {
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}")
            .expect("the template names fields that indicatif has");
        bar.set_style(style);
        bar.set_prefix(what);
        Self { bar, what, told: Mutex::new(Instant::now()) }
    }

    /// One more is done, of so many as are known now.
    pub fn step_of(&self, all: u64) {
        self.bar.set_length(all);
        self.step();
    }

    /// One more is done.
    pub fn step(&self) {
        self.bar.inc(1);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !stderr().is_terminal() && told.elapsed() >= LINE_EVERY.1 {
            *told = Instant::now();
            self.tell();
        }
    }

    fn tell(&self) {
        farshore_program::tell!(
            "{}: {} of {}",
            self.what,
            self.bar.position(),
            self.bar.length().unwrap_or(0)
        );
    }

    /// All are done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        self.tell();
    }
}

/// Lines about the run itself.
#[derive(Debug)]
pub struct Lines {
    every: Duration,
    told: Instant,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Lines {
    /// By what standard error is.
    #[must_use]
    pub fn new() -> Self {
        let every = if stderr().is_terminal() { LINE_EVERY.0 } else { LINE_EVERY.1 };
        Self { every, told: Instant::now() }
    }

    /// Whether a line is due; if so, the time since the last one.
    pub fn due(&mut self) -> Option<Duration> {
        let since = self.told.elapsed();
        (since >= self.every).then(|| {
            self.told = Instant::now();
            since
        })
    }
}
