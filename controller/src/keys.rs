//! The keys the controller hands out: each slot's lanes, the master behind probes, each agent's key derived from it.
//! Made once and never changed here; the store keeps them.

use std::collections::BTreeMap;

use api::health::message::{AgentKey, MasterKey};
use api::keys::TunnelKey;
use api::kubernetes::Secret;
use api::names::{self, SYSTEM_NAMESPACE};
use controller_core::membership::SlotKeys;
use k8s_openapi::ByteString;
use store::{Error, Store};
use x25519_dalek::{PublicKey, StaticSecret};

/// The id of the first master key; a rotation takes the next.
const FIRST_MASTER: u32 = 1;

/// Why keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("the kernel gives no random numbers: {0}")]
    NoRandomness(getrandom::Error),
    #[error("Secret {0} has no usable key in entry {1}: restore it, or delete the entry to have a new key made")]
    Broken(String, String),
}

/// The public keys of every slot's lanes. With `make`, those that are missing are made first; without, slots whose
/// keys are not all there are left out.
pub(crate) async fn slots(store: &Store, slots: u16, lanes: u16, make: bool) -> Result<SlotKeys, KeyError> {
    let mut keys = SlotKeys::new();
    for slot in 0..slots {
        let name = names::slot_secret(slot);
        let entries: Vec<String> = (0..lanes).map(|lane| format!("lane-{lane}")).collect();
        let data = if make {
            ensure(store, &name, &entries, || random().map(|secret| secret.to_vec())).await?
        } else {
            data_of(store.get::<Secret>(Some(SYSTEM_NAMESPACE), &name).await?)
        };
        let public = |entry: &String| {
            let secret = <[u8; 32]>::try_from(data.get(entry)?.0.as_slice()).ok()?;
            Some(TunnelKey(PublicKey::from(&StaticSecret::from(secret)).to_bytes()))
        };
        let public: Vec<Option<TunnelKey>> = entries.iter().map(public).collect();
        match public.iter().position(Option::is_none) {
            None => {
                keys.insert(slot, public.into_iter().flatten().collect());
            }
            Some(broken) if make => return Err(KeyError::Broken(name, entries[broken].clone())),
            Some(_) => {}
        }
    }
    Ok(keys)
}

/// Makes sure that there is a master key and that the agent has its own.
pub(crate) async fn agent(store: &Store, agent: &str) -> Result<(), KeyError> {
    let master = master(store).await?;
    let wanted = master.agent_key(agent).to_text();
    let name = names::agent_secret(agent);
    let entry = names::AGENT_KEY_DATA.to_owned();
    let data = ensure(store, &name, std::slice::from_ref(&entry), || Ok(wanted.clone().into_bytes())).await?;
    let held = data.get(&entry).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).and_then(AgentKey::from_text);
    if held.is_some_and(|held| held.to_text() == wanted) {
        return Ok(());
    }
    // Derived from another master, or broken: nothing is lost by writing what it must be.
    let Some(mut secret) = store.get::<Secret>(Some(SYSTEM_NAMESPACE), &name).await? else { return Ok(()) };
    secret.data.get_or_insert_default().insert(entry, ByteString(wanted.into_bytes()));
    store.update(&secret).await?;
    Ok(())
}

/// The newest master key; the first is made where there is none.
pub(crate) async fn master(store: &Store) -> Result<MasterKey, KeyError> {
    let entry = format!("key-{FIRST_MASTER}");
    let make = || random().map(|secret| MasterKey { id: FIRST_MASTER, secret }.to_text().into_bytes());
    let existing = data_of(store.get::<Secret>(Some(SYSTEM_NAMESPACE), names::PROBE_MASTER_SECRET).await?);
    let data = if existing.is_empty() {
        ensure(store, names::PROBE_MASTER_SECRET, std::slice::from_ref(&entry), make).await?
    } else {
        existing
    };
    let texts = data.values().filter_map(|bytes| std::str::from_utf8(&bytes.0).ok());
    texts
        .filter_map(MasterKey::from_text)
        .max_by_key(|key| key.id)
        .ok_or_else(|| KeyError::Broken(names::PROBE_MASTER_SECRET.into(), entry))
}

type Data = BTreeMap<String, ByteString>;

fn data_of(secret: Option<Secret>) -> Data {
    secret.and_then(|secret| secret.data).unwrap_or_default()
}

/// The Secret's data with all of `entries` in it; those that are missing are made. Never changes one that is there.
async fn ensure(
    store: &Store,
    name: &str,
    entries: &[String],
    make: impl Fn() -> Result<Vec<u8>, KeyError>,
) -> Result<Data, KeyError> {
    // Another replica may do the same at this moment: then its keys are taken.
    for _ in 0..5 {
        let found = store.get::<Secret>(Some(SYSTEM_NAMESPACE), name).await?;
        let mut secret = found.clone().unwrap_or_default();
        secret.metadata.name = Some(name.into());
        secret.metadata.namespace = Some(SYSTEM_NAMESPACE.into());
        let data = secret.data.get_or_insert_default();
        for entry in entries {
            if !data.contains_key(entry) {
                data.insert(entry.clone(), ByteString(make()?));
            }
        }
        if found.as_ref().is_some_and(|found| found.data == secret.data) {
            return Ok(data_of(Some(secret)));
        }
        let written = if found.is_some() { store.update(&secret).await } else { store.create(&secret).await };
        match written {
            Ok(secret) => return Ok(data_of(Some(secret))),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KeyError::Store(Error::Conflict { object: format!("Secret {name}"), detail: "it changes all the time".into() }))
}

fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyError::NoRandomness)?;
    Ok(bytes)
}
