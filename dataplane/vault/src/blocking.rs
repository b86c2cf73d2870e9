//! Work that blocks or takes long: on tokio's threads for it, or in place where there is no tokio.

use tokio::runtime::Handle;
use tokio::task::JoinError;

/// Runs `work` where it holds nobody up.
///
/// Without a tokio runtime it runs on the thread that asks: the futures of a vault then work under
/// any executor.
///
/// # Errors
/// If the work panicked or the runtime is shutting down.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await,
        Err(_) => Ok(work()),
    }
}
