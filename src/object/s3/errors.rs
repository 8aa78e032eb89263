//! What the store or the network says, in the words of the port.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use super::super::ObjectError;
use super::super::keys::invalid;

/// A request that did not succeed, whichever it was.
#[derive(Debug)]
pub(super) struct Failure {
    /// 0 where there was no answer.
    status: u16,
    code: String,
    message: String,
    kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// The store answered.
    Answer,
    /// No answer, or none that could be read: another try may fare better.
    Network,
    /// There was nothing to sign with.
    Credentials,
    /// The request could not even be built.
    Request,
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        if let SdkError::ServiceError(answer) = &error {
            let status = answer.raw().status().as_u16();
            let code = answer.err().code().unwrap_or_default().to_owned();
            let message = answer.err().message().unwrap_or_default().to_owned();
            return Self { status, code, message, kind: FailureKind::Answer };
        }
        let message = DisplayErrorContext(&error).to_string();
        // The crate of the error's type is not ours to name; its words are stable enough for a choice of words.
        let is_credentials = message.contains("credential") || message.contains("Credential");
        let kind = match &error {
            _ if is_credentials => FailureKind::Credentials,
            SdkError::ConstructionFailure(_) => FailureKind::Request,
            SdkError::ResponseError(_) => FailureKind::Network,
            SdkError::DispatchFailure(dispatch) if dispatch.is_user() => FailureKind::Request,
            _ => FailureKind::Network,
        };
        // The context ends with a dump of the error's fields, which nobody needs to read.
        let message = message.split(" (").next().unwrap_or_default().to_owned();
        Self { status: 0, code: String::new(), message, kind }
    }
}

impl Failure {
    /// The store says that there is nothing, without saying whether the object or the bucket is missing (HEAD has no body).
    pub(super) fn is_bare_not_found(&self) -> bool {
        self.status == 404 && self.code != "NoSuchBucket" && self.code != "NoSuchKey"
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.status == 404
    }

    pub(super) fn is_range_not_satisfiable(&self) -> bool {
        self.status == 416 || self.code == "InvalidRange"
    }

    /// `location` is the store's.
    pub(super) fn object_error(self, key: &str, location: &str) -> ObjectError {
        let key = key.to_owned();
        match self.kind {
            FailureKind::Network => return ObjectError::Unavailable { key, reason: self.message },
            FailureKind::Request => return invalid(&key, self.message),
            FailureKind::Credentials => {
                return ObjectError::Denied { key, reason: format!("no credentials: {}", self.message) };
            }
            FailureKind::Answer => {}
        }
        match self.code.as_str() {
            "NoSuchBucket" => return ObjectError::NoStore { location: location.to_owned() },
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AccessDenied"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "RequestTimeTooSkewed"
            | "AllAccessDisabled"
            | "AccountProblem"
            | "AuthorizationHeaderMalformed" => return ObjectError::Denied { key, reason: self.words() },
            // The last two: another request for the key was under way. Whose put it was shows at the next try.
            "SlowDown"
            | "RequestTimeout"
            | "ConditionalRequestConflict"
            | "OperationAborted"
            | "InternalError"
            | "ServiceUnavailable"
            | "ThrottlingException"
            | "Throttling" => {
                return ObjectError::Unavailable { key, reason: self.words() };
            }
            "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLargeForQuota" => {
                return ObjectError::NoSpace { key, location: location.to_owned() };
            }
            "InvalidObjectState" => return invalid(&key, "the object is archived and cannot be read at once"),
            _ => {}
        }
        match self.status {
            404 => ObjectError::NotFound { key },
            409 | 412 => ObjectError::Conflict { key },
            401 | 403 => ObjectError::Denied { key, reason: self.words() },
            507 => ObjectError::NoSpace { key, location: location.to_owned() },
            501 => invalid(&key, format!("the store cannot do this: {}", self.words())),
            301 | 307 | 308 => invalid(&key, format!("the bucket is at another endpoint or region: {}", self.words())),
            408 | 429 | 500..=599 => ObjectError::Unavailable { key, reason: self.words() },
            _ => invalid(&key, self.words()),
        }
    }

    fn words(&self) -> String {
        match (self.code.is_empty(), self.message.is_empty()) {
            (false, false) => format!("{}: {}", self.code, self.message),
            (false, true) => self.code.clone(),
            (true, false) => format!("status {}: {}", self.status, self.message),
            (true, true) => format!("status {}", self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> ObjectError {
        let failure = Failure { status, code: code.to_owned(), message: String::new(), kind: FailureKind::Answer };
        failure.object_error("key", "s3://bucket")
    }

    #[test]
    fn every_answer_says_what_the_caller_can_do() {
        assert!(matches!(answer(503, "SlowDown"), ObjectError::Unavailable { .. }));
        assert!(matches!(answer(500, ""), ObjectError::Unavailable { .. }));
        assert!(matches!(answer(400, "RequestTimeout"), ObjectError::Unavailable { .. }));
        assert!(matches!(answer(400, "ExpiredToken"), ObjectError::Denied { .. }));
        assert!(matches!(answer(403, ""), ObjectError::Denied { .. }));
        assert!(matches!(answer(404, "NoSuchBucket"), ObjectError::NoStore { .. }));
        assert!(matches!(answer(404, "NoSuchKey"), ObjectError::NotFound { .. }));
        assert!(matches!(answer(412, "PreconditionFailed"), ObjectError::Conflict { .. }));
        assert!(matches!(answer(409, "BucketNotEmpty"), ObjectError::Conflict { .. }));
        assert!(answer(409, "ConditionalRequestConflict").is_transient(), "the store asks to be asked again");
        assert!(matches!(answer(400, "BadDigest"), ObjectError::Invalid { .. }));
        assert!(matches!(answer(507, ""), ObjectError::NoSpace { .. }));
    }

    #[test]
    fn a_denial_repeats_the_store_s_own_word() {
        let error = answer(403, "SignatureDoesNotMatch").to_string();
        assert!(error.contains("SignatureDoesNotMatch"), "{error}");
    }
}
