//! [`Credentials`]: what an agent shows its controller, read anew each time it dials, so that a host that is enrolled
//! while its agents wait needs no restart, and a token that was renewed is the one that is shown.
//!
//! On plain hosts that is a proof of having the enrolment file. On Kubernetes it is a ServiceAccount token, which says by
//! itself on which node the agent's pod is; the file beside it only names the controller's identity, and is no secret.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use api::keys::IdentityKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::message::{Claim, Token};
use super::ticket::Ticket;
use super::{Agent, Enrolment};
use crate::{Error, state_file};

/// Tokens have some 1,200 bytes; a greeting takes sixteen times as many.
const MAX_TOKEN_BYTES: u64 = 8 * 1024;
/// Some 150 bytes, with room to spare.
const MAX_TICKET_BYTES: u64 = 4 * 1024;

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    enrolment: PathBuf,
    token: Option<PathBuf>,
    ticket: PathBuf,
}

/// What they are now.
pub(crate) enum Credential {
    Secret(Enrolment),
    Token { controller: IdentityKey, token: Token, ticket: Option<Ticket> },
}

impl Credentials {
    /// `folder` is the agent's own.
    pub(crate) fn new(enrolment: PathBuf, token: Option<PathBuf>, folder: &Path) -> Self {
        Self { enrolment, token, ticket: folder.join("ticket.json") }
    }

    pub(crate) fn load(&self) -> Result<Credential, Error> {
        let Some(path) = &self.token else { return Enrolment::load(&self.enrolment).map(Credential::Secret) };
        let controller = Enrolment::load_controller(&self.enrolment)?;
        let text = read(path, MAX_TOKEN_BYTES)
            .map_err(|error| disk(path, format!("{error}: mount a projected ServiceAccount token there")))?;
        let token = Token::new(text.trim());
        // Without a ticket, or with a broken one, the token alone has to do.
        let ticket = read(&self.ticket, MAX_TICKET_BYTES).ok().and_then(|text| serde_json::from_str(&text).ok());
        Ok(Credential::Token { controller, token, ticket })
    }

    /// Keeps a ticket for the next time.
    pub(crate) fn keep(&self, ticket: &Ticket) -> Result<(), Error> {
        let bytes = serde_json::to_vec(ticket).map_err(|error| disk(&self.ticket, error))?;
        state_file::replace(&self.ticket, &bytes).map_err(|error| disk(&self.ticket, error))
    }
}

impl Credential {
    /// The identity that the controller has to prove before anything is shown to it.
    pub(crate) fn controller(&self) -> IdentityKey {
        match self {
            Self::Secret(enrolment) => enrolment.controller(),
            Self::Token { controller, .. } => *controller,
        }
    }

    /// What the agent with the key `own` says to the controller that proved `other`, on the connection with the secret
    /// `exporter`.
    pub(crate) fn claim(self, agent: &Agent, own: IdentityKey, other: IdentityKey, exporter: &[u8; 32]) -> Claim {
        match self {
            Self::Secret(enrolment) => Claim::Proof(STANDARD.encode(enrolment.with(other).prove(agent, own, exporter))),
            Self::Token { token, ticket, .. } => Claim::Token { token, ticket },
        }
    }
}

fn read(path: &Path, limit: u64) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(std::io::Error::new(ErrorKind::InvalidData, format!("has more than {limit} bytes")));
    }
    Ok(text)
}

fn disk(path: &Path, detail: impl ToString) -> Error {
    Error::Disk { path: path.display().to_string(), detail: detail.to_string() }
}
