//! The health thread: answers the probes of this cluster's nodes and DNS servers (DESIGN, decision 8).
//!
//! An answer is only as good as the report behind it, so when the control thread has stopped reporting nothing is
//! answered, and those who ask turn to another gateway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use api::health::message::MasterKey;
use api::time::Instant;
use gateway_core::{Arena, HealthAnswers, Received, RefusalLog};
use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::packet_loops::wait;
use crate::surface::Shared;
use crate::udp::{BATCH, Departure, Receiver, Sender, Sockets};

/// A report older than this is not passed on: four times its usual age.
const OLDEST_REPORT: Duration = Duration::from_secs(1);

/// What others see of this thread is at most so old: it costs as much as there are agents, and requests come by the
/// thousand.
const SHOWN_EVERY: Duration = Duration::from_millis(20);

/// Room for one request: api::health bounds every message to this.
const PIECE: usize = api::health::message::MAX_MESSAGE + 1;

/// How others see and steer the health thread.
pub(crate) struct Health {
    keys: Mutex<Option<Vec<MasterKey>>>,
    shown: Mutex<Shown>,
    stopping: AtomicBool,
    wake: EventFd,
}

/// What the thread last told of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// Agents that asked lately: name, and when last.
    pub(crate) agents: Vec<(String, Instant)>,
    pub(crate) drain_is_acknowledged: bool,
    pub(crate) refusals: RefusalLog,
    pub(crate) answered: u64,
}

impl Health {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("making an eventfd")?;
        let (keys, shown) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { keys, shown, stopping: AtomicBool::new(false), wake }))
    }

    /// The keys agents may use from now on.
    pub(crate) fn set_keys(&self, keys: Vec<MasterKey>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
        let _ = self.wake.write(1);
    }

    pub(crate) fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }

    /// Starts the thread.
    pub(crate) fn start(self: &Arc<Self>, port: u16, gateway: Arc<Shared>) -> Result<JoinHandle<()>> {
        let sockets = Sockets::open(port).context("the health port")?;
        let shared = Arc::clone(self);
        crate::lane::spawn("gateway-health".to_owned(), move || shared.run(&sockets, &gateway))
    }

    fn run(&self, sockets: &Sockets, gateway: &Shared) -> Result<()> {
        let mut answers = HealthAnswers::default();
        let mut datagrams: Arena<Received> = Arena::new(PIECE * BATCH * 2, BATCH * 2);
        let mut asked = Vec::with_capacity(BATCH * 2);
        let mut receiver = Receiver::new(PIECE);
        let mut sender = Sender::new();
        let descriptors: Vec<_> = sockets.descriptors().collect();
        let mut answered = 0;
        // Before anybody asked there is something to show too: nobody has to be waited for.
        let (mut shown_at, mut is_news) = (Instant::default(), true);
        while !self.stopping.load(Ordering::Acquire) {
            if let Some(keys) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).take() {
                answers.set_keys(keys);
            }
            datagrams.clear();
            asked.clear();
            receiver.receive(sockets, &mut datagrams, &mut asked)?;
            let now = clock::now();
            let snapshot = gateway.running().map(|running| running.control.snapshot());
            let current = snapshot.filter(|snapshot| now.since(snapshot.at) < OLDEST_REPORT);
            for ((bytes, about), asked) in datagrams.iter().zip(&asked) {
                let Some(snapshot) = &current else { break };
                let pages = answers.answer(bytes, about.from, || snapshot.report.clone(), now);
                answered += u64::from(!pages.is_empty());
                sender.send(sockets, pages.len(), |page| {
                    Departure::uncut(pages.get(page).map_or(&[][..], Vec::as_slice), asked.from, asked.local)
                });
            }
            is_news |= !datagrams.is_empty();
            if is_news && now.since(shown_at) >= SHOWN_EVERY {
                (shown_at, is_news) = (now, false);
                *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown {
                    agents: answers.agents(now).map(|(name, at)| (name.to_owned(), at)).collect(),
                    drain_is_acknowledged: answers.drain_is_acknowledged(now),
                    refusals: answers.refusals().clone(),
                    answered,
                };
            }
            if datagrams.is_empty() {
                let limit = if is_news { PollTimeout::from(SHOWN_EVERY.as_millis() as u8) } else { PollTimeout::NONE };
                wait(&descriptors, &self.wake, limit)?;
            }
        }
        Ok(())
    }
}
