//! The owner's part in a change of the cluster's identity: [`controller_core::own_identity`] has the steps.

use anyhow::{Context, Result};
use api::report::OrderReport;
use controller_core::own_identity::IdentityRotation;
use store::feed;
use tokio::time::Instant as Deadline;

use crate::own_keys::{self, Shown};
use crate::owner::{KEYS_RETRY, Owner};

impl Owner {
    /// Makes the identity that comes after this one; false where there is one already.
    pub(crate) fn begin_identity(&mut self) -> Result<bool> {
        self.check_may_change()?;
        let cluster = self.engine.cluster_id().cloned();
        let cluster = cluster.context("there is no LocalCluster: write one that says what this cluster is")?;
        let shown = self.shared.keys.shown();
        let begun =
            own_keys::begin(&self.files, &mut self.membership, self.engine.identity(), &shown.identity, &cluster)?;
        let Some((own, next)) = begun else { return Ok(false) };
        tracing::info!(fingerprint = %next.public().fingerprint(), "the cluster gets another identity");
        self.next_identity = Some(next);
        self.engine.set_identity(own);
        Ok(true)
    }

    fn check_may_change(&self) -> Result<()> {
        anyhow::ensure!(
            self.may_change_state(),
            "another replica writes: ask that one; 'kubectl get lease -n {} {}' names it",
            api::names::SYSTEM_NAMESPACE,
            api::names::CONTROLLER_LEASE
        );
        Ok(())
    }

    pub(crate) fn retire_identity_when_due(&mut self) {
        if !self.may_change_state() || self.identity_retry.is_some_and(|retry| retry > Deadline::now()) {
            return;
        }
        let rotation = self.engine.identity_rotation(clock::wall());
        let Some(rotation) = rotation.filter(IdentityRotation::is_over) else { return };
        let without = rotation.waiting_for.unwrap_or_default();
        if let Err(error) = self.retire_identity(Some(&without)) {
            tracing::warn!(error = format!("{error:#}"), "the old identity cannot be retired; trying again");
            self.identity_retry = Some(Deadline::now() + KEYS_RETRY);
        }
    }

    /// Puts the next identity in the place of the current one; false where there is none. `without` are the peers that
    /// do not trust it yet, where it is not the operator who wants it.
    pub(crate) fn retire_identity(&mut self, without: Option<&[String]>) -> Result<bool> {
        self.check_may_change()?;
        // All that can fail before the one write after which there is no way back.
        let Some(next) = self.engine.identity().next else { return Ok(false) };
        let held = self.next_identity.take_if(|held| held.public() == next.key);
        let shown = Shown::new(held.context("the next identity's key is not in memory: start the controller again")?)?;
        let retired = match own_keys::retire(&self.files, &mut self.membership, self.engine.identity()) {
            Ok(Some(retired)) => retired,
            failed => {
                self.next_identity = Some(shown.identity);
                return failed.map(|_| false);
            }
        };
        self.shared.keys.show(shown);
        match feed::Enrolment::load_or_create(self.files.enrolment_file(), retired.current) {
            Ok(enrolment) => self.shared.feed.succeed(enrolment, retired.taken().to_vec()),
            // Agents that are connected stay; others come back once a start has written it.
            Err(error) => tracing::warn!(%error, "agents cannot be told of the new identity"),
        }
        tracing::info!(fingerprint = %retired.current.fingerprint(), "the old identity is retired");
        self.engine.set_identity(retired);
        if let Some(without) = without {
            let reason = match without {
                [] => String::new(),
                without => format!("kept long enough; not trusted yet by {}", without.join(", ")),
            };
            self.surface.event("identity".into(), "Rotating", "Steady", &reason);
        }
        Ok(true)
    }
}

/// What became of an order.
pub(crate) fn report(retire: bool, changed: bool) -> OrderReport {
    let (before, after) = if retire { ("Rotating", "Steady") } else { ("Steady", "Rotating") };
    let before = if changed { before } else { after }.to_owned();
    OrderReport { subject: "identity".into(), before, after: after.into(), changed }
}
