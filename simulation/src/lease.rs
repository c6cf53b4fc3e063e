//! [`LeaseShelf`]: the Lease of a cluster's controllers, as the store has it, and how replicas look at it.

use api::kubernetes::Lease;
use controller_core::lease::Step;

use crate::controller::{Controller, Now};

/// A version for each write, and no write on the past.
#[derive(Debug, Default)]
pub(crate) struct LeaseShelf {
    lease: Option<Lease>,
    version: u64,
}

impl LeaseShelf {
    /// Who holds it; nobody's name where it was given back.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.lease.as_ref()?.spec.as_ref()?.holder_identity.as_deref()
    }

    /// A replica takes or renews it where that is due (controller/src/lease.rs). Not while the store is away: then what
    /// is held stays held until its deadline.
    pub(crate) fn look(&mut self, controller: &mut Controller, is_away: bool, now: Now) {
        let Some(process) = &mut controller.process else { return };
        if now.world < process.looks_at {
            return;
        }
        if !is_away {
            match process.tenancy.step(self.lease.clone(), now.instant, now.wall) {
                Step::Create(lease) => {
                    let taken = self.lease.is_none() && self.put(lease);
                    process.tenancy.stepped(taken, now.instant);
                }
                Step::Update(lease) => {
                    let version = |lease: &Lease| lease.metadata.resource_version.clone();
                    let taken = self.lease.as_ref().map(version) == Some(version(&lease)) && self.put(lease);
                    process.tenancy.stepped(taken, now.instant);
                }
                Step::Wait => {}
            }
        }
        process.looks_at = now.world + process.tenancy.pause().as_micros() as u64;
    }

    /// A replica that ends gives back what it holds.
    pub(crate) fn give_back(&mut self, controller: &Controller, is_away: bool, now: Now) {
        let process = controller.process.as_ref().filter(|process| process.tenancy.may_write(now.instant) && !is_away);
        if let Some(lease) = process.and_then(|process| process.tenancy.given_back(self.lease.clone())) {
            self.put(lease);
        }
    }

    fn put(&mut self, mut lease: Lease) -> bool {
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease);
        true
    }
}
