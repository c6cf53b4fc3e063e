use std::time::Duration;

use gateway_core::Sealed;
use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;

const PIECE: usize = 2_048;

fn sockets() -> (Sockets, [SocketAddr; 2]) {
    // Port 0 gives each family a port of its own, which the kernel knows.
    let sockets = Sockets::open(0).unwrap();
    let port = |socket: &Option<Socket>| socket.as_ref().unwrap().local_addr().unwrap().as_socket().unwrap().port();
    let addresses = [
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&sockets.v4)),
        SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&sockets.v6)),
    ];
    (sockets, addresses)
}

/// Receives until `count` datagrams came; ten seconds at most.
fn receive(sockets: &Sockets, count: usize) -> (Vec<Vec<u8>>, Vec<Asked>, u64) {
    let mut receiver = Receiver::new(PIECE);
    let (mut bytes, mut all_asked, mut oversized) = (Vec::new(), Vec::new(), 0);
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let descriptors: Vec<_> = sockets.descriptors().collect();
    for _ in 0..count + 1 {
        let mut arena = Arena::new(PIECE * 2 * BATCH, 2 * BATCH);
        let mut asked = Vec::new();
        oversized += receiver.receive(sockets, &mut arena, &mut asked).unwrap();
        bytes.extend(arena.iter().map(|(bytes, _)| bytes.to_vec()));
        all_asked.extend(asked);
        if bytes.len() + oversized as usize >= count {
            return (bytes, all_asked, oversized);
        }
        let limit = PollTimeout::try_from(Duration::from_secs(10)).unwrap();
        crate::packet_loops::wait(&descriptors, &wake, limit).unwrap();
    }
    panic!("{} of {count} datagrams came", bytes.len());
}

#[test]
fn a_batch_of_both_families_arrives_whole_and_says_which_address_was_asked() {
    let ((from, _), (to, [v4, v6])) = (sockets(), sockets());
    let mut batch: Arena<Sealed> = Arena::new(PIECE * BATCH, BATCH);
    for number in 0..40u8 {
        let lane = gateway_core::LaneNumber(0);
        let about = Sealed { lane, to: if number % 8 < 4 { v4 } else { v6 }, link: None, whole: false };
        batch.push(&vec![number; 100 + usize::from(number)], about).unwrap();
    }
    let sent = Sender::new()
        .send(&from, batch.len(), |index| Departure::uncut(batch.bytes(index), batch.meta(index).unwrap().to, None));
    assert_eq!(sent, Sent { datagrams: 40, failed: 0 });
    let (mut bytes, asked, oversized) = receive(&to, 40);
    bytes.sort();
    let wanted: Vec<_> = (0..40u8).map(|number| vec![number; 100 + usize::from(number)]).collect();
    assert_eq!((bytes, oversized), (wanted, 0));
    for asked in asked {
        let local: IpAddr = if asked.from.is_ipv4() { v4.ip() } else { v6.ip() };
        assert_eq!(asked.local, Some(local));
    }
}

#[test]
fn answers_leave_from_the_address_that_was_asked() {
    let ((from, _), (to, [v4, _])) = (sockets(), sockets());
    let another: IpAddr = [127, 0, 0, 9].into();
    Sender::new().send(&from, 1, |_| Departure::uncut(b"from nine", v4, Some(another)));
    let (bytes, asked, _) = receive(&to, 1);
    assert_eq!((bytes, asked[0].from.ip()), (vec![b"from nine".to_vec()], another));
}

#[test]
fn a_datagram_for_a_path_that_is_too_narrow_arrives_whether_this_host_may_cut_it_or_not() {
    let ((from, _), (to, [v4, v6])) = (sockets(), sockets());
    let (long, short) = (vec![7; PIECE], vec![8; 100]);
    for to_be_sent in [v4, v6] {
        let contents = [&short, &long, &long, &short];
        let sent = Sender::new().send(&from, 4, |index| Departure {
            is_too_narrow: true,
            ..Departure::uncut(contents[index], to_be_sent, None)
        });
        assert_eq!(sent, Sent { datagrams: 4, failed: 0 });
        assert_eq!(receive(&to, 4).0, contents.map(Clone::clone));
    }
}

#[test]
fn an_address_that_is_gone_is_no_reason_not_to_send() {
    let ((from, _), (to, [v4, _])) = (sockets(), sockets());
    // For documentation (RFC 5737): no host has it.
    let gone: IpAddr = [192, 0, 2, 77].into();
    let sent = Sender::new().send(&from, 1, |_| Departure::uncut(b"still here", v4, Some(gone)));
    assert_eq!(sent, Sent { datagrams: 1, failed: 0 });
    assert_eq!(receive(&to, 1).0, [b"still here"]);
}

#[test]
fn a_datagram_that_cannot_be_sent_is_counted_and_the_others_go_on() {
    let ((from, _), (to, [v4, _])) = (sockets(), sockets());
    // Port 0 is nowhere.
    let targets = [v4, SocketAddr::new(v4.ip(), 0), v4];
    let sent =
        Sender::new().send(&from, targets.len(), |index| Departure::uncut(b"one of three", targets[index], None));
    assert_eq!(sent, Sent { datagrams: 2, failed: 1 });
    assert_eq!(receive(&to, 2).0.len(), 2);
}

#[test]
fn a_datagram_longer_than_any_of_ours_is_dropped_and_counted() {
    let ((from, _), (to, [v4, _])) = (sockets(), sockets());
    let contents = [vec![1; PIECE + 1], vec![2; PIECE]];
    Sender::new().send(&from, 2, |index| Departure::uncut(contents[index].as_slice(), v4, None));
    let (bytes, _, oversized) = receive(&to, 2);
    assert_eq!((bytes, oversized), (vec![vec![2; PIECE]], 1));
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let taken = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    taken.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0).into()).unwrap();
    let port = taken.local_addr().unwrap().as_socket().unwrap().port();
    let error = Sockets::open(port).err().unwrap();
    assert!(format!("{error:#}").contains("spec.gateways.port"), "{error:#}");
}
