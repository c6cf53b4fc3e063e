//! Promises of [`Outbound`](super::Outbound): which link a packet takes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::SocketAddr;

use api::ClusterId;
use api::keys::TunnelKey;

use super::*;
use crate::route_table::Rank;
use crate::session::OpenBatch;
use crate::topology::{OurGateway, PeerCluster, PeerGateway, PeerLane, Standing, Topology};

/// Seals by copying; has keys, or not.
struct Copying(bool);

impl Session for Copying {
    fn is_established(&self, _: Instant) -> bool {
        self.0
    }
    fn seal_batch(&self, batch: SealBatch<'_>, _: Instant) -> usize {
        let about = Sealed { lane: batch.lane, to: batch.to, link: Some(batch.link), whole: false };
        let seal = |index: &&u32| batch.sealed.push(batch.plain.bytes(**index as usize), about).is_ok();
        batch.chosen.iter().take_while(seal).count()
    }
    fn open_batch(&self, _: OpenBatch<'_>, _: Instant) {}
    fn initiate(&self, _: SocketAddr, _: &mut Arena<Sealed>, _: Instant) {}
    fn tick(&self, _: SocketAddr, _: &mut Arena<Sealed>, _: Instant) {}
    fn last_handshake(&self) -> Option<Instant> {
        None
    }
}

struct Lane(BTreeMap<LinkId, Copying>);

impl Sessions for Lane {
    type Session = Copying;
    fn session(&self, link: LinkId) -> Option<&Copying> {
        self.0.get(&link)
    }
    fn handshake(&self, _: &[u8], _: SocketAddr, _: &mut Arena<Sealed>, _: Instant) -> Result<Option<LinkId>, Refusal> {
        Err(Refusal::UnknownPeer)
    }
}

const NOW: Instant = Instant::from_millis(1);

fn id(number: u32) -> LinkId {
    LinkId::new(number).unwrap()
}

/// amber with one lane, joined to two gateways of birch by links 0 and 1, and to cedar by link 2.
struct World {
    links: Vec<LinkRoute>,
    lane: Lane,
    outbound: Outbound,
    room: usize,
}

impl World {
    fn new() -> Self {
        let link = |number: u32, cluster, slot| LinkRoute {
            id: id(number),
            lane: LaneNumber(0),
            cluster,
            slot,
            endpoint: Some(SocketAddr::new([192, 0, 2, number as u8].into(), 51820)),
            mtu: 1380,
            is_too_narrow: false,
            rank: Rank::Up,
        };
        let links = [link(0, 0, 0), link(1, 0, 1), link(2, 1, 0)].to_vec();
        let lane = Lane((0..3).map(|number| (id(number), Copying(true))).collect());
        Self { links, lane, outbound: Outbound::new(LaneNumber(0), 64), room: 1 << 16 }
    }

    fn table(&self) -> RouteTable {
        let peer = |name: &str, number: u8, slots: u16| PeerCluster {
            id: ClusterId::new(name).unwrap(),
            prefixes: [alloc::format!("10.{number}.0.0/16").parse().unwrap()].into(),
            translations: Vec::new(),
            standing: Standing::Active,
            gateways: (0..slots)
                .map(|slot| PeerGateway {
                    slot,
                    control_address: alloc::format!("fdcc:{number}::{}", slot + 1).parse().ok(),
                    lanes: [PeerLane {
                        public_key: TunnelKey([number; 32]),
                        next_key: None,
                        preshared_key: None,
                        configured: Vec::new(),
                        learned: Vec::new(),
                    }]
                    .into(),
                })
                .collect(),
        };
        let ours = OurGateway {
            cluster: ClusterId::new("amber").unwrap(),
            slot: 0,
            lanes: [TunnelKey([1; 32]).into()].into(),
            control_address: "fdcc:1::1".parse().unwrap(),
            prefixes: ["10.1.0.0/16".parse().unwrap()].into(),
            inner_mtu: 1380,
        };
        RouteTable::new(&Topology { ours, peers: [peer("birch", 2, 2), peer("cedar", 3, 1)].into() }, &self.links)
    }

    /// Where each packet went, or why it did not.
    fn forward(&mut self, packets: &[Vec<u8>]) -> Vec<Result<u32, Refusal>> {
        let table = self.table();
        let mut plain = Arena::new(1 << 16, 64);
        for packet in packets {
            plain.push(packet, Outgoing::default()).unwrap();
        }
        let (mut sealed, mut answers) = (Arena::new(self.room, 64), Arena::new(1 << 16, 64));
        self.outbound.forward(&table, &self.lane, &mut plain, &mut sealed, &mut answers, NOW);
        let links: Vec<_> = sealed.iter().map(|(_, meta)| meta.link).collect();
        assert!(links.is_sorted(), "datagrams to one place lie together");
        plain.iter().map(|(_, meta)| meta.refused.map_or_else(|| Ok(meta.link.unwrap().number()), Err)).collect()
    }
}

fn udp(source: &str, destination: &str, port: u16) -> Vec<u8> {
    let mut bytes = alloc::vec![0u8; 28];
    bytes[0] = 0x45;
    bytes[3] = 28;
    bytes[9] = 17;
    bytes[12..16].copy_from_slice(&source.parse::<core::net::Ipv4Addr>().unwrap().octets());
    bytes[16..20].copy_from_slice(&destination.parse::<core::net::Ipv4Addr>().unwrap().octets());
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes
}

fn to_birch() -> Vec<Vec<u8>> {
    (0..64).map(|port| udp("10.1.0.5", "10.2.0.7", port)).collect()
}

#[test]
fn flows_are_spread_over_all_gateways_of_a_cluster_and_each_keeps_its_own() {
    let mut world = World::new();
    let first = world.forward(&to_birch());
    let on_first = first.iter().filter(|link| **link == Ok(0)).count();
    assert!((16..=48).contains(&on_first), "{on_first} of 64");
    assert!(first.iter().all(|link| matches!(link, Ok(0 | 1))));
    assert_eq!(world.forward(&to_birch()), first);
}

#[test]
fn a_gateway_that_is_down_draining_or_unproven_is_passed_over_while_another_is_up() {
    for rank in [Rank::Down, Rank::Draining, Rank::Unknown, Rank::Fresh] {
        let mut world = World::new();
        world.links[0].rank = rank;
        assert!(world.forward(&to_birch()).iter().all(|link| *link == Ok(1)), "{rank:?}");
        world.lane.0.insert(id(1), Copying(false));
        assert!(world.forward(&to_birch()).iter().all(|link| *link == Ok(0)), "{rank:?} is better than no keys");
    }
}

#[test]
fn a_control_address_is_reached_by_its_own_gateway_alone() {
    let table = World::new().table();
    let links = |address: &str| table.route(address.parse().unwrap(), LaneNumber(0)).unwrap().1.to_vec();
    assert_eq!(links("fdcc:2::1"), [id(0)]);
    assert_eq!(links("fdcc:2::2"), [id(1)]);
    assert_eq!(links("10.2.9.9"), [id(0), id(1)]);
    assert_eq!(links("10.1.0.1"), [], "our own");
}

#[test]
fn every_packet_that_cannot_go_is_refused_by_its_own_name() {
    let mut world = World::new();
    world.links[2].endpoint = None;
    let told = world.forward(&[
        udp("10.1.0.5", "10.9.0.1", 1),
        udp("10.7.0.5", "10.2.0.7", 1),
        udp("10.1.0.5", "10.3.0.7", 1),
        udp("10.1.0.5", "224.0.0.251", 1),
        alloc::vec![0; 3],
        udp("10.1.0.5", "10.1.0.6", 1),
    ]);
    let names: Vec<_> = told.iter().map(|told| told.unwrap_err().name()).collect();
    assert_eq!(names, ["NoRoute", "ForeignSource", "NoEndpoint", "NeighbourTraffic", "MalformedPacket", "NoRoute"]);
    world.lane.0.clear();
    assert_eq!(world.forward(&[udp("10.1.0.5", "10.2.0.7", 1)]), [Err(Refusal::NoSession)]);
    assert_eq!(world.outbound.refusals().total(), 7);
}

#[test]
fn a_batch_that_does_not_fit_is_refused_from_where_it_is_full() {
    let mut world = World::new();
    world.room = 28 * 10;
    let told = world.forward(&to_birch());
    assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 10);
    assert!(told.iter().filter_map(|told| told.err()).all(|refusal| refusal == Refusal::NoRoom));
}

#[test]
fn fragments_of_a_datagram_take_one_way_whatever_their_ports_seem_to_be() {
    let mut world = World::new();
    let fragments: Vec<Vec<u8>> = (0..64)
        .map(|port| {
            let mut bytes = udp("10.1.0.5", "10.2.0.7", port);
            (bytes[6], bytes[7]) = if port == 0 { (0x20, 0) } else { (0, port as u8) };
            bytes
        })
        .collect();
    let ways: BTreeSet<_> = world.forward(&fragments).into_iter().map(Result::unwrap).collect();
    assert_eq!(ways.len(), 1);
}
