//! The keys the controller hands out: each slot's lanes, the master behind probes, each agent's key derived from it.
//! The store keeps them. The lanes' keys are replaced in two writes, each of one Secret and whole: see
//! [`controller_core::rotation`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use api::health::message::{AgentKey, MasterKey};
use api::keys::TunnelKey;
use api::kubernetes::Secret;
use api::names::{self, SYSTEM_NAMESPACE};
use api::time::WallTime;
use controller_core::condition::object_time;
use controller_core::membership::{KeysOfSlot, LaneKeys, SlotKeys};
use k8s_openapi::ByteString;
use store::{Error, Store};
use x25519_dalek::{PublicKey, StaticSecret};

/// The id of the first master key; a rotation takes the next.
const FIRST_MASTER: u32 = 1;

/// As many lanes as a LocalCluster may ask for.
const MAX_LANES: u16 = 16;

/// How often a write is tried that another one overtakes: there are few who write keys.
const TRIES: usize = 5;

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
        let entries = |secret: &Secret| {
            let next = (0..lanes).filter(|_| rotating_since(secret).is_some()).map(names::next_lane_key);
            (0..lanes).map(names::lane_key).chain(next).collect()
        };
        let secret = if make {
            ensure(store, &name, &entries, || random().map(|secret| secret.to_vec())).await?
        } else {
            store.get::<Secret>(Some(SYSTEM_NAMESPACE), &name).await?.unwrap_or_default()
        };
        let public: Vec<Option<TunnelKey>> = (0..lanes).map(|lane| public(&secret, &names::lane_key(lane))).collect();
        if let Some(broken) = (0..lanes).zip(&public).find_map(|(lane, key)| key.is_none().then_some(lane)) {
            if make {
                return Err(KeyError::Broken(name, names::lane_key(broken)));
            }
            continue;
        }
        let rotating_since = rotating_since(&secret);
        let lanes = (0..lanes)
            .zip(public.into_iter().flatten())
            .map(|(lane, key)| LaneKeys { key, next_key: rotating_since.and_then(|_| public_of_next(&secret, lane)) });
        keys.insert(slot, KeysOfSlot { lanes: lanes.collect(), rotating_since });
    }
    Ok(keys)
}

fn public(secret: &Secret, entry: &str) -> Option<TunnelKey> {
    let bytes = <[u8; 32]>::try_from(secret.data.as_ref()?.get(entry)?.0.as_slice()).ok()?;
    Some(TunnelKey(PublicKey::from(&StaticSecret::from(bytes)).to_bytes()))
}

fn public_of_next(secret: &Secret, lane: u16) -> Option<TunnelKey> {
    public(secret, &names::next_lane_key(lane))
}

/// Since when a slot's keys rotate. A time that cannot be read is long ago: a rotation must not last for ever.
fn rotating_since(secret: &Secret) -> Option<WallTime> {
    let text = secret.metadata.annotations.as_ref()?.get(names::ROTATING_SINCE)?;
    let millis = text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond).unwrap_or_default();
    Some(WallTime::from_millis(u64::try_from(millis).unwrap_or_default()))
}

/// Makes the next key of each lane of a slot; false where they are there already.
pub(crate) async fn rotate(store: &Store, slot: u16, now: WallTime) -> Result<bool, KeyError> {
    edit(store, &names::slot_secret(slot), |secret| {
        if rotating_since(secret).is_some() {
            return Ok(false);
        }
        let data = secret.data.get_or_insert_default();
        for lane in lanes(data) {
            data.insert(names::next_lane_key(lane), ByteString(random()?.to_vec()));
        }
        let since = object_time(now).0.to_string();
        secret.metadata.annotations.get_or_insert_default().insert(names::ROTATING_SINCE.into(), since);
        Ok(true)
    })
    .await
}

/// Puts a slot's next keys in the place of its current ones; false where none are there. With `expected`, only these.
pub(crate) async fn retire(store: &Store, slot: u16, expected: Option<&[TunnelKey]>) -> Result<bool, KeyError> {
    edit(store, &names::slot_secret(slot), |secret| {
        let next: Vec<u16> = lanes(secret.data.get_or_insert_default()).collect();
        let keys: Vec<TunnelKey> = next.iter().filter_map(|lane| public_of_next(secret, *lane)).collect();
        if rotating_since(secret).is_none() || expected.is_some_and(|expected| expected != keys) {
            return Ok(false);
        }
        for lane in next {
            let usable = public_of_next(secret, lane).is_some();
            let data = secret.data.get_or_insert_default();
            if let Some(key) = data.remove(&names::next_lane_key(lane)).filter(|_| usable) {
                data.insert(names::lane_key(lane), key);
            }
        }
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.remove(names::ROTATING_SINCE);
        if annotations.is_empty() {
            secret.metadata.annotations = None;
        }
        Ok(true)
    })
    .await
}

/// The lanes that have a key.
fn lanes(data: &Data) -> impl Iterator<Item = u16> + use<> {
    let held: Vec<u16> = (0..MAX_LANES).filter(|lane| data.contains_key(&names::lane_key(*lane))).collect();
    held.into_iter()
}

/// Makes sure that there is a master key and that the agent has its own.
pub(crate) async fn agent(store: &Store, agent: &str) -> Result<(), KeyError> {
    let master = master(store).await?;
    let wanted = master.agent_key(agent).to_text();
    let name = names::agent_secret(agent);
    let entry = names::AGENT_KEY_DATA.to_owned();
    let entries = |_: &Secret| vec![entry.clone()];
    let data = data_of(Some(ensure(store, &name, &entries, || Ok(wanted.clone().into_bytes())).await?));
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
        data_of(Some(ensure(store, names::PROBE_MASTER_SECRET, &|_| vec![entry.clone()], make).await?))
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

/// The Secret with all of the entries that `entries` wants of it; those that are missing are made. Never changes one
/// that is there.
async fn ensure(
    store: &Store,
    name: &str,
    entries: &impl Fn(&Secret) -> Vec<String>,
    make: impl Fn() -> Result<Vec<u8>, KeyError>,
) -> Result<Secret, KeyError> {
    // Another replica may do the same at this moment: then its keys are taken.
    for _ in 0..TRIES {
        let found = store.get::<Secret>(Some(SYSTEM_NAMESPACE), name).await?;
        let mut secret = found.clone().unwrap_or_default();
        secret.metadata.name = Some(name.into());
        secret.metadata.namespace = Some(SYSTEM_NAMESPACE.into());
        let wanted = entries(&secret);
        let data = secret.data.get_or_insert_default();
        for entry in wanted {
            if let Entry::Vacant(missing) = data.entry(entry) {
                missing.insert(ByteString(make()?));
            }
        }
        if found.as_ref().is_some_and(|found| found.data == secret.data) {
            return Ok(secret);
        }
        let written = if found.is_some() { store.update(&secret).await } else { store.create(&secret).await };
        match written {
            Ok(secret) => return Ok(secret),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(restless(name))
}

/// Changes a Secret that is there, unless `change` says that there is nothing to do.
async fn edit(
    store: &Store,
    name: &str,
    change: impl Fn(&mut Secret) -> Result<bool, KeyError>,
) -> Result<bool, KeyError> {
    for _ in 0..TRIES {
        let Some(mut secret) = store.get::<Secret>(Some(SYSTEM_NAMESPACE), name).await? else { return Ok(false) };
        if !change(&mut secret)? {
            return Ok(false);
        }
        match store.update(&secret).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(restless(name))
}

fn restless(name: &str) -> KeyError {
    KeyError::Store(Error::Conflict { object: format!("Secret {name}"), detail: "it changes all the time".into() })
}

fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyError::NoRandomness)?;
    Ok(bytes)
}
