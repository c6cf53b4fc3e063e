//! What the API server's refusals mean in this crate's words.

use api::Violation;
use kube::core::Status;

use crate::Error;
use crate::backend::{KindName, ObjectKey};

/// Why a request for this object was not done.
pub(super) fn refusal(kind: KindName, key: &ObjectKey, error: &kube::Error) -> Error {
    let object = format!("{} {key}", kind.kind);
    let kube::Error::Api(status) = error else { return Error::Unavailable(sentence(error)) };
    match (status.code, status.reason.as_str()) {
        (404, _) => Error::NotFound(object),
        (409, "AlreadyExists") => Error::AlreadyExists(object),
        (409, _) => Error::Conflict { object, detail: status.message.clone() },
        (401, _) => Error::Forbidden(format!("the API server does not know who asks for {object}: check the token")),
        (403, _) => Error::Forbidden(status.message.clone()),
        (422, _) => Error::Invalid { object, violations: violations(status) },
        (400, _) => Error::Malformed { object, detail: status.message.clone() },
        _ => Error::Unavailable(status.message.clone()),
    }
}

/// Why a kind cannot be followed, and what to check.
pub(super) fn trouble(kind: KindName, error: &kube::runtime::watcher::Error) -> String {
    use kube::runtime::watcher::Error as Watch;
    let name = kind.plural;
    let of = |status: &Status| match status.code {
        404 => format!("the API server does not know {name}.{}: are the CRDs installed?", kind.group),
        403 => format!("not allowed to list and watch {name}: {}", status.message),
        401 => format!("the API server does not know who asks for {name}: check the token of this part"),
        _ => format!("{name}: {}", status.message),
    };
    match error {
        Watch::InitialListFailed(kube::Error::Api(status))
        | Watch::WatchStartFailed(kube::Error::Api(status))
        | Watch::WatchFailed(kube::Error::Api(status)) => of(status),
        Watch::WatchError(status) => of(status),
        Watch::InitialListFailed(error) | Watch::WatchStartFailed(error) | Watch::WatchFailed(error) => {
            format!("{name}: {}", sentence(error))
        }
        Watch::NoResourceVersion => format!("{name} cannot be watched"),
    }
}

/// An error and what caused it, in one line.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let detail = error.to_string();
        if !text.contains(&detail) {
            text = format!("{text}: {detail}");
        }
        cause = error.source();
    }
    text
}

fn violations(status: &Status) -> Vec<Violation> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut found: Vec<Violation> =
        causes.map(|cause| Violation::new(cause.field.clone(), cause.message.clone())).collect();
    if found.is_empty() {
        found.push(Violation::new("", status.message.clone()));
    }
    found
}
