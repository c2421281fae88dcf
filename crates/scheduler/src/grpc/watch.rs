//! How any watch goes: look, send what is new, wait for the next round, look again. Nothing is buffered: the next look is
//! made when the client has taken the last response, and never when it has gone.

use std::sync::Arc;

use futures::stream::BoxStream;
use inheritune_api::status;
use inheritune_runtime::store_status::RETRY_AFTER;
use tonic::Status;

use super::WatchGrant;
use super::rounds::Round;

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

    /// Looks once, with the eyes of a round.
    fn look(&mut self, round: &Round) -> impl Future<Output = Result<Look<Self::Response>, Status>> + Send;
}

/// The stream of what `watched` has to say. It ends after its last word, with an error, or with UNAVAILABLE when the
/// service stops.
pub(super) fn stream<W: Watched>(watched: W, grant: WatchGrant) -> BoxStream<'static, Result<W::Response, Status>> {
    // The first look is its own: what the client did just before is in it.
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
