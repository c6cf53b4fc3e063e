//! What of our table is in the kernel.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kernel_core::ruleset::counted_cluster;
use kernel_core::table::{Chain, Hook, NAME, Rule, SetShape, SetValue, Table};
use kernel_core::{Family, Frontend, Refusal, Service, Sets};
use nix::errno::Errno;

use super::element::{self, Entry, Value};
use super::skeleton::{
    CHAIN_HOOK, CHAIN_KIND, CHAIN_NAME, COUNTER, HOOK_POINT, HOOK_PRIORITY, INTERVALS, MAP, Names, OBJECT_DATA,
    OBJECT_KIND, OBJECT_NAME, RULE_CHAIN, RULE_USER_DATA, SET_DATA_LENGTH, SET_DATA_TYPE, SET_FLAGS, SET_KEY_LENGTH,
    SET_NAME, VERDICTS, chain_kind, point, read_tag,
};
use super::slots::{self, is_slot_chain};
use super::{FIXED, TABLE_NAME, expression, kind, message};
use crate::Error;
use crate::counter::{Counted, Counter};
use crate::message::{attributes, attributes_after, find, read_be32, read_be64, text};
use crate::socket::Socket;

/// A set of 100,000 elements is rearranged in some 10 ms; on a busy machine the kernel's thread waits for its turn.
const REARRANGED_TRIES: usize = 50;
const REARRANGED_PAUSE: Duration = Duration::from_millis(10);

/// Table, elements and services, and the slot chains that exist.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) table: Option<Table>,
    pub(crate) sets: Sets,
    pub(crate) services: BTreeMap<Frontend, Service>,
    pub(crate) slot_chains: Vec<String>,
}

pub(crate) fn observe(socket: &mut Socket) -> Result<Observed, Error> {
    let mut observed = Observed::default();
    if !exists(socket)? {
        return Ok(observed);
    }
    let mut table =
        Table { sets: sets(socket)?, counters: counters(socket)?.into_keys().collect(), ..Table::default() };
    for (name, hook) in chains(socket)? {
        if is_slot_chain(&name) {
            observed.slot_chains.push(name);
        } else {
            table.chains.insert(name, Chain { hook, rules: Vec::new() });
        }
    }
    for (chain, rule) in rules(socket)? {
        if let Some(chain) = table.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    let mut contents: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for name in table.sets.keys() {
        contents.insert(name.clone(), elements(socket, name)?);
    }
    for (family, suffix) in [(Family::Ipv4, "4"), (Family::Ipv6, "6")] {
        let mut take = |stem: &str| contents.remove(&format!("{stem}{suffix}")).unwrap_or_default();
        match slots::read(family, &take("services"), &take("slots")) {
            Some(services) => observed.services.extend(services),
            None => spoil(&mut table, &format!("slots{suffix}")),
        }
    }
    for (name, entries) in contents {
        let family = if name.ends_with('6') { Family::Ipv6 } else { Family::Ipv4 };
        if !element::read(name.trim_end_matches(['4', '6']), family, entries, &mut observed.sets) {
            spoil(&mut table, &name);
        }
    }
    observed.table = Some(table);
    Ok(observed)
}

/// Somebody put into a set what we never put there. The set is shown with a shape that fits no table of ours, so that
/// the difference makes the table anew.
fn spoil(table: &mut Table, set: &str) {
    tracing::warn!(set, "a set of table inet tombolo holds what we did not put there; the table is made anew");
    if let Some(shape) = table.sets.get_mut(set) {
        shape.key = 0;
    }
}

/// Names of what is in the table; none when there is no table.
pub(crate) fn names(socket: &mut Socket) -> Result<Names, Error> {
    if !exists(socket)? {
        return Ok(Names::default());
    }
    Ok(Names {
        chains: chains(socket)?.into_keys().collect(),
        sets: sets(socket)?.into_keys().collect(),
        counters: counters(socket)?.into_keys().collect(),
    })
}

pub(crate) fn exists(socket: &mut Socket) -> Result<bool, Error> {
    match socket.get(message(kind::GET_TABLE, 0), |_| Some(())) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.of("table inet tombolo")),
    }
}

/// All counters of the table, by name.
pub(crate) fn counters(socket: &mut Socket) -> Result<BTreeMap<String, Counter>, Error> {
    let mut message = message(kind::GET_OBJECT, 0);
    message.put_be32(OBJECT_KIND, COUNTER);
    let list = socket.dump(&message, |received| {
        let fields = Fields::of_our_table(received.payload)?;
        let data = fields.get(OBJECT_DATA)?;
        let (bytes, packets) = (read_be64(find(data, 1)?)?, read_be64(find(data, 2)?)?);
        Some((fields.text(OBJECT_NAME)?, Counter { packets, bytes }))
    });
    Ok(none_if_absent(list)?.into_iter().collect())
}

/// All counters of the table, by what they count.
pub(crate) fn counted(socket: &mut Socket) -> Result<Counted, Error> {
    let mut counted = Counted::default();
    for (name, counter) in counters(socket)? {
        if let Some(refusal) = Refusal::from_name(&name) {
            counted.refused.insert(refusal, counter);
        } else if let Some(cluster) = counted_cluster(&name) {
            counted.connections.insert(cluster.to_owned(), counter.packets);
        }
    }
    Ok(counted)
}

fn chains(socket: &mut Socket) -> Result<BTreeMap<String, Option<Hook>>, Error> {
    let list = socket.dump(&message(kind::GET_CHAIN, 0), |received| {
        let fields = Fields::of_our_table(received.payload)?;
        let hook = fields.get(CHAIN_HOOK).and_then(|hook| {
            Some(Hook {
                kind: chain_kind(&fields.text(CHAIN_KIND)?)?,
                point: point(read_be32(find(hook, HOOK_POINT)?, 0)?)?,
                priority: read_be32(find(hook, HOOK_PRIORITY)?, 0)?.cast_signed(),
            })
        });
        Some((fields.text(CHAIN_NAME)?, hook))
    });
    Ok(none_if_absent(list)?.into_iter().collect())
}

fn rules(socket: &mut Socket) -> Result<Vec<(String, Rule)>, Error> {
    let list = socket.dump(&message(kind::GET_RULE, 0), |received| {
        let fields = Fields::of_our_table(received.payload)?;
        // A rule without a tag is not ours: the tag of no rule, so that its chain is put right.
        let tag = fields.get(RULE_USER_DATA).and_then(read_tag).unwrap_or(0);
        Some((fields.text(RULE_CHAIN)?, Rule::observed(tag)))
    });
    none_if_absent(list)
}

fn sets(socket: &mut Socket) -> Result<BTreeMap<String, SetShape>, Error> {
    let list = socket.dump(&message(kind::GET_SET, 0), |received| {
        let fields = Fields::of_our_table(received.payload)?;
        let flags = fields.number(SET_FLAGS).unwrap_or(0);
        let value = match fields.number(SET_DATA_TYPE) {
            _ if flags & MAP == 0 => SetValue::Nothing,
            Some(VERDICTS) => SetValue::Verdict,
            _ => SetValue::Bytes(fields.number(SET_DATA_LENGTH)?),
        };
        let shape = SetShape { key: fields.number(SET_KEY_LENGTH)?, value, interval: flags & INTERVALS != 0 };
        Some((fields.text(SET_NAME)?, shape))
    });
    Ok(none_if_absent(list)?.into_iter().collect())
}

/// The kernel's own thread moves the elements of a set that grew to a larger hash table, some milliseconds after the
/// transaction. A list read meanwhile has as many elements as the set, but some of them twice and others not at all,
/// and does not say so.
fn elements(socket: &mut Socket, set: &str) -> Result<Vec<Entry>, Error> {
    for _ in 0..REARRANGED_TRIES {
        let found = list_elements(socket, set)?;
        let different: HashSet<(&[u8], bool)> = found.iter().map(|entry| (&entry.key[..], entry.end)).collect();
        if different.len() == found.len() {
            return Ok(found);
        }
        std::thread::sleep(REARRANGED_PAUSE);
    }
    tracing::warn!(set, "a set of table inet tombolo was being rearranged each time it was read");
    list_elements(socket, set)
}

fn list_elements(socket: &mut Socket, set: &str) -> Result<Vec<Entry>, Error> {
    let mut message = message(kind::GET_ELEMENT, 0);
    message.put_text(element::LIST_SET, set);
    let list = socket.dump(&message, |received| {
        let list = Fields::of_our_table(received.payload)?.get(element::LIST_ELEMENTS)?;
        Some(attributes(list).filter_map(|(_, element)| read_entry(element)).collect::<Vec<_>>())
    });
    Ok(none_if_absent(list)?.into_iter().flatten().collect())
}

pub(crate) fn read_entry(element: &[u8]) -> Option<Entry> {
    let (mut key, mut end, mut value) = (None, false, None);
    for (kind, bytes) in attributes(element) {
        match kind {
            element::KEY => key = expression::read_value(bytes),
            element::FLAGS => end = read_be32(bytes, 0)? & element::INTERVAL_END != 0,
            element::DATA => {
                value = match (expression::read_goto(bytes), expression::read_value(bytes)) {
                    (Some(chain), _) => Some(Value::Goto(chain.to_owned())),
                    (None, Some(bytes)) => Some(Value::Bytes(bytes.to_vec())),
                    (None, None) => None,
                }
            }
            _ => {}
        }
    }
    Some(Entry { key: key?.to_vec(), end, value })
}

/// Attributes of one thing in our table.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// None when it belongs to another table: some lists are of all tables of the family.
    fn of_our_table(payload: &'a [u8]) -> Option<Self> {
        let named = attributes_after(payload, FIXED).find(|(kind, _)| *kind == TABLE_NAME);
        (named.and_then(|(_, name)| text(name)) == Some(NAME)).then_some(Self(payload.get(FIXED..)?))
    }
    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        find(self.0, kind)
    }
    fn text(&self, kind: u16) -> Option<String> {
        self.get(kind).and_then(text).map(str::to_owned)
    }
    fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind).and_then(|value| read_be32(value, 0))
    }
}

fn none_if_absent<T>(list: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match list {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
        other => other.map_err(|error| error.of("table inet tombolo")),
    }
}
