//! [`Enrolment`]: the file that makes a plain host one of the cluster's.
//!
//! The controller writes it; the operator copies it to each host. It names the controller's key and holds a secret.
//! An agent never sends the secret: it proves to have it by a keyed hash over both TLS keys and the connection's own
//! secret (exporter), so that a proof is good for this agent on this connection alone.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use api::keys::IdentityKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Agent;
use crate::{Error, state_file};

/// Says what a proof means, so that it means nothing elsewhere.
const CONTEXT: &[u8] = b"tombolo feed enrolment v1\0";
/// The label both ends derive the connection's secret by (RFC 8446, section 7.5).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-tombolo-feed-enrolment";
/// The file has some 300 bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// The controller's key and the shared secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolment {
    controller: IdentityKey,
    secret: [u8; 32],
}

impl std::fmt::Debug for Enrolment {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Enrolment(controller {})", self.controller)
    }
}

impl Enrolment {
    /// The controller's own: reads the file at `path`, or makes it with a new secret. When `controller` is another
    /// key than the file names, the file is written anew with the same secret.
    pub fn load_or_create(path: impl AsRef<Path>, controller: IdentityKey) -> Result<Self, Error> {
        let path = path.as_ref();
        let known = if path.try_exists().unwrap_or(true) { Some(Self::load(path)?) } else { None };
        if let Some(known) = known.as_ref().filter(|known| known.controller == controller) {
            return Ok(known.clone());
        }
        let mut secret = [0; 32];
        match known {
            Some(known) => secret = known.secret,
            None => getrandom::fill(&mut secret).map_err(|error| disk(path, error))?,
        }
        let enrolment = Self { controller, secret };
        state_file::replace(path, enrolment.text().as_bytes()).map_err(|error| disk(path, error))?;
        Ok(enrolment)
    }

    /// An agent's copy. A file that others may read is refused with the command that closes it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (text, mode) = read(path, "copy it from the controller's state folder")?;
        if mode & 0o077 != 0 {
            return Err(disk(path, format!("others may read this secret: run 'chmod 600 {}'", path.display())));
        }
        Self::parse(&text)
            .ok_or_else(|| disk(path, "is not an enrolment file: copy it whole from the controller's state folder"))
    }

    /// What a file without a secret says: the identity that controllers of this cluster prove. Who shows a token needs
    /// no more.
    pub(crate) fn load_controller(path: &Path) -> Result<IdentityKey, Error> {
        let (text, _) = read(path, "mount the ConfigMap that the controller writes there")?;
        let named = || disk(path, "names no controller's key: mount the ConfigMap that the controller writes there");
        controller(&text).ok_or_else(named)
    }

    /// The text of such a file.
    pub fn without_secret(controller: IdentityKey) -> String {
        format!(
            "# Which identity the controllers of this cluster prove to their agents. No secret.\ncontroller {controller}\n"
        )
    }

    /// The keys controllers of this cluster prove.
    pub fn controller(&self) -> IdentityKey {
        self.controller
    }

    /// The same secret, for a controller that has another identity by now.
    pub(crate) fn with(&self, controller: IdentityKey) -> Self {
        Self { controller, ..self.clone() }
    }

    /// Reads an enrolment file's text.
    pub fn parse(text: &str) -> Option<Self> {
        let secret = STANDARD.decode(field(text, "secret")?).ok()?.try_into().ok()?;
        Some(Self { controller: controller(text)?, secret })
    }

    fn text(&self) -> String {
        format!(
            "# Who holds this file may become an agent (gateway, node, dns) of this cluster.\n\
             # Copy it to the hosts of the cluster and nowhere else; mode 0600.\n\
             controller {}\n\
             secret {}\n",
            self.controller,
            STANDARD.encode(self.secret)
        )
    }

    /// The proof that the agent with key `key` on the connection with secret `exporter` has this file.
    pub(crate) fn prove(&self, agent: &Agent, key: IdentityKey, exporter: &[u8; 32]) -> Vec<u8> {
        self.mac(agent, key, exporter).finalize().into_bytes().to_vec()
    }

    /// Whether `proof` is that proof. Takes the same time whatever is wrong.
    pub(crate) fn check(&self, agent: &Agent, key: IdentityKey, exporter: &[u8; 32], proof: &[u8]) -> bool {
        self.mac(agent, key, exporter).verify_slice(proof).is_ok()
    }

    /// A hash keyed with the secret. Whatever it is fed begins with what it means.
    pub(super) fn keyed(&self) -> Hmac<Sha256> {
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&self.secret) else {
            unreachable!("a keyed hash takes keys of any length (RFC 2104)")
        };
        mac
    }

    fn mac(&self, agent: &Agent, key: IdentityKey, exporter: &[u8; 32]) -> Hmac<Sha256> {
        // Everything before the name has a fixed length or ends by itself, so no two agents give the same bytes.
        self.keyed()
            .chain_update(CONTEXT)
            .chain_update(exporter)
            .chain_update(key.0)
            .chain_update(self.controller.0)
            .chain_update(agent.role.as_str())
            .chain_update([0])
            .chain_update(&agent.name)
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
}

fn controller(text: &str) -> Option<IdentityKey> {
    field(text, "controller")?.parse().ok()
}

/// The file's text and mode.
fn read(path: &Path, remedy: &str) -> Result<(String, u32), Error> {
    let file = File::open(path).map_err(|error| disk(path, format!("{error}: {remedy}")))?;
    let mode = file.metadata().map_err(|error| disk(path, error))?.mode();
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| disk(path, error))?;
    Ok((text, mode))
}

fn disk(path: &Path, detail: impl ToString) -> Error {
    Error::Disk { path: path.display().to_string(), detail: detail.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::super::Role;
    use super::*;

    fn agent(role: Role, name: &str) -> Agent {
        Agent { role, name: name.into(), addresses: vec![], pod_prefixes: vec![] }
    }

    #[test]
    fn the_file_is_made_once_and_follows_the_controllers_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agents.key");
        let made = Enrolment::load_or_create(&path, IdentityKey([1; 32])).unwrap();
        assert_eq!(Enrolment::load_or_create(&path, IdentityKey([1; 32])).unwrap(), made);
        assert_eq!(Enrolment::load(&path).unwrap(), made);
        let moved = Enrolment::load_or_create(&path, IdentityKey([2; 32])).unwrap();
        assert_eq!((moved.secret, moved.controller), (made.secret, IdentityKey([2; 32])));
        assert_eq!(Enrolment::load(&path).unwrap(), moved);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_command_that_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agents.key");
        Enrolment::load_or_create(&path, IdentityKey([1; 32])).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Enrolment::load(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_file_without_a_secret_names_the_controller_and_enrols_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enrolment");
        let text = Enrolment::without_secret(IdentityKey([1; 32]));
        fs::write(&path, &text).unwrap();
        assert_eq!(Enrolment::load_controller(&path).unwrap(), IdentityKey([1; 32]));
        assert_eq!(Enrolment::parse(&text), None);
        fs::write(&path, "").unwrap();
        assert!(Enrolment::load_controller(&path).unwrap_err().to_string().contains("names no controller's key"));
    }

    #[test]
    fn a_proof_is_good_for_one_agent_on_one_connection() {
        let enrolment = Enrolment { controller: IdentityKey([1; 32]), secret: [7; 32] };
        let (key, exporter) = (IdentityKey([2; 32]), [3; 32]);
        let node = agent(Role::Node, "worker");
        let proof = enrolment.prove(&node, key, &exporter);
        assert!(enrolment.check(&node, key, &exporter, &proof));
        assert!(!enrolment.check(&agent(Role::Gateway, "worker"), key, &exporter, &proof));
        assert!(!enrolment.check(&agent(Role::Node, "other"), key, &exporter, &proof));
        assert!(!enrolment.check(&node, IdentityKey([4; 32]), &exporter, &proof));
        assert!(!enrolment.check(&node, key, &[4; 32], &proof));
        assert!(!enrolment.check(&node, key, &exporter, &proof[..31]));
        let stranger = Enrolment { secret: [8; 32], ..enrolment };
        assert!(!stranger.check(&node, key, &exporter, &proof));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(controller |secret |ed25519:|[A-Za-z0-9+/=\n #]){0,40}") {
            let _ = Enrolment::parse(&text);
        }
    }
}
