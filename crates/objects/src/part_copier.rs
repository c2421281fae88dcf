//! Server-side copies of object ranges (`UploadPartCopy` with a range). object_store does not
//! support this request: it only signs the URL, and an HTTP client sends the request.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::MultipartId;
use object_store::aws::AmazonS3;
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use super::bucket::{FIRST_WAIT, LONGEST_WAIT, RETRY_TIMEOUT};
use super::field;
use crate::ObjectError;
use crate::error::corrupt;

/// Validity of a signature. It outlasts all attempts of a request.
const SIGNATURE_VALID: Duration = Duration::from_secs(900);
/// Timeout of one request. A server takes seconds to copy a part.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// The characters of a copy source's key that are percent-encoded.
const IN_PATHS: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Most characters of a response that messages show.
const SHOWN_CHARS: usize = 300;

/// Asks one server to copy parts.
#[derive(Debug)]
pub(super) struct PartCopier {
    client: reqwest::Client,
    /// Set once the server has rejected a copy request.
    refused: AtomicBool,
}

enum Answer {
    Copied(PartId),
    /// A retry may succeed.
    Busy(ObjectError),
    /// The server does not support the request, or denies it.
    Refused(String),
}

impl PartCopier {
    pub(super) fn new() -> Result<Self, ObjectError> {
        let redirects = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).redirect(redirects).build();
        let client = client.map_err(|e| field("storage", format!("HTTP client: {e}")))?;
        Ok(Self { client, refused: AtomicBool::new(false) })
    }

    pub(super) fn may_work(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// Copies a range of the object `from` (bucket, key, range) to the part `into` (key, upload,
    /// number from 0). Returns `None` if the server does not support such copies.
    ///
    /// # Errors
    /// The server supports copies, but it is unreachable or failing.
    pub(super) async fn copy(
        &self,
        s3: &AmazonS3,
        into: (&Key, &MultipartId, usize),
        from: (&str, &Key, &Range<u64>),
    ) -> Result<Option<PartId>, ObjectError> {
        let (mut wait, deadline) = (FIRST_WAIT, Instant::now() + RETRY_TIMEOUT);
        while self.may_work() {
            match self.ask(s3, into, from).await? {
                Answer::Copied(part) => return Ok(Some(part)),
                Answer::Busy(error) if Instant::now() + wait > deadline => return Err(error),
                Answer::Busy(_) => tokio::time::sleep(wait).await,
                Answer::Refused(answer) => {
                    self.refused.store(true, Ordering::Relaxed);
                    tracing::warn!(answer, "the S3 server cannot copy parts; they are downloaded and uploaded");
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        Ok(None)
    }

    async fn ask(
        &self,
        s3: &AmazonS3,
        (key, upload, number): (&Key, &MultipartId, usize),
        (from_bucket, from_key, range): (&str, &Key, &Range<u64>),
    ) -> Result<Answer, ObjectError> {
        let mut headers = HeaderMap::new();
        let source = format!("/{from_bucket}/{}", utf8_percent_encode(from_key.as_ref(), &IN_PATHS));
        let bytes = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        for (name, value) in [("x-amz-copy-source", source), ("x-amz-copy-source-range", bytes)] {
            let value = HeaderValue::from_str(&value).map_err(|e| corrupt(from_key.as_ref(), e))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        let query = [("partNumber", (number + 1).to_string()), ("uploadId", upload.clone())];
        let mut options = SignedUrlOptions::default().with_query(query);
        options.signed_headers = headers.clone();
        let url = s3.signed_url_opts(Method::PUT, key, SIGNATURE_VALID, &options).await?;
        // Some servers require a Content-Length even for an empty body.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let sent = self.client.put(url).headers(headers).send().await;
        let answer = match sent {
            Ok(reply) => (reply.status(), reply.text().await),
            Err(error) => return Ok(Answer::Busy(unreachable(key, &error))),
        };
        Ok(match answer {
            (_, Err(error)) => Answer::Busy(unreachable(key, &error)),
            // A copy that fails midway also responds with 200.
            (StatusCode::OK, Ok(body)) => match e_tag(&body) {
                Some(content_id) => Answer::Copied(PartId { content_id }),
                None => Answer::Busy(failed(key, &shown(&body))),
            },
            (status, Ok(body)) if is_busy(status) => Answer::Busy(failed(key, &format!("{status}: {}", shown(&body)))),
            (status, Ok(body)) => Answer::Refused(format!("{status}: {}", shown(&body))),
        })
    }
}

fn is_busy(status: StatusCode) -> bool {
    let server = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
    server || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT)
}

/// Converts a transport error. Leaves out the URL, because it contains a signature.
fn unreachable(key: &Key, error: &reqwest::Error) -> ObjectError {
    let mut problem = error.is_timeout().then(|| "request timed out".to_owned());
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        problem = Some(inner.to_string());
        cause = inner.source();
    }
    failed(key, &problem.unwrap_or_default())
}

fn failed(key: &Key, problem: &str) -> ObjectError {
    let source = format!("the server did not copy a part of {key}: {problem}").into();
    ObjectError::Store(object_store::Error::Generic { store: "S3", source })
}

/// Returns the `ETag` of a `CopyPartResult`, including its quotes.
fn e_tag(body: &str) -> Option<String> {
    let (_, rest) = body.split_once("<ETag>")?;
    let (e_tag, _) = rest.split_once("</ETag>")?;
    let bare = e_tag.trim().replace("&quot;", "").replace("&#34;", "").replace('"', "");
    (!bare.is_empty()).then(|| format!("\"{bare}\""))
}

fn shown(body: &str) -> String {
    body.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::e_tag;

    #[test]
    fn e_tags_are_read_in_every_servers_spelling() {
        let quoted = Some("\"9b2cf5\"".to_owned());
        for spelt in ["\"9b2cf5\"", "&quot;9b2cf5&quot;", "&#34;9b2cf5&#34;", "9b2cf5"] {
            let body = format!("<?xml version=\"1.0\"?><CopyPartResult><ETag>{spelt}</ETag></CopyPartResult>");
            assert_eq!(e_tag(&body), quoted, "{spelt}");
        }
        for none in ["", "<Error><Code>InternalError</Code></Error>", "<ETag></ETag>", "<ETag>"] {
            assert_eq!(e_tag(none), None, "{none}");
        }
    }
}
