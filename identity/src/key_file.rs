//! The file an identity lives in: PKCS#8 in PEM (RFC 8410, section 7), as `openssl genpkey -algorithm ed25519` writes
//! it, mode 0600.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use crate::{Error, Identity};

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// What stands before the 32 bytes of the seed in an Ed25519 PKCS#8 key without attributes (RFC 8410, section 10.3).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A key file has 119 bytes; this leaves room for a comment and stops at a wrong file.
const MAX_FILE_BYTES: u64 = 4096;

impl Identity {
    /// A fresh key that is kept nowhere.
    ///
    /// Fails when the kernel has no random numbers to give.
    pub fn generate() -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| Error::Unusable(format!("the kernel gives no random numbers: {error}")))?;
        Ok(Self { key: SigningKey::from_bytes(&seed) })
    }

    /// The identity kept in the file at `path`; a new one is made and written there when there is no such file.
    ///
    /// Two processes that start at once get the same identity. A key file that others may read is refused with the
    /// command that closes it: a key somebody may have read should be a decision, not a warning.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match load(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => return result.map_err(|error| refused(path, error)),
        }
        create(path).and_then(|()| load(path)).map_err(|error| refused(path, error))
    }

    /// The identity in a PEM text; `None` when there is none.
    pub fn from_pem(text: &str) -> Option<Self> {
        if text.len() as u64 > MAX_FILE_BYTES {
            return None;
        }
        let (_, rest) = text.split_once(BEGIN)?;
        let (body, _) = rest.split_once(END)?;
        let compact: Zeroizing<String> = Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let der = Zeroizing::new(STANDARD.decode(compact.as_bytes()).ok()?);
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(der.strip_prefix(&PKCS8_HEAD)?.try_into().ok()?);
        Some(Self { key: SigningKey::from_bytes(&seed) })
    }

    /// The key as PKCS#8 in DER, as TLS libraries want it.
    pub(crate) fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let seed = Zeroizing::new(self.key.to_bytes());
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_HEAD.len() + seed.len()));
        der.extend_from_slice(&PKCS8_HEAD);
        der.extend_from_slice(seed.as_ref());
        der
    }
}

fn refused(path: &Path, error: std::io::Error) -> Error {
    Error::KeyFile { path: path.display().to_string(), detail: error.to_string() }
}

fn load(path: &Path) -> std::io::Result<Identity> {
    let mut file = OpenOptions::new().read(true).open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o777;
    if !metadata.is_file() {
        return Err(std::io::Error::other("is not a file: name the file that holds the identity key"));
    }
    if mode & 0o077 != 0 {
        return Err(std::io::Error::other(format!(
            "has mode {mode:04o}, so others may have read this private key: run 'chmod 600 {}' if you know that nobody did",
            path.display()
        )));
    }
    let mut text = Zeroizing::new(String::new());
    Read::by_ref(&mut file).take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    Identity::from_pem(&text).ok_or_else(|| {
        std::io::Error::other(
            "is not an Ed25519 private key in PEM (PKCS#8): restore it from a backup, or remove it to get a new identity, which every peer must then be told",
        )
    })
}

/// Writes a new key beside `path` and links it there, so that the file is whole or absent and never overwritten.
fn create(path: &Path) -> std::io::Result<()> {
    let identity = Identity::generate().map_err(std::io::Error::other)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|error| std::io::Error::other(error.to_string()))?;
    let name = path.file_name().ok_or_else(|| std::io::Error::other("names no file"))?.to_string_lossy();
    let beside = folder.join(format!(".{name}.{:016x}", u64::from_ne_bytes(suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let body = Zeroizing::new(STANDARD.encode(identity.pkcs8().as_slice()));
    let written = file
        .write_all(format!("{BEGIN}\n{}\n{END}\n", body.as_str()).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside)?;
    match written {
        // Somebody else was faster: theirs is the identity.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| File::open(folder)?.sync_all()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_is_the_same_after_a_restart_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/identity.key");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().public(), first.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing but the key is left behind");
    }

    #[test]
    fn processes_that_start_at_once_get_one_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Identity::load_or_create(&path).unwrap().public())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        Identity::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refusal = Identity::load_or_create(&path).unwrap_err().to_string();
        assert!(refusal.contains("0640") && refusal.contains("chmod 600"), "{refusal}");
    }

    #[test]
    fn a_broken_key_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .unwrap()
            .write_all(b"not a key")
            .unwrap();
        assert!(Identity::load_or_create(&path).unwrap_err().to_string().contains("restore it from a backup"));
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn a_key_written_by_openssl_is_read() {
        // The example key of RFC 8410, section 10.3.
        let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
        assert_eq!(Identity::from_pem(text).unwrap().public().to_string(), public);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(body in ".{0,300}") {
            let _ = Identity::from_pem(&body);
            let _ = Identity::from_pem(&format!("{BEGIN}{body}{END}"));
        }
    }
}
