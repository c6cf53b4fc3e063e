//! Services in the table: a verdict that leads to the chain for so many slots, and the slots.

use std::collections::{BTreeMap, BTreeSet};

use kernel_core::ruleset::{NO_ENDPOINT_CHAIN, SLOT_CHAIN_PREFIX, set_name, slot_chain, slot_chain_name};
use kernel_core::service::MOST_SLOTS;
use kernel_core::{Affinity, Backend, Family, Frontend, Service};

use super::element::{Entry, Value, change, destination_key, read_destination};
use super::skeleton::set_chain;
use crate::Error;
use crate::message::{Message, address, octets, read_be16, read_u32};

pub(crate) fn is_slot_chain(name: &str) -> bool {
    name.starts_with(SLOT_CHAIN_PREFIX)
}

/// Messages of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) messages: Vec<Message>,
    /// Elements added and removed by them.
    pub(crate) elements: usize,
}

/// Brings a frontend from one service to another: only slots that differ are touched, and the verdict only when the
/// number of slots or the affinity changed. `chains` are the slot chains that exist, and learns of new ones.
pub(crate) fn set_service(
    frontend: &Frontend,
    before: Option<&Service>,
    after: Option<&Service>,
    chains: &mut BTreeSet<String>,
) -> Result<Step, Error> {
    let family = Family::of(frontend.address);
    if after.is_some_and(|service| !service.fits(frontend)) {
        let reason = "its endpoints are of the other address family".into();
        return Err(Error::Invalid { object: name(frontend), reason });
    }
    let mut step = Step::default();
    let (old_chain, new_chain) =
        (before.map(|service| chain(family, service)), after.map(|service| chain(family, service)));
    if let (Some(service), Some(chain)) = (after, &new_chain)
        && is_slot_chain(chain)
        && chains.insert(chain.clone())
    {
        let rules = slot_chain(family, service.affinity(), service.slots().len());
        step.messages.extend(set_chain(chain, &rules));
    }
    let key = destination_key(frontend.address, frontend.protocol, frontend.port);
    let verdicts = set_name("services", family);
    let verdict = |chain: &String| Entry { key: key.clone(), end: false, value: Some(Value::Goto(chain.clone())) };
    if old_chain != new_chain
        && let Some(chain) = &old_chain
    {
        step.put(false, &verdicts, &[verdict(chain)]);
    }
    let (old, new) = (slots(before), slots(after));
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for index in 0..old.len().max(new.len()) {
        let (was, is) = (old.get(index), new.get(index));
        if was == is {
            continue;
        }
        gone.extend(was.map(|backend| slot(&key, index, backend)));
        come.extend(is.map(|backend| slot(&key, index, backend)));
    }
    let set = set_name("slots", family);
    step.put(false, &set, &gone);
    step.put(true, &set, &come);
    if old_chain != new_chain
        && let Some(chain) = &new_chain
    {
        step.put(true, &verdicts, &[verdict(chain)]);
    }
    Ok(step)
}

impl Step {
    fn put(&mut self, add: bool, set: &str, entries: &[Entry]) {
        if !entries.is_empty() {
            self.messages.push(change(add, set, entries));
            self.elements += entries.len();
        }
    }
}

pub(crate) fn name(frontend: &Frontend) -> String {
    format!("service {:?} {} port {}", frontend.protocol, frontend.address, frontend.port)
}

fn slots(service: Option<&Service>) -> &[Backend] {
    service.map(Service::slots).unwrap_or_default()
}

fn chain(family: Family, service: &Service) -> String {
    match service.slots().len() {
        0 => NO_ENDPOINT_CHAIN.to_owned(),
        slots => slot_chain_name(family, service.affinity(), slots),
    }
}

fn slot(frontend: &[u8], index: usize, backend: &Backend) -> Entry {
    let mut key = frontend.to_vec();
    key.extend_from_slice(&u32::try_from(index).unwrap_or(u32::MAX).to_ne_bytes());
    let mut bytes = octets(backend.address);
    bytes.extend_from_slice(&backend.port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    Entry { key, end: false, value: Some(Value::Bytes(bytes)) }
}

/// The services that verdicts and slots of one family stand for; none if they do not fit together as we make them.
pub(crate) fn read(family: Family, verdicts: &[Entry], slots: &[Entry]) -> Option<BTreeMap<Frontend, Service>> {
    let length = if family == Family::Ipv4 { 4 } else { 16 };
    let mut found: BTreeMap<Frontend, BTreeMap<u32, Backend>> = BTreeMap::new();
    for slot in slots {
        let frontend = read_destination(&slot.key, family)?;
        let index = read_u32(&slot.key, length + 8)?;
        let Some(Value::Bytes(bytes)) = &slot.value else { return None };
        let backend = Backend { address: address(bytes.get(..length)?)?, port: read_be16(bytes, length)? };
        found.entry(frontend).or_default().insert(index, backend);
    }
    let mut services = BTreeMap::new();
    for verdict in verdicts {
        let frontend = read_destination(&verdict.key, family)?;
        let Some(Value::Goto(chain)) = &verdict.value else { return None };
        let slots = found.remove(&frontend).unwrap_or_default();
        let affinity = [Affinity::None, Affinity::ClientAddress].into_iter().find(|affinity| {
            let named = if slots.is_empty() {
                NO_ENDPOINT_CHAIN.to_owned()
            } else {
                slot_chain_name(family, *affinity, slots.len())
            };
            *chain == named
        })?;
        let complete = slots.len() <= MOST_SLOTS && slots.keys().copied().eq(0..u32::try_from(slots.len()).ok()?);
        let service = Service::new(slots.into_values().collect(), affinity).ok()?;
        if !complete {
            return None;
        }
        services.insert(frontend, service);
    }
    found.is_empty().then_some(services)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::Protocol;

    fn service(ends: &[u8]) -> Service {
        let slots = ends.iter().map(|last| Backend { address: [10, 0, 0, *last].into(), port: 80 });
        Service::new(slots.collect(), Affinity::None).unwrap()
    }

    #[test]
    fn only_slots_that_differ_are_touched() {
        let frontend = Frontend { address: [10, 9, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
        let mut chains = BTreeSet::new();
        let mut step = |before: Option<&Service>, after: Option<&Service>| {
            set_service(&frontend, before, after, &mut chains).unwrap().elements
        };
        assert_eq!(step(None, Some(&service(&[1, 2, 3]))), 4, "three slots and the verdict");
        assert_eq!(step(Some(&service(&[1, 2, 3])), Some(&service(&[1, 4, 3]))), 2, "one slot out, one in");
        assert_eq!(
            step(Some(&service(&[1, 2, 3])), Some(&service(&[1, 3]))),
            5,
            "the verdict out and in, the last slot out, the second replaced"
        );
        assert_eq!(step(Some(&service(&[1])), None), 2);
    }

    #[test]
    fn an_empty_service_with_affinity_equals_itself() {
        let key = destination_key([10, 9, 0, 1].into(), Protocol::Tcp, 80);
        let verdict = Entry { key, end: false, value: Some(Value::Goto(NO_ENDPOINT_CHAIN.to_owned())) };
        let found = read(Family::Ipv4, &[verdict], &[]).unwrap();
        let wanted = Service::new(Vec::new(), Affinity::ClientAddress).unwrap();
        assert_eq!(found.values().next(), Some(&wanted));
    }

    #[test]
    fn a_slot_that_is_missing_is_noticed() {
        let frontend = destination_key([10, 9, 0, 1].into(), Protocol::Tcp, 80);
        let backend = Backend { address: [10, 0, 0, 1].into(), port: 80 };
        let chain = slot_chain_name(Family::Ipv4, Affinity::None, 2);
        let verdict = Entry { key: frontend.clone(), end: false, value: Some(Value::Goto(chain)) };
        let both = [slot(&frontend, 0, &backend), slot(&frontend, 1, &backend)];
        assert!(read(Family::Ipv4, std::slice::from_ref(&verdict), &both).is_some());
        assert!(read(Family::Ipv4, std::slice::from_ref(&verdict), &both[..1]).is_none());
        assert!(read(Family::Ipv4, &[], &both).is_none(), "slots of no service");
    }
}
