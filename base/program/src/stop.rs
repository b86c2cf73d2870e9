//! What asks a program that serves to end in order.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::is_hangup_ignored;

/// SIGTERM, SIGINT, and SIGHUP unless the program was started with it ignored, as `nohup` does.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl StopSignals {
    /// Catches them from now on. Within a runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: (!is_hangup_ignored()).then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// Waits for one of them and says which it was.
    ///
    /// # Cancel safety
    /// Safe: one that came meanwhile is told by the next call.
    pub async fn asked(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}
