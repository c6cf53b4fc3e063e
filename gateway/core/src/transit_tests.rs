use alloc::format;

use api::keys::TunnelKey;
use proptest::prelude::*;

use super::*;
use crate::topology::{OurGateway, PeerCluster, PeerGateway, Standing};

const NAMES: [&str; 5] = ["amber", "birch", "cedar", "dogwood", "elm"];

fn id(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

fn address(cluster: usize) -> Ipv6Addr {
    format!("fd7b::{:x}", cluster + 1).parse().unwrap()
}

fn end(cluster: usize) -> End {
    End { gateway: address(cluster), lane: LaneNumber(0) }
}

/// One of the five, which knows all others.
fn transit(of: usize, between: &[&[usize]], hubs: &[(usize, &[usize])]) -> Transit {
    let peer = |number: usize| PeerCluster {
        id: id(NAMES[number]),
        prefixes: Vec::new(),
        translations: Vec::new(),
        standing: Standing::Active,
        gateways: alloc::vec![PeerGateway { slot: 0, control_address: Some(address(number)), lanes: Vec::new() }],
    };
    let topology = Topology {
        ours: OurGateway {
            cluster: id(NAMES[of]),
            slot: 0,
            lanes: alloc::vec![TunnelKey([1; 32]).into()],
            control_address: address(of),
            prefixes: Vec::new(),
            inner_mtu: 1420,
        },
        peers: (0..NAMES.len()).filter(|number| *number != of).map(peer).collect(),
    };
    let names = |numbers: &[usize]| numbers.iter().map(|number| id(NAMES[*number])).collect::<Vec<_>>();
    let between = between.iter().map(|group| names(group).into_iter().collect()).collect();
    Transit::new(&topology, between, hubs.iter().map(|(peer, hubs)| (id(NAMES[*peer]), names(hubs))).collect())
}

fn frame(from: usize, to: usize) -> Frame<'static> {
    Frame { hubs_left: MOST_HUBS, source: end(from), destination: end(to), datagram: b"sealed" }
}

fn direct(to: &[usize]) -> BTreeSet<Ipv6Addr> {
    to.iter().map(|number| address(*number)).collect()
}

#[test]
fn a_hub_passes_on_between_the_clusters_it_is_told_and_no_others() {
    let hub = transit(1, &[&[0, 2]], &[]);
    let on = Passage::On { to: address(2), hubs_left: MOST_HUBS - 1 };
    assert_eq!(hub.judge(address(0), &frame(0, 2), &direct(&[0, 2])), Ok(on));
    assert_eq!(hub.judge(address(0), &frame(0, 3), &direct(&[0, 3])), Err(Refusal::TransitNotAllowed));
    assert_eq!(hub.judge(address(3), &frame(3, 2), &direct(&[3, 2])), Err(Refusal::TransitNotAllowed));
    let posing = hub.judge(address(3), &frame(0, 2), &direct(&[0, 2]));
    assert_eq!(posing, Err(Refusal::TransitNotAllowed), "who hands it over must be allowed too");
    assert_eq!(transit(1, &[], &[]).judge(address(0), &frame(0, 2), &direct(&[2])), Err(Refusal::TransitNotAllowed));
}

#[test]
fn what_is_for_us_goes_to_its_lane_and_is_answered_by_the_same_hub() {
    let ours = transit(2, &[], &[]);
    let back = Way { hub: address(1), remote: end(0) };
    let arrived = Passage::Arrived { lane: LaneNumber(0), back };
    assert_eq!(ours.judge(address(1), &frame(0, 2), &direct(&[])), Ok(arrived));
    let no_lane = Frame { destination: End { lane: LaneNumber(1), ..end(2) }, ..frame(0, 2) };
    assert_eq!(ours.judge(address(1), &no_lane, &direct(&[])), Err(Refusal::UnknownTransit));
    let stranger = "fd99::1".parse().unwrap();
    assert_eq!(ours.judge(stranger, &frame(0, 2), &direct(&[])), Err(Refusal::UnknownTransit));
    let from_stranger = Frame { source: End { gateway: stranger, ..end(0) }, ..frame(0, 2) };
    assert_eq!(ours.judge(address(1), &from_stranger, &direct(&[])), Err(Refusal::UnknownTransit));
}

#[test]
fn without_a_tunnel_of_its_own_a_hub_asks_the_next_one_and_never_the_one_it_came_from() {
    let hub = transit(1, &[&[0, 2, 3]], &[(2, &[0, 3])]);
    let on = |to| Ok(Passage::On { to: address(to), hubs_left: MOST_HUBS - 1 });
    assert_eq!(hub.judge(address(0), &frame(0, 2), &direct(&[0, 2, 3])), on(2));
    assert_eq!(hub.judge(address(0), &frame(0, 2), &direct(&[0, 3])), on(3));
    assert_eq!(hub.judge(address(0), &frame(0, 2), &direct(&[0])), Err(Refusal::NoTransitPath));
    let tired = Frame { hubs_left: 0, ..frame(0, 2) };
    assert_eq!(hub.judge(address(0), &tired, &direct(&[2])), Err(Refusal::TooManyHubs));
}

#[test]
fn the_ways_to_a_peer_are_the_gateways_of_the_hubs_the_operator_named_in_his_order() {
    let ours = transit(0, &[], &[(2, &[3, 1, 2])]);
    let hubs: Vec<_> = ours.ways(&id("cedar"), end(2)).map(|way| way.hub).collect();
    assert_eq!(hubs, [address(3), address(1)], "a cluster is no hub to itself");
    assert_eq!(ours.ways(&id("birch"), end(1)).count(), 0);
}

/// Each of the five with every policy and every choice of hubs, and any tunnels between them.
fn clusterset() -> impl Strategy<Value = (Vec<Transit>, Vec<BTreeSet<Ipv6Addr>>)> {
    let hubs = proptest::collection::vec(proptest::collection::vec(0..NAMES.len(), 0..4), NAMES.len() * NAMES.len());
    (hubs, proptest::collection::vec(any::<u8>(), NAMES.len())).prop_map(|(hubs, reached)| {
        let all: &[usize] = &[0, 1, 2, 3, 4];
        let of = |number: usize| {
            let own: Vec<_> = (0..NAMES.len()).map(|to| (to, hubs[number * NAMES.len() + to].as_slice())).collect();
            transit(number, &[all], &own)
        };
        let tunnels = reached.iter().map(|bits| {
            let reached: Vec<_> = (0..NAMES.len()).filter(|to| bits & (1 << to) != 0).collect();
            direct(&reached)
        });
        ((0..NAMES.len()).map(of).collect(), tunnels.collect())
    })
}

proptest! {
    #[test]
    fn however_hubs_name_each_other_a_frame_ends_after_the_hubs_it_may_pass(
        (transits, tunnels) in clusterset(), from in 0..NAMES.len(), first in 0..NAMES.len(), to in 0..NAMES.len(),
    ) {
        let (mut sender, mut at, mut hubs_left) = (from, first, MOST_HUBS);
        for passed in 0u8.. {
            let passing = Frame { hubs_left, ..frame(from, to) };
            let judged = transits[at].judge(address(sender), &passing, &tunnels[at]);
            prop_assert!(passed <= MOST_HUBS, "passed {passed} hubs");
            let Ok(Passage::On { to, hubs_left: left }) = judged else { break };
            prop_assert!(left < hubs_left && to != address(sender));
            sender = at;
            at = (0..NAMES.len()).find(|number| address(*number) == to).unwrap();
            hubs_left = left;
        }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written(
        hubs_left: u8, lanes: (u8, u8), addresses: (u128, u128), datagram in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let end = |address: u128, lane| End { gateway: Ipv6Addr::from_bits(address), lane: LaneNumber(lane) };
        let (source, destination) = (end(addresses.0, lanes.0), end(addresses.1, lanes.1));
        let frame = Frame { hubs_left, source, destination, datagram: &datagram };
        let bytes = [frame.header().as_slice(), &datagram].concat();
        prop_assert_eq!(Frame::parse(&bytes), Ok(frame));
    }

    #[test]
    fn any_bytes_are_a_frame_or_refused_as_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        match Frame::parse(&bytes) {
            Ok(frame) => prop_assert_eq!(&frame.header()[..], &bytes[..FRAME_HEADER]),
            Err(refusal) => prop_assert_eq!(refusal, Refusal::MalformedTransit),
        }
    }
}
