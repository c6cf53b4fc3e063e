//! Two clusters with the same prefix, gateway to gateway: each sees the other under a prefix of its own choice, and
//! neither can use an address that the other made up.

#[path = "simulation/packets.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod packets;
#[path = "simulation/pretend.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod pretend;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::time::Instant;
use api::{ClusterId, TranslatedPrefix};
use gateway_core::packet::{Flow, Packet};
use gateway_core::paths::ROOM_PER_LINK;
use gateway_core::{
    Arena, ExportChange, ExportedEndpoint, Inbound, LaneNumber, OurGateway, Outbound, Outgoing, Paths, PeerCluster,
    PeerGateway, PeerLane, Received, Refusal, RouteTable, Sealed, Standing, Topology, Verdict,
};

use crate::pretend::{PretendLane, public_key};

const NOW: Instant = Instant::from_millis(5);

/// Both clusters' own prefix.
const REAL: &str = "10.1.0.0/16";

/// A gateway that sees the other cluster's [`REAL`] as `10.<16 + other>.0.0/16`.
struct Side {
    paths: Paths,
    sessions: [PretendLane; 1],
    inbound: Inbound,
    outbound: Outbound,
    home: SocketAddr,
}

impl Side {
    fn new(number: u16) -> Self {
        Self::with(number, REAL, &format!("10.{}.0.0/16", 16 + 3 - number), Some(REAL))
    }

    /// `theirs` is the other cluster's prefix as seen here, `real` what it is there when that is another one.
    fn with(number: u16, ours: &str, theirs: &str, real: Option<&str>) -> Self {
        let other = 3 - number;
        let id = |number| ClusterId::new(&format!("cluster-{number}")).unwrap();
        let home = |number| format!("192.0.2.{number}:51820").parse().unwrap();
        let control = |number| format!("fdcc:{number}::1").parse().unwrap();
        let lane = PeerLane {
            public_key: public_key(other.into()),
            next_key: None,
            preshared_key: None,
            configured: [home(other)].into(),
            learned: Vec::new(),
        };
        let seen = theirs.parse().unwrap();
        let translated = |real: &str| TranslatedPrefix { real: real.parse().unwrap(), seen };
        let peer = PeerCluster {
            id: id(other),
            prefixes: vec![seen],
            translations: real.map(translated).into_iter().collect(),
            standing: Standing::Active,
            gateways: vec![PeerGateway { slot: 0, control_address: Some(control(other)), lanes: vec![lane] }],
        };
        let ours = OurGateway {
            cluster: id(number),
            slot: 0,
            lanes: vec![public_key(number.into()).into()],
            control_address: control(number),
            prefixes: vec![ours.parse().unwrap()],
            inner_mtu: 1380,
        };
        let (paths, reconfigured) = Paths::new(Topology { ours, peers: vec![peer] }, 1, NOW);
        assert_eq!(reconfigured.refused, []);
        let mut sessions = [PretendLane::new(LaneNumber(0), &[number.into()])];
        reconfigured.added.iter().for_each(|link| sessions[0].add(link));
        let mut inbound = Inbound::new(LaneNumber(0), 8);
        let (protocol, port) = (packets::TCP, 80);
        inbound.apply(ExportChange::Add(ExportedEndpoint { address: at("10.1.0.7"), protocol, port }));
        Self { paths, sessions, inbound, outbound: Outbound::new(LaneNumber(0), 8), home: home(number) }
    }

    fn table(&self) -> Arc<RouteTable> {
        self.paths.table()
    }

    /// What becomes of a packet of this cluster: datagrams, and answers to its sender.
    fn send(&mut self, packet: &[u8]) -> Result<(Arena<Sealed>, Arena<()>), Refusal> {
        let (mut plain, mut sealed, mut answers) = (Arena::new(4096, 8), Arena::new(4096, 8), Arena::new(4096, 8));
        plain.push(packet, Outgoing::default()).unwrap();
        let table = self.table();
        self.outbound.forward(&table, &self.sessions[0], &mut plain, &mut sealed, &mut answers, NOW);
        match plain.meta(0).and_then(|meta| meta.refused) {
            Some(refusal) if answers.is_empty() => Err(refusal),
            _ => Ok((sealed, answers)),
        }
    }

    /// What comes out of datagrams of the other side, and the replies to them.
    fn receive(&mut self, from: SocketAddr, sealed: &Arena<Sealed>) -> (Vec<(Verdict, Vec<u8>)>, Arena<Sealed>) {
        let (mut datagrams, mut opened, mut replies) = (Arena::new(4096, 8), Arena::new(4096, 8), Arena::new(4096, 8));
        for (bytes, _) in sealed.iter() {
            datagrams.push(bytes, Received::from(from)).unwrap();
        }
        let table = self.table();
        self.inbound.receive(&table, &self.sessions[0], &mut datagrams, &mut opened, &mut replies, NOW);
        (opened.iter().map(|(bytes, meta)| (meta.verdict, bytes.to_vec())).collect(), replies)
    }
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn joined() -> (Side, Side) {
    let (mut amber, mut birch) = (Side::new(1), Side::new(2));
    shake_hands(&mut amber, &mut birch);
    (amber, birch)
}

fn shake_hands(amber: &mut Side, birch: &mut Side) {
    let mut sealed = Arena::new(ROOM_PER_LINK, 8);
    amber.paths.poll(&amber.sessions, &mut sealed, NOW);
    let (_, replies) = birch.receive(amber.home, &sealed);
    let (_, confirmation) = amber.receive(birch.home, &replies);
    birch.receive(amber.home, &confirmation);
}

/// Sends a packet of one side to the other: what comes out there.
fn cross(from: &mut Side, to: &mut Side, packet: &[u8]) -> (Verdict, Vec<u8>) {
    let (sealed, _) = from.send(packet).unwrap();
    let (mut arrived, _) = to.receive(from.home, &sealed);
    arrived.pop().expect("a datagram arrives")
}

fn flow(bytes: &[u8]) -> Flow {
    Packet::parse(bytes).unwrap().flow
}

#[test]
fn a_connection_between_equal_addresses_goes_there_and_back() {
    let (mut amber, mut birch) = joined();
    // Birch is cluster 2, so amber sees it as 10.18.0.0/16; amber is seen there as 10.17.0.0/16.
    let syn = packets::tcp(at("10.1.0.7"), at("10.18.0.7"), 80, 0x02);
    let (verdict, arrived) = cross(&mut amber, &mut birch, &syn);
    assert_eq!(verdict, Verdict::Deliver);
    assert_eq!((flow(&arrived).source, flow(&arrived).destination), (at("10.17.0.7"), at("10.1.0.7")));
    let answer = packets::tcp(at("10.1.0.7"), at("10.17.0.7"), 4000, 0x12);
    let (verdict, arrived) = cross(&mut birch, &mut amber, &answer);
    assert_eq!(verdict, Verdict::Deliver);
    assert_eq!((flow(&arrived).source, flow(&arrived).destination), (at("10.18.0.7"), at("10.1.0.7")));
}

#[test]
fn exports_admit_by_our_own_addresses_and_the_rest_stays_closed() {
    let (mut amber, mut birch) = joined();
    let syn = packets::tcp(at("10.1.0.7"), at("10.18.0.8"), 80, 0x02);
    assert_eq!(cross(&mut amber, &mut birch, &syn).0, Verdict::Refused(Refusal::Unexported));
}

#[test]
fn an_error_quotes_the_packet_as_its_sender_wrote_it() {
    let (mut amber, mut birch) = joined();
    let sent = packets::udp(at("10.1.0.7"), at("10.18.0.9"), 53, b"who?");
    let (_, arrived) = cross(&mut amber, &mut birch, &sent);
    // A router of birch quotes what it saw.
    let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
    message.extend_from_slice(&arrived[..28]);
    let error = packets::ip(at("10.1.0.1"), at("10.17.0.7"), 1, &message);
    let (verdict, arrived) = cross(&mut birch, &mut amber, &error);
    assert_eq!(verdict, Verdict::Deliver);
    assert_eq!(flow(&arrived).source, at("10.18.0.1"));
    assert_eq!(arrived[28 + 12..28 + 20], sent[12..20], "its addresses are as amber's pod knows them");
}

#[test]
fn a_sender_of_too_much_is_told_by_the_address_it_sent_to() {
    let (mut amber, _) = joined();
    let big = packets::udp(at("10.1.0.7"), at("10.18.0.9"), 53, &[0; 1400]);
    let (_, answers) = amber.send(&big).unwrap();
    let answer = answers.bytes(0);
    assert_eq!(flow(answer).source, at("10.18.0.9"));
    assert_eq!(answer[28 + 12..28 + 20], big[12..20]);
}

#[test]
fn a_peer_cannot_use_addresses_that_we_made_up_nor_reach_others_than_ours() {
    // Amber does not translate, and says of itself and of birch what it likes.
    for (own, theirs, source, destination, refusal) in [
        ("10.16.0.0/12", REAL, "10.17.0.7", "10.1.0.7", Refusal::WrongSource),
        ("10.16.0.0/12", REAL, "10.20.0.7", "10.1.0.7", Refusal::WrongSource),
        (REAL, "10.16.0.0/12", "10.1.0.7", "10.17.0.7", Refusal::WrongDestination),
    ] {
        let (mut amber, mut birch) = (Side::with(1, own, theirs, None), Side::new(2));
        shake_hands(&mut amber, &mut birch);
        let packet = packets::tcp(at(source), at(destination), 80, 0x10);
        assert_eq!(cross(&mut amber, &mut birch, &packet).0, Verdict::Refused(refusal), "{source} > {destination}");
    }
}
