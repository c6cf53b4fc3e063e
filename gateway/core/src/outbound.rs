//! [`Outbound`]: packets of our own cluster on their way into the tunnels.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use api::time::Instant;

use crate::arena::Arena;
use crate::link::{LaneNumber, LinkId};
use crate::packet::Packet;
use crate::packet_too_big;
use crate::refusal::Refusal;
use crate::refusal_log::RefusalLog;
use crate::route_table::{LinkRoute, Owner, RouteTable};
use crate::session::{SealBatch, Sealed, Session, Sessions};

/// One answer in this time, so that a sender who does not listen cannot make us answer at line rate.
const ANSWER_EVERY: Duration = Duration::from_millis(10);
/// Answers that may come at once: as many senders as may start within a second, each needing one.
const ANSWER_BURST: u32 = 100;

/// About a packet read from the TUN device. The caller writes the default; [`Outbound`] writes what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    pub link: Option<LinkId>,
    pub refused: Option<Refusal>,
}

/// Owned by a lane's TUN → UDP thread.
#[derive(Debug)]
pub struct Outbound {
    lane: LaneNumber,
    /// Positions in the batch, grouped by link. Kept between batches for its memory.
    order: Vec<u32>,
    refusals: RefusalLog,
    answers_left: u32,
    answers_counted: Instant,
    forwarded: Traffic,
}

/// What went through, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Outbound {
    /// `batch` is the most packets one call will get; more is right too, and costs an allocation once.
    pub fn new(lane: LaneNumber, batch: usize) -> Self {
        Self {
            lane,
            order: Vec::with_capacity(batch),
            refusals: RefusalLog::default(),
            answers_left: ANSWER_BURST,
            answers_counted: Instant::default(),
            forwarded: Traffic::default(),
        }
    }

    /// Seals a batch. Every packet of `plain` ends up in `sealed`, or has its `refused` written; `answers` gets what the
    /// TUN device should tell their senders.
    pub fn forward<S: Sessions + ?Sized>(
        &mut self,
        table: &RouteTable,
        sessions: &S,
        plain: &mut Arena<Outgoing>,
        sealed: &mut Arena<Sealed>,
        answers: &mut Arena<()>,
        now: Instant,
    ) {
        self.order.clear();
        for index in 0..plain.len() {
            match self.choose(table, sessions, plain.bytes(index), answers, now) {
                Ok((link, packet)) => {
                    plain.truncate(index, packet.len);
                    if let Some(translation) = table.translation(link) {
                        translation.rewrite_outbound(&packet, plain.bytes_mut(index));
                    }
                    if let Some(meta) = plain.meta_mut(index) {
                        *meta = Outgoing { link: Some(link), refused: None };
                    }
                    self.order.push(index as u32);
                }
                Err(refusal) => self.refuse(plain, index, refusal, now),
            }
        }
        let link_of = |plain: &Arena<Outgoing>, index: u32| plain.meta(index as usize).and_then(|meta| meta.link);
        // The position as the second key keeps each link's packets in order without a stable sort's memory.
        self.order.sort_unstable_by_key(|index| (link_of(plain, *index), *index));
        let mut from = 0;
        while let Some(first) = self.order.get(from) {
            let link = link_of(plain, *first);
            let same = self.order.iter().skip(from).take_while(|index| link_of(plain, **index) == link).count();
            let to = from + same;
            self.seal(table, sessions, plain, sealed, (from, to), now);
            from = to;
        }
    }

    /// What was refused here.
    pub fn refusals(&self) -> &RefusalLog {
        &self.refusals
    }

    pub fn forwarded(&self) -> Traffic {
        self.forwarded
    }

    /// The link for one packet, and what was read of it.
    fn choose<S: Sessions + ?Sized>(
        &mut self,
        table: &RouteTable,
        sessions: &S,
        bytes: &[u8],
        answers: &mut Arena<()>,
        now: Instant,
    ) -> Result<(LinkId, Packet), Refusal> {
        let packet = Packet::parse(bytes)?;
        if is_neighbour_traffic(packet.flow.destination) {
            return Err(Refusal::NeighbourTraffic);
        }
        let (owner, links) = table.route(packet.flow.destination, self.lane).ok_or(Refusal::NoRoute)?;
        if matches!(owner, Owner::Ours | Owner::OurControl) {
            return Err(Refusal::NoRoute);
        }
        if !matches!(table.owner(packet.flow.source), Some(Owner::Ours | Owner::OurControl)) {
            return Err(Refusal::ForeignSource);
        }
        let link = pick(table, sessions, links, packet.spread(), now)?;
        if packet.len > usize::from(link.mtu) {
            return Err(self.answer_too_big(&packet, bytes, link.mtu, answers, now));
        }
        Ok((link.id, packet))
    }

    fn answer_too_big(
        &mut self,
        packet: &Packet,
        bytes: &[u8],
        mtu: u16,
        answers: &mut Arena<()>,
        now: Instant,
    ) -> Refusal {
        let earned = now.since(self.answers_counted).as_micros() / ANSWER_EVERY.as_micros();
        if earned > 0 {
            self.answers_left = (self.answers_left.saturating_add(earned as u32)).min(ANSWER_BURST);
            self.answers_counted = now;
        }
        if self.answers_left == 0 {
            return Refusal::TooBigUnanswered;
        }
        let written = packet_too_big::write(packet, bytes, mtu, answers.room());
        match written.map(|len| answers.commit(len, ())) {
            Some(Ok(())) => {
                self.answers_left -= 1;
                Refusal::TooBig
            }
            _ => Refusal::TooBigUnanswered,
        }
    }

    fn seal<S: Sessions + ?Sized>(
        &mut self,
        table: &RouteTable,
        sessions: &S,
        plain: &mut Arena<Outgoing>,
        sealed: &mut Arena<Sealed>,
        (from, to): (usize, usize),
        now: Instant,
    ) {
        let chosen = self.order.get(from..to).unwrap_or_default();
        let first = chosen.first().and_then(|index| plain.meta(*index as usize));
        let Some(link) = first.and_then(|meta| meta.link).and_then(|link| table.link(link)) else { return };
        let done = match (sessions.session(link.id), link.endpoint) {
            (Some(session), Some(to)) => {
                let batch = SealBatch { plain, chosen, lane: self.lane, link: link.id, to, sealed };
                session.seal_batch(batch, now).min(chosen.len())
            }
            _ => 0,
        };
        for index in chosen.iter().take(done) {
            self.forwarded.packets += 1;
            self.forwarded.bytes += plain.bytes(*index as usize).len() as u64;
        }
        let reason = if sealed.room().is_empty() { Refusal::NoRoom } else { Refusal::NoSession };
        for position in from + done..to {
            if let Some(index) = self.order.get(position).copied() {
                self.refuse(plain, index as usize, reason, now);
            }
        }
    }

    fn refuse(&mut self, plain: &mut Arena<Outgoing>, index: usize, refusal: Refusal, now: Instant) {
        let flow = Packet::parse(plain.bytes(index)).ok().map(|packet| packet.flow);
        if let Some(meta) = plain.meta_mut(index) {
            meta.refused = Some(refusal);
            self.refusals.record(refusal, meta.link, None, flow, now);
        }
    }
}

/// Of the links with a session, one of the best rank; which one, the flow's digest says.
fn pick<'a, S: Sessions + ?Sized>(
    table: &'a RouteTable,
    sessions: &S,
    links: &[LinkId],
    spread: u64,
    now: Instant,
) -> Result<&'a LinkRoute, Refusal> {
    let ready = |link: &&LinkRoute| {
        link.endpoint.is_some() && sessions.session(link.id).is_some_and(|session| session.is_established(now))
    };
    let usable = || links.iter().filter_map(|link| table.link(*link)).filter(ready);
    let Some(best) = usable().next() else {
        let any_endpoint = links.iter().filter_map(|link| table.link(*link)).any(|link| link.endpoint.is_some());
        return Err(if any_endpoint || links.is_empty() { Refusal::NoSession } else { Refusal::NoEndpoint });
    };
    let equals = || usable().take_while(|link| link.rank == best.rank);
    let count = equals().count() as u64;
    // The upper bits of a product are the better mixed ones.
    let chosen = ((spread >> 32) * count) >> 32;
    equals().nth(chosen as usize).ok_or(Refusal::NoSession)
}

fn is_neighbour_traffic(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
