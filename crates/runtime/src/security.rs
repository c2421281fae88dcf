//! Who may call a service, and how: TLS, a bearer token, and where plaintext is allowed.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use tonic::transport::{Identity, ServerTlsConfig};

use crate::config::{ConfigError, read_secret};

/// The section `[security]` of every service's file. Without it, a service accepts plaintext on
/// loopback from anyone on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityConfig {
    /// Where listeners without TLS are allowed.
    pub plaintext: Plaintext,
    /// The server's certificate chain (PEM). If set, gRPC is served over TLS.
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    pub key_file: Option<PathBuf>,
    /// A file with the token that calls must carry: `authorization: Bearer …`. Health and
    /// reflection need none.
    pub bearer_token_file: Option<PathBuf>,
    /// Who may call if no token is configured.
    pub callers: Callers,
}

/// Who may call if no token is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Callers {
    /// Anyone on this machine.
    #[default]
    Local,
    /// Anyone who can reach the listener: access is restricted elsewhere, for example by a
    /// firewall.
    Anyone,
}

/// Where listeners without TLS are allowed: gRPC without a certificate, and metrics always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plaintext {
    /// Only on loopback addresses.
    #[default]
    Loopback,
    /// On any interface: the network is protected by other means.
    Anywhere,
}

/// A [`SecurityConfig`] with its files read.
#[derive(Clone, Default)]
pub struct Security {
    plaintext: Plaintext,
    callers: Callers,
    identity: Option<Identity>,
    token: Option<BearerToken>,
}

impl SecurityConfig {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, a token is not visible ASCII, or only one of certificate and key is
    /// given.
    pub fn load(&self) -> Result<Security, ConfigError> {
        let field = |field, problem: &str| ConfigError::Field { field, problem: problem.to_owned() };
        let secret = |name, path: &Path| read_secret(path).map_err(|error| field(name, &error.to_string()));
        let identity = match (&self.certificate_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some(Identity::from_pem(
                secret("security.certificate_file", certificate)?,
                secret("security.key_file", key)?,
            )),
            (None, None) => None,
            (Some(_), None) => return Err(field("security.key_file", "is missing; a certificate needs its key")),
            (None, Some(_)) => {
                return Err(field("security.certificate_file", "is missing; a key needs its certificate"));
            }
        };
        let token = self.bearer_token_file.as_deref().map(BearerToken::read).transpose();
        let token = token.map_err(|error| field("security.bearer_token_file", &error.to_string()))?;
        Ok(Security { plaintext: self.plaintext, callers: self.callers, identity, token })
    }
}

impl Security {
    /// Checks that gRPC may be served on `address`.
    ///
    /// # Errors
    /// It would be served in plaintext, or to anyone, on an interface that others can reach, and
    /// the configuration does not explicitly allow that.
    pub fn check_grpc(&self, address: SocketAddr) -> Result<(), ConfigError> {
        if self.identity.is_none() {
            self.check_plaintext("listen", address)?;
        }
        match (&self.token, self.callers) {
            (Some(_), _) | (None, Callers::Anyone) => Ok(()),
            (None, Callers::Local) if address.ip().is_loopback() => Ok(()),
            (None, Callers::Local) => Err(ConfigError::Field {
                field: "listen",
                problem: format!(
                    "{address} is not a loopback address, and anyone who reaches it could call; use 127.0.0.1, \
                     require a token with security.bearer_token_file, or set security.callers = \"anyone\""
                ),
            }),
        }
    }

    /// Checks that `field` may serve plaintext on `address`.
    ///
    /// # Errors
    /// Others can reach that interface, and the configuration does not explicitly allow plaintext.
    pub fn check_plaintext(&self, field: &'static str, address: SocketAddr) -> Result<(), ConfigError> {
        match self.plaintext {
            Plaintext::Anywhere => Ok(()),
            Plaintext::Loopback if address.ip().is_loopback() => Ok(()),
            Plaintext::Loopback => Err(ConfigError::Field {
                field,
                problem: format!(
                    "{address} is not a loopback address, and its traffic is not encrypted; use 127.0.0.1, set \
                     security.certificate_file and key_file (gRPC only), or set security.plaintext = \"anywhere\""
                ),
            }),
        }
    }

    pub(crate) fn tls(&self) -> Option<ServerTlsConfig> {
        self.identity.clone().map(|identity| ServerTlsConfig::new().identity(identity))
    }

    pub(crate) fn token(&self) -> Option<&BearerToken> {
        self.token.as_ref()
    }
}

/// A secret that calls must carry.
#[derive(Clone)]
pub(crate) struct BearerToken(String);

impl BearerToken {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let token = read_secret(path)?;
        // The characters that a header can carry.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = "contains whitespace or characters that are not visible ASCII; expected one token".to_owned();
            return Err(ConfigError::Parse { path: path.to_owned(), problem });
        }
        Ok(Self(token))
    }

    /// Returns whether an `authorization` header carries this token. Compares in constant time for
    /// tokens of the same length.
    pub(crate) fn is_in(&self, authorization: &[u8]) -> bool {
        let scheme_and_token = authorization.split_at_checked("Bearer ".len());
        scheme_and_token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(self.0.as_bytes()))
        })
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("plaintext", &self.plaintext)
            .field("tls", &self.identity.is_some())
            .field("token", &self.token.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(config: &SecurityConfig, address: &str) -> Result<(), String> {
        config.load().unwrap().check_grpc(address.parse().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn plaintext_stays_on_loopback_unless_said_in_words() {
        let loopback = SecurityConfig::default();
        for address in ["127.0.0.1:1", "127.9.0.1:1", "[::1]:1"] {
            check(&loopback, address).unwrap();
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            let refused = check(&loopback, address).unwrap_err();
            assert!(refused.contains(address) && refused.contains("security.plaintext"), "{refused}");
        }
        let open = SecurityConfig { plaintext: Plaintext::Anywhere, callers: Callers::Anyone, ..loopback };
        check(&open, "0.0.0.0:1").unwrap();
    }

    #[test]
    fn s5_others_need_a_token_unless_said_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "s3cret-token\n").unwrap();
        let nobody = SecurityConfig { plaintext: Plaintext::Anywhere, ..SecurityConfig::default() };
        let with_token = SecurityConfig { bearer_token_file: Some(token), ..nobody.clone() };
        let anyone = SecurityConfig { callers: Callers::Anyone, ..nobody.clone() };
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "192.168.1.1:1", "[::ffff:127.0.0.1]:1"] {
            let refused = check(&nobody, address).unwrap_err();
            assert!(
                refused.contains("security.callers") && refused.contains("security.bearer_token_file"),
                "{refused}"
            );
            check(&with_token, address).unwrap();
            check(&anyone, address).unwrap();
        }
        check(&nobody, "127.0.0.1:1").unwrap();
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let half = SecurityConfig { certificate_file: Some("server.pem".into()), ..SecurityConfig::default() };
        assert!(half.load().unwrap_err().to_string().contains("security.key_file"));
        let half = SecurityConfig { key_file: Some("server.key".into()), ..SecurityConfig::default() };
        assert!(half.load().unwrap_err().to_string().contains("security.certificate_file"));
    }

    #[test]
    fn a_token_is_one_word_and_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret-token\n").unwrap();
        let token = BearerToken::read(&path).unwrap();
        assert!(token.is_in(b"Bearer s3cret-token") && token.is_in(b"bearer s3cret-token"));
        let wrong: [&[u8]; 6] =
            [b"", b"Bearer ", b"Bearer s3cret-toke", b"Bearer s3cret-token2", b"Basic  s3cret-token", b"s3cret-token"];
        for header in wrong {
            assert!(!token.is_in(header), "{header:?}");
        }
        std::fs::write(&path, "two words").unwrap();
        let error = BearerToken::read(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("one token") && !error.contains("two words"), "{error}");
    }
}
