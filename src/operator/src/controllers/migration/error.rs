//! Why a reconciliation failed, and whether trying again can help.

use transship_api::conditions::reasons;

use crate::agents;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again.
    Transient,
    /// Give the attempt up.
    Permanent,
}

/// What is tried when the manifest is stored: by this the error is known as a refusal of it.
pub const STORE_MANIFEST: &str = "store the pod's manifest";

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server refused the target pod.
    #[error("the target pod was refused")]
    TargetRefused(#[source] Box<kube::Error>),
    /// The API server refused the pod that is to be made again. There is no way back: it is tried until
    /// it is taken.
    #[error("the pod was not made again")]
    AgainRefused(#[source] Box<kube::Error>),
    /// An agent refused or did not answer.
    #[error("an agent could not be asked")]
    Agent(#[from] agents::Error),
    /// An agent refused to start a side.
    #[error("a side could not be started")]
    StartRefused(#[source] agents::Error),
    /// Something that must be there is missing.
    #[error("{0}")]
    Incomplete(String),
    /// Something could not be put into JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Wraps an answer of the API server.
    pub fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what, source: Box::new(source) }
    }

    /// Somebody else wrote in between.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } | Self::AgainRefused(source)
            if matches!(&**source, kube::Error::Api(status) if status.is_conflict()))
    }

    /// Label of metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { .. } => "ApiError",
            Self::TargetRefused(_) => "TargetRefused",
            Self::AgainRefused(_) => "AgainRefused",
            Self::Agent(_) => "AgentError",
            Self::StartRefused(_) => "StartRefused",
            Self::Incomplete(_) => "Incomplete",
            Self::Json(_) => "JsonError",
        }
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Class {
        let permanent = match self {
            Self::TargetRefused(source) => matches!(&**source, kube::Error::Api(status)
                if matches!(status.code, 400 | 403 | 404 | 405 | 422)),
            Self::StartRefused(source) => source.is_permanent(),
            Self::Json(_) => true,
            Self::Api { .. } | Self::AgainRefused(_) | Self::Agent(_) | Self::Incomplete(_) => {
                false
            }
        };
        if permanent { Class::Permanent } else { Class::Transient }
    }

    /// Reason for the conditions of an attempt that ends by this.
    pub fn condition_reason(&self) -> &'static str {
        match self {
            Self::TargetRefused(_) => reasons::TARGET_POD_FAILED,
            _ => reasons::PREFLIGHT_FAILED,
        }
    }

    /// Why the pod is not made again, or its manifest is not stored, in the API server's own words.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::AgainRefused(source) => match &**source {
                kube::Error::Api(status) => Some(status.message.clone()),
                other => Some(other.to_string()),
            },
            Self::Api { what: STORE_MANIFEST, source } => match &**source {
                kube::Error::Api(status) if is_refused(status.code, &status.message) => {
                    Some(status.message.clone())
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a refusal to store the manifest is that of a webhook which could not be called.
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Api { what: STORE_MANIFEST, source } if matches!(&**source,
            kube::Error::Api(status) if is_unheard(status.code, &status.message)))
    }

    /// The error with everything that caused it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// Whether the API server has refused an object. So it has where a webhook that must be heard cannot be: that
/// may last. Any other failure of its own is one of the moment.
fn is_refused(code: u16, message: &str) -> bool {
    is_unheard(code, message) || matches!(code, 400 | 403 | 413 | 422)
}

fn is_unheard(code: u16, message: &str) -> bool {
    code == 500 && message.contains("failed calling webhook")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_after_the_commit_is_told_in_the_api_servers_words_and_tried_again() {
        let status = serde_json::json!({"status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "exceeded quota: q"});
        let answer = || kube::Error::Api(Box::new(serde_json::from_value(status.clone()).unwrap()));
        let stored = Error::api(STORE_MANIFEST)(answer());
        assert_eq!(stored.refusal().as_deref(), Some("exceeded quota: q"));
        assert_eq!(Error::api("read a pod")(answer()).refusal(), None);
        let error = Error::AgainRefused(Box::new(answer()));
        assert_eq!(error.refusal().as_deref(), Some("exceeded quota: q"));
        assert_eq!((error.class(), error.is_conflict()), (Class::Transient, false));
        assert_eq!(Error::Incomplete("x".into()).refusal(), None);
    }

    #[rstest::rstest]
    #[case(403, "exceeded quota: q", true)]
    #[case(413, "too large", true)]
    #[case(500, "Internal error occurred: failed calling webhook \"a.b\": no endpoints", true)]
    #[case(500, "Internal error occurred: etcdserver: request timed out", false)]
    #[case(503, "apiserver is shutting down", false)]
    #[case(409, "secrets \"x\" already exists", false)]
    fn a_manifest_that_is_refused_is_told_from_one_that_is_stored_later(
        #[case] code: u16,
        #[case] message: &str,
        #[case] refused: bool,
    ) {
        let status = serde_json::json!({"status": "Failure", "code": code, "message": message});
        let answer = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        let error = Error::api(STORE_MANIFEST)(answer);
        assert_eq!(error.refusal().as_deref(), refused.then_some(message));
        assert_eq!(error.is_unheard(), refused && code == 500);
    }

    #[test]
    fn an_error_tells_its_causes() {
        let source = agents::Error::NotReachable { node: "node-a".into(), why: "no address" };
        assert_eq!(
            Error::Agent(source).chain(),
            "an agent could not be asked: node-a cannot be called: no address"
        );
    }
}
