//! How any watch goes: look, send what is new, wait for a change, look again. Nothing is buffered: the next look is
//! made when the client has taken the last response, and never when it has gone.

use std::time::Duration;

use futures::stream::BoxStream;
use inheritune_api::status;
use inheritune_runtime::store_status::RETRY_AFTER;
use inheritune_store::notify::Topic;
use tonic::Status;

use super::WatchGrant;

/// Longest wait between two looks: a notification is only a hint.
const POLL: Duration = Duration::from_secs(1);
/// Shortest wait between two looks, however many changes there are.
const PAUSE: Duration = Duration::from_millis(200);

/// What a look has found.
pub(super) enum Look<T> {
    /// Nothing that was not sent before.
    Same,
    /// Something to send.
    New(T),
    /// Something to send, and nothing will ever follow.
    Last(T),
}

/// Something that can be looked at again and again.
pub(super) trait Watched: Send + 'static {
    /// What is sent.
    type Response: Send + 'static;

    /// Looks once.
    fn look(&mut self) -> impl Future<Output = Result<Look<Self::Response>, Status>> + Send;
}

/// The stream of what `watched` has to say. It ends after its last word, with an error, or with UNAVAILABLE when the
/// service stops.
pub(super) fn stream<W: Watched>(watched: W, grant: WatchGrant) -> BoxStream<'static, Result<W::Response, Status>> {
    let state = State { watched, grant, next: Next::Look };
    Box::pin(futures::stream::unfold(state, |mut state| async move {
        let item = state.next().await?;
        if item.is_err() {
            state.next = Next::End;
        }
        Some((item, state))
    }))
}

struct State<W> {
    watched: W,
    grant: WatchGrant,
    next: Next,
}

enum Next {
    Look,
    Wait,
    End,
}

impl<W: Watched> State<W> {
    async fn next(&mut self) -> Option<Result<W::Response, Status>> {
        loop {
            match self.next {
                Next::End => return None,
                Next::Wait => self.wait().await,
                Next::Look => {}
            }
            if self.grant.stop.is_cancelled() {
                return Some(Err(status::unavailable("this service is stopping; watch again", RETRY_AFTER)));
            }
            self.next = Next::Wait;
            match self.watched.look().await {
                Ok(Look::Same) => {}
                Ok(Look::New(response)) => return Some(Ok(response)),
                Ok(Look::Last(response)) => {
                    self.next = Next::End;
                    return Some(Ok(response));
                }
                Err(status) => return Some(Err(status)),
            }
        }
    }

    async fn wait(&mut self) {
        let WatchGrant { wakeups, stop, .. } = &mut self.grant;
        let changed = async {
            tokio::time::sleep(PAUSE).await;
            wakeups.changed(Topic::Updates, POLL).await;
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => {}
        }
    }
}
