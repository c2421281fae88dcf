//! The gRPC client of all Inheritune programs, and how failed calls are shown to users.

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

/// Maximum time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of pings on an idle connection, so that a long watch notices that the server is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Maximum time to answer a ping before the connection is closed.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a reply: reports and tensor tables exceed tonic's default of 4 MiB.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// The address of a server, and the credentials for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `http://host:port`, `https://host:port`, or `host:port`, which means `http://`.
    pub address: String,
    /// Certificate authorities trusted to sign the server's certificate (PEM); those of the system
    /// when absent.
    pub ca_pem: Option<String>,
    /// The token sent with every call.
    pub token: Option<Token>,
    /// The W3C `traceparent` of the trace that calls belong to.
    pub trace_parent: Option<String>,
}

/// A bearer token; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Creates a token from the content of a file or a variable. Surrounding white space is
    /// removed.
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

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not valid.
    #[error("`{address}` is not an address; use http://host:port or https://host:port")]
    Address {
        /// The address as given.
        address: String,
    },
    /// The certificate authorities are not valid.
    #[error("the certificate authorities (--ca-file) cannot be used: {problem}")]
    Authorities {
        /// What is wrong with them.
        problem: String,
    },
    /// The value is not allowed in a header: only visible ASCII is.
    #[error("the {what} is empty or contains characters that are not allowed in a header")]
    Header {
        /// Which value: token or trace context.
        what: &'static str,
    },
    /// The token would be sent over the network without encryption.
    #[error("refusing to send the token to {address} without encryption; use https:// or a loopback address")]
    TokenInPlaintext {
        /// The address.
        address: String,
    },
    /// The server does not answer.
    #[error("cannot reach {address}: {problem}; is the service running there?")]
    Unreachable {
        /// The address.
        address: String,
        /// The innermost cause.
        problem: String,
    },
}

impl Server {
    /// Creates a server without TLS and without a token.
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

/// The headers of every call.
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

/// A connection that adds [`Headers`] to every call.
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
    /// The address, the authorities or the token are not valid, the token would be sent
    /// unencrypted, or the server does not answer.
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

    /// Returns the client of the run service.
    pub fn runs(&self) -> RunServiceClient<Connection> {
        RunServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Returns the client of the job service.
    pub fn jobs(&self) -> JobServiceClient<Connection> {
        JobServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Returns the client of the artifact service.
    pub fn artifacts(&self) -> ArtifactServiceClient<Connection> {
        ArtifactServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Returns the client of the slicing service.
    pub fn slicing(&self) -> SlicingServiceClient<Connection> {
        SlicingServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Returns the client of the training service.
    pub fn training(&self) -> TrainingServiceClient<Connection> {
        TrainingServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// Returns the client of the evaluation service.
    pub fn evaluation(&self) -> EvaluationServiceClient<Connection> {
        EvaluationServiceClient::new(self.connection.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }
}

/// A failed call, read from its [`Status`]. Its `Display` is for people, with one line per field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status code.
    pub code: Code,
    /// The message of the server.
    pub message: String,
    /// `ErrorInfo.reason`; empty if the server is not an Inheritune service.
    pub reason: String,
    /// Every field that was rejected.
    pub violations: Vec<Violation>,
    /// How long to wait before the next attempt, if the server specifies it.
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
