//! A DNS client.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::host::Host;

/// The payload that resolvers announce since the DNS flag day of 2020: it fits every path without fragments.
const PAYLOAD: u16 = 1232;

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    /// With EDNS: room for answers of 1232 bytes.
    UdpWithEdns,
    Tcp,
}

/// Asks `server` once, from `host`. The answer is returned whatever its code; silence for `limit` is an error.
pub fn query(
    host: &Host,
    server: SocketAddr,
    name: &str,
    kind: RecordType,
    transport: Transport,
    limit: Duration,
) -> Result<Message> {
    host.run(|| ask(server, name, kind, transport, limit))?.with_context(|| format!("from {}", host.name()))
}

/// As [`query`], from the network namespace of the calling thread.
pub fn ask(server: SocketAddr, name: &str, kind: RecordType, transport: Transport, limit: Duration) -> Result<Message> {
    let answer = exchange(server, &question(name, kind, transport)?, transport, limit)
        .with_context(|| format!("asking {server} for {name} {kind}"))?;
    Message::from_vec(&answer).with_context(|| format!("the answer of {server} is no DNS message"))
}

/// The addresses that an answer has, of both families.
pub fn addresses(answer: &Message) -> Vec<IpAddr> {
    let of = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| of(&record.data)).collect()
}

/// Sends these bytes as one datagram, from `host`, and returns the answer's bytes.
pub fn exchange_datagram(host: &Host, server: SocketAddr, datagram: &[u8], limit: Duration) -> Result<Vec<u8>> {
    host.run(|| exchange(server, datagram, Transport::Udp, limit))?
}

/// A question's bytes, with a number of its own.
pub(super) fn question(name: &str, kind: RecordType, transport: Transport) -> Result<Vec<u8>> {
    /// Tells the questions of one run from each other.
    static IDENTIFIER: AtomicU16 = AtomicU16::new(1);
    let identifier = IDENTIFIER.fetch_add(1, Ordering::Relaxed);
    let mut message = Message::new(identifier, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name)?, kind));
    if transport == Transport::UdpWithEdns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
    }
    Ok(message.to_vec()?)
}

fn exchange(server: SocketAddr, question: &[u8], transport: Transport, limit: Duration) -> Result<Vec<u8>> {
    if transport == Transport::Tcp {
        let mut stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        // RFC 1035 section 4.2.2: a length of two bytes goes before each message.
        let mut framed = u16::try_from(question.len())?.to_be_bytes().to_vec();
        framed.extend_from_slice(question);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        return Ok(answer);
    }
    let from: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(question)?;
    let mut answer = vec![0; u16::MAX.into()];
    let length = socket.recv(&mut answer)?;
    ensure!(answer[..length].get(..2) == question.get(..2), "the answer has another question's number");
    answer.truncate(length);
    Ok(answer)
}
