//! What has to be known of an S3 store, and how a URL says it.

use std::path::PathBuf;
use std::time::Duration;

use super::super::ObjectError;
use super::super::keys::{check_prefix, invalid};

/// How to reach a bucket, and how to store in it. Credentials come from the standard chain of the AWS tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// Required.
    pub bucket: String,
    /// All keys lie below it; without slashes at its ends, empty for the whole bucket.
    pub prefix: String,
    /// `https://host[:port]` of a store that is not Amazon's.
    pub endpoint: Option<String>,
    /// Absent: as the environment and the profile say, else `us-east-1`.
    pub region: Option<String>,
    /// The bucket in the path instead of the host name. Absent: where there is an endpoint.
    pub path_style: Option<bool>,
    /// Takes credentials and region of this profile, before those of the environment.
    pub profile: Option<String>,
    /// A file as `~/.aws/credentials`, read instead of it and before the environment.
    pub credentials_file: Option<PathBuf>,
    /// As the store names it. Classes that cannot be read at once are refused.
    pub storage_class: Option<String>,
    /// What the store encrypts with before it writes; absent: as the bucket says.
    pub encryption: Option<ServerEncryption>,
    /// To make a connection.
    pub connect_timeout: Duration,
    /// From the end of a request to the first byte of its answer.
    pub read_timeout: Duration,
    /// Of one try of one call, its body included.
    pub operation_timeout: Duration,
    /// Tries of one call in all, the first included; at least 1.
    pub max_attempts: u32,
}

/// Encryption by the store itself, on top of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEncryption {
    /// `AES256`: with keys of the store.
    Aes256,
    /// `aws:kms` or `aws:kms:KEY`: with the named key of the key service, or its default one.
    Kms(Option<String>),
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            profile: None,
            credentials_file: None,
            storage_class: None,
            encryption: None,
            // Two lost SYN packets (1 s, 2 s later) are forgiven.
            connect_timeout: Duration::from_secs(5),
            // Stores answer in tens of milliseconds; those that take longer are moving data about.
            read_timeout: Duration::from_secs(30),
            // 32 MiB at 4 Mbit/s.
            operation_timeout: Duration::from_secs(70),
            max_attempts: 4,
        }
    }
}

/// Keys of the query string of an S3 URL.
const QUERY_KEYS: [&str; 8] =
    ["endpoint", "region", "path_style", "profile", "credentials_file", "storage_class", "sse", "max_attempts"];

/// Of Amazon's classes those whose objects have to be asked for hours before they can be read.
const ARCHIVE_CLASSES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

impl std::str::FromStr for ServerEncryption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "AES256" => Ok(Self::Aes256),
            "aws:kms" => Ok(Self::Kms(None)),
            _ => match text.strip_prefix("aws:kms:") {
                Some(key) if !key.is_empty() => Ok(Self::Kms(Some(key.to_owned()))),
                _ => Err(format!("sse is `AES256`, `aws:kms` or `aws:kms:KEY`, not `{text}`")),
            },
        }
    }
}

impl S3Options {
    /// What `url` (`s3://bucket/prefix?key=value&…`) says, over what `self` says already.
    pub fn with_url(mut self, url: &str) -> Result<Self, ObjectError> {
        let rest = url.strip_prefix("s3://").ok_or_else(|| invalid(url, "an S3 URL begins with s3://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        self.bucket = bucket.to_owned();
        self.prefix = prefix.trim_matches('/').to_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value).ok_or_else(|| invalid(url, format!("{key}: not a percent-encoded text")))?;
            self.set(key, value).map_err(|reason| invalid(url, reason))?;
        }
        self.check().map_err(|reason| invalid(url, reason))?;
        Ok(self)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        if value.is_empty() {
            return Err(format!("{key} has no value"));
        }
        match key {
            "endpoint" => self.endpoint = Some(value),
            "region" => self.region = Some(value),
            "path_style" => match value.as_str() {
                "true" => self.path_style = Some(true),
                "false" => self.path_style = Some(false),
                _ => return Err(format!("path_style is `true` or `false`, not `{value}`")),
            },
            "profile" => self.profile = Some(value),
            "credentials_file" => self.credentials_file = Some(PathBuf::from(value)),
            "storage_class" => self.storage_class = Some(value),
            "sse" => self.encryption = Some(value.parse()?),
            "max_attempts" => {
                self.max_attempts = value.parse().map_err(|_| format!("max_attempts is a number, not `{value}`"))?;
            }
            _ => return Err(unknown_key(key)),
        }
        Ok(())
    }

    /// Says what is wrong, for whoever filled the fields by hand.
    pub fn check(&self) -> Result<(), String> {
        let is_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if self.bucket.is_empty() || !self.bucket.bytes().all(is_bucket) {
            return Err(format!("`{}` is no name of a bucket", self.bucket));
        }
        if !self.prefix.is_empty() {
            check_prefix(&format!("{}/", self.prefix)).map_err(|error| error.to_string())?;
        }
        if let Some(endpoint) = &self.endpoint {
            let has_host = ["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|host| !host.is_empty() && !host.starts_with('/')));
            if !has_host {
                return Err(format!("the endpoint is http:// or https:// and a host, not `{endpoint}`"));
            }
            // A password in a URL ends up in logs.
            if endpoint.contains('@') {
                return Err("credentials do not belong into the endpoint: use a profile".to_owned());
            }
        }
        if let Some(class) = self.storage_class.as_deref().filter(|class| ARCHIVE_CLASSES.contains(class)) {
            return Err(format!("objects of the storage class {class} cannot be read at once"));
        }
        if self.max_attempts == 0 {
            return Err("max_attempts is at least 1".to_owned());
        }
        Ok(())
    }

    /// `s3://bucket/prefix`.
    pub(super) fn location(&self) -> String {
        if self.prefix.is_empty() { format!("s3://{}", self.bucket) } else { format!("s3://{}/{}", self.bucket, self.prefix) }
    }
}

fn unknown_key(key: &str) -> String {
    let nearest = QUERY_KEYS.iter().max_by(|one, other| {
        let distance = |known: &str| strsim::jaro_winkler(known, key);
        distance(one).total_cmp(&distance(other))
    });
    match nearest {
        Some(nearest) => format!("unknown key `{key}`; the nearest known one is `{nearest}`"),
        None => format!("unknown key `{key}`"),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Result<S3Options, String> {
        S3Options::default().with_url(url).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_says_everything() {
        let options = of(
            "s3://b/some/where/?endpoint=http://127.0.0.1:9000&region=eu-west-1&path_style=false&profile=p&storage_class=STANDARD_IA&sse=aws:kms:arn%3Aaws%3Akms",
        )
        .expect("a good URL");
        assert_eq!((options.bucket.as_str(), options.prefix.as_str()), ("b", "some/where"));
        assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((options.path_style, options.profile.as_deref()), (Some(false), Some("p")));
        assert_eq!(options.encryption, Some(ServerEncryption::Kms(Some("arn:aws:kms".to_owned()))));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = of("s3://b?endpont=http://x").expect_err("an unknown key");
        assert!(error.contains("`endpoint`"), "{error}");
    }

    #[test]
    fn bad_urls_are_refused() {
        for url in [
            "s3://",
            "s3:///prefix",
            "s3://b/../c",
            "s3://b/a//b",
            "s3://b?path_style=yes",
            "s3://b?sse=rot13",
            "s3://b?endpoint=host:9000",
            "s3://b?endpoint=http://user:secret@host",
            "s3://b?region=",
            "s3://b?region=%zz",
            "s3://b?storage_class=GLACIER",
            "s3://b?max_attempts=0",
        ] {
            assert!(of(url).is_err(), "{url}");
        }
    }
}
