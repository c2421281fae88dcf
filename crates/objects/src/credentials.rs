//! Credentials of an S3 server, read from a file. Environment variables are visible to all child
//! processes, and to anyone who may inspect the container.

use std::fmt;
use std::path::Path;

use object_store::aws::AmazonS3Builder;

use super::field;
use crate::ObjectError;

/// Size limit of a credentials file.
const MAX_BYTES: u64 = 64 * 1024;

/// An access key, and the session token if the key is temporary.
#[derive(Clone)]
pub(super) struct Credentials {
    key_id: String,
    secret: String,
    token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads an environment file of `NAME=VALUE` lines, or an AWS credentials file.
    pub(super) fn read(path: &Path) -> Result<Self, ObjectError> {
        let bad = |problem: String| field("storage.credentials_file", format!("{}: {problem}", path.display()));
        let length = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
        if length > MAX_BYTES {
            return Err(bad(format!("is {length} bytes; a credentials file may have at most {MAX_BYTES}")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?).map_err(bad)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value = |wanted: &str| {
            let mut settings = text.lines().filter_map(|line| line.split_once('='));
            let found = settings.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        // Messages must not contain any content of the file.
        let missing = |name: &str| format!("has no line {name}=…");
        Ok(Self {
            key_id: value("AWS_ACCESS_KEY_ID").ok_or_else(|| missing("AWS_ACCESS_KEY_ID"))?,
            secret: value("AWS_SECRET_ACCESS_KEY").ok_or_else(|| missing("AWS_SECRET_ACCESS_KEY"))?,
            token: value("AWS_SESSION_TOKEN"),
        })
    }

    pub(super) fn set(&self, builder: AmazonS3Builder) -> AmazonS3Builder {
        let builder = builder.with_access_key_id(&self.key_id).with_secret_access_key(&self.secret);
        match &self.token {
            Some(token) => builder.with_token(token),
            None => builder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Credentials;

    #[test]
    fn both_kinds_of_file_are_read_and_nothing_of_them_is_shown() {
        let environment = "AWS_ACCESS_KEY_ID=GK1\nAWS_SECRET_ACCESS_KEY=a=b\n";
        let aws = "[default]\naws_access_key_id = GK1\naws_secret_access_key = a=b\naws_session_token = t\n";
        for (text, token) in [(environment, None), (aws, Some("t"))] {
            let read = Credentials::parse(text).expect("it is whole");
            assert_eq!((read.key_id.as_str(), read.secret.as_str(), read.token.as_deref()), ("GK1", "a=b", token));
            assert_eq!(format!("{read:?}"), "Credentials { .. }");
        }
        let error = Credentials::parse("AWS_ACCESS_KEY_ID=GK1\nSECRET=canary\n").map(|_| ()).expect_err("no secret");
        assert!(error.contains("AWS_SECRET_ACCESS_KEY") && !error.contains("canary"), "{error}");
    }
}
