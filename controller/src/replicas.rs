//! The owner's part in what replicas share: the one with the Lease writes the Secret (`shared_state`), the others take
//! from it what it says. Whatever peers hear of is in the Secret before, so that no two replicas say different things
//! under one generation.

use anyhow::{Result, bail};
use api::keys::IdentityKey;
use api::kubernetes::{ObjectMeta, Secret};
use api::member_record::{MemberRecord, SignedRecord};
use api::names::IDENTITY_SECRET;
use store::{Error, feed};
use tokio::time::Instant as Deadline;

use crate::connections::{Message, Told};
use crate::own_keys::{self, Found, Shown};
use crate::owner::{KEYS_RETRY, Owner};
use crate::shared_state::{self, Bundle, generation};
use crate::state_files::Membership;

/// What one replica knows of the others' Secret.
pub(crate) struct Replicas {
    /// As what it was read or written last; without a version where it is not there.
    known: ObjectMeta,
    /// Whether this replica's disk knows more.
    behind: bool,
    writing: bool,
    retry: Option<Deadline>,
    /// The identity that agents were told of.
    told: Option<IdentityKey>,
    telling: bool,
}

impl Replicas {
    /// `found` is the Secret as it was read at the start, if it was.
    pub(crate) fn new(found: Option<shared_state::Found>) -> Self {
        let (known, behind) = found.map(|found| (found.known, found.is_behind)).unwrap_or_default();
        Self { known, behind, writing: false, retry: None, told: None, telling: false }
    }
}

impl Owner {
    /// Whether this replica may change what all share. A controller that keeps its state on its disk alone always may.
    pub(crate) fn may_change_state(&self) -> bool {
        self.replicas.is_none() || self.leadership.may_write()
    }

    /// Writes the Secret where a record is to be signed, or where it knows less than this replica.
    pub(crate) fn settle_shared(&mut self, record: Option<MemberRecord>) {
        let leads = self.leadership.may_write();
        let Some(replicas) = &mut self.replicas else { return };
        if !leads || replicas.retry.is_some_and(|retry| retry > Deadline::now()) {
            return;
        }
        let current = self.engine.identity().current;
        if !replicas.telling && replicas.told != Some(current) {
            replicas.telling = true;
            let (store, inbox) = (self.store.clone(), self.shared.inbox.clone());
            self.shared.tasks.spawn(async move {
                let result = shared_state::tell_agents(&store, current).await;
                let _ = inbox.send(Message::AgentsTold { controller: current, result });
            });
        }
        if replicas.writing || (record.is_none() && !replicas.behind) {
            return;
        }
        let record = record.map(|record| (self.shared.keys.shown().identity.sign_record(&record), record));
        let mut membership = self.membership.clone();
        if let Some((signed, _)) = &record {
            membership.record = Some(signed.clone());
        }
        let bundle = match Bundle::of(&self.files).and_then(|bundle| bundle.with(&membership)) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "this replica's state cannot be read, so it is not shared"
                );
                replicas.retry = Some(Deadline::now() + KEYS_RETRY);
                return;
            }
        };
        replicas.writing = true;
        let (store, inbox, known) = (self.store.clone(), self.shared.inbox.clone(), replicas.known.clone());
        let leadership = self.leadership.clone();
        self.shared.tasks.spawn(async move {
            let result = if leadership.may_write() {
                shared_state::publish(&store, known, bundle).await
            } else {
                Err(Error::Unavailable("another replica took the lease meanwhile".into()))
            };
            let _ = inbox.send(Message::Published { record: record.map(Box::new), result: result.map(Box::new) });
        });
    }

    pub(crate) fn published(
        &mut self,
        record: Option<(SignedRecord, MemberRecord)>,
        result: Result<ObjectMeta, Error>,
    ) {
        let Some(replicas) = &mut self.replicas else { return };
        replicas.writing = false;
        match result {
            Ok(known) => {
                replicas.known = known;
                replicas.behind = false;
            }
            Err(error) => {
                // After a conflict the watch brings what others wrote.
                tracing::warn!(%error, "Secret {IDENTITY_SECRET} cannot be written, so the member record is not published");
                replicas.retry = Some(Deadline::now() + KEYS_RETRY);
                return;
            }
        }
        let Some((signed, record)) = record else { return };
        let membership = Membership { record: Some(signed.clone()), ..self.membership.clone() };
        self.publish_record(signed, record, membership);
    }

    /// Keeps a record that is out and lets peers hear of it.
    fn publish_record(&mut self, signed: SignedRecord, record: MemberRecord, membership: Membership) {
        // It is in the Secret; a start by this disk alone would begin with the record before.
        if let Err(error) = self.files.keep_membership(&membership) {
            tracing::warn!(%error, "the member record cannot be kept on disk");
        }
        self.membership = membership;
        if self.engine.own_record() != Some(&signed) {
            tracing::info!(generation = record.generation, "the member record is published");
            self.tell_records(vec![signed.clone()]);
            self.engine.set_own_record(signed, record);
        }
    }

    pub(crate) fn agents_told(&mut self, controller: IdentityKey, result: Result<(), Error>) {
        let Some(replicas) = &mut self.replicas else { return };
        replicas.telling = false;
        match result {
            Ok(()) => replicas.told = Some(controller),
            Err(error) => {
                tracing::warn!(%error, "agents cannot be told of the controllers' identity");
                replicas.retry = Some(Deadline::now() + KEYS_RETRY);
            }
        }
    }

    /// Takes in what the Secret says now; `None` where it is gone. Fails where this replica cannot go on as it is.
    pub(crate) fn take_shared(&mut self, secret: Option<Secret>) -> Result<()> {
        let Some(replicas) = &mut self.replicas else { return Ok(()) };
        let Some(secret) = secret else {
            replicas.known = ObjectMeta::default();
            replicas.behind = true;
            return Ok(());
        };
        if secret.metadata.resource_version == replicas.known.resource_version {
            return Ok(());
        }
        replicas.known = secret.metadata.clone();
        let (theirs, membership) = match Bundle::in_secret(secret) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "this replica's disk knows better and makes it good");
                replicas.behind = true;
                return Ok(());
            }
        };
        if membership.epoch != self.membership.epoch {
            bail!("Secret {IDENTITY_SECRET} is that of another installation now: starting anew with it");
        }
        if generation(&membership) < generation(&self.membership) {
            tracing::warn!("Secret {IDENTITY_SECRET} is older than this replica: was it restored from a backup?");
            replicas.behind = true;
            return Ok(());
        }
        if Bundle::of(&self.files)? == theirs {
            return Ok(());
        }
        theirs.take(&self.files)?;
        let Found { current, next, own } = own_keys::load(&self.files, &membership)?;
        if own != *self.engine.identity() {
            if own.current != self.engine.identity().current {
                let enrolment = feed::Enrolment::load_or_create(self.files.enrolment_file(), own.current)?;
                self.shared.feed.succeed(enrolment, own.taken().to_vec());
                self.shared.keys.show(Shown::new(current)?);
                tracing::info!(fingerprint = %own.current.fingerprint(), "another replica put the next identity in force");
            }
            self.next_identity = next;
            self.engine.set_identity(own);
        }
        match crate::owner::last_record(&membership) {
            Some((signed, record)) => self.publish_record(signed, record, membership),
            None => self.membership = membership,
        }
        Ok(())
    }

    fn tell_records(&self, records: Vec<SignedRecord>) {
        // Nobody may be listening.
        let _ = self.told.send(Told::Records(records));
    }
}
