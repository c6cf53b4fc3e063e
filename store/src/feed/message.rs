//! What agents and controllers say to each other, as JSON.

use api::Violation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Agent;
use super::authority::Lineage;
use super::digest::Digest;
use super::frame;
use super::ticket::Ticket;
use crate::Error;
use crate::backend::{KindName, ObjectKey, Preconditions};
use crate::kinds;

/// A kind, as it is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindSaid {
    pub group: String,
    pub kind: String,
}

impl KindSaid {
    pub fn of(kind: KindName) -> Self {
        Self { group: kind.group.into(), kind: kind.kind.into() }
    }
    /// The kind, when this version of Tombolo knows it.
    pub fn known(&self) -> Option<KindName> {
        kinds::find(&self.group, &self.kind).map(|known| known.name)
    }
}

/// From an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToController {
    /// The first message: who it is, and what shows that it is one of the cluster's.
    Hello {
        agent: Agent,
        #[serde(flatten)]
        claim: Claim,
    },
    /// Everything of a kind from now on.
    Watch {
        #[serde(flatten)]
        kind: KindSaid,
        /// What the agent has of it, so that it need not be said again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        have: Option<Digest>,
    },
    Ask {
        id: u64,
        request: Request,
    },
    Ping,
}

/// What shows that an agent is one of the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Claim {
    /// That it has the enrolment file, in base64.
    Proof(String),
    /// Its ServiceAccount token; what it was given when that was last reviewed.
    Token {
        token: Token,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ticket: Option<Ticket>,
    },
}

/// A ServiceAccount token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Get { kind: KindSaid, key: ObjectKey },
    List { kind: KindSaid },
    Create { kind: KindSaid, object: Value },
    Update { kind: KindSaid, object: Value },
    UpdateStatus { kind: KindSaid, object: Value },
    Delete { kind: KindSaid, key: ObjectKey, only_if: Preconditions },
}

impl Request {
    pub fn kind(&self) -> &KindSaid {
        match self {
            Self::Get { kind, .. }
            | Self::List { kind }
            | Self::Create { kind, .. }
            | Self::Update { kind, .. }
            | Self::UpdateStatus { kind, .. }
            | Self::Delete { kind, .. } => kind,
        }
    }
}

/// From a controller. `O` is an object: owned where it is read, borrowed where it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToAgent<O = Value> {
    /// The agent is who it says.
    Welcome,
    /// For the next time, where its token was reviewed.
    Ticket(Ticket),
    /// How the cluster came to the identity that this controller proves; before anything else, and when that changes.
    Lineage(Lineage),
    /// It is not, or may not; the connection ends.
    Refused {
        reason: String,
    },
    /// Part of everything that is there; with `last`, the parts since the last `last` are all.
    Part {
        kind: KindSaid,
        objects: Vec<O>,
        last: bool,
    },
    Applied {
        kind: KindSaid,
        object: O,
    },
    Deleted {
        kind: KindSaid,
        object: O,
    },
    /// What the agent had, with the changes since it said so, is everything; it then sums up to `digest`.
    Resumed {
        kind: KindSaid,
        digest: Digest,
    },
    /// This agent may not watch that kind.
    WatchRefused {
        kind: KindSaid,
        failure: Failure,
    },
    /// Part of the answer to a list.
    ListPart {
        id: u64,
        objects: Vec<O>,
        last: bool,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
    Ping,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Object(Option<Value>),
    Done,
    Failed(Failure),
}

/// An [`Error`], as it is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    NotFound(String),
    AlreadyExists(String),
    Conflict {
        object: String,
        detail: String,
    },
    /// Path and message of each violation.
    Invalid {
        object: String,
        violations: Vec<(String, String)>,
    },
    Forbidden(String),
    Unavailable(String),
    Malformed {
        object: String,
        detail: String,
    },
    Disk {
        path: String,
        detail: String,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(object) => Self::NotFound(object),
            Error::AlreadyExists(object) => Self::AlreadyExists(object),
            Error::Conflict { object, detail } => Self::Conflict { object, detail },
            Error::Invalid { object, violations } => {
                let violations = violations.into_iter().map(|one| (one.path, one.message)).collect();
                Self::Invalid { object, violations }
            }
            Error::Forbidden(why) => Self::Forbidden(why),
            Error::Unavailable(why) => Self::Unavailable(why),
            Error::Malformed { object, detail } => Self::Malformed { object, detail },
            Error::Disk { path, detail } => Self::Disk { path, detail },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(object) => Self::NotFound(object),
            Failure::AlreadyExists(object) => Self::AlreadyExists(object),
            Failure::Conflict { object, detail } => Self::Conflict { object, detail },
            Failure::Invalid { object, violations } => {
                let violations = violations.into_iter().map(|(path, message)| Violation::new(path, message)).collect();
                Self::Invalid { object, violations }
            }
            Failure::Forbidden(why) => Self::Forbidden(why),
            Failure::Unavailable(why) => Self::Unavailable(why),
            Failure::Malformed { object, detail } => Self::Malformed { object, detail },
            Failure::Disk { path, detail } => Self::Disk { path, detail },
        }
    }
}

/// A message's bytes in frames; the reason when it is too large to be sent.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, String> {
    let bytes = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    frame::encode(&bytes)
        .ok_or_else(|| format!("{} bytes are over the limit of {} a message", bytes.len(), frame::MAX_MESSAGE_BYTES))
}

/// A message out of its bytes; the reason when it is none.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("not a message of this protocol: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_arrive_as_they_left() {
        let errors = [
            Error::NotFound("a".into()),
            Error::AlreadyExists("a".into()),
            Error::Conflict { object: "a".into(), detail: "b".into() },
            Error::Invalid { object: "a".into(), violations: vec![Violation::new("spec", "wrong")] },
            Error::Forbidden("a".into()),
            Error::Unavailable("a".into()),
            Error::Malformed { object: "a".into(), detail: "b".into() },
            Error::Disk { path: "a".into(), detail: "b".into() },
        ];
        for error in errors {
            let said = Failure::from(error.clone());
            let heard: Failure = serde_json::from_value(json!(said)).unwrap();
            assert_eq!(Error::from(heard).to_string(), error.to_string());
        }
    }

    #[test]
    fn a_greeting_says_either_a_proof_or_a_token() {
        let agent = json!({"role": "Node", "name": "worker"});
        let proof: ToController =
            serde_json::from_value(json!({"hello": {"agent": agent, "proof": "cHJvb2Y="}})).unwrap();
        assert!(matches!(&proof, ToController::Hello { claim: Claim::Proof(proof), .. } if proof == "cHJvb2Y="));
        let token = ToController::Hello {
            agent: serde_json::from_value(agent).unwrap(),
            claim: Claim::Token { token: Token::new("secret"), ticket: None },
        };
        assert_eq!(serde_json::from_value::<ToController>(json!(token)).unwrap(), token);
        assert!(!format!("{token:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\",:a-zA-Z0-9]{0,100}") {
            let _ = decode::<ToController>(&bytes);
            let _ = decode::<ToAgent>(&bytes);
            let _ = decode::<ToController>(text.as_bytes());
            let _ = decode::<ToAgent>(text.as_bytes());
        }
    }
}
