//! Who is let in, and for how long without a call: caps on connections in all and per peer, and time limits for the first
//! call and between calls. Every listener of a process is a [`Gate`].
//!
//! A full listener makes room: the connection that has waited longest without a call is closed, one that never made a call
//! before one that did. A peer that only opens sockets therefore closes its own, and keeps nobody out.

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

/// More descriptors than this are not asked for, whatever the hard limit is.
const WANTED_DESCRIPTORS: u64 = 65_536;
/// Of the descriptors of a process, connections from outside leave this part, and at least this many, to the database,
/// files and children.
const RESERVED_PART: u64 = 4;
const MIN_RESERVED: u64 = 128;
/// A listener takes at least so many connections, however few descriptors there are.
const MIN_CONNECTIONS: usize = 8;
/// Wait after an `accept` that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A connection that is told to close does so when its task runs next; a new one waits so long for that.
const ROOM_WAIT: Duration = Duration::from_millis(250);
/// Calls of services that need no token, at once on one connection: probes, not clients.
const MAX_OPEN_CALLS: usize = 8;

/// The section `[limits]` of every service's file: what the gRPC listener takes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenLimits {
    /// Connections at once; fewer where the process may not open so many descriptors.
    pub max_connections: usize,
    /// Connections at once from one address (of IPv6: one /64).
    pub max_connections_per_peer: usize,
    /// A connection must have made its first call so soon after it was accepted, TLS handshake included.
    pub first_call_ms: u64,
    /// A connection without a call for so long is closed; clients open another one by themselves.
    pub idle_ms: u64,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self { max_connections: 1024, max_connections_per_peer: 256, first_call_ms: 10_000, idle_ms: 600_000 }
    }
}

impl ListenLimits {
    /// For `/metrics`, `/livez` and `/readyz`: few callers, short calls.
    pub(crate) fn of_operations() -> Self {
        Self { max_connections: 64, max_connections_per_peer: 32, first_call_ms: 5_000, idle_ms: 60_000 }
    }

    /// Whether they let anybody in.
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

/// Raises the soft limit of open descriptors to the hard one, up to 65,536; says what it is then. Many systems start
/// programs with 1024, which is a few connections more than one caller may hold.
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
            tracing::warn!(%error, soft, "the limit of open files stays as it is");
            soft
        }
    }
}

/// A listener and who is in.
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
    /// `name` is the listener's label in metrics. As many connections are let in as the limits say, and as descriptors
    /// allow.
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

    /// Connections that it lets in.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        self.house.limits.max_connections
    }

    /// The next connection that is let in.
    pub(crate) async fn next(&mut self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(guest) = self.house.admit(peer.ip()).await {
                        // Not every socket takes it, and none needs it.
                        let _delayed = stream.set_nodelay(true);
                        let deadline = tokio::time::sleep(Duration::from_millis(self.house.limits.first_call_ms));
                        return Connection { stream, guest, deadline: Box::pin(deadline) };
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if let Some(others) = self.house.failures.now() {
                        tracing::warn!(%error, listener = self.house.name, others, "a connection was not accepted");
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

/// Everybody who is in.
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
    /// Lets one in, in the place of another one if there is no room; none where everybody is busy.
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
                "a connection was refused: there are too many, and calls run on all of them"
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
                "too many connections: one without a call was closed for a new one"
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
    /// There will be room in a moment.
    Asked,
    /// There is nobody to close.
    Busy,
}

/// Whose share of the connections it is: who holds one IPv6 address usually holds all of its /64.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// One connection as its calls see it.
#[derive(Clone)]
pub struct Guest(Arc<State>);

struct State {
    id: u64,
    peer: IpAddr,
    house: Arc<House>,
    since: Instant,
    /// Calls at present of services that want a token.
    calls: AtomicUsize,
    /// Calls at present of the others.
    open_calls: AtomicUsize,
    /// When the last call began or ended, in milliseconds after `since`, plus one; 0 before the first.
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
    /// A call begins; it lasts until the answer is dropped. None: too many calls of services that want no token.
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

/// One call; its connection is not idle until it is dropped.
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

    /// Orders those without a call: who never made one first.
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

    /// When its time is over, as things stand, and why.
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

/// A socket that fails when its time is over.
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
    /// Ready with an error once it is over.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let state = &self.guest.0;
        state.waker.register(context.waker());
        if state.is_to_go.load(Ordering::Acquire) {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "closed for another connection"));
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
