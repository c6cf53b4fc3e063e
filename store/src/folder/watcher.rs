//! [`Watcher`]: what happens in the manifests folder, as the kernel tells it (inotify). Nothing is polled.
//!
//! Each folder is watched by itself, so that the owner can place the watch on a new folder first and read it after:
//! no file can come in between unseen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Something happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Its writer is done with it, or it moved here whole, or it is gone.
    Settled(PathBuf),
    /// It is being written.
    Unsettled(PathBuf),
    /// Events were lost: look at everything.
    Lost,
}

impl Signal {
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Settled(path) | Self::Unsettled(path) => Some(path),
            Self::Lost => None,
        }
    }
}

pub(crate) struct Watcher {
    inner: RecommendedWatcher,
    followed: BTreeSet<PathBuf>,
}

impl Watcher {
    /// `told` is called from a thread of its own, for each thing that happens.
    pub(crate) fn new(told: impl Fn(Signal) + Send + 'static) -> Result<Self, String> {
        let inner = RecommendedWatcher::new(
            move |event| {
                for signal in signals(event) {
                    told(signal);
                }
            },
            Config::default().with_follow_symlinks(false),
        )
        .map_err(|error| advice(&error))?;
        Ok(Self { inner, followed: BTreeSet::new() })
    }

    /// Watches what is directly in `folder` from now on.
    pub(crate) fn follow(&mut self, folder: &Path) -> Result<(), String> {
        self.inner.watch(folder, RecursiveMode::NonRecursive).map_err(|error| advice(&error))?;
        self.followed.insert(folder.to_owned());
        Ok(())
    }

    /// Stops watching `folder` and what is below it: it is not there any more.
    pub(crate) fn forget(&mut self, folder: &Path) {
        let below: Vec<PathBuf> = self.followed.iter().filter(|path| path.starts_with(folder)).cloned().collect();
        for path in below {
            self.followed.remove(&path);
            // The kernel has dropped the watch of a folder that was removed; one that moved away still has it.
            let _ = self.inner.unwatch(&path);
        }
    }

    pub(crate) fn is_followed(&self, folder: &Path) -> bool {
        self.followed.contains(folder)
    }
}

fn signals(event: notify::Result<notify::Event>) -> Vec<Signal> {
    let Ok(event) = event else {
        return vec![Signal::Lost];
    };
    if event.need_rescan() {
        return vec![Signal::Lost];
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Create(CreateKind::Folder)
        | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_))
        | EventKind::Remove(_) => event.paths.into_iter().map(Signal::Settled).collect(),
        EventKind::Create(_) | EventKind::Modify(_) => event.paths.into_iter().map(Signal::Unsettled).collect(),
        _ => Vec::new(),
    }
}

fn advice(error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the kernel gives no more file watches: raise fs.inotify.max_user_watches with sysctl".into()
        }
        notify::ErrorKind::Io(ref io) if io.raw_os_error() == Some(nix::errno::Errno::EMFILE as i32) => {
            "the kernel gives no more inotify instances: raise fs.inotify.max_user_instances with sysctl".into()
        }
        _ => format!("cannot be watched: {error}"),
    }
}
