//! Waking up: Postgres notifications as hints that polling need not wait for.
//!
//! They are sent after what they tell of was committed, and may be lost (a connection breaks, a process ends), so every
//! waiter also has a timeout: the tables are the truth.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::{Store, StoreError};

/// Shortest time between two announcements of one process.
const PAUSE: Duration = Duration::from_millis(4);
/// Announcements that are looked at together, at most.
const MANY: usize = 1024;
/// Wait before listening again after the listener failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A job can be claimed.
    Jobs,
    /// A run has something in its inbox.
    Runs,
    /// A run or a job is in another state. Heartbeats are not announced.
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
    /// Returns at once when `topic` changed since the last call, else on its next change or after `timeout`.
    pub async fn changed(&mut self, topic: Topic, timeout: Duration) {
        let receiver = &mut self.topics[topic.index()];
        match tokio::time::timeout(timeout, receiver.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // The listener is gone with its runtime; its waiters go on by polling.
            Ok(Err(_)) => tokio::time::sleep(timeout).await,
        }
    }
}

impl Store {
    /// Listens for changes, on one connection per process that all callers share and that reconnects by itself.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn listen(&self) -> Result<Wakeups, StoreError> {
        let wakeups = self.wakeups.get_or_try_init(|| async {
            // Not from the shared pool: a listener keeps its connection for good.
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
            // The connection was lost, and notifications with it: everyone looks for himself.
            Ok(None) => topics.iter().for_each(|sender| sender.send_modify(|changes| *changes += 1)),
            Err(error) => {
                tracing::warn!(%error, "cannot listen for notifications; polling goes on");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Tells the others, soon after a transaction has committed and for many transactions at once. One that announced
/// something itself would keep all others that do waiting until its commit is on disk.
#[derive(Debug, Clone)]
pub(crate) struct Announcer(mpsc::UnboundedSender<Topic>);

impl Announcer {
    /// It ends with the last clone.
    pub(crate) fn start(pool: PgPool) -> Self {
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(announce_all(asked, pool));
        Self(sender)
    }

    /// Announces `topics`, which others see by now.
    pub(crate) fn announce(&self, topics: &[Topic]) {
        for topic in topics {
            // Fails when the runtime is being shut down.
            let _unheard = self.0.send(*topic);
        }
    }
}

async fn announce_all(mut asked: mpsc::UnboundedReceiver<Topic>, pool: PgPool) {
    let mut topics = Vec::new();
    while asked.recv_many(&mut topics, MANY).await > 0 {
        let changed = Topic::ALL.into_iter().filter(|topic| topics.contains(topic));
        let channels: Vec<String> = changed.map(|topic| topic.channel().to_owned()).collect();
        // What may be lost need not be on disk.
        let announced = sqlx::query!(
            "-- notify.announce
             SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, '')
             FROM unnest($1::text[]) AS channel",
            &channels
        );
        if let Err(error) = announced.fetch_all(&pool).await {
            tracing::debug!(%error, ?channels, "not announced; polling goes on");
        }
        topics.clear();
        tokio::time::sleep(PAUSE).await;
    }
}
