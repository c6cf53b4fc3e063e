//! Which replica writes: the holder of the Lease `controller` (decision 12).
//!
//! The holder checks its deadline before each write, on the clock that counts through suspend. Others take the Lease
//! when they have not seen it change for its whole duration: nobody's wall clock decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::kubernetes::{Lease, MicroTime};
use api::names::{CONTROLLER_LEASE, SYSTEM_NAMESPACE};
use api::time::Instant;
use store::{Error, Store};
use tokio_util::sync::CancellationToken;

/// How long a Lease holds: what Kubernetes' own controllers use.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long before the Lease runs out its holder stops to write: a write under way must land before another begins.
const MARGIN: Duration = Duration::from_secs(3);
/// How often a replica that does not hold it looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Until when this replica may write; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leadership {
    /// Microseconds of the boot clock; zero when it may not.
    until: Arc<AtomicU64>,
}

impl Leadership {
    pub(crate) fn may_write(&self) -> bool {
        clock::now().as_micros() < self.until.load(Ordering::Acquire)
    }
    fn set(&self, until: Instant) {
        self.until.store(until.as_micros(), Ordering::Release);
    }
}

/// Holds the Lease whenever it can be had, until `stop`; then gives it back, so that another one need not wait.
pub(crate) async fn hold(store: Store, replica: String, leadership: Leadership, stop: CancellationToken) {
    let mut seen: Option<(Option<String>, Instant)> = None;
    loop {
        let asked = clock::now();
        let pause = match try_hold(&store, &replica, &mut seen).await {
            Ok(true) => {
                if !leadership.may_write() {
                    tracing::info!(%replica, "this replica writes");
                }
                leadership.set(asked + (DURATION - MARGIN));
                RENEW_EVERY
            }
            Ok(false) => {
                if leadership.may_write() {
                    tracing::warn!(%replica, "another replica took the lease");
                }
                leadership.set(Instant::from_micros(0));
                LOOK_EVERY
            }
            // What is held stays held until its deadline.
            Err(error) => {
                tracing::warn!(%error, "the lease of the controllers cannot be renewed");
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
    }
    let held = leadership.may_write();
    leadership.set(Instant::from_micros(0));
    if held {
        // If this fails the next one waits for the duration: no harm.
        let _ = release(&store, &replica).await;
    }
}

async fn try_hold(store: &Store, replica: &str, seen: &mut Option<(Option<String>, Instant)>) -> Result<bool, Error> {
    let now = clock::now();
    let Some(mut lease) = store.get::<Lease>(Some(SYSTEM_NAMESPACE), CONTROLLER_LEASE).await? else {
        let mut lease = Lease::default();
        lease.metadata.name = Some(CONTROLLER_LEASE.into());
        lease.metadata.namespace = Some(SYSTEM_NAMESPACE.into());
        fill(&mut lease, replica);
        return taken(store.create(&lease).await);
    };
    let version = lease.metadata.resource_version.clone();
    if seen.as_ref().is_none_or(|(held, _)| *held != version) {
        *seen = Some((version, now));
    }
    let spec = lease.spec.get_or_insert_default();
    let holder = spec.holder_identity.clone().unwrap_or_default();
    let unchanged = seen.as_ref().map(|(_, since)| now.since(*since)).unwrap_or_default();
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let expired = unchanged >= duration.map_or(DURATION, Duration::from_secs);
    if holder != replica && !holder.is_empty() && !expired {
        return Ok(false);
    }
    fill(&mut lease, replica);
    taken(store.update(&lease).await)
}

/// Somebody else was faster: that is an answer, not an error.
fn taken(result: Result<Lease, Error>) -> Result<bool, Error> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

fn fill(lease: &mut Lease, replica: &str) {
    let now = Some(MicroTime(jiff::Timestamp::now()));
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(replica) {
        spec.holder_identity = Some(replica.into());
        spec.acquire_time = now.clone();
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.renew_time = now;
}

async fn release(store: &Store, replica: &str) -> Result<(), Error> {
    let Some(mut lease) = store.get::<Lease>(Some(SYSTEM_NAMESPACE), CONTROLLER_LEASE).await? else { return Ok(()) };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(replica) {
        spec.holder_identity = Some(String::new());
        store.update(&lease).await?;
    }
    Ok(())
}
