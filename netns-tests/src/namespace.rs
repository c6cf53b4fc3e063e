//! One machine of the world: a network, a mount and a name namespace, held by a process that does nothing.
//!
//! The namespace has no name in the file system, so equal worlds do not meet, and it goes when its holder goes.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, read, sethostname, write};

use crate::sandbox::{close_all_but, leave, number_outside, private};

/// What the holder says when all is ready; then follows its process number outside the sandbox, in text.
const READY: u8 = 0;

/// A network, mount and name namespace. Dropping it frees all that is in it and has no other holder.
#[derive(Debug)]
pub struct Namespace {
    holder: Pid,
    number_outside: String,
    network: OwnedFd,
    mounts: OwnedFd,
    name: OwnedFd,
}

impl Namespace {
    /// Makes a namespace whose host name is `name` and whose /run is the folder `run`.
    ///
    /// Errors: outside a sandbox, the kernel refuses (EPERM).
    pub fn create(name: &str, run: &Path) -> Result<Self> {
        let run = CString::new(run.as_os_str().as_bytes())?;
        let label = CString::new(name)?;
        let (listen, speak) = pipe2(OFlag::O_CLOEXEC)?;
        #[expect(unsafe_code, reason = "fork")]
        // SAFETY: the child makes system calls only (see `hold`) and never returns.
        let holder = match unsafe { fork() }.context("starting a namespace's holder")? {
            ForkResult::Child => hold(&label, &run, speak),
            ForkResult::Parent { child } => child,
        };
        drop(speak);
        let mut answer = [0; 32];
        let length = read(&listen, &mut answer)?;
        let Some((&READY, number)) = answer[..length].split_first() else {
            let failed = answer[..length].first().map_or("start", |&at| STEPS[usize::from(at).min(STEPS.len()) - 1]);
            let _ = waitpid(holder, None);
            bail!("namespace {name}: could not {failed}; run the test in its sandbox, and see `make doctor`");
        };
        let descriptor = |kind: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{holder}/ns/{kind}");
            Ok(File::open(&path).with_context(|| format!("opening {path}"))?.into())
        };
        Ok(Self {
            holder,
            number_outside: String::from_utf8_lossy(number).into_owned(),
            network: descriptor("net")?,
            mounts: descriptor("mnt")?,
            name: descriptor("uts")?,
        })
    }

    /// The command that brings a person who stands outside the sandbox into this namespace.
    pub fn step_in(&self) -> String {
        format!("nsenter --target {} --user --preserve-credentials --net --mount --uts --pid", self.number_outside)
    }

    /// The descriptor to give to the kernel when one end of a link shall be here.
    pub fn network(&self) -> impl AsFd + '_ {
        self.network.as_fd()
    }

    /// Runs `work` on a thread of this network namespace. Files are the caller's: only sockets and /proc/sys/net
    /// differ.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(self.network.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread of this network namespace that outlives the call.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let network = self.network.try_clone()?;
        Ok(std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            Ok(work())
        }))
    }

    /// Makes `command` run here, with this namespace's network, mounts and host name.
    #[expect(unsafe_code, reason = "namespaces are entered between fork and exec")]
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let network = self.network.try_clone()?;
        let mounts = self.mounts.try_clone()?;
        let name = self.name.try_clone()?;
        // SAFETY: setns is a plain system call and the closure allocates nothing.
        unsafe {
            command.pre_exec(move || {
                setns(&network, CloneFlags::CLONE_NEWNET)?;
                setns(&name, CloneFlags::CLONE_NEWUTS)?;
                setns(&mounts, CloneFlags::CLONE_NEWNS)?;
                Ok(())
            });
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A holder that is gone already has nothing left to free.
        let _ = kill(self.holder, Signal::SIGKILL);
        let _ = waitpid(self.holder, None);
    }
}

const STEPS: [&str; 5] =
    ["make namespaces", "set the host name", "make mounts private", "mount its /run", "mount its /sys"];

fn hold(name: &CStr, run: &CStr, speak: OwnedFd) -> ! {
    close_all_but(speak.as_fd());
    let mut answer = [READY; 32];
    // Asked first: the folder that tells is hidden by this namespace's own /run.
    let length = 1 + number_outside(&mut answer[1..]).unwrap_or(0);
    if let Err(failed) = furnish(name, run) {
        answer[0] = failed;
    }
    if write(&speak, &answer[..length]).is_err() || answer[0] != READY {
        leave(1);
    }
    drop(speak);
    loop {
        pause();
    }
}

/// The error is the number of the step that failed, from one, so that it is never [`READY`].
fn furnish(name: &CStr, run: &CStr) -> std::result::Result<(), u8> {
    let no_path = None::<&CStr>;
    let nothing = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let recursively = MsFlags::MS_BIND | MsFlags::MS_REC;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).map_err(|_| 1)?;
    sethostname(OsStr::from_bytes(name.to_bytes())).map_err(|_| 2)?;
    mount(no_path, c"/", no_path, private(), no_path).map_err(|_| 3)?;
    mount(Some(run), c"/run", no_path, recursively, no_path).map_err(|_| 4)?;
    mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), nothing, no_path).map_err(|_| 5)?;
    // What `ps` shows; the world works without it.
    let _ = nix::sys::prctl::set_name(name);
    Ok(())
}
