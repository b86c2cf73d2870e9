//! The steps of a write at which a crash leaves a different picture; tests stop it there.

use std::io;

/// A moment in the life of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Nothing of the intent is in its file yet.
    BeforeIntent,
    /// The intent is durable.
    AfterIntent,
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

/// Reached at every step of a write. Outside tests it does nothing.
#[derive(Clone, Default)]
pub struct Steps {
    #[cfg(test)]
    hook: Option<std::sync::Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>>,
}

impl Steps {
    /// Calls `hook` at every step; an error from it stands for a crash there.
    #[cfg(test)]
    pub(crate) fn with_hook(hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: Some(std::sync::Arc::new(hook)) }
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
