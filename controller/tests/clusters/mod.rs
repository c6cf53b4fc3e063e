//! Real controllers over folders of manifests, and gateways that are nothing but a splice.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod besieged;
pub(crate) mod liar;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::surface::Surface;
use api::{ClusterPeer, Kind, LocalCluster};
use serde_json::Value;
use store::{Store, folder};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine. A test waits for what it expects, and only fails after this.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    folder: PathBuf,
    /// Deleted with the cluster, where the cluster made it.
    _made: Option<TempDir>,
    running: Option<Running>,
}

struct Running {
    store: Store,
    surface: Arc<dyn Surface>,
    stop: CancellationToken,
    work: JoinHandle<anyhow::Result<()>>,
}

impl Cluster {
    /// A cluster with pods in 10.`number`.0.0/16, started.
    pub(crate) async fn start(name: &'static str, number: u8) -> Self {
        let made = tempfile::tempdir().unwrap();
        std::fs::create_dir(made.path().join("manifests")).unwrap();
        let mut cluster = Self { name, folder: made.path().to_path_buf(), _made: Some(made), running: None };
        cluster.put(
            "local.yaml",
            &format!(
                "apiVersion: tombolo.dev/v1alpha1\nkind: LocalCluster\nmetadata:\n  name: local\nspec:\n  clusterId: {name}\n  \
                 clusterSetId: demo\n  podPrefixes: [10.{number}.0.0/16]\n  clusterSetPrefixes: [10.200.0.0/16]\n  \
                 gateways: {{ externalAddresses: [192.0.2.{number}] }}\n\
                 ---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"
            ),
        );
        cluster.resume().await;
        cluster
    }

    /// A cluster whose folder is there.
    pub(crate) async fn at(folder: PathBuf, name: &'static str) -> Self {
        let mut cluster = Self { name, folder, _made: None, running: None };
        cluster.resume().await;
        cluster
    }

    /// Starts the controller on what is on disk.
    pub(crate) async fn resume(&mut self) {
        // Shown with a failing test. Another test of this process may have set it up already.
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info,controller=debug").try_init();
        let config = folder::Config { manifests: self.path("manifests"), state: self.path("objects") };
        let store = tokio::task::spawn_blocking(move || folder::open(config)).await.unwrap().unwrap().0;
        let stop = CancellationToken::new();
        let config = controller::Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            control_socket: Some(self.socket()),
            state: self.path("state"),
            replica: self.name.into(),
            ..controller::Config::default()
        };
        let (surface, work) = controller::start(config, store.clone(), stop.clone()).await.unwrap();
        self.running = Some(Running { store, surface, stop, work });
    }

    /// Stops the controller and lets go of its folder.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.cancel();
        running.work.await.unwrap().unwrap();
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }
    pub(crate) fn store(&self) -> &Store {
        &self.running().store
    }
    pub(crate) fn surface(&self) -> &dyn Surface {
        &*self.running().surface
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// Writes a manifest as an editor does: beside, then renamed.
    pub(crate) fn put(&self, file: &str, text: &str) {
        let beside = self.path("manifest.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.path("manifests").join(file)).unwrap();
    }
    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.path("manifests").join(file)).unwrap();
    }

    /// Service and export shop/web with these endpoints.
    pub(crate) fn export(&self, addresses: &[&str]) {
        self.put(
            "export.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
             spec: { ipFamilies: [IPv4], ports: [{ name: http, port: 80, protocol: TCP }] }\n\
             ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: web, namespace: shop }\n",
        );
        self.endpoints(addresses);
    }

    pub(crate) fn endpoints(&self, addresses: &[&str]) {
        let endpoints: Vec<String> = addresses.iter().map(|address| format!("  - addresses: [{address}]\n")).collect();
        self.put(
            "endpoints.yaml",
            &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  namespace: shop\n  \
                 labels: {{ kubernetes.io/service-name: web }}\naddressType: IPv4\nports:\n  - {{ name: http, port: 8080, protocol: TCP }}\n\
                 endpoints:\n{}",
                endpoints.concat()
            ),
        );
    }

    /// Waits until an object is as expected.
    pub(crate) async fn until<K: Kind, T>(
        &self,
        namespace: Option<&str>,
        name: &str,
        expected: impl Fn(Option<K>) -> Option<T>,
    ) -> T {
        let what = format!("{} of {} in {}", name, std::any::type_name::<K>(), self.name);
        eventually(
            &what,
            || async { expected(self.store().get(namespace, name).await.unwrap()) },
            || self.surface().answer("status").unwrap_or_default(),
        )
        .await
    }

    /// Trusts `other`, as an operator does by hand.
    pub(crate) async fn trust(&self, other: &Self) {
        let manifest = other
            .until::<LocalCluster, _>(None, "local", |local| controller_core::cluster_peer_manifest(&local?).ok())
            .await;
        self.put(&format!("peer-{}.yaml", other.name), &manifest);
        self.until::<ClusterPeer, _>(None, other.name, |peer| peer).await;
    }

    /// Addresses of the imported slices of shop/web, with source and readiness.
    pub(crate) async fn imported(&self) -> Vec<(String, String, bool)> {
        let slices = self.store().list::<api::kubernetes::EndpointSlice>().await.unwrap();
        let mut all: Vec<_> = slices
            .iter()
            .filter_map(|slice| {
                let labels = slice.metadata.labels.as_ref()?;
                Some((labels.get(api::names::mcs::SOURCE_CLUSTER)?.clone(), slice))
            })
            .flat_map(|(source, slice)| {
                slice.endpoints.iter().flatten().map(move |endpoint| {
                    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
                    (source.clone(), endpoint.addresses[0].clone(), ready)
                })
            })
            .collect();
        all.sort();
        all
    }

    pub(crate) async fn until_imported(&self, expected: &[(&str, &str, bool)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(cluster, address, ready)| ((*cluster).to_owned(), (*address).to_owned(), *ready))
            .collect();
        let what = format!("{expected:?} imported in {}", self.name);
        eventually(
            &what,
            || async { (self.imported().await == expected).then_some(()) },
            || self.surface().answer("status").unwrap_or_default(),
        )
        .await;
    }
}

/// Asks until there is an answer, and fails with `context` after the limit.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    ask: impl Fn() -> F,
    context: impl Fn() -> Value,
) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {LIMIT:?}\n{:#}", context());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A gateway of `importer` that offers a way to `exporter` again and again, and does nothing but copy bytes.
pub(crate) struct Splice(AbortHandle);

impl Splice {
    pub(crate) fn new(importer: &Cluster, exporter: &Cluster) -> Self {
        Self::to(importer.socket(), exporter.name, exporter.socket())
    }

    pub(crate) fn to(importer: PathBuf, name: &'static str, exporter: PathBuf) -> Self {
        let task = tokio::spawn(async move {
            loop {
                // Either end may be away; then it is tried again.
                let _ = once(&importer, name, &exporter).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn once(importer: &Path, name: &str, exporter: &Path) -> std::io::Result<()> {
    let mut theirs = UnixStream::connect(exporter).await?;
    let mut ours = UnixStream::connect(importer).await?;
    ours.write_all(format!("TOMBOLO IMPORT {name}\n").as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut ours, &mut theirs).await?;
    Ok(())
}
