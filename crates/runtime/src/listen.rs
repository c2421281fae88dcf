//! Connection limits: caps on the number of connections, in total and per peer, and time limits for
//! the first call and between calls. Every listener of a process is a [`Gate`].
//!
//! A full listener makes room by closing the connection that has been idle longest. Connections
//! that never made a call are closed before those that did. A peer that only opens sockets
//! therefore closes its own connections and keeps nobody else out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use inheritune_objects::Occasionally;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::config::ConfigError;
use crate::telemetry::metric;

/// Upper bound for the descriptor limit that is requested, even if the hard limit is higher.
const WANTED_DESCRIPTORS: u64 = 65_536;
/// One in this many descriptors is reserved for the database, files and child processes instead of
/// incoming connections.
const RESERVED_PART: u64 = 4;
/// Smallest number of reserved descriptors.
const MIN_RESERVED: u64 = 128;
/// A listener accepts at least this many connections, however few descriptors there are.
const MIN_CONNECTIONS: usize = 8;
/// Wait after an `accept` that failed because descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a new connection waits for another one to close, which happens when that one's task
/// runs next.
const ROOM_WAIT: Duration = Duration::from_millis(250);
/// Concurrent calls per connection to services that need no token. Only probes call these.
const MAX_OPEN_CALLS: usize = 8;

/// The section `[limits]` of every service's file: the limits of the gRPC listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenLimits {
    /// Maximum number of open connections; lower if the process may not open that many descriptors.
    pub max_connections: usize,
    /// Maximum number of open connections per address (for IPv6: per /64 network).
    pub max_connections_per_peer: usize,
    /// Time limit for the first call, counted from accepting the connection. Includes the TLS
    /// handshake.
    pub first_call_ms: u64,
    /// A connection without a call for this long is closed. Clients reconnect automatically.
    pub idle_ms: u64,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self { max_connections: 1024, max_connections_per_peer: 256, first_call_ms: 10_000, idle_ms: 600_000 }
    }
}

impl ListenLimits {
    /// Limits for `/metrics`, `/livez` and `/readyz`, which have few callers and short calls.
    pub(crate) fn of_operations() -> Self {
        Self { max_connections: 64, max_connections_per_peer: 32, first_call_ms: 5_000, idle_ms: 60_000 }
    }

    /// Checks that the limits allow any connection at all.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn check(&self) -> Result<(), ConfigError> {
        let zero = [
            ("limits.max_connections", self.max_connections == 0),
            ("limits.max_connections_per_peer", self.max_connections_per_peer == 0),
            ("limits.first_call_ms", self.first_call_ms == 0),
            ("limits.idle_ms", self.idle_ms == 0),
        ];
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((field, _)) => Err(ConfigError::Field { field, problem: "must be at least 1".to_owned() }),
            None => Ok(()),
        }
    }
}

/// Raises the soft limit on open descriptors to the hard limit, up to 65,536, and returns the new
/// limit. Many systems start programs with a limit of 1024, which a few callers can use up.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let soft = limit.current.unwrap_or(u64::MAX);
    let wanted = hard.min(WANTED_DESCRIPTORS);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, "cannot raise the limit on open files");
            soft
        }
    }
}

/// A listener and its open connections.
pub struct Gate {
    listener: TcpListener,
    house: Arc<House>,
}

impl From<TcpListener> for Gate {
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, "grpc", ListenLimits::default())
    }
}

impl Gate {
    /// Creates a gate. `name` is the listener's label in metrics. The number of connections is
    /// limited by `limits` and by the descriptors that the process may open.
    #[must_use]
    pub fn new(listener: TcpListener, name: &'static str, limits: ListenLimits) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let reserved = (descriptors / RESERVED_PART).max(MIN_RESERVED);
        let room = usize::try_from(descriptors.saturating_sub(reserved)).unwrap_or(usize::MAX).max(MIN_CONNECTIONS);
        let limits = ListenLimits { max_connections: limits.max_connections.min(room), ..limits };
        let house = House {
            name,
            limits,
            guests: Mutex::default(),
            left: Notify::new(),
            refusals: Occasionally::default(),
            failures: Occasionally::default(),
        };
        Self { listener, house: Arc::new(house) }
    }

    /// Maximum number of open connections.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        self.house.limits.max_connections
    }

    /// Waits for the next connection that is admitted.
    pub(crate) async fn next(&mut self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(guest) = self.house.admit(peer.ip()).await {
                        // TCP_NODELAY is an optimization; some sockets do not support it.
                        let _delayed = stream.set_nodelay(true);
                        let deadline = tokio::time::sleep(Duration::from_millis(self.house.limits.first_call_ms));
                        return Connection { stream, guest, deadline: Box::pin(deadline) };
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if let Some(others) = self.house.failures.now() {
                        tracing::warn!(%error, listener = self.house.name, others, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

impl axum::serve::Listener for Gate {
    type Io = Connection;
    type Addr = Guest;

    async fn accept(&mut self) -> (Connection, Guest) {
        let connection = self.next().await;
        let guest = connection.guest.clone();
        (connection, guest)
    }

    fn local_addr(&self) -> io::Result<Guest> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// The shared state of a [`Gate`]: its limits and its open connections.
struct House {
    name: &'static str,
    limits: ListenLimits,
    guests: Mutex<Guests>,
    left: Notify,
    refusals: Occasionally,
    failures: Occasionally,
}

#[derive(Default)]
struct Guests {
    all: HashMap<u64, Guest>,
    per_peer: HashMap<IpAddr, usize>,
    next: u64,
}

impl House {
    /// Admits a connection, closing an idle one to make room if needed. Returns `None` if all
    /// connections have calls in progress.
    async fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Guest> {
        let peer = network_of(peer);
        let give_up = tokio::time::Instant::now() + ROOM_WAIT;
        let mut was_asked = false;
        loop {
            match self.try_admit(peer, was_asked) {
                Admission::In(guest) => {
                    metrics::counter!(metric::CONNECTIONS_ACCEPTED, "listener" => self.name).increment(1);
                    return Some(guest);
                }
                Admission::Busy => break,
                Admission::Asked => was_asked = true,
            }
            if tokio::time::timeout_at(give_up, self.left.notified()).await.is_err() {
                break;
            }
        }
        metrics::counter!(metric::CONNECTIONS_REFUSED, "listener" => self.name).increment(1);
        if let Some(others) = self.refusals.now() {
            let ListenLimits { max_connections, max_connections_per_peer, .. } = self.limits;
            tracing::warn!(
                listener = self.name, %peer, others, max_connections, max_connections_per_peer,
                "connection refused: too many connections, and all of them have calls in progress"
            );
        }
        None
    }

    fn try_admit(self: &Arc<Self>, peer: IpAddr, was_asked: bool) -> Admission {
        let mut guests = self.lock();
        let of_peer = guests.per_peer.get(&peer).copied().unwrap_or(0);
        let is_peers_share_taken = of_peer >= self.limits.max_connections_per_peer;
        if !is_peers_share_taken && guests.all.len() < self.limits.max_connections {
            let id = guests.next;
            guests.next += 1;
            let state = State {
                id,
                peer,
                house: Arc::clone(self),
                since: Instant::now(),
                calls: AtomicUsize::new(0),
                open_calls: AtomicUsize::new(0),
                last_call_ms: AtomicU64::new(0),
                is_to_go: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            };
            let guest = Guest(Arc::new(state));
            guests.all.insert(id, guest.clone());
            *guests.per_peer.entry(peer).or_default() += 1;
            self.count(&guests);
            return Admission::In(guest);
        }
        if was_asked {
            return Admission::Asked;
        }
        let idle = guests.all.values().filter(|guest| !is_peers_share_taken || guest.0.peer == peer);
        let idle = idle.filter(|guest| guest.0.calls.load(Ordering::Acquire) == 0);
        let idle = idle.filter(|guest| !guest.0.is_to_go.load(Ordering::Acquire));
        let Some(longest) = idle.min_by_key(|guest| guest.0.idle_since()) else { return Admission::Busy };
        longest.0.send_away();
        metrics::counter!(metric::CONNECTIONS_CLOSED, "listener" => self.name, "reason" => "room").increment(1);
        if let Some(others) = self.refusals.now() {
            tracing::warn!(
                listener = self.name, peer = %longest.0.peer, others, connections = guests.all.len(),
                "too many connections: closed an idle one to make room for a new one"
            );
        }
        Admission::Asked
    }

    fn leave(&self, state: &State) {
        let mut guests = self.lock();
        guests.all.remove(&state.id);
        if let Some(of_peer) = guests.per_peer.get_mut(&state.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                guests.per_peer.remove(&state.peer);
            }
        }
        self.count(&guests);
        drop(guests);
        self.left.notify_one();
    }

    fn count(&self, guests: &Guests) {
        metrics::gauge!(metric::CONNECTIONS, "listener" => self.name).set(guests.all.len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Admission {
    In(Guest),
    /// Another connection was asked to close; there will be room soon.
    Asked,
    /// There is no idle connection to close.
    Busy,
}

/// Returns the address that a peer's connections are counted under. For IPv6 it is the /64 network,
/// because the owner of one address usually owns all of its /64.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A handle to one connection, for its calls.
#[derive(Clone)]
pub struct Guest(Arc<State>);

struct State {
    id: u64,
    peer: IpAddr,
    house: Arc<House>,
    since: Instant,
    /// Current calls to services that need a token.
    calls: AtomicUsize,
    /// Current calls to services that need no token.
    open_calls: AtomicUsize,
    /// When the last call began or ended, in milliseconds after `since`, plus one. 0 before the
    /// first call.
    last_call_ms: AtomicU64,
    is_to_go: AtomicBool,
    waker: AtomicWaker,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("id", &self.0.id).field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

impl Guest {
    /// Begins a call, which lasts until the returned value is dropped. Returns `None` if there are
    /// too many concurrent calls to services that need no token.
    pub(crate) fn call(&self, is_open: bool) -> Option<Call> {
        let counter = if is_open { &self.0.open_calls } else { &self.0.calls };
        let before = counter.fetch_add(1, Ordering::AcqRel);
        let call = Call { guest: self.clone(), is_open };
        if is_open && before >= MAX_OPEN_CALLS {
            return None;
        }
        self.0.touch();
        Some(call)
    }
}

/// One call. Its connection does not count as idle until it is dropped.
pub(crate) struct Call {
    guest: Guest,
    is_open: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        let State { calls, open_calls, .. } = &*self.guest.0;
        self.guest.0.touch();
        if self.is_open { open_calls } else { calls }.fetch_sub(1, Ordering::AcqRel);
    }
}

impl State {
    fn touch(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_call_ms.store(ms + 1, Ordering::Release);
    }

    /// Sort key of idle connections: those that never made a call come first.
    fn idle_since(&self) -> (bool, Instant) {
        match self.last_call_ms.load(Ordering::Acquire) {
            0 => (false, self.since),
            ms => (true, self.since + Duration::from_millis(ms - 1)),
        }
    }

    fn send_away(&self) {
        self.is_to_go.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Returns the current deadline of the connection, and the reason that is reported at that
    /// time.
    fn ends(&self) -> (Instant, &'static str) {
        let ListenLimits { first_call_ms, idle_ms, .. } = self.house.limits;
        let idle = Duration::from_millis(idle_ms);
        if self.calls.load(Ordering::Acquire) + self.open_calls.load(Ordering::Acquire) > 0 {
            return (Instant::now() + idle, "idle");
        }
        match self.idle_since() {
            (false, since) => (since + Duration::from_millis(first_call_ms), "first_call"),
            (true, since) => (since + idle, "idle"),
        }
    }
}

/// A socket that fails once its deadline has passed.
pub struct Connection {
    stream: TcpStream,
    guest: Guest,
    deadline: Pin<Box<Sleep>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.guest.0.house.leave(&self.guest.0);
    }
}

impl Connection {
    /// Ready with an error once the connection is to be closed.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let state = &self.guest.0;
        state.waker.register(context.waker());
        if state.is_to_go.load(Ordering::Acquire) {
            let reason = "closed to make room for another connection";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
        }
        while self.deadline.as_mut().poll(context).is_ready() {
            let (ends, reason) = state.ends();
            if ends <= Instant::now() {
                let labels = [("listener", state.house.name), ("reason", reason)];
                metrics::counter!(metric::CONNECTIONS_CLOSED, &labels).increment(1);
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no call came in time"));
            }
            self.deadline.as_mut().reset(ends.into());
        }
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.poll_over(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_over(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.poll_over(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        self.guest.clone()
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Gate>> for Guest {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Gate>) -> Self {
        stream.remote_addr().clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_peer_is_an_address_or_half_of_a_long_one() {
        let network = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::1"), "::");
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        ListenLimits::default().check().unwrap();
        let none = ListenLimits { idle_ms: 0, ..ListenLimits::default() };
        assert!(none.check().unwrap_err().to_string().contains("limits.idle_ms"));
    }

    #[test]
    fn the_descriptor_limit_is_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let now = raise_descriptor_limit();
        assert!(now >= before.current.unwrap_or(u64::MAX).min(WANTED_DESCRIPTORS), "{now}");
        assert_eq!(getrlimit(Resource::Nofile).current, Some(now));
        assert_eq!(raise_descriptor_limit(), now);
    }
}
