//! Packets cost no allocation: counted, in both directions, once everything is warm.

#[path = "simulation/packets.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod packets;
#[path = "simulation/pretend.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod pretend;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use api::time::Instant;
use api::{ClusterId, TranslatedPrefix};
use gateway_core::{
    Arena, Inbound, LaneNumber, Opened, OurGateway, Outbound, Outgoing, Paths, PeerCluster, PeerGateway, PeerLane,
    Received, RouteTable, Sealed, Standing, Topology, Verdict,
};

use crate::pretend::{PretendLane, public_key};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator that counts is the only way to count allocations")]
// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System.alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const BATCH: usize = 128;

struct Side {
    paths: Paths,
    sessions: [PretendLane; 1],
    inbound: Inbound,
    outbound: Outbound,
}

impl Side {
    fn new(number: u16, now: Instant) -> Self {
        let other = 3 - number;
        let gateway = PeerGateway {
            slot: 0,
            control_address: format!("fdcc:{other}::1").parse().ok(),
            lanes: [PeerLane {
                public_key: public_key(other.into()),
                next_key: None,
                preshared_key: None,
                configured: [address(other)].into(),
                learned: Vec::new(),
            }]
            .into(),
        };
        let prefixes = |number| [format!("10.{number}.0.0/16").parse().unwrap()].into();
        // Every packet is translated on its way out, and on its way in.
        let translation = TranslatedPrefix {
            real: format!("10.{other}.0.0/16").parse().unwrap(),
            seen: format!("10.{}.0.0/16", 30 + other).parse().unwrap(),
        };
        let id = |number| ClusterId::new(&format!("cluster-{number}")).unwrap();
        let topology = Topology {
            ours: OurGateway {
                cluster: id(number),
                slot: 0,
                lanes: vec![public_key(number.into()).into()],
                control_address: format!("fdcc:{number}::1").parse().unwrap(),
                prefixes: prefixes(number),
                inner_mtu: 1380,
            },
            peers: [PeerCluster {
                id: id(other),
                prefixes: vec![translation.seen],
                translations: vec![translation],
                standing: Standing::Active,
                gateways: [gateway].into(),
            }]
            .into(),
        };
        let (paths, reconfigured) = Paths::new(topology, 1, now);
        let mut sessions = [PretendLane::new(LaneNumber(0), &[number.into()])];
        reconfigured.added.iter().for_each(|link| sessions[0].add(link));
        let (inbound, outbound) = (Inbound::new(LaneNumber(0), BATCH), Outbound::new(LaneNumber(0), BATCH));
        Self { paths, sessions, inbound, outbound }
    }

    fn table(&mut self) -> std::sync::Arc<RouteTable> {
        self.paths.take_table_change();
        self.paths.table()
    }
}

fn address(number: u16) -> SocketAddr {
    format!("192.0.2.{number}:51820").parse().unwrap()
}

fn move_over(from: SocketAddr, sealed: &Arena<Sealed>, datagrams: &mut Arena<Received>) {
    datagrams.clear();
    for (bytes, _) in sealed.iter() {
        datagrams.push(bytes, Received::from(from)).unwrap();
    }
}

#[test]
fn packets_and_refusals_cost_no_allocation_in_either_direction() {
    let now = Instant::from_millis(5);
    let (mut left, mut right) = (Side::new(1, now), Side::new(2, now));
    let mut plain: Arena<Outgoing> = Arena::new(1 << 18, BATCH);
    let mut sealed: Arena<Sealed> = Arena::new(1 << 18, 2 * BATCH);
    let mut datagrams: Arena<Received> = Arena::new(1 << 18, BATCH);
    let mut opened: Arena<Opened> = Arena::new(1 << 18, BATCH);
    let mut replies: Arena<Sealed> = Arena::new(1 << 16, BATCH);
    let mut answers: Arena<()> = Arena::new(1 << 16, BATCH);

    // One handshake: left asks, right answers, left confirms.
    left.paths.poll(&left.sessions, &mut sealed, now);
    let (left_table, right_table) = (left.table(), right.table());
    move_over(address(1), &sealed, &mut datagrams);
    right.inbound.receive(&right_table, &right.sessions[0], &mut datagrams, &mut opened, &mut replies, now);
    move_over(address(2), &replies, &mut datagrams);
    replies.clear();
    left.inbound.receive(&left_table, &left.sessions[0], &mut datagrams, &mut opened, &mut replies, now);
    move_over(address(1), &replies, &mut datagrams);
    opened.clear();
    right.inbound.receive(&right_table, &right.sessions[0], &mut datagrams, &mut opened, &mut replies, now);

    // Good ones, forbidden ones, and noise, over and over.
    let pods: [IpAddr; 2] = ["10.1.0.5", "10.32.0.5"].map(|address| address.parse().unwrap());
    let batch: Vec<Vec<u8>> = (0..100u16)
        .map(|number| match number % 5 {
            0 => packets::tcp(pods[0], pods[1], number, 0x02),
            1 => packets::udp(pods[0], "10.9.0.1".parse().unwrap(), number, &[0; 100]),
            2 => packets::udp(pods[0], pods[1], number, &[0; 1400]),
            3 => vec![0x45; 10],
            _ => packets::udp(pods[0], pods[1], number, &[0; 1000]),
        })
        .collect();
    let (home, stranger) = (address(1), address(9));
    let mut delivered = 0;
    let mut round = |count: &mut usize| {
        plain.clear();
        sealed.clear();
        answers.clear();
        for packet in &batch {
            plain.push(packet, Outgoing::default()).unwrap();
        }
        left.outbound.forward(&left_table, &left.sessions[0], &mut plain, &mut sealed, &mut answers, now);
        move_over(home, &sealed, &mut datagrams);
        datagrams.push(&[7; 60], Received::from(stranger)).unwrap();
        opened.clear();
        replies.clear();
        right.inbound.receive(&right_table, &right.sessions[0], &mut datagrams, &mut opened, &mut replies, now);
        *count += opened.iter().filter(|(_, meta)| meta.verdict == Verdict::Deliver).count();
    };
    round(&mut delivered);
    assert_eq!(delivered, 20, "the batch has 20 packets that may pass");
    let counted = allocations(|| (0..50).for_each(|_| round(&mut delivered)));
    assert_eq!((counted, delivered), (0, 51 * 20));
}
