//! What all replicas of a controller on Kubernetes have in common, in one Secret: the cluster's identity, its epoch, the
//! record signed last, what enrols agents (decision 3).
//!
//! On plain hosts there is one controller and its disk is the place. On Kubernetes there are several that come and go, so
//! the Secret is. Each replica has the same files on its own disk, by which it starts while the API server is away. Which
//! replica writes the Secret, and what the others make of it, is in `replicas`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::keys::IdentityKey;
use api::kubernetes::{ConfigMap, ObjectMeta, Secret};
use api::names::{AGENTS_CONFIG_MAP, ENROLMENT_DATA, IDENTITY_SECRET, SYSTEM_NAMESPACE};
use controller_core::service_plan::MANAGED_BY;
use k8s_openapi::ByteString;
use store::feed::Enrolment;
use store::{Error, Store};
use tokio_util::sync::CancellationToken;

use crate::own_keys;
use crate::state_files::{AGENTS_FILE, IDENTITY_FILE, MEMBERSHIP_FILE, Membership, NEXT_IDENTITY_FILE, StateFiles};

/// How long after a failure the API server is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// The shared files and their bytes; the Secret's entries have the files' names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bundle(BTreeMap<String, ByteString>);

impl Bundle {
    /// Of this replica's disk.
    pub(crate) fn of(files: &StateFiles) -> Result<Self> {
        let mut bundle = BTreeMap::new();
        for name in [IDENTITY_FILE, NEXT_IDENTITY_FILE, MEMBERSHIP_FILE, AGENTS_FILE] {
            if let Some(bytes) = files.read(name)? {
                bundle.insert(name.to_owned(), ByteString(bytes));
            }
        }
        Ok(Self(bundle))
    }

    /// The same with another membership.
    pub(crate) fn with(mut self, membership: &Membership) -> Result<Self> {
        self.0.insert(MEMBERSHIP_FILE.to_owned(), ByteString(serde_json::to_vec_pretty(membership)?));
        Ok(self)
    }

    /// Of the Secret. What is needed to be this cluster has to be in it.
    pub(crate) fn in_secret(secret: Secret) -> Result<(Self, Membership)> {
        let data = secret.data.unwrap_or_default();
        for name in [IDENTITY_FILE, MEMBERSHIP_FILE, AGENTS_FILE] {
            if !data.contains_key(name) {
                bail!("Secret {IDENTITY_SECRET} has no entry {name}: restore it from a backup");
            }
        }
        let membership = serde_json::from_slice(&data[MEMBERSHIP_FILE].0)
            .with_context(|| format!("entry {MEMBERSHIP_FILE} of Secret {IDENTITY_SECRET} is broken: restore it"))?;
        Ok((Self(data), membership))
    }

    /// Puts all of it on this replica's disk, in an order by which a kill in between leaves something that stands, or
    /// that shows to be no state at all.
    pub(crate) fn take(&self, files: &StateFiles) -> Result<()> {
        let order = if files.read(MEMBERSHIP_FILE)?.is_some() {
            // It says which identity is the current one; the key files follow it (`own_keys`).
            [NEXT_IDENTITY_FILE, MEMBERSHIP_FILE, IDENTITY_FILE, AGENTS_FILE]
        } else {
            [IDENTITY_FILE, NEXT_IDENTITY_FILE, AGENTS_FILE, MEMBERSHIP_FILE]
        };
        for name in order {
            if let Some(bytes) = self.0.get(name) {
                files.write(name, &bytes.0)?;
            }
        }
        if !self.0.contains_key(NEXT_IDENTITY_FILE) {
            files.remove(NEXT_IDENTITY_FILE);
        }
        Ok(())
    }

    fn secret(self, known: ObjectMeta) -> Secret {
        Secret { metadata: named(known, IDENTITY_SECRET), data: Some(self.0), ..Secret::default() }
    }
}

fn named(known: ObjectMeta, name: &str) -> ObjectMeta {
    let ours = [(MANAGED_BY.to_owned(), api::names::MANAGED_BY_TOMBOLO.to_owned())];
    ObjectMeta { name: Some(name.into()), namespace: Some(SYSTEM_NAMESPACE.into()), labels: Some(ours.into()), ..known }
}

/// The generation of the record that a membership holds; zero before the first.
pub(crate) fn generation(membership: &Membership) -> u64 {
    crate::owner::last_record(membership).map_or(0, |(_, record)| record.generation)
}

/// The Secret as a start found it.
pub(crate) struct Found {
    pub(crate) known: ObjectMeta,
    /// Whether this replica's disk knows more.
    pub(crate) is_behind: bool,
}

/// Makes this replica's disk what the Secret says, or the Secret what the disk says where there is none. What it was read
/// as; none where the API server does not answer and this replica goes on by its disk.
pub(crate) async fn begin(store: &Store, files: &StateFiles, stop: &CancellationToken) -> Result<Option<Found>> {
    let mut told = false;
    loop {
        let error = match turn(store, files).await? {
            Ok(Some(found)) => return Ok(Some(found)),
            // Another replica was faster: its Secret is read next.
            Ok(None) => continue,
            Err(error) => error,
        };
        if [IDENTITY_FILE, AGENTS_FILE, MEMBERSHIP_FILE].iter().all(|name| files.exists(name)) {
            tracing::warn!(%error, "Secret {IDENTITY_SECRET} cannot be read: going on by this replica's own disk");
            return Ok(None);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, "waiting for Secret {IDENTITY_SECRET}: this replica's disk does not know who it is");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => bail!("stopped before Secret {IDENTITY_SECRET} could be read: {error}"),
        }
    }
}

/// One try. The inner error is the store's.
async fn turn(store: &Store, files: &StateFiles) -> Result<Result<Option<Found>, Error>> {
    let found = match store.get::<Secret>(Some(SYSTEM_NAMESPACE), IDENTITY_SECRET).await {
        Ok(found) => found,
        Err(error @ Error::Forbidden(_)) => return Err(error).context("the role of the controller is too small"),
        Err(error) => return Ok(Err(error)),
    };
    let Some(secret) = found else {
        let membership = files.membership()?;
        let own = own_keys::load(files, &membership)?.own;
        Enrolment::load_or_create(files.enrolment_file(), own.current)?;
        let made = store.create(&Bundle::of(files)?.secret(ObjectMeta::default())).await;
        return Ok(match made {
            Ok(made) => Ok(Some(Found { known: made.metadata, is_behind: false })),
            Err(Error::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(error),
        });
    };
    let known = secret.metadata.clone();
    let (theirs, membership) = Bundle::in_secret(secret)?;
    // A Secret that was restored from an old backup knows less than a replica that went on since.
    let ours = if files.exists(MEMBERSHIP_FILE) { Some(files.membership()?) } else { None };
    let is_newer = |ours: &Membership| ours.epoch == membership.epoch && generation(ours) > generation(&membership);
    let is_behind = ours.as_ref().is_some_and(is_newer);
    if !is_behind {
        theirs.take(files)?;
    }
    Ok(Ok(Some(Found { known, is_behind })))
}

/// Writes the Secret, as the successor of what it was `known` as.
pub(crate) async fn publish(store: &Store, known: ObjectMeta, bundle: Bundle) -> Result<ObjectMeta, Error> {
    let is_new = known.resource_version.is_none();
    let secret = bundle.secret(known);
    let written = if is_new { store.create(&secret).await } else { store.update(&secret).await };
    written.map(|written| written.metadata)
}

/// Tells agents which identity to expect of their controllers.
pub(crate) async fn tell_agents(store: &Store, controller: IdentityKey) -> Result<(), Error> {
    let text = Enrolment::without_secret(controller);
    let found = store.get::<ConfigMap>(Some(SYSTEM_NAMESPACE), AGENTS_CONFIG_MAP).await?;
    let data = Some([(ENROLMENT_DATA.to_owned(), text)].into());
    match found {
        Some(found) if found.data == data => Ok(()),
        Some(found) => {
            let metadata = found.metadata.clone();
            store.update(&ConfigMap { metadata, data, ..found }).await.map(drop)
        }
        None => {
            let metadata = named(ObjectMeta::default(), AGENTS_CONFIG_MAP);
            store.create(&ConfigMap { metadata, data, ..ConfigMap::default() }).await.map(drop)
        }
    }
}
