//! Which replica writes: holds the Lease that [`controller_core::lease`] decides on, in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::kubernetes::Lease;
use api::names::{CONTROLLER_LEASE, SYSTEM_NAMESPACE};
use api::time::Instant;
use controller_core::lease::{LOOK_EVERY, Step, Tenancy};
use store::{Error, Store};
use tokio_util::sync::CancellationToken;

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
    fn set(&self, until: Option<Instant>) {
        self.until.store(until.map_or(0, Instant::as_micros), Ordering::Release);
    }
}

/// Holds the Lease whenever it can be had, until `stop`; then gives it back, so that another one need not wait.
pub(crate) async fn hold(store: Store, replica: String, leadership: Leadership, stop: CancellationToken) {
    let mut tenancy = Tenancy::new(replica.clone());
    loop {
        let held = leadership.may_write();
        let pause = match turn(&store, &mut tenancy, clock::now()).await {
            Ok(()) => {
                leadership.set(tenancy.until());
                match (held, tenancy.until()) {
                    (false, Some(_)) => tracing::info!(%replica, "this replica writes"),
                    (true, None) => tracing::warn!(%replica, "another replica took the lease"),
                    _ => {}
                }
                tenancy.pause()
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
    leadership.set(None);
    if held {
        // If this fails the next one waits for the duration: no harm.
        let _ = give_back(&store, &tenancy).await;
    }
}

/// Takes or renews the Lease where that is due. `now` is from before it is read.
async fn turn(store: &Store, tenancy: &mut Tenancy, now: Instant) -> Result<(), Error> {
    let found = store.get::<Lease>(Some(SYSTEM_NAMESPACE), CONTROLLER_LEASE).await?;
    let result = match tenancy.step(found, now, clock::wall()) {
        Step::Create(lease) => store.create(&lease).await,
        Step::Update(lease) => store.update(&lease).await,
        Step::Wait => return Ok(()),
    };
    match result {
        Ok(_) => tenancy.stepped(true, now),
        // Somebody else was faster: that is an answer, not an error.
        Err(error) if error.is_conflict() => tenancy.stepped(false, now),
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn give_back(store: &Store, tenancy: &Tenancy) -> Result<(), Error> {
    let found = store.get::<Lease>(Some(SYSTEM_NAMESPACE), CONTROLLER_LEASE).await?;
    if let Some(lease) = tenancy.given_back(found) {
        store.update(&lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::ServiceImport;
    use api::service_import::{ImportType, ServiceImportSpec};
    use controller_core::plan::{Outcome, Verb, Write};
    use store::folder;

    use super::*;
    use crate::writer::Writer;

    fn import(name: &str) -> ServiceImport {
        let spec = ServiceImportSpec { import_type: ImportType::Headless, ..ServiceImportSpec::default() };
        let mut import = ServiceImport::new(name, spec);
        import.metadata.namespace = Some("shop".into());
        import
    }

    #[tokio::test]
    async fn of_two_replicas_on_one_store_the_one_that_slept_past_its_deadline_writes_nothing() {
        let made = tempfile::tempdir().unwrap();
        let config = folder::Config { manifests: made.path().join("manifests"), state: made.path().join("state") };
        std::fs::create_dir(&config.manifests).unwrap();
        let store = tokio::task::spawn_blocking(move || folder::open(config)).await.unwrap().unwrap().0;
        let mut replicas = ["a", "b"].map(|name| (Tenancy::new(name.into()), Leadership::default()));
        // The test begins in what is the past by the clock: the first took the lease then, and slept until now.
        let now = clock::now();
        let ago = |seconds: u64| Instant::from_micros(now.as_micros().saturating_sub(seconds * 1_000_000));
        for (replica, seconds) in [(0, 20), (1, 19), (1, 0)] {
            let (tenancy, leadership) = &mut replicas[replica];
            turn(&store, tenancy, ago(seconds)).await.unwrap();
            leadership.set(tenancy.until());
        }
        let [mut sleeper, mut other] = replicas;
        let write = |leadership: &Leadership, name: &str| {
            let writer = Writer::new(store.clone(), leadership.clone());
            let write = Write::new(Verb::Create, import(name));
            async move { writer.carry_out(vec![write]).await.remove(0).outcome }
        };
        assert!(matches!(write(&sleeper.1, "late").await, Outcome::Failed { .. }));
        assert!(matches!(write(&other.1, "new").await, Outcome::Written(_)));
        let names: Vec<_> =
            store.list::<ServiceImport>().await.unwrap().into_iter().filter_map(|i| i.metadata.name).collect();
        assert_eq!(names, ["new"]);
        // Awake, it looks before it does anything, and waits; its release takes nothing away from the other.
        turn(&store, &mut sleeper.0, now).await.unwrap();
        sleeper.1.set(sleeper.0.until());
        assert!(!sleeper.1.may_write() && other.1.may_write());
        give_back(&store, &sleeper.0).await.unwrap();
        turn(&store, &mut other.0, now).await.unwrap();
        assert!(other.0.until().is_some());
    }
}
