//! How a program of ours connects, and how it shows a failed call to people.

use std::fmt;
use std::time::Duration;

use inheritune_domain::violation::Violation;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
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

/// Where a server is, and what it takes to be let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `http://host:port`, `https://host:port`, or `host:port`, which is the first.
    pub address: String,
    /// Authorities that may have signed the server's certificate (PEM); the system's own when absent.
    pub ca_pem: Option<String>,
    /// The token that calls carry.
    pub token: Option<Token>,
    /// W3C `traceparent` of what calls are a part of.
    pub trace_parent: Option<String>,
}

/// A bearer token; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token as a file or a variable holds it; white space around it is dropped.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("`{address}` is not an address; use http://host:port or https://host:port")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The authorities are none.
    #[error("the certificate authorities (--ca-file) cannot be used: {problem}")]
    Authorities {
        /// What is wrong with them.
        problem: String,
    },
    /// A header can carry only visible ASCII.
    #[error("the {what} is empty or holds characters that no header can carry")]
    Header {
        /// Token or trace context.
        what: &'static str,
    },
    /// The token would cross a network that anyone may listen to.
    #[error("a token is not sent to {address} without encryption; use https://, or a loopback address")]
    TokenInPlaintext {
        /// The address.
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

impl Server {
    /// A server without TLS and token.
    #[must_use]
    pub fn at(address: &str) -> Self {
        Self { address: address.to_owned(), ..Self::default() }
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let address = &self.address;
        let uri = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let bad_address = || ConnectError::Address { address: address.clone() };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| bad_address())?;
        let has_port = endpoint.uri().port_u16().is_some();
        match endpoint.uri().scheme_str() {
            Some("http") if has_port && self.token.is_some() && !is_loopback(endpoint.uri().host()) => {
                Err(ConnectError::TokenInPlaintext { address: address.clone() })
            }
            Some("http") if has_port => Ok(endpoint),
            Some("https") if has_port => {
                let tls = match &self.ca_pem {
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                endpoint.tls_config(tls).map_err(|e| ConnectError::Authorities { problem: innermost(&e) })
            }
            Some(_) | None => Err(bad_address()),
        }
    }

    fn headers(&self) -> Result<Headers, ConnectError> {
        let authorization = self.token.as_ref().map(|Token(token)| {
            let mut value: MetadataValue<Ascii> = match token.as_str() {
                "" => return Err(ConnectError::Header { what: "token" }),
                token => format!("Bearer {token}").parse().map_err(|_| ConnectError::Header { what: "token" })?,
            };
            value.set_sensitive(true);
            Ok(value)
        });
        let trace_parent = self
            .trace_parent
            .as_ref()
            .map(|text| text.parse().map_err(|_| ConnectError::Header { what: "trace context (TRACEPARENT)" }));
        Ok(Headers { authorization: authorization.transpose()?, trace_parent: trace_parent.transpose()? })
    }
}

fn is_loopback(host: Option<&str>) -> bool {
    host.is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// What every call carries.
#[derive(Debug, Clone)]
pub struct Headers {
    authorization: Option<MetadataValue<Ascii>>,
    trace_parent: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in [("authorization", &self.authorization), ("traceparent", &self.trace_parent)] {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// A connection whose calls carry what the server wants.
pub type Connection = InterceptedService<Channel, Headers>;

/// Every service on one connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects, waiting at most 5 s.
    ///
    /// # Errors
    /// The address, the authorities or the token are none, the token would not be encrypted, or nobody answers there.
    pub async fn connect(server: &Server) -> Result<Self, ConnectError> {
        let headers = server.headers()?;
        let endpoint = server.endpoint()?;
        let address = endpoint.uri().to_string().trim_end_matches('/').to_owned();
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|e| ConnectError::Unreachable { address, problem: innermost(&e) })?;
        Ok(Self { connection: InterceptedService::new(channel, headers) })
    }

    /// Runs.
    pub fn runs(&self) -> RunServiceClient<Connection> {
        RunServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Jobs.
    pub fn jobs(&self) -> JobServiceClient<Connection> {
        JobServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Artifacts.
    pub fn artifacts(&self) -> ArtifactServiceClient<Connection> {
        ArtifactServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Inspecting and planning.
    pub fn slicing(&self) -> SlicingServiceClient<Connection> {
        SlicingServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Estimates.
    pub fn training(&self) -> TrainingServiceClient<Connection> {
        TrainingServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Tasks.
    pub fn evaluation(&self) -> EvaluationServiceClient<Connection> {
        EvaluationServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
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
