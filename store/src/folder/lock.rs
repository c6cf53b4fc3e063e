//! One process owns a state folder.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;

/// Held for as long as the folder is; the kernel lets go of it when the process dies, however it dies.
pub(crate) struct Lock {
    _lock: Flock<File>,
}

/// Makes the state folder where there is none, and takes it for this process.
pub(crate) fn take(state: &Path) -> Result<Lock, Error> {
    let disk = |detail: String| Error::Disk { path: state.display().to_string(), detail };
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| disk(error.to_string()))?;
    let path = state.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| disk(format!("the lock file cannot be opened: {error}")))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // The number is for people; the lock itself is the kernel's.
            lock.set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .map_err(|error| disk(error.to_string()))?;
            Ok(Lock { _lock: lock })
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut owner = String::new();
            let _ = file.take(32).read_to_string(&mut owner);
            let owner = owner.trim();
            let owner = if owner.is_empty() { "another process" } else { &format!("process {owner}") };
            Err(disk(format!("the state belongs to {owner}: stop it, or choose another state folder")))
        }
        Err((_, error)) => Err(disk(format!("cannot be locked: {error}"))),
    }
}
