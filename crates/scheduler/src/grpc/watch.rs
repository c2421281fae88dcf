//! The loop of every watch: look, send what is new, wait for the next round, look again. Nothing is
//! buffered: the next look starts when the client has taken the last response, and never after it
//! has disconnected.

use std::sync::Arc;

use futures::stream::BoxStream;
use inheritune_api::status;
use inheritune_runtime::store_status::RETRY_AFTER;
use tonic::Status;

use super::WatchGrant;
use super::rounds::Round;

/// The result of one look.
pub(super) enum Look<T> {
    /// Nothing has changed since the last response.
    Same,
    /// A response to send.
    New(T),
    /// The last response, after which nothing can change.
    Last(T),
}

/// A resource that can be watched.
pub(super) trait Watched: Send + 'static {
    /// The message of the stream.
    type Response: Send + 'static;

    /// Looks once, with the data of a round.
    fn look(&mut self, round: &Round) -> impl Future<Output = Result<Look<Self::Response>, Status>> + Send;
}

/// Returns the stream of responses of `watched`. It ends after the last response, with an error, or
/// with UNAVAILABLE when the service stops.
pub(super) fn stream<W: Watched>(watched: W, grant: WatchGrant) -> BoxStream<'static, Result<W::Response, Status>> {
    // The first look uses its own round, so that it includes what the client did just before.
    let round = Arc::new(Round::new(&grant.store, Vec::new()));
    let state = State { watched, grant, next: Next::Look(round) };
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
    Look(Arc<Round>),
    Wait,
    End,
}

impl<W: Watched> State<W> {
    async fn next(&mut self) -> Option<Result<W::Response, Status>> {
        loop {
            let round = match std::mem::replace(&mut self.next, Next::Wait) {
                Next::Look(round) => Some(round),
                Next::Wait => self.grant.stop.clone().run_until_cancelled(self.grant.rounds.next()).await,
                Next::End => {
                    self.next = Next::End;
                    return None;
                }
            };
            let Some(round) = round.filter(|_| !self.grant.stop.is_cancelled()) else {
                return Some(Err(status::unavailable("this service is stopping; watch again", RETRY_AFTER)));
            };
            let look = self.watched.look(&round).await;
            self.grant.rounds.skip();
            match look {
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
}
