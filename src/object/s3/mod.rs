//! S3 and stores that speak its protocol.
//!
//! Every call is tried a bounded number of times, with jitter, as long as the failure may pass; each try has a limit that
//! includes the body. Puts carry a SHA-256 of ours. Answers are doubted: a range must be exactly the one asked for, a listing
//! in order and inside its prefix.
//!
//! **Not here**: multipart uploads (no object is larger than a pack), creation of buckets.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::digest;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use base64::Engine;
use bytes::Bytes;
use tokio::sync::Mutex;

use super::keys::{check_folder, check_key, check_limit, check_prefix, check_range, invalid};
use super::{Capabilities, ObjectEntry, ObjectError, ObjectPage, ObjectStore, ObjectVersion, PutMode, PutReceipt};
use crate::base::RetryPolicy;
use crate::base::buffers::Loan;
use crate::base::retry::random_fraction;
use errors::Failure;
pub use options::{S3Options, ServerEncryption};

mod client;
mod errors;
mod listing;
mod options;
#[cfg(test)]
mod tests;

/// The most that is read at once, and room is made for before the bytes are there: twice the largest manifest.
const LARGEST_BODY_BYTES: u64 = 128 * 1024 * 1024;

/// A refusal makes us look for other credentials at most this often.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// A prefix of a bucket.
#[derive(Debug)]
pub struct S3Store {
    options: S3Options,
    /// Empty, or ends with a slash.
    base: String,
    current: Mutex<Option<(Client, Instant)>>,
    checks_uploads: AtomicU8,
}

/// Whether the store compares bodies with our checksums.
const CHECKS_UNKNOWN: u8 = 0;
const CHECKS_NOT: u8 = 1;
const CHECKS: u8 = 2;

impl S3Store {
    /// Nothing is read or connected before the first call.
    pub fn new(options: S3Options) -> Result<Self, ObjectError> {
        options.check().map_err(|reason| invalid(&options.location(), reason))?;
        let base = if options.prefix.is_empty() { String::new() } else { format!("{}/", options.prefix) };
        Ok(Self { options, base, current: Mutex::default(), checks_uploads: AtomicU8::new(CHECKS_UNKNOWN) })
    }

    async fn client(&self) -> Client {
        let mut current = self.current.lock().await;
        if let Some((client, _)) = &*current {
            return client.clone();
        }
        let client = Box::pin(client::build(&self.options)).await;
        *current = Some((client.clone(), Instant::now()));
        client
    }

    /// Credentials that somebody replaced (a file written anew, a session prolonged) are read again: what was refused may be
    /// let in. False where that was done a moment ago.
    async fn renew_client(&self) -> bool {
        let mut current = self.current.lock().await;
        let is_old = current.as_ref().is_some_and(|(_, built)| built.elapsed() >= RENEW_AFTER);
        if is_old {
            *current = None;
        }
        is_old
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.base)
    }

    fn error(&self, failure: Failure, key: &str) -> ObjectError {
        failure.object_error(key, &self.options.location())
    }

    /// Calls until it succeeds, fails for good, or no try is left.
    async fn tried<T, C, F>(&self, key: &str, mut call: C) -> Result<T, ObjectError>
    where
        C: FnMut() -> F,
        F: Future<Output = Result<T, ObjectError>>,
    {
        let policy = RetryPolicy { attempts: self.options.max_attempts, ..RetryPolicy::default() };
        let limit = self.options.operation_timeout;
        let mut failed = 0;
        loop {
            let answer = match tokio::time::timeout(limit, call()).await {
                Ok(answer) => answer,
                Err(_) => Err(ObjectError::DeadlineExceeded { key: key.to_owned(), limit }),
            };
            let error = match answer {
                Err(error) if error.is_transient() => error,
                Err(ObjectError::Denied { .. }) if self.renew_client().await => continue,
                answer => return answer,
            };
            failed += 1;
            let Some(wait) = policy.wait_after(failed, random_fraction()) else { return Err(error) };
            tracing::debug!(key, failed, %error, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    fn put_request(&self, client: &Client, key: &str, body: Bytes, checksum: &str) -> PutObjectFluentBuilder {
        let mut request = client.put_object().bucket(&self.options.bucket).key(self.full_key(key)).checksum_sha256(checksum);
        request = request.body(ByteStream::from(body));
        if let Some(class) = &self.options.storage_class {
            request = request.storage_class(StorageClass::from(class.as_str()));
        }
        match &self.options.encryption {
            None => request,
            Some(ServerEncryption::Aes256) => request.server_side_encryption(ServerSideEncryption::Aes256),
            Some(ServerEncryption::Kms(id)) => {
                request.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(id.clone())
            }
        }
    }

    /// Our checksum, sent and repeated by the store, proves nothing of a store that does not look at it.
    fn trusts_checksum(&self, is_echoed: bool) -> bool {
        match self.checks_uploads.load(Ordering::Relaxed) {
            CHECKS => true,
            CHECKS_NOT => false,
            _ => is_echoed && self.options.endpoint.is_none(),
        }
    }

    /// After an unanswered try the object that is in the way may be our own.
    async fn is_own(&self, key: &str, body: &Bytes) -> Option<ObjectVersion> {
        let entry = self.head(key).await.ok()?;
        if entry.size_bytes != body.len() as u64 || self.get(key, None).await.ok()? != *body {
            return None;
        }
        entry.version
    }

    async fn fetch(&self, key: &str, range: Option<&Range<u64>>) -> Result<Bytes, ObjectError> {
        let request = self.client().await.get_object().bucket(&self.options.bucket).key(self.full_key(key));
        let request = request.set_range(range.map(|range| format!("bytes={}-{}", range.start, range.end - 1)));
        let answer = boxed(request.send()).await.map_err(Failure::from).map_err(|failure| match range {
            Some(range) if failure.is_range_not_satisfiable() => short_range(key, range),
            _ => self.error(failure, key),
        })?;
        let wanted = delivered_bytes(key, range, &answer)?;
        read_body(key, answer.body, wanted).await
    }
}

/// The SDK's futures are tens of kilobytes: they live on the heap.
fn boxed<'a, F: Future + Send + 'a>(future: F) -> Pin<Box<dyn Future<Output = F::Output> + Send + 'a>> {
    Box::pin(future)
}

fn short_range(key: &str, range: &Range<u64>) -> ObjectError {
    ObjectError::ShortRange { key: key.to_owned(), start: range.start, end: range.end }
}

fn microseconds(time: &DateTime) -> i64 {
    time.secs().saturating_mul(1_000_000).saturating_add(i64::from(time.subsec_nanos() / 1000))
}

/// How many bytes will come, once it is certain that they are the ones asked for.
fn delivered_bytes(key: &str, range: Option<&Range<u64>>, answer: &GetObjectOutput) -> Result<u64, ObjectError> {
    let length = answer.content_length().and_then(|length| u64::try_from(length).ok());
    let Some(range) = range else {
        return length.ok_or_else(|| invalid(key, "the store does not say how long the object is"));
    };
    let wanted = range.end - range.start;
    match answer.content_range() {
        Some(text) => {
            let Some((start, end)) = parsed_range(text) else {
                return Err(invalid(key, format!("the store delivers an unreadable range: {text}")));
            };
            if start == range.start && end < range.end {
                return Err(short_range(key, range));
            }
            if (start, end) != (range.start, range.end) {
                return Err(invalid(key, format!("the store delivers {text} instead of {}..{}", range.start, range.end)));
            }
            Ok(wanted)
        }
        // Some servers deliver the range but call it the whole (status 200): its length tells.
        None => match length {
            Some(length) if length == wanted => Ok(wanted),
            Some(length) if length < wanted => Err(short_range(key, range)),
            _ => Err(invalid(key, "the store ignores ranges and delivers the whole object")),
        },
    }
}

/// `bytes 5-9/100` is 5..10.
fn parsed_range(text: &str) -> Option<(u64, u64)> {
    let (range, _total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse::<u64>().ok()?.checked_add(1)?))
}

async fn read_body(key: &str, mut body: ByteStream, wanted: u64) -> Result<Bytes, ObjectError> {
    let unavailable = |reason: String| ObjectError::Unavailable { key: key.to_owned(), reason };
    if wanted > LARGEST_BODY_BYTES {
        return Err(invalid(key, format!("the object has {wanted} bytes, more than any that is read at once")));
    }
    let mut bytes = Loan::new(wanted as usize);
    let mut filled = 0;
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| {
            let reason = aws_sdk_s3::error::DisplayErrorContext(&error).to_string();
            unavailable(format!("the body broke off after {filled} of {wanted} bytes: {reason}"))
        })?;
        let Some(room) = bytes.as_mut().get_mut(filled..filled + part.len()) else {
            return Err(invalid(key, format!("the store delivers more than the {wanted} bytes that it announced")));
        };
        room.copy_from_slice(&part);
        filled += part.len();
    }
    if (filled as u64) < wanted {
        return Err(unavailable(format!("the body ended after {filled} of {wanted} bytes")));
    }
    Ok(bytes.freeze())
}

fn sha256(body: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(digest::digest(&digest::SHA256, body))
}

#[async_trait]
impl ObjectStore for S3Store {
    fn location(&self) -> String {
        self.options.location()
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        check_key(key)?;
        if let Some(range) = &range {
            check_range(key, range)?;
        }
        self.tried(key, || self.fetch(key, range.as_ref())).await
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError> {
        check_key(key)?;
        let checksum = sha256(&body);
        let tries = std::sync::atomic::AtomicU32::new(0);
        let stored = self
            .tried(key, || async {
                tries.fetch_add(1, Ordering::Relaxed);
                let request = self.put_request(&self.client().await, key, body.clone(), &checksum);
                let request = match &mode {
                    PutMode::Replace => request,
                    PutMode::Create => request.if_none_match("*"),
                    PutMode::IfMatch(version) => request.if_match(&version.0),
                };
                boxed(request.send()).await.map_err(|error| self.error(Failure::from(error), key))
            })
            .await;
        let stored = match stored {
            Err(ObjectError::Conflict { .. }) if tries.load(Ordering::Relaxed) > 1 => {
                let version = self.is_own(key, &body).await.ok_or_else(|| ObjectError::Conflict { key: key.to_owned() })?;
                // Read back whole, byte by byte.
                return Ok(PutReceipt { version, is_checked_by_store: true });
            }
            // What is to be replaced is gone.
            Err(ObjectError::NotFound { .. }) if matches!(mode, PutMode::IfMatch(_)) => {
                return Err(ObjectError::Conflict { key: key.to_owned() });
            }
            stored => stored?,
        };
        let version = stored.e_tag().ok_or_else(|| invalid(key, "the store names no version of what it stored"))?;
        let is_echoed = stored.checksum_sha256() == Some(checksum.as_str());
        Ok(PutReceipt { version: ObjectVersion(version.to_owned()), is_checked_by_store: self.trusts_checksum(is_echoed) })
    }

    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError> {
        check_key(key)?;
        self.tried(key, || async {
            let client = self.client().await;
            let request = client.head_object().bucket(&self.options.bucket).key(self.full_key(key));
            let answer = match boxed(request.send()).await.map_err(Failure::from) {
                Ok(answer) => answer,
                Err(failure) if failure.is_bare_not_found() => {
                    // A HEAD that finds nothing does not say what is missing.
                    let bucket = boxed(client.head_bucket().bucket(&self.options.bucket).send()).await;
                    return match bucket.map_err(Failure::from) {
                        Err(failure) if failure.is_not_found() => Err(ObjectError::NoStore { location: self.options.location() }),
                        _ => Err(self.error(failure, key)),
                    };
                }
                Err(failure) => return Err(self.error(failure, key)),
            };
            let size_bytes = answer.content_length().and_then(|length| u64::try_from(length).ok());
            Ok(ObjectEntry {
                key: key.to_owned(),
                size_bytes: size_bytes.ok_or_else(|| invalid(key, "the store does not say how long the object is"))?,
                modified_us: answer.last_modified().map_or(0, microseconds),
                version: answer.e_tag().map(|tag| ObjectVersion(tag.to_owned())),
            })
        })
        .await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError> {
        check_prefix(prefix)?;
        check_limit(prefix, limit)?;
        self.page(prefix, start_after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        check_folder(prefix)?;
        self.folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        let answer = self
            .tried(key, || async {
                let request = self.client().await.delete_object().bucket(&self.options.bucket).key(self.full_key(key));
                boxed(request.send()).await.map_err(|error| self.error(Failure::from(error), key))
            })
            .await;
        match answer {
            Ok(_) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn put_with_wrong_checksum(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        check_key(key)?;
        let wrong = sha256(b"another body");
        self.tried(key, || async {
            let request = self.put_request(&self.client().await, key, body.clone(), &wrong);
            boxed(request.send()).await.map(|_| ()).map_err(|error| self.error(Failure::from(error), key))
        })
        .await
    }

    fn assume(&self, capabilities: &Capabilities) {
        let checks = if capabilities.checks_uploads { CHECKS } else { CHECKS_NOT };
        self.checks_uploads.store(checks, Ordering::Relaxed);
    }
}
