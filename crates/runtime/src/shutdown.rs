//! Graceful shutdown on signals.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit status of a process that received a second stop signal.
const EXIT_IMPATIENT: i32 = 130;

/// Returns a token that is cancelled by the first SIGTERM or SIGINT. The second signal ends the
/// process immediately. Must be called inside a tokio runtime.
pub fn stop_on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => {
            // The task lives as long as the process; nothing waits for it.
            TaskTracker::new().spawn(watch(terminate, interrupt, stop.clone()));
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot handle signals; use SIGKILL to stop this process");
        }
    }
    stop
}

/// Ignores SIGTERM and SIGINT from now on: the process that started this one tells it when to stop.
/// Must be called inside a tokio runtime.
pub(crate) fn leave_signals_to_parent() {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        // The first call for a kind replaces the default handler for the lifetime of the process.
        if let Err(error) = signal(kind) {
            tracing::warn!(%error, "cannot ignore a signal; it would end this process before it has saved");
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
            tracing::warn!(signal = name, "second signal: exiting without saving");
            std::process::exit(EXIT_IMPATIENT);
        }
        tracing::info!(signal = name, "stopping; a second signal exits immediately");
        stop.cancel();
    }
}
