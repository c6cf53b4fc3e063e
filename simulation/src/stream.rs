//! [`End`]: one end of a control connection: as much of TCP as it takes to bring bytes over a network that loses,
//! doubles and disorders packets, and to notice that the other end is gone.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::segment::{ACK, PSH, RST, SYN, Segment};

/// Payload of one segment: fits the smallest inner packet IPv6 allows.
const PIECE: usize = 1100;
/// Bytes under way at once.
const WINDOW: usize = 64 * PIECE;
/// The relay's limits (gateway/src/relay/dialler.rs), in microseconds: to connect, to stay unanswered, to stay silent.
const CONNECT_LIMIT: u64 = 3_000_000;
const SILENCE_LIMIT: u64 = 5_000_000;
const KEEPALIVE_AFTER: u64 = 2_000_000;
const KEEPALIVE_EVERY: u64 = 1_000_000;
/// Between repetitions, first and longest.
const FIRST_PAUSE: u64 = 200_000;
const LONGEST_PAUSE: u64 = 2_000_000;

/// Times are microseconds of the world.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) own: SocketAddr,
    pub(crate) other: SocketAddr,
    pub(crate) is_open: bool,
    pub(crate) broken: Option<&'static str>,
    /// What was sent and is not acknowledged, or waits to be sent; it begins at byte `base`.
    waiting: VecDeque<u8>,
    base: u32,
    under_way: usize,
    expected: u32,
    /// What came, in order.
    pub(crate) received: Vec<u8>,
    /// Packets to send now.
    pub(crate) packets: Vec<Vec<u8>>,
    repeat_at: Option<u64>,
    pause: u64,
    /// Since when nothing that was sent is acknowledged; the start, while it is not open.
    unanswered_since: Option<u64>,
    heard: u64,
    asked: u64,
}

impl End {
    /// Calls the other end.
    pub(crate) fn dial(own: SocketAddr, other: SocketAddr, now: u64) -> Self {
        let mut end = Self::new(own, other, now);
        end.unanswered_since = Some(now);
        end.repeat_at = Some(now + FIRST_PAUSE);
        end.say(SYN, 0, &[]);
        end
    }

    /// Answers a call.
    pub(crate) fn accept(own: SocketAddr, other: SocketAddr, now: u64) -> Self {
        let mut end = Self::new(own, other, now);
        end.is_open = true;
        end.say(SYN | ACK, 0, &[]);
        end
    }

    fn new(own: SocketAddr, other: SocketAddr, now: u64) -> Self {
        Self {
            own,
            other,
            is_open: false,
            broken: None,
            waiting: VecDeque::new(),
            base: 0,
            under_way: 0,
            expected: 0,
            received: Vec::new(),
            packets: Vec::new(),
            repeat_at: None,
            pause: FIRST_PAUSE,
            unanswered_since: None,
            heard: now,
            asked: now,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8], now: u64) {
        self.waiting.extend(bytes);
        self.push(now);
    }

    pub(crate) fn receive(&mut self, segment: Segment, payload: &[u8], now: u64) {
        self.heard = now;
        if segment.has(RST) {
            self.broken = Some("the other end knows nothing of it");
            return;
        }
        if segment.has(SYN) {
            if segment.has(ACK) && !self.is_open {
                self.is_open = true;
                self.settled();
                self.push(now);
            } else if self.is_open && !segment.has(ACK) {
                // Our answer was lost.
                self.say(SYN | ACK, 0, &[]);
            }
            return;
        }
        let newly = segment.acknowledged.wrapping_sub(self.base) as usize;
        if newly > 0 && newly <= self.under_way {
            self.waiting.drain(..newly);
            self.base = segment.acknowledged;
            self.under_way -= newly;
            self.settled();
            self.push(now);
        }
        if !payload.is_empty() {
            if segment.sequence == self.expected {
                self.received.extend_from_slice(payload);
                self.expected = self.expected.wrapping_add(payload.len() as u32);
            }
            self.say(ACK, self.base, &[]);
        } else if segment.has(PSH) {
            self.say(ACK, self.base, &[]);
        }
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: u64) {
        if !self.is_open {
            if self.unanswered_since.is_some_and(|since| now >= since + CONNECT_LIMIT) {
                self.broken = Some("nobody answered the call");
            } else if self.repeat_at.is_some_and(|at| now >= at) {
                self.repeat_at = Some(now + KEEPALIVE_EVERY);
                self.say(SYN, 0, &[]);
            }
            return;
        }
        if self.unanswered_since.is_some_and(|since| now >= since + SILENCE_LIMIT)
            || now >= self.heard + KEEPALIVE_AFTER + SILENCE_LIMIT
        {
            self.broken = Some("nothing was heard of the other end");
            return;
        }
        if self.repeat_at.is_some_and(|at| now >= at) {
            self.under_way = 0;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.repeat_at = None;
            self.push(now);
        } else if now >= self.heard + KEEPALIVE_AFTER && now >= self.asked + KEEPALIVE_EVERY {
            self.asked = now;
            self.say(ACK | PSH, self.base, &[]);
        }
    }

    fn settled(&mut self) {
        self.pause = FIRST_PAUSE;
        self.repeat_at = None;
        self.unanswered_since = None;
    }

    /// Sends what fits the window.
    fn push(&mut self, now: u64) {
        if !self.is_open {
            return;
        }
        while self.under_way < self.waiting.len().min(WINDOW) {
            let piece: Vec<u8> = self.waiting.iter().skip(self.under_way).take(PIECE).copied().collect();
            self.say(ACK, self.base.wrapping_add(self.under_way as u32), &piece);
            self.under_way += piece.len();
        }
        if self.under_way > 0 && self.repeat_at.is_none() {
            self.repeat_at = Some(now + self.pause);
            self.unanswered_since.get_or_insert(now);
        }
    }

    fn say(&mut self, flags: u8, sequence: u32, payload: &[u8]) {
        let segment = Segment { flags, sequence, acknowledged: self.expected };
        self.packets.push(segment.packet(self.own, self.other, payload));
    }
}

/// The answer to a segment of a connection that is not there.
pub(crate) fn reset(own: SocketAddr, other: SocketAddr) -> Vec<u8> {
    Segment { flags: RST, sequence: 0, acknowledged: 0 }.packet(own, other, &[])
}
