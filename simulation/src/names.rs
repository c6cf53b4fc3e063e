//! [`Names`]: one DNS server process.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::time::Instant;
use dns::answer::{Transport, answer};
use dns::name::Origin;
use dns::view::{Change as Told, View};
use dns::zone::Zone;
use hickory_proto::op::{Message, ResponseCode};
use store::Event;

use crate::follower::Follower;
use crate::object::{Held, Object};
use crate::objects::Change;
use crate::probing::Askings;

/// The name it has among the agents.
const AGENT: &str = "dns";

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Addresses(BTreeSet<IpAddr>),
    /// There is no such name.
    Denied,
    /// It cannot say: not everything is known yet.
    Failed,
    /// No server runs.
    Nobody,
}

pub(crate) struct Names {
    pub(crate) follower: Follower,
    pub(crate) wakes_at: u64,
    pub(crate) asks_at: u64,
    pub(crate) process: Option<Process>,
    pub(crate) askings: Askings,
}

pub(crate) struct Process {
    pub(crate) view: View,
    zone: Zone,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self {
            follower: Follower::default(),
            wakes_at: u64::MAX,
            asks_at: u64::MAX,
            process: None,
            askings: Askings::new(),
        }
    }

    pub(crate) fn stop(&mut self) {
        self.process = None;
        self.follower.is_connected = false;
        self.wakes_at = u64::MAX;
        self.asks_at = u64::MAX;
    }

    pub(crate) fn start(&mut self, known: Option<Vec<Object>>, now: Instant) {
        self.stop();
        let origin = Origin::new("clusterset.local.").unwrap_or_else(|_| unreachable!("the zone's name is a name"));
        let zone = Zone::unknown(origin, &[IpAddr::from([192, 0, 2, 53])], 1);
        self.process = Some(Process { view: View::new(zone.clone(), AGENT, now), zone });
        if let Some(known) = known {
            self.take_all(&known, now);
        }
    }

    pub(crate) fn take_all(&mut self, all: &[Object], now: Instant) {
        let Some(process) = &mut self.process else { return };
        macro_rules! reset {
            ($($told:ident),+) => { $({
                let of_kind = all.iter().filter_map(Held::of).cloned().collect();
                process.view.apply(Told::$told(Event::Reset(of_kind)), now);
            })+ };
        }
        reset!(Import, Slice, Local, Peer, Gateway, Policy, ClusterPolicy);
        process.publish(now);
    }

    pub(crate) fn take(&mut self, change: &Change, now: Instant) {
        let Some(process) = &mut self.process else { return };
        macro_rules! told {
            ($event:ident, $object:expr) => {
                match $object.clone() {
                    Object::ServiceImport(object) => Told::Import(Event::$event(*object)),
                    Object::EndpointSlice(object) => Told::Slice(Event::$event(*object)),
                    Object::LocalCluster(object) => Told::Local(Event::$event(*object)),
                    Object::ClusterPeer(object) => Told::Peer(Event::$event(*object)),
                    Object::TunnelGateway(object) => Told::Gateway(Event::$event(*object)),
                    Object::RoutingPolicy(object) => Told::Policy(Event::$event(*object)),
                    Object::ClusterRoutingPolicy(object) => Told::ClusterPolicy(Event::$event(*object)),
                    _ => return,
                }
            };
        }
        let told = match change {
            Change::Applied(object) => told!(Applied, object),
            Change::Deleted(object) => told!(Deleted, object),
        };
        process.view.apply(told, now);
        process.publish(now);
    }

    /// The addresses of a name below `svc.clusterset.local`.
    pub(crate) fn ask(&self, name: &str, ipv6: bool) -> Answer {
        let Some(process) = &self.process else { return Answer::Nobody };
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').chain(["svc", "clusterset", "local"]) {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, if ipv6 { 28 } else { 1 }, 0, 1]);
        let mut out = Vec::new();
        answer(&process.zone, &query, Transport::Tcp, 0, &mut out);
        let Ok(message) = Message::from_vec(&out) else { return Answer::Failed };
        match message.metadata.response_code {
            ResponseCode::NoError => {
                let addresses = message.answers.iter().filter_map(|record| record.data.ip_addr());
                Answer::Addresses(addresses.collect())
            }
            ResponseCode::NXDomain => Answer::Denied,
            _ => Answer::Failed,
        }
    }
}

impl Process {
    pub(crate) fn publish(&mut self, now: Instant) {
        if let Some(zone) = self.view.publish(now) {
            self.zone = zone;
        }
    }
}
