//! The life of one link as a state machine: probed, up, late, down, up again.
//!
//! The budget is 400 ms from the last packet to [`PathState::Down`], so that a TCP flow on another link goes on within a
//! second (its second retransmission comes at about 0.6 s). It is spent so: one probe interval of 100 ms, 80 ms until its
//! answer is late, then probes every 20 ms until ten are unanswered. Where the round trip or its jitter is large it is
//! exceeded: an answer could not be back yet. So it is on a gateway with very many links: see [`crate::pace`].

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use api::time::Instant;

use crate::endpoints::Endpoints;
use crate::pace::{Pace, SILENCE};
use crate::path_mtu::{PathMtu, SizeProbe, SmallProbes};
use crate::probe::{Probe, ProbeKind};
use crate::probe_log::ProbeLog;
use crate::transit;

mod status;

pub use status::{Cause, PathState, PathStatus};

/// Between probes while an answer is late, and while a path comes back: ten of them fit what is left of the budget.
pub const PROBE_FAST: Duration = Duration::from_millis(20);
/// Fewer unanswered probes prove nothing, however long it has been: this machine may have been asleep.
pub const UNANSWERED: u32 = 10;
/// Unanswered probes before a handshake is tried; a single loss is no reason to agree on new keys.
const UNANSWERED_FOR_HANDSHAKE: u32 = 3;
/// Unanswered probes before a peer that was heard is called at all of its addresses at once: so many that a path which
/// loses a fifth does not change its way more than once in half an hour, so few that the budget holds.
const UNANSWERED_FOR_OTHERS: u32 = 6;
/// Answers in a row before a path that was down is up again: a path that flaps is worse than one that is away.
const RECOVERY_ANSWERS: u32 = 3;
/// How long a path must be up, to one and the same process, before it is used beside others that were so for long: the
/// host of a gateway that comes back needs a moment to be ready for what comes out of its tunnels.
pub const PROVEN_AFTER: Duration = Duration::from_secs(1);
/// For how many halves of a probe interval one says "I hear you" after hearing: two intervals and some, less than what
/// the other needs to conclude.
const HEARS_FOR_HALVES: u32 = 5;
/// How often a peer that is reached by a hub is looked for directly, once a candidate: a path that opens is found while
/// somebody still remembers opening it, and one that stays shut costs a datagram.
const LOOK_DIRECTLY_EVERY: Duration = Duration::from_secs(10);
/// For so long after a peer was heard directly nothing that comes by a hub moves its endpoint: what was under way while
/// both ends changed over would make them change back.
const STAYS_DIRECT: Duration = Duration::from_secs(1);
/// When a WireGuard session must be replaced, and when it is dead (whitepaper, 6.1): what counts for other programs.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// What the session says of itself, for one decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionView {
    pub(crate) established: bool,
    pub(crate) last_handshake: Option<Instant>,
}

/// What is to be done for a path now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Send a probe request with this sequence number.
    pub(crate) probe: Option<u64>,
    pub(crate) size_probe: Option<SizeProbe>,
    pub(crate) initiate: Option<SocketAddr>,
    /// Send one and the same handshake initiation to all of these: the first that arrives is answered.
    pub(crate) scatter: Vec<SocketAddr>,
    pub(crate) changed: Option<(PathState, PathState, Cause)>,
    /// The path is proven from now on.
    pub(crate) proven: bool,
    pub(crate) resized: Option<Resized>,
}

/// What the other gateway last said of itself.
#[derive(Clone, Copy, Debug)]
struct PeerSays {
    at: Instant,
    incarnation: u64,
    draining: bool,
    saw_draining: bool,
    hears_us: bool,
    idle: bool,
}

/// News from a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeNews {
    pub(crate) restarted: bool,
    pub(crate) draining: Option<bool>,
    pub(crate) changed: Option<(PathState, PathState, Cause)>,
    pub(crate) resized: Option<Resized>,
}

/// What passes: the largest packet that should be sent, and whether not even that arrives whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    pub(crate) mtu: u16,
    pub(crate) is_too_narrow: bool,
}

/// Another width than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resized {
    pub(crate) from: Width,
    pub(crate) to: Width,
}

#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// False for another WireGuard program.
    probed: bool,
    pace: Pace,
    state: PathState,
    cause: Cause,
    since: Instant,
    pub(crate) endpoints: Endpoints,
    log: ProbeLog,
    next_probe: Instant,
    heard: Option<Instant>,
    answered: Option<Instant>,
    /// Requests sent since anything was heard, and since one was answered.
    unheard: u32,
    unanswered: u32,
    answers_in_a_row: u32,
    initiated: Option<Instant>,
    established: bool,
    /// When the peer was last looked for, and last heard, without a hub.
    looked_directly: Option<Instant>,
    heard_directly: Option<Instant>,
    /// Whether the peer was called at all its addresses since it was last heard.
    scattered: bool,
    peer: Option<PeerSays>,
    /// Since when the path is up without a break or a restart of the peer.
    sound_since: Option<Instant>,
    proven: bool,
    mtu: PathMtu,
}

impl Path {
    /// `mtu` is the configured size, which is not exceeded.
    pub(crate) fn new(probed: bool, mtu: u16, now: Instant) -> Self {
        Self {
            probed,
            pace: Pace::default(),
            state: PathState::Unknown,
            cause: Cause::NoHandshakeYet,
            since: now,
            endpoints: Endpoints::default(),
            log: ProbeLog::default(),
            next_probe: now,
            heard: None,
            answered: None,
            unheard: 0,
            unanswered: 0,
            answers_in_a_row: 0,
            initiated: None,
            established: false,
            looked_directly: None,
            heard_directly: None,
            scattered: false,
            peer: None,
            sound_since: None,
            proven: false,
            mtu: PathMtu::new(mtu),
        }
    }

    pub(crate) fn set_mtu(&mut self, configured: u16) {
        self.mtu.set_ceiling(configured);
    }

    /// How often the path is probed from now on.
    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    pub(crate) fn width(&self) -> Width {
        Width { mtu: self.mtu.in_force(), is_too_narrow: self.mtu.is_too_narrow() }
    }

    fn resized(&self, from: Width) -> Option<Resized> {
        Some(Resized { from, to: self.width() }).filter(|Resized { from, to }| from != to)
    }

    /// Decides what is due.
    pub(crate) fn poll(&mut self, session: SessionView, now: Instant) -> Work {
        if session.established && !self.established {
            self.next_probe = now;
        }
        self.established = session.established;
        let mut work = Work::default();
        if self.probed {
            work.changed = self.notice_silence(now);
            if session.established && now >= self.probe_due() {
                work.probe = Some(self.send_probe(now));
            }
            let before = self.width();
            work.size_probe = self.mtu.poll(&self.small_probes(session.established, now), now);
            work.resized = self.resized(before);
        } else {
            work.changed = self.watch_handshakes(session, now);
        }
        if !self.proven && self.sound_since.is_some_and(|since| !self.probed || now.since(since) >= PROVEN_AFTER) {
            self.proven = true;
            work.proven = true;
        }
        if self.wants_handshake(session, now)
            && self.initiated.is_none_or(|at| now.since(at) >= self.pace.initiate_every)
        {
            work.initiate = self.endpoints.next_attempt();
            if work.initiate.is_some() {
                self.initiated = Some(now);
            }
        }
        if session.established && self.wants_others(now) {
            work.scatter = self.endpoints.others();
            self.scattered = true;
        } else if session.established && work.initiate.is_none() && self.wants_direct(now) {
            work.initiate = self.endpoints.next_direct();
            self.looked_directly = Some(now);
        }
        work
    }

    /// When [`poll`](Self::poll) has something to do, timers of the session aside. `None` while only the peer can act.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.established {
            let sized = Some(self.mtu.deadline()).filter(|_| self.state == PathState::Up);
            return self.probed.then(|| sized.map_or(self.probe_due(), |at| at.min(self.probe_due())));
        }
        self.endpoints.current()?;
        Some(self.initiated.map_or(self.since, |at| at + self.pace.initiate_every))
    }

    pub(crate) fn is_probed(&self) -> bool {
        self.probed
    }

    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// Something authentic came. Gives the endpoint it came from before, if that changed.
    pub(crate) fn hear(&mut self, from: SocketAddr, at: Instant) -> Option<Option<SocketAddr>> {
        self.heard = self.heard.max(Some(at));
        self.unheard = 0;
        self.scattered = false;
        if !transit::is_by_hub(from) {
            self.heard_directly = Some(at);
        } else if self.unanswered < UNANSWERED_FOR_HANDSHAKE
            && self.heard_directly.is_some_and(|last| at.since(last) < STAYS_DIRECT)
        {
            return None;
        }
        let moved = self.endpoints.heard(from);
        if moved.is_some() {
            self.mtu.doubt(at);
        }
        moved
    }

    /// Takes a probe of the peer's.
    pub(crate) fn take_probe(&mut self, probe: &Probe, at: Instant) -> ProbeNews {
        let mut news = ProbeNews::default();
        if let Some(known) = &self.peer {
            news.restarted = known.incarnation != probe.incarnation;
            if news.restarted {
                self.proven = false;
                self.sound_since = self.sound_since.map(|_| at);
                self.mtu.doubt(at);
            }
            news.draining = (known.draining != probe.draining).then_some(probe.draining);
        } else if probe.draining {
            news.draining = Some(true);
        }
        self.peer = Some(PeerSays {
            at,
            incarnation: probe.incarnation,
            draining: probe.draining,
            saw_draining: probe.saw_draining,
            hears_us: probe.hears_you,
            idle: probe.idle,
        });
        if probe.kind == ProbeKind::SizeReply {
            let before = self.width();
            self.mtu.answer(probe.sequence, probe.size, at);
            news.resized = self.resized(before);
        }
        if probe.kind == ProbeKind::Reply && self.log.answer(probe.sequence, Duration::from_micros(probe.held), at) {
            self.answered = self.answered.max(Some(at));
            self.unanswered = 0;
            self.answers_in_a_row = self.answers_in_a_row.saturating_add(1);
            let enough = self.state != PathState::Down || self.answers_in_a_row >= RECOVERY_ANSWERS;
            if self.state != PathState::Up && enough {
                news.changed = Some(self.change(PathState::Up, Cause::Answering, at));
            } else if self.state == PathState::Down {
                self.next_probe = self.next_probe.min(at + PROBE_FAST);
            }
        }
        news
    }

    /// Asks for a probe at once, to carry news to the peer.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.next_probe = now;
    }

    /// Whether we may say in a probe that we hear the peer.
    pub(crate) fn hears_peer(&self, now: Instant) -> bool {
        self.heard.is_some_and(|at| now.since(at) < self.pace.probe_every * HEARS_FOR_HALVES / 2)
    }

    pub(crate) fn peer_draining(&self) -> bool {
        self.peer.is_some_and(|peer| peer.draining)
    }

    /// Whether the peer said that it knows we are going away.
    pub(crate) fn peer_saw_draining(&self) -> bool {
        self.peer.is_some_and(|peer| peer.saw_draining)
    }

    /// Whether the size of packets that pass was measured, and is no assumption.
    pub(crate) fn knows_mtu(&self) -> bool {
        self.mtu.measured_since().is_some()
    }

    /// Whether nothing but probes comes from the peer on this link, by its own word. Another WireGuard program says no
    /// word, and sends where it agreed on keys last.
    pub(crate) fn peer_is_idle(&self) -> bool {
        !self.probed || self.peer.is_some_and(|peer| peer.idle)
    }

    pub(crate) fn state(&self) -> PathState {
        self.state
    }

    /// Whether the path may be used beside others that are.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven
    }

    pub(crate) fn status(&self, now: Instant) -> PathStatus {
        PathStatus {
            state: self.state,
            cause: self.cause,
            since: self.since,
            endpoint: self.endpoints.current(),
            round_trip: self.log.distance(),
            last_round_trip: self.log.last(),
            loss_permille: self.log.loss_permille(now, self.patience()),
            probes_sent: self.log.sent(),
            probes_lost: self.log.lost(),
            last_heard: self.heard,
            peer_draining: self.peer_draining(),
            mtu: self.mtu.in_force(),
            mtu_measured_since: self.mtu.measured_since(),
            is_too_narrow: self.mtu.is_too_narrow(),
        }
    }

    /// What a lost probe of a size is held against.
    fn small_probes(&self, established: bool, now: Instant) -> SmallProbes {
        SmallProbes {
            up: established && self.state == PathState::Up,
            answered: self.answered,
            patience: self.patience(),
            loss_permille: self.log.loss_permille(now, self.patience()),
        }
    }

    /// How long an answer may take before it is late: half as long again as usual, at least 80 ms more. That is above
    /// what a busy two-core machine makes a thread wait, and leaves the budget whole.
    fn patience(&self) -> Duration {
        let usual = self.log.smoothed().unwrap_or_default();
        usual + (usual / 2).max(Duration::from_millis(80)).max(self.jitter())
    }

    /// What an answer may take beyond the usual by chance: four mean deviations, as RFC 6298 has it for TCP. Bounded, so
    /// that a path that died is out within a second also where its jitter was high before.
    fn jitter(&self) -> Duration {
        (self.log.deviation() * 4).min(Duration::from_millis(300))
    }

    /// How long silence must last. Beyond 100 ms of round trip and jitter the budget cannot be kept: an answer to a fast
    /// probe could not be back yet.
    fn silence(&self) -> Duration {
        let usual = self.log.smoothed().unwrap_or_default();
        self.pace.silence + (Duration::from_millis(300) + usual + self.jitter()).saturating_sub(SILENCE)
    }

    fn late_at(&self) -> Option<Instant> {
        self.log.oldest_unanswered().map(|sent| sent + self.patience())
    }

    fn probe_due(&self) -> Instant {
        match (self.late_at(), self.log.last_sent()) {
            (Some(late), Some(sent)) if self.hurries_when_late() => self.next_probe.min(late.max(sent + PROBE_FAST)),
            _ => self.next_probe,
        }
    }

    /// Not when the verdict is in, and not for ever with a peer that is heard but never answers.
    fn hurries_when_late(&self) -> bool {
        self.state != PathState::Down && self.unanswered < 2 * UNANSWERED
    }

    fn send_probe(&mut self, now: Instant) -> u64 {
        let late = self.late_at().is_some_and(|late| now >= late);
        if late {
            self.answers_in_a_row = 0;
        }
        let recovering = self.state == PathState::Down && self.answers_in_a_row > 0;
        let fast = recovering || (late && self.hurries_when_late());
        self.next_probe = now + if fast { PROBE_FAST } else { self.pace.probe_every };
        self.unheard = self.unheard.saturating_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        self.log.send(now)
    }

    fn notice_silence(&mut self, now: Instant) -> Option<(PathState, PathState, Cause)> {
        if self.state == PathState::Down {
            return None;
        }
        let long_ago = |at: Option<Instant>| at.is_some_and(|at| now.since(at) >= self.silence());
        let sessionless = !self.established && self.initiated > self.heard;
        if long_ago(self.heard) && (self.unheard >= UNANSWERED || sessionless) {
            return Some(self.change(PathState::Down, Cause::SilentPeer, now));
        }
        let told = self.peer.is_some_and(|peer| !peer.hears_us && self.answered.is_some_and(|at| peer.at > at));
        if told && long_ago(self.answered) && self.unanswered >= UNANSWERED {
            return Some(self.change(PathState::Down, Cause::PeerDoesNotHearUs, now));
        }
        None
    }

    fn watch_handshakes(&mut self, session: SessionView, now: Instant) -> Option<(PathState, PathState, Cause)> {
        let heard = session.last_handshake.max(self.heard)?;
        match (session.established && now.since(heard) < REJECT_AFTER, self.state) {
            (true, PathState::Unknown | PathState::Down) => {
                Some(self.change(PathState::Up, Cause::HandshakeAgreed, now))
            }
            (false, PathState::Up) => Some(self.change(PathState::Down, Cause::HandshakeExpired, now)),
            _ => None,
        }
    }

    fn wants_handshake(&self, session: SessionView, now: Instant) -> bool {
        if !session.established {
            return true;
        }
        if self.probed {
            return self.unanswered >= UNANSWERED_FOR_HANDSHAKE && self.late_at().is_some_and(|late| now >= late);
        }
        session.last_handshake.is_none_or(|at| now.since(at) >= REKEY_AFTER)
    }

    fn wants_others(&self, now: Instant) -> bool {
        let silent = self.unanswered >= UNANSWERED_FOR_OTHERS && self.late_at().is_some_and(|late| now >= late);
        self.probed && silent && !self.scattered
    }

    fn wants_direct(&self, now: Instant) -> bool {
        self.endpoints.current().is_some_and(transit::is_by_hub)
            && self.looked_directly.is_none_or(|at| now.since(at) >= LOOK_DIRECTLY_EVERY)
    }

    fn change(&mut self, to: PathState, cause: Cause, now: Instant) -> (PathState, PathState, Cause) {
        let from = core::mem::replace(&mut self.state, to);
        self.cause = cause;
        self.since = now;
        self.answers_in_a_row = 0;
        self.sound_since = (to == PathState::Up).then_some(now);
        self.mtu.doubt(now);
        self.proven = false;
        (from, to, cause)
    }
}

#[cfg(test)]
mod tests;
