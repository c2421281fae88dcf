//! Wakeups: Postgres notifications that let waiting tasks poll early.
//!
//! A notification is sent after the commit of the change. It may be lost if a connection breaks or
//! a process ends. Every waiter therefore also has a timeout, and the tables are the source of
//! truth.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::{Store, StoreError};

/// Shortest time between two announcements of one process.
const PAUSE: Duration = Duration::from_millis(4);
/// Most announcements that are combined.
const MANY: usize = 1024;
/// Wait before a retry after the listener failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A job can be claimed.
    Jobs,
    /// The inbox of a run has new events.
    Runs,
    /// The state of a run or a job changed. Heartbeats are not announced.
    Updates,
}

impl Topic {
    pub(crate) const ALL: [Self; 3] = [Self::Jobs, Self::Runs, Self::Updates];

    fn channel(self) -> &'static str {
        match self {
            Self::Jobs => "inheritune_jobs",
            Self::Runs => "inheritune_runs",
            Self::Updates => "inheritune_updates",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Jobs => 0,
            Self::Runs => 1,
            Self::Updates => 2,
        }
    }
}

/// Wakes up waiting tasks. A clone is an independent receiver.
#[derive(Debug, Clone)]
pub struct Wakeups {
    topics: [watch::Receiver<u64>; 3],
    // The listener ends with the last clone.
    _listener: Arc<JoinSet<()>>,
}

impl Wakeups {
    /// Returns immediately if `topic` changed since the last call. Otherwise waits for its next
    /// change or for `timeout`.
    pub async fn changed(&mut self, topic: Topic, timeout: Duration) {
        let receiver = &mut self.topics[topic.index()];
        match tokio::time::timeout(timeout, receiver.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // The listener ended with its runtime. Waiters fall back to polling.
            Ok(Err(_)) => tokio::time::sleep(timeout).await,
        }
    }
}

impl Store {
    /// Listens for changes. All callers of a process share one connection, which reconnects
    /// automatically.
    ///
    /// # Errors
    /// The database is unreachable.
    pub async fn listen(&self) -> Result<Wakeups, StoreError> {
        let wakeups = self.wakeups.get_or_try_init(|| async {
            // Not from the shared pool, because a listener never returns its connection.
            let own = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
            let own = own.connect_with((*self.pool.connect_options()).clone()).await?;
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen_all(Topic::ALL.map(Topic::channel)).await?;
            let [(jobs, on_jobs), (runs, on_runs), (updates, on_updates)] = Topic::ALL.map(|_| watch::channel(0_u64));
            let mut tasks = JoinSet::new();
            tasks.spawn(fan_out(listener, [jobs, runs, updates]));
            Ok::<_, StoreError>(Wakeups { topics: [on_jobs, on_runs, on_updates], _listener: Arc::new(tasks) })
        });
        Ok(wakeups.await?.clone())
    }
}

async fn fan_out(mut listener: PgListener, topics: [watch::Sender<u64>; 3]) {
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                for (topic, sender) in Topic::ALL.into_iter().zip(&topics) {
                    if topic.channel() == notification.channel() {
                        sender.send_modify(|changes| *changes += 1);
                    }
                }
            }
            // The connection was lost, maybe with notifications, so wake up all waiters.
            Ok(None) => topics.iter().for_each(|sender| sender.send_modify(|changes| *changes += 1)),
            Err(error) => {
                tracing::warn!(%error, "cannot listen for notifications; waiters fall back to polling");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Sends notifications soon after transactions have committed, and combines those of many. A
/// transaction that notified by itself would block all others that notify until its commit is on
/// disk.
#[derive(Debug, Clone)]
pub(crate) struct Announcer(mpsc::UnboundedSender<Topic>);

impl Announcer {
    /// Starts the task that sends notifications. It ends when the last clone is dropped.
    pub(crate) fn start(pool: PgPool) -> Self {
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(announce_all(asked, pool));
        Self(sender)
    }

    /// Announces that `topics` have changed. The changes must be committed.
    pub(crate) fn announce(&self, topics: &[Topic]) {
        for topic in topics {
            // Fails while the runtime shuts down.
            let _unheard = self.0.send(*topic);
        }
    }
}

async fn announce_all(mut asked: mpsc::UnboundedReceiver<Topic>, pool: PgPool) {
    let mut topics = Vec::new();
    while asked.recv_many(&mut topics, MANY).await > 0 {
        let changed = Topic::ALL.into_iter().filter(|topic| topics.contains(topic));
        let channels: Vec<String> = changed.map(|topic| topic.channel().to_owned()).collect();
        // Notifications may be lost, so the commit need not wait for the disk.
        let announced = sqlx::query!(
            "-- notify.announce
             SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, '')
             FROM unnest($1::text[]) AS channel",
            &channels
        );
        if let Err(error) = announced.fetch_all(&pool).await {
            tracing::debug!(%error, ?channels, "cannot send notifications; waiters fall back to polling");
        }
        topics.clear();
        tokio::time::sleep(PAUSE).await;
    }
}
