//! Stores to try promises on, each in folders of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::LocalCluster;
use store::{Store, folder};

/// A store, and what must live as long as it.
pub(crate) struct World {
    /// The store under test.
    pub(crate) store: Store,
    /// The folder behind it.
    pub(crate) owner: Store,
    pub(crate) reports: folder::Reports,
    pub(crate) place: Place,
}

/// A temporary place with a manifests and a state folder.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        Self { folder }
    }
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path().join("manifests")
    }
    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.manifests().join(file), text).unwrap();
    }
    pub(crate) fn config(&self) -> folder::Config {
        folder::Config { manifests: self.manifests(), state: self.path().join("state") }
    }
    pub(crate) fn open(&self) -> (Store, folder::Reports) {
        folder::open(self.config()).unwrap()
    }
}

/// A folder, itself.
#[expect(clippy::unused_async, reason = "the other worlds have to wait for theirs")]
pub(crate) async fn folder() -> World {
    let place = Place::new();
    let (store, reports) = place.open();
    World { owner: store.clone(), store, reports, place }
}

/// The longest any wait in these tests may take. Reached only by a failure: every wait is for an event.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn before_the_limit<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, event).await.expect("what was waited for did not happen")
}

pub(crate) fn local_cluster() -> LocalCluster {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "tombolo.dev/v1alpha1",
        "kind": "LocalCluster",
        "metadata": { "name": "local" },
        "spec": { "clusterId": "amber", "clusterSetId": "demo" },
    }))
    .unwrap()
}
