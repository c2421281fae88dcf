//! How a program of ours connects, and how it shows a failed call to people.

use std::fmt;
use std::time::Duration;

use inheritune_domain::violation::Violation;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::v1::artifact_service_client::ArtifactServiceClient;
use crate::v1::evaluation_service_client::EvaluationServiceClient;
use crate::v1::job_service_client::JobServiceClient;
use crate::v1::run_service_client::RunServiceClient;
use crate::v1::slicing_service_client::SlicingServiceClient;
use crate::v1::training_service_client::TrainingServiceClient;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings on an idle connection, so that a long watch notices a server that is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// A ping that is not answered for so long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest reply that is taken: reports and tensor tables are longer than tonic's 4 MiB.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("`{address}` is not an address; use http://host:port")]
    Address {
        /// As it was given.
        address: String,
    },
    /// A scheme that is not spoken here.
    #[error("`{address}`: https is not supported; use http:// to a TLS-terminating proxy's inner side or a tunnel")]
    Tls {
        /// As it was given.
        address: String,
    },
    /// Nobody answers there.
    #[error("cannot reach {address}: {problem}; is the service running there?")]
    Unreachable {
        /// The address.
        address: String,
        /// The innermost cause.
        problem: String,
    },
}

/// Connects to `http://host:port` or `host:port`, waiting at most 5 s.
///
/// # Errors
/// The address is none, or nobody answers there.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    if uri.starts_with("https://") {
        return Err(ConnectError::Tls { address: address.to_owned() });
    }
    let bad_address = || ConnectError::Address { address: address.to_owned() };
    let endpoint = Endpoint::from_shared(uri.clone()).map_err(|_| bad_address())?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().port_u16().is_none() {
        return Err(bad_address());
    }
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|e| ConnectError::Unreachable { address: uri, problem: innermost(&e) })
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Every service on one connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects as [`connect`] does.
    ///
    /// # Errors
    /// Those of [`connect`].
    pub async fn connect(address: &str) -> Result<Self, ConnectError> {
        connect(address).await.map(|channel| Self { channel })
    }

    /// A client on a connection that is there.
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Runs.
    pub fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Jobs.
    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Artifacts.
    pub fn artifacts(&self) -> ArtifactServiceClient<Channel> {
        ArtifactServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Inspecting and planning.
    pub fn slicing(&self) -> SlicingServiceClient<Channel> {
        SlicingServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Estimates.
    pub fn training(&self) -> TrainingServiceClient<Channel> {
        TrainingServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Tasks.
    pub fn evaluation(&self) -> EvaluationServiceClient<Channel> {
        EvaluationServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }
}

/// A failed call, read from its [`Status`]; its `Display` is for people, one line a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status code.
    pub code: Code,
    /// The server's words.
    pub message: String,
    /// `ErrorInfo.reason`; empty when the server is not one of ours.
    pub reason: String,
    /// Every field that was not accepted.
    pub violations: Vec<Violation>,
    /// How long to wait before the next attempt, when the server says so.
    pub retry_after: Option<Duration>,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map_or(&[][..], |bad| &bad.field_violations);
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            violations: violations
                .iter()
                .map(|v| Violation { field: v.field.clone(), description: v.description.clone() })
                .collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.violations.as_slice() {
            [] => write!(f, "{}", self.message)?,
            [one] if one.field.is_empty() => write!(f, "{}", one.description)?,
            [one] => write!(f, "{}: {}", one.field, one.description)?,
            many => {
                write!(f, "{} fields cannot be accepted:", many.len())?;
                for violation in many {
                    match violation.field.as_str() {
                        "" => write!(f, "\n  {}", violation.description)?,
                        field => write!(f, "\n  {field}: {}", violation.description)?,
                    }
                }
            }
        }
        if let Some(wait) = self.retry_after {
            write!(f, "; try again in {} s", wait.as_secs().max(1))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
