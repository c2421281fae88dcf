//! Stopping on signals.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit status of a process that was told to stop twice.
const EXIT_IMPATIENT: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT; the second signal ends the process at once.
/// Must be called inside a tokio runtime.
pub fn stop_on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => {
            // Lives as long as the process: nothing waits for it.
            TaskTracker::new().spawn(watch(terminate, interrupt, stop.clone()));
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "signals cannot be watched; stop with SIGKILL"),
    }
    stop
}

/// From here on SIGTERM and SIGINT do nothing: whoever started this process tells it when to stop. Must be called inside a
/// tokio runtime.
pub(crate) fn leave_signals_to_parent() {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        // The first call for a kind puts a handler in the place of the default for as long as the process lives.
        if let Err(error) = signal(kind) {
            tracing::warn!(%error, "a signal to all processes ends this one before it has saved");
        }
    }
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if stop.is_cancelled() {
            tracing::warn!(signal = name, "second signal: exit without saving");
            std::process::exit(EXIT_IMPATIENT);
        }
        tracing::info!(signal = name, "stopping; a second signal exits at once");
        stop.cancel();
    }
}
