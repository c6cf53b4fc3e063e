//! Closed until exported, as sentences.

use std::net::IpAddr;

use api::Prefix;
use gateway_core::packet::Packet;
use gateway_core::{ExportChange, ExportedEndpoint, Refusal};

use crate::packets::{icmp, ip, tcp, udp};
use crate::world::{AMBER, BIRCH, World, pod};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn addresses(ipv6: bool) -> (IpAddr, IpAddr) {
    (pod(AMBER, ipv6), pod(BIRCH, ipv6))
}

fn export(address: IpAddr, protocol: u8, port: u16) -> ExportChange {
    ExportChange::Add(ExportedEndpoint { address, protocol, port })
}

fn refused(world: &mut World, reason: Refusal) -> u64 {
    let lanes = &world.gateway(BIRCH).lanes;
    lanes.iter().map(|lane| lane.inbound.refusals().count(reason)).sum()
}

#[test]
fn new_connections_and_pings_to_what_is_not_exported_are_refused_and_counted() {
    let mut world = World::joined(1);
    for ipv6 in [false, true] {
        let (from, to) = addresses(ipv6);
        let echo = if ipv6 { 128 } else { 8 };
        assert!(!world.passes(AMBER, BIRCH, &tcp(from, to, 80, SYN)));
        assert!(!world.passes(AMBER, BIRCH, &icmp(from, to, echo)));
    }
    assert_eq!(refused(&mut world, Refusal::Unexported), 4);
    let records = world.gateway(BIRCH).lanes[0].inbound.refusals().records().to_vec();
    let record = records.iter().find(|record| record.flow.is_some_and(|flow| flow.destination_port == 80)).unwrap();
    assert_eq!((record.reason, record.flow.unwrap().source), (Refusal::Unexported, pod(AMBER, false)));
    assert!(record.link.is_some() && record.from.is_some());
}

#[test]
fn an_export_opens_its_port_and_pings_and_its_removal_closes_them_again() {
    let mut world = World::joined(2);
    for ipv6 in [false, true] {
        let (from, to) = addresses(ipv6);
        let echo = icmp(from, to, if ipv6 { 128 } else { 8 });
        world.gateway(BIRCH).export(export(to, 6, 80));
        assert!(world.passes(AMBER, BIRCH, &tcp(from, to, 80, SYN)));
        assert!(world.passes(AMBER, BIRCH, &echo));
        assert!(!world.passes(AMBER, BIRCH, &tcp(from, to, 81, SYN)), "another port stays closed");
        world.gateway(BIRCH).export(ExportChange::Remove(ExportedEndpoint { address: to, protocol: 6, port: 80 }));
        assert!(!world.passes(AMBER, BIRCH, &tcp(from, to, 80, SYN)));
        assert!(!world.passes(AMBER, BIRCH, &echo));
    }
}

#[test]
fn an_sctp_association_needs_an_export_for_sctp() {
    let mut world = World::joined(3);
    let (from, to) = addresses(false);
    let mut init = vec![0u8; 32];
    init[..4].copy_from_slice(&[0x0f, 0xa0, 0, 80]);
    init[12] = 1;
    let init = ip(from, to, 132, &init);
    world.gateway(BIRCH).export(export(to, 6, 80));
    assert!(!world.passes(AMBER, BIRCH, &init));
    world.gateway(BIRCH).export(export(to, 132, 80));
    assert!(world.passes(AMBER, BIRCH, &init));
}

#[test]
fn what_belongs_to_a_connection_passes_for_the_gateway_holds_no_state() {
    let mut world = World::joined(4);
    for ipv6 in [false, true] {
        let (from, to) = addresses(ipv6);
        assert!(world.passes(AMBER, BIRCH, &tcp(from, to, 40000, ACK)));
        assert!(world.passes(AMBER, BIRCH, &tcp(from, to, 40000, SYN | ACK)));
        assert!(world.passes(AMBER, BIRCH, &udp(from, to, 53, &[])), "the endpoint's node judges UDP");
        assert!(world.passes(AMBER, BIRCH, &icmp(from, to, if ipv6 { 1 } else { 3 })), "errors keep path MTU alive");
    }
}

#[test]
fn later_fragments_pass_and_first_ones_are_judged() {
    let mut world = World::joined(5);
    let (from, to) = addresses(false);
    let mut first = tcp(from, to, 80, SYN);
    first[6] = 0x20;
    assert!(!world.passes(AMBER, BIRCH, &first));
    let mut later = tcp(from, to, 80, SYN);
    (later[6], later[7]) = (0, 100);
    assert!(world.passes(AMBER, BIRCH, &later));
}

#[test]
fn neighbours_messages_and_strange_protocols_are_refused_by_name() {
    let mut world = World::joined(6);
    let (from, to) = addresses(false);
    assert!(!world.passes(AMBER, BIRCH, &icmp(from, to, 5)), "a redirect");
    assert!(!world.passes(AMBER, BIRCH, &ip(from, to, 47, &[0; 8])), "GRE");
    let (from6, to6) = addresses(true);
    assert!(!world.passes(AMBER, BIRCH, &icmp(from6, to6, 136)), "a neighbour advertisement");
    assert_eq!(refused(&mut world, Refusal::ForbiddenIcmp), 2);
    assert_eq!(refused(&mut world, Refusal::UnsupportedProtocol), 1);
}

#[test]
fn open_reachability_lets_everything_in_but_what_only_neighbours_may_say() {
    let mut world = World::joined(7);
    world.gateway(BIRCH).export(ExportChange::SetOpen(true));
    for ipv6 in [false, true] {
        let (from, to) = addresses(ipv6);
        assert!(world.passes(AMBER, BIRCH, &tcp(from, to, 80, SYN)));
        assert!(world.passes(AMBER, BIRCH, &ip(from, to, 47, &[0; 8])));
        assert!(!world.passes(AMBER, BIRCH, &icmp(from, to, if ipv6 { 137 } else { 5 })));
    }
}

#[test]
fn a_gateways_control_address_takes_the_relay_and_pings_from_gateways_alone() {
    let mut world = World::joined(8);
    let control = |number: u8| -> IpAddr { format!("fdcc:{number}::1").parse().unwrap() };
    let (ours, theirs) = (control(1), control(2));
    assert!(world.passes(AMBER, BIRCH, &tcp(ours, theirs, 7444, SYN)));
    assert!(world.passes(AMBER, BIRCH, &tcp(ours, theirs, 50000, ACK)), "answers to what birch dialled");
    assert!(world.passes(AMBER, BIRCH, &icmp(ours, theirs, 128)));
    assert!(!world.passes(AMBER, BIRCH, &tcp(ours, theirs, 22, SYN)));
    assert!(!world.passes(AMBER, BIRCH, &udp(ours, theirs, 53, &[])));
    assert!(!world.passes(AMBER, BIRCH, &tcp(pod(AMBER, true), theirs, 7444, SYN)), "a pod is not a gateway");
    assert!(!world.passes(AMBER, BIRCH, &tcp(ours, pod(BIRCH, true), 80, ACK)), "nor a gateway a client");
    assert!(world.passes(AMBER, BIRCH, &icmp(ours, pod(BIRCH, true), 2)), "but it may say that a packet was too big");
    assert!(refused(&mut world, Refusal::ControlRefused) >= 4);
}

#[test]
fn packets_for_a_third_cluster_are_not_passed_on() {
    let mut world = World::joined(9);
    let now = world.time_at(AMBER);
    let third: IpAddr = "10.3.0.5".parse().unwrap();
    let packet = udp(pod(AMBER, false), third, 53, &[]);
    let links: Vec<_> = world.gateway(AMBER).paths.links().map(|link| (link.id, link.cluster.clone())).collect();
    let (link, _) = links.into_iter().find(|(_, cluster)| cluster.as_str() == "birch").unwrap();
    let leaving = world.gateway(AMBER).seal_unchecked(link, &packet, now);
    let now = world.time_at(BIRCH);
    let batch: Vec<_> =
        leaving.into_iter().map(|leaving| ("192.0.2.1:51820".parse().unwrap(), leaving.bytes)).collect();
    assert_eq!(batch.len(), 1);
    world.gateway(BIRCH).receive(0, &batch, now);
    assert!(world.gateway(BIRCH).delivered.is_empty());
    assert_eq!(refused(&mut world, Refusal::WrongDestination), 1);
}

#[test]
fn whatever_a_peer_makes_up_only_packets_from_its_addresses_to_ours_come_out() {
    let mut world = World::joined(10);
    let now = world.time_at(AMBER);
    let link = world.gateway(AMBER).paths.links().find(|link| link.cluster.as_str() == "birch").unwrap().id;
    let (from, to) = addresses(false);
    let (from6, to6) = addresses(true);
    let seeds =
        [tcp(from, to, 80, ACK), udp(from6, to6, 53, &[0; 64]), icmp(from6, to6, 129), tcp(from6, to6, 80, ACK)];
    let mut delivered = 0;
    for round in 0..4000 {
        let mut packet = seeds[round % seeds.len()].clone();
        for _ in 0..world.random.below(6) {
            let position = world.random.below(packet.len() as u64) as usize;
            packet[position] = world.random.next() as u8;
        }
        let len = packet.len() as u64;
        if world.random.permille(100) {
            packet.truncate(world.random.below(len) as usize);
        }
        let leaving = world.gateway(AMBER).seal_unchecked(link, &packet, now);
        let batch: Vec<_> =
            leaving.into_iter().map(|leaving| ("192.0.2.1:51820".parse().unwrap(), leaving.bytes)).collect();
        let there = world.time_at(BIRCH);
        world.gateway(BIRCH).receive(0, &batch, there);
        for bytes in std::mem::take(&mut world.gateway(BIRCH).delivered) {
            let flow = Packet::parse(&bytes).unwrap().flow;
            let prefix = |text: &str| text.parse::<Prefix>().unwrap();
            assert!([prefix("10.1.0.0/16"), prefix("fd00:1::/32")].iter().any(|amber| amber.contains(flow.source)));
            assert!(
                [prefix("10.2.0.0/16"), prefix("fd00:2::/32")].iter().any(|birch| birch.contains(flow.destination))
            );
            delivered += 1;
        }
    }
    assert!((500..4000).contains(&delivered), "some were good and some were not: {delivered}");
}
