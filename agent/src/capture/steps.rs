//! The steps of a write at which a crash leaves a different picture; tests stop it there.

use std::io;

/// A moment in the life of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Nothing of the intent is in its file yet.
    BeforeIntent,
    /// The intent is durable.
    AfterIntent,
    /// Intents cannot be had: that is about to be noted, or ended.
    BeforeVoid,
    /// The write goes ahead.
    BeforeDisk,
    /// The disk has the bytes.
    AfterDisk,
    /// The log has the frame, the client no answer.
    AfterLog,
    /// A flush is about to begin.
    BeforeFlush,
    /// The disk is flushed, the log is not.
    BetweenFlushes,
    /// Intents are about to be cleared in their file.
    BeforeClear,
    /// A region in doubt is about to be read again.
    BeforeReRead,
    /// A region in doubt was read again.
    AfterReRead,
}

/// What the disk is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To read bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// To change bytes.
    Write {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// To change bytes if that needs no waiting; `WouldBlock` stands for a disk that would wait.
    WriteAtOnce {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// To make everything durable.
    Sync,
    /// Its memory is dropped, so that the next read asks the disk.
    Forget,
}

/// Reached at every step of a write and before every call of the disk. Outside tests it does nothing.
#[derive(Clone, Default)]
pub struct Steps {
    #[cfg(test)]
    hook: Option<std::sync::Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>>,
    #[cfg(test)]
    disk: Option<std::sync::Arc<dyn Fn(Call) -> io::Result<()> + Send + Sync>>,
}

impl Steps {
    /// Calls `hook` at every step; an error from it stands for a crash there.
    #[cfg(test)]
    pub(crate) fn with_hook(hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: Some(std::sync::Arc::new(hook)), disk: None }
    }

    /// Calls `disk` before every call of the disk; an error from it is the disk's own, and while it
    /// waits the disk hangs.
    #[cfg(test)]
    pub(crate) fn with_disk(disk: impl Fn(Call) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: None, disk: Some(std::sync::Arc::new(disk)) }
    }

    /// Announces a call of the disk.
    ///
    /// # Errors
    /// What the test's disk says; never outside tests.
    #[cfg(test)]
    pub fn call(&self, call: Call) -> io::Result<()> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk(call))
    }

    /// Announces a call of the disk.
    ///
    /// # Errors
    /// Never outside tests.
    #[cfg(not(test))]
    pub fn call(&self, _call: Call) -> io::Result<()> {
        Ok(())
    }

    /// Marks a step.
    ///
    /// # Errors
    /// What the test's hook says; never outside tests.
    #[cfg(test)]
    pub fn reach(&self, step: Step) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(step))
    }

    /// Marks a step.
    ///
    /// # Errors
    /// Never outside tests.
    #[cfg(not(test))]
    pub fn reach(&self, _step: Step) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Steps").finish_non_exhaustive()
    }
}
