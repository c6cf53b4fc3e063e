//! Changes of the table in transactions: all of one is in force at once, or nothing of it.

use std::collections::BTreeSet;

use kernel_core::Change;

use super::element::{change, entries};
use super::skeleton::Names;
use super::slots::{Step, name, set_service};
use super::{kind, message, observe, skeleton};
use crate::Error;
use crate::message::{Message, flag};
use crate::socket::{Refusal, Socket};

/// Elements one transaction may add and remove. In a user namespace the socket's buffer cannot be forced, and 8,000
/// elements do not fit; 2,000 leave room for the longest (an IPv6 slot).
const MOST_ELEMENTS: usize = 2_000;
/// A transaction the kernel refused is tried again without the changes it named, so often.
const MOST_TRIES: usize = 5;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Family unspecified, and in the last two bytes the subsystem the batch is for, in network order.
const BATCH_FIXED: [u8; 4] = [0, 0, 0, 10];

/// A change that was refused, by its place in the list given.
pub(crate) type Failed = (usize, Error);

/// Applies changes of the table. Those refused are left out and returned; all others are in force.
pub(crate) fn apply(socket: &mut Socket, chains: &mut BTreeSet<String>, changes: &[(usize, &Change)]) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut rest = changes;
    while !rest.is_empty() {
        let taken = apply_some(socket, chains, rest, &mut failed);
        rest = &rest[taken..];
    }
    failed
}

/// Applies as many as fit into one transaction; returns how many were dealt with.
fn apply_some(
    socket: &mut Socket,
    chains: &mut BTreeSet<String>,
    changes: &[(usize, &Change)],
    failed: &mut Vec<Failed>,
) -> usize {
    let mut left_out: BTreeSet<usize> = BTreeSet::new();
    let mut taken = changes.len();
    for _ in 0..MOST_TRIES {
        // Chains made in a transaction that fails are not there.
        let mut known = chains.clone();
        let (mut batch, mut elements, mut size) = (Vec::new(), 0, 0);
        let mut removed = false;
        for (place, (_, change)) in changes.iter().enumerate().take(taken) {
            if left_out.contains(&place) {
                continue;
            }
            let step = match steps(socket, change, &mut known, &mut removed) {
                Ok(step) => step,
                Err(error) => {
                    left_out.insert(place);
                    failed.push((changes[place].0, error));
                    continue;
                }
            };
            let length: usize = step.messages.iter().map(Message::len).sum();
            if !batch.is_empty() && (elements + step.elements > MOST_ELEMENTS || size + length > socket.room()) {
                taken = place;
                break;
            }
            elements += step.elements;
            size += length;
            batch.extend(step.messages.into_iter().map(|message| (place, message)));
        }
        if batch.is_empty() {
            return taken;
        }
        match send(socket, batch) {
            Ok(refusals) if refusals.is_empty() => {
                *chains = known;
                return taken;
            }
            Ok(refusals) => {
                for (place, refusal) in refusals {
                    // Refusals of the whole are said once, at the first message.
                    let places = place.map_or(0..taken, |place| place..place + 1);
                    for place in places {
                        if left_out.insert(place) {
                            let Refusal { errno, said, .. } = refusal.clone();
                            let object = object(changes[place].1);
                            failed.push((changes[place].0, Error::Refused { object, errno, said }));
                        }
                    }
                }
            }
            Err(error) => {
                fail_rest(changes, taken, &mut left_out, failed, &error);
                return taken;
            }
        }
    }
    let error = Error::Netlink(format!("a transaction was refused {MOST_TRIES} times, each time for another reason"));
    fail_rest(changes, taken, &mut left_out, failed, &error);
    taken
}

fn fail_rest(
    changes: &[(usize, &Change)],
    taken: usize,
    left_out: &mut BTreeSet<usize>,
    failed: &mut Vec<Failed>,
    error: &Error,
) {
    for (place, (index, change)) in changes.iter().enumerate().take(taken) {
        if left_out.insert(place) {
            failed.push((*index, error.clone().of(object(change))));
        }
    }
}

/// Sends one transaction; returns for each refusal the place of its change, or none when it is of the whole.
fn send(socket: &mut Socket, batch: Vec<(usize, Message)>) -> Result<Vec<(Option<usize>, Refusal)>, Error> {
    let mut bytes = Message::new(BATCH_BEGIN, 0, &BATCH_FIXED).numbered(socket.next_sequence());
    let mut places = std::collections::BTreeMap::new();
    let last = batch.len() - 1;
    let mut sequence = 0;
    for (number, (place, mut message)) in batch.into_iter().enumerate() {
        sequence = socket.next_sequence();
        places.insert(sequence, place);
        if number == last {
            message.put_flags(flag::ACK);
        }
        bytes.extend_from_slice(&message.numbered(sequence));
    }
    bytes.extend_from_slice(&Message::new(BATCH_END, 0, &BATCH_FIXED).numbered(socket.next_sequence()));
    let refusals = socket.transact(&bytes, sequence)?;
    Ok(refusals.into_iter().map(|refusal| (places.get(&refusal.sequence).copied(), refusal)).collect())
}

/// `removed` says whether the same transaction takes the table away before: then nothing is there.
fn steps(
    socket: &mut Socket,
    wanted: &Change,
    chains: &mut BTreeSet<String>,
    removed: &mut bool,
) -> Result<Step, Error> {
    let one = |messages| Step { messages, elements: 0 };
    Ok(match wanted {
        Change::SetTable(table) => {
            let there = if *removed { Names::default() } else { observe::names(socket)? };
            one(skeleton::set(table, &there))
        }
        Change::RemoveTable => {
            *removed = true;
            chains.clear();
            one(vec![message(kind::DELETE_TABLE, 0)])
        }
        Change::AddElement(element) => {
            let (set, entries) = entries(element);
            Step { messages: vec![change(true, &set, &entries)], elements: entries.len() }
        }
        Change::RemoveElement(element) => {
            let (set, entries) = entries(element);
            Step { messages: vec![change(false, &set, &entries)], elements: entries.len() }
        }
        Change::SetService { frontend, before, after } => {
            set_service(frontend, before.as_ref(), after.as_ref(), chains)?
        }
        _ => Step::default(),
    })
}

/// What a change of the table is about, for errors.
fn object(change: &Change) -> String {
    match change {
        Change::SetTable(_) | Change::RemoveTable => "table inet tombolo".into(),
        Change::AddElement(element) | Change::RemoveElement(element) => format!("set element {element:?}"),
        Change::SetService { frontend, .. } => name(frontend),
        _ => "table inet tombolo".into(),
    }
}

/// One transaction of messages made by a test, all of which must be taken.
#[cfg(test)]
pub(crate) fn send_all(socket: &mut Socket, messages: Vec<Message>) {
    let refusals = send(socket, messages.into_iter().map(|message| (0, message)).collect()).expect("an answer");
    assert!(refusals.is_empty(), "{refusals:?}");
}
