//! [`Reports`]: what is wrong in the folder of manifests now, for people.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Path inside the manifests folder; the folder's own path, or the state's, when that is what is wrong.
    pub file: String,
    /// From 1; `None` when it is the whole file.
    pub line: Option<u64>,
    /// Which object, where that can be told: `Service shop/web`.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
    /// Whether the object's last good version is still in force.
    pub last_good_in_force: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.reason)?;
        if self.last_good_in_force {
            f.write_str(" (its last good version stays in force)")?;
        }
        Ok(())
    }
}

/// All reports that hold now. Cheap to clone; each clone sees each change once.
#[derive(Clone, Debug)]
pub struct Reports {
    pub(super) receiver: watch::Receiver<Arc<Vec<Report>>>,
}

impl Reports {
    /// What is wrong now, by file and line; empty when all is well.
    pub fn current(&self) -> Arc<Vec<Report>> {
        Arc::clone(&self.receiver.borrow())
    }

    /// Waits until the reports change; `false` when the folder is closed.
    pub async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }
}
