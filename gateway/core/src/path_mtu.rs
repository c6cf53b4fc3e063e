//! [`PathMtu`]: the largest packet that reaches the other gateway inside the tunnel, found by trying (RFC 8899).
//!
//! Nothing here listens to ICMP, which many paths lose and anybody can forge. A padded probe is sealed and sent with the
//! prohibition to cut it on the way; its answer, which is small, proves its size. That a size does not pass is concluded
//! only from probes that were lost while small ones came through, and from more of them where small ones get lost too.
//!
//! The names of RFC 8899, 5.2 for what is here: *base* and *error* are [`PathMtu::is_too_narrow`] asked and answered,
//! *search* lasts until no size is left between the largest that passed and the smallest that did not, *search complete*
//! confirms the size every second and tries one byte more every ten.

use core::time::Duration;

use api::time::Instant;

/// The smallest MTU of IPv6 (RFC 8200, section 5), and so of any tunnel of ours: a path that is narrower has our
/// datagrams cut outside (RFC 8899 calls it BASE_PLPMTU).
pub(crate) const LEAST: u16 = 1280;
/// The largest that is tried: sealed, it fits the 9216 bytes that every gateway has room for.
pub(crate) const LARGEST: u16 = 9_168;

/// While all is well, the size in use is proved anew this often: a path that became narrower must be noticed within
/// seconds, and on a path of 9000 bytes this is 72 kbit/s.
pub(crate) const CONFIRM_EVERY: Duration = Duration::from_secs(1);
/// How often a path may be doubted. A peer that comes from ever other addresses, by two uplinks or on purpose, would else
/// draw a large probe with each small packet, and no size would ever be refuted for want of tries in a row.
const DOUBT_EVERY: Duration = Duration::from_secs(10);
/// How often one byte more is tried, which costs three lost probes where nothing changed. RFC 8899 suggests 600 s, for ends
/// that cannot tell a probe from data; ours can.
pub(crate) const RAISE_EVERY: Duration = Duration::from_secs(10);
/// Lost probes of a size before it is believed too large (RFC 8899, 5.1.2: MAX_PROBES).
const TRIES: u32 = 3;
/// The same for a size that passed before: taking it back slows everybody down, and congestion loses large packets first.
const TRIES_TO_TAKE_BACK: u32 = 5;
/// Between these, so that one burst of losses is one loss.
const TAKE_BACK_PACE: Duration = Duration::from_millis(200);
/// However lossy the path: beyond this a second and more would pass before anything is concluded.
const MOST_TRIES: u32 = 20;
/// While nothing small came through since, a lost probe says nothing; one looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the path's small probes say, against which a lost large one is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallProbes {
    pub(crate) up: bool,
    /// When one was last answered.
    pub(crate) answered: Option<Instant>,
    /// How long an answer may take.
    pub(crate) patience: Duration,
    pub(crate) loss_permille: u16,
}

/// A probe to be sent: an inner packet of `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeProbe {
    pub(crate) sequence: u64,
    pub(crate) size: u16,
}

#[derive(Clone, Debug)]
pub(crate) struct PathMtu {
    /// What the operator configured: nothing larger is tried.
    ceiling: u16,
    /// What others are told. Changes when a search ends, and when a size is taken back.
    told: u16,
    /// The largest size that passed.
    proven: Option<u16>,
    /// The smallest size that did not; one more than the ceiling while there is none.
    refuted: u16,
    is_searching: bool,
    /// One byte more is tried before anything larger.
    is_peeking: bool,
    is_measured: bool,
    is_too_narrow: bool,
    /// Since when this is told.
    since: Instant,
    flight: Option<Flight>,
    sequence: u64,
    next: Instant,
    raise_at: Instant,
    doubted: Option<Instant>,
}

/// Probes of one size that are not answered yet.
#[derive(Clone, Copy, Debug)]
struct Flight {
    size: u16,
    first: u64,
    tries: u32,
    sent: Instant,
    due: Instant,
}

impl PathMtu {
    /// `ceiling` is what is told until something was measured.
    pub(crate) fn new(ceiling: u16) -> Self {
        let ceiling = ceiling.clamp(LEAST, LARGEST);
        Self {
            ceiling,
            told: ceiling,
            proven: None,
            refuted: ceiling + 1,
            is_searching: true,
            is_peeking: false,
            is_measured: false,
            is_too_narrow: false,
            since: Instant::default(),
            flight: None,
            sequence: 0,
            next: Instant::default(),
            raise_at: Instant::default(),
            doubted: None,
        }
    }

    /// Takes another upper bound; a new search follows where it is another.
    pub(crate) fn set_ceiling(&mut self, ceiling: u16) {
        if ceiling.clamp(LEAST, LARGEST) != self.ceiling {
            *self = Self { sequence: self.sequence, doubted: self.doubted, ..Self::new(ceiling) };
        }
    }

    /// The largest packet that should be sent, never less than [`LEAST`].
    pub(crate) fn in_force(&self) -> u16 {
        self.told
    }

    /// Since when the size in force is that, by measurement. `None` until a search ended: before, it is an assumption.
    pub(crate) fn measured_since(&self) -> Option<Instant> {
        self.is_measured.then_some(self.since)
    }

    /// Whether even [`LEAST`] does not pass whole.
    pub(crate) fn is_too_narrow(&self) -> bool {
        self.is_too_narrow
    }

    /// When [`poll`](Self::poll) has something to do, while the path is up.
    pub(crate) fn deadline(&self) -> Instant {
        self.flight.map_or(self.next, |flight| flight.due)
    }

    /// The path may be another one: what was proved is asked anew at once, and then more is tried. So soon after the last
    /// time the usual pace must do.
    pub(crate) fn doubt(&mut self, now: Instant) {
        if self.doubted.is_some_and(|at| now.since(at) < DOUBT_EVERY) {
            return;
        }
        self.doubted = Some(now);
        self.flight = None;
        self.next = now;
        self.raise_at = now + CONFIRM_EVERY;
    }

    /// Decides what is due.
    pub(crate) fn poll(&mut self, small: &SmallProbes, now: Instant) -> Option<SizeProbe> {
        if !small.up {
            self.flight = None;
            return None;
        }
        if let Some(flight) = self.flight {
            if now < flight.due {
                return None;
            }
            if small.answered.is_none_or(|at| at <= flight.sent) {
                self.flight = Some(Flight { due: now + LOOK_AGAIN, ..flight });
                return None;
            }
            if flight.tries < self.tries(flight.size, small.loss_permille) {
                return Some(self.send(Flight { tries: flight.tries + 1, ..flight }, small, now));
            }
            self.flight = None;
            self.refute(flight.size, now);
        }
        if now < self.next {
            return None;
        }
        let Some(size) = self.candidate(now) else {
            self.next = self.raise_at.max(now + LOOK_AGAIN);
            return None;
        };
        Some(self.send(Flight { size, first: self.sequence, tries: 1, sent: now, due: now }, small, now))
    }

    /// Takes the answer to a probe: `size` is what arrived there.
    pub(crate) fn answer(&mut self, sequence: u64, size: u16, now: Instant) {
        let Some(flight) = self.flight else { return };
        if flight.size != size || !(flight.first..self.sequence).contains(&sequence) {
            return;
        }
        self.flight = None;
        self.proven = self.proven.max(Some(size));
        if size >= self.refuted {
            self.refuted = self.ceiling + 1;
        }
        self.is_peeking = false;
        self.settle(now);
    }

    fn send(&mut self, flight: Flight, small: &SmallProbes, now: Instant) -> SizeProbe {
        let sequence = self.sequence;
        self.sequence += 1;
        let pace = if self.has_passed(flight.size) { TAKE_BACK_PACE } else { Duration::ZERO };
        self.flight = Some(Flight { sent: now, due: now + small.patience.max(pace), ..flight });
        SizeProbe { sequence, size: flight.size }
    }

    fn has_passed(&self, size: u16) -> bool {
        self.proven.is_some_and(|proven| size <= proven)
    }

    /// So many that chance alone would lose all of them less than once in a million, going by how many small ones are lost.
    fn tries(&self, size: u16, loss_permille: u16) -> u32 {
        let least = if self.has_passed(size) { TRIES_TO_TAKE_BACK } else { TRIES };
        let mut by_chance = 1_000_000u64;
        let mut tries = 0;
        while by_chance > 1 && tries < MOST_TRIES {
            by_chance = by_chance * u64::from(loss_permille.min(1000)) / 1000;
            tries += 1;
        }
        tries.max(least)
    }

    /// The size to try now; `None` while nothing is left to do but to wait for the next raise.
    fn candidate(&mut self, now: Instant) -> Option<u16> {
        if !self.is_searching && self.refuted <= self.ceiling && now >= self.raise_at {
            self.refuted = self.ceiling + 1;
            (self.is_searching, self.is_peeking) = (true, true);
        }
        match self.proven {
            // Most paths carry what is configured: one probe tells.
            None if self.refuted > self.ceiling && !self.is_peeking => Some(self.ceiling),
            None if self.refuted > LEAST => Some(LEAST),
            None => None,
            Some(proven) if proven + 1 >= self.refuted => Some(proven),
            Some(proven) if self.is_peeking => Some(proven + 1),
            Some(_) if self.refuted > self.ceiling => Some(self.ceiling),
            Some(proven) => Some(proven + (self.refuted - proven) / 2),
        }
    }

    fn refute(&mut self, size: u16, now: Instant) {
        if self.has_passed(size) {
            self.proven = None;
            self.tell(LEAST, now);
            self.is_searching = true;
        }
        self.refuted = size;
        self.is_peeking = false;
        self.settle(now);
    }

    fn tell(&mut self, size: u16, now: Instant) {
        if self.told != size || !self.is_measured {
            (self.told, self.since) = (size, now);
        }
    }

    /// Says what comes next, and whether the search ended.
    fn settle(&mut self, now: Instant) {
        let found = self.proven.filter(|proven| proven + 1 >= self.refuted);
        if found.is_none() && self.refuted > LEAST {
            self.next = now;
            return;
        }
        self.is_too_narrow = found.is_none();
        self.tell(found.unwrap_or(LEAST), now);
        self.is_measured = true;
        if core::mem::take(&mut self.is_searching) {
            self.raise_at = now + RAISE_EVERY;
        }
        self.next = if found.is_some() { now + CONFIRM_EVERY } else { self.raise_at };
    }
}

#[cfg(test)]
mod tests;
