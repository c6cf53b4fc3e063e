//! Several controllers of one cluster on one store, as on Kubernetes: they are one cluster to everybody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

mod clusters;

use api::LocalCluster;
use api::kubernetes::{ConfigMap, Secret};
use api::member_record::{MemberRecord, SignedRecord};
use api::names::{AGENTS_CONFIG_MAP, ENROLMENT_DATA, IDENTITY_SECRET, SYSTEM_NAMESPACE};
use api::surface::Surface;
use clusters::eventually;
use serde_json::Value;
use store::{Store, folder};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// One store, and the replicas' disks.
struct World {
    made: tempfile::TempDir,
    store: Store,
}

struct Replica {
    name: &'static str,
    surface: Arc<dyn Surface>,
    stop: CancellationToken,
    work: JoinHandle<anyhow::Result<()>>,
}

impl World {
    async fn new() -> Self {
        let made = tempfile::tempdir().unwrap();
        let manifests = made.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        say(&manifests, "192.0.2.1");
        let config = folder::Config { manifests, state: made.path().join("objects") };
        let store = tokio::task::spawn_blocking(move || folder::open(config)).await.unwrap().unwrap().0;
        Self { made, store }
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.made.path().join(name)
    }

    /// Changes what the member record says.
    fn say(&self, address: &str) {
        say(&self.made.path().join("manifests"), address);
    }

    async fn start(&self, name: &'static str) -> Replica {
        // Shown with a failing test. Another test of this process may have set it up already.
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info,controller=debug").try_init();
        let stop = CancellationToken::new();
        let config = controller::Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            state: self.disk(name),
            replica: name.into(),
            on_kubernetes: true,
            ..controller::Config::default()
        };
        let (surface, work) = controller::start(config, self.store.clone(), stop.clone()).await.unwrap();
        Replica { name, surface, stop, work }
    }

    async fn secret(&self) -> Secret {
        self.store.get(Some(SYSTEM_NAMESPACE), IDENTITY_SECRET).await.unwrap().expect("the Secret")
    }

    /// The record in force, once it names this address.
    async fn record(&self, address: &str) -> (MemberRecord, String) {
        let ask = || async {
            let local: LocalCluster = self.store.get(None, "local").await.unwrap()?;
            let status = local.status?;
            let record = SignedRecord::from_base64(&status.record).ok()?.verify(&[status.identity_key?]).ok()?;
            let named = record.slots.iter().any(|slot| slot.endpoints.iter().any(|one| one.contains(address)));
            named.then_some((record, status.fingerprint))
        };
        eventually(&format!("a record with {address}"), ask, Value::default).await
    }
}

/// As an editor does: beside, then renamed.
fn say(manifests: &Path, address: &str) {
    let text = format!(
        "apiVersion: tombolo.dev/v1alpha1\nkind: LocalCluster\nmetadata: {{ name: local }}\nspec:\n  clusterId: amber\n  \
         clusterSetId: demo\n  podPrefixes: [10.1.0.0/16]\n  clusterSetPrefixes: [10.200.0.0/16]\n  \
         gateways: {{ externalAddresses: [{address}] }}\n"
    );
    let beside = manifests.with_file_name("local.new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, manifests.join("local.yaml")).unwrap();
}

impl Replica {
    fn status(&self) -> Value {
        self.surface.answer("status").unwrap_or_default()
    }

    async fn until(&self, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
        let ask = || async { Some(self.status()).filter(&expected) };
        eventually(&format!("{what} in {}", self.name), ask, || self.status()).await
    }

    /// Waits until it says of itself what the other one says.
    async fn agrees_with(&self, other: &Self) {
        let manifest = |replica: &Self| {
            replica.surface.answer("peer-manifest").and_then(|it| it["manifest"].as_str().map(str::to_owned))
        };
        let ask = || async { (manifest(self).is_some() && manifest(self) == manifest(other)).then_some(()) };
        eventually("both say the same of themselves", ask, || serde_json::json!([manifest(self), manifest(other)]))
            .await;
    }

    fn order(&self, retire: bool) -> Result<Value, String> {
        let text = format!("identity?retire={retire}");
        // An order waits for the owner.
        tokio::task::block_in_place(|| self.surface.order(&text)).unwrap()
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.work.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_have_one_identity_and_one_record_and_any_of_them_goes_on_with_both() {
    let world = World::new().await;
    let a = world.start("a").await;
    a.until("it writes", |status| status["leader"] == true).await;
    let b = world.start("b").await;
    let (first, fingerprint) = world.record("192.0.2.1").await;
    b.agrees_with(&a).await;

    // The one that writes goes, and what is said next is said by the other, as the same cluster.
    a.end().await.unwrap();
    world.say("192.0.2.2");
    let (second, same) = world.record("192.0.2.2").await;
    assert_eq!((&same, &second.epoch, second.generation), (&fingerprint, &first.epoch, first.generation + 1));

    // One that lost its disk is who it was; so is one that had not heard of the last record.
    std::fs::remove_dir_all(world.disk("a")).unwrap();
    let a = world.start("a").await;
    a.agrees_with(&b).await;
    b.end().await.unwrap();
    a.until("it writes", |status| status["leader"] == true).await;
    world.say("192.0.2.3");
    let (third, same) = world.record("192.0.2.3").await;
    assert_eq!((same, third.epoch, third.generation), (fingerprint.clone(), first.epoch, second.generation + 1));
    let agents: ConfigMap = world.store.get(Some(SYSTEM_NAMESPACE), AGENTS_CONFIG_MAP).await.unwrap().unwrap();
    assert!(agents.data.unwrap()[ENROLMENT_DATA].contains("controller ed25519:"));
    a.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_is_replaced_by_the_replica_that_writes_and_by_no_other() {
    let world = World::new().await;
    let a = world.start("a").await;
    a.until("it writes", |status| status["leader"] == true).await;
    let b = world.start("b").await;
    let (_, before) = world.record("192.0.2.1").await;
    b.agrees_with(&a).await;
    assert!(b.order(false).unwrap_err().contains("another replica writes"));
    assert_eq!(a.order(false).unwrap()["changed"], true);
    // Nobody has to be waited for, so the old one goes at once.
    for replica in [&a, &b] {
        replica
            .until("another identity", |status| {
                status["identityRotation"].is_null() && status["fingerprint"] != *before && status["fingerprint"] != ""
            })
            .await;
    }
    b.agrees_with(&a).await;
    assert_eq!(a.status()["fingerprint"], b.status()["fingerprint"]);
    for replica in [a, b] {
        replica.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_older_than_a_replica_or_broken_or_gone_is_made_good() {
    let world = World::new().await;
    let a = world.start("a").await;
    let (first, fingerprint) = world.record("192.0.2.1").await;
    let old = world.secret().await;
    world.say("192.0.2.2");
    let (second, _) = world.record("192.0.2.2").await;
    let good = world.secret().await.data;
    let is_good = || async { (world.secret().await.data == good).then_some(()) };

    world.store.update(&Secret { data: old.data.clone(), ..world.secret().await }).await.unwrap();
    eventually("the newer state is back", is_good, Value::default).await;
    let mut broken = world.secret().await;
    broken.data.as_mut().unwrap().remove("membership.json");
    world.store.update(&broken).await.unwrap();
    eventually("what was missing is back", is_good, Value::default).await;
    world.store.delete::<Secret>(Some(SYSTEM_NAMESPACE), IDENTITY_SECRET, Default::default()).await.unwrap();
    let is_back = || async {
        let secret: Option<Secret> = world.store.get(Some(SYSTEM_NAMESPACE), IDENTITY_SECRET).await.unwrap();
        (secret?.data == good).then_some(())
    };
    eventually("the Secret is back", is_back, Value::default).await;

    // The same while it was stopped.
    a.end().await.unwrap();
    world.store.update(&Secret { data: old.data, ..world.secret().await }).await.unwrap();
    let a = world.start("a").await;
    eventually("the newer state is back", is_good, Value::default).await;
    assert_eq!(world.record("192.0.2.2").await, (second.clone(), fingerprint));
    assert!(second.generation > first.generation);
    a.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_finds_itself_of_another_installation_ends_and_begins_as_the_new_one() {
    let world = World::new().await;
    let a = world.start("a").await;
    let (_, before) = world.record("192.0.2.1").await;
    let elsewhere = World::new().await;
    let other = elsewhere.start("other").await;
    let (_, after) = elsewhere.record("192.0.2.1").await;
    let theirs = elsewhere.secret().await.data;
    other.end().await.unwrap();

    world.store.update(&Secret { data: theirs, ..world.secret().await }).await.unwrap();
    let ended = tokio::time::timeout(clusters::LIMIT, a.work).await.expect("it goes on as if nothing were").unwrap();
    assert!(ended.unwrap_err().to_string().contains("another installation"));
    let a = world.start("a").await;
    let status = a.until("a fingerprint", |status| status["fingerprint"] == *after).await;
    assert_ne!(status["fingerprint"], *before);
    a.end().await.unwrap();
}
